"""The settings that all trials of a study share, by which a study is told from one whose config was edited since.

A study's results can be compared only where all that is not swept stays the same: `study.py` stores these settings with the study and
refuses to go on with others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from speechtrain import __version__
from speechtrain.addresses import masked_values
from speechtrain.sweep.space.compose import Composer
from speechtrain.sweep.space.space import Choice, Space
from speechtrain.sweep.study.attributes import VERSION
from speechtrain.tracking.base import flat


def shared_settings(composer: Composer, space: Space, cfg: DictConfig, has_effect: Callable[[str], bool]) -> dict[str, str]:
    """Return each setting that trials share, as text by its dotted key; of a swept group, those of each option by `GROUP=OPTION: KEY`.

    Args:
        composer: composes the sweep's jobs.
        space: what is searched.
        cfg: the config with the values that all jobs share.
        has_effect: says of a dotted key whether it changes the result of a job.
    """
    swept = [parameter.path for parameter in space.all_parameters()]
    shared = _settings(cfg, swept, has_effect)
    settings = shared | {VERSION: __version__}
    for group in space.all_parameters():
        if not (composer.is_group(group.path) and isinstance(group.domain, Choice)):
            continue
        for text in group.domain.texts:
            try:
                option = composer.compose([*space.fixed, f"{group.key}={text}"])
            except (HydraException, OmegaConfBaseException):  # it goes only together with another option
                continue
            of_option = _settings(option, [path for path in swept if path != group.path], has_effect)
            settings |= {f"{group.path}={text}: {key}": value for key, value in of_option.items() if shared.get(key) != value}
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
