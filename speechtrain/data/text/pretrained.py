"""`tokenizer=pretrained`: the vocabulary of a checkpoint's own head, in whose order of outputs the blank may stand anywhere."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from speechtrain.config.pretrained import Checkpoint
from speechtrain.data.text.base import Tokenizer
from speechtrain.errors import ConfigError, Problem, first_line

_CLEANED = {" .": ".", " ?": "?", " !": "!", " ,": ",", " ' ": "'"} | {f" {end}": end for end in ("n't", "'m", "'s", "'ve", "'re")}
"""What Transformers' `clean_up_tokenization` replaces, in its order."""


class PretrainedTokenizer(Tokenizer):
    """Tokens of a checkpoint: characters with a token between words, or pieces of words that its `tokenizer.json` describes.

    Args:
        texts: ignored.
        path: the checkpoint, see `model.path`.
        revision: see `model.revision`.
        language: see `model.language`.
        definition: what was read of the checkpoint before, see `config.pretrained.Checkpoint.tokens`.
        vocabulary: ignored; it is that of the definition.

    Attributes:
        outputs: for each label the number of the checkpoint's output that it is.

    Raises:
        ConfigError: the checkpoint has no vocabulary, or one of another kind.
    """

    def __init__(
        self,
        texts: Iterable[str] = (),  # noqa: ARG002
        *,
        path: str | None = None,
        revision: str | None = None,
        language: str | None = None,
        definition: Mapping[str, Any] | None = None,
        vocabulary: Sequence[str] | None = None,  # noqa: ARG002
    ) -> None:
        if definition is None:
            definition = Checkpoint.find(path, revision, key="tokenizer.path").tokens(language)
        tokens, blank = list(definition["tokens"]), int(definition["blank"])
        outputs = [blank, *(number for number in range(len(tokens)) if number != blank)]
        self.outputs: Sequence[int] = outputs
        self._lowercase, self._clean_up = bool(definition["lowercase"]), bool(definition["clean_up"])
        self._texts = [" " if token == definition["delimiter"] and not definition["pieces"] else token for token in tokens]
        self.vocabulary = _distinct([self._shown(self._texts[number]) for number in self.outputs[1:]])
        self._labels = {number: label for label, number in enumerate(self.outputs)}
        self._pieces: Any = None
        self._special = set(definition["special"].values())
        if definition["pieces"]:
            import tokenizers

            try:
                self._pieces = tokenizers.Tokenizer.from_str(definition["pieces"])
            except Exception as error:  # tokenizers raises no other
                message = f"the tokenizer.json of the checkpoint cannot be used ({first_line(error, most=120)})"
                fix = "give a checkpoint whose tokenizer.json is whole, or train a new head, for example with tokenizer=char"
                raise ConfigError([Problem("tokenizer.definition", message, fix)]) from error
        self._numbers = {self._texts[number]: number for number in reversed(self.outputs[1:]) if tokens[number] not in self._special}
        longest_first = sorted(self._numbers, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)", re.DOTALL)

    def _shown(self, token: str) -> str:
        return token.lower() if self._lowercase else token

    def _folded(self, text: str) -> str:
        return text.upper() if self._lowercase else text  # as the library does: such checkpoints have capital letters

    def encode(self, text: str) -> list[int]:
        """Convert a text to labels; what is in no token is left out."""
        if self._pieces is not None:
            numbers: list[int] = self._pieces.encode(text, add_special_tokens=False).ids
            return [self._labels[number] for number in numbers if number in self._labels and self._texts[number] not in self._special]
        return [self._labels[self._numbers[token]] for token in self._pattern.findall(self._folded(text))]

    def decode(self, labels: Sequence[int]) -> str:
        """Convert labels without blanks to text, as the checkpoint's own tokenizer does with `group_tokens=False`."""
        numbers = [self.outputs[label] for label in labels]
        if self._pieces is not None:
            text = str(self._pieces.decode(numbers, skip_special_tokens=False))
        else:
            text = self._shown("".join(self._texts[number] for number in numbers).strip())
            for before, after in _CLEANED.items() if self._clean_up else ():
                text = text.replace(before, after)
        return text

    def unknown(self, text: str) -> list[str]:
        """List the characters of a text that are in no token."""
        if self._pieces is None:
            return list(self._pattern.sub("", self._folded(text)))
        encoded = self._pieces.encode(text, add_special_tokens=False)
        return [
            text[start:end]
            for number, (start, end) in zip(encoded.ids, encoded.offsets, strict=True)
            if number not in self._labels or self._texts[number] in self._special
        ]


def _distinct(tokens: Iterable[str]) -> list[str]:
    """Return the blank and tokens by which labels can be told apart: those that stand there twice get a number."""
    found = {"": 0}
    for token in tokens:
        name = token
        while name in found:
            name = f"{token}#{len(found)}"
        found[name] = len(found)
    return list(found)
