"""What is done to every transcript before anything else sees it: the ordered list `data.normalize`.

The references that errors are counted against are the normalised ones. `python -m speechtrain.inspect` shows ten examples.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import partial

from speechtrain.errors import ConfigError, Problem, did_you_mean

_NUMBER = re.compile(r"(?<![\w.,])\d+(?:[.,]\d+)*(?![\w])")
_KEPT_MARKS = "'-"
"""What `punctuation` leaves inside words: the apostrophe and the hyphen belong to their spelling."""


def spaces(text: str) -> str:
    """Runs of white space as one space, none at the ends."""
    return " ".join(text.split())


def quotes(text: str) -> str:
    """Typographic apostrophes and quotation marks as their ASCII ones, dashes as hyphens."""
    return text.translate(_PLAIN)


_PLAIN = str.maketrans({"’": "'", "‘": "'", "ʼ": "'", "`": "'", "“": '"', "”": '"', "„": '"', "«": '"', "»": '"', "‐": "-", "‑": "-"})


def punctuation(text: str) -> str:
    """Without punctuation and symbols (Unicode categories P and S), but for apostrophes and hyphens inside words.

    Combining marks stay: they are letters' parts in many scripts.
    """
    found = []
    for index, char in enumerate(text):
        inside = 0 < index < len(text) - 1 and _of_word(text[index - 1]) and _of_word(text[index + 1])
        if unicodedata.category(char)[0] not in "PS" or (char in _KEPT_MARKS and inside):
            found.append(char)
        else:
            found.append(" ")
    return spaces("".join(found))


def _of_word(char: str) -> bool:
    return unicodedata.category(char)[0] in "LMN"


def diacritics(text: str) -> str:
    """Without combining marks: é as e, ü as u. Tone marks and vowel points go as well."""
    apart = unicodedata.normalize("NFD", text)
    return unicodedata.normalize("NFC", "".join(char for char in apart if not unicodedata.combining(char)))


def numbers(text: str, language: str) -> str:
    """Figures as words of a language (`num2words`); years and ordinals are read as plain numbers."""
    from num2words import num2words

    def spoken(match: re.Match[str]) -> str:
        figure = match[0]
        whole, _, fraction = figure.replace(",", "").partition(".") if "," in figure and "." in figure else figure.partition(".")
        value = whole.replace(",", "")
        return str(num2words(f"{value}.{fraction}" if fraction else int(value), lang=language))

    return _NUMBER.sub(spoken, text)


STEPS: dict[str, Callable[[str], str]] = {
    **{form.lower(): partial(unicodedata.normalize, form) for form in ("NFC", "NFD", "NFKC", "NFKD")},
    "lowercase": str.lower,
    "uppercase": str.upper,
    "casefold": str.casefold,
    "quotes": quotes,
    "punctuation": punctuation,
    "diacritics": diacritics,
    "spaces": spaces,
}
"""Steps by their name in the config; besides there are `numbers:LANGUAGE` and `replace:PATTERN:REPLACEMENT`."""


def normalizer(steps: Sequence[str]) -> Callable[[str], str]:
    """All steps, in order.

    Raises:
        ConfigError: a step is not known, or a pattern is no regular expression.
    """
    functions = [_step(str(step)) for step in steps]

    def normalize(text: str) -> str:
        for function in functions:
            text = function(text)
        return text

    return normalize


def _step(step: str) -> Callable[[str], str]:
    name, _, rest = step.partition(":")
    if step in STEPS:
        return STEPS[step]
    if name == "replace" and ":" in rest:
        pattern, _, replacement = rest.rpartition(":")
        try:
            return partial(re.compile(pattern).sub, replacement)
        except re.error as error:
            raise ConfigError([Problem("data.normalize", f"'{pattern}' is no regular expression ({error})", "mend it")]) from None
    if name == "numbers" and rest:
        from num2words import CONVERTER_CLASSES

        if rest in CONVERTER_CLASSES:
            return partial(numbers, language=rest)
        raise ConfigError([Problem("data.normalize", f"num2words has no language '{rest}'", did_you_mean(rest, list(CONVERTER_CLASSES)))])
    known = [*STEPS, "numbers:en", "replace:PATTERN:REPLACEMENT"]
    raise ConfigError([Problem("data.normalize", f"there is no step '{step}'", did_you_mean(name, known))])
