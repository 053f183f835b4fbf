"""The features of TensorFlow Lite Micro's audio front end, in the same whole numbers that a microcontroller computes.

window -> fixed-point FFT -> mel filter bank -> square root -> noise reduction -> gain control (PCAN, Lostanlen et al. 2019) -> logarithm

Every step has the widths, shifts and roundings of `tensorflow/lite/experimental/microfrontend`, whose FFT is that of kissfft in 16 bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from speechtrain.data.audio import Audio
from speechtrain.errors import ConfigError, Problem

Whole = npt.NDArray[np.int64]

_WINDOW_BITS = 12
_FILTER_BITS = 12
_NOISE_BITS = 14
_SMOOTHING_BITS = 10
_EVEN_SMOOTHING, _ODD_SMOOTHING, _LEAST_SIGNAL = 0.025, 0.06, 0.05
_GAIN_BITS, _GAIN_STRENGTH, _GAIN_OFFSET = 21, 0.95, 80.0
_SNR_BITS, _OUTPUT_BITS = 12, 6
_LOG_BITS, _LOG_SEGMENT_BITS, _LOG_COEFFICIENT = 16, 7, 45426
_LOG_SHIFT = 6
LOG_SCALE = 1 << _LOG_SHIFT
"""A step of the logarithm's output is 1/64 in natural logarithms of a magnitude."""
_DIVISOR = 666
"""Values of 0 to 666 are spread over the 256 whole numbers of 8 bits, as in the library's example of keywords."""
STEPS = 32
"""Whole numbers of 8 bits for a difference of 1 between features."""


class MicroFrontend:
    """Logarithms of mel magnitudes in whole numbers of 8 bits, divided by 32.

    Each frame depends on the samples before its end alone, so a live signal has the same features as a recording.

    Args:
        sample_rate: Hz.
        n_mels: bands (F).
        window, hop: length of a frame and distance between frames, s; whole milliseconds.
        f_min, f_max: limits of the bands, Hz.
        pcan: whether each band's gain follows its noise.

    Raises:
        ConfigError: the bands reach beyond the spectrum, or some hold no frequency of it.
    """

    from_audio = True
    normalize = "none"
    identity: str | None = None

    def __init__(self, sample_rate: int, n_mels: int, window: float, hop: float, f_min: float, f_max: float, pcan: bool = True) -> None:
        self.sample_rate = sample_rate
        self.size = n_mels
        self.window_ms, self.hop_ms = round(1000 * window), round(1000 * hop)
        self.win_length, self.hop_length = (milliseconds * sample_rate // 1000 for milliseconds in (self.window_ms, self.hop_ms))
        self.n_fft = 1 << (self.win_length - 1).bit_length()
        self.f_min, self.f_max = f_min, f_max
        self.pcan = pcan
        self.bins_per_band = torch.ones(1, dtype=torch.float32)
        self._coefficients = _window(self.win_length)
        self._filters, self._first, self._last = _filter_bank(n_mels, f_min, f_max, sample_rate, self.n_fft // 2 + 1)
        self._correction = self.n_fft.bit_length() - 1 - _FILTER_BITS // 2
        self._gains = _gain_table(_SMOOTHING_BITS - self._correction)
        self._fft = _Fft(self.n_fft)
        if self._last > self.n_fft // 2:
            message = f"{f_max:g} Hz reaches beyond the spectrum of {sample_rate} Hz"
            raise ConfigError([Problem("features.f_max", message, f"set features.f_max={0.46875 * sample_rate:g} or lower")])
        if empty := n_mels - int(np.count_nonzero(self._filters.any(axis=0))):
            where = f"{n_mels} bands from {f_min:g} to {f_max:g} Hz"
            message = f"{where} are too narrow for a window of {window:g} s: {empty} of them hold no frequency"
            raise ConfigError([Problem("features.n_mels", message, "set features.n_mels to less, or features.window to more")])

    @property
    def frame_rate(self) -> float:
        """Return the number of frames per second."""
        return self.sample_rate / self.hop_length

    def num_frames(self, num_samples: int) -> int:
        """Return the number of frames T of so many samples; fewer than a window are filled up with zeros."""
        return max(1, 1 + (num_samples - self.win_length) // self.hop_length)

    def spectrum(self, samples: Audio) -> torch.Tensor:
        """Compute the front end's output (T, F) of samples (N,) between -1 and 1, which are rounded to 16 bits."""
        whole = np.clip(np.rint(samples.astype(np.float64) * 32768), -32768, 32767).astype(np.int64)
        return torch.from_numpy(self.output(whole).astype(np.float32))

    def output(self, samples: Whole) -> Whole:
        """Compute the front end's output (T, F), 0 to 65535, of samples (N,) of 16 bits."""
        frames = self.num_frames(len(samples))
        missing = (frames - 1) * self.hop_length + self.win_length - len(samples)
        padded = np.pad(samples, (0, max(0, missing)))
        cut = np.lib.stride_tricks.sliding_window_view(padded, self.win_length)[:: self.hop_length][:frames]
        windowed = _int16((cut * self._coefficients) >> _WINDOW_BITS)
        shift = 15 - _bit_length(_int16(np.abs(windowed)).max(1, initial=0))
        real, imaginary = self._fft(np.pad(_int16(windowed << shift[:, None]), ((0, 0), (0, self.n_fft - self.win_length))))
        energy = (real * real + imaginary * imaginary)[:, self._first : self._last]
        bands = (energy.astype(np.float64) @ self._filters).astype(np.int64)  # below 2 ** 53, so exact
        signal = _square_root(bands) >> shift[:, None]
        return self._logarithm(self._without_noise(signal))

    def _without_noise(self, signal: Whole) -> Whole:
        """Subtract a running estimate of each band's noise, and let its gain follow that."""
        smoothing = np.where(np.arange(self.size) % 2 == 0, *(_fraction(value) for value in (_EVEN_SMOOTHING, _ODD_SMOOTHING)))
        estimate = np.zeros(self.size, dtype=np.int64)
        out: Whole = np.empty_like(signal)
        noise: Whole = np.empty_like(signal)
        for t, frame in enumerate(signal):
            scaled = (frame << _SMOOTHING_BITS) & 0xFFFFFFFF
            estimate = (scaled * smoothing + estimate * ((1 << _NOISE_BITS) - smoothing)) >> _NOISE_BITS
            noise[t] = estimate
            out[t] = (scaled - np.minimum(estimate, scaled)) >> _SMOOTHING_BITS
        out = np.maximum(out, (signal * _fraction(_LEAST_SIGNAL)) >> _NOISE_BITS)
        if not self.pcan:
            return out
        ratio = (out * _gain(noise, self._gains)) >> (_GAIN_BITS - self._correction - _SNR_BITS)
        small = (ratio * ratio) >> (2 + 2 * _SNR_BITS - _OUTPUT_BITS)
        gained: Whole = np.where(ratio < 2 << _SNR_BITS, small, (ratio >> (_SNR_BITS - _OUTPUT_BITS)) - (1 << _OUTPUT_BITS))
        return gained

    def _logarithm(self, signal: Whole) -> Whole:
        values = signal << self._correction if self._correction >= 0 else signal >> -self._correction
        x = np.maximum(values, 1)
        integer = _bit_length(x) - 1
        fraction = x - (1 << integer)
        fraction = np.where(
            integer < _LOG_BITS, fraction << np.maximum(_LOG_BITS - integer, 0), fraction >> np.maximum(integer - _LOG_BITS, 0)
        )
        segment = fraction >> (_LOG_BITS - _LOG_SEGMENT_BITS)
        low, high = _LOG_TABLE[segment], _LOG_TABLE[segment + 1]
        within = ((high - low) * (fraction - (segment << (_LOG_BITS - _LOG_SEGMENT_BITS)))) >> _LOG_BITS
        half = 1 << (_LOG_BITS - 1)
        natural = (_LOG_COEFFICIENT * ((integer << _LOG_BITS) + fraction + low + within) + half) >> _LOG_BITS
        scaled: Whole = np.where(values > 1, np.minimum(((natural << _LOG_SHIFT) + half) >> _LOG_BITS, 0xFFFF), 0)
        return scaled

    def pack(self, spectrum: torch.Tensor) -> torch.Tensor:
        """Convert the front end's output to whole numbers of 16 bits."""
        return spectrum.clamp_max(32767).to(torch.int16)

    def unpack(self, packed: torch.Tensor) -> torch.Tensor:
        """Convert kept output (T, F) back to float32."""
        return packed.float()

    def filters(self, warp: float = 1.0) -> torch.Tensor:
        """Return the weights (F, F) that take the energy of each band from that at `warp` times its frequency."""
        edges = _mel(np.array([self.f_min, self.f_max], dtype=np.float32)).astype(np.float64)
        centres = edges[0] + (edges[1] - edges[0]) / (self.size + 1) * np.arange(1, self.size + 1)
        wanted = 1127 * np.log1p(warp * np.expm1(centres / 1127))
        places = np.clip((wanted - centres[0]) / (centres[1] - centres[0]) if self.size > 1 else wanted * 0, 0, self.size - 1)
        return torch.from_numpy(np.maximum(0, 1 - np.abs(np.arange(self.size)[:, None] - places[None, :])).astype(np.float32))

    def mel(self, spectrum: torch.Tensor, warp: float = 1.0) -> torch.Tensor:
        """Return the energies (T, F) whose logarithms the front end's output is: augmentation acts on these."""
        energies = torch.exp(spectrum.double() * (2 / LOG_SCALE))
        return (energies if warp == 1 else energies @ self.filters(warp).double()).float()

    def finish(self, mel: torch.Tensor) -> torch.Tensor:
        """Make features (T, F) of energies: their logarithms as the front end has them, in whole numbers of 8 bits, divided by 32."""
        output = torch.round(torch.log(mel.double().clamp_min(1)) * (LOG_SCALE / 2)).long()
        return whole_numbers(output).float() / STEPS


def whole_numbers(output: torch.Tensor) -> torch.Tensor:
    """Spread the front end's output over whole numbers of 8 bits."""
    return (((output << 8) + _DIVISOR // 2) // _DIVISOR - 128).clamp(-128, 127)


class _Fft:
    """The transform of kissfft for real numbers of 16 bits, which are halved at each step of two; for powers of two."""

    def __init__(self, size: int) -> None:
        self._half = size // 2
        self._twiddles = _turns(-2 * np.pi * np.arange(self._half) / self._half)
        self._last = _turns(-np.pi * ((np.arange(self._half // 2) + 1) / self._half + 0.5))

    def __call__(self, values: Whole) -> tuple[Whole, Whole]:
        """Transform frames (T, size) to real and imaginary parts (T, size / 2 + 1)."""
        real, imaginary = self._work(values[:, 0::2], values[:, 1::2], 1)
        half = self._half
        low, high = np.arange(1, half // 2 + 1), half - np.arange(1, half // 2 + 1)
        a, b, c, d = (_divided(part, 2) for part in (real[:, low], imaginary[:, low], real[:, high], -imaginary[:, high]))
        sum_real, sum_imaginary, other_real, other_imaginary = _int16(a + c), _int16(b + d), _int16(a - c), _int16(b - d)
        turned_real, turned_imaginary = _product(other_real, other_imaginary, *self._last)
        out_real, out_imaginary = np.zeros((2, len(values), half + 1), dtype=np.int64)
        first, second = _divided(real[:, 0], 2), _divided(imaginary[:, 0], 2)
        out_real[:, 0], out_real[:, half] = _int16(first + second), _int16(first - second)
        out_real[:, low], out_imaginary[:, low] = (sum_real + turned_real) >> 1, (sum_imaginary + turned_imaginary) >> 1
        out_real[:, high], out_imaginary[:, high] = (sum_real - turned_real) >> 1, (turned_imaginary - sum_imaginary) >> 1
        return out_real, out_imaginary

    def _work(self, real: Whole, imaginary: Whole, stride: int) -> tuple[Whole, Whole]:
        """Transform (T, n) by steps of four, and one of two where n is no power of four; `stride` is that in the table of twiddles."""
        size = real.shape[1]
        if size == 1:
            return real, imaginary
        radix = 4 if size % 4 == 0 else 2
        parts = [self._work(real[:, k::radix], imaginary[:, k::radix], stride * radix) for k in range(radix)]
        count = size // radix
        turned = []
        for k, part in enumerate(parts):
            scaled = [_divided(each, radix) for each in part]
            twiddles = [table[k * stride * np.arange(count)] for table in self._twiddles]
            turned.append((scaled[0], scaled[1]) if k == 0 else _product(scaled[0], scaled[1], *twiddles))
        if radix == 2:
            (a, b), (c, d) = turned
            return _int16(np.concatenate([a + c, a - c], axis=1)), _int16(np.concatenate([b + d, b - d], axis=1))
        (a, b), (c, d), (e, f), (g, h) = turned
        minus, plus = (_int16(a - e), _int16(b - f)), (_int16(a + e), _int16(b + f))
        total, gap = (_int16(c + g), _int16(d + h)), (_int16(c - g), _int16(d - h))
        columns_real = [plus[0] + total[0], minus[0] + gap[1], plus[0] - total[0], minus[0] - gap[1]]
        columns_imaginary = [plus[1] + total[1], minus[1] - gap[0], plus[1] - total[1], minus[1] + gap[0]]
        return _int16(np.concatenate(columns_real, axis=1)), _int16(np.concatenate(columns_imaginary, axis=1))


def _turns(phases: npt.NDArray[np.float64]) -> tuple[Whole, Whole]:
    real, imaginary = (np.floor(0.5 + 32767 * turn(phases)).astype(np.int64) for turn in (np.cos, np.sin))
    return real, imaginary


def _int16(values: Whole) -> Whole:
    return values.astype(np.int16).astype(np.int64)


def _rounded(values: Whole) -> Whole:
    return _int16((values + (1 << 14)) >> 15)


def _divided(values: Whole, by: int) -> Whole:
    return _rounded(values * (32767 // by))


def _product(a: Whole, b: Whole, c: Whole, d: Whole) -> tuple[Whole, Whole]:
    """Multiply a + bi by c + di."""
    return _rounded(a * c - b * d), _rounded(a * d + b * c)


def _bit_length(values: Whole) -> Whole:
    """Return how many bits whole numbers from 0 to 2 ** 52 take."""
    lengths: Whole = np.frexp(values.astype(np.float64))[1].astype(np.int64)
    return lengths


def _square_root(values: Whole) -> Whole:
    """Return the nearest whole square roots; the greatest of 16 bits is not rounded up where the value has 32."""
    root = np.sqrt(values.astype(np.float64)).astype(np.int64)
    root -= root * root > values
    root += (root + 1) * (root + 1) <= values
    nearest: Whole = root + ((values - root * root > root) & ((root != 0xFFFF) | (values >> 32 != 0)))
    return nearest


def _fraction(value: float) -> int:
    return int(np.float32(value) * np.float32(1 << _NOISE_BITS))


def _mel(hertz: Any) -> Any:
    return np.float32(1127) * np.log1p(hertz / np.float32(700), dtype=np.float32)


def _window(size: int) -> Whole:
    step = np.float32(np.pi) * np.float32(2) / np.float32(size)
    shape = np.float32(0.5) - np.float32(0.5) * np.cos(step * (np.arange(size, dtype=np.float32) + np.float32(0.5)), dtype=np.float32)
    coefficients: Whole = np.floor(shape * np.float32(1 << _WINDOW_BITS) + np.float32(0.5)).astype(np.int64)
    return coefficients


def _filter_bank(bands: int, f_min: float, f_max: float, rate: int, bins: int) -> tuple[npt.NDArray[np.float64], int, int]:
    """Return the weights (K, F) of the bins from the first that is used to the last (excluded), and these two."""
    limits = _mel(np.array([f_min, f_max], dtype=np.float32))
    spacing = (limits[1] - limits[0]) / np.float32(bands + 1)
    centres = limits[0] + spacing * np.arange(1, bands + 2, dtype=np.float32)
    width = np.float32(0.5) * np.float32(rate) / (np.float32(bins) - np.float32(1))
    first = int(np.float32(1.5) + np.float32(f_min) / width)
    weights = np.zeros((bins + 1, bands + 2))
    place = first
    for band, centre in enumerate(centres):
        below = limits[0] if band == 0 else centres[band - 1]
        while place <= bins and (mel := _mel(np.float32(place) * width)) <= centre:
            weight = (centre - mel) / (centre - below)
            for column, share in ((band, weight), (band + 1, np.float32(1) - weight)):
                weights[place, column] += np.floor(share * np.float32(1 << _FILTER_BITS) + np.float32(0.5))
            place += 1
    return weights[first:place, 1 : bands + 1], first, place


def _gain_table(input_bits: int) -> Whole:
    """Return value and two differences of the gain at each power of two, (33, 3)."""

    def gain(x: int) -> int:
        value = np.float32(1 << _GAIN_BITS) * np.power(
            np.float32(x) / np.float32(1 << input_bits) + np.float32(_GAIN_OFFSET), np.float32(-_GAIN_STRENGTH), dtype=np.float32
        )
        return 0x7FFF if value > 0x7FFF else int(value + np.float32(0.5))

    table = np.zeros((33, 3), dtype=np.int64)
    table[0, 0], table[1, 0] = gain(0), gain(1)
    for interval in range(2, 33):
        low = 1 << (interval - 1)
        high = 2 * low - (interval == 32)
        start, first, second = gain(low), gain(low + low // 2) - gain(low), gain(high) - gain(low)
        slope = 4 * first - second
        table[interval] = start, slope, second - slope
    return table


def _gain(noise: Whole, table: Whole) -> Whole:
    """Interpolate the gain for estimates of noise by a parabola between two powers of two."""
    interval = np.where(noise <= 1, noise, _bit_length(noise))
    value, slope, bend = (table[interval, column] for column in range(3))
    shifted = np.where(interval < 11, noise << np.maximum(11 - interval, 0), noise >> np.maximum(interval - 11, 0))
    fraction = shifted & 0x3FF
    between = (((bend * fraction) >> 5) + (slope << 5)) * fraction
    gain: Whole = np.where(noise <= 2, value, ((between + (1 << 14)) >> 15) + value)
    return gain


_SHARES = np.arange((1 << _LOG_SEGMENT_BITS) + 1) / (1 << _LOG_SEGMENT_BITS)
_LOG_TABLE: Whole = np.append(np.rint((np.log2(1 + _SHARES) - _SHARES) * (1 << _LOG_BITS)), 0).astype(np.int64)
"""How far the binary logarithm lies above a straight line, at each 128th between two powers of two."""
