"""Log-mel filter bank energies in two steps, so that augmentation can act in between.

samples (N,) -> power spectrum (T, K), kept in memory -> [augment] -> mel energies (T, M) -> log, normalise -> features (T, F)
"""

from __future__ import annotations

import math
import warnings
from functools import cached_property

import torch
import torchaudio.functional

from speechtrain.data.corpus import Audio
from speechtrain.errors import ConfigError, Problem

_FLOOR = 1e-10  # of a mel energy: 100 dB below a full-scale sine is about 1e-7 with these windows


class LogMel:
    """Log-mel features.

    Args:
        sample_rate: Hz.
        n_mels: bands (F).
        window, hop: s.
        f_min, f_max: limits of the bands in Hz; `f_max=None` is half of `sample_rate`.
        preemphasis: x[n] - preemphasis * x[n-1]; 0 turns it off.
        normalize: `utterance` (one mean and deviation), `band` (for each band), `none`.
    """

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
        self._window = torch.hann_window(self.win_length)
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

    def filters(self, warp: float = 1.0) -> torch.Tensor:
        """Mel filters (K, M) on a frequency axis stretched by `warp`, to the nearest hundredth."""
        key = round(warp, 2)
        if key not in self._filters:
            # filters of a band [f_min/warp, f_max/warp] on the true axis see what lies at f as if it lay at f*warp
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # of empty bands, refused in __init__
                self._filters[key] = torchaudio.functional.melscale_fbanks(
                    self.n_fft // 2 + 1, self.f_min / key, self.f_max / key, self.size, self.sample_rate, mel_scale="slaney"
                )
        return self._filters[key]

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
        features = mel.clamp_min(_FLOOR).log_()
        if self.normalize == "none":
            return features
        dims = (0, 1) if self.normalize == "utterance" else (0,)
        deviation, mean = torch.std_mean(features, dim=dims, correction=0, keepdim=True)
        return (features - mean) / deviation.clamp_min(1e-3)
