"""`python -m speechtrain.transcribe`: write down what is said in recordings of any length and rate.

    python -m speechtrain.transcribe a.wav b.flac                     the last run's model, text to the standard output
    python -m speechtrain.transcribe from=3f2a91 talks/ format=srt out=subtitles
    python -m speechtrain.transcribe from=model.zip - < a.wav
    arecord -f S16_LE -r 16000 | python -m speechtrain.transcribe from=last - raw_rate=16000 streaming=true

`decoder=beam decoder.lexicon=words.txt` and other keys of the decoder may be given. Keys are those of conf/transcribe.yaml.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from speechtrain.addresses import unguarded_stdout
from speechtrain.app.arguments import arguments_of
from speechtrain.app.command import run_command
from speechtrain.config.experiment import class_name
from speechtrain.config.pretrained import is_checkpoint
from speechtrain.config.schemas.commands import TranscribeConfig
from speechtrain.console import errors
from speechtrain.decode.base import ranking
from speechtrain.errors import UserError
from speechtrain.files import user_path
from speechtrain.inference.find import load_for
from speechtrain.inference.formats import FORMATS, in_a_field
from speechtrain.inference.recordings import find_recordings, transcribe_blocks, transcript_path, write_transcript

if TYPE_CHECKING:
    from speechtrain.data.audio import Audio, RecordingReader
    from speechtrain.inference.recognizer import Recognizer
    from speechtrain.tasks.base import Transcription

_BLOCK_SECONDS = 10.0
"""How much of a recording is read at a time, where the text is not wanted as it is spoken."""
_UNSURE = 0.6
"""Mean confidence of words below which a model does not know such speech; a model of digits has 0.93 on them, 0.2 to 0.6 on sentences."""
_SHOWN_TOKENS = 40


def transcribe(cfg: TranscribeConfig, overrides: Sequence[str]) -> int:
    """Transcribe all files, print or write their texts, and return how many could not be transcribed.

    Raises:
        UserError: there is no such file or model, or the model cannot do what is asked for.
    """
    files = find_recordings([str(name) for name in cfg.files])
    recognizer = load_for(cfg, overrides)
    from speechtrain.data.audio import MIXED, RecordingReader

    if cfg.streaming:
        from speechtrain.inference.streaming import check_streams

        check_streams(recognizer)
    if cfg.nbest:
        ranking(recognizer.task.decoder)
    bad = 0
    confidences: dict[str, float] = {}
    with _ProgressBars(enabled=not cfg.streaming and sys.stderr.isatty()) as progress:
        for path in files:
            name = str(path) if path is not None else "-"
            try:
                source, raw_rate = (path, None) if path is not None else (sys.stdin.buffer, cfg.raw_rate)
                recording = RecordingReader(source, recognizer.sample_rate, raw_rate, channel=recognizer.channel)
                if recording.channels > 1 and recognizer.channel is None:
                    errors.print(MIXED.format(name=name, channels=recording.channels), style="yellow", markup=False)
                blocks = progress.of(name, recording, cfg.chunk if cfg.streaming else _BLOCK_SECONDS)
                pieces = FORMATS[cfg.format](name, _with_confidence(transcribe_blocks(recognizer, blocks, cfg), name, confidences))
                if cfg.out is None:
                    _print(pieces, name if len(files) > 1 and cfg.format == "text" else None)
                else:
                    write_transcript(pieces, transcript_path(user_path(cfg.out), path, files, cfg.format))
            except UserError as error:
                bad += 1
                errors.print(str(error), style="red", markup=False)
    if unsure := {name: value for name, value in confidences.items() if value < _UNSURE}:
        _print_unsure(unsure, len(files), recognizer, None if is_checkpoint(str(cfg.source)) else class_name(recognizer.cfg.corpus))
    if bad:
        errors.print(f"{bad} of {len(files)} could not be transcribed", style="red", markup=False)
    return bad


def _with_confidence(pieces: Iterator[Transcription], name: str, confidences: dict[str, float]) -> Iterator[Transcription]:
    """Yield the texts of a recording, and note the mean confidence of its words, if it has any, under its name."""
    words: list[float] = []
    for piece in pieces:
        words += [word.confidence for word in piece.words]
        yield piece
    if words:
        confidences[name] = sum(words) / len(words)


def _print_unsure(unsure: Mapping[str, float], count: int, recognizer: Recognizer, corpus: str | None) -> None:
    """Print which recordings a model is unsure of, and what it was trained for, as far as that is known."""
    least = min(unsure, key=unsure.__getitem__)
    vocabulary = recognizer.tokenizer.vocabulary[1 : _SHOWN_TOKENS + 1]
    tokens = "".join(vocabulary) if all(len(token) == 1 for token in vocabulary) else " ".join(vocabulary)
    errors.print(
        f"the model is unsure of the words in {len(unsure)} of {count} recordings (least in {least}, confidence {unsure[least]:.2f}); "
        f"they are probably not what it was trained for: {'texts' if corpus is None else f'{corpus},'} in the tokens {tokens!r}",
        style="yellow",
        markup=False,
    )


class _ProgressBars:
    """Shows a bar for each recording that is being transcribed."""

    def __init__(self, *, enabled: bool) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:.0f} s"), TimeRemainingColumn())
        self._bars = Progress(*columns, console=errors, transient=True, disable=not enabled)

    def __enter__(self) -> _ProgressBars:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def of(self, name: str, recording: RecordingReader, seconds: float) -> Iterator[Audio]:
        """Yield the blocks of a recording, and move its bar."""
        bar = self._bars.add_task(escape(Path(name).name), total=recording.duration)
        try:
            for block in recording.blocks(seconds):
                yield block
                self._bars.advance(bar, len(block) / recording.rate)
        finally:
            self._bars.remove_task(bar)


def _print(pieces: Iterator[str], name: str | None) -> None:
    for piece in pieces:
        results = unguarded_stdout()
        results.write(f"{in_a_field(name)}\t{piece}" if name is not None else piece)
        results.flush()


def run(arguments: list[str]) -> int:
    """Transcribe with the keys of conf/transcribe.yaml; arguments without `=` are files or folders."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    cfg, overrides = arguments_of(TranscribeConfig, arguments, words="files")
    return 2 if transcribe(cfg, overrides) else 0


if __name__ == "__main__":
    run_command(__doc__, run)
