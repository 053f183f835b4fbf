"""`python -m speechtrain.featurise`: write a corpus as spectrograms and tokens, which `data=featurised` reads.

    python -m speechtrain.featurise data=manifest data.root=/data/mine features=logmel tokenizer=char out=featurised

Keys are those of a training, of which data, features and tokenizer count, and that of conf/featurise.yaml: `out`, the folder to be made.
"""

from __future__ import annotations

import logging
import os

from speechtrain.app.arguments import own_and_training_keys
from speechtrain.app.command import run_command
from speechtrain.config.compose import compose
from speechtrain.config.experiment import ExperimentConfig
from speechtrain.config.schemas.commands import FeaturiseConfig
from speechtrain.console import console
from speechtrain.errors import ConfigError, Problem, unwritable
from speechtrain.files import user_path


def run(arguments: list[str]) -> int:
    """Write the data of a training's config, print the keys that read them, and return the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    own, overrides = own_and_training_keys(FeaturiseConfig, arguments)
    folder = user_path(own.out).absolute()
    cfg = ExperimentConfig.of(compose([*overrides, "tracking=[]"]))
    if os.path.lexists(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError([Problem("out", f"{folder} is there already", "give a folder that is empty or is to be made")])
    from speechtrain.data.corpora.spectrogram_writer import write_featurised
    from speechtrain.data.prepare import prepare

    data = prepare(cfg, threads=os.cpu_count() or 1)
    try:
        reading = write_featurised(data.corpus, data.cache, data.features, data.tokenizer, folder)
    except OSError as error:
        raise unwritable(folder, error, "out") from error
    counts = ", ".join(f"{name} {len(cuts):,}" for name, cuts in data.corpus.splits.items())
    console.print(f"utterances  {counts}\nfolder      {folder}\nread with   {' '.join(reading)}", markup=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    run_command(__doc__, run)
