"""`python -m speechtrain.align`: when each word and token of known texts was said.

    python -m speechtrain.align from=last audio=a.wav text="seven two"
    python -m speechtrain.align from=3f2a91 data=manifest data.root=/data/mine data.test=all.jsonl format=[textgrid,ctm,json] out=times

TextGrids are a file an utterance, for Praat; `words.ctm` is NIST's, for sclite; `alignments.jsonl` holds everything. Keys are those
of conf/align.yaml, and `data` and `backend` as in training.
"""

from __future__ import annotations

import logging
from itertools import chain, islice

from speechtrain.app.arguments import arguments_of
from speechtrain.app.command import run_command
from speechtrain.config.schemas.commands import AlignConfig
from speechtrain.console import console, errors
from speechtrain.errors import ConfigError, Problem
from speechtrain.files import is_file, user_path
from speechtrain.inference.alignment import alignments, write
from speechtrain.inference.find import results_folder, stored_for

FORMATS = ("textgrid", "ctm", "json")

_SHOWN = 10
"""Most utterances that are named for each kind of trouble."""


def run(arguments: list[str]) -> int:
    """Align texts with recordings with the keys of conf/align.yaml, and return the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    cfg, overrides = arguments_of(AlignConfig, arguments)
    formats = [str(name) for name in cfg.format]
    problems = [Problem("format", f"there is no '{name}'", f"choose of {', '.join(FORMATS)}") for name in formats if name not in FORMATS]
    if (cfg.audio is None) != (cfg.text is None):
        problems.append(
            Problem("text" if cfg.text is None else "audio", "is missing: audio and text go together", 'audio=a.wav text="seven two"')
        )
    if cfg.audio is not None and not is_file(user_path(cfg.audio)):
        problems.append(Problem("audio", f"there is no file {cfg.audio}", "give a WAV, FLAC, OGG or MP3 file"))
    if problems:
        raise ConfigError(problems)
    model = stored_for(cfg)
    results = alignments(cfg, overrides, model)
    first = list(islice(results, 1))  # whatever is refused is refused by now, and leaves no folder
    folder = results_folder(model[0], "alignments", cfg.out)
    written = write(chain(first, results), folder, formats, keep=cfg.audio is not None)
    for lines in (written.bad, written.doubtful):
        for line in lines[:_SHOWN]:
            errors.print(line, style="yellow", markup=False)
        if len(lines) > _SHOWN:
            errors.print(f"and {len(lines) - _SHOWN} more", style="yellow", markup=False)
    doubtful = f", {len(written.doubtful):,} of them with a text that does not seem to be said" if written.doubtful else ""
    console.print(f"aligned     {written.count:,} of {written.utterances:,}{doubtful}\nfolder      {folder}", markup=False)
    return 0 if written.count == written.utterances else 2


if __name__ == "__main__":
    run_command(__doc__, run)
