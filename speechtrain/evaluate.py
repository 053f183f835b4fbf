"""`python -m speechtrain.evaluate`: how good a trained model is, on any data and with any decoder.

    python -m speechtrain.evaluate                                        the last run, on its own test data
    python -m speechtrain.evaluate from=3f2a91 data=kaldi data.root=/data/mine data.test=test
    python -m speechtrain.evaluate from=last decoder=[greedy,beam] decoder.lexicon=words.txt decoder.lm=lm.arpa
    python -m speechtrain.evaluate -m from=last decoder=beam decoder.lm=lm.arpa 'decoder.lm_weight=interval(0,3)' n_trials=50

`-m` searches settings of the decoder on the validation data; the model runs once, and each setting only decodes. The keys are those of
conf/evaluate.yaml, and `data`, `decoder` and `backend` as in training; what is not said is as the model was trained.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from speechtrain.app.arguments import arguments_of
from speechtrain.app.command import run_command
from speechtrain.config.overlay import overlaid
from speechtrain.config.schemas.commands import EvaluateConfig
from speechtrain.console import console
from speechtrain.errors import ConfigError, Problem, did_you_mean, unwritable
from speechtrain.inference.evaluation import Evaluation, evaluate, folder_for, scored, write

if TYPE_CHECKING:
    from speechtrain.sweep.space.space import Space

log = logging.getLogger(__name__)

_LABELS = {".html": "report", ".json": "results", ".tsv": "predictions"}


def print_evaluation(evaluation: Evaluation) -> None:
    """As a table, a line for each decoder."""
    from speechtrain.console import format_metric

    facts = evaluation.data.facts(evaluation.split)
    console.print(f"model       {evaluation.weights}", markup=False)
    console.print(f"data        {evaluation.split}, {int(facts['utterances']):,} utterances, {facts['hours']:.2f} h\n", markup=False)
    table = Table(box=None, pad_edge=False)
    names = list(evaluation.found[0].metrics)
    edits = {"substitutions": "S", "insertions": "I", "deletions": "D", "words": "words"} if evaluation.found[0].edits else {}
    for name in ("", *names, *edits.values(), "audio s/s"):
        table.add_column(name, justify="right" if name else "left")
    for each in evaluation.found:
        values = [format_metric(name, value) for name, value in each.metrics.items()]
        seconds = evaluation.model_seconds + each.decode_seconds
        speed = f"{3600 * facts['hours'] / max(1e-9, seconds):,.0f}"
        table.add_row(each.name, *values, *(f"{each.edits[key]:,}" for key in edits), speed)
    console.print(table)


def tune(cfg: EvaluateConfig, arguments: Sequence[str]) -> int:
    """`-m`: search settings of the decoder for the best metric on the validation data."""
    from speechtrain.config.targets import task_directions
    from speechtrain.console import format_metric
    from speechtrain.sweep.space.space import parse_space
    from speechtrain.sweep.tune import search_in_process

    keys = [item for item in arguments if item.startswith("decoder.")]
    swept = {parameter.path for parameter in parse_space(keys, {}).all_parameters()}
    space = parse_space([item for item in keys if item.partition("=")[0] in swept], {})
    if not swept:
        message = "there is nothing to search"
        raise ConfigError([Problem("decoder", message, "give a range, for example 'decoder.lm_weight=interval(0,3)'")])
    fixed = [item for item in arguments if item.partition("=")[0] not in swept]
    split = cfg.split or "val"
    base = evaluate(cfg, [*fixed, *_any_of(space)], split=split)
    if len(base.found) != 1:
        raise ConfigError([Problem("decoder", "several cannot be searched at once", "choose one of them")])
    start = base.found[0].recognizer
    known = list(base.found[0].metrics)
    metric = cfg.metric or ("wer" if "wer" in known else start.cfg.objective.metric.rpartition("/")[2])
    if metric not in known:
        raise ConfigError([Problem("metric", f"there is no metric '{metric}'", did_you_mean(metric, known))])
    direction = task_directions(str(start.cfg.task["_target_"])).get(metric, "minimize")

    def value_of(settings: list[str]) -> float:
        value = scored("", settings, start.with_decoder(overlaid(start.cfg, settings)), base.passes).metrics[metric]
        console.print(f"{metric} {format_metric(metric, value):>9}   {' '.join(settings)}", markup=False, highlight=False)
        return value

    best, value = search_in_process(space, value_of, direction=direction, n_trials=cfg.n_trials, seed=cfg.seed)
    console.print(f"\nbest on {split}: {metric} {format_metric(metric, value)}   {' '.join(best)}", markup=False)
    words = " ".join([f"from={cfg.source}", *fixed, *best])
    console.print(f"on test: python -m speechtrain.evaluate {words}", markup=False)
    return 0


def _any_of(space: Space) -> list[str]:
    """Overrides of some point."""
    from speechtrain.sweep.space.space import Choice

    found = []
    for parameter in space.all_parameters():
        domain = parameter.domain
        found.append(parameter.text(domain.labels[0] if isinstance(domain, Choice) else domain.low))
    return found


def run(arguments: list[str]) -> int:
    """Keys of conf/evaluate.yaml and overrides of the model's config; `-m` searches."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    searching = any(item in ("-m", "--multirun") for item in arguments)
    cfg, overrides = arguments_of(EvaluateConfig, [item for item in arguments if item not in ("-m", "--multirun")])
    if searching:
        return tune(cfg, overrides)
    split = cfg.split or "test"
    evaluation = evaluate(cfg, overrides, split=split)
    print_evaluation(evaluation)
    folder = folder_for(evaluation.weights, split, cfg.out)
    try:
        files = write(evaluation, folder, cfg)
    except OSError as error:
        raise unwritable(folder, error, "out") from error
    console.print()
    for path in files:
        if path.suffix in (".json", ".tsv", ".html", ".jsonl"):
            console.print(f"{_LABELS.get(path.suffix, 'n best'):<12}{path}", markup=False)
    return 0


if __name__ == "__main__":
    run_command(__doc__, run)
