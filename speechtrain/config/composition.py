"""Composes a config from the groups of `conf/` as Hydra does, with nothing checked and no message of ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from speechtrain.config import schema
from speechtrain.errors import UserError
from speechtrain.files import is_folder

_PACKAGED = Path(__file__).resolve().parents[1] / "conf"
CONF_DIR = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).resolve().parents[2] / "conf"
"""The config directory: inside the package when installed from a wheel, beside it in a checkout."""

schema.register()

REFUSED = (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError, OverflowError)
"""What Hydra and OmegaConf raise for a value; the last two for numbers of hundreds and of thousands of figures."""


def compose_groups(overrides: Sequence[str], config_dir: str | None = None, *, with_hydra: bool = False) -> DictConfig:
    """Compose a config from the groups, with the values that the overrides give.

    Args:
        overrides: as Hydra reads them.
        config_dir: the user's own folder of configs.
        with_hydra: whether the config has the part `hydra`.

    Raises:
        one of `REFUSED`: the overrides do not compose.
    """
    if GlobalHydra.instance().is_initialized():
        GlobalHydra.instance().clear()
    all_overrides = list(overrides)
    if config_dir is not None:
        all_overrides.append(f"hydra.searchpath=[file://{Path(config_dir).absolute()}]")
    with initialize_config_dir(config_dir=str(CONF_DIR), version_base="1.3"):
        cfg = hydra_compose("config", overrides=all_overrides, return_hydra_config=with_hydra)
    settle_folder(cfg)
    return cfg


def settle_folder(cfg: DictConfig) -> None:
    """Set the folder of a config outside of a run, to which Hydra gives none."""
    with open_dict(cfg):
        unresolved = OmegaConf.to_container(OmegaConf.masked_copy(cfg, ["output_dir"]), resolve=False)
        assert isinstance(unresolved, dict)
        if "hydra:runtime" in str(unresolved["output_dir"]):
            cfg.output_dir = str(Path("outputs").absolute())


@dataclass(frozen=True)
class ComposedFile:
    """Names a file that a config is composed of.

    Attributes:
        path: the file.
        package: the dotted key that its content stands under; empty: the root.
        option: the group and name of it, such as `model/tdnn`.
    """

    path: Path
    package: str
    option: str


def files_of(overrides: Sequence[str], config_dir: str | None = None) -> list[ComposedFile]:
    """Return the files that a config is composed of, in the order in which later ones win; schemas and Hydra's own are left out.

    Args:
        overrides: as Hydra reads them; only the choices of options count.
        config_dir: the user's own folder of configs.

    Raises:
        one of `REFUSED`: there is no such option.
        UserError: there is no such folder.
    """
    folders = config_folders(config_dir)
    if GlobalHydra.instance().is_initialized():
        GlobalHydra.instance().clear()
    search_path = [] if config_dir is None else [f"hydra.searchpath=[file://{folders[-1]}]"]
    with initialize_config_dir(config_dir=str(CONF_DIR), version_base="1.3"):
        found = GlobalHydra.instance().config_loader().compute_defaults_list("config", [*overrides, *search_path], RunMode.RUN)
    named = [(each.config_path or "", each.package or "") for each in found.defaults]
    located = (
        (next((folder / f"{name}.yaml" for folder in folders if (folder / f"{name}.yaml").is_file()), None), name, at) for name, at in named
    )
    return [ComposedFile(path, package, name) for path, name, package in located if path is not None]


def config_folders(config_dir: str | None = None) -> list[Path]:
    """Return the folders in which options are looked for, in this order.

    Args:
        config_dir: the user's own folder, as `--config-dir` names it.

    Raises:
        UserError: there is no such folder.
    """
    if config_dir is not None and not is_folder(Path(config_dir)):
        raise UserError(f"--config-dir: no such folder: {Path(config_dir).absolute()}")
    return [CONF_DIR, *([] if config_dir is None else [Path(config_dir).absolute()])]
