"""`python -m speechtrain.align`: when each word and token of known texts was said.

    python -m speechtrain.align from=last audio=a.wav text="seven two"
    python -m speechtrain.align from=3f2a91 data=manifest data.root=/data/mine data.test=all.jsonl format=[textgrid,ctm,json] out=times

TextGrids are a file an utterance, for Praat; `words.ctm` is NIST's, for sclite; `alignments.jsonl` holds everything. Keys are those
of conf/align.yaml, and `data` and `backend` as in training.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from speechtrain.command import run_command
from speechtrain.console import console, errors
from speechtrain.errors import ConfigError, DataError, Problem, UserError
from speechtrain.overlay import arguments_of, overlaid

if TYPE_CHECKING:
    from speechtrain.decode.align import Word
    from speechtrain.recognizer import Alignment, Recognizer

log = logging.getLogger(__name__)

FORMATS = ("textgrid", "ctm", "json")


def alignments(cfg: DictConfig, overrides: Sequence[str]) -> Iterator[tuple[str, str, Alignment | DataError]]:
    """(id, text, alignment) of the one recording, or of all utterances of a split; an utterance that cannot be aligned has its error.

    Raises:
        UserError: the model or the data cannot be used.
    """
    from speechtrain.recognizer import Recognizer
    from speechtrain.source import stored_for

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


def textgrid(alignment: Alignment) -> str:
    """As Praat reads it, in its long form: a tier of words and one of tokens, without gaps (Boersma and Weenink, TextGrid file formats)."""
    tiers = {"words": alignment.words, "tokens": alignment.tokens}
    head = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "xmin = 0", f"xmax = {alignment.duration:.6f}", "tiers? <exists>"]
    lines = [*head, f"size = {len(tiers)}", "item []:"]
    for number, (name, words) in enumerate(tiers.items(), start=1):
        intervals = list(_without_gaps(words, alignment.duration))
        lines += [f"    item [{number}]:", '        class = "IntervalTier"', f'        name = "{name}"', "        xmin = 0"]
        lines += [f"        xmax = {alignment.duration:.6f}", f"        intervals: size = {len(intervals)}"]
        for count, (start, end, text) in enumerate(intervals, start=1):
            quoted = text.replace('"', '""')
            lines += [
                f"        intervals [{count}]:",
                f"            xmin = {start:.6f}",
                f"            xmax = {end:.6f}",
                f'            text = "{quoted}"',
            ]
    return "\n".join(lines) + "\n"


def _without_gaps(words: Sequence[Word], duration: float) -> Iterator[tuple[float, float, str]]:
    at = 0.0
    for word in words:
        start, end = max(at, word.start), min(word.end, duration)
        if end - start < 1e-6:
            continue
        if start - at > 1e-6:
            yield at, start, ""
        yield (start if start - at > 1e-6 else at), end, word.text
        at = end
    if duration - at > 1e-6:
        yield at, duration, ""


def ctm(utterance: str, alignment: Alignment) -> str:
    """Lines of NIST's time-marked conversation files: recording, channel, begin, duration, word, confidence."""
    name = re.sub(r"\s", "_", utterance)
    return "".join(f"{name} 1 {w.start:.3f} {w.end - w.start:.3f} {w.text} {w.confidence:.4f}\n" for w in alignment.words)


def as_object(utterance: str, text: str, alignment: Alignment) -> dict[str, Any]:
    """For JSON."""

    def listed(words: Sequence[Word]) -> list[dict[str, Any]]:
        return [{"text": w.text, "start": round(w.start, 4), "end": round(w.end, 4), "confidence": round(w.confidence, 4)} for w in words]

    score = round(alignment.score, 4)
    sizes = {"duration": round(alignment.duration, 4), "score": score}
    return {"id": utterance, "text": text, **sizes, "words": listed(alignment.words), "tokens": listed(alignment.tokens)}


def write(found: Iterator[tuple[str, str, Alignment | DataError]], folder: Path, formats: Sequence[str]) -> tuple[int, list[str]]:
    """Write all of them; how many there are, and what is wrong with those that could not be aligned.

    Raises:
        UserError: the folder cannot be written.
    """
    from speechtrain.report.page import numbered
    from speechtrain.report.page import write as write_file

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
                write_file(folder / f"{name}.TextGrid", textgrid(alignment))
            ctms.append(ctm(utterance, alignment))
            objects.append(json.dumps(as_object(utterance, text, alignment), ensure_ascii=False) + "\n")
        if "ctm" in formats:
            write_file(folder / "words.ctm", "".join(sorted(ctms)))
        if "json" in formats:
            write_file(folder / "alignments.jsonl", "".join(sorted(objects)))
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror})\n    -> set out to a folder that can") from error
    return count, bad


def run(arguments: list[str]) -> int:
    """Keys of conf/align.yaml."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    cfg, overrides = arguments_of("align", arguments)
    formats = [str(name) for name in cfg.format]
    problems = [Problem("format", f"there is no '{name}'", f"choose of {', '.join(FORMATS)}") for name in formats if name not in FORMATS]
    if (cfg.audio is None) != (cfg.text is None):
        problems.append(
            Problem("text" if cfg.text is None else "audio", "is missing: audio and text go together", 'audio=a.wav text="seven two"')
        )
    if problems:
        raise ConfigError(problems)
    folder = Path(cfg.out).expanduser()
    count, bad = write(alignments(cfg, overrides), folder, formats)
    for line in bad[:10]:
        errors.print(line, style="yellow", markup=False)
    if len(bad) > 10:
        errors.print(f"and {len(bad) - 10} more", style="yellow", markup=False)
    console.print(f"aligned     {count:,} of {count + len(bad):,}\nfolder      {folder}", markup=False)
    return 0 if count else 2


if __name__ == "__main__":
    run_command(__doc__, run)
