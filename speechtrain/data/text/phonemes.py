"""`tokenizer=phoneme`: words become phonemes by a lexicon in CMUdict's format or by eSpeak NG, and the model is trained on these."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

from speechtrain.config.extras import require
from speechtrain.data.text.base import BLANK, Tokenizer
from speechtrain.data.text.lines import read_lines
from speechtrain.errors import DataError
from speechtrain.files import user_path
from speechtrain.processes import fresh

_VARIANT = re.compile(r"\(\d+\)$")
_STRESS = re.compile(r"[012]$")
_WITHOUT_STRESS = str.maketrans("", "", "ˈˌ")


class PhonemeTokenizer(Tokenizer):
    """Maps each phoneme to a label; errors are counted in phonemes too.

    Args:
        texts: training texts, in words.
        lexicon: a file of lines `WORD  PH ON EM ES`; of variants, `WORD(2)`, the first is used. None: eSpeak NG pronounces.
        language: language code of eSpeak NG, such as `en-us`; ignored with a lexicon.
        stress: keep the digits of vowels (`AH0`), or eSpeak's stress marks.
        vocabulary: phonemes of a trained model, instead of those of the training texts.

    Raises:
        DataError: the lexicon cannot be read, or eSpeak NG is not installed.
    """

    counts_phonemes = True

    def __init__(
        self,
        texts: Iterable[str] = (),
        *,
        lexicon: str | None = None,
        language: str = "en-us",
        stress: bool = False,
        vocabulary: Sequence[str] | None = None,
    ) -> None:
        self.stress = stress
        self.language = language
        self._lexicon_file = user_path(lexicon) if lexicon is not None else None
        self._pronunciations: dict[str, tuple[str, ...]] = {}
        training_texts = list(texts)
        if self._lexicon_file is None and training_texts:
            self._ask_espeak({word for text in training_texts for word in text.split()})
        if vocabulary is None:
            vocabulary = ["", *sorted({phoneme for text in training_texts for phoneme in self.pronounce(text).split()})]
        self.vocabulary = list(vocabulary)
        self._labels = {phoneme: label for label, phoneme in enumerate(self.vocabulary) if label != BLANK}

    def pronounce(self, text: str) -> str:
        """Convert a text in words to phonemes separated by spaces; words without a pronunciation are left out."""
        return " ".join(phoneme for word in text.split() for phoneme in self._phonemes_of(word) or ())

    reference = pronounce

    def encode(self, text: str) -> list[int]:
        """Convert a text in words to labels; words without a pronunciation are left out."""
        return [self._labels[phoneme] for phoneme in self.pronounce(text).split() if phoneme in self._labels]

    def decode(self, labels: Sequence[int]) -> str:
        """Convert labels without blanks to phonemes separated by spaces."""
        return " ".join(self.vocabulary[label] for label in labels)

    def unknown(self, text: str) -> list[str]:
        """List the words of a text that have no pronunciation, or one with a phoneme that the training texts lack."""
        pronounced_words = ((word, self._phonemes_of(word)) for word in text.split())
        return [word for word, phonemes in pronounced_words if not phonemes or any(each not in self._labels for each in phonemes)]

    @cached_property
    def _lexicon(self) -> dict[str, tuple[str, ...]]:
        """Return the lexicon, read when a word is looked up first: a trained model that only decodes needs none."""
        assert self._lexicon_file is not None
        return read_lexicon(self._lexicon_file, stress=self.stress)

    def _phonemes_of(self, word: str) -> tuple[str, ...] | None:
        if self._lexicon_file is not None:
            return self._lexicon.get(word) or self._lexicon.get(word.upper()) or self._lexicon.get(word.lower())
        if word not in self._pronunciations:
            self._ask_espeak({word})
        return self._pronunciations[word]

    def _ask_espeak(self, words: set[str]) -> None:
        new = sorted(words - set(self._pronunciations))
        for word, phonemes in zip(new, pronounce_words(new, self.language), strict=True):
            self._pronunciations[word] = tuple((phonemes if self.stress else phonemes.translate(_WITHOUT_STRESS)).split())


def read_lexicon(path: Path, *, stress: bool) -> dict[str, tuple[str, ...]]:
    """Read the phonemes of each word's first pronunciation.

    Args:
        path: lines `WORD  PH ON EM ES`, separated by spaces or tabs; those that begin with `;;;` are comments.
        stress: keep the digit behind vowels.

    Raises:
        DataError: the file cannot be read, or a word has no phonemes.
    """
    lines = read_lines(path, "give a lexicon in UTF-8 with a word and its phonemes a line")
    lexicon: dict[str, tuple[str, ...]] = {}
    for number, line in enumerate(lines, start=1):
        fields = line.partition("#")[0].split() if not line.startswith(";;;") else []
        if not fields:
            continue
        if len(fields) == 1:
            raise DataError(f"{path}:{number}: '{fields[0]}' has no phonemes\n    -> a word and its phonemes a line")
        phonemes = fields[1:] if stress else [_STRESS.sub("", phoneme) for phoneme in fields[1:]]
        lexicon.setdefault(_VARIANT.sub("", fields[0]), tuple(phonemes))
    if not lexicon:
        raise DataError(f"{path}: holds no words\n    -> a word and its phonemes a line")
    return lexicon


def pronounce_words(words: Sequence[str], language: str) -> list[str]:
    """Ask eSpeak NG, in a process of its own, for the phonemes of words, in the IPA and separated by spaces.

    Raises:
        DataError: eSpeak NG is not installed or has no such language.
    """
    if not words:
        return []
    require("tokenizer=phoneme without a lexicon", ("espeakng_loader",), otherwise="give tokenizer.lexicon")
    try:
        return fresh.call(_pronounce_here, list(words), language, quiet=True)
    except ValueError:
        raise DataError(f"tokenizer.language={language}: eSpeak NG has no such language\n    -> for example en-us, en-gb, de, cy") from None


def _pronounce_here(words: list[str], language: str) -> list[str]:
    """Ask eSpeak NG's library, which stays loaded in this process; it is under GPL-3, so this is called in a fresh one.

    Raises:
        ValueError: there is no such language.
    """
    import ctypes

    import espeakng_loader

    synchronous, utf8, ipa_with_underscores = 2, 1, 2 | (ord("_") << 8)  # from speak_lib.h
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    library.espeak_TextToPhonemes.restype = ctypes.c_char_p
    library.espeak_Initialize(synchronous, 0, espeakng_loader.get_data_path().encode(), 0)
    if library.espeak_SetVoiceByName(language.encode()) != 0:
        raise ValueError(f"eSpeak NG has no language '{language}'")
    pronunciations = []
    for word in words:
        text = ctypes.c_char_p(word.encode())
        parts = []
        while text.value:
            parts.append(library.espeak_TextToPhonemes(ctypes.byref(text), utf8, ipa_with_underscores).decode())
        pronunciations.append(" ".join(" ".join(parts).replace("_", " ").split()))
    library.espeak_Terminate()
    return pronunciations
