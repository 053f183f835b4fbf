"""`speechtrain`, `python -m speechtrain`: compose, check, train, return the objective; or start the command that is named first.

Exit codes: 0 done, 1 the run failed, 2 the user can mend it (the message says how), 130 interrupted.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from speechtrain.addresses import guard_outputs
from speechtrain.app import commands
from speechtrain.app.command import errors_reported, explain_full, print_version
from speechtrain.app.completion import print_matches, wants_matches
from speechtrain.app.explanation import FLAG, print_explanation
from speechtrain.app.help import print_help
from speechtrain.app.launch import follow_launch, lead
from speechtrain.app.preload import modules_of_jobs
from speechtrain.app.resume import is_sweep, resume_arguments
from speechtrain.config import CONF_DIR
from speechtrain.config.compose import preset_params
from speechtrain.config.explain import broken_files, explain
from speechtrain.config.extras import explain_missing, require_training
from speechtrain.config.overrides import sweep_arguments, text_as_typed
from speechtrain.console import errors
from speechtrain.errors import ConfigError, Problem, RunError, UserError
from speechtrain.processes import interrupts
from speechtrain.processes.launch_environment import launch_of

_TRACES_WANTED = os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0")


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="config")
def run(cfg: DictConfig) -> Any:
    """Run one job with a composed config, and return the value of the objective to the sweeper."""
    from speechtrain.app.job import run_job  # pickled by value for other processes, so it holds no more than this

    return run_job(cfg)


vars(run.__wrapped__)["preload"] = modules_of_jobs  # see `sweep/workers/starting.py`


def _fail(error: UserError | RunError) -> NoReturn:
    errors.print(str(error), style="red", markup=False)
    sys.exit(error.exit_code)


def _folder_of_runs() -> Path:
    """Return the folder in which Hydra makes a folder for the run, or that folder if it was typed."""
    typed = [item.partition("=")[2].strip("'\"") for item in sys.argv[1:] if item.startswith(("hydra.run.dir=", "hydra.sweep.dir="))]
    return Path(typed[-1] if typed else "outputs").absolute()


def _fail_unless_defect(error: ModuleNotFoundError | ValueError | OverflowError | OSError) -> NoReturn:
    """End with a message where a package is missing, a disk is full, or Hydra refuses what was typed; raise the error otherwise."""
    explained = explain_missing(error) if isinstance(error, ModuleNotFoundError) else explain_full(error, _folder_of_runs())
    # Hydra raises these for a group set to null, or a folder it cannot make; out of our own modules they are defects
    files = {Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)}
    ours = any(file.is_relative_to(Path(__file__).parent) and file != Path(__file__) for file in files)
    if _TRACES_WANTED or (explained is None and ours):
        raise error
    _fail(explained or ConfigError([Problem("command line", str(error), "python -m speechtrain --help shows what can be written")]))


def main() -> None:
    """Run the command line, and end with one of the exit codes above."""
    guard_outputs()
    arguments = sys.argv[1:]
    if not wants_matches(arguments):  # a completion runs no code of the current folder
        sys.path.insert(0, str(Path.cwd()))  # for a _target_ in the user's folder, also when started as `speechtrain`
    try:
        command = commands.named_command(arguments)
    except UserError as error:
        _fail(error)
    if arguments[:1] == [command]:
        del sys.argv[1]
    if FLAG in arguments:
        with errors_reported():
            print_explanation(_words(sys.argv[1:]), _config_dir(arguments), command)
    elif command != commands.TRAIN:
        commands.start(command)
    elif "--help" in arguments or "-h" in arguments:
        with errors_reported():
            print_help(_config_dir(arguments))
    elif "--version" in arguments:
        with errors_reported():
            print_version()
    elif wants_matches(arguments):
        print_matches(run)
    else:
        _train(sys.argv[1:])


def _train(arguments: list[str]) -> None:
    if _TRACES_WANTED:
        os.environ["SPEECHTRAIN_TRACES"] = "1"
    # the only way to have Hydra raise its errors instead of printing them in its own way
    os.environ["HYDRA_FULL_ERROR"] = "1"
    logging.raiseExceptions = False  # a log file on a full disk is no reason for a stack trace
    try:
        _compose_and_run(arguments)
    except KeyboardInterrupt as error:
        if is_sweep(sys.argv[1:]):
            if interrupts.REPORTED not in getattr(error, "__notes__", ()):
                errors.print("interrupted before a trial began; the same command begins again", style="yellow")
        else:
            errors.print("interrupted; `python -m speechtrain resume=last` goes on from the last finished epoch", style="yellow")
        sys.exit(interrupts.EXIT_CODE)
    except (UserError, RunError, HydraException, OmegaConfBaseException, YAMLError) as error:
        if _TRACES_WANTED:
            raise
        if isinstance(error, (HydraException, OmegaConfBaseException, YAMLError)):
            typed = sys.argv[1:]
            error = explain(_words(typed), error, _config_dir(typed), sweep=is_sweep(typed))
        _fail(error)
    except (ModuleNotFoundError, ValueError, OverflowError, OSError) as error:
        own = _config_dir(sys.argv[1:])
        if own is not None and not _TRACES_WANTED and (broken := broken_files(own)):
            _fail(ConfigError(broken))
        _fail_unless_defect(error)


def _compose_and_run(arguments: list[str]) -> None:
    """Run what the arguments ask for; of the processes that a launcher has started, all but the first end here with its exit code."""
    launch = launch_of(os.environ)
    if launch is not None and launch.rank > 0:
        with interrupts.command():
            code = follow_launch(launch, arguments)
        sys.exit(code)
    with interrupts.command(), lead(launch, arguments) as to_run:
        require_training()
        typed = text_as_typed(resume_arguments(to_run))
        if is_sweep(typed):
            typed = sweep_arguments(typed, preset_params(_words(typed), _config_dir(typed)))
        sys.argv[1:] = typed
        gc.freeze()  # what is imported stays: composing a config would have it searched for garbage, a tenth of its time
        run()


def _words(arguments: list[str]) -> list[str]:
    """Return the words among what was typed, overrides in a training, without Hydra's options and their values."""
    values = {position + 1 for position, item in enumerate(arguments) if item in _OPTIONS_WITH_VALUES}
    return [item for position, item in enumerate(arguments) if not item.startswith("-") and position not in values]


_OPTIONS_WITH_VALUES = (
    "--config-dir",
    "-cd",
    "--config-path",
    "-cp",
    "--config-name",
    "-cn",
    "--cfg",
    "-c",
    "--package",
    "-p",
    "--info",
    "-i",
)


def _config_dir(arguments: list[str]) -> str | None:
    for position, item in enumerate(arguments):
        if item in ("--config-dir", "-cd"):
            return arguments[position + 1] if position + 1 < len(arguments) else None
        if item.startswith("--config-dir="):
            return item.partition("=")[2]
    return None


if __name__ == "__main__":
    main()
