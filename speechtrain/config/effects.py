"""Tells keys that change what a run learns or measures from those that say where and how it is computed, and what is kept of it."""

from __future__ import annotations

_WITHOUT_EFFECT = (
    *("run_name", "tracking", "report", "export", "output_dir", "trust", "samples"),
    *("data.root", "data.download", "data.cache_dir", "data.cache_gb", "data.feature_cache", "data.feature_cache_gb"),
    *("data.num_workers", "data.processes", "data.connections", "data.retries", "data.timeout"),
    *("backend.threads", "trainer.accelerator", "trainer.log_every_n_steps"),
    *(f"trainer.checkpoint.{key}" for key in ("save_top_k", "save_last", "every_n_epochs", "every_n_steps", "filename")),
)
"""Dotted keys, each with all that is below it."""


def has_effect(key: str) -> bool:
    """Return whether a dotted key changes what a run learns or measures, so that results with another value are another run's."""
    return not any(key == path or key.startswith(f"{path}.") for path in _WITHOUT_EFFECT)
