"""Writes the index that `data=shar` reads for tar files that others have made, Lhotse's Shar and WebDataset; these stay as they are.

Shar: `recording.*.tar`, with `cuts.*.jsonl.gz` beside it. WebDataset: any other tar file; what has one name up to the first dot is an
utterance, and consists of a recording (`.flac`, `.wav`, `.mp3`, `.ogg` ...) and a text, as `.txt` or in the object of a `.json` under
`text`; the object may have a `speaker`, and the error report is divided by its other keys.
"""

from __future__ import annotations

import gzip
import io
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from speechtrain.console import progress_bar
from speechtrain.data.audio import AUDIO_SUFFIXES
from speechtrain.data.corpora.shar import INDEX, VERSION
from speechtrain.data.corpora.shar_writer import LARGEST_FILE, Written, index_line, write_line
from speechtrain.data.corpus import SPLITS, Cut, Skip, clean_text, make_cut, read_header
from speechtrain.data.text.lines import numbered_lines, parse_json
from speechtrain.errors import DataError
from speechtrain.files import atomically, is_file, is_folder

_SPLIT_NAMES = re.compile(
    r"(?:(?P<train>train(?:ing)?)|(?P<val>val(?:id(?:ation)?)?|dev(?:elopment)?)|(?P<test>test(?:ing)?))(?![^\W\d_])", re.IGNORECASE
)
"""Matches the word that a part of a path begins with, and none that merely begins alike: `testimony`."""
_LARGEST_TEXT = 1 << 24  # bytes of a member that is no recording
_NOT_CUSTOM = ("text", "speaker", "duration", "sampling_rate", "sample_rate")


@dataclass
class _Sample:
    """What a tar file holds under one name.

    Attributes:
        offset: where the recording begins, in bytes.
        recording: its content; None: there is none so far.
        texts: content of the other files by ending.
    """

    name: str
    offset: int = 0
    recording: bytes | None = None
    texts: dict[str, bytes] = field(default_factory=dict)


def write_index(folder: Path) -> Written:
    """Write the index of all tar files in a folder and below it.

    The split of a tar file is told by the first of the words train, val, dev and test (also training, valid, validation, development and
    testing) that a part of its path begins with; without any it is train.
    Headers of recordings are read, and what cannot be used is left out.

    Raises:
        DataError: there is no tar file, one is damaged, two utterances have one id, or none of them can be used.
        OSError: the index cannot be written.
    """
    if not is_folder(folder):
        raise DataError(f"no such folder: {folder}\n    -> set tars to a folder of tar files")
    tars = sorted(path for path in folder.rglob("*.tar") if not any(part.startswith(".") for part in path.relative_to(folder).parts))
    tars = [path for path in tars if path.name.startswith("recording.") or not _is_shar(path.parent)]
    if not tars:
        raise DataError(f"{folder}: holds no tar file\n    -> set tars to a folder of tar files")
    written = Written(dict.fromkeys(SPLITS, 0))
    with atomically(folder / INDEX) as temporary, progress_bar("reading tar files", len(tars)) as advance:
        with gzip.open(temporary, "wt", encoding="utf-8") as index:
            write_line(index, {"shar_index": VERSION})
            first_places: dict[str, str] = {}
            for tar in tars:
                _write_tar(tar, folder, index, written, first_places)
                advance(1)
        if not written.utterances["train"]:
            first = f"; the first: {written.skipped[0].where}: {written.skipped[0].reason}" if written.skipped else ""
            raise DataError(f"{folder}: no utterance for training can be used{first}")
        written.index_size = temporary.stat().st_size
    return written


def _write_tar(tar: Path, folder: Path, index: IO[str], written: Written, first_places: dict[str, str]) -> None:
    """Write the lines of a tar file; `first_places` has the tar file of each utterance so far."""
    name = tar.relative_to(folder).as_posix()
    found = next(filter(None, map(_SPLIT_NAMES.match, name.split("/"))), None)
    split = "train" if found is None or found.lastgroup is None else found.lastgroup
    size = tar.stat().st_size
    write_line(index, {"shard": name, "split": split, "size": size})
    listed = _shar_cuts(tar)
    try:
        for sample in _samples(tar, written.unused, by_last_dot=listed is not None):
            try:
                line = _line(sample, listed)
            except DataError as error:
                written.skipped.append(Skip(split, f"{tar}, '{sample.name}'", str(error)))
                continue
            if line["id"] in first_places:
                fix = "give each utterance a name of its own, for example with the tar file's name before it (train-000/a.flac)"
                raise DataError(f"utterance id '{line['id']}' occurs twice ({folder / first_places[line['id']]} and {tar})\n    -> {fix}")
            first_places[line["id"]] = name
            write_line(index, line)
            written.utterances[split] += 1
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{tar}: cannot be read as a tar file ({error})\n    -> copy it anew, or leave it out") from None
    written.shards += 1
    written.size += size


def _samples(tar: Path, unused: dict[str, tuple[int, str]], *, by_last_dot: bool) -> Iterator[_Sample]:
    """Read what a tar file holds, name by name; members of one name stand behind each other. `unused` gets those that are not read."""
    sample: _Sample | None = None
    with tarfile.open(tar, "r:") as archive:
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined] # or all of them are remembered
            place, slash, base = member.name.rpartition("/")
            stem, _, ending = base.rpartition(".") if by_last_dot else base.partition(".")
            ending = ending.lower()
            if not member.isfile() or not (ending in ("txt", "json") or by_last_dot or f".{ending}" in AUDIO_SUFFIXES):
                if not member.isdir():
                    _note(unused, ending, tar, member.name)
                continue
            name = f"{place}{slash}{stem}"
            if sample is None or name != sample.name:
                if sample is not None:
                    yield sample
                sample = _Sample(name)
            is_text = ending in ("txt", "json")
            if member.size > (_LARGEST_TEXT if is_text else LARGEST_FILE):
                raise DataError(f"{tar}: '{member.name}' has {member.size} bytes, which are too many")
            file = archive.extractfile(member)
            content = b"" if file is None else file.read()
            if is_text:
                sample.texts[ending] = content
            else:
                if sample.recording is not None:
                    _note(unused, f"{ending} beside another recording", tar, member.name)
                    continue
                sample.offset, sample.recording = member.offset_data, content
    if sample is not None:
        yield sample


def _note(unused: dict[str, tuple[int, str]], ending: str, tar: Path, name: str) -> None:
    """Count a member that is not read by its ending, and keep the name of the first."""
    kind = f".{ending}" if ending else "no ending"
    count, first = unused.get(kind, (0, f"'{name}' in {tar}"))
    unused[kind] = (count + 1, first)


def _line(sample: _Sample, listed: Mapping[str, Mapping[str, Any]] | None) -> dict[str, Any]:
    """Return the line of an utterance, whose text is listed or lies beside the recording.

    Raises:
        DataError: it cannot be used.
    """
    if not sample.recording:
        raise DataError("holds no recording")
    values = _facts(sample) if listed is None else listed.get(sample.name)
    if values is None:
        raise DataError("stands in no list of cuts")
    text, speaker = values.get("text"), values.get("speaker")
    if not isinstance(text, str):
        raise DataError("has no text" if text is None else f"'text' must be a text, received {text!r:.60}")
    if isinstance(speaker, (bool, list, dict)):
        raise DataError(f"'speaker' must be a text or a number, received {speaker!r:.60}")
    if not (cleaned := clean_text(text)):
        raise DataError("its text is empty")
    header = read_header(io.BytesIO(sample.recording), None)
    cut: Cut = make_cut(
        sample.name,
        None,
        num_samples=header.samples,
        sample_rate=header.rate,
        text=cleaned,
        speaker=None if speaker is None else str(speaker),
        custom={key: value for key, value in values.items() if key not in _NOT_CUSTOM},
        channels=header.channels,
    )
    return index_line(cut, sample.offset, sample.recording)


def _facts(sample: _Sample) -> dict[str, Any]:
    """Return what lies beside a recording: the object of its JSON, with its text."""
    try:
        decoded = {ending: content.decode() for ending, content in sample.texts.items()}
    except UnicodeDecodeError as error:
        raise DataError(f"its text is not UTF-8 ({error.reason} at byte {error.start})") from None
    values = parse_json(decoded["json"]) if "json" in decoded else {}
    if not isinstance(values, dict):
        raise DataError(f"its JSON must be an object, received {values!r:.60}")
    return {**values, "text": decoded["txt"]} if "txt" in decoded else values


def _is_shar(folder: Path) -> bool:
    return any(folder.glob("cuts.*jsonl*"))


def _shar_cuts(tar: Path) -> dict[str, dict[str, Any]] | None:
    """Return text, speaker and other facts of the cuts that Lhotse lists beside a tar file, by id; None: it is no tar file of Shar."""
    if not tar.name.startswith("recording.") or not _is_shar(tar.parent):
        return None
    name = f"cuts{tar.name.removeprefix('recording').removesuffix('.tar')}.jsonl"
    path = next((tar.with_name(name + packed) for packed in (".gz", "") if is_file(tar.with_name(name + packed))), None)
    if path is None:
        raise DataError(f"{tar}: there is no {name}.gz beside it, the list of its cuts")
    cuts: dict[str, dict[str, Any]] = {}
    for where, line in numbered_lines(path):
        try:
            cut = parse_json(line)
            spoken = cut.get("supervisions") or []
            known = {"text": spoken[0].get("text"), "speaker": spoken[0].get("speaker")} if len(spoken) == 1 else {}
            cuts[str(cut["id"])] = {**(cut.get("custom") or {}), **known}
        except (DataError, AttributeError, TypeError, KeyError) as error:
            raise DataError(f"{where}: is no cut of Lhotse's ({error})") from None
    return cuts
