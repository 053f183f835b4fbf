"""`python -m speechtrain.lm`: an n-gram language model from text, for `decoder=beam`.

    python -m speechtrain.lm text=corpus.txt out=lm.arpa order=3 lexicon=words.txt     over words, and the words themselves
    python -m speechtrain.lm text=train.jsonl out=chars.arpa order=6 units=tokens from=last    over the model's tokens

KenLM's `lmplz` estimates it if it is on the PATH and there is enough text for it, else the same method in Python: modified
Kneser-Ney. The keys are those of conf/lm.yaml.
"""

from __future__ import annotations

import itertools
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from speechtrain.app.arguments import arguments_of
from speechtrain.app.command import run_command
from speechtrain.config.schemas.commands import LmConfig
from speechtrain.console import console
from speechtrain.data.text.base import build_tokenizer
from speechtrain.data.text.lines import lines_of, parse_json
from speechtrain.data.text.normalize import normalizer
from speechtrain.decode.ngram import NGram
from speechtrain.errors import ConfigError, DataError, Problem, first_line, unwritable
from speechtrain.files import user_path, write_text
from speechtrain.inference.find import stored_for


def make(cfg: LmConfig) -> NGram:
    """Estimate a model and write it, and the lexicon if one is asked for.

    Raises:
        UserError: the text cannot be read, or a file cannot be written.
    """
    if not cfg.text:
        raise ConfigError([Problem("text", "names no file", "text=corpus.txt")])
    split = _splitter(cfg)
    sentences = [split(text, where) for where, text in _texts([str(name) for name in cfg.text])]
    out = user_path(cfg.out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        model = _by_kenlm(sentences, out, cfg.order) or NGram.estimate(sentences, cfg.order)
        model.write(out)
        if cfg.lexicon is not None:
            counts = Counter(itertools.chain.from_iterable(sentences))
            write_text(user_path(cfg.lexicon), "".join(f"{word}\n" for word in sorted(counts)))
    except OSError as error:
        raise unwritable(Path(error.filename or out), error, "out") from error
    words, different = sum(map(len, sentences)), len(set(itertools.chain(*sentences)))
    console.print(f"text        {len(sentences):,} sentences, {words:,} {cfg.units}, {different:,} different", markup=False)
    if cfg.heldout is not None:
        perplexity = model.perplexity(split(text, where) for where, text in _texts([str(cfg.heldout)]))
        console.print(f"perplexity  {perplexity:.1f} on {cfg.heldout}", markup=False)
    console.print(f"model       {out}", markup=False)
    return model


def _splitter(cfg: LmConfig) -> Callable[[str, str], list[str]]:
    """Return what splits a line, with the place of it for messages, into units: words, or the tokens of a model.

    It raises `DataError` where the model lacks tokens of a line.
    """
    if cfg.source is None:
        if cfg.units == "tokens":
            raise ConfigError([Problem("units", "is tokens, which are a model's", "name it: from=last")])
        return lambda text, _: text.split()
    _, stored, vocabulary = stored_for(cfg)
    normalize = normalizer(stored.data.normalize)
    if cfg.units == "words":
        return lambda text, _: normalize(text).split()
    from speechtrain.decode.beam import names_of

    tokenizer = build_tokenizer(stored.tokenizer, vocabulary=vocabulary)
    names = names_of(tokenizer)

    def tokens(text: str, where: str) -> list[str]:
        normal = normalize(text)
        if unknown := list(dict.fromkeys(tokenizer.unknown(normal))):
            lacking = ", ".join(f"{token!r:.40}" for token in unknown[:10])
            fix = "write the text as the model's, for example in small letters, or leave such lines out"
            raise DataError(f"{where}: {normal[:60]!r} holds {lacking}, which the model has no token for\n    -> {fix}")
        return [names[label] for label in tokenizer.encode(normal)]

    return tokens


def _texts(files: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the texts of files, each with `FILE:NUMBER` before it."""
    for name in files:
        path = user_path(name)
        for number, line in lines_of(path, "give a file with a sentence a line"):
            text = _text_of(line, f"{path}:{number}") if ".jsonl" in path.name and line.strip() else line
            if text.strip():
                yield f"{path}:{number}", text


def _text_of(line: str, where: str) -> str:
    """Return the text in a line of a manifest; `where` names the line."""
    try:
        return str(parse_json(line)["text"])
    except (DataError, KeyError, TypeError) as error:
        raise DataError(f"{where}: is no line of a manifest ({first_line(error)})\n    -> JSON with a text") from None


def _by_kenlm(sentences: Sequence[Sequence[str]], out: Path, order: int) -> NGram | None:
    """Estimate with `lmplz`; None if it is not installed, or fails, as it does with little text."""
    program = shutil.which("lmplz")
    if program is None:
        return None
    text = "".join(" ".join(words) + "\n" for words in sentences)
    finished = subprocess.run([program, "-o", str(order)], input=text, capture_output=True, text=True, check=False)
    if finished.returncode:
        return None
    temporary = out.with_name(f".{out.name}.lmplz")
    temporary.write_text(finished.stdout, encoding="utf-8")
    try:
        return NGram.read(temporary)
    finally:
        temporary.unlink()


def run(arguments: list[str]) -> int:
    """Estimate a language model with the keys of conf/lm.yaml, and return the exit code."""
    cfg, overrides = arguments_of(LmConfig, arguments)
    if overrides:
        raise ConfigError([Problem(overrides[0].partition("=")[0], "is an unknown key for speechtrain.lm", "look at conf/lm.yaml")])
    make(cfg)
    return 0


if __name__ == "__main__":
    run_command(__doc__, run)
