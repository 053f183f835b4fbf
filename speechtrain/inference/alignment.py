"""Alignment of recordings, or of a data set, with their texts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from speechtrain.config.overlay import overlaid
from speechtrain.errors import ConfigError, DataError, Problem, unwritable
from speechtrain.inference.formats import as_object, ctm, textgrid

if TYPE_CHECKING:
    from speechtrain.inference.recognizer import Alignment, Recognizer


def alignments(cfg: DictConfig, overrides: Sequence[str]) -> Iterator[tuple[str, str, Alignment | DataError]]:
    """(id, text, alignment) of the one recording, or of all utterances of a split; an utterance that cannot be aligned has its error.

    Raises:
        UserError: the model or the data cannot be used.
    """
    from speechtrain.inference.find import stored_for
    from speechtrain.inference.recognizer import Recognizer

    weights, stored, _ = stored_for(cfg)
    settings = overlaid(stored, overrides)
    recognizer = Recognizer.load(weights, trust=cfg.trust, cfg=settings)
    if cfg.audio is not None:
        path = Path(cfg.audio).expanduser()
        if not path.is_file():
            raise ConfigError([Problem("audio", f"there is no file {path}", "give a WAV, FLAC, OGG or MP3 file")])
        yield path.stem, cfg.text, recognizer.align(path, cfg.text)
        return
    yield from _of_data(recognizer, settings, cfg.split)


def _of_data(recognizer: Recognizer, settings: DictConfig, split: str) -> Iterator[tuple[str, str, Alignment | DataError]]:
    from speechtrain.data.prepare import prepare_split

    data = prepare_split(settings, split, recognizer.tokenizer, threads=2)
    data.target = recognizer.task.target
    cuts = {str(cut.id): cut for cut in data.corpus.splits[split]}
    loader = data.loader(split)
    assert loader is not None
    for batch, outputs in recognizer.backend.predict(recognizer.model, loader, recognizer.task):
        for row, utterance in enumerate(batch.ids):
            cut = cuts[utterance]
            try:
                samples = data.corpus.read(cut, recognizer.sample_rate)
                yield utterance, cut.text, recognizer.aligned(outputs.values[row, : outputs.lengths[row]], cut.text, samples)
            except DataError as error:
                yield utterance, cut.text, error


def write(found: Iterator[tuple[str, str, Alignment | DataError]], folder: Path, formats: Sequence[str]) -> tuple[int, list[str]]:
    """Write all of them; how many there are, and what is wrong with those that could not be aligned.

    Raises:
        UserError: the folder cannot be written.
    """
    from speechtrain.files import numbered, write_text

    bad: list[str] = []
    count = 0
    ctms, objects = [], []
    names: set[str] = set()
    try:
        for utterance, text, alignment in found:
            if isinstance(alignment, DataError):
                bad.append(f"{utterance}: {alignment}")
                continue
            count += 1
            if "textgrid" in formats:
                name = numbered(re.sub(r"[^A-Za-z0-9._-]", "_", utterance), names)
                write_text(folder / f"{name}.TextGrid", textgrid(alignment))
            ctms.append(ctm(utterance, alignment))
            objects.append(json.dumps(as_object(utterance, text, alignment), ensure_ascii=False) + "\n")
        if "ctm" in formats:
            write_text(folder / "words.ctm", "".join(sorted(ctms)))
        if "json" in formats:
            write_text(folder / "alignments.jsonl", "".join(sorted(objects)))
    except OSError as error:
        raise unwritable(folder, error, "out") from error
    return count, bad
