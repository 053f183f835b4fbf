"""Log-mel filter bank energies in two steps, so that augmentation can act in between.

samples (N,) -> power spectrum (T, K), kept in memory -> [augment] -> mel energies (T, M) -> log, normalise -> features (T, F)
"""

from __future__ import annotations

import math
import threading
from functools import cached_property
from typing import Protocol

import torch

from speechtrain.data.audio import Audio
from speechtrain.errors import ConfigError, DataError, Problem

_FLOOR = 1e-10  # of a mel energy: 100 dB below a full-scale sine is about 1e-7 with these windows


class Features(Protocol):
    """What `features._target_` names: from what a corpus reads to the frames that a model sees, with room for augmentation in between."""

    sample_rate: int
    """Hz of what the corpus is to read."""
    size: int
    """F."""
    hears: bool
    """Whether they are made of audio, and not given."""
    identity: str | None
    """Says how spectra are computed: equal ones give equal spectra, which may then be kept on disk; None: they may not."""

    @property
    def frame_rate(self) -> float:
        """Frames a second."""
        ...

    def num_frames(self, num_samples: int) -> int:
        """T of that many samples."""
        ...

    def spectrum(self, samples: Audio) -> torch.Tensor:
        """What is kept of an utterance."""
        ...

    def pack(self, spectrum: torch.Tensor) -> torch.Tensor:
        """The same in less memory."""
        ...

    def unpack(self, packed: torch.Tensor) -> torch.Tensor:
        """What `pack` was given, in memory of its own."""
        ...

    def filters(self, warp: float = 1.0) -> torch.Tensor:
        """Mel filters (K, M)."""
        ...

    @property
    def bins_per_band(self) -> torch.Tensor:
        """How many independent values each mel energy sums (M,)."""
        ...

    def mel(self, spectrum: torch.Tensor, warp: float = 1.0) -> torch.Tensor:
        """Mel energies (T, M)."""
        ...

    def finish(self, mel: torch.Tensor) -> torch.Tensor:
        """Features (T, F)."""
        ...

    @property
    def normalize(self) -> str:
        """`utterance`, `band` or `none`."""
        ...


class LogMel:
    """Log-mel features.

    Args:
        sample_rate: Hz.
        n_mels: bands (F).
        window, hop: s.
        f_min, f_max: limits of the bands in Hz; `f_max=None` is half of `sample_rate`.
        preemphasis: x[n] - preemphasis * x[n-1]; 0 turns it off.
        top_db: what lies more than this below the utterance's loudest mel energy is raised to it; None: nothing is.
        normalize: `utterance` (one mean and deviation), `band` (for each band), `none`.
    """

    hears = True

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
        self.identity = f"power spectrum 1, {sample_rate} Hz, window {self.win_length}, hop {self.hop_length}, preemphasis {preemphasis}"
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
        """T of that many samples."""
        return 1 + num_samples // self.hop_length

    @property
    def frame_rate(self) -> float:
        """Frames a second."""
        return self.sample_rate / self.hop_length

    def spectrum(self, samples: Audio) -> torch.Tensor:
        """Power spectrum (T, K) of samples (N,), K = n_fft / 2 + 1; frames are centred and the ends padded with silence."""
        signal = torch.from_numpy(samples)
        if self.preemphasis:
            signal = torch.cat([signal[:1], signal[1:] - self.preemphasis * signal[:-1]])
        spectrum = torch.stft(
            signal, self.n_fft, self.hop_length, self.win_length, self._window, center=True, pad_mode="constant", return_complex=True
        )
        return (spectrum.real.square() + spectrum.imag.square()).T.contiguous()

    def pack(self, spectrum: torch.Tensor) -> torch.Tensor:
        """Magnitudes in half precision."""
        return spectrum.sqrt_().half()

    def unpack(self, packed: torch.Tensor) -> torch.Tensor:
        """The power spectrum again."""
        return packed.float().square_()

    def filters(self, warp: float = 1.0) -> torch.Tensor:
        """Mel filters (K, M) that see what lies at f as if it lay at `warp * f`, to the nearest hundredth.

        The upper end stays where it is: the axis is bent back towards it (Jaitly and Hinton 2013, VTLP).
        """
        key = round(warp, 2)
        if key not in self._filters:
            nyquist = self.sample_rate / 2
            bend = 0.8 * nyquist * min(1.0, 1 / key)
            frequencies = torch.linspace(0, nyquist, self.n_fft // 2 + 1, dtype=torch.float64)
            above = key * bend + (frequencies - bend) * (nyquist - key * bend) / (nyquist - bend)
            bent = torch.where(frequencies <= bend, key * frequencies, above)
            self._filters[key] = triangles(bent, self._edges).float()
        return self._filters[key]

    @cached_property
    def _edges(self) -> torch.Tensor:
        low, high = (hertz_to_mel(value) for value in (self.f_min, self.f_max))
        return torch.tensor(
            [mel_to_hertz(low + (high - low) * step / (self.size + 1)) for step in range(self.size + 2)], dtype=torch.float64
        )

    @cached_property
    def bins_per_band(self) -> torch.Tensor:
        """How many independent spectral values each mel energy sums, about (M,)."""
        filters = self.filters()
        return filters.sum(0).square() / filters.square().sum(0).clamp_min(1e-9)

    def mel(self, spectrum: torch.Tensor, warp: float = 1.0) -> torch.Tensor:
        """Mel energies (T, M) of a power spectrum (T, K)."""
        return spectrum @ self.filters(warp)

    def finish(self, mel: torch.Tensor) -> torch.Tensor:
        """Features (T, F) of mel energies (T, M); silence throughout gives zeros."""
        floor = _FLOOR if self.top_db is None else max(_FLOOR, float(mel.max()) * 10 ** (-self.top_db / 10))
        features = mel.clamp_min(floor).log_()
        return normalized(features, self.normalize)


class Stored:
    """Features that were made before: taken as they are, but for a normalisation.

    Args:
        sample_rate: frames a second, as the corpus says.
        normalize: `utterance` (one mean and deviation), `band` (for each), `none`.
    """

    hears = False
    identity: str | None = None

    def __init__(self, sample_rate: int, normalize: str) -> None:
        self.sample_rate = sample_rate
        self.normalize = normalize
        self.size = 0
        self.bins_per_band = torch.ones(1, dtype=torch.float32)
        self._first = threading.Lock()

    @property
    def frame_rate(self) -> float:
        """Frames a second."""
        return float(self.sample_rate)

    def num_frames(self, num_samples: int) -> int:
        """As many as there are."""
        return num_samples

    def spectrum(self, samples: Audio) -> torch.Tensor:
        """The frames (T, F) themselves; the first utterance says what F is.

        Raises:
            DataError: they have another F than the first.
        """
        with self._first:
            self.size = self.size or int(samples.shape[1])
        if samples.shape[1] != self.size:
            raise DataError(f"has {samples.shape[1]} mels, the first spectrogram that was read has {self.size}")
        return torch.from_numpy(samples)

    def pack(self, spectrum: torch.Tensor) -> torch.Tensor:
        """As they are."""
        return spectrum

    def unpack(self, packed: torch.Tensor) -> torch.Tensor:
        """A copy."""
        return packed.clone()

    def filters(self, warp: float = 1.0) -> torch.Tensor:  # noqa: ARG002
        """Each mel by itself."""
        return torch.eye(self.size, dtype=torch.float32)

    def mel(self, spectrum: torch.Tensor, warp: float = 1.0) -> torch.Tensor:  # noqa: ARG002
        """As they are."""
        return spectrum

    def finish(self, mel: torch.Tensor) -> torch.Tensor:
        """Normalised."""
        return normalized(mel, self.normalize)


class Waveform(Stored):
    """Samples of recordings, each of which is a frame; a spectrum is the samples themselves.

    Args:
        sample_rate: Hz.
        normalize: `utterance` (mean 0 and deviation 1, as pretrained models want it), `none`.
    """

    hears = True

    def __init__(self, sample_rate: int, normalize: str) -> None:
        super().__init__(sample_rate, normalize)
        self.size = 1
        self.identity = f"samples 1, {sample_rate} Hz"

    def spectrum(self, samples: Audio) -> torch.Tensor:
        """Samples (N,) as (N, 1)."""
        return torch.from_numpy(samples)[:, None]

    def pack(self, spectrum: torch.Tensor) -> torch.Tensor:
        """16 bits a sample."""
        return (spectrum * 32767).round_().clamp_(-32768, 32767).short()

    def unpack(self, packed: torch.Tensor) -> torch.Tensor:
        """The samples again."""
        return packed.float().div_(32767)

    def finish(self, mel: torch.Tensor) -> torch.Tensor:
        """Normalised, with the small constant in the variance that torchaudio's pretrained models have."""
        return mel if self.normalize == "none" or not len(mel) else torch.nn.functional.layer_norm(mel, mel.shape)


def normalized(features: torch.Tensor, how: str) -> torch.Tensor:
    """(T, F) with mean 0 and deviation 1 over the utterance, over each band of it, or as it is; a constant gives zeros."""
    if how == "none":
        return features
    dims = (0, 1) if how == "utterance" else (0,)
    deviation, mean = torch.std_mean(features, dim=dims, correction=0, keepdim=True)
    return (features - mean) / deviation.clamp_min(1e-3)


def triangles(frequencies: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
    """Filters (K, M) that rise from edge m to m+1 and fall to m+2, at given frequencies (K,) and edges (M+2,) in Hz."""
    distance = edges[None, :] - frequencies[:, None]
    width = edges.diff()
    return torch.minimum(-distance[:, :-2] / width[:-1], distance[:, 2:] / width[1:]).clamp_min(0)


def hertz_to_mel(hertz: float) -> float:
    """Slaney's mel scale (Auditory Toolbox, 1998): linear below 1 kHz, logarithmic above."""
    return hertz * 3 / 200 if hertz < 1000 else 15 + 27 * math.log(hertz / 1000) / math.log(6.4)


def mel_to_hertz(mel: float) -> float:
    """The inverse of `hertz_to_mel`."""
    return mel * 200 / 3 if mel < 15 else 1000 * math.exp((mel - 15) * math.log(6.4) / 27)
