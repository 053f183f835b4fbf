"""Names that classes and modules had in earlier versions, for what was stored then: checkpoints, archives, MLflow runs, run folders.

A stored config names its classes by dotted path (`_target_`). Whoever reads such a config gives it to `with_present_names` (or a typed
override to `with_present_name`) before anything is built from it. Models in MLflow, and programs that load `.keras` files, import modules
by name: `MovedModules` finds these. When a class moves that a config may name, add a line here.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType
from typing import Any

from omegaconf import DictConfig, OmegaConf

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

MOVED_CLASSES = {"speechtrain.data.folder.SpeechCommands": "speechtrain.data.corpora.speech_commands.SpeechCommands"}
"""Classes that did not move with the others of their module."""

MOVED_IMPORTS = {
    "speechtrain.recognizer": "speechtrain.inference.recognizer",
    "speechtrain.backends.keras.model": "speechtrain.backends.keras.speech_model",
}
"""Modules of version 0.1 that stored files import: models in MLflow the first, programs that load `.keras` files the second."""


class MovedModules(MetaPathFinder, Loader):
    """Imports the modules of `MOVED_IMPORTS` from where they are now, so that both names mean one module."""

    def find_spec(self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:  # noqa: ARG002
        """Return a spec for a module that has moved; None for all others."""
        return spec_from_loader(fullname, self) if fullname in MOVED_IMPORTS else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the module that the earlier name means now."""
        module = importlib.import_module(MOVED_IMPORTS[spec.name])
        self._present_spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Leave the module as it is, under its present name, for it was executed when it was imported by that."""
        module.__spec__ = self._present_spec


def import_moved_modules() -> None:
    """Let Python's import system find modules under their earlier names, behind all that it finds itself."""
    if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(MovedModules())


def present_name(target: str) -> str:
    """Return the dotted path at which the class of an earlier version's `target` is found now; other paths are returned unchanged."""
    if target in MOVED_CLASSES:
        return MOVED_CLASSES[target]
    module, _, name = target.rpartition(".")
    return f"{MOVED_MODULES[module]}.{name}" if module in MOVED_MODULES and name[:1].isupper() else target


def with_present_name(override: str) -> str:
    """Return an override such as `data._target_=speechtrain.data.kaldi.Kaldi` with the present path of its class."""
    key, equals, value = override.partition("=")
    return f"{key}={present_name(value)}" if equals and key.endswith("_target_") else override


def with_present_names(cfg: DictConfig) -> DictConfig:
    """Return a copy of a stored config in which each `_target_`, at any depth, names its class by the present path."""
    copy = OmegaConf.create(renamed(OmegaConf.to_container(cfg, resolve=False)))
    assert isinstance(copy, DictConfig)
    return copy


def renamed(value: Any) -> Any:
    """Return a copy of a plain value in which each `_target_`, at any depth, names its class by the present path."""
    if isinstance(value, dict):
        return {key: present_name(item) if key == "_target_" and isinstance(item, str) else renamed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [renamed(item) for item in value]
    return value
