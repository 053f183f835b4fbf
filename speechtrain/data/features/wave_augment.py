"""Augmentation that needs the waveform: recorded noise, rooms, level, telephone band. All else acts on spectra (docs/decisions/0001).

An utterance whose waveform is not changed keeps its cached spectrum; only the others are decoded and transformed anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from speechtrain.data.audio import Audio, open_recording, read_part, read_recording, resample
from speechtrain.data.corpus import audio_files
from speechtrain.errors import DataError
from speechtrain.files import user_path

_MU = 255.0  # of ITU-T G.711
_TELEPHONE = 8000  # Hz
_RESPONSE_SECONDS = 2.0  # of an impulse response that are used


class WaveAugment:
    """Random changes of waveforms, in the order room, noise, low-pass, codec, level.

    Args:
        noise_folder: recordings of noise, a random part of one of which is mixed in; None: no noise.
        noise_prob: share of utterances that get noise.
        noise_snr_db: lowest and highest ratio of the utterance's mean energy to that of the noise.
        reverb_folder: impulse responses of rooms; None: no rooms. The direct sound stays in its place, and the level unchanged.
        reverb_prob: share of utterances that are put into a room.
        lowpass_prob: share of utterances that lose their upper band.
        lowpass_hz: lowest and highest corner of a Butterworth filter of order 8.
        codec_prob: share of utterances that go through an 8 kHz telephone line with 8 bit mu-law.
        gain_db: greatest change of level, up or down, in dB.
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
        """Return whether no utterance is ever changed."""
        return not (self.noise_prob or self.reverb_prob or self.lowpass_prob or self.codec_prob or self.gain_db)

    def draw(self, rng: np.random.Generator) -> tuple[bool, bool, bool, bool]:
        """Draw which of room, noise, low-pass and codec are applied to an utterance."""
        chances = (self.reverb_prob, self.noise_prob, self.lowpass_prob, self.codec_prob)
        room, noise, lowpass, codec = (bool(applied) for applied in rng.random(4) < chances)
        return room, noise, lowpass, codec

    def __call__(self, samples: Audio, rate: int, drawn: tuple[bool, bool, bool, bool], rng: np.random.Generator) -> Audio:
        """Change samples (N,) at `rate` Hz, with the effects that `draw` drew; their number stays.

        Raises:
            DataError: a recording of noise or an impulse response cannot be read.
        """
        room, noise, lowpass, codec = drawn
        out = samples
        if room:
            out = self._in_room(out, rate, rng)
        if noise:
            out = self._with_noise(out, rate, rng)
        if lowpass and (corner := rng.uniform(*self.lowpass_hz)) < 0.49 * rate:
            from scipy.signal import butter, sosfilt  # a second of import, for those who filter

            out = sosfilt(butter(8, corner, fs=rate, output="sos"), out).astype(np.float32)
        if codec:
            out = telephone(out, rate)
        if self.gain_db:
            out = out * np.float32(10 ** (rng.uniform(-self.gain_db, self.gain_db) / 20))
        return np.ascontiguousarray(out, dtype=np.float32)

    def _in_room(self, samples: Audio, rate: int, rng: np.random.Generator) -> Audio:
        assert self.reverb_folder is not None
        files = _files(self.reverb_folder, "augment.reverb_folder")
        path = files[int(rng.integers(len(files)))]
        response = _response(path, rate)
        from scipy.signal import fftconvolve

        reverberant = fftconvolve(samples, response)[: len(samples)]
        return match_energy(reverberant.astype(np.float32), samples)

    def _with_noise(self, samples: Audio, rate: int, rng: np.random.Generator) -> Audio:
        assert self.noise_folder is not None
        files = _files(self.noise_folder, "augment.noise_folder")
        path = files[int(rng.integers(len(files)))]
        noise = read_excerpt(path, rate, len(samples), float(rng.random()))
        energy = float(np.mean(np.square(noise)))
        noise_energy = float(np.mean(np.square(samples))) * 10 ** (-rng.uniform(*self.noise_snr_db) / 10)
        return samples if energy == 0 else samples + noise * np.float32(np.sqrt(noise_energy / energy))


def telephone(samples: Audio, rate: int) -> Audio:
    """Pass samples (N,) through a telephone line of 8 kHz and 8 bit mu-law (ITU-T G.711's curve)."""
    narrow = resample(samples, rate, _TELEPHONE)
    loudest = float(np.abs(narrow).max(initial=0)) or 1.0
    compressed = np.sign(narrow) * np.log1p(_MU * np.abs(narrow) / loudest) / np.log1p(_MU)
    steps = np.round(compressed * 127) / 127
    expanded = np.sign(steps) * (np.expm1(np.abs(steps) * np.log1p(_MU)) / _MU) * loudest
    out = resample(expanded.astype(np.float32), _TELEPHONE, rate)[: len(samples)]
    return np.pad(out, (0, len(samples) - len(out)))


def match_energy(samples: Audio, like: Audio) -> Audio:
    """Scale samples (N,) to the mean energy of others."""
    energy = float(np.mean(np.square(samples)))
    return samples if energy == 0 else samples * np.float32(np.sqrt(float(np.mean(np.square(like))) / energy))


def read_excerpt(path: Path, rate: int, count: int, position: float) -> Audio:
    """Read `count` samples (N,) of the first channel of a file at `rate` Hz; a file that is too short is repeated.

    Args:
        path: the file.
        rate: Hz of the result.
        count: N.
        position: position of the excerpt in the file, in [0, 1).

    Raises:
        DataError: the file cannot be decoded, or holds no samples, or some that are NaN or infinite.
    """
    name = f"the noise {path}"
    with open_recording(path, name) as file:
        native = file.samplerate
        needed = -(-count * native // rate) + 1
        start = int(position * max(1, file.frames - needed + 1)) if file.frames > needed else 0
        samples = resample(read_part(file, start, needed, 0, name), native, rate, name=name)
    return np.resize(samples, count)


@lru_cache(maxsize=512)
def _response(path: Path, rate: int) -> npt.NDArray[np.float32]:
    """Read the first channel of an impulse response (N,) at `rate` Hz, from its direct sound on."""
    response = read_recording(path, rate, channel=0, name=f"the impulse response {path}")
    if not np.any(response):
        raise DataError(f"{path}: an impulse response that is silent")
    return response[int(np.argmax(np.abs(response))) :][: round(_RESPONSE_SECONDS * rate)]


@lru_cache(maxsize=8)
def _files(folder: str, key: str) -> list[Path]:
    """List the recordings of a folder that the config names under a key."""
    files = audio_files(user_path(folder))
    if not files:
        raise DataError(f"{folder}: holds no audio\n    -> set {key} to a folder of recordings, or to null")
    return files
