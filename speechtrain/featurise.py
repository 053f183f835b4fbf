"""`python -m speechtrain.featurise`: write a corpus as spectrograms and tokens, which `data=featurised` reads.

    python -m speechtrain.featurise data=manifest data.root=/data/mine features=logmel tokenizer=char out=featurised

Keys are those of a training, of which data, features and tokenizer count, and `out`, the folder to be made.
"""

from __future__ import annotations

import logging
import os

from speechtrain.app.command import run_command
from speechtrain.config.compose import compose
from speechtrain.config.experiment import ExperimentConfig
from speechtrain.console import console
from speechtrain.errors import ConfigError, Problem, unwritable
from speechtrain.files import user_path


def run(arguments: list[str]) -> int:
    """Write the data of a training's config, print the keys that read them, and return the exit code."""
    named = [item.partition("=")[2] for item in arguments if item.startswith("out=")]
    folder = user_path(named[-1] if named else "featurised").absolute()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    cfg = ExperimentConfig.of(compose([item for item in arguments if not item.startswith("out=")] + ["tracking=[]"]))
    if os.path.lexists(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError([Problem("out", f"{folder} is there already", "give a folder that is empty or is to be made")])
    from speechtrain.data.featurised import write_featurised
    from speechtrain.data.prepare import prepare

    data = prepare(cfg, threads=os.cpu_count() or 1)
    try:
        overrides = write_featurised(data, folder)
    except OSError as error:
        raise unwritable(folder, error, "out") from error
    counts = ", ".join(f"{name} {len(cuts):,}" for name, cuts in data.corpus.splits.items())
    console.print(f"utterances  {counts}\nfolder      {folder}\nread with   {' '.join(overrides)}", markup=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    run_command(__doc__, run)
