"""`python -m speechtrain.diagnose`: say what keeps a run from learning, by which figures, and what to type next.

    python -m speechtrain.diagnose              the last run, also while it trains
    python -m speechtrain.diagnose 3f2a91       the run of an id in MLflow, or of its first letters; or a run's folder;
                                                of a cross-validation each fold is judged

Exit codes: 0 nothing is found, 1 something is, 2 there is no such run.
"""

from __future__ import annotations

from pathlib import Path

from speechtrain.app.command import run_command
from speechtrain.console import console
from speechtrain.errors import ConfigError, Problem
from speechtrain.tracking.run_folder import find_run, fold_folders
from speechtrain.training.diagnosis import diagnose, figures
from speechtrain.training.watch import DIAGNOSIS, read_evidence


def run(arguments: list[str]) -> int:
    """Print the figures that a run is judged by and what they show, and return the exit code."""
    names = [item.removeprefix("from=") for item in arguments]
    if len(names) > 1 or any("=" in name for name in names):
        raise ConfigError([Problem("command line", f"{' '.join(arguments)!r} is not one run", "give last, a run's folder or an id")])
    folder, _ = find_run(names[0] if names else "last", "RUN")
    begun = [fold for fold in fold_folders(folder) if (fold / DIAGNOSIS).is_file()]
    found = [_judge(each) for each in begun or [folder]]
    return 1 if any(found) else 0


def _judge(folder: Path) -> bool:
    """Print the figures of the run in a folder and what they show, and return whether they show anything."""
    evidence = read_evidence(folder)
    console.print(f"run         {folder}", markup=False)
    for name, text in figures(evidence).items():
        console.print(f"{name:<12}{text}", markup=False)
    found = diagnose(evidence)
    for finding in found:
        console.print(f"\n{finding.code}\n    {finding}", style="yellow", markup=False)
    if not found and not evidence.is_warm:
        console.print(f"\n{evidence.steps} steps are too few to judge by; nothing is wrong that shows before the first one\n")
    elif not found:
        console.print("\nnothing is found that keeps it from learning\n")
    return bool(found)


if __name__ == "__main__":
    run_command(__doc__, run)
