"""Shortens a run that only tries things out: `dry_run`, `trainer.fast_dev_run`, `experiment=quick`."""

from __future__ import annotations

import logging

from speechtrain.config.experiment import ExperimentConfig, kind_of_test

log = logging.getLogger(__name__)


TEST_RUNS: dict[str, dict[str, int]] = {
    "quick": {"data.limit_utterances": 400, "data.batch_size": 8, "trainer.limit_epochs": 8},
    "dry_run": {"data.limit_utterances": 64, "trainer.limit_epochs": 1},
    "fast_dev_run": {
        "data.limit_utterances": 16,
        "trainer.limit_epochs": 1,
        "trainer.limit_train_batches": 1,
        "trainer.limit_val_batches": 1,
        "trainer.limit_test_batches": 1,
    },
}
"""The limits of each kind of test run, by dotted key; a tighter limit in the config itself stays."""


def with_limits(cfg: ExperimentConfig) -> ExperimentConfig:
    """Return the config with the limits of its kind of test run, and with as many epochs as its limits allow."""
    kind = kind_of_test(cfg)
    limits = TEST_RUNS[kind] if kind is not None else {}
    values = {}
    for key, limit in limits.items():
        group, _, name = key.partition(".")
        configured = getattr(getattr(cfg, group), name)
        values[key] = limit if configured is None else min(configured, limit)
    if kind is not None:
        shortened = ", ".join(f"{key}={value}" for key, value in values.items())
        log.warning("%s: the run is shortened (%s) and marked as a test", kind, shortened)
    cfg = cfg.with_values(values)
    return cfg.with_values({"trainer.epochs": min(cfg.trainer.epochs, cfg.trainer.limit_epochs or cfg.trainer.epochs)})
