"""The weights that a training begins with: pretrained ones, those of another run, or of the checkpoint that it is resumed from."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from speechtrain.backends.checkpoint_files import LAST, best_checkpoint, other_checkpoints, read_extra
from speechtrain.config.experiment import ExperimentConfig
from speechtrain.config.stored import stored_vocabulary
from speechtrain.errors import ConfigError, Problem, UserError
from speechtrain.files import is_file, user_path
from speechtrain.inference.archive import weights_of
from speechtrain.tracking.run_folder import NUMBERED_FROM, find_run, read_run_file

if TYPE_CHECKING:
    from speechtrain.backends.base import Backend
    from speechtrain.training.steps import Experiment

log = logging.getLogger(__name__)

_SHOWN_TOKENS = 20


def load_initial_weights(run: Experiment) -> None:
    """Load the weights that a run starts from: pretrained ones, and those of `init_from`; a resumed run has its own.

    Raises:
        ConfigError: they do not fit the model, or are of another backend.
    """
    if run.cfg.resume is not None:
        _check_vocabulary(run)
        return
    run.backend.load_pretrained(run.model, run.data.tokenizer.outputs)
    if run.cfg.init_from is None:
        return
    path = Path(run.cfg.init_from)
    with weights_of(path) as weights:
        if weights.suffix != run.backend.suffix:
            fix = f"give a {run.backend.suffix} file, or another backend"
            raise ConfigError([Problem("init_from", f"{path} is not of backend={run.backend.name}", fix)])
        former = stored_vocabulary(read_extra(weights).get("vocabulary", []), str(path))
        labels = _labels_in(former, run)
        not_loaded = run.backend.warm_start(run.model, weights, labels)
    log.info("weights of %s%s", path, f"; not of {', '.join(not_loaded)}, which have another shape there" if not_loaded else "")
    if labels is not None and None in labels:
        new = [token for token, label in zip(run.data.tokenizer.vocabulary, labels, strict=True) if label is None]
        log.info(
            "%d of %d tokens begin anew, which that model has not: %s", len(new), len(labels), " ".join(map(repr, new[:_SHOWN_TOKENS]))
        )


def _labels_in(former: Sequence[str], run: Experiment) -> list[int | None] | None:
    """Return the label that each token of a run had in a former vocabulary, None where it had none; None where heads give no tokens."""
    own = run.data.tokenizer.vocabulary
    if not run.task.head.log_softmax or run.task.head.size != len(own) or not former:
        return None
    known = {token: label for label, token in enumerate(former)}
    return [known.get(token) for token in own]


def _check_vocabulary(run: Experiment) -> None:
    """Check that a run which is resumed has the vocabulary of its checkpoint, whose order gives the outputs of the model their meaning.

    Raises:
        ConfigError: it has another.
    """
    checkpoint = find_run(str(run.cfg.resume))[1]
    if checkpoint is None:
        return
    before: list[str] | None = None
    with suppress(UserError):  # of a damaged file, which is told when it is read as a whole, if there is no other
        before = read_extra(checkpoint).get("vocabulary")
    now = list(run.data.tokenizer.vocabulary)
    if before is not None and list(before) != now:
        message = f"the data gives a vocabulary of {len(now)} tokens, {now!s:.80}; that of the run has {len(before)}, {before!s:.80}"
        fix = "resume with the data that it was trained on, or start a new run from its weights with init_from="
        raise ConfigError([Problem("resume", message, fix)])


def checkpoint_to_resume(cfg: ExperimentConfig, backend: Backend) -> Path | None:
    """Return the checkpoint that `resume` means; of a run whose last one is damaged an earlier one; None: the run starts anew.

    Raises:
        UserError: a checkpoint that is named is damaged, or every one of the run is.
    """
    if cfg.resume is None:
        return None
    _explain_older_names(Path(cfg.output_dir))
    _, checkpoint = find_run(cfg.resume)
    if checkpoint is None:
        log.warning("%s has no finished epoch yet; starting again from the beginning", cfg.resume)
        return None
    try:
        backend.check_file(checkpoint)
    except UserError as error:
        # the command line has put the run's last checkpoint in place of `last`, a folder or a run id
        if is_file(user_path(cfg.resume.strip("'\""))) and checkpoint.stem != LAST:
            raise
        for other in other_checkpoints(checkpoint):
            with suppress(UserError):
                backend.check_file(other)
                log.warning("%s\ngoing on from %s instead", str(error).partition("\n")[0], other)
                return other
        raise
    return checkpoint


def _explain_older_names(folder: Path) -> None:
    """Log that checkpoints which an earlier version wrote in a run's folder have other numbers in their names than those to come."""
    older = best_checkpoint(folder)
    if older is not None and NUMBERED_FROM not in read_run_file(folder):
        log.info("names such as %s are of an earlier version and count epochs from 0; new ones count from 1", older.name)
