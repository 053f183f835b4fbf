"""`python -m speechtrain.inspect`: show what the data of a config are like, before anything is trained.

    python -m speechtrain.inspect data=manifest data.root=/data/mine data.split.val=10
    python -m speechtrain.inspect experiment=fsdd data.root=/data/fsdd model=conformer out=look    and as a page with pictures

    python -m speechtrain.inspect data=synthetic model=conformer model.size=small profile=true       and what the model costs here
    python -m speechtrain.inspect from=last                                               layers and costs of a trained model, without data
    python -m speechtrain.inspect from=model.zip                                 of an archive also its history, evaluations and exports

    python -m speechtrain.inspect files=a.wav,b.flac augment=specaugment out=look         recordings as waves, features, augmented features

All keys are those of `python -m speechtrain`, so that the same words can be trained with afterwards; besides those of
conf/inspect.yaml, such as `out=DIR` (write data_report.html there) and `examples=N` (utterances that are drawn, 4).
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
from rich.table import Table

from speechtrain.app.arguments import own_and_training_keys
from speechtrain.app.command import run_command
from speechtrain.config.compose import compose
from speechtrain.config.experiment import ExperimentConfig, class_name
from speechtrain.config.overlay import OVERLAID_GROUPS
from speechtrain.config.schemas.commands import InspectConfig
from speechtrain.console import console, print_table, waiting
from speechtrain.data.text.normalize import visible
from speechtrain.errors import ConfigError, Problem
from speechtrain.files import is_file, user_path
from speechtrain.inference.archive import SUFFIX
from speechtrain.inference.archive_summary import archive_lines
from speechtrain.inference.find import load
from speechtrain.report.inspection import Inspection, abbreviated, inspect, remarks, write_page


def print_inspection(inspection: Inspection) -> None:
    """Print a table of the splits, the vocabulary, and what should be looked at."""
    table = Table(box=None, pad_edge=False)
    for name in ("", "utterances", "hours", "speakers", "words", "shortest", "median", "longest", "characters/s", "rates"):
        table.add_column(name, justify="left" if name in ("", "rates") else "right")
    for split, facts in inspection.facts.items():
        low, middle, high = np.quantile(facts.durations, [0, 0.5, 1])
        table.add_row(
            split,
            f"{len(facts.durations):,}",
            f"{facts.hours:.2f}",
            str(facts.speakers or "?"),
            f"{facts.words:,}",
            f"{low:.2f} s",
            f"{middle:.2f} s",
            f"{high:.2f} s",
            f"{np.median(facts.characters_per_s):.1f}",
            ", ".join(f"{rate} Hz" + (f" ({count}x)" if len(facts.rates) > 1 else "") for rate, count in sorted(facts.rates.items())),
        )
    print_table(table, turns=True)
    vocabulary = inspection.data.tokenizer.vocabulary
    named = [{"": "<blank>", " ": "<space>"}.get(token) or visible(token) for token in vocabulary]
    console.print(f"\nvocabulary  {len(vocabulary)} tokens: {abbreviated(named, 40)}", markup=False)
    for texts in inspection.data.corpus.normalized:
        before, after = map(visible, texts)
        console.print(f"text        {before!r} -> {after!r}" if before != after else f"text        {after!r}", markup=False)
    for line in remarks(inspection):
        console.print(f"note        {line}", markup=False, style="yellow")


def run(arguments: list[str]) -> int:
    """Print the data of a training's config, with the keys of conf/inspect.yaml, and return the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    own, overrides = own_and_training_keys(InspectConfig, arguments)
    if own.files:
        return _draw(own.files, user_path(own.out or ".").absolute(), own.source, overrides)
    if own.source:
        if foreign := [item for item in overrides if "=" not in item or item.partition("=")[0].partition(".")[0] not in OVERLAID_GROUPS]:
            fix = f"give only keys of {', '.join(OVERLAID_GROUPS)}, or leave out from="
            raise ConfigError([Problem("command line", f"'{foreign[0]}' is nothing that a trained model takes", fix)])
        model = load(own.source, *overrides)
        from speechtrain.report.profile import print_profile, profile

        name = class_name(model.cfg.model)
        print_profile(profile(model.backend, model.model, model.features), name)
        if own.source.endswith(SUFFIX):
            console.print()
            for line in archive_lines(user_path(own.source)):
                console.print(line, markup=False, soft_wrap=True)
        return 0
    cfg = ExperimentConfig.of(compose([*overrides, "tracking=[]"]))
    with waiting("reading the data"):
        inspection = inspect(cfg, with_profile=own.profile)
    print_inspection(inspection)
    if inspection.profile is not None:
        from speechtrain.report.profile import print_profile

        console.print()
        print_profile(inspection.profile, class_name(cfg.model))
    if own.out:
        with waiting("drawing the page"):
            page = write_page(inspection, user_path(own.out).absolute(), own.examples, " ".join(overrides))
        console.print(f"\npage        {page}")
    return 0


def _draw(files: list[str], folder: Path, trained: str | None, overrides: list[str]) -> int:
    """Draw recordings as the features of a trained model, or else of a config, make them."""
    if missing := [name for name in files if not is_file(user_path(name))]:
        raise ConfigError([Problem("files", f"there is no {name}", "give WAV, FLAC, OGG or MP3 files") for name in missing])
    model = load(trained) if trained else None
    from speechtrain.report.data import draw_recordings

    for path in draw_recordings(files, folder, overrides, model.cfg if model is not None else None):
        console.print(f"picture     {path}", markup=False)
    return 0


if __name__ == "__main__":
    run_command(__doc__, run)
