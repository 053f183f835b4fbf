"""What shortens a run that only tries things out: `dry_run`, `trainer.fast_dev_run`, `experiment=quick`."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:
    pass

log = logging.getLogger(__name__)


TEST_RUNS: dict[str, dict[str, int]] = {
    "quick": {"data.limit_utterances": 200, "trainer.limit_epochs": 3},
    "dry_run": {"data.limit_utterances": 64, "trainer.limit_epochs": 1},
    "fast_dev_run": {
        "data.limit_utterances": 16,
        "trainer.limit_epochs": 1,
        "trainer.limit_train_batches": 1,
        "trainer.limit_val_batches": 1,
        "trainer.limit_test_batches": 1,
    },
}
"""What shortens a run that only tries things out; a tighter limit of the config's own stays."""


def kind_of_test(cfg: DictConfig) -> str | None:
    """Of a run that only tries things out; None: a real run."""
    return "fast_dev_run" if cfg.trainer.fast_dev_run else "dry_run" if cfg.dry_run else cfg.test_run


def with_limits(cfg: DictConfig) -> DictConfig:
    """The config with all limits in it, also those of a run that only tries things out."""
    kind = kind_of_test(cfg)
    cfg = cfg.copy()
    limits = TEST_RUNS[kind] if kind is not None else {}
    for key, limit in limits.items():
        given = OmegaConf.select(cfg, key)
        OmegaConf.update(cfg, key, limit if given is None else min(given, limit))
    cfg.trainer.epochs = min(cfg.trainer.epochs, cfg.trainer.limit_epochs or cfg.trainer.epochs)
    if kind is not None:
        shown = ", ".join(f"{key}={limit}" for key, limit in limits.items())
        log.warning("%s: the run is shortened (%s) and marked as a test", kind, shown)
    return cfg
