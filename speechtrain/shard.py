"""`python -m speechtrain.shard`: write a corpus as tar files with an index, which `data=shar` reads from disks, HTTP servers and S3.

    python -m speechtrain.shard data=manifest data.root=/data/mine out=/data/shards shard_size=1000
    python -m speechtrain data=shar data.root=https://HOST/shards

    python -m speechtrain.shard tars=/data/wds                      only the index of tar files that are there (Lhotse's Shar, WebDataset)

Keys are those of a training, of which data counts, and those of conf/shard.yaml: `out`, the folder to be made, `shard_size`, and `tars`.
The folder of each split is in Lhotse's Shar format. Texts stay as they are: data.normalize is of the training.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from speechtrain.app.arguments import own_and_training_keys
from speechtrain.app.command import run_command
from speechtrain.config.compose import compose
from speechtrain.config.experiment import ExperimentConfig
from speechtrain.config.overrides import override_text
from speechtrain.config.schemas.commands import ShardConfig
from speechtrain.console import console
from speechtrain.errors import ConfigError, DataError, Problem, counted, unwritable
from speechtrain.files import user_path

if TYPE_CHECKING:
    from speechtrain.data.corpora.shar_writer import Written


log = logging.getLogger(__name__)


def run(arguments: list[str]) -> int:
    """Write the corpus of a training's config, print the keys that read it, and return the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    own, overrides = own_and_training_keys(ShardConfig, arguments)
    if own.tars is not None:
        return _index(user_path(own.tars).absolute(), overrides)
    folder = user_path(own.out).absolute()
    cfg = ExperimentConfig.of(compose([*overrides, "tracking=[]"]))
    if os.path.lexists(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError([Problem("out", f"{folder} is there already", "give a folder that is empty or is to be made")])
    from speechtrain.data.corpora.shar_writer import write_shar
    from speechtrain.data.corpus import report_skips
    from speechtrain.data.prepare import list_corpus

    corpus = list_corpus(cfg)
    if corpus.target is not None:
        raise DataError(f"data={cfg.corpus['_target_']} has signals in place of texts, which Shar is not written with")
    if cfg.data.on_bad == "error":
        report_skips(corpus.skipped, cfg.data.on_bad)
    try:
        written = write_shar(corpus, folder, own.shard_size, refuse_bad=cfg.data.on_bad == "error")
    except OSError as error:
        raise unwritable(folder, error, "out") from error
    report_skips([*corpus.skipped, *written.skipped], cfg.data.on_bad)
    for field, (count, first) in written.dropped.items():
        log.warning("field '%s' of %s left out, which JSON does not hold (the first: %s)", field, counted(count, "utterance"), first)
    _print(written, folder)
    return 0


def _index(folder: Path, overrides: list[str]) -> int:
    """Write the index of tar files that are there."""
    if overrides:
        raise ConfigError([Problem("command line", f"'{overrides[0]}' is not accepted beside tars", "give tars=FOLDER alone")])
    from speechtrain.data.corpora.tar_index import write_index
    from speechtrain.data.corpus import report_skips

    try:
        written = write_index(folder)
    except OSError as error:
        raise unwritable(folder, error, "tars") from error
    report_skips(written.skipped, "skip")
    for kind, (count, first) in written.unused.items():
        log.warning("%s not read: %s (the first: %s)", counted(count, "file"), kind, first)
    _print(written, folder)
    return 0


def _print(written: Written, folder: Path) -> None:
    counts = ", ".join(f"{name} {count:,}" for name, count in written.utterances.items())
    size = f"{written.shards:,} tar files, {written.size / 1e6:,.1f} MB; index {written.index_size / 1e6:,.1f} MB"
    reading = f"data=shar data.root={override_text(str(folder))}"
    console.print(f"utterances  {counts}\nfolder      {folder} ({size})\nread with   {reading}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    run_command(__doc__, run)
