"""Evaluation of a trained model on a data set with one or several decoders."""

from __future__ import annotations

import itertools
import json
import logging
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechtrain.config.overlay import decoders_of, overlaid
from speechtrain.config.schemas.commands import EvaluateConfig
from speechtrain.data.text.base import build_tokenizer
from speechtrain.data.text.tokenizers import case_step
from speechtrain.decode.base import ranking
from speechtrain.errors import DataError, counted
from speechtrain.inference.find import check_data_named, stored_for
from speechtrain.tracking.run_names import names_of

if TYPE_CHECKING:
    from speechtrain.data.batches import Batch
    from speechtrain.data.task_data import PreparedCorpus, TaskData
    from speechtrain.inference.recognizer import Recognizer
    from speechtrain.report.hot_words import HotWordCounts
    from speechtrain.tasks.base import Outputs, Sample

log = logging.getLogger(__name__)


_SHOWN_UNKNOWN = 10


@dataclass
class DecoderResult:
    """Metrics and edits of one decoder.

    Attributes:
        metrics: metrics of the task by name, without a stage.
        edits: `words substitutions insertions deletions utterances wrong`; empty where a task has no texts.
        decode_seconds: time that decoding and counting took, s.
        hot_words: counts of each hot word of the decoder, with them and without.
    """

    name: str
    overrides: Sequence[str]
    metrics: dict[str, float]
    edits: dict[str, int]
    samples: list[Sample]
    recognizer: Recognizer
    decode_seconds: float
    hot_words: dict[str, tuple[HotWordCounts, HotWordCounts]] = field(default_factory=dict)


@dataclass
class Evaluation:
    """The evaluation of one model on one split.

    Attributes:
        results: one result for each decoder.
        model_seconds: time that the model took, s.
        passes: each batch with the model's outputs for it.
    """

    weights: Path
    split: str
    data: TaskData
    results: list[DecoderResult]
    model_seconds: float
    passes: list[tuple[Batch, Outputs]]


def evaluate(cfg: EvaluateConfig, overrides: Sequence[str], *, split: str) -> Evaluation:
    """Run a model over a split and count with each decoder.

    Args:
        cfg: config of `conf/evaluate.yaml`.
        overrides: overrides of the model's config.
        split: train, val or test.

    Raises:
        UserError: the model, the data or a decoder cannot be used, or the data have tokens that the model lacks.
    """
    weights, stored, vocabulary = stored_for(cfg)
    check_data_named(weights, overrides)
    decoders = decoders_of(stored, overrides)
    others = [item for item in overrides if not item.lstrip("+~").startswith(("decoder=", "decoder."))]
    settings = {name: overlaid(stored, [*others, *mine], split=split) for name, mine in decoders.items()}
    first = next(iter(settings.values()))
    from speechtrain.data.prepare import prepare_split
    from speechtrain.inference.recognizer import Recognizer

    tokenizer = build_tokenizer(first.tokenizer, vocabulary=vocabulary)
    data = prepare_split(first, split, tokenizer, threads=2)
    is_own = _is_own_data(others)
    check_vocabulary(data, split, strict=(cfg.on_unknown or ("warn" if is_own else "error")) == "error")
    trained, now = (list(each.corpus.get("normalize") or []) for each in (stored, first))
    if is_own and trained != now:
        log.warning("the model writes texts of data.normalize=%s, and is compared with texts of %s", trained, now)
    features = data.features if not data.features.from_audio else None
    recognizer = Recognizer.of(weights, first, vocabulary, features=features, target_size=data.corpus.target_size)
    recognizers = {name: recognizer if settings[name] is first else recognizer.with_decoder(settings[name]) for name in settings}
    if cfg.nbest and not any(each.ranks for each in recognizers.values()):
        ranking(recognizer.task.decoder)  # says that it does not
    task_data = data.for_task(recognizer.task)
    loader = task_data.loader(split)
    assert loader is not None
    start = time.perf_counter()
    passes = list(recognizer.backend.predict(recognizer.model, loader, recognizer.task))
    took = time.perf_counter() - start
    if loader.left_out:
        log.warning("%d utterances could not be read, and were left out", len(loader.left_out))
    results = [scored(name, decoders[name], each, passes) for name, each in recognizers.items()]
    for each in results:
        _count_hot_words(each, passes)
    return Evaluation(weights, split, task_data, results, took, passes)


def _is_own_data(overrides: Sequence[str]) -> bool:
    """Return whether overrides leave a model the data that it was trained on; other steps of `data.normalize` do."""
    keys = [item.lstrip("+~").partition("=")[0] for item in overrides]
    return not any(key == "data" or key.startswith("data.") for key in keys if key != "data.normalize")


def scored(name: str, overrides: Sequence[str], recognizer: Recognizer, passes: Iterable[tuple[Batch, Outputs]]) -> DecoderResult:
    """Decode and score the outputs of a model."""
    from speechtrain.report.errors import Utterance, total

    start = time.perf_counter()
    scorer = recognizer.task.scorer(detailed=True)
    for batch, outputs in passes:
        scorer.update(batch, outputs)
    samples = sorted(scorer.samples, key=lambda sample: sample.id)
    metrics = {key: float(value) for key, value in scorer.compute().items()}
    took = time.perf_counter() - start
    edits: dict[str, int] = {}
    if any(sample.reference for sample in samples):
        counts = total(Utterance(sample.id, sample.reference, sample.hypothesis, 0.0) for sample in samples)
        edits = {key: getattr(counts, key) for key in ("words", "substitutions", "insertions", "deletions", "utterances", "wrong")}
    return DecoderResult(name, overrides, metrics, edits, samples, recognizer, took)


def _count_hot_words(result: DecoderResult, passes: Iterable[tuple[Batch, Outputs]]) -> None:
    """Count the hot words of a decoder in its texts, and in those that it gives without the preference, for which it decodes once more.

    The words of a lexicon are the same then, so that the difference is what the preference does.
    """
    from speechtrain.report.hot_words import count_hot_words

    recognizer = result.recognizer
    words = [str(word) for word in recognizer.cfg.decoder.get("hot_words") or ()]
    if not words:
        return
    plain = scored(result.name, (), recognizer.with_decoder(overlaid(recognizer.cfg, ["decoder.hot_word_score=0"])), passes)
    parted = not any(recognizer.tokenizer.unknown(f"{word} {word}") for word in words)  # a model without a space writes no parted words
    hot, without = (
        count_hot_words(words, ((sample.reference, sample.hypothesis) for sample in each.samples), parted=parted)
        for each in (result, plain)
    )
    result.hot_words = {word: (hot[word], without[word]) for word in words}


def check_vocabulary(data: PreparedCorpus, split: str, *, strict: bool) -> None:
    """Check that the model has tokens for the texts of a split, and warn where it has not.

    Raises:
        DataError: tokens are missing, and `strict` is set.
    """
    missing: dict[str, list[str]] = {}
    for cut in data.corpus.splits[split]:
        for token in data.tokenizer.unknown(cut.text) if cut.text else ():
            missing.setdefault(token, []).append(str(cut.id))
    if not missing:
        return
    ranked = sorted(missing.items(), key=lambda item: -len(item[1]))
    examples = ", ".join(f"{token!r} ({len(ids)}x, first in {ids[0]})" for token, ids in ranked[:_SHOWN_UNKNOWN])
    more = f" and {len(missing) - _SHOWN_UNKNOWN} more" if len(missing) > _SHOWN_UNKNOWN else ""
    has = "".join(token if len(token) == 1 else f" {token}" for token in data.tokenizer.vocabulary[:60])
    tokens = counted(len(missing), "token")
    message = f"the model has no token for {tokens} in the texts of {split}: {examples}{more}; it has {has!r}"
    if strict:
        raise DataError(
            f"{message}\n    -> give on_unknown=warn to count them as errors, or, where they differ in case or punctuation only, "
            f"data.normalize=[nfc,{case_step(missing, data.tokenizer.vocabulary)},punctuation]"
        )
    log.warning("%s; they count as errors", message)


def keep_earlier(evaluation: Evaluation, folder: Path) -> Path | None:
    """Move the results in a folder out of the way if they are of another model, other data or another decoder; return where they are.

    Raises:
        OSError: they cannot be moved.
    """
    try:
        earlier = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
        of_earlier = {name: each["overrides"] for name, each in earlier["decoders"].items()}
        same = [earlier["model"], earlier["fingerprint"], of_earlier]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    decoders = {each.name: list(each.overrides) for each in evaluation.results}
    if same == [str(evaluation.weights), evaluation.data.fingerprint(evaluation.split), decoders]:
        return None
    number = next(number for number in itertools.count(1) if not os.path.lexists(folder.with_name(f"{folder.name}-{number}")))
    return folder.rename(folder.with_name(f"{folder.name}-{number}"))


def write(evaluation: Evaluation, folder: Path, cfg: EvaluateConfig) -> list[Path]:
    """Write `evaluation.json`, the predictions of each decoder, its errors by text, its n best and the error report; return the files."""
    from speechtrain.files import write_json, write_text
    from speechtrain.report.reports import FinishedRun, write_report

    several = len(evaluation.results) > 1
    files = []
    for each in evaluation.results:
        name = f"-{each.name}" if several else ""
        lines = [f"{_cell(sample.reference)}\t{_cell(sample.hypothesis)}\t{sample.id}\n" for sample in each.samples]
        contents = {f"predictions{name}.tsv": "".join(lines)}
        if each.edits:
            contents[f"texts{name}.tsv"] = "".join(_texts(each.samples))
        if cfg.nbest and each.recognizer.ranks:
            contents[f"nbest{name}.jsonl"] = "".join(_nbest(evaluation, each, cfg.nbest))
        for file, content in contents.items():
            write_text(folder / file, content)
            files.append(folder / file)
    write_json(folder / "evaluation.json", summary(evaluation))
    files.append(folder / "evaluation.json")
    if cfg.report:
        for each in evaluation.results:
            recognizer = each.recognizer
            run = FinishedRun(
                folder / each.name if several else folder,
                each.samples,
                evaluation.split,
                f"{' on '.join(names_of(recognizer.cfg.as_dict()))}, {each.name}",
                backend=recognizer.backend,
                model=recognizer.model,
                task=recognizer.task,
                data=evaluation.data,
                options=recognizer.cfg.report,
                note=evaluation.weights.parent.parent.name,
            )
            files += write_report(run)
    return files


def summary(evaluation: Evaluation) -> dict[str, Any]:
    """Return the content of `evaluation.json`."""
    facts = evaluation.data.facts(evaluation.split)
    return {
        "model": str(evaluation.weights),
        "split": evaluation.split,
        "fingerprint": evaluation.data.fingerprint(evaluation.split),
        "utterances": int(facts["utterances"]),
        "hours": facts["hours"],
        "skipped": evaluation.data.skipped,
        "audio_s_per_s": 3600 * facts["hours"] / max(1e-9, evaluation.model_seconds),
        "decoders": {
            each.name: {
                "overrides": list(each.overrides),
                "metrics": each.metrics,
                **each.edits,
                "audio_s_per_s": 3600 * facts["hours"] / max(1e-9, each.decode_seconds),
                **({"hot_words": {word: _as_counts(*both) for word, both in each.hot_words.items()}} if each.hot_words else {}),
            }
            for each in evaluation.results
        },
    }


def _as_counts(with_them: HotWordCounts, without: HotWordCounts) -> dict[str, Any]:
    return {**asdict(with_them), "without": asdict(without)}


def _texts(samples: Sequence[Sample]) -> Iterable[str]:
    """Yield a line of `texts.tsv` for each text, with the errors in all of its recordings, after one with the names of the columns."""
    from speechtrain.report.errors import Utterance, by_text

    columns = ("utterances", "wrong", "words", "substitutions", "insertions", "deletions")
    yield "\t".join(("text", *columns, "wer")) + "\n"
    for text, counts in by_text(Utterance(sample.id, sample.reference, sample.hypothesis) for sample in samples).items():
        yield "\t".join((_cell(text), *(str(getattr(counts, column)) for column in columns), f"{counts.wer:.4f}")) + "\n"


def _nbest(evaluation: Evaluation, result: DecoderResult, count: int) -> Iterable[str]:
    for batch, outputs in evaluation.passes:
        for row, (utterance, reference) in enumerate(zip(batch.ids, batch.texts, strict=True)):
            best = result.recognizer.decode(outputs.values[row, : outputs.lengths[row]], nbest=count).alternatives
            texts = [{"text": text, "score": score} for text, score in best]
            yield json.dumps({"id": utterance, "reference": reference, "hypotheses": texts}, ensure_ascii=False) + "\n"


def _cell(text: str) -> str:
    return text.replace("\t", " ").replace("\n", " ")
