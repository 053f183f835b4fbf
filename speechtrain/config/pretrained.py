"""What a pretrained checkpoint's own files say, in the form of Hugging Face's hub: its architecture, its input and its tokens.

Only JSON is read here, and nothing of a checkpoint is run. A run keeps what was read in its config: its model needs the checkpoint no more.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from speechtrain.config.hub import HUB, download_command, fetched, language_of, local_problem
from speechtrain.config.plain import plain_mapping
from speechtrain.config.schemas.models import PRETRAINED
from speechtrain.config.schemas.sound import extractor_problem
from speechtrain.errors import ConfigError, Problem, UserError, first_line
from speechtrain.files import is_file, is_folder, user_path

log = logging.getLogger(__name__)

LFS_POINTER = b"version https://git-lfs"
"""What a file begins with whose content Git LFS has not fetched."""

_CONFIG, _PROCESSOR = "config.json", "processor_config.json"
_VOCABULARY, _TOKENIZER, _TOKENIZER_CONFIG = "vocab.json", "tokenizer.json", "tokenizer_config.json"
_JSON = (_CONFIG, _PROCESSOR, "preprocessor_config.json", _VOCABULARY, _TOKENIZER, _TOKENIZER_CONFIG)
_JSON_OF_TOKENS = ("special_tokens_map.json", "added_tokens.json")
_INDEX = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_WHOLE = ("model.safetensors", "pytorch_model.bin")
_MOST_TOKENS = 65_536
_MOST_JSON = 64 << 20  # bytes; the vocabularies of a thousand languages are some megabytes
_OF_ONE_LIBRARY = (
    "auto_map",
    "architectures",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "quantization_config",
    "attn_implementation",
)
"""Keys of a `config.json` that say how a library loads it, and name code to run."""
FIX = "\n    -> give a checkpoint that its library wrote with save_pretrained"


@dataclass(frozen=True)
class Checkpoint:
    """The files of a pretrained checkpoint.

    Attributes:
        name: as the user wrote it.
        folder: where its files lie.
        key: the key that names it, for messages.
    """

    name: str
    folder: Path
    key: str = "model.path"

    @classmethod
    def find(cls, name: str | None, revision: str | None = None, *, key: str = "model.path") -> Checkpoint:
        """Find a checkpoint's folder, or fetch the files that describe it from the hub.

        Args:
            name: a folder, or a hub's `owner/name`, also with `hf://` before it.
            revision: branch, tag or commit on the hub; None: its main branch.
            key: the key that names it.

        Raises:
            ConfigError: there is no such folder, or it cannot be fetched.
        """
        if not name:
            raise ConfigError([Problem(key, "is not given", f"set {key}= to a checkpoint's folder, or to its name on the hub")])
        path = user_path(name)
        if is_folder(path):
            return cls(name, path.absolute(), key)
        if (problem := local_problem(name, key)) is not None:
            raise ConfigError([problem])
        return cls(name, fetched(name, revision, (*_JSON, *_JSON_OF_TOKENS), key), key)

    @property
    def commit(self) -> str | None:
        """Return the commit of a checkpoint that was fetched from the hub; None: it is a folder."""
        return None if is_folder(user_path(self.name)) else self.folder.name

    def weight_files(self, revision: str | None = None, language: str | None = None) -> list[Path]:
        """Return the files of weights, those of a language's adapter behind the others; of a hub's checkpoint they are fetched now.

        Raises:
            ConfigError: it has none, or none of the language.
        """
        if not is_folder(user_path(self.name)):
            adapters = [f"adapter.{language}.safetensors"] if language is not None else []
            for patterns in (["model*.safetensors", _INDEX[0]], ["pytorch_model*.bin", _INDEX[1]]):
                fetched(self.name, revision, [*patterns, *adapters], self.key)
                if any(self._files()):
                    break
        files = next(self._files(), [])
        if not files:
            message = f"{self.folder} has no {' and no '.join(_WHOLE)}"
            if is_folder(user_path(self.name)):
                raise self._error(message)
            raise self._error(message, f"fetch it where there is a network: {download_command(self.name, revision)}")
        if language is not None and (self.folder / f"adapter.{language}.safetensors").is_file():
            files = [*files, self.folder / f"adapter.{language}.safetensors"]
        elif language is not None:
            there = sorted(path.name.split(".")[1] for path in self.folder.glob("adapter.*.safetensors"))
            known = f"; it has {', '.join(there[:20])}" if there else ""
            raise ConfigError([Problem("model.language", f"{self.name} has no adapter.{language}.safetensors{known}", "give another")])
        return files

    def _files(self) -> Iterator[list[Path]]:
        """Yield the lists of files that hold all weights, safetensors first."""
        for whole, index in zip(_WHOLE, _INDEX, strict=True):
            if (self.folder / whole).is_file():
                yield [self.folder / whole]
            elif (content := self._json(index)) is not None:
                parts = content.get("weight_map")
                if not isinstance(parts, dict) or not parts:
                    raise self._error(f"{self.folder / index} names no files of weights")
                names = sorted({str(name) for name in parts.values()})
                if wrong := [name for name in names if Path(name).name != name or not (self.folder / name).is_file()]:
                    raise self._error(f"{index} names {wrong[0]!r:.80}, which is no file of {self.folder}")
                yield [self.folder / name for name in names]

    @cached_property
    def architecture(self) -> dict[str, Any]:
        """Return `config.json` without what says how a library loads it.

        Raises:
            ConfigError: it cannot be read, or describes another kind of model.
        """
        content = self._json(_CONFIG)
        if content is None:
            raise self._error(f"{self.folder} has no {_CONFIG}")
        kind = content.get("model_type")
        if kind not in PRETRAINED:
            what = f"describes a model of the kind {kind!r:.80}" if kind else "says no model_type"
            raise self._error(f"{self.folder / _CONFIG} {what}", f"give one of {', '.join(PRETRAINED)}")
        return self._plain(without_code(content), _CONFIG)

    @cached_property
    def extractor(self) -> dict[str, Any]:
        """Return what is said of the input: `preprocessor_config.json`, or the part of `processor_config.json`.

        Raises:
            ConfigError: neither is there, or the input is of another kind.
        """
        content = self._json("preprocessor_config.json") or (self._json(_PROCESSOR) or {}).get("feature_extractor")
        if not isinstance(content, dict):
            raise self._error(f"{self.folder} has neither preprocessor_config.json nor {_PROCESSOR} with a feature_extractor")
        default = "Wav2Vec2FeatureExtractor" if "do_normalize" in content else None
        kind = content.get("feature_extractor_type", default)
        found = {**content, "feature_extractor_type": kind}
        if (problem := extractor_problem(found)) is not None:
            raise self._error(f"the feature extractor of {self.folder} {problem[0]}", problem[1])
        return self._plain(found, "its feature extractor")

    def tokens(self, language: str | None = None) -> dict[str, Any]:
        """Return the tokens of the checkpoint's own head, and how texts are made of them.

        Args:
            language: that of a vocabulary that has several; None: the one that the checkpoint names.

        Returns:
            `tokens` in the order of the head's outputs; `blank`, the number of that one; `delimiter`, the token between words; `special`,
            tokens that no text has, by what they are for; `lowercase` and `clean_up`, what is done to a text; `pieces`, the content of
            `tokenizer.json` where that says how words are divided.

        Raises:
            ConfigError: there is no vocabulary, or one of another kind or another head.
        """
        try:
            return self._tokens(language)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            what = f"the vocabulary of {self.folder} cannot be read ({type(error).__name__}: {first_line(error, most=120)})"
            raise self._error(what) from error

    def _tokens(self, language: str | None) -> dict[str, Any]:
        """Return what `tokens` does, where the files hold what they are to hold."""
        settings = self._json(_TOKENIZER_CONFIG) or {}
        kind = str(settings.get("tokenizer_class", ""))
        if "Phoneme" in kind:
            raise self._error(f"{self.folder} has a {kind}, which needs a phonemizer", "train a new head with tokenizer=phoneme")
        numbers, pieces = self._numbers(language or settings.get("target_lang"))
        added = {str(each["content"]): int(number) for number, each in dict(settings.get("added_tokens_decoder", {})).items()}
        added |= {str(token): int(number) for token, number in (self._json("added_tokens.json") or {}).items()}
        special = {**(self._json("special_tokens_map.json") or {}), **settings}
        named = {name: _content_of(special.get(name), default) for name, default in _SPECIAL.items()}
        size = self.architecture.get("vocab_size")
        count = size if isinstance(size, int) and language is None and not self._several else max(numbers.values(), default=0) + 1
        self._check_numbers({**added, **numbers}, count, {*added, *named.values()})
        by_number = {number: token for token, number in (*added.items(), *numbers.items())}
        tokens = [by_number.get(number, named["unk_token"]) for number in range(count)]
        blank = numbers.get(named["pad_token"], added.get(named["pad_token"], self.architecture.get("pad_token_id")))
        if not isinstance(blank, int) or not 0 <= blank < count:
            raise self._error(f"the vocabulary of {self.folder} has no {named['pad_token']!r}, which stands for the blank")
        found = {
            "tokens": tokens,
            "blank": blank,
            "delimiter": str(settings.get("word_delimiter_token", "|")),
            "special": named,
            "lowercase": bool(settings.get("do_lower_case", False)),
            "clean_up": bool(settings.get("clean_up_tokenization_spaces", False)),
            "pieces": pieces,
        }
        return self._plain(found, "its vocabulary")

    def _check_numbers(self, numbers: Mapping[str, int], count: int, special: Collection[str]) -> None:
        """Check that a vocabulary is that of a head of `count` outputs; where some of them have no token, a warning says so.

        Raises:
            ConfigError: it has a token that the head has not.
        """
        if count > _MOST_TOKENS:
            raise self._error(f"the vocabulary of {self.folder} has the number {count - 1:,}, and {_MOST_TOKENS:,} tokens are the most")
        wrong = [token for token, number in numbers.items() if not 0 <= number < count and (number < 0 or token not in special)]
        if wrong:
            what = f"the vocabulary of {self.folder} has the token {wrong[0]!r:.40} with the number {numbers[wrong[0]]}"
            fix = "give the vocabulary of this head, or train a new head, for example with tokenizer=char"
            raise self._error(f"{what}, and the head of its {_CONFIG} has {count} outputs", fix)
        if missing := count - len({number for number in numbers.values() if number < count}):
            log.warning("%s: %d of the %d outputs of the head have no token in the vocabulary", self.name, missing, count)

    @cached_property
    def _several(self) -> bool:
        """Return whether the vocabulary has one for each of several languages."""
        content = self._json(_VOCABULARY) or {}
        return bool(content) and all(isinstance(each, dict) for each in content.values())

    def _numbers(self, language: str | None) -> tuple[dict[str, int], str | None]:
        """Return the number of each token, and the content of `tokenizer.json` where pieces of words are tokens."""
        if (content := self._json(_VOCABULARY)) is not None:
            if self._several:
                if language not in content:
                    there = f"{', '.join(sorted(content)[:20])}{' ...' * (len(content) > 20)}"
                    raise ConfigError([Problem("model.language", f"is {language}, and {self.name} has {there}", "give one of them")])
                content = content[language]
            return {str(token): int(number) for token, number in content.items()}, None
        if (content := self._json(_TOKENIZER)) is None:
            raise self._error(
                f"{self.folder} has no {_VOCABULARY} and no {_TOKENIZER}", "train a new head, for example with tokenizer=char"
            )
        vocabulary = dict(content.get("model", {})).get("vocab", {})
        numbers = {str(each[0]): number for number, each in enumerate(vocabulary)} if isinstance(vocabulary, list) else dict(vocabulary)
        numbers |= {str(each["content"]): int(each["id"]) for each in content.get("added_tokens", [])}
        return numbers, json.dumps(content, ensure_ascii=False).replace("${", "$\\u007b")  # which a config would take for an interpolation

    def _json(self, name: str) -> dict[str, Any] | None:
        """Read a file; None: it is not there.

        Raises:
            ConfigError: it is no JSON object.
        """
        path = self.folder / name
        if not is_file(path):
            return None
        try:
            if path.stat().st_size > _MOST_JSON:
                raise ValueError(f"it has more than {_MOST_JSON:,} bytes")
            text = path.read_bytes()
            if text.startswith(LFS_POINTER):
                raise self._error(f"{path} is a pointer of Git LFS, and not the file itself", f"run git lfs pull in {self.folder}")
            content = json.loads(text)
            if not isinstance(content, dict):
                raise TypeError(f"it holds a {type(content).__name__}, and must hold an object")
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise self._error(f"{path} cannot be read ({first_line(error, most=120)})") from error
        return content

    def _plain(self, content: Mapping[str, Any], what: str) -> dict[str, Any]:
        """Return what a config can hold as it is."""
        try:
            return plain_mapping(content, f"{self.folder}: {what}", fix=FIX)
        except UserError as error:
            message, _, fix = str(error).partition("\n    -> ")
            raise self._error(message, fix) from None

    def _error(
        self, message: str, fix: str = "give the folder that save_pretrained wrote, of the model and of its processor"
    ) -> ConfigError:
        return ConfigError([Problem(self.key, message, fix)])


_SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
"""The names of special tokens, with what they are where a checkpoint does not say."""


def is_checkpoint(name: str | Path) -> bool:
    """Return whether a name is that of a pretrained checkpoint's folder, or one on the hub that is marked as such."""
    text = language_of(name)[0]
    return text.startswith(HUB) or any(is_file(user_path(text) / name) for name in (_CONFIG, _WHOLE[0]))


def _content_of(token: object, default: str) -> str:
    """Return a special token, which files have as a text or as an object; `default` if they have none."""
    return str(token.get("content", default)) if isinstance(token, dict) else default if token is None else str(token)


def without_code(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a `config.json` without the keys, at any depth, that say how a library loads a model, or are its private ones."""
    return {
        key: without_code(value) if isinstance(value, Mapping) else value
        for key, value in content.items()
        if key not in _OF_ONE_LIBRARY and not key.startswith("_")
    }
