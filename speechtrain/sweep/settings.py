"""The settings that all trials of a study share, by which a study is told from one whose config was edited since.

A study's results can be compared only where all that is not swept stays the same: `study.py` stores these settings with the study and
refuses to go on with others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from omegaconf import DictConfig, OmegaConf

from speechtrain import __version__
from speechtrain.addresses import masked_values
from speechtrain.sweep.space.precheck import SweptOption
from speechtrain.sweep.space.space import Space
from speechtrain.sweep.study.attributes import VERSION
from speechtrain.tracking.base import flat


def shared_settings(options: Sequence[SweptOption], space: Space, cfg: DictConfig, has_effect: Callable[[str], bool]) -> dict[str, str]:
    """Return each setting that trials share, as text by its dotted key; of a swept group, those of each option by `GROUP=OPTION: KEY`.

    Args:
        options: the options of swept groups.
        space: what is searched.
        cfg: the config with the values that all jobs share.
        has_effect: says of a dotted key whether it changes the result of a job.
    """
    swept = [parameter.path for parameter in space.all_parameters()]
    shared = _settings(cfg, swept, has_effect)
    settings = shared | {VERSION: __version__}
    for option in options:
        of_option = _settings(option.cfg, [path for path in swept if path != option.group], has_effect)
        settings |= {f"{option.group}={option.name}: {key}": value for key, value in of_option.items() if shared.get(key) != value}
    return settings


def _settings(cfg: DictConfig, swept: list[str], has_effect: Callable[[str], bool]) -> dict[str, str]:
    """Return the values of a config that have an effect and are not swept, with interpolations as they are written."""
    values = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(values, Mapping)
    left_out = ("hydra", *swept)
    return {
        key: value
        for key, value in flat({str(key): value for key, value in masked_values(values).items()}).items()
        if has_effect(key) and not any(key == path or key.startswith(f"{path}.") for path in left_out)
    }
