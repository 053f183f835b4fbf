"""`python -m speechtrain.transcribe`: text of recordings, of any length and rate.

    python -m speechtrain.transcribe a.wav b.flac                     the last run's model, text to the standard output
    python -m speechtrain.transcribe from=3f2a91 talks/ format=srt out=subtitles
    python -m speechtrain.transcribe from=model.zip - < a.wav
    arecord -f S16_LE -r 16000 | python -m speechtrain.transcribe from=last - raw_rate=16000 streaming=true

`decoder=beam decoder.lexicon=words.txt` and other keys of the decoder may be given. Keys are those of conf/transcribe.yaml.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from speechtrain.app.arguments import arguments_of
from speechtrain.app.command import run_command
from speechtrain.config.schemas.commands import TranscribeConfig
from speechtrain.console import errors
from speechtrain.data.audio import AUDIO_SUFFIXES, RecordingReader
from speechtrain.decode.base import ranking
from speechtrain.errors import ConfigError, Problem, UserError, unwritable
from speechtrain.files import atomically
from speechtrain.inference.formats import FORMATS

if TYPE_CHECKING:
    from speechtrain.data.audio import Audio
    from speechtrain.inference.recognizer import Recognizer
    from speechtrain.tasks.base import Transcription

log = logging.getLogger(__name__)

_BLOCK = 10.0  # s that are read at once
_ENDINGS = {"text": ".txt", "json": ".json", "srt": ".srt", "vtt": ".vtt"}


def files_of(names: Sequence[str]) -> list[Path | None]:
    """Files, those of folders at any depth in order; None stands for the standard input.

    Raises:
        ConfigError: there is no such file, or a folder holds no audio.
    """
    found: list[Path | None] = []
    problems = []
    for name in names:
        path = Path(name).expanduser()
        if name == "-":
            found.append(None)
        elif path.is_file():
            found.append(path)
        elif path.is_dir():
            inside = sorted(each for each in path.rglob("*") if each.suffix.lower() in AUDIO_SUFFIXES and each.is_file())
            if not inside:
                problems.append(Problem("files", f"{path} holds no audio", f"files that end in {' '.join(AUDIO_SUFFIXES)} are looked for"))
            found += inside
        else:
            problems.append(Problem("files", f"there is no {path}", "give files, folders, or - for the standard input"))
    if problems:
        raise ConfigError(problems)
    if not found:
        raise ConfigError([Problem("files", "nothing to transcribe", "python -m speechtrain.transcribe a.wav")])
    return found


def texts_of(recognizer: Recognizer, blocks: Iterator[Audio], cfg: TranscribeConfig) -> Iterator[Transcription]:
    """One after the other, as they become certain."""
    from speechtrain.inference.long_audio import transcribe_long

    if cfg.streaming:
        from speechtrain.inference.streaming import transcribe_live

        yield from transcribe_live(recognizer, blocks)
    elif recognizer.task.timed:
        yield from transcribe_long(recognizer, blocks, window=cfg.window, nbest=cfg.nbest)
    else:  # one class for the whole
        import numpy as np

        yield recognizer.transcribe(np.concatenate(list(blocks)))


def transcribe(cfg: TranscribeConfig, overrides: Sequence[str]) -> int:
    """Transcribe all files; how many could not be.

    Raises:
        UserError: nothing can be transcribed at all.
    """
    from speechtrain.inference.find import load_for

    files = files_of([str(name) for name in cfg.files])
    recognizer = load_for(cfg, overrides)
    if cfg.streaming:
        from speechtrain.inference.streaming import check_streams

        check_streams(recognizer)
    if cfg.nbest:
        ranking(recognizer.task.decoder)
    bad = 0
    with _Heard(shown=not cfg.streaming and sys.stderr.isatty()) as progress:
        for path in files:
            name = str(path) if path is not None else "-"
            try:
                recording = RecordingReader(
                    path if path is not None else sys.stdin.buffer, recognizer.sample_rate, cfg.raw_rate if path is None else None
                )
                blocks = progress.of(name, recording, cfg.chunk if cfg.streaming else _BLOCK)
                write = FORMATS[cfg.format](name, texts_of(recognizer, blocks, cfg))
                if cfg.out is None:
                    _print(write, name if len(files) > 1 and cfg.format == "text" else None)
                else:
                    _to_file(write, _target(Path(cfg.out).expanduser(), path, files, _ENDINGS[cfg.format]))
            except UserError as error:
                bad += 1
                errors.print(str(error), style="red", markup=False)
    if bad:
        errors.print(f"{bad} of {len(files)} could not be transcribed", style="red", markup=False)
    return bad


class _Heard:
    """A bar for each file that is being heard."""

    def __init__(self, *, shown: bool) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:.0f} s"), TimeRemainingColumn())
        self._bars = Progress(*columns, console=errors, transient=True, disable=not shown)

    def __enter__(self) -> _Heard:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def of(self, name: str, recording: RecordingReader, seconds: float) -> Iterator[Audio]:
        """The blocks of a recording."""
        bar = self._bars.add_task(escape(Path(name).name), total=recording.duration)
        try:
            for block in recording.blocks(seconds):
                yield block
                self._bars.advance(bar, len(block) / recording.rate)
        finally:
            self._bars.remove_task(bar)


def _print(pieces: Iterator[str], name: str | None) -> None:
    for piece in pieces:
        sys.stdout.write(f"{name}\t{piece}" if name is not None else piece)
        sys.stdout.flush()


def _target(out: Path, path: Path | None, files: Sequence[Path | None], ending: str) -> Path:
    """A file in `out`, in folders as below the files' common one, so that equal names stay apart."""
    if path is None:
        return out / f"stdin{ending}"
    names = [each.stem for each in files if each is not None]
    if names.count(path.stem) == 1:
        return out / f"{path.stem}{ending}"
    relative = path.absolute().relative_to(path.anchor or "/")
    return out / relative.parent / f"{path.name}{ending}"


def _to_file(pieces: Iterator[str], target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomically(target) as temporary, temporary.open("w", encoding="utf-8") as file:
            file.writelines(pieces)
    except OSError as error:
        raise unwritable(target, error, "out") from error


def run(arguments: list[str]) -> int:
    """Keys of conf/transcribe.yaml; words without `=` are files."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    cfg, overrides = arguments_of(TranscribeConfig, arguments, words="files")
    return 2 if transcribe(cfg, overrides) else 0


if __name__ == "__main__":
    run_command(__doc__, run)
