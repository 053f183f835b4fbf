"""Augmentation of spectra: cheaper than that of waveforms (`wave_augment.py`), and a function of (seed, epoch, utterance) alone.

Speed and tempo are resampled spectra, not resampled waveforms; noise is drawn with the statistics that noise has in mel energies.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from speechtrain.data.audio import Audio
from speechtrain.data.features.features import Features
from speechtrain.data.features.wave_augment import WaveAugment


@dataclass(frozen=True)
class WordSpan:
    """The frames of an utterance in which a word is spoken, with half of the pause on either side.

    Attributes:
        utterance: its id.
        start, end: frames, the end excluded.
    """

    utterance: str
    text: str
    start: int
    end: int


class Augment:
    """Random changes of training utterances; see `conf/augment/none.yaml` for the arguments."""

    def __init__(
        self,
        speed: float,
        tempo: float,
        warp: float,
        noise_prob: float,
        noise_snr_db: Sequence[float],
        eq_db: float,
        freq_masks: int,
        freq_mask_width: int,
        time_masks: int,
        time_mask_width: int,
        time_mask_ratio: float,
        recombine_prob: float,
        frame_dropout: float = 0.0,
        noise_folder: str | None = None,
        noise_folder_prob: float = 0.5,
        reverb_folder: str | None = None,
        reverb_prob: float = 0.5,
        lowpass_prob: float = 0.0,
        lowpass_hz: Sequence[float] = (2000, 4000),
        codec_prob: float = 0.0,
        gain_db: float = 0.0,
        delay: float = 0.0,
    ) -> None:
        self.frame_dropout = frame_dropout
        self.delay = delay
        self.wave = WaveAugment(
            noise_folder, noise_folder_prob, noise_snr_db, reverb_folder, reverb_prob, lowpass_prob, lowpass_hz, codec_prob, gain_db
        )
        self.speed = speed
        self.tempo = tempo
        self.warp = warp
        self.noise_prob = noise_prob
        self.noise_snr_db = (noise_snr_db[0], noise_snr_db[1])
        self.eq_db = eq_db
        self.freq_masks = freq_masks
        self.freq_mask_width = freq_mask_width
        self.time_masks = time_masks
        self.time_mask_width = time_mask_width
        self.time_mask_ratio = time_mask_ratio
        self.recombine_prob = recombine_prob

    @property
    def changes_nothing(self) -> bool:
        """Return whether no utterance is ever changed, so that features may be computed once and kept."""
        masks = self.freq_masks * self.freq_mask_width + self.time_masks * self.time_mask_width
        spectral = self.speed or self.tempo or self.warp or self.noise_prob or self.eq_db or masks or self.recombine_prob
        return not (spectral or self.frame_dropout or self.delay) and self.wave.changes_nothing

    def wave_spectrum(self, read: Callable[[], Audio], features: Features, rng: np.random.Generator) -> torch.Tensor | None:
        """Compute the power spectrum (T, K) of the augmented waveform; None where this utterance's waveform is not changed.

        Args:
            read: reads the waveform (N,).
            features: computes spectra.
            rng: random generator of the utterance, see `generator`.
        """
        if self.wave.changes_nothing:
            return None
        drawn = self.wave.draw(rng)
        if not any(drawn) and not self.wave.gain_db:
            return None
        return features.spectrum(self.wave(read(), features.sample_rate, drawn, rng))

    def generator(self, seed: int, epoch: int, utterance: str) -> np.random.Generator:
        """Make the generator of one utterance's random numbers in one epoch."""
        digest = hashlib.blake2b(f"{seed}/{epoch}/{utterance}".encode(), digest_size=8).digest()
        return np.random.Generator(np.random.SFC64(int.from_bytes(digest)))

    def recombine(self, words: Sequence[WordSpan], pool: Sequence[WordSpan], rng: np.random.Generator) -> Sequence[WordSpan] | None:
        """Draw as many words as an utterance has from all words of its speaker; None to leave the utterance unchanged."""
        if not words or rng.random() >= self.recombine_prob:
            return None
        return [pool[int(index)] for index in rng.integers(len(pool), size=len(words))]

    def __call__(self, spectrum: torch.Tensor, features: Features, rng: np.random.Generator, view: int = 0) -> torch.Tensor:
        """Augment a power spectrum (T, K) and make features (T', F) of it; all views of an utterance have the same length."""
        speed, tempo = _factor(self.speed, rng), _factor(self.tempo, rng)
        pause = round(rng.uniform(0, self.delay) * features.frame_rate) if self.delay else 0
        if view:
            rng = rng.spawn(view)[-1]
        mel = features.mel(spectrum, warp=speed * _factor(self.warp, rng))
        mel = _stretch(mel, 1 / (speed * tempo))
        if pause:
            mel = torch.cat([_quietest(mel).expand(pause, -1), mel])
        if self.noise_prob and rng.random() < self.noise_prob:
            mel = mel + self._noise(mel, features, rng)
        if self.eq_db:
            mel = mel * torch.from_numpy(self._equalizer(mel.shape[1], rng))
        out = features.finish(mel)
        self._mask(out, rng, fill=0.0 if features.normalize != "none" else float(out.mean()))
        return out

    def _noise(self, mel: torch.Tensor, features: Features, rng: np.random.Generator) -> torch.Tensor:
        """Draw mel energies (T, M) of noise between white and brown, at a random ratio to the utterance's mean energy."""
        snr_db = rng.uniform(*self.noise_snr_db)
        shape = features.filters().sum(0) * torch.linspace(0.05, 1, mel.shape[1], dtype=torch.float32) ** -rng.uniform(0, 2)
        level = mel.sum(1).mean() * 10 ** (-snr_db / 10) / shape.sum()
        # the sum of k exponential variables of mean 1 has mean k and deviation sqrt(k)
        scatter = torch.from_numpy(rng.standard_normal(mel.shape, dtype=np.float32)) / features.bins_per_band.sqrt().clamp_min(1.0)
        return level * shape * (1 + scatter).clamp_min_(0.05)

    def _equalizer(self, bands: int, rng: np.random.Generator) -> npt.NDArray[np.float32]:
        """Draw a smooth filter (M,) as of another microphone: three half-waves over the bands, the longest strongest."""
        waves = np.cos(np.pi * np.arange(1, 4)[:, None] * np.linspace(0, 1, bands)[None, :])
        decibels = (rng.normal(0, self.eq_db, 3) / np.arange(1, 4)) @ waves
        return np.asarray(10 ** (decibels / 10), dtype=np.float32)

    def _mask(self, features: torch.Tensor, rng: np.random.Generator, fill: float) -> None:
        """Set random frames and bands of features (T, F) to a value (SpecAugment, Park et al. 2019), in place."""
        frames, bands = features.shape
        if self.frame_dropout:
            features[torch.from_numpy(rng.random(frames) < self.frame_dropout)] = fill
        for _ in range(self.freq_masks):
            width = int(rng.integers(min(self.freq_mask_width, bands) + 1))
            start = int(rng.integers(bands - width + 1))
            features[:, start : start + width] = fill
        widest = min(self.time_mask_width, int(self.time_mask_ratio * frames))
        for _ in range(self.time_masks):
            width = int(rng.integers(widest + 1))
            start = int(rng.integers(frames - width + 1))
            features[start : start + width] = fill


def _quietest(mel: torch.Tensor) -> torch.Tensor:
    """Return the mean (1, M) of the tenth of frames (T, M) with the least energy, which is what a pause sounds like there."""
    frames = mel.sum(1).argsort()[: max(1, len(mel) // 10)]
    return mel[frames].mean(0, keepdim=True)


def word_spans(custom: Mapping[str, Any] | None, utterance: str, frames: int, frame_rate: float) -> list[WordSpan]:
    """Convert word times to frames, each word with half of the pauses around it.

    Args:
        custom: custom fields of the utterance; its `words` are `[{word, start, end}]` in seconds.
        utterance: its id.
        frames: T.
        frame_rate: frames a second.
    """
    words = [entry for entry in (custom or {}).get("words", []) if isinstance(entry, Mapping) and {"word", "start", "end"} <= set(entry)]
    middles = [(before["end"] + after["start"]) / 2 * frame_rate for before, after in pairwise(words)]
    bounds = [min(frames, max(0, round(bound))) for bound in (0, *middles, frames)]
    return [
        WordSpan(utterance, str(entry["word"]), start, end)
        for entry, (start, end) in zip(words, pairwise(bounds), strict=False)
        if end > start
    ]


def _factor(spread: float, rng: np.random.Generator) -> float:
    """Draw a factor from 1 / (1 + spread) to 1 + spread, its logarithm evenly distributed."""
    return math.exp(rng.uniform(-1, 1) * math.log1p(spread)) if spread else 1.0


def _stretch(mel: torch.Tensor, factor: float) -> torch.Tensor:
    """Interpolate energies (T, M) linearly to `factor` times as many frames."""
    frames = mel.shape[0]
    new_frames = max(1, round(frames * factor))
    if new_frames == frames:
        return mel
    position = torch.arange(new_frames, dtype=torch.float32) * ((frames - 1) / max(1, new_frames - 1))
    left = position.floor().long().clamp_max_(max(0, frames - 2))
    right = (left + 1).clamp_max_(frames - 1)
    return torch.lerp(mel.index_select(0, left), mel.index_select(0, right), (position - left)[:, None])
