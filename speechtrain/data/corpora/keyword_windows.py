"""`data=keyword_windows`: windows of a fixed length as a keyword spotter hears them, with keywords in other speech and in noise.

A window holds a whole keyword at a random place, a piece of one, other speech, or noise alone. It is made when it is read, and is a
function of (seed, id) alone; `weights` of the corpora of keywords say in how many windows each of them stands.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from speechtrain.data.audio import Audio, samples_in
from speechtrain.data.corpora.mix import Mix
from speechtrain.data.corpus import NO_CUSTOM, SPLITS, Corpus, CorpusSource, Cut
from speechtrain.errors import DataError

SILENCE, UNKNOWN = "_silence_", "_unknown_"
_HEARD = (0.1, 0.4)  # share of a keyword that is cut off by the window's end
_CONTEXT_DB = (-15.0, 3.0)  # level of other speech beside a keyword, relative to that
_ALONE_DB = (-60.0, -15.0)  # level of noise alone, relative to full scale
_FADE = 0.01  # s
_LEAST = 1e-5  # root mean square of a recording that counts as silent


@dataclass(frozen=True)
class _Window:
    """What is in a window.

    Attributes:
        word: the keyword; None: there is none.
        whole: whether all of it is in the window.
        talk: other speech of the window's length; None: noise alone.
    """

    word: Cut | None = None
    whole: bool = True
    talk: Cut | None = None


class KeywordWindows(Mix):
    """Windows made of corpora of keywords and of other speech.

    Args:
        corpora, weights: see `Mix`. An utterance of a corpus of keywords that has word times (`words`) is divided into its words.
        background: names of the corpora of other speech, which are cut into windows with the text `_unknown_`; sentences in which a text of
            the keywords stands are left out.
        window: length of a window, s.
        context: share of the windows with a keyword in which other speech stands beside it.
        partial: windows with the text `_unknown_` that hold less than half of a keyword, as a share of those with whole ones.
        silence: windows of noise alone with the text `_silence_`, as a share of all others.
        snr_db: lowest and highest ratio of a window's speech to the noise in it, dB.
        seed: seed of the random choices; another one makes other windows.
    """

    def __init__(
        self,
        corpora: Mapping[str, CorpusSource],
        weights: Mapping[str, float],
        background: Sequence[str],
        window: float,
        context: float,
        partial: float,
        silence: float,
        snr_db: Sequence[float],
        seed: int,
    ) -> None:
        super().__init__(corpora, weights)
        self.background = frozenset(background)
        self.window = window
        self.context = context
        self.partial = partial
        self.silence = silence
        self.snr_db = (snr_db[0], snr_db[1])
        self.seed = seed
        self._windows: dict[str, _Window] = {}

    def load(self, limit: int | None) -> Corpus:
        """List the windows of each split.

        Raises:
            DataError: a corpus cannot be loaded, or one of other speech does not consist of files.
        """
        corpus = super().load(limit)
        for name in sorted(self.background):
            if not self._loaded[name].from_files:
                raise DataError(f"data.background: {name} does not consist of audio files, so that no windows can be cut from it")
        words = {split: [word for cut in corpus.splits[split] if not self._is_talk(cut) for word in _words_of(cut)] for split in SPLITS}
        texts = {word.text for split in SPLITS for word in words[split]}
        for split in SPLITS:
            talk = [cut for cut in corpus.splits[split] if self._is_talk(cut) and not texts & set(cut.text.split())]
            corpus.splits[split] = self._split(split, words[split], [piece for cut in talk for piece in self._pieces(cut)])
        return Corpus(corpus.splits, corpus.skipped, read=self.read)

    def _is_talk(self, cut: Cut) -> bool:
        return cut.custom["corpus"] in self.background

    def _pieces(self, cut: Cut) -> list[Cut]:
        """Cut a recording into windows that do not overlap, from a place at its beginning that each copy has of its own."""
        rest = cut.duration - self.window
        if rest < 0:
            return []
        first = cut.start + self._generator(cut.id).uniform(0, min(rest, self.window))
        count = 1 + int((cut.start + rest - first) / self.window)
        return [
            replace(cut, id=f"{cut.id}@{index}", start=first + index * self.window, duration=self.window, text=UNKNOWN)
            for index in range(count)
        ]

    def _generator(self, name: str) -> np.random.Generator:
        """Make the generator of the random numbers of one name."""
        return np.random.default_rng(int.from_bytes(hashlib.blake2b(f"{self.seed}/{name}".encode(), digest_size=8).digest()))

    def _split(self, split: str, words: Sequence[Cut], talk: Sequence[Cut]) -> list[Cut]:
        """Plan the windows of a split."""
        rng = np.random.default_rng([self.seed, SPLITS.index(split)])
        windows = []
        for word in words:
            beside = talk[int(rng.integers(len(talk)))] if talk and rng.random() < self.context else None
            windows.append(self._planned(word, word.id, word.text, _Window(word, True, beside)))
            if rng.random() < self.partial:
                windows.append(self._planned(word, f"{word.id}/part", UNKNOWN, _Window(word, False, beside)))
        windows += [self._planned(piece, piece.id, UNKNOWN, _Window(talk=piece)) for piece in talk]
        rate = windows[0].sample_rate if windows else 0
        for index in range(round(self.silence * len(windows))):
            blank = Cut(f"{SILENCE}/{split}-{index}", SILENCE, self.window, rate)
            windows.append(self._planned(blank, blank.id, SILENCE, _Window()))
        return windows

    def _planned(self, cut: Cut, name: str, text: str, window: _Window) -> Cut:
        self._windows[name] = window
        custom = {"corpus": cut.custom["corpus"]} if "corpus" in cut.custom else NO_CUSTOM
        return Cut(name, text, self.window, cut.sample_rate, cut.speaker, custom=custom)

    def read(self, cut: Cut, rate: int) -> Audio:
        """Make the samples (N,) of a window."""
        plan = self._windows[cut.id]
        rng = self._generator(cut.id)
        count = samples_in(self.window, rate)
        talk = _fitted(self._read(plan.talk, rate), count) if plan.talk is not None else np.zeros(count, dtype=np.float32)
        if plan.word is None:
            out, level = talk, _level(talk)
        else:
            word = self._read(plan.word, rate)
            level = _level(word)
            talk = talk * np.float32(level / _level(talk) * 10 ** (rng.uniform(*_CONTEXT_DB) / 20))
            out = _placed(word, talk, rate, rng) if plan.whole else _cut_off(word, talk, rate, rng)
        noise = _noise(count, rng)
        decibels = rng.uniform(*self.snr_db)
        loudness = level * 10 ** (-decibels / 20) if plan.word or plan.talk else 10 ** (rng.uniform(*_ALONE_DB) / 20)
        mixed: Audio = (out + np.float32(loudness) * noise).astype(np.float32)
        limited: Audio = mixed / np.float32(max(1.0, float(np.abs(mixed).max())))
        return limited

    def _read(self, cut: Cut, rate: int) -> Audio:
        return super().read(cut, rate)


def _words_of(cut: Cut) -> list[Cut]:
    """Return the words of an utterance that has word times, and any other utterance as it is."""
    words = []
    for index, entry in enumerate(cut.custom.get("words") or ()):
        if isinstance(entry, Mapping) and {"word", "start", "end"} <= set(entry):
            start, end = max(0.0, float(entry["start"])), min(float(entry["end"]), cut.duration)
            if start < end:
                words.append(replace(cut, id=f"{cut.id}-{index}", text=str(entry["word"]), start=cut.start + start, duration=end - start))
    return words or [cut]


def _level(samples: Audio) -> float:
    return max(_LEAST, float(np.sqrt(np.mean(samples.astype(np.float64) ** 2))))


def _fitted(samples: Audio, count: int) -> Audio:
    fitted: Audio = np.pad(samples[:count], (0, max(0, count - len(samples))))
    return fitted


def _placed(word: Audio, talk: Audio, rate: int, rng: np.random.Generator) -> Audio:
    """Put a whole word at a random place of other speech, which is silent there; of one that is longer the middle stays."""
    out = talk.copy()
    if len(word) >= len(out):
        start = (len(word) - len(out)) // 2
        return word[start : start + len(out)].copy()
    start = int(rng.integers(len(out) - len(word) + 1))
    _silence(out, start, start + len(word), rate)
    out[start : start + len(word)] += word
    return out


def _cut_off(word: Audio, talk: Audio, rate: int, rng: np.random.Generator) -> Audio:
    """Put the beginning of a word at the end of other speech, or the end of a word at its beginning."""
    out = talk.copy()
    heard = min(len(out), max(1, round(rng.uniform(*_HEARD) * len(word))))
    if rng.random() < 0.5:
        _silence(out, 0, heard, rate)
        out[:heard] += word[len(word) - heard :]
    else:
        _silence(out, len(out) - heard, len(out), rate)
        out[len(out) - heard :] += word[:heard]
    return out


def _silence(samples: Audio, start: int, end: int, rate: int) -> None:
    """Silence a part of samples in place, with a fade on either side."""
    fade = round(_FADE * rate)
    distance = np.maximum(np.maximum(start - np.arange(len(samples)), np.arange(len(samples)) - end + 1), 0)
    samples *= np.minimum(1, distance / max(1, fade)).astype(np.float32)


def _noise(count: int, rng: np.random.Generator) -> Audio:
    """Draw noise (N,) between white and brown, of a root mean square of 1."""
    spectrum = np.fft.rfft(rng.standard_normal(count))
    spectrum *= np.maximum(np.arange(len(spectrum)), 5) ** -rng.uniform(0, 1)  # amplitudes; brown noise falls as 1 / f
    samples: Audio = np.fft.irfft(spectrum, count).astype(np.float32)
    return samples / np.float32(_level(samples))
