"""`tokenizer=phoneme`: words become phonemes, by a lexicon in CMUdict's form or by eSpeak NG, and the model is trained on these."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

from speechtrain.data.text.tokenizers import BLANK
from speechtrain.errors import DataError
from speechtrain.processes import fresh

_VARIANT = re.compile(r"\(\d+\)$")
_STRESS = re.compile(r"[012]$")


class PhonemeTokenizer:
    """One label a phoneme; the reference that errors are counted against are the phonemes too.

    Args:
        texts: training texts, in words.
        lexicon: a file of lines `WORD  PH ON EM ES`; of variants, `WORD(2)`, the first is taken. None: eSpeak NG pronounces.
        language: of eSpeak NG, such as `en-us`; not looked at with a lexicon.
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
        self._file = Path(lexicon).expanduser() if lexicon is not None else None
        self._spoken: dict[str, tuple[str, ...]] = {}
        known = list(texts)
        if self._file is None and known:
            self._speak({word for text in known for word in text.split()})
        if vocabulary is None:
            vocabulary = ["", *sorted({phoneme for text in known for phoneme in self.pronounce(text).split()})]
        self.vocabulary = list(vocabulary)
        self._labels = {phoneme: label for label, phoneme in enumerate(self.vocabulary) if label != BLANK}

    def pronounce(self, text: str) -> str:
        """The phonemes of a text with spaces in between; words without a pronunciation are left out."""
        return " ".join(phoneme for word in text.split() for phoneme in self._of(word) or ())

    reference = pronounce

    def encode(self, text: str) -> list[int]:
        """Labels of a text in words."""
        return [self._labels[phoneme] for phoneme in self.pronounce(text).split() if phoneme in self._labels]

    def decode(self, labels: Sequence[int]) -> str:
        """Phonemes of labels without blanks."""
        return " ".join(self.vocabulary[label] for label in labels)

    def unknown(self, text: str) -> list[str]:
        """Words of a text that have no pronunciation, or one with a phoneme that the training text does not have."""
        return [word for word in text.split() if not (found := self._of(word)) or any(each not in self._labels for each in found)]

    @cached_property
    def _lexicon(self) -> dict[str, tuple[str, ...]]:
        """Read when a word is looked up: a trained model that only decodes needs no lexicon."""
        assert self._file is not None
        return read_lexicon(self._file, stress=self.stress)

    def _of(self, word: str) -> tuple[str, ...] | None:
        if self._file is not None:
            return self._lexicon.get(word) or self._lexicon.get(word.upper()) or self._lexicon.get(word.lower())
        if word not in self._spoken:
            self._speak({word})
        return self._spoken[word]

    def _speak(self, words: set[str]) -> None:
        wanted = sorted(words - set(self._spoken))
        for word, phonemes in zip(wanted, pronounced(wanted, self.language), strict=True):
            kept = phonemes if self.stress else phonemes.replace("ˈ", "").replace("ˌ", "")
            self._spoken[word] = tuple(part for part in kept.split() if part)


def read_lexicon(path: Path, *, stress: bool) -> dict[str, tuple[str, ...]]:
    """Words and the phonemes of their first pronunciation.

    Args:
        path: lines `WORD  PH ON EM ES`, separated by spaces or tabs; those that begin with `;;;` are remarks.
        stress: keep the digit behind vowels.

    Raises:
        DataError: the file cannot be read, or a word has no phonemes.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})\n    -> give a lexicon in UTF-8 with a word and its phonemes a line") from None
    found: dict[str, tuple[str, ...]] = {}
    for number, line in enumerate(lines, start=1):
        fields = line.partition("#")[0].split() if not line.startswith(";;;") else []
        if not fields:
            continue
        if len(fields) == 1:
            raise DataError(f"{path}:{number}: '{fields[0]}' has no phonemes\n    -> a word and its phonemes a line")
        phonemes = fields[1:] if stress else [_STRESS.sub("", phoneme) for phoneme in fields[1:]]
        found.setdefault(_VARIANT.sub("", fields[0]), tuple(phonemes))
    if not found:
        raise DataError(f"{path}: holds no words\n    -> a word and its phonemes a line")
    return found


def pronounced(words: Sequence[str], language: str) -> list[str]:
    """Phonemes of words as eSpeak NG has them, in the IPA, with spaces in between; in a process of its own.

    Raises:
        DataError: eSpeak NG is not installed or has no such language.
    """
    if not words:
        return []
    if importlib.util.find_spec("espeakng_loader") is None:
        raise DataError(
            "tokenizer=phoneme without a lexicon asks eSpeak NG, which is not installed\n"
            "    -> pip install 'speechtrain[synth]', or give tokenizer.lexicon"
        )
    try:
        return fresh.call(_pronounced_here, list(words), language, quiet=True)
    except ValueError:
        raise DataError(f"tokenizer.language={language}: eSpeak NG has no such language\n    -> for example en-us, en-gb, de, cy") from None


def _pronounced_here(words: list[str], language: str) -> list[str]:
    """Ask the library of eSpeak NG, which stays in this process: `pronounced` calls it in a fresh one, as it is under GPL-3.

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
