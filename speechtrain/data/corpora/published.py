"""Published corpora as they lie on disk: `data=librispeech|mini_librispeech|yesno|ljspeech|common_voice|timit|an4`.

Each class lists its utterances; what all have in common (headers, bad files, splits, fetching) is in `ListedCorpus`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from speechtrain.data.corpora.download import Archive
from speechtrain.data.corpora.listed import Entry, ListedCorpus
from speechtrain.data.text.lines import numbered_lines
from speechtrain.errors import DataError
from speechtrain.files import is_file, is_folder

_OPENSLR = "https://www.openslr.org/resources"


class LibriSpeech(ListedCorpus):
    """LibriSpeech (Panayotov et al. 2015): read English, `PART/speaker/chapter/*.trans.txt` beside FLAC files.

    Args:
        root: folder of the parts, or the one above `LibriSpeech`.
        train, val, test: parts, such as `train-clean-100`.
        download, mirror: see `ListedCorpus`.
    """

    title = "LibriSpeech"
    released: ClassVar[Mapping[str, tuple[str | None, float]]] = {
        "dev-clean": ("sha256:76f87d090650617fca0cac8f88b9416e0ebf80350acb97b343a85fa903728ab3", 0.3),
        "dev-other": ("sha256:12661c48e8c3fe1de2c1caa4c3e135193bfb1811584f11f569dd12645aa84365", 0.3),
        "test-clean": ("sha256:39fde525e59672dc6d1551919b1478f724438a95aa55f874b576be21967e6c23", 0.3),
        "test-other": ("sha256:d09c181bba5cf717b3dee7d4d592af11a3ee3a09e08ae025c5506f6ebe961c29", 0.3),
        "train-clean-100": ("sha256:d4ddd1d5a6ab303066f14971d768ee43278a5f2a0aa43dc716b0e64ecbbbf6e2", 6.3),
        "train-clean-360": ("sha256:146a56496217e96c14334a160df97fffedd6e0a04e66b9c5af0d40be3c792ecf", 23.0),
        "train-other-500": ("sha256:ddb22f27f96ec163645d53215559df6aa36515f26e01dd70798188350adcb6d2", 30.0),
    }
    """Digest and size of each part (as in torchaudio 2.11, `datasets/librispeech.py`)."""
    resource: ClassVar[int] = 12

    def __init__(
        self,
        root: str,
        train: Sequence[str],
        val: Sequence[str],
        test: Sequence[str],
        *,
        download: bool = False,
        mirror: str | None = None,
    ) -> None:
        super().__init__(root, download=download, mirror=mirror)
        self._parts = {"train": list(train), "val": list(val), "test": list(test)}

    @property
    def parts(self) -> Mapping[str, Sequence[str]]:
        """Return the parts of each split, as the config names them."""
        return self._parts

    def folder(self, part: str) -> Path | None:
        """Find the part's own folder."""
        return next((path for path in (self.root / part, self.root / "LibriSpeech" / part) if is_folder(path)), None)

    def archives(self, part: str) -> Sequence[Archive]:
        """Each part has an archive of its own."""
        if part not in self.released:
            return ()
        digest, size = self.released[part]
        return [Archive(f"{_OPENSLR}/{self.resource}/{part}.tar.gz", digest, size)]

    def entries(self, part: str, folder: Path) -> Iterator[Entry]:  # noqa: ARG002
        """List the lines of all transcripts."""
        for transcript in sorted(folder.rglob("*.trans.txt")):
            for where, line in numbered_lines(transcript):
                name, *rest = re.split("[ \t]+", line.strip(), maxsplit=1)
                text = rest[0] if rest else ""
                yield Entry(name, transcript.with_name(f"{name}.flac"), text, name.partition("-")[0], where=where)


class MiniLibriSpeech(LibriSpeech):
    """A small part of LibriSpeech in its shape: `train-clean-5` and `dev-clean-2`."""

    title = "mini LibriSpeech"
    released: ClassVar[Mapping[str, tuple[str | None, float]]] = {"train-clean-5": (None, 0.33), "dev-clean-2": (None, 0.13)}
    resource: ClassVar[int] = 31


class YesNo(ListedCorpus):
    """Sixty recordings of one man who says "yes" or "no" eight times in Hebrew, as the file's name tells.

    Every second file is in the test split, as in Lhotse's and icefall's recipes.
    """

    title = "YesNo"

    @property
    def parts(self) -> Mapping[str, Sequence[str]]:
        """Every second file is for the test."""
        return {"train": ["even"], "val": [], "test": ["odd"]}

    def folder(self, part: str) -> Path | None:  # noqa: ARG002
        """Find the folder of the WAV files."""
        return next((path for path in (self.root, self.root / "waves_yesno") if any(path.glob("[01]_*.wav"))), None)

    def archives(self, part: str) -> Sequence[Archive]:  # noqa: ARG002
        """All recordings are in one archive."""
        digest = "sha256:c3f49e0cca421f96b75b41640749167b52118f232498667ca7a5f9416aef8e73"
        return [Archive(f"{_OPENSLR}/1/waves_yesno.tar.gz", digest, 0.005)]

    def entries(self, part: str, folder: Path) -> Iterator[Entry]:
        """List the files; the digits of a file's name are its words."""
        for path in sorted(folder.glob("[01]_*.wav"))[part == "odd" :: 2]:
            yield Entry(path.stem, path, " ".join("YES" if digit == "1" else "NO" for digit in path.stem.split("_")))


class LJSpeech(ListedCorpus):
    """LJ Speech (Ito and Johnson 2017): one reader; `metadata.csv` holds `id|text|text with numbers in words`.

    Args:
        root: folder of `metadata.csv`, or the one above `LJSpeech-1.1`.
        split: what goes to val and test.
        numbers_in_words: read the third column, not the second.
        download, mirror: see `ListedCorpus`.
    """

    title = "LJ Speech"

    def __init__(
        self, root: str, split: dict[str, Any], *, numbers_in_words: bool = True, download: bool = False, mirror: str | None = None
    ) -> None:
        super().__init__(root, download=download, mirror=mirror, split=split)
        self.column = 2 if numbers_in_words else 1

    def folder(self, part: str) -> Path | None:  # noqa: ARG002
        """Find the folder of `metadata.csv`."""
        return next((path for path in (self.root, self.root / "LJSpeech-1.1") if is_file(path / "metadata.csv")), None)

    def archives(self, part: str) -> Sequence[Archive]:  # noqa: ARG002
        """All recordings are in one archive."""
        digest = "sha256:be1a30453f28eb8dd26af4101ae40cbf2c50413b1bb21936cbcdc6fae3de8aa5"
        return [Archive("https://data.keithito.com/data/speech/LJSpeech-1.1.tar.bz2", digest, 2.7)]

    def entries(self, part: str, folder: Path) -> Iterator[Entry]:  # noqa: ARG002
        """List the lines of `metadata.csv`; quotation marks are part of the text."""
        for where, line in numbered_lines(folder / "metadata.csv"):
            fields = line.strip().split("|")
            path = folder / "wavs" / f"{fields[0]}.wav"
            problem = None if len(fields) == 3 else f"must be id|text|text, received {line.strip()[:60]!r}"
            yield Entry(fields[0], path, fields[self.column] if problem is None else "", "LJ", where=where, problem=problem)


class CommonVoice(ListedCorpus):
    """Common Voice (Ardila et al. 2020): sentences read by volunteers; `train.tsv`, `dev.tsv`, `test.tsv` and MP3 files in `clips`.

    Args:
        root: folder of a language, or the one above it.
        language: its code, such as `cy`.
        train, val, test: names of the lists without `.tsv`.
    """

    title = "Common Voice"
    by_hand = "agree to its terms and fetch it at commonvoice.mozilla.org"

    def __init__(self, root: str, language: str, train: Sequence[str], val: Sequence[str], test: Sequence[str]) -> None:
        super().__init__(root)
        self.language = language
        self._parts = {"train": list(train), "val": list(val), "test": list(test)}

    @property
    def parts(self) -> Mapping[str, Sequence[str]]:
        """Return the parts of each split, as the config names them."""
        return self._parts

    def folder(self, part: str) -> Path | None:
        """Find the folder of the list."""
        places = (self.root / self.language, self.root)
        return next((path for path in places if is_file(path / f"{part}.tsv")), None)

    def entries(self, part: str, folder: Path) -> Iterator[Entry]:
        """List the lines of a list."""
        path = folder / f"{part}.tsv"
        lines = list(numbered_lines(path))
        names = lines[0][1].split("\t") if lines else []
        if not {"path", "sentence"} <= set(names):
            raise DataError(
                f"{path}: needs the columns 'path' and 'sentence', received {names[:8]}\n    -> give a list of Common Voice's own"
            )
        for where, line in lines[1:]:
            fields = line.split("\t")  # quotation marks are part of the text
            values = dict.fromkeys(names, "") | dict(zip(names, fields, strict=False))
            problem = None
            if len(fields) != len(names):
                problem = f"has {len(fields)} fields, and the header names {len(names)} columns, received {line[:60]!r}"
            elif Path(values["path"]).name != values["path"]:
                problem = f"'{values['path'][:60]}' leaves the folder of the clips"
            clip = values["path"] if values["path"].endswith(".mp3") else f"{values['path']}.mp3"
            yield Entry(
                Path(clip).stem,
                folder / "clips" / clip,
                values["sentence"],
                values.get("client_id"),
                where=where,
                custom={key: values[key] for key in ("age", "gender", "accents", "accent") if values.get(key)},
                problem=problem,
            )


class Timit(ListedCorpus):
    """TIMIT (Garofolo et al. 1993): ten sentences of 630 speakers, transcribed in phones and in words.

    The development and core test speakers are those of Kaldi's and Lhotse's recipe; sentences that all speakers read (SA) are left out.

    Args:
        root: folder of `TRAIN` and `TEST`, or one above it.
        units: `words` (the .TXT files), or `phones` (the .PHN files) with spaces in between.
        phones: 61 as they were transcribed, or folded to 48 or 39 (Lee and Hon 1989).
    """

    title = "TIMIT"
    by_hand = "it is LDC93S1, which the Linguistic Data Consortium licenses"

    def __init__(self, root: str, units: str = "phones", phones: int = 48) -> None:
        super().__init__(root)
        self.units = units
        self.fold: Mapping[str, str] | None = None
        if phones != 61:
            from lhotse.recipes.timit import get_phonemes

            self.fold = get_phonemes(phones)

    @property
    def parts(self) -> Mapping[str, Sequence[str]]:
        """The parts differ in their speakers."""
        return {"train": ["train"], "val": ["dev"], "test": ["test"]}

    def folder(self, part: str) -> Path | None:
        """Find the folder of the train or of the test speakers, in capitals or not."""
        name = "train" if part == "train" else "test"
        places = [self.root / above / each for above in (".", "data", "DATA", "TIMIT", "timit") for each in (name, name.upper())]
        return next((path for path in places if is_folder(path)), None)

    def entries(self, part: str, folder: Path) -> Iterator[Entry]:
        """List the WAV files of the part's speakers."""
        from lhotse.recipes.timit import get_speakers

        dev, test = ({name.lower() for name in names} for names in get_speakers())
        speakers = {"dev": dev, "test": test}.get(part)
        for path in sorted(each for each in folder.glob("*/*/*") if each.suffix.lower() == ".wav"):
            speaker = path.parent.name.lower()
            if path.stem.lower().startswith("sa") or (speakers is not None and speaker not in speakers):
                continue
            problem, text = None, ""
            try:
                text = self._text(path)
            except DataError as error:
                problem = str(error)
            yield Entry(f"{speaker}-{path.stem.lower()}", path, text, speaker, custom={"gender": speaker[0]}, problem=problem)

    def _text(self, path: Path) -> str:
        suffix = ".txt" if self.units == "words" else ".phn"
        transcript = next((each for each in (path.with_suffix(suffix), path.with_suffix(suffix.upper())) if is_file(each)), None)
        if transcript is None:
            raise DataError(f"there is no {path.stem}{suffix} beside it")
        rows = [line.split() for _, line in numbered_lines(transcript)]
        if self.units == "words":
            return " ".join(word for row in rows for word in row[2:])
        phones = [row[2] for row in rows if len(row) == 3]
        if self.fold is None:
            return " ".join(phones)
        if unknown := sorted({phone for phone in phones if phone not in self.fold}):
            raise DataError(f"{transcript} holds phones that TIMIT does not have: {', '.join(unknown)}")
        return " ".join(folded for phone in phones if (folded := self.fold[phone]))


class An4(ListedCorpus):
    """AN4 (Acero 1990): letters, numbers and commands of the census; `etc/an4_*.transcription` and SPHERE files in `wav`."""

    title = "AN4"

    @property
    def parts(self) -> Mapping[str, Sequence[str]]:
        """The corpus divides train and test; the validation utterances are taken from train."""
        return {"train": ["train"], "val": [], "test": ["test"]}

    def folder(self, part: str) -> Path | None:
        """Find the folder of `etc` and `wav`."""
        return next((path for path in (self.root, self.root / "an4") if is_file(path / "etc" / f"an4_{part}.transcription")), None)

    def archives(self, part: str) -> Sequence[Archive]:  # noqa: ARG002
        """All recordings are in one archive; the makers' own server is gone, this is the copy that NeMo's tutorials fetch."""
        return [Archive("https://dldata-public.s3.us-east-2.amazonaws.com/an4_sphere.tar.gz", None, 0.06)]

    def entries(self, part: str, folder: Path) -> Iterator[Entry]:
        """List the lines of the transcription, joined with those of the list of files."""
        paths = {line.strip().rsplit("/", 1)[-1]: line.strip() for _, line in numbered_lines(folder / "etc" / f"an4_{part}.fileids")}
        for where, line in numbered_lines(folder / "etc" / f"an4_{part}.transcription"):
            match = _AN4_LINE.match(line.strip())
            name = match["id"] if match else ""
            problem = None
            if match is None:
                problem = f"must be '<s> TEXT </s> (id)', received {line.strip()[:60]!r}"
            elif name not in paths:
                problem = f"'{name}' is not in an4_{part}.fileids"
            files = [folder / "wav" / f"{paths.get(name, name)}{suffix}" for suffix in (".sph", ".wav")]
            path = next((each for each in files if is_file(each)), files[0])
            speaker = name.split("-")[1] if name.count("-") == 2 else None
            yield Entry(name, path, match["text"] if match else "", speaker, where=where, problem=problem)


_AN4_LINE = re.compile(r"^(?:<s>)?\s*(?P<text>.*?)\s*(?:</s>)?\s*\((?P<id>[^()\s]+)\)$")
