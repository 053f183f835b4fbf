"""`--help` of the program: the commands, how a training is written, and every group with what its options are."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from speechtrain.app.commands import COMMANDS, TRAIN, summary
from speechtrain.config.comments import summary_of
from speechtrain.config.composition import config_folders
from speechtrain.config.options import groups, option_files
from speechtrain.console import console, print_table


def print_help(config_dir: str | None = None) -> None:
    """Print usage, commands, groups and options, without composing anything.

    Args:
        config_dir: the user's own folder of configs, whose options are listed too.

    Raises:
        UserError: there is no such folder.
    """
    folders = config_folders(config_dir)
    console.print("[bold]speechtrain[/] \\[train] \\[group=option] \\[key=value] \\[-m] ...")
    console.print("[bold]speechtrain[/] COMMAND ...           also python -m speechtrain.COMMAND ...\n")
    console.print("[bold]Commands[/]  COMMAND --help says more of each\n")
    table = _table("bold", "")
    table.add_row(TRAIN, "train a model and test it; the word may be left out")
    for name in COMMANDS:
        table.add_row(name, escape(summary(name).rstrip(".")))
    print_table(table)
    console.print("\n[bold]Words of a training[/]\n")
    table = _table("bold", "")
    for name, text in _WORDS:
        table.add_row(name, escape(text))
    print_table(table)
    console.print("\n[bold]Groups[/]  --explain GROUP says more of each; by default a tdnn learns digits spoken by eSpeak NG\n")
    table = _table("bold", "cyan", "")
    for group in (name for name in groups(folders) if not name.startswith("hydra")):
        for position, (name, path) in enumerate(sorted(option_files(group, folders).items())):
            table.add_row(group if position == 0 else "", name, escape(summary_of(path)))
    print_table(table)


_WORDS = (
    ("model=conformer", "an option of a group"),
    ("trainer.epochs=5", "a value of a key"),
    ("--explain KEY", "what a key or group means, what it accepts, and where it is set"),
    ("--cfg job", "every key with its value"),
    ("-m seed=1,2", "a sweep over several values, or over a space: -m sweep=lr"),
    ("resume=last", "go on with a run; or its folder, a checkpoint, an MLflow run id"),
    ("rerun=RUN_ID", "the same run from what MLflow holds, and what is different now"),
    ("test_run=quick", "only try it out; also dry_run=true, trainer.fast_dev_run=true"),
    ("--config-dir DIR", "groups and options of your own"),
    ("-sc install=bash", 'shell completion: eval "$(speechtrain -sc install=bash)"; zsh and fish too'),
    ("--hydra-help", "Hydra's own flags"),
)


def _table(*styles: str) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    for style in styles[:-1]:
        table.add_column(no_wrap=True, style=style)
    table.add_column(overflow="fold", style=styles[-1])
    return table
