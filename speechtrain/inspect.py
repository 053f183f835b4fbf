"""`python -m speechtrain.inspect`: what the data of a config are like, before anything is trained.

    python -m speechtrain.inspect data=manifest data.root=/data/mine data.split.val=10
    python -m speechtrain.inspect experiment=fsdd data.root=/data/fsdd model=conformer out=look    and as a page with pictures

    python -m speechtrain.inspect data=synthetic model=conformer model.size=small profile=true       and what the model costs here
    python -m speechtrain.inspect from=last                                               layers and costs of a trained model, without data

    python -m speechtrain.inspect files=a.wav,b.flac augment=specaugment out=look         recordings as waves, features, augmented features

All keys are those of `python -m speechtrain`, so that the same words can be trained with afterwards; besides
`out=DIR` (write data_report.html there) and `examples=N` (utterances that are drawn, 4).
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig, open_dict
from rich.table import Table

from speechtrain.command import run_command
from speechtrain.config.build import build, plain
from speechtrain.config.compose import compose
from speechtrain.console import console
from speechtrain.errors import ConfigError, DataError, Problem, UserError

if TYPE_CHECKING:
    from speechtrain.backends.base import ModelInfo
    from speechtrain.data.checks import SplitFacts
    from speechtrain.data.prepare import Data
    from speechtrain.profiling import Profile

_MOST = 10


@dataclass(frozen=True)
class Inspection:
    """What was found.

    Attributes:
        data: as it would be trained on.
        facts: of each split that is there.
        shared: see `shared_between_splits`.
        duplicates: groups of ids with the same samples, in all splits.
        infeasible: of each split, the utterances that the chosen model cannot align.
        model: the chosen one.
        profile: what it costs here, if that was asked for.
    """

    data: Data
    facts: Mapping[str, SplitFacts]
    shared: Mapping[str, Mapping[str, Sequence[str]]]
    duplicates: Sequence[Sequence[str]]
    infeasible: Mapping[str, Sequence[str]]
    model: ModelInfo
    profile: Profile | None = None


def inspect(cfg: DictConfig, *, with_profile: bool = False) -> Inspection:
    """Read and check the data of a config, for its model, which is measured as well `with_profile`.

    Raises:
        DataError: as training would.
    """
    from speechtrain.data.checks import duplicates, facts_of, shared_between_splits
    from speechtrain.data.prepare import find_infeasible, prepare
    from speechtrain.profiling import profile
    from speechtrain.tasks.build import task_for

    backend = build("backend", cfg.backend)
    cfg = cfg.copy()
    cfg.data.check_hours = math.inf  # what this is for
    data = prepare(cfg, threads=os.cpu_count() or 1)
    task = task_for(cfg, data)
    model = backend.build(plain("model", cfg.model), task, input_size=data.features.size, seed=cfg.seed)
    splits = {name: list(cuts) for name, cuts in data.corpus.splits.items() if len(cuts)}
    infeasible: dict[str, Sequence[str]] = {}
    if task.on_infeasible is not None:
        for name, cuts in splits.items():
            found = find_infeasible(data, cuts, lambda lengths: backend.output_lengths(model, lengths), task.infeasible)
            infeasible[name] = [utterance for utterance, _, _ in found]
    return Inspection(
        data=data,
        facts={name: facts_of(cuts, data.tokenizer) for name, cuts in splits.items()},
        shared=shared_between_splits(data.corpus, data.cache.checksums),
        duplicates=duplicates([cut for cuts in splits.values() for cut in cuts], data.cache.checksums),
        infeasible=infeasible,
        model=backend.describe(model),
        profile=profile(backend, model, task, data.features) if with_profile and data.features.hears else None,
    )


def print_inspection(found: Inspection) -> None:
    """As tables, the remarkable in words below them."""
    table = Table(box=None, pad_edge=False)
    for name in ("", "utterances", "hours", "speakers", "words", "shortest", "median", "longest", "characters/s", "rates"):
        table.add_column(name, justify="left" if name in ("", "rates") else "right")
    for split, facts in found.facts.items():
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
    console.print(table)
    vocabulary = found.data.tokenizer.vocabulary
    console.print(f"\nvocabulary  {len(vocabulary)} tokens: {_shown([repr(each)[1:-1] for each in vocabulary], 40)}", markup=False)
    for before, after in found.data.corpus.normalized:
        console.print(f"text        {before!r} -> {after!r}" if before != after else f"text        {after!r}", markup=False)
    for line in remarks(found):
        console.print(f"look        {line}", markup=False, style="yellow")


def remarks(found: Inspection) -> list[str]:
    """What someone should look at, a sentence each."""
    from speechtrain.data.checks import in_words

    lines = []
    for split, facts in found.facts.items():
        if facts.outliers:
            shown = _shown([f"{name} ({speed:.1f}/s)" for name, speed, _ in facts.outliers])
            lines.append(f"{split}: {len(facts.outliers)} utterances with far more or fewer characters a second than the others: {shown}")
        if facts.unknown:
            shown = _shown([f"{token!r} ({count}x)" for token, count in sorted(facts.unknown.items(), key=lambda item: -item[1])])
            lines.append(f"{split}: tokens that the training text lacks: {shown}")
        if ids := found.infeasible.get(split):
            ratio = f"at the model's subsampling of {found.model.subsampling}"
            lines.append(f"{split}: {len(ids)} utterances are too short for their text {ratio}: {_shown(ids)}")
    if found.duplicates:
        groups = [" = ".join(ids[:3]) for ids in found.duplicates]
        lines.append(f"{len(groups)} recordings stand more than once: {_shown(groups)}")
    for kind, names in found.shared.items():
        if names:
            lines.append(in_words(kind, names))
    if found.data.skipped:
        lines.append(f"{found.data.skipped} utterances were left out; they are named above")
    return lines


def _shown(items: Sequence[str], most: int = _MOST) -> str:
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


def write_page(found: Inspection, folder: Path, examples: int, title: str) -> Path:
    """`data_report.html` with histograms, and some training utterances as wave, features and augmented features.

    Raises:
        UserError: the folder cannot be written.
    """
    from speechtrain.report.data import data_report
    from speechtrain.report.page import write

    path = folder / "data_report.html"
    try:
        write(path, data_report(found.data, found.facts, remarks(found), examples=examples, title=title))
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror})\n    -> set out to a folder that can") from error
    return path


def draw_files(files: Sequence[str], folder: Path, overrides: Sequence[str], model: str = "") -> list[Path]:
    """A picture of each recording: its wave, its features, and these augmented, as a config makes them.

    Args:
        files: of audio.
        folder: where the pictures go.
        overrides: of the training's config.
        model: a trained one, whose features and augmentation are taken where the overrides choose no others.

    Raises:
        UserError: one cannot be read, or the folder cannot be written.
    """
    import soundfile

    from speechtrain.data.prepare import prepare
    from speechtrain.report.data import pictures
    from speechtrain.report.figures import save_png
    from speechtrain.report.page import numbered
    from speechtrain.tasks.build import task_for

    found = []
    with TemporaryDirectory() as root:
        lines = []
        for number, name in enumerate(files):
            path = Path(name).expanduser()
            try:
                duration = soundfile.info(str(path)).duration
                shutil.copyfile(path, Path(root) / f"{number}{path.suffix}")
            except (OSError, soundfile.SoundFileError) as error:
                raise DataError(f"{path}: cannot be read as audio ({error})\n    -> give a WAV, FLAC, OGG or MP3 file") from None
            lines.append(json.dumps({"audio_filepath": f"{number}{path.suffix}", "duration": duration, "text": "a", "utt_id": str(number)}))
        (Path(root) / "all.jsonl").write_text("\n".join(lines), encoding="utf-8")
        read = ["data=manifest", f"data.root='{root}'", "data.train=all.jsonl", "data.feature_cache=null", "data.on_shared.audio=allow"]
        cfg = compose([*overrides, *read, "tracking=[]"])
        if model:
            from speechtrain.source import load

            stored = load(model).cfg
            for group in ("features", "augment"):
                if not any(item.startswith((f"{group}=", f"{group}.")) for item in overrides):
                    with open_dict(cfg):
                        cfg[group] = stored[group]
        data = prepare(cfg, threads=1)
        task_for(cfg, data)
        drawn = pictures(data, data.corpus.splits["train"])
        try:
            folder.mkdir(parents=True, exist_ok=True)
            names: set[str] = set()
            for number, name in enumerate(files):
                target = folder / f"{numbered(Path(name).stem, names)}.png"
                save_png(drawn[str(number)], target)
                found.append(target)
        except OSError as error:
            raise UserError(f"{folder}: cannot be written ({error.strerror})\n    -> set out to a folder that can") from error
    return found


def run(arguments: list[str]) -> int:
    """Keys of the training's config, `out` and `examples`."""
    own = {"out": "", "examples": "4", "from": "", "profile": "false", "files": ""}
    given: list[str] = []
    for item in arguments:
        key, _, value = item.partition("=")
        if key in own:
            own[key] = value
        else:
            given.append(item)
    if not own["examples"].isdigit():
        raise ConfigError([Problem("examples", f"must be a whole number, received {own['examples']!r}", "for example examples=4")])
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    if own["files"]:
        names = own["files"].strip("[]").split(",")
        for path in draw_files(names, Path(own["out"] or ".").expanduser().absolute(), given, own["from"]):
            console.print(f"picture     {path}", markup=False)
        return 0
    if own["from"]:
        from speechtrain.profiling import print_profile, profile
        from speechtrain.source import load

        model = load(own["from"], *given)
        name = str(model.cfg.model._target_).rpartition(".")[2]
        print_profile(profile(model.backend, model.model, model.task, model.features), name)
        return 0
    cfg: Any = compose([*given, "tracking=[]"])
    found = inspect(cfg, with_profile=own["profile"].lower() == "true")
    print_inspection(found)
    if found.profile is not None:
        from speechtrain.profiling import print_profile

        console.print()
        print_profile(found.profile, str(cfg.model._target_).rpartition(".")[2])
    if own["out"]:
        console.print(f"\npage        {write_page(found, Path(own['out']).expanduser().absolute(), int(own['examples']), ' '.join(given))}")
    return 0


if __name__ == "__main__":
    run_command(__doc__, run)
