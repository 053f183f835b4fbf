"""From samples to features in two steps, so that spectra can be cached and augmentation can act in between.

samples (N,) -> power spectrum (T, K), cached -> [augment] -> mel energies (T, M) -> log, normalise -> features (T, F)
"""

from __future__ import annotations

import math
import threading
from functools import cached_property
from typing import Protocol

import numpy as np
import torch

from speechtrain.data.audio import Audio
from speechtrain.errors import ConfigError, DataError, Problem

_FLOOR = 1e-10  # of a mel energy: 100 dB below a full-scale sine is about 1e-7 with these windows
LASTING = 0.15
"""s over which medians of the energy are taken."""


class Features(Protocol):
    """What `features._target_` names: makes of what a corpus reads the frames that a model sees."""

    sample_rate: int
    """Rate in Hz at which the corpus reads audio; of features that are read as they are, frames a second."""
    size: int
    """F, values a frame."""
    from_audio: bool
    """Whether they are computed from audio; otherwise another program made them, or they are signals."""
    identity: str | None
    """Names the way in which spectra are computed: equal names mean equal spectra, which may be stored on disk; None: they may not."""

    @property
    def frame_rate(self) -> float:
        """Return the number of frames per second."""
        ...

    def num_frames(self, num_samples: int) -> int:
        """Return the number of frames T of so many samples."""
        ...

    def spectrum(self, samples: Audio) -> torch.Tensor:
        """Compute the spectrum (T, K) of samples (N,), which is cached and augmented."""
        ...

    def pack(self, spectrum: torch.Tensor) -> torch.Tensor:
        """Convert a spectrum to a type that takes less memory; may reuse its memory."""
        ...

    def unpack(self, packed: torch.Tensor) -> torch.Tensor:
        """Convert a packed spectrum back, into memory of its own."""
        ...

    def filters(self, warp: float = 1.0) -> torch.Tensor:
        """Return the filters (K, M) of all bands, with frequencies stretched by `warp`."""
        ...

    @property
    def bins_per_band(self) -> torch.Tensor:
        """Return how many independent values the energy of each band sums, (M,)."""
        ...

    def mel(self, spectrum: torch.Tensor, warp: float = 1.0) -> torch.Tensor:
        """Sum a spectrum (T, K) to band energies (T, M), with frequencies stretched by `warp`."""
        ...

    def finish(self, mel: torch.Tensor) -> torch.Tensor:
        """Make features (T, F) of band energies (T, M); may overwrite them."""
        ...

    @property
    def normalize(self) -> str:
        """Return how features are normalised: `utterance`, `band` or `none`."""
        ...


class LogMel:
    """Logarithms of mel filter bank energies.

    Args:
        sample_rate: Hz.
        n_mels: bands (F).
        window, hop: length of a frame and distance between frames, s.
        f_min, f_max: limits of the bands in Hz; `f_max=None` is half of `sample_rate`.
        preemphasis: x[n] - preemphasis * x[n-1]; 0 turns it off.
        top_db: energies further than this below the utterance's loudest are raised to that level; None: none is.
        normalize: `utterance` (one mean and deviation for all bands), `band` (for each band), `none`.
        silence_db: frames whose energy lies further than this below that of the loudest are silence: normalisation leaves them out, and
            they get the lowest value of each band in the others, as digital zeros between two sentences are no pause that a model knows.
            Nothing is changed with `normalize=none`, which knows no whole utterance. None: no frame is silence.
        speech_db: mean and deviation are those of the frames whose energy lies no further than this below the greatest that lasts, so
            that how long and how faint pauses are does not change the features of speech. None: those of all frames but silence.
        remove_dc: subtract the mean of the recording, but not with `normalize=none`; samples of exactly zero, which were put there later,
            are left as they are.

    Raises:
        ConfigError: the bands are so narrow that some hold no frequency of the spectrum.
    """

    from_audio = True

    def __init__(
        self,
        sample_rate: int,
        n_mels: int,
        window: float,
        hop: float,
        f_min: float,
        f_max: float | None,
        preemphasis: float,
        normalize: str,
        top_db: float | None = None,
        silence_db: float | None = None,
        speech_db: float | None = None,
        remove_dc: bool = False,
    ) -> None:
        self.sample_rate = sample_rate
        self.size = n_mels
        self.win_length = round(window * sample_rate)
        self.hop_length = round(hop * sample_rate)
        self.n_fft = 2 ** math.ceil(math.log2(self.win_length))
        self.f_min = f_min
        self.f_max = f_max if f_max is not None else sample_rate / 2
        self.preemphasis = preemphasis
        self.normalize = normalize
        self.top_db = top_db
        self.silence_db = silence_db
        self.speech_db = speech_db
        self.remove_dc = remove_dc and normalize != "none"
        self.identity = f"power spectrum 1, {sample_rate} Hz, window {self.win_length}, hop {self.hop_length}, preemphasis {preemphasis}"
        if self.remove_dc:
            self.identity += ", without DC"
        self._window = torch.hann_window(self.win_length, dtype=torch.float32)
        self._filters: dict[float, torch.Tensor] = {}
        if empty := int((self.filters().sum(0) == 0).sum()):
            raise ConfigError(
                [
                    Problem(
                        "features.n_mels",
                        f"{n_mels} bands are too narrow for a window of {window} s: {empty} of them hold no frequency",
                        "lower features.n_mels or lengthen features.window",
                    )
                ]
            )

    def num_frames(self, num_samples: int) -> int:
        """Return the number of frames T of so many samples; frames are centred, the first at sample 0."""
        return 1 + num_samples // self.hop_length

    @property
    def frame_rate(self) -> float:
        """Return the number of frames per second."""
        return self.sample_rate / self.hop_length

    def spectrum(self, samples: Audio) -> torch.Tensor:
        """Compute the power spectrum (T, K) of samples (N,), K = n_fft / 2 + 1; the ends are padded with silence."""
        signal = torch.from_numpy(without_dc(samples) if self.remove_dc else samples)
        if self.preemphasis:
            signal = torch.cat([signal[:1], signal[1:] - self.preemphasis * signal[:-1]])
        spectrum = torch.stft(
            signal, self.n_fft, self.hop_length, self.win_length, self._window, center=True, pad_mode="constant", return_complex=True
        )
        return (spectrum.real.square() + spectrum.imag.square()).T.contiguous()

    def pack(self, spectrum: torch.Tensor) -> torch.Tensor:
        """Convert a power spectrum to magnitudes in half precision, overwriting it."""
        return spectrum.sqrt_().half()

    def unpack(self, packed: torch.Tensor) -> torch.Tensor:
        """Convert magnitudes back to a power spectrum (T, K) in float32."""
        return packed.float().square_()

    def filters(self, warp: float = 1.0) -> torch.Tensor:
        """Return mel filters (K, M) that take the energy at a frequency f for that at `warp * f`, to the nearest hundredth of `warp`.

        The upper end stays where it is: the axis is bent back towards it (Jaitly and Hinton 2013, VTLP).
        """
        key = round(warp, 2)
        if key not in self._filters:
            nyquist = self.sample_rate / 2
            bend = 0.8 * nyquist * min(1.0, 1 / key)
            frequencies = torch.linspace(0, nyquist, self.n_fft // 2 + 1, dtype=torch.float64)
            above = key * bend + (frequencies - bend) * (nyquist - key * bend) / (nyquist - bend)
            warped = torch.where(frequencies <= bend, key * frequencies, above)
            self._filters[key] = triangular_filters(warped, self._edges).float()
        return self._filters[key]

    @cached_property
    def _edges(self) -> torch.Tensor:
        low, high = (hertz_to_mel(value) for value in (self.f_min, self.f_max))
        return torch.tensor(
            [mel_to_hertz(low + (high - low) * step / (self.size + 1)) for step in range(self.size + 2)], dtype=torch.float64
        )

    @cached_property
    def bins_per_band(self) -> torch.Tensor:
        """Return about how many independent spectral values each mel energy sums, (M,)."""
        filters = self.filters()
        return filters.sum(0).square() / filters.square().sum(0).clamp_min(1e-9)

    def mel(self, spectrum: torch.Tensor, warp: float = 1.0) -> torch.Tensor:
        """Sum a power spectrum (T, K) to mel energies (T, M)."""
        return spectrum @ self.filters(warp)

    def finish(self, mel: torch.Tensor) -> torch.Tensor:
        """Take logarithms of mel energies (T, M), which are overwritten, and normalise them (T, F); silence throughout gives zeros."""
        floor = _FLOOR if self.top_db is None else max(_FLOOR, float(mel.max()) * 10 ** (-self.top_db / 10))
        features = mel.clamp_min(floor).log_()
        if self.normalize == "none" or (self.silence_db is None and self.speech_db is None):
            return normalize_features(features, self.normalize)
        energies = mel.sum(1)
        counted = torch.ones(len(energies), dtype=torch.bool)
        if self.silence_db is not None:
            counted = energies >= energies.max() * 10 ** (-self.silence_db / 10)
            if not counted.all():
                features[~counted] = features[counted].amin(0)
        if self.speech_db is not None:
            # a median lasts longer than a click, which may be much louder than speech
            width = max(1, min(len(energies), round(LASTING * self.frame_rate)))
            loudest = energies.unfold(0, width, 1).median(1).values.max()
            counted = energies >= loudest * 10 ** (-self.speech_db / 10)
        return normalize_features(features, self.normalize, None if counted.all() else counted)


class Stored:
    """Features that another program made, or signals: used as the corpus reads them, after normalisation.

    Args:
        sample_rate: frames a second, as the corpus says.
        normalize: `utterance` (one mean and deviation for all bands), `band` (for each band), `none`.
    """

    from_audio = False
    identity: str | None = None

    def __init__(self, sample_rate: int, normalize: str) -> None:
        self.sample_rate = sample_rate
        self.normalize = normalize
        self.size = 0
        self.bins_per_band = torch.ones(1, dtype=torch.float32)
        self._size_lock = threading.Lock()

    @property
    def frame_rate(self) -> float:
        """Return the number of frames per second."""
        return float(self.sample_rate)

    def num_frames(self, num_samples: int) -> int:
        """Frames are the samples themselves, so there are as many."""
        return num_samples

    def spectrum(self, samples: Audio) -> torch.Tensor:
        """Check frames (T, F) and return them; those of the first utterance decide what F is.

        Raises:
            DataError: they have another F than those of the first.
        """
        with self._size_lock:
            self.size = self.size or int(samples.shape[1])
        if samples.shape[1] != self.size:
            raise DataError(f"has {samples.shape[1]} mels, the first spectrogram that was read has {self.size}")
        return torch.from_numpy(samples)

    def pack(self, spectrum: torch.Tensor) -> torch.Tensor:
        """Frames are cached in the type they have."""
        return spectrum

    def unpack(self, packed: torch.Tensor) -> torch.Tensor:
        """Copy cached frames (T, F)."""
        return packed.clone()

    def filters(self, warp: float = 1.0) -> torch.Tensor:  # noqa: ARG002
        """Return the identity (F, F): each band is one value of a frame."""
        return torch.eye(self.size, dtype=torch.float32)

    def mel(self, spectrum: torch.Tensor, warp: float = 1.0) -> torch.Tensor:  # noqa: ARG002
        """Frames (T, F) are band energies already; there is nothing to warp."""
        return spectrum

    def finish(self, mel: torch.Tensor) -> torch.Tensor:
        """Normalise frames (T, F) over the utterance or each band."""
        return normalize_features(mel, self.normalize)


class Waveform(Stored):
    """Samples of recordings as features, for models that take the waveform; each sample is a frame, F = 1.

    Args:
        sample_rate: Hz.
        normalize: `utterance` (mean 0 and deviation 1, as pretrained models were trained with), `none`.
        epsilon: added to the variance.
    """

    from_audio = True

    def __init__(self, sample_rate: int, normalize: str, epsilon: float = 1e-5) -> None:
        super().__init__(sample_rate, normalize)
        self.epsilon = epsilon
        self.size = 1
        self.identity = f"samples 1, {sample_rate} Hz"

    def spectrum(self, samples: Audio) -> torch.Tensor:
        """Return the samples (N,) as frames (N, 1)."""
        return torch.from_numpy(samples)[:, None]

    def pack(self, spectrum: torch.Tensor) -> torch.Tensor:
        """Round samples to 16 bits."""
        return (spectrum * 32767).round_().clamp_(-32768, 32767).short()

    def unpack(self, packed: torch.Tensor) -> torch.Tensor:
        """Convert 16-bit samples back to float32 in [-1, 1]."""
        return packed.float().div_(32767)

    def finish(self, mel: torch.Tensor) -> torch.Tensor:
        """Bring samples (N, 1) to mean 0 and deviation 1."""
        return mel if self.normalize == "none" or not len(mel) else torch.nn.functional.layer_norm(mel, mel.shape, eps=self.epsilon)


def without_dc(samples: Audio) -> Audio:
    """Subtract the mean from samples (N,), those of exactly zero aside: with an offset they are silence that was added afterwards."""
    spoken = samples != 0
    offset = samples.sum(dtype=np.float64) / max(1, np.count_nonzero(spoken))
    centred: Audio = samples - spoken * np.float32(offset)
    return centred


def normalize_features(features: torch.Tensor, over: str, counted: torch.Tensor | None = None) -> torch.Tensor:
    """Shift and scale features (T, F) to mean 0 and deviation 1; constant ones become zeros.

    Args:
        features: features of one utterance, (T, F).
        over: what has one mean and deviation: the whole `utterance`, or each `band`; `none` changes nothing.
        counted: frames (T,) that mean and deviation are computed from; None: all.
    """
    if over == "none":
        return features
    dims = (0, 1) if over == "utterance" else (0,)
    deviation, mean = torch.std_mean(features if counted is None else features[counted], dim=dims, correction=0, keepdim=True)
    return (features - mean) / deviation.clamp_min(1e-3)


def triangular_filters(frequencies: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
    """Compute filters (K, M) that rise from edge m to m+1 and fall to m+2, at frequencies (K,) and edges (M+2,) in Hz."""
    distance = edges[None, :] - frequencies[:, None]
    width = edges.diff()
    return torch.minimum(-distance[:, :-2] / width[:-1], distance[:, 2:] / width[1:]).clamp_min(0)


def hertz_to_mel(hertz: float) -> float:
    """Convert Hz to Slaney's mel scale (Auditory Toolbox, 1998), which is linear below 1 kHz and logarithmic above."""
    return hertz * 3 / 200 if hertz < 1000 else 15 + 27 * math.log(hertz / 1000) / math.log(6.4)


def mel_to_hertz(mel: float) -> float:
    """Convert mels to Hz, the inverse of `hertz_to_mel`."""
    return mel * 200 / 3 if mel < 15 else 1000 * math.exp((mel - 15) * math.log(6.4) / 27)
