"""Names that classes had in earlier versions, for configs that were stored then: checkpoints, archives, MLflow runs, run folders.

A stored config names its classes by dotted path (`_target_`). Whoever reads such a config gives it to `with_present_names` (or a typed
override to `with_present_name`) before anything is built from it. When a class moves, add a line here.
"""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

MOVED_MODULES = {
    "speechtrain.data.corpora": "speechtrain.data.corpora.published",
    "speechtrain.data.digits": "speechtrain.data.corpora.digits",
    "speechtrain.data.featurised": "speechtrain.data.corpora.spectrograms",
    "speechtrain.data.folder": "speechtrain.data.corpora.folder",
    "speechtrain.data.huggingface": "speechtrain.data.corpora.huggingface",
    "speechtrain.data.kaldi": "speechtrain.data.corpora.kaldi",
    "speechtrain.data.lhotse_cuts": "speechtrain.data.corpora.lhotse",
    "speechtrain.data.manifest": "speechtrain.data.corpora.manifest",
    "speechtrain.data.mix": "speechtrain.data.corpora.mix",
    "speechtrain.data.signals": "speechtrain.data.corpora.signals",
    "speechtrain.data.synthetic": "speechtrain.data.corpora.synthetic",
    "speechtrain.data.augment": "speechtrain.data.features.augment",
    "speechtrain.data.features": "speechtrain.data.features.features",
    "speechtrain.data.wave": "speechtrain.data.features.wave_augment",
    "speechtrain.data.phonemes": "speechtrain.data.text.phonemes",
    "speechtrain.data.subwords": "speechtrain.data.text.subwords",
    "speechtrain.data.tokenizer": "speechtrain.data.text.tokenizers",
    "speechtrain.tracking.mlflow": "speechtrain.tracking.mlflow.tracker",
}
"""Modules of version 0.1 whose classes a config may name, and where these classes are now."""


def present_name(target: str) -> str:
    """Return the dotted path at which the class of an earlier version's `target` is found now; other paths are returned unchanged."""
    module, _, name = target.rpartition(".")
    return f"{MOVED_MODULES[module]}.{name}" if module in MOVED_MODULES and name[:1].isupper() else target


def with_present_name(override: str) -> str:
    """Return an override such as `data._target_=speechtrain.data.kaldi.Kaldi` with the present path of its class."""
    key, equals, value = override.partition("=")
    return f"{key}={present_name(value)}" if equals and key.endswith("_target_") else override


def with_present_names(cfg: DictConfig) -> DictConfig:
    """Return a copy of a stored config in which each `_target_`, at any depth, names its class by the present path."""
    copy = OmegaConf.create(_renamed(OmegaConf.to_container(cfg, resolve=False)))
    assert isinstance(copy, DictConfig)
    return copy


def _renamed(value: Any) -> Any:
    if isinstance(value, (dict, DictConfig)):
        return {key: present_name(item) if key == "_target_" and isinstance(item, str) else _renamed(item) for key, item in value.items()}
    if isinstance(value, (list, ListConfig)):
        return [_renamed(item) for item in value]
    return value
