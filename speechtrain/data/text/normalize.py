"""Normalisation of every transcript, before anything else sees it: the ordered list of steps `data.normalize`.

The references that errors are counted against are the normalised ones. `python -m speechtrain.inspect` shows ten examples.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from speechtrain.errors import ConfigError, Problem, did_you_mean

_NUMBER = re.compile(r"(?<![\w.,])\d+(?:[.,]\d+)*(?![\w])")
_ONE_NUMBER = re.compile(r"(?:\d+|\d{1,3}(?:,\d{3})+)(?:\.\d+)?")
"""A number with commas between thousands or without; dates, versions and addresses, such as 24.12.2025, are several."""
_MOST_FIGURES = 27
"""Figures of the longest number that has a name; num2words raises for larger ones in some languages."""
_FEWER_FIGURES = {"am": 6}
"""The same for languages in which num2words does not come to an end."""
_INNER_MARKS = "'-"
"""Marks that `punctuation` leaves inside words: the apostrophe and the hyphen belong to their spelling."""


def spaces(text: str) -> str:
    """Replace runs of white space by one space, and remove it at the ends."""
    return " ".join(text.split())


def quotes(text: str) -> str:
    """Replace typographic apostrophes and quotation marks by ASCII ones, and dashes by hyphens."""
    return text.translate(_ASCII_QUOTES)


_ASCII_QUOTES = str.maketrans(
    {"’": "'", "‘": "'", "ʼ": "'", "`": "'", "“": '"', "”": '"', "„": '"', "«": '"', "»": '"', "‐": "-", "‑": "-"}
)


def punctuation(text: str) -> str:
    """Remove punctuation and symbols (Unicode categories P and S), except apostrophes and hyphens inside words.

    Combining marks stay: they are parts of letters in many scripts.
    """
    chars = []
    for index, char in enumerate(text):
        inside = 0 < index < len(text) - 1 and _is_word_char(text[index - 1]) and _is_word_char(text[index + 1])
        if unicodedata.category(char)[0] not in "PS" or (char in _INNER_MARKS and inside):
            chars.append(char)
        else:
            chars.append(" ")
    return spaces("".join(chars))


def _is_word_char(char: str) -> bool:
    return unicodedata.category(char)[0] in "LMN"


def diacritics(text: str) -> str:
    """Remove combining marks, so that é becomes e and ü becomes u; tone marks and vowel points go as well."""
    decomposed = unicodedata.normalize("NFD", text)
    return unicodedata.normalize("NFC", "".join(char for char in decomposed if not unicodedata.combining(char)))


def invisible(text: str) -> str:
    """Remove characters that are not seen: of zero width, soft hyphens, byte order marks, marks of writing direction, variation selectors.

    The two joiners go as well, which change how letters of Persian or Hindi look.
    """
    return "".join(char for char in text if unicodedata.category(char) != "Cf" and not _is_variation(char))


def _is_variation(char: str) -> bool:
    return "\ufe00" <= char <= "\ufe0f" or "\U000e0100" <= char <= "\U000e01ef"


def visible(text: str) -> str:
    """Return a text with the names of characters that are not seen, as `<SOFT HYPHEN>`, in place of them."""
    return "".join(
        f"<{unicodedata.name(char, f'U+{ord(char):04X}')}>" if _is_unseen(char) or (not index and unicodedata.combining(char)) else char
        for index, char in enumerate(text)
    )


def _is_unseen(char: str) -> bool:
    return (unicodedata.category(char) in ("Cc", "Cf", "Zl", "Zp", "Zs") and char != " ") or _is_variation(char)


_DOTTED = ("tr", "az")
"""Languages in which ı and I, and i and İ, are the small and the capital form of a letter."""


def lowercase_dotted(text: str) -> str:
    """Replace capital letters by small ones as Turkish and Azerbaijani have them."""
    return text.translate({ord("I"): "ı", ord("İ"): "i"}).lower()


def uppercase_dotted(text: str) -> str:
    """Replace small letters by capital ones as Turkish and Azerbaijani have them."""
    return text.translate({ord("i"): "İ", ord("ı"): "I"}).upper()


def numbers(text: str, language: str) -> str:
    """Write figures as words of a language (`num2words`); years and ordinals are read as cardinal numbers.

    Numbers with several points, such as dates, are read one after the other, and those too long for a name figure by figure.
    """
    from num2words import num2words

    most = _FEWER_FIGURES.get(language, _MOST_FIGURES)

    def spoken(figures: str) -> str:
        if len(figures) <= most:
            with contextlib.suppress(ArithmeticError, AttributeError, LookupError, NotImplementedError, TypeError, ValueError):
                return str(num2words(figures if "." in figures else int(figures), lang=language))
        return " ".join(str(num2words(int(each), lang=language)) for each in figures if each.isdigit())

    def read(match: re.Match[str]) -> str:
        found = match[0]
        each = [found.replace(",", "")] if _ONE_NUMBER.fullmatch(found) else re.split("[.,]", found)
        return " ".join(map(spoken, each))

    return _NUMBER.sub(read, text)


STEPS: dict[str, Callable[[str], str]] = {
    **{form.lower(): partial(unicodedata.normalize, form) for form in ("NFC", "NFD", "NFKC", "NFKD")},
    "lowercase": str.lower,
    "uppercase": str.upper,
    "casefold": str.casefold,
    "quotes": quotes,
    "punctuation": punctuation,
    "diacritics": diacritics,
    "invisible": invisible,
    **{f"lowercase:{language}": lowercase_dotted for language in _DOTTED},
    **{f"uppercase:{language}": uppercase_dotted for language in _DOTTED},
    "spaces": spaces,
}
"""Steps by their name in the config; two more take an argument, `numbers:LANGUAGE` and `replace:PATTERN:REPLACEMENT`."""


def normalizer(steps: Sequence[str]) -> Callable[[str], str]:
    """Make one function of all steps, which applies them in order.

    Raises:
        ConfigError: a step is unknown, or a pattern is not a regular expression.
    """
    functions = [_step(str(step)) for step in steps]

    def normalize(text: str) -> str:
        for function in functions:
            text = function(text)
        return text

    return normalize


_KEEP_PLAIN = frozenset(("nfc", "nfd", "nfkc", "nfkd", "spaces"))
"""Steps that leave texts of ASCII as they are, but for white space."""
_WHITE = b"\t\v\f\r\x1c\x1d\x1e\x1f"
"""White space of ASCII, without spaces and line feeds."""


def changes_nothing(steps: Sequence[str], texts: Iterable[str]) -> bool:
    """Return whether it is plain that steps leave all texts as they are, which is found out much faster than by their doing so."""
    if not set(steps) <= _KEEP_PLAIN:
        return False
    left = iter(texts)
    while some := list(itertools.islice(left, 1024)):
        if _plain(some) is None:
            return False
    return True


def count_words(texts: Iterable[str]) -> int:
    """Count the words of texts, as `str.split` divides them."""
    count, left = 0, iter(texts)
    while some := list(itertools.islice(left, 1024)):
        whole = _plain(some)
        count += sum(len(text.split()) for text in some) if whole is None else whole.count(b" ") + len(some) - some.count("")
    return count


def _plain(texts: Sequence[str]) -> bytes | None:
    """Return texts with a line feed around each if they are ASCII, and single spaces between words all of their white space."""
    whole = "\n".join(["", *texts, ""]).encode(errors="surrogatepass")
    plain = whole.isascii() and whole.count(b"\n") == len(texts) + 1 and len(whole.translate(None, _WHITE)) == len(whole)
    return whole if plain and not any(blanks in whole for blanks in (b"  ", b" \n", b"\n ")) else None


def _step(step: str) -> Callable[[str], str]:
    name, _, rest = step.partition(":")
    if step in STEPS:
        return STEPS[step]
    if name == "replace" and ":" in rest:
        pattern, _, replacement = rest.rpartition(":")
        try:
            replace = partial(re.compile(pattern).sub, replacement)
            replace("")  # parses the replacement
        except (re.error, IndexError, OverflowError, RecursionError) as error:
            message = f"'{pattern}' and '{replacement}' are no regular expression and its replacement ({error})"
            raise ConfigError([Problem("data.normalize", message, "correct it")]) from None
        return replace
    if name == "numbers" and rest:
        from num2words import CONVERTER_CLASSES

        if rest in CONVERTER_CLASSES:
            return partial(numbers, language=rest)
        raise ConfigError([Problem("data.normalize", f"num2words has no language '{rest}'", did_you_mean(rest, list(CONVERTER_CLASSES)))])
    known = [*STEPS, "numbers:en", "replace:PATTERN:REPLACEMENT"]
    raise ConfigError([Problem("data.normalize", f"there is no step '{step}'", did_you_mean(name, known))])
