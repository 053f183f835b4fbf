"""A training of several processes that a launcher has started: what rank 0 hands out, and what the others do with it."""

from __future__ import annotations

import hashlib
import logging
import os
import traceback
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from speechtrain.config.experiment import ExperimentConfig
from speechtrain.config.stored import foreign_targets
from speechtrain.console import printing_to
from speechtrain.data.corpus import SPLITS
from speechtrain.errors import ConfigError, DataError, Problem, RunError, UserError
from speechtrain.processes.launch_environment import Launch, note_path
from speechtrain.tracking.run_folder import RUN_FILE

if TYPE_CHECKING:
    from speechtrain.backends.base import TrainingPlan
    from speechtrain.backends.torch.rendezvous import Order, Rendezvous
    from speechtrain.training.steps import Experiment


def check_launch(cfg: DictConfig, launch: Launch | None) -> None:
    """Check that a config can be trained by as many processes as a launcher has started.

    Raises:
        ConfigError: it cannot.
    """
    if launch is None or launch.count == 1:
        return
    problems, started = [], f"{launch.launcher} has started {launch.count} processes"
    if cfg.backend.name != "torch":
        message = f"is {cfg.backend.name}, which trains with one process, and {started}"
        problems.append(Problem("backend", message, "set backend=torch, or start one process"))
    if cfg.trainer.batch_seconds == "auto":
        fix = "find it with one process and trainer.devices=1, then set data.batch_seconds to its multiple"
        problems.append(Problem("trainer.batch_seconds", f"is auto, and {started}", fix))
    if cfg.model.get("unfreeze_after") and "find_unused" not in str(cfg.trainer.strategy):
        message = f"is set, and {started}; each of several waits for the gradients of weights that are frozen at first"
        fix = "set trainer.strategy=ddp_find_unused_parameters_true, or model.unfreeze_after=0"
        problems.append(Problem("model.unfreeze_after", message, fix))
    if problems:
        raise ConfigError(problems)


def hand_out(run: Experiment, plan: TrainingPlan) -> None:
    """Have the other processes that a launcher has started train this run; where there are none, do nothing."""
    if run.cfg.backend_name != "torch":
        return
    from speechtrain.backends.torch.rendezvous import Order, current

    if (rendezvous := current()) is None:
        return
    order = Order(
        config=run.cfg.as_yaml(),
        folder=str(run.folder),
        resume_from=str(plan.resume_from) if plan.resume_from is not None else None,
        data=data_facts(run),
        nodes=rendezvous.nodes,
        loopback=rendezvous.on_one_machine,
        key=rendezvous.launch.key,
    )
    rendezvous.order(order)


def data_facts(run: Experiment) -> dict[str, tuple[int, str]]:
    """Return what the data must be in all processes: how many utterances each split has, which ones, and the vocabulary."""
    facts: dict[str, tuple[int, str]] = {}
    for split in SPLITS[:2]:
        facts[split] = (len(run.data.corpus.splits[split]), run.data.fingerprint(split, audio=False))
    vocabulary = "\0".join(run.data.tokenizer.vocabulary)
    return {**facts, "vocabulary": (len(run.data.tokenizer.vocabulary), hashlib.sha256(vocabulary.encode()).hexdigest())}


def follow(rendezvous: Rendezvous, own_config: Callable[[], DictConfig]) -> int:
    """Train what rank 0 hands out until it ends, and return its exit code; nothing is printed, tracked or written.

    Args:
        rendezvous: where it is handed out.
        own_config: composes what was typed for this process; called where classes are handed out that are not of this package.
    """
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    with Path(os.devnull).open("w") as nowhere, printing_to(nowhere):
        try:
            while not isinstance(order := rendezvous.next_order(), int):
                _train_and_tell(order, rendezvous, own_config)
        except RunError as error:  # rank 0 is gone, and the launcher says so
            return error.exit_code
        except UserError as error:
            return error.exit_code
    return order


def _train_and_tell(order: Order, rendezvous: Rendezvous, own_config: Callable[[], DictConfig]) -> None:
    """Train, and tell rank 0 what went wrong, if anything did.

    Raises:
        UserError, RunError: it did while all were training: this process has to end, for rank 0 waits for its messages.
    """
    from speechtrain.backends.torch.launched_ranks import is_lost

    place = f"process {rendezvous.launch.rank} on {rendezvous.processes[0].host}"
    try:
        _train(order, rendezvous, own_config)
    except (UserError, RunError) as error:
        rendezvous.fail("user" if isinstance(error, UserError) else "run", f"{place}: {error}")
        if rendezvous.has_begun:
            raise
    except Exception as error:  # whatever it is, rank 0 has to know
        last_lines = "\n    ".join(traceback.format_exc().strip().splitlines()[-8:])
        rendezvous.fail("lost" if is_lost(error) else "defect", f"{place} ended early:\n    {last_lines}")
        if rendezvous.has_begun:
            raise RunError(str(error)) from error


def _train(order: Order, rendezvous: Rendezvous, own_config: Callable[[], DictConfig]) -> None:
    from speechtrain.training.steps import make_loaders, make_plan, rank_experiment

    _check_shared(order, rendezvous)
    folder = Path(order.folder)
    run = rank_experiment(config_of(order, own_config), folder)
    _check_data(run, order)
    plan = make_plan(run, Path(order.resume_from) if order.resume_from is not None else None)
    run.backend.train(run.model, *make_loaders(run), run.task, plan, ())


def config_of(order: Order, own_config: Callable[[], DictConfig]) -> ExperimentConfig:
    """Return the config that is to be trained, which came through the network, where anybody may have written it.

    So it is read as that of a stranger's checkpoint is: values are plain, keys and types are known, nothing is resolved. Classes of other
    packages are built where this process would build them by what was typed for itself.

    Raises:
        ConfigError: it names others.
        UserError: it is no config of a run.
    """
    values = OmegaConf.to_container(OmegaConf.create(order.config))
    assert isinstance(values, dict)
    strange = _strange_targets(values)
    if strange:
        own = OmegaConf.to_container(own_config(), resolve=True)
        assert isinstance(own, dict)
        own_targets = _strange_targets(own)
        fix = "name it on the command line, or in a --config-dir that all machines have; resume= needs the folder on all"
        problems = [
            Problem(path, f"is {target}, which is not of this package, and not what was typed for this process", fix)
            for path, target in strange
            if (path, target) not in own_targets
        ]
        if problems:
            raise ConfigError(problems)
    return ExperimentConfig.stored(values, "what process 0 hands out", trust=True)


def _strange_targets(values: Mapping[Any, Any]) -> list[tuple[str, str]]:
    """Return the classes of other packages that a rank builds; trackers and callbacks are those of rank 0 alone."""
    return foreign_targets({str(key): value for key, value in values.items() if key not in ("tracking", "callbacks")})


def _check_shared(order: Order, rendezvous: Rendezvous) -> None:
    """Check that a run could go on if its first process were started on this machine, where the launcher may do so.

    Raises:
        UserError: this machine does not see the run's folder, or the note of which run it is.
    """
    launch = rendezvous.launch
    if not launch.restarts or order.key is None or order.loopback:
        return
    for path in (Path(order.folder) / RUN_FILE, note_path(order.key)):
        if not path.is_file():
            fix = "start in a folder that all machines share, with hydra.run.dir in it, or start torchrun with --max-restarts=0"
            message = f"{path} is not on this machine, on which the run could not go on if {launch.launcher} started process 0 here"
            raise UserError(f"{message}\n    -> {fix}")


def _check_data(run: Experiment, order: Order) -> None:
    """Check that this process has the data that rank 0 has.

    Raises:
        DataError: it has others.
    """
    for name, (count, fingerprint) in data_facts(run).items():
        wanted, wanted_fingerprint = order.data[name]
        if fingerprint != wanted_fingerprint:
            what = f"{count:,} tokens" if name == "vocabulary" else f"{count:,} utterances"
            message = f"{name} has {what} here, which are not the {wanted:,} that process 0 has"
            raise DataError(f"{message}\n    -> give all machines the same data at the same place (data.root), or a disk that they share")
