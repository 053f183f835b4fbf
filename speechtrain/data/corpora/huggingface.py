"""`data=huggingface`: a folder that `datasets.save_to_disk` wrote."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from speechtrain.data.audio import Audio, read_recording
from speechtrain.data.corpus import SPLITS, Corpus, Cut, NoTextError, Skip, clean_text, make_cut, read_header
from speechtrain.data.splits import complete_splits
from speechtrain.errors import DataError, first_line, nearest
from speechtrain.files import user_path


class HuggingFace:
    """A corpus in Arrow files, whose audio is decoded row by row when it is needed.

    Args:
        root: folder of the data set, or of the dictionary of its splits.
        train: name of the split; ignored where the folder is a single data set.
        val, test: names of those splits; None takes them from `train` as `split` says.
        audio, text, speaker, id: names of columns; None for the last two: there is none.
        split: `by`, `val`, `test`, `seed`, as `split_cuts` takes them.
    """

    def __init__(
        self,
        root: str,
        train: str,
        val: str | None,
        test: str | None,
        audio: str,
        text: str,
        speaker: str | None,
        id: str | None,  # noqa: A002
        split: dict[str, Any],
    ) -> None:
        self.root = user_path(root).absolute()
        self.parts = {"train": train, "val": val, "test": test}
        self.columns = {"audio": audio, "text": text, "speaker": speaker, "id": id}
        self.split = split
        self._tables: dict[str, Any] = {}

    def load(self, limit: int | None) -> Corpus:
        """List the rows and read the header of each one's audio.

        Raises:
            DataError: the folder, a split or a column is not there, or the extra `datasets` is not installed.
        """
        skipped: list[Skip] = []
        cuts: dict[str, list[Cut]] = {name: [] for name in SPLITS}
        for split, part in self.parts.items():
            if part is None:
                continue
            before = len(skipped)
            table = self._tables[split] = self._table(part)
            for row in range(len(table)):
                try:
                    cuts[split].append(self._cut(split, row))
                except DataError as error:
                    skipped.append(Skip.of(split, f"{self.root}, {part} row {row}", error))
            if not cuts[split] and not any(skip.cut for skip in skipped[before:]):
                first = skipped[before].reason if skipped[before:] else "there is none"
                raise DataError(f"{self.root}: no row of '{part}' can be used; the first: {first}")
        missing = [name for name in ("val", "test") if self.parts[name] is None]
        return Corpus(complete_splits(cuts, missing, self.split, limit), skipped, read=self.read)

    def read(self, cut: Cut, rate: int) -> Audio:
        """Return the samples (N,) of a row at `rate` Hz.

        Raises:
            DataError: they cannot be decoded.
        """
        split, row = cut.custom["row"]
        return read_recording(self._file(split, row), rate, channel=cut.channel, name=f"{self.root}, row {row}")

    def _table(self, part: str) -> Any:
        """Open a split of the data set, with the columns that are read."""
        import datasets

        try:
            loaded = datasets.load_from_disk(str(self.root))
        except Exception as error:
            raise DataError(
                f"{self.root}: is not a data set on disk ({first_line(error, most=120)})\n    -> give a folder that save_to_disk wrote"
            ) from error
        if isinstance(loaded, datasets.DatasetDict):
            if part not in loaded:
                raise DataError(
                    f"{self.root}: has no split '{part}'; there is: {', '.join(loaded)}\n    -> set data.train, data.val, data.test"
                )
            loaded = loaded[part]
        columns = {name: column for name, column in self.columns.items() if column is not None}
        for name, column in columns.items():
            if column not in loaded.column_names:
                names = nearest(column, loaded.column_names)
                raise DataError(f"{self.root}: has no column '{column}'; there is: {names}\n    -> set data.{name}")
        loaded = loaded.select_columns(list(dict.fromkeys(columns.values())))
        if isinstance(loaded.features[columns["audio"]], datasets.Audio):
            return loaded.cast_column(columns["audio"], datasets.Audio(decode=False))
        kind = loaded.features[columns["audio"]]
        raise DataError(f"{self.root}: column '{columns['audio']}' holds {kind}, not audio\n    -> set data.audio to a column of audio")

    def _cut(self, split: str, row: int) -> Cut:
        """Return the utterance of a row."""
        try:
            values = self._tables[split][row]
        except Exception as error:
            raise DataError(f"cannot be read ({first_line(error, most=120)})") from error
        text = values[self.columns["text"]] or ""
        if not isinstance(text, str):
            raise DataError(f"its text must be a text, received {text!r:.60}")
        text = clean_text(text)
        rate, samples, channels = read_header(self._file(split, row), None)
        speaker = values[self.columns["speaker"]] if self.columns["speaker"] is not None else None
        name = str(values[self.columns["id"]]) if self.columns["id"] is not None else f"{self.parts[split]}-{row:06d}"
        cut = make_cut(
            name,
            None,
            num_samples=samples,
            sample_rate=rate,
            text=text,
            speaker=None if speaker is None else str(speaker),
            custom={"row": (split, row)},
            channels=channels,
        )
        if not text:
            raise NoTextError("its text", cut)
        return cut

    def _file(self, split: str, row: int) -> io.BytesIO | Path:
        """Return the encoded audio of a row, or the file that it is in."""
        audio = self._tables[split][row][self.columns["audio"]]
        if audio is None or (audio["bytes"] is None and audio["path"] is None):
            raise DataError("holds no audio")
        return io.BytesIO(audio["bytes"]) if audio["bytes"] is not None else Path(audio["path"])
