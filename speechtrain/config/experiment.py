"""The config of a run as a typed object, made once, behind the checks; above `config` and `app` nobody reads Hydra's own.

Options of the program (`trainer`, `report`, how data is batched, ...) are the dataclasses of `config.schemas`. What `_target_` names
may take any arguments, so such a group is a `Component`, which `config.build` calls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from omegaconf import DictConfig, OmegaConf, open_dict

from speechtrain.addresses import keep, masked_values, whole_values
from speechtrain.config.components import arguments, callback_nodes
from speechtrain.config.composition import CONF_DIR
from speechtrain.config.plain import ABSENT
from speechtrain.config.schema import Exports, Objective, Report
from speechtrain.config.schemas.data import LOADING_KEYS, Loading
from speechtrain.config.schemas.node import Node
from speechtrain.config.schemas.training import Trainer
from speechtrain.config.stored import COMPONENTS, stored_values

Component = Mapping[str, Any]
"""`_target_` and the arguments that the config has for it."""

T = TypeVar("T", bound=Node)


@dataclass(frozen=True)
class ExperimentConfig:
    """The config of one run.

    Attributes:
        data: the keys of the group `data` that say how any corpus is read and batched.
        corpus: the rest of that group, the class of the corpus and its arguments.
        tracking: the trackers, by name.
        callbacks: the user's own callbacks.
        composed: the config that all of this was made from.
    """

    data: Loading
    corpus: Component
    features: Component
    tokenizer: Component
    augment: Component
    model: Component
    optimizer: Component
    scheduler: Component
    backend: Component
    task: Component
    decoder: Component
    tracking: Mapping[str, Component]
    trainer: Trainer
    objective: Objective
    report: Report
    export: Exports
    run_name: str | None
    callbacks: Sequence[Component]
    budget_minutes: float | None
    choose: Sequence[str]
    seed: int
    dry_run: bool
    test_run: str | None
    resume: str | None
    init_from: str | None
    rerun: str | None
    trust: bool
    language_model: str | None
    samples: int
    output_dir: str
    composed: DictConfig = field(repr=False, compare=False)

    @classmethod
    def of(cls, cfg: DictConfig) -> ExperimentConfig:
        """Make a composed config typed, or one that was stored with a run: keys that came later have the values of `conf/`."""
        cfg = _with_root_keys(cfg)
        loading = {key: value for key, value in _resolved(cfg.data).items() if key in (*LOADING_KEYS, "_target_")}
        tracking = {str(name): component("tracking", node) for name, node in (cfg.get("tracking") or {}).items()}
        components: dict[str, Any] = {group: component(group, cfg[group]) for group in COMPONENTS}
        return cls(
            data=_typed(Loading, loading, "schema/loading"),
            corpus=component("data", cfg.data),
            tracking=tracking,
            trainer=_typed(Trainer, _resolved(cfg.trainer), "trainer/default"),
            objective=_typed(Objective, _resolved(cfg.objective), "config", "objective"),
            report=_typed(Report, _resolved(cfg.report), "config", "report"),
            export=_typed(Exports, _resolved(cfg.export), "config", "export"),
            callbacks=[{**each} for each in callback_nodes(cfg)],
            choose=list(cfg.choose),
            **{key: cfg[key] for key in SCALARS},
            **components,
            composed=cfg,
        )

    @classmethod
    def stored(cls, values: object, place: str, *, trust: bool) -> ExperimentConfig:
        """Make the config typed that a checkpoint, an archive or MLflow holds.

        Args:
            values: all keys, resolved.
            place: where they are from, for messages.
            trust: whether classes of other packages may be named, which are run when they are built.

        Raises:
            ConfigError: classes of other packages are named, and the place is not trusted.
            UserError: these are not the keys and values of a run.
        """
        return cls.of(OmegaConf.create(stored_values(values, place, trust=trust)))

    @classmethod
    def read(cls, path: Path) -> ExperimentConfig:
        """Read the `config.yaml` in the folder of a run that this user began on this machine, with the secrets that are masked in it."""
        return cls.from_yaml(path.read_text(encoding="utf-8"))

    @classmethod
    def from_yaml(cls, text: str) -> ExperimentConfig:
        """Read what `as_yaml` has made of this user's run, with the masked secrets that this machine keeps."""
        cfg = OmegaConf.create(whole_values(OmegaConf.to_container(OmegaConf.create(text))))
        assert isinstance(cfg, DictConfig)
        return cls.of(cfg)

    def with_values(self, values: Mapping[str, Any]) -> ExperimentConfig:
        """Return a copy in which dotted keys have other values, and what is interpolated from them follows."""
        cfg = self.composed.copy()
        for key, value in values.items():
            OmegaConf.update(cfg, key, value, merge=False)
        return self.of(cfg)

    @property
    def choosable(self) -> list[str]:
        """Return the keys of `choose` that there are: a data set or a model may lack some of those that an experiment names."""
        return [key for key in self.choose if OmegaConf.select(self.composed, key, default=ABSENT) is not ABSENT]

    @property
    def backend_name(self) -> str:
        """Return the name of the backend: `torch`, `keras`, or that of a backend of the user's own."""
        return str(self.composed.backend.name)

    def as_dict(self) -> dict[str, Any]:
        """Return all keys with their values resolved and secrets masked, as checkpoints and trackers store them."""
        return dict(masked_values(_resolved(self.composed)))

    def keep_secrets(self) -> None:
        """Keep what `as_yaml` masks for this user alone, so that `read` finds it."""
        keep(_resolved(self.composed))

    def as_yaml(self) -> str:
        """Return all keys with their values resolved and secrets masked, as `config.yaml` in a run's folder has them."""
        return OmegaConf.to_yaml(OmegaConf.create(self.as_dict()))


SCALARS = (
    *("run_name", "budget_minutes", "seed", "dry_run", "test_run", "resume", "init_from", "rerun", "trust"),
    *("language_model", "samples", "output_dir"),
)


def kind_of_test(cfg: ExperimentConfig | DictConfig) -> str | None:
    """Return which kind of test run a config asks for; None: a real run."""
    return "fast_dev_run" if cfg.trainer.fast_dev_run else "dry_run" if cfg.dry_run else cfg.test_run


def component(group: str, node: DictConfig) -> Component:
    """Return a node's target and those of its keys that are arguments of it, as plain values."""
    return {"_target_": str(node["_target_"]), **arguments(group, node)}


def class_name(component: Component) -> str:
    """Return the name of a component's class, without its module."""
    return str(component["_target_"]).rpartition(".")[2]


def _resolved(node: DictConfig) -> dict[str, Any]:
    """Return the resolved values of a node."""
    values = OmegaConf.to_container(node, resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def _typed(schema: type[T], values: Mapping[str, Any], file: str, key: str | None = None) -> T:
    """Make values an object of a schema; those that are missing are taken from a file of `conf/`, or from one of its keys."""
    values_of_schema = _known_keys(schema, values)
    merged = OmegaConf.merge(OmegaConf.structured(schema), values_of_schema)
    if OmegaConf.missing_keys(merged):
        merged = OmegaConf.merge(OmegaConf.structured(schema), _defaults(file) if key is None else _defaults(file)[key], values_of_schema)
    typed = OmegaConf.to_object(merged)
    assert isinstance(typed, schema)
    return typed


def _known_keys(schema: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what a schema does not have, also in its nodes: a key that was dropped since is no mistake of a stored config."""
    kinds = get_type_hints(schema)
    present = {each.name: values[each.name] for each in fields(schema) if each.name in values}
    return {name: _known_keys(kinds[name], value) if is_dataclass(kinds[name]) else value for name, value in present.items()}


def _with_root_keys(cfg: DictConfig) -> DictConfig:
    """Return a config that has every key of `conf/config.yaml` outside of the groups."""
    missing = [key for key in ("objective", "report", "export", "callbacks", "choose", *SCALARS) if key not in cfg]
    if not missing:
        return cfg
    cfg = cfg.copy()
    with open_dict(cfg):
        for key in missing:
            cfg[key] = "." if key == "output_dir" else _defaults("config")[key]  # Hydra's folder, outside of which a stored config is read
    return cfg


@lru_cache
def _defaults(file: str) -> DictConfig:
    """Return the values of a file of `conf/`."""
    content = OmegaConf.load(CONF_DIR / f"{file}.yaml")
    assert isinstance(content, DictConfig)
    return OmegaConf.masked_copy(content, [str(key) for key in content if key not in ("defaults", "hydra")])
