"""Private names of Hydra that the sweeper uses, and its copy of `run_job`: a test fails with Hydra's name when one of them changes."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import hydra
import hydra.core.utils
import pytest
from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

RUN_JOB = "398b3328"
"""First digits of the SHA-256 of the source of `hydra.core.utils.run_job` that `speechtrain.sweep.internals.run_job` was compared with."""


@contextlib.contextmanager
def uses(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # noqa: BLE001 # whatever broke, the library is named
        pytest.fail(f"Hydra {version('hydra-core')} changed {name}, which speechtrain/sweep/internals.py uses: {error!r}")


@pytest.fixture
def loader(tmp_path: Path) -> Iterator[ConfigLoader]:
    conf = tmp_path / "conf"
    (conf / "size").mkdir(parents=True)
    (conf / "config.yaml").write_text("defaults: [size: small, _self_]\nx: 1.5\ntext: '1e-3'\ndeep: {a: [1, null, '2'], b: 1}\n")
    (conf / "size" / "small.yaml").write_text("width: 8\n")
    (conf / "size" / "large.yaml").write_text("width: 64\n")
    with initialize_config_dir(str(conf), version_base="1.3", job_name="toy"):
        yield GlobalHydra.instance().config_loader()


@pytest.fixture
def sweep(loader: ConfigLoader, tmp_path: Path) -> DictConfig:
    overrides = [f"hydra.sweep.dir={tmp_path}/sweep", "hydra.sweep.subdir='${hydra:job.num}'"]
    return loader.load_configuration("config", overrides, run_mode=RunMode.MULTIRUN)


def test_hydras_run_job_is_the_one_that_ours_was_compared_with():
    digest = hashlib.sha256(inspect.getsource(hydra.core.utils.run_job).encode()).hexdigest()[:8]

    assert digest == RUN_JOB, (
        f"Hydra {version('hydra-core')} changed hydra.core.utils.run_job: carry the change over to speechtrain/sweep/internals.py, "
        f"then set RUN_JOB to {digest}"
    )


@pytest.mark.parametrize("chdir", ["true", "false"])
def test_our_run_job_does_what_hydras_does(loader, sweep, tmp_path, chdir):
    from hydra._internal.callbacks import Callbacks

    from speechtrain.sweep.internals import run_job

    seen = []

    def task(cfg: DictConfig) -> float:
        seen.append((OmegaConf.to_container(cfg), OmegaConf.to_container(HydraConfig.instance().cfg), Path.cwd()))
        return float(cfg.x)

    context = HydraContext(config_loader=loader, callbacks=Callbacks())
    returned, files = [], []
    for ours in (True, False):
        cfg = loader.load_sweep_config(sweep, ["x=2.5", "size=large", f"hydra.job.chdir={chdir}"])
        if ours:
            returned.append(run_job(cfg, task, context, number=3, env={"SPEECHTRAIN_TEST": "1"}))
        else:
            with read_write(cfg.hydra), open_dict(cfg.hydra):
                cfg.hydra.job.id = cfg.hydra.job.num = 3
                cfg.hydra.job.env_set["SPEECHTRAIN_TEST"] = "1"
            returned.append(hydra.core.utils.run_job(task, cfg, "hydra.sweep.dir", "hydra.sweep.subdir", context))
        files.append({path.name: OmegaConf.load(path) for path in sorted((tmp_path / "sweep/3/.hydra").iterdir())})
        (tmp_path / "sweep").rename(tmp_path / f"sweep {ours}")
    mine, theirs = (vars(item) for item in returned)
    mine["overrides"], theirs["overrides"] = sorted(mine["overrides"]), sorted(theirs["overrides"])
    for name in mine:
        assert mine[name] == theirs[name], f"JobReturn.{name} differs from that of Hydra {version('hydra-core')}"
    assert seen[0] == seen[1], f"the program sees something else than under Hydra {version('hydra-core')}"
    assert files[0] == files[1], f"files differ from those of Hydra {version('hydra-core')}"


def test_hydra_composes_what_our_composer_composes(loader, sweep):
    with uses("ConfigLoaderImpl._apply_overrides_to_config or get_overrides_dirname"):
        from speechtrain.sweep.space.compose import Composer

        composer = Composer(loader, sweep)
        for overrides in (["x=2.5"], ["size=large", "size.width=5", "+new={a:1}"], ["deep.a=[1,2]", "text=null", "hydra.job.chdir=true"]):
            assert composer.compose(overrides) == loader.load_sweep_config(sweep, overrides)


def test_hydra_knows_which_keys_are_groups(loader):
    with uses("ConfigLoaderImpl.repository"):
        from speechtrain.sweep.internals import group_exists

        assert group_exists(loader, "size")
        assert not group_exists(loader, "deep")


def test_hydra_sets_values_as_an_override_says(loader):
    with uses("ConfigLoaderImpl._apply_overrides_to_config"):
        from speechtrain.sweep.internals import apply_overrides

        cfg = OmegaConf.create({"x": 1})
        apply_overrides([OverridesParser.create().parse_override("x=[1,a]")], cfg)
        assert cfg == {"x": [1, "a"]}


def test_hydras_return_value_is_read_without_raising_it(capsys):
    with uses("JobReturn._return_value"):
        from speechtrain.sweep.internals import result_of

        error = RuntimeError("went wrong")
        returned = JobReturn(status=JobStatus.FAILED)
        returned.return_value = error
        assert result_of(returned) is error
        assert capsys.readouterr().err == ""
