"""`data=signals` and `data=hdf5_signals`: signals to be separated from a mixture, as a condition vector says.

An utterance's features are the samples themselves, (T, 1 + C): the mixture and, the same in every frame, the condition vector. Its
target is a signal of as many samples, (T, 1).

    mixed_signals (N, T)    target_signals (N, T)    condition_vectors (N, C)        one file a split
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from speechtrain.data.audio import MOST_SAMPLES, Audio
from speechtrain.data.corpus import SPLITS, Corpus, Cut, make_cut
from speechtrain.data.splits import complete_splits
from speechtrain.errors import DataError, first_line, unwritable
from speechtrain.files import atomically, regular_size, user_path

if TYPE_CHECKING:
    import h5py

MIXED, TARGETS, CONDITIONS = "mixed_signals", "target_signals", "condition_vectors"


class Signals:
    """Noisy mixtures of sines; the target is the clean sine that a one-hot condition names.

    An utterance is a function of (seed, split, index) alone.

    Args:
        frequencies: frequencies of the sines, Hz; each has an amplitude and a phase of its own in every utterance.
        amplitudes: [lowest, highest].
        snr_db: [lowest, highest] of the mixture in white noise.
        duration: s.
        sample_rate: Hz.
        seed: seed of the data.
        train_size, val_size, test_size: utterances.
        save_to: folder to write them to as HDF5 files, one a split; None: they are made when they are read.
    """

    def __init__(
        self,
        frequencies: list[float],
        amplitudes: list[float],
        snr_db: list[float],
        duration: float,
        sample_rate: int,
        seed: int,
        train_size: int,
        val_size: int,
        test_size: int,
        save_to: str | None = None,
    ) -> None:
        self.frequencies = np.array(frequencies, dtype=np.float64)
        self.amplitudes = (amplitudes[0], amplitudes[1])
        self.snr_db = (snr_db[0], snr_db[1])
        self.samples = max(1, round(duration * sample_rate))
        self.sample_rate = sample_rate
        self.seed = seed
        self.sizes = dict(zip(SPLITS, (train_size, val_size, test_size), strict=True))
        self.save_to = user_path(save_to).absolute() if save_to is not None else None

    def load(self, limit: int | None) -> Corpus:
        """List every utterance; signals are made when they are read."""
        if self.save_to is not None:
            self.save(self.save_to)
        splits = {
            name: [_cut(f"{name}-{index:06d}", self.samples, self.sample_rate) for index in range(min(size, limit or size))]
            for name, size in self.sizes.items()
        }
        return Corpus({**splits}, read=self.read, target=self.target, target_size=1)

    def make(self, split: str, index: int) -> tuple[Audio, Audio, Audio]:
        """Make the mixture (T,), the target signal (T,) and the condition (C,) of an utterance."""
        rng = np.random.default_rng([self.seed, SPLITS.index(split), index])
        count = len(self.frequencies)
        chosen = int(rng.integers(count))
        phases, amplitudes = rng.uniform(0, 2 * np.pi, count), rng.uniform(*self.amplitudes, count)
        times = np.arange(self.samples) / self.sample_rate
        sines = amplitudes[:, None] * np.sin(2 * np.pi * self.frequencies[:, None] * times + phases[:, None])
        clean = sines.sum(0)
        level = np.sqrt(np.mean(clean**2) * 10 ** (-rng.uniform(*self.snr_db) / 10))
        mixture = clean + rng.normal(0, level, self.samples)
        condition = np.eye(count)[chosen]
        return mixture.astype(np.float32), sines[chosen].astype(np.float32), condition.astype(np.float32)

    def read(self, cut: Cut, rate: int) -> Audio:  # noqa: ARG002
        """Make the features (T, 1 + C) of an utterance."""
        mixture, _, condition = self._make(cut)
        return join(mixture, condition)

    def target(self, cut: Cut) -> Audio:
        """Make the target signal (T, 1) of an utterance."""
        return self._make(cut)[1][:, None]

    def _make(self, cut: Cut) -> tuple[Audio, Audio, Audio]:
        split, _, index = cut.id.partition("-")
        return self.make(split, int(index))

    def save(self, folder: Path) -> None:
        """Write `train.h5`, `val.h5`, `test.h5`, each whole or not at all; files that exist and were made with the same settings stay.

        Raises:
            DataError: a file exists that was made with other settings, or cannot be written.
        """
        import h5py

        settings = {
            "frequencies": self.frequencies.tolist(),
            "amplitudes": self.amplitudes,
            "snr_db": self.snr_db,
            "samples": self.samples,
            "sample_rate": self.sample_rate,
            "seed": self.seed,
        }
        for split, size in self.sizes.items():
            path = folder / f"{split}.h5"
            made_from = json.dumps({**settings, "split": split, "size": size}, sort_keys=True)
            if path.exists():
                if _settings_of(path) != made_from:
                    raise DataError(f"{path}: exists, and was made with other settings\n    -> give another data.save_to, or remove it")
                continue
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with atomically(path) as temporary, h5py.File(temporary, "w") as file:
                    self._fill(file, split, size)
                    file.attrs["settings"] = made_from
                    file.attrs["sample_rate"] = self.sample_rate
            except OSError as error:
                raise unwritable(path, error, "data.save_to", DataError) from error

    def _fill(self, file: h5py.File, split: str, size: int) -> None:
        shapes = {MIXED: (size, self.samples), TARGETS: (size, self.samples), CONDITIONS: (size, len(self.frequencies))}
        datasets = {name: file.create_dataset(name, shape, dtype="f4") for name, shape in shapes.items()}
        for index in range(size):
            for dataset, values in zip(datasets.values(), self.make(split, index), strict=True):
                dataset[index] = values


class Hdf5Signals:
    """A corpus of signals in HDF5 files, which are read row by row when they are needed.

    Args:
        root: folder of the files.
        train, val, test: files inside it; None: taken from train as `split` says.
        split: `by`, `val`, `test`, `seed`, as `split_cuts` takes them.
        sample_rate: Hz; a file whose attribute `sample_rate` says otherwise is refused.
    """

    def __init__(self, root: str, train: str, val: str | None, test: str | None, split: dict[str, Any], sample_rate: int) -> None:
        self.root = user_path(root).absolute()
        self.files = {"train": train, "val": val, "test": test}
        self.split = split
        self.sample_rate = sample_rate
        self._open: dict[tuple[int, str], h5py.File] = {}
        self._condition_size = 0

    def load(self, limit: int | None) -> Corpus:
        """Check the shapes of the arrays in the files, and list their rows, none of which is read.

        Raises:
            DataError: a file cannot be read, lacks an array, or its arrays do not fit together.
        """
        cuts: dict[str, list[Cut]] = {name: [] for name in SPLITS}
        for name, file in self.files.items():
            if file is not None:
                cuts[name] = self._rows(self.root / file)
        missing = [part for part in ("val", "test") if self.files[part] is None]
        return Corpus(complete_splits(cuts, missing, self.split, limit), read=self.read, target=self.target, target_size=1)

    def _rows(self, path: Path) -> list[Cut]:

        file = self._file(path)
        missing = [name for name in (MIXED, TARGETS, CONDITIONS) if not _has_array(file, name)]
        if missing:
            raise DataError(f"{path}: has no array {', '.join(missing)}; there is: {', '.join(file) or 'nothing'}")
        mixed, target, conditions = (file[name] for name in (MIXED, TARGETS, CONDITIONS))
        shapes = f"{MIXED} {mixed.shape}, {TARGETS} {target.shape}, {CONDITIONS} {conditions.shape}"
        fits = mixed.ndim == conditions.ndim == 2 and mixed.shape == target.shape and len(conditions) == len(mixed)
        if not fits:
            raise DataError(f"{path}: the shapes do not fit together: {shapes}\n    -> (N, T), (N, T) and (N, C) are needed")
        if not all(np.issubdtype(each.dtype, np.floating) or np.issubdtype(each.dtype, np.integer) for each in (mixed, target, conditions)):
            raise DataError(f"{path}: holds arrays that are not numbers: {mixed.dtype}, {target.dtype}, {conditions.dtype}")
        if 0 in mixed.shape:
            raise DataError(f"{path}: holds no signal: {shapes}")
        if self._condition_size and conditions.shape[1] != self._condition_size:
            raise DataError(f"{path}: has condition vectors of {conditions.shape[1]} values, the file before of {self._condition_size}")
        self._condition_size = conditions.shape[1]
        _check_sizes(path, mixed, target, conditions)
        stated = _stated_rate(file, path)
        if stated is not None and stated != self.sample_rate:
            raise DataError(
                f"{path}: is at {stated:g} Hz, but data.sample_rate is {self.sample_rate}\n    -> set data.sample_rate={stated:g}"
            )
        return [
            _cut(f"{path.stem}-{row:06d}", mixed.shape[1], self.sample_rate, {"file": str(path), "row": row}) for row in range(len(mixed))
        ]

    def _file(self, path: Path) -> h5py.File:
        import h5py

        key = (os.getpid(), str(path))  # a handle is valid only in the process that opened it
        if key not in self._open:
            try:
                regular_size(path)
                self._open[key] = h5py.File(path, "r")
            except OSError as error:
                reason = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read as HDF5 ({first_line(error)})"
                raise DataError(f"{path}: {reason}\n    -> give an HDF5 file with {MIXED}, {TARGETS} and {CONDITIONS}") from None
        return self._open[key]

    def read(self, cut: Cut, rate: int) -> Audio:  # noqa: ARG002
        """Read the features (T, 1 + C) of a row.

        Raises:
            DataError: the row cannot be read, or holds NaN or infinite values.
        """
        return join(self._row(cut, MIXED), self._row(cut, CONDITIONS))

    def target(self, cut: Cut) -> Audio:
        """Read the target signal (T, 1) of a row.

        Raises:
            DataError: the row cannot be read, or holds NaN or infinite values.
        """
        return self._row(cut, TARGETS)[:, None]

    def _row(self, cut: Cut, name: str) -> Audio:
        assert cut.custom is not None
        path, row = Path(cut.custom["file"]), int(cut.custom["row"])
        try:
            values = np.asarray(self._file(path)[name][row], dtype=np.float32)
        except (OSError, KeyError, ValueError, RuntimeError) as error:
            raise DataError(f"{path}: row {row} of {name} cannot be read ({first_line(error)})") from None
        if not np.isfinite(values).all():
            raise DataError(f"{path}: row {row} of {name} holds {int((~np.isfinite(values)).sum())} values that are NaN or infinite")
        return values

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}


_MOST_ROWS, _MOST_CONDITIONS = 1_000_000, 100_000
_FREE, _MOST_RATIO = 64 << 20, 100
"""The bytes that any array may have, and how many times the size of what is stored of it a larger one may have."""


def _check_sizes(path: Path, mixed: h5py.Dataset, target: h5py.Dataset, conditions: h5py.Dataset) -> None:
    """Check that arrays of a file are no larger than can be read row by row, and than what is stored of them can be.

    Raises:
        DataError: they are.
    """
    shapes = f"{MIXED} {mixed.shape}, {CONDITIONS} {conditions.shape}"
    if mixed.shape[1] > MOST_SAMPLES or len(mixed) > _MOST_ROWS or conditions.shape[1] > _MOST_CONDITIONS:
        raise DataError(f"{path}: states more than can be: {shapes}")
    if mixed.shape[1] * (1 + conditions.shape[1]) > MOST_SAMPLES:
        raise DataError(f"{path}: a row with its condition has more than {MOST_SAMPLES:,} numbers: {shapes}")
    for array in (mixed, target, conditions):
        if array.nbytes > max(_FREE, _MOST_RATIO * array.id.get_storage_size()):
            raise DataError(f"{path}: {array.name[1:]} comes to {array.nbytes:,} bytes, from {array.id.get_storage_size():,}")


def _has_array(file: h5py.File, name: str) -> bool:
    """Return whether an array lies in a file itself: links into other files are not followed, nor are arrays whose bytes are elsewhere."""
    import h5py

    try:
        if not isinstance(file.get(name, getlink=True), h5py.HardLink):
            return False
        array = file[name]
        return isinstance(array, h5py.Dataset) and not array.is_virtual and array.external is None and array.dtype.kind != "O"
    except (OSError, KeyError, ValueError, RuntimeError, TypeError):
        return False


def _stated_rate(file: h5py.File, path: Path) -> float | None:
    """Return the attribute `sample_rate` of a file in Hz; None: it has none.

    Raises:
        DataError: it is no number.
    """
    try:
        value = file.attrs.get("sample_rate")
        return None if value is None else float(value)
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise DataError(f"{path}: its attribute sample_rate is no number ({first_line(error, most=120)})") from None


def join(mixture: Audio, condition: Audio) -> Audio:
    """Put a condition (C,) beside each sample of a mixture (T,), as frames (T, 1 + C)."""
    frames: npt.NDArray[np.float32] = np.empty((len(mixture), 1 + len(condition)), dtype=np.float32)
    frames[:, 0] = mixture
    frames[:, 1:] = condition
    return frames


def _cut(name: str, samples: int, rate: int, custom: dict[str, Any] | None = None) -> Cut:
    return make_cut(name, None, num_samples=samples, sample_rate=rate, text="", speaker=None, custom=custom)


def _settings_of(path: Path) -> str | None:
    """Return the settings that a file was made with; None: it cannot be read."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            return str(file.attrs.get("settings"))
    except OSError:
        return None
