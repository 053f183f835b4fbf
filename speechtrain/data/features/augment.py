"""Augmentation of the spectrum: cheaper than of the waveform (which `wave.py` has), and a function of (seed, epoch, utterance) alone.

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
class Word:
    """A spoken word inside an utterance; `start` and `end` are frames, with half of the pause on either side."""

    utterance: str
    text: str
    start: int
    end: int


class Augment:
    """What may happen to a training utterance; see `conf/augment/none.yaml` for the keys."""

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
        """Whether features may be computed once and kept."""
        masks = self.freq_masks * self.freq_mask_width + self.time_masks * self.time_mask_width
        drawn = self.speed or self.tempo or self.warp or self.noise_prob or self.eq_db or masks or self.recombine_prob
        return not (drawn or self.frame_dropout or self.delay) and self.wave.changes_nothing

    def wave_spectrum(self, read: Callable[[], Audio], features: Features, rng: np.random.Generator) -> torch.Tensor | None:
        """The power spectrum (T, K) of the augmented waveform; None where nothing falls to it."""
        if self.wave.changes_nothing:
            return None
        drawn = self.wave.draw(rng)
        if not any(drawn) and not self.wave.gain_db:
            return None
        return features.spectrum(self.wave(read(), features.sample_rate, drawn, rng))

    def generator(self, seed: int, epoch: int, utterance: str) -> np.random.Generator:
        """The random numbers of one utterance in one epoch."""
        digest = hashlib.blake2b(f"{seed}/{epoch}/{utterance}".encode(), digest_size=8).digest()
        return np.random.Generator(np.random.SFC64(int.from_bytes(digest)))

    def recombine(self, words: Sequence[Word], pool: Sequence[Word], rng: np.random.Generator) -> Sequence[Word] | None:
        """As many words of the same speaker's, at random, or None to leave the utterance as it is."""
        if not words or rng.random() >= self.recombine_prob:
            return None
        return [pool[int(index)] for index in rng.integers(len(pool), size=len(words))]

    def __call__(self, spectrum: torch.Tensor, features: Features, rng: np.random.Generator, view: int = 0) -> torch.Tensor:
        """Features (T', F) of a power spectrum (T, K); views of an utterance share their length."""
        speed, tempo = _factor(self.speed, rng), _factor(self.tempo, rng)
        waits = round(rng.uniform(0, self.delay) * features.frame_rate) if self.delay else 0
        if view:
            rng = rng.spawn(view)[-1]
        mel = features.mel(spectrum, warp=speed * _factor(self.warp, rng))
        mel = _stretch(mel, 1 / (speed * tempo))
        if waits:
            mel = torch.cat([_quietest(mel).expand(waits, -1), mel])
        if self.noise_prob and rng.random() < self.noise_prob:
            mel = mel + self._noise(mel, features, rng)
        if self.eq_db:
            mel = mel * torch.from_numpy(self._gain(mel.shape[1], rng))
        out = features.finish(mel)
        self._mask(out, rng, fill=0.0 if features.normalize != "none" else float(out.mean()))
        return out

    def _noise(self, mel: torch.Tensor, features: Features, rng: np.random.Generator) -> torch.Tensor:
        """Mel energies (T, M) of noise between white and brown, at a random ratio to the utterance's mean energy."""
        snr_db = rng.uniform(*self.noise_snr_db)
        shape = features.filters().sum(0) * torch.linspace(0.05, 1, mel.shape[1], dtype=torch.float32) ** -rng.uniform(0, 2)
        level = mel.sum(1).mean() * 10 ** (-snr_db / 10) / shape.sum()
        # the sum of k exponential variables of mean 1 has mean k and deviation sqrt(k)
        scatter = torch.from_numpy(rng.standard_normal(mel.shape, dtype=np.float32)) / features.bins_per_band.sqrt().clamp_min(1.0)
        return level * shape * (1 + scatter).clamp_min_(0.05)

    def _gain(self, bands: int, rng: np.random.Generator) -> npt.NDArray[np.float32]:
        """A random smooth filter (M,) as another microphone or voice would be: three half-waves over the bands, the longest strongest."""
        waves = np.cos(np.pi * np.arange(1, 4)[:, None] * np.linspace(0, 1, bands)[None, :])
        decibels = (rng.normal(0, self.eq_db, 3) / np.arange(1, 4)) @ waves
        return np.asarray(10 ** (decibels / 10), dtype=np.float32)

    def _mask(self, features: torch.Tensor, rng: np.random.Generator, fill: float) -> None:
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
    """What a pause sounds like there: the mean (1, M) of the tenth of its frames (T, M) with the least energy."""
    frames = mel.sum(1).argsort()[: max(1, len(mel) // 10)]
    return mel[frames].mean(0, keepdim=True)


def words_of(custom: Mapping[str, Any] | None, utterance: str, frames: int, frame_rate: float) -> list[Word]:
    """The words of an utterance whose manifest gives `words: [{word, start, end}]` in seconds; each takes half of the pauses around it."""
    entries = [entry for entry in (custom or {}).get("words", []) if isinstance(entry, Mapping) and {"word", "start", "end"} <= set(entry)]
    cuts = [0, *((first["end"] + second["start"]) / 2 * frame_rate for first, second in pairwise(entries)), frames]
    bounds = [min(frames, max(0, round(value))) for value in cuts]
    return [Word(utterance, str(entry["word"]), bounds[i], bounds[i + 1]) for i, entry in enumerate(entries) if bounds[i + 1] > bounds[i]]


def _factor(spread: float, rng: np.random.Generator) -> float:
    """A factor from 1/(1+spread) to 1+spread, evenly in its logarithm."""
    return math.exp(rng.uniform(-1, 1) * math.log1p(spread)) if spread else 1.0


def _stretch(mel: torch.Tensor, factor: float) -> torch.Tensor:
    """Energies (T, M) over `factor` times as many frames, by linear interpolation."""
    frames = mel.shape[0]
    wanted = max(1, round(frames * factor))
    if wanted == frames:
        return mel
    position = torch.arange(wanted, dtype=torch.float32) * ((frames - 1) / max(1, wanted - 1))
    left = position.floor().long().clamp_max_(max(0, frames - 2))
    right = (left + 1).clamp_max_(frames - 1)
    return torch.lerp(mel[left], mel[right], (position - left)[:, None])
