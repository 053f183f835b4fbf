"""Many recordings: those that a user names, each with its text, and the files that the texts go to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from speechtrain.config.schemas.commands import TranscribeConfig
from speechtrain.errors import ConfigError, Problem, unwritable
from speechtrain.files import atomically, is_file, is_folder, user_path

if TYPE_CHECKING:
    from speechtrain.data.audio import Audio
    from speechtrain.inference.recognizer import Recognizer
    from speechtrain.tasks.base import Transcription

_ENDINGS = {"text": ".txt", "json": ".json", "srt": ".srt", "vtt": ".vtt"}


def find_recordings(names: Sequence[str]) -> list[Path | None]:
    """Return the files that are named and, in order, those at any depth in folders that are; None stands for the standard input.

    Raises:
        ConfigError: there is no such file, or a folder holds no audio.
    """
    files: list[Path | None] = []
    problems = []
    for name in names:
        path = user_path(name)
        if not name:
            problems.append(Problem("files", "holds an empty name", "give . for the current folder"))
        elif name == "-":
            files.append(None)
        elif is_file(path):
            files.append(path)
        elif is_folder(path):
            from speechtrain.data.audio import AUDIO_SUFFIXES, UNREAD_SUFFIXES

            suffixes = (*AUDIO_SUFFIXES, *UNREAD_SUFFIXES)  # the latter are refused by name, one by one
            inside = sorted(each for each in path.rglob("*") if each.suffix.lower() in suffixes and is_file(each))
            if not inside:
                problems.append(Problem("files", f"{path} holds no audio", f"files that end in {' '.join(AUDIO_SUFFIXES)} are looked for"))
            files += inside
        else:
            problems.append(Problem("files", f"there is no {path}", "give files, folders, or - for the standard input"))
    if problems:
        raise ConfigError(problems)
    if not files:
        raise ConfigError([Problem("files", "nothing to transcribe", "python -m speechtrain.transcribe a.wav")])
    return files


def transcribe_blocks(recognizer: Recognizer, blocks: Iterator[Audio], cfg: TranscribeConfig) -> Iterator[Transcription]:
    """Yield the transcriptions of one recording, one after the other as they become certain.

    Args:
        recognizer: the model.
        blocks: the recording in pieces (N,), at the model's rate.
        cfg: the config of `conf/transcribe.yaml`.
    """
    from speechtrain.inference.long_audio import transcribe_long

    if cfg.streaming:
        from speechtrain.inference.streaming import transcribe_live

        yield from transcribe_live(recognizer, blocks)
    elif recognizer.task.timed:
        yield from transcribe_long(recognizer, blocks, window=cfg.window, nbest=cfg.nbest)
    else:  # one class for the whole
        import numpy as np

        yield recognizer.transcribe(np.concatenate(list(blocks)))


def transcript_path(out: Path, path: Path | None, files: Sequence[Path | None], kind: str) -> Path:
    """Return the file in `out` for the text of a recording; names that stand more than once keep their folders, so that they stay apart.

    Args:
        out: the folder of all texts.
        path: the recording; None for the standard input.
        files: all recordings.
        kind: format of the text: text, json, srt or vtt.
    """
    ending = _ENDINGS[kind]
    if path is None:
        return out / f"stdin{ending}"
    names = [each.stem for each in files if each is not None]
    if names.count(path.stem) == 1:
        return out / f"{path.stem}{ending}"
    relative = path.absolute().relative_to(path.anchor or "/")
    return out / relative.parent / f"{path.name}{ending}"


def write_transcript(pieces: Iterator[str], target: Path) -> None:
    """Write the pieces of a text to a file that appears whole or not at all.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomically(target) as temporary, temporary.open("w", encoding="utf-8") as file:
            file.writelines(pieces)
    except OSError as error:
        raise unwritable(target, error, "out") from error
