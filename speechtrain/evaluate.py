"""`python -m speechtrain.evaluate`: measure how good a trained model is, on any data and with any decoder.

    python -m speechtrain.evaluate                                        the last run, on its own test data
    python -m speechtrain.evaluate from=3f2a91 data=kaldi data.root=/data/mine data.test=test
    python -m speechtrain.evaluate from=last decoder=[greedy,beam] decoder.lexicon=words.txt decoder.lm=lm.arpa
    python -m speechtrain.evaluate -m from=last decoder=beam decoder.lm=lm.arpa 'decoder.lm_weight=interval(0,3)' n_trials=50

`-m` searches settings of the decoder on the validation data; the model runs once, and each setting only decodes. The keys are those of
conf/evaluate.yaml, and `data`, `decoder` and `backend` as in training; what is not given stays as the model was trained.
"""

from __future__ import annotations

import logging

from rich.table import Table
from rich.text import Text

from speechtrain.app.arguments import arguments_of
from speechtrain.app.command import run_command
from speechtrain.config.schemas.commands import EvaluateConfig
from speechtrain.console import console, format_metric, print_table, waiting
from speechtrain.errors import unwritable
from speechtrain.inference.evaluation import DecoderResult, Evaluation, evaluate, keep_earlier, write
from speechtrain.inference.find import find_model, results_folder
from speechtrain.report.hot_words import total_of

_SHOWN_WORDS = 20
"""Hot words that are printed at most; evaluation.json has all."""
_SEARCH = ("-m", "--multirun")
_REPORTS = dict.fromkeys(("error_report", "class_report", "signal_report"), "report")
_LABELS = {**_REPORTS, "evaluation": "results", "predictions": "predictions", "texts": "by text", "nbest": "n best"}
"""What is printed before a file, by its name."""


def print_evaluation(evaluation: Evaluation) -> None:
    """Print the model, the data, and a table with a line for each decoder."""
    facts = evaluation.data.facts(evaluation.split)
    console.print(f"model       {evaluation.weights}", markup=False)
    console.print(f"data        {evaluation.split}, {int(facts['utterances']):,} utterances, {facts['hours']:.2f} h\n", markup=False)
    table = Table(box=None, pad_edge=False)
    names = list(evaluation.results[0].metrics)
    edits = {"substitutions": "S", "insertions": "I", "deletions": "D", "words": "words"} if evaluation.results[0].edits else {}
    for name in ("", *names, *edits.values(), "audio s/s"):
        table.add_column(name, justify="right" if name else "left")
    for each in evaluation.results:
        values = [format_metric(name, value) for name, value in each.metrics.items()]
        seconds = evaluation.model_seconds + each.decode_seconds
        speed = f"{3600 * facts['hours'] / max(1e-9, seconds):,.0f}"
        table.add_row(each.name, *values, *(f"{each.edits[key]:,}" for key in edits), speed)
    print_table(table, turns=True)
    for each in evaluation.results:
        if each.hot_words:
            print_table(_hot_word_table(each))


def _hot_word_table(result: DecoderResult) -> Table:
    """Return a line for each hot word, those said most often first, and one for all: what became of them, and without the preference."""
    table = Table(box=None, pad_edge=False, title=f"\nhot words of {result.name}", title_justify="left", title_style="")
    for name in ("", "said", "found", "missed", "inserted", "found without", "inserted without"):
        table.add_column(name, justify="right" if name else "left")
    ranked = sorted(result.hot_words.items(), key=lambda item: -item[1][0].said)
    both = [total_of([counts[which] for counts in result.hot_words.values()]) for which in (0, 1)]
    for word, (hot, plain) in [*ranked[:_SHOWN_WORDS], ("all", (both[0], both[1]))]:
        figures = (hot.said, hot.found, hot.missed, hot.inserted, plain.found, plain.inserted)
        table.add_row(Text(word), *(f"{figure:,}" for figure in figures))
    return table


def run(arguments: list[str]) -> int:
    """Evaluate with keys of conf/evaluate.yaml and overrides of the model's config; `-m` searches settings of the decoder."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    cfg, overrides = arguments_of(EvaluateConfig, [item for item in arguments if item not in _SEARCH])
    if any(item in _SEARCH for item in arguments):
        from speechtrain.sweep.tune import tune_decoder

        # the last run is another one after the next training
        source = cfg.source if cfg.source != "last" else find_model("last", tracking_uri=cfg.tracking_uri, experiment=cfg.experiment)
        best = tune_decoder(cfg, overrides)
        console.print(f"on test: python -m speechtrain.evaluate {' '.join([f'from={source}', *best])}", markup=False)
        return 0
    split = cfg.split or "test"
    with waiting(f"evaluating on {split}"):
        evaluation = evaluate(cfg, overrides, split=split)
    print_evaluation(evaluation)
    folder = results_folder(evaluation.weights, f"evaluation-{split}", cfg.out)
    try:
        if cfg.out is None and (earlier := keep_earlier(evaluation, folder)) is not None:
            console.print(f"earlier     {earlier} has the results before, of other data or another decoder", markup=False)
        files = write(evaluation, folder, cfg)
    except OSError as error:
        raise unwritable(folder, error, "out") from error
    console.print()
    for path in files:
        if label := _LABELS.get(path.stem.partition("-")[0]):
            console.print(f"{label:<12}{path}", markup=False)
    return 0


if __name__ == "__main__":
    run_command(__doc__, run)
