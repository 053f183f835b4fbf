"""`data=synthetic`: tones that spell texts, without files and extra packages; an utterance is a function of (seed, split, index) alone."""

from __future__ import annotations

import numpy as np

from speechtrain.data.audio import Audio
from speechtrain.data.corpus import SPLITS, Corpus, Cut, make_cut
from speechtrain.errors import DataError


class Synthetic:
    """A corpus of random texts, each character of which is a tone.

    Args:
        alphabet: the characters; the i-th is a tone, the tones spread evenly on a logarithmic scale from 300 Hz to 0.45 of `sample_rate`.
        seed: seed of the corpus.
        train_size, val_size, test_size: utterances.
        min_chars, max_chars: characters an utterance.
        sample_rate: Hz.
        snr_db: ratio of the tones to white noise.
    """

    def __init__(
        self,
        alphabet: str,
        seed: int,
        train_size: int,
        val_size: int,
        test_size: int,
        min_chars: int,
        max_chars: int,
        sample_rate: int,
        snr_db: float,
    ) -> None:
        self.alphabet = sorted(set(alphabet))
        self.seed = seed
        self.sizes = dict(zip(SPLITS, (train_size, val_size, test_size), strict=True))
        self.chars = (min_chars, max_chars)
        self.sample_rate = sample_rate
        self.snr_db = snr_db

    def load(self, limit: int | None) -> Corpus:
        """Draw every text; samples are made when they are read."""
        splits = {}
        for name, size in self.sizes.items():
            splits[name] = [self._cut(name, index) for index in range(min(size, limit or size))]
        return Corpus({**splits}, read=self.read)

    def _draw(self, split: str, index: int) -> tuple[str, list[int], np.random.Generator]:
        """Return the text of an utterance, the samples of each pause and tone in turn, and the generator for everything else."""
        rng = np.random.default_rng([self.seed, SPLITS.index(split), index])
        letters = rng.integers(len(self.alphabet), size=rng.integers(self.chars[0], self.chars[1] + 1))
        milliseconds = rng.integers(80, 140, size=2 * len(letters) + 1)
        milliseconds[::2] //= 2  # pauses around and between the tones
        return "".join(self.alphabet[letter] for letter in letters), [int(ms) * self.sample_rate // 1000 for ms in milliseconds], rng

    def _cut(self, split: str, index: int) -> Cut:
        text, lengths, _ = self._draw(split, index)
        return make_cut(f"{split}-{index:05d}", None, num_samples=sum(lengths), sample_rate=self.sample_rate, text=text, speaker=None)

    def read(self, cut: Cut, rate: int) -> Audio:
        """Make the samples (N,) of an utterance.

        Raises:
            DataError: another rate is asked for than the corpus is made at.
        """
        if rate != self.sample_rate:
            raise DataError(
                f"synthetic data is at {self.sample_rate} Hz, features.sample_rate is {rate}\n    -> set data.sample_rate={rate}"
            )
        split, _, index = cut.id.partition("-")
        text, lengths, rng = self._draw(split, int(index))
        tones = np.geomspace(300, 0.45 * rate, num=len(self.alphabet))
        parts = []
        for position, length in enumerate(lengths):
            if position % 2 == 0:
                parts.append(np.zeros(length))
                continue
            tone = tones[self.alphabet.index(text[position // 2])] * rng.uniform(0.98, 1.02)
            parts.append(np.hanning(length) * np.sin(2 * np.pi * tone * np.arange(length) / rate))
        noise = rng.normal(0, 10 ** (-self.snr_db / 20), sum(lengths))
        return (0.3 * (np.concatenate(parts) + noise)).astype(np.float32)
