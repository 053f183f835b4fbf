"""The modules that the jobs of a sweep import, for processes that import them once and are forked then."""

from __future__ import annotations

from omegaconf import DictConfig

_ANY = ("speechtrain.app.job", "speechtrain.sweep.trial.job", "speechtrain.tasks.build", "speechtrain.training.console")
_TORCH = (
    *("speechtrain.backends.torch.backend", "speechtrain.backends.torch.lightning_run", "speechtrain.data.prepare"),
    *("speechtrain.data.loader", "speechtrain.training.facts", "speechtrain.training.watch", "speechtrain.report.reports"),
)
"""Not those of Keras, whose engines start threads when they are imported."""


def modules_of_jobs(cfg: DictConfig) -> tuple[str, ...]:
    """Return the names of the modules that each training with a config imports, as far as they can be imported before a fork."""
    return _ANY + (_TORCH if cfg.backend.get("name") == "torch" else ())
