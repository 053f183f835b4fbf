"""`--help` of the program: lists the commands, and every group with its options, each with the first line of its file."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from speechtrain.app.commands import COMMANDS, summary
from speechtrain.config import CONF_DIR
from speechtrain.console import console

_HIDDEN = ("schema", "hydra")


def describe(text: str) -> str:
    """Return the first comment line of a config file, which says what it is for."""
    for line in text.splitlines():
        if line.startswith("#") and "@package" not in line:
            return line.lstrip("# ").rstrip()
    return ""


def print_help() -> None:
    """Print usage, commands, groups and options, without composing anything."""
    console.print("[bold]speechtrain[/] \\[train] \\[group=option] \\[key=value] \\[-m] ...      or python -m speechtrain ...")
    console.print("[bold]speechtrain[/] COMMAND ...                                    or python -m speechtrain.COMMAND ...\n")
    console.print("Trains a CTC speech recogniser, by default on digits spoken by eSpeak NG; every run is in MLflow (make ui).\n")
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for name in COMMANDS:
        table.add_row(name, escape(summary(name).rstrip(".")))
    console.print(table)
    console.print("\n[bold]speechtrain COMMAND --help[/] says more of each. What a training is composed of:\n")
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(no_wrap=True, style="cyan")
    table.add_column(overflow="fold")
    for folder in sorted(path for path in CONF_DIR.iterdir() if path.is_dir() and path.name not in _HIDDEN):
        for position, path in enumerate(sorted(folder.glob("*.yaml"))):
            table.add_row(folder.name if position == 0 else "", path.stem, escape(describe(path.read_text(encoding="utf-8"))))
    console.print(table)
    console.print(
        "\n[bold]Keys[/]      model.channels=128 trainer.epochs=5 seed=2   (python -m speechtrain --cfg job prints all of them)\n"
        "[bold]Resume[/]    resume=last, a run's folder, a checkpoint, or an MLflow run id\n"
        "[bold]Try out[/]   trainer.fast_dev_run=true (one batch)   dry_run=true (one epoch)   experiment=quick\n"
        "[bold]Several[/]   -m model=tdnn,conformer seed=1,2\n"
        "[bold]Repeat[/]    rerun=RUN_ID: the same run from what MLflow holds, and what is different now\n"
        "[bold]Look[/]      make ui   speechtrain compare RUN RUN   speechtrain diagnose RUN   speechtrain sync\n"
        "[bold]Use[/]       speechtrain evaluate | transcribe | align | export | serve | inspect, from=last   (docs/use.md)\n"
        '[bold]Complete[/]  eval "$(speechtrain -sc install=bash)"   (zsh and fish too)\n'
        "[bold]Own files[/] --config-dir DIR adds groups and options; --hydra-help lists Hydra's own flags"
    )
