"""Augmentation that needs the waveform: recorded noise, rooms, level, telephone band. All else acts on spectra (docs/decisions/0001).

An utterance that none of it falls to keeps its stored spectrum; only the others are decoded and transformed anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
from scipy.signal import butter, fftconvolve, sosfilt

from speechtrain.data.audio import Audio, resample
from speechtrain.data.corpus import audio_files
from speechtrain.errors import DataError

_MU = 255.0  # of ITU-T G.711
_TELEPHONE = 8000  # Hz
_LONGEST_ROOM = 2.0  # s of an impulse response that are used


class WaveAugment:
    """What may happen to a waveform, in the order room, noise, low-pass, codec, level.

    Args:
        noise_folder: recordings of noise, of which a random part is mixed in; None: none.
        noise_prob: share of utterances that get some of it.
        noise_snr_db: lowest and highest ratio of the utterance's mean energy to that of the noise.
        reverb_folder: impulse responses of rooms; None: none. Their direct sound stays where it was and the level too.
        reverb_prob: share of utterances that are put into one.
        lowpass_prob: share of utterances that lose their upper band.
        lowpass_hz: lowest and highest corner of a Butterworth filter of order 8.
        codec_prob: share of utterances that go through an 8 kHz telephone line with 8 bit mu-law.
        gain_db: louder or softer by up to so much.
    """

    def __init__(
        self,
        noise_folder: str | None,
        noise_prob: float,
        noise_snr_db: Sequence[float],
        reverb_folder: str | None,
        reverb_prob: float,
        lowpass_prob: float,
        lowpass_hz: Sequence[float],
        codec_prob: float,
        gain_db: float,
    ) -> None:
        self.noise_folder = noise_folder
        self.noise_prob = noise_prob if noise_folder is not None else 0.0
        self.noise_snr_db = (noise_snr_db[0], noise_snr_db[1])
        self.reverb_folder = reverb_folder
        self.reverb_prob = reverb_prob if reverb_folder is not None else 0.0
        self.lowpass_prob = lowpass_prob
        self.lowpass_hz = (lowpass_hz[0], lowpass_hz[1])
        self.codec_prob = codec_prob
        self.gain_db = gain_db

    @property
    def changes_nothing(self) -> bool:
        """Whether no utterance is ever touched."""
        return not (self.noise_prob or self.reverb_prob or self.lowpass_prob or self.codec_prob or self.gain_db)

    def draw(self, rng: np.random.Generator) -> tuple[bool, bool, bool, bool]:
        """Which of room, noise, low-pass and codec fall to an utterance."""
        chances = (self.reverb_prob, self.noise_prob, self.lowpass_prob, self.codec_prob)
        room, noise, lowpass, codec = (bool(found) for found in rng.random(4) < chances)
        return room, noise, lowpass, codec

    def __call__(self, samples: Audio, rate: int, drawn: tuple[bool, bool, bool, bool], rng: np.random.Generator) -> Audio:
        """As many samples (N,) at `rate` Hz as there were."""
        room, noise, lowpass, codec = drawn
        found = samples
        if room:
            found = self._in_room(found, rate, rng)
        if noise:
            found = self._with_noise(found, rate, rng)
        if lowpass and (corner := rng.uniform(*self.lowpass_hz)) < 0.49 * rate:
            found = sosfilt(butter(8, corner, fs=rate, output="sos"), found).astype(np.float32)
        if codec:
            found = telephone(found, rate)
        if self.gain_db:
            found = found * np.float32(10 ** (rng.uniform(-self.gain_db, self.gain_db) / 20))
        return np.ascontiguousarray(found, dtype=np.float32)

    def _in_room(self, samples: Audio, rate: int, rng: np.random.Generator) -> Audio:
        assert self.reverb_folder is not None
        files = _files(self.reverb_folder, "augment.reverb_folder")
        path = files[int(rng.integers(len(files)))]
        response = _response(path, rate)
        heard = fftconvolve(samples, response)[: len(samples)]
        return scaled(heard.astype(np.float32), samples)

    def _with_noise(self, samples: Audio, rate: int, rng: np.random.Generator) -> Audio:
        assert self.noise_folder is not None
        files = _files(self.noise_folder, "augment.noise_folder")
        path = files[int(rng.integers(len(files)))]
        noise = part_of(path, rate, len(samples), float(rng.random()))
        energy = float(np.mean(np.square(noise)))
        wanted = float(np.mean(np.square(samples))) * 10 ** (-rng.uniform(*self.noise_snr_db) / 10)
        return samples if energy == 0 else samples + noise * np.float32(np.sqrt(wanted / energy))


def telephone(samples: Audio, rate: int) -> Audio:
    """Samples (N,) as they come out of a line of 8 kHz and 8 bit mu-law (ITU-T G.711's curve)."""
    narrow = resample(samples, rate, _TELEPHONE)
    loudest = float(np.abs(narrow).max(initial=0)) or 1.0
    pressed = np.sign(narrow) * np.log1p(_MU * np.abs(narrow) / loudest) / np.log1p(_MU)
    steps = np.round(pressed * 127) / 127
    opened = np.sign(steps) * (np.expm1(np.abs(steps) * np.log1p(_MU)) / _MU) * loudest
    found = resample(opened.astype(np.float32), _TELEPHONE, rate)[: len(samples)]
    return np.pad(found, (0, len(samples) - len(found)))


def scaled(samples: Audio, like: Audio) -> Audio:
    """With the mean energy of other samples."""
    energy = float(np.mean(np.square(samples)))
    return samples if energy == 0 else samples * np.float32(np.sqrt(float(np.mean(np.square(like))) / energy))


def part_of(path: Path, rate: int, count: int, where: float) -> Audio:
    """So many samples (N,) of a file at `rate` Hz, from a place that `where` in [0, 1) picks; a short file is repeated.

    Raises:
        DataError: it cannot be decoded.
    """
    try:
        with soundfile.SoundFile(path) as file:
            needed = -(-count * file.samplerate // rate) + 1
            start = int(where * max(1, file.frames - needed + 1)) if file.frames > needed else 0
            file.seek(start)
            found = file.read(needed, dtype="float32", always_2d=True)[:, 0]
            found = resample(np.ascontiguousarray(found), file.samplerate, rate)
    except (soundfile.SoundFileError, OSError) as error:
        raise DataError(f"{path}: noise that cannot be decoded ({str(error).splitlines()[0]})") from error
    if len(found) == 0:
        raise DataError(f"{path}: noise that holds no samples")
    return np.resize(found, count)


@lru_cache(maxsize=512)
def _response(path: Path, rate: int) -> npt.NDArray[np.float32]:
    """An impulse response (N,) from its direct sound on."""
    try:
        samples, found = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError) as error:
        raise DataError(f"{path}: an impulse response that cannot be decoded ({str(error).splitlines()[0]})") from error
    response = resample(np.ascontiguousarray(samples[:, 0]), found, rate)
    if len(response) == 0 or not np.any(response):
        raise DataError(f"{path}: an impulse response that is silent")
    return response[int(np.argmax(np.abs(response))) :][: round(_LONGEST_ROOM * rate)]


@lru_cache(maxsize=8)
def _files(folder: str, key: str) -> list[Path]:
    found = audio_files(Path(folder).expanduser())
    if not found:
        raise DataError(f"{folder}: holds no audio\n    -> set {key} to a folder of recordings, or to null")
    return found
