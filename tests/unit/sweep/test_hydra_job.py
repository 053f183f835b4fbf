"""The sweeper's own versions of what Hydra does for a job: they do the same, and a test names Hydra when the original changes."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import hydra
import hydra.core.utils
import pytest
from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import HydraContext, RunMode
from hydra.version import VersionBase
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from packaging.version import Version

from speechtrain.sweep.space.compose import ComposedJob, Composer
from speechtrain.sweep.trial.hydra_job import ConfigFiles, run_hydra_job

RUN_JOB = "398b3328"
"""First digits of the SHA-256 of the source of `hydra.core.utils.run_job` that `speechtrain.sweep.trial.hydra_job` was compared with."""


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
        f"Hydra {version('hydra-core')} changed hydra.core.utils.run_job: carry the change over to speechtrain/sweep/trial/hydra_job.py, "
        f"then set RUN_JOB to {digest}"
    )


@pytest.mark.filterwarnings("ignore:.*Future Hydra versions")
@pytest.mark.parametrize(("chdir", "version_base"), [("true", "1.3"), ("false", "1.3"), ("null", "1.3"), ("null", "1.1")])
def test_our_run_job_does_what_hydras_does(loader, sweep, tmp_path, monkeypatch, chdir, version_base):
    monkeypatch.setattr(VersionBase.instance(), "version_base", Version(version_base))
    seen = []

    def task(cfg: DictConfig) -> float:
        seen.append((OmegaConf.to_container(cfg), OmegaConf.is_struct(cfg), OmegaConf.to_container(HydraConfig.instance().cfg), Path.cwd()))
        return float(cfg.x)

    context = HydraContext(config_loader=loader, callbacks=Callbacks())
    returned, files = [], []
    for ours in (True, False):
        cfg = loader.load_sweep_config(sweep, ["x=2.5", "size=large", f"hydra.job.chdir={chdir}"])
        if ours:
            returned.append(
                run_hydra_job(ComposedJob(cfg, ("size=large",), frozenset("x")), task, context, number=3, env={"SPEECHTRAIN_TEST": "1"})
            )
        else:
            with read_write(cfg.hydra), open_dict(cfg.hydra):
                cfg.hydra.job.id = cfg.hydra.job.num = 3
                cfg.hydra.job.env_set["SPEECHTRAIN_TEST"] = "1"
            returned.append(hydra.core.utils.run_job(task, cfg, "hydra.sweep.dir", "hydra.sweep.subdir", context))
        files.append({path.name: OmegaConf.load(path) for path in sorted((tmp_path / "sweep/3/.hydra").iterdir())})
        (tmp_path / "sweep").rename(tmp_path / f"sweep {ours}")
    mine, theirs = ({name: plain(value) for name, value in vars(item).items()} for item in returned)
    mine["overrides"], theirs["overrides"] = sorted(mine["overrides"]), sorted(theirs["overrides"])
    for name in mine:
        assert mine[name] == theirs[name], f"JobReturn.{name} differs from that of Hydra {version('hydra-core')}"
    assert seen[0] == seen[1], f"the program sees something else than under Hydra {version('hydra-core')}"
    assert files[0] == files[1], f"files differ from those of Hydra {version('hydra-core')}"


def test_files_of_later_jobs_are_hydras_as_well(loader, sweep, tmp_path):
    context = HydraContext(config_loader=loader, callbacks=Callbacks())
    composer, files = Composer(loader, sweep), ConfigFiles()
    written = {True: {}, False: {}}
    for ours in written:
        for number, overrides in enumerate(
            (["x=2.5"], ["x=3", "deep.b=${x}"], ["size=large"], ["text='2'", "+new={a:1}"], ["+secret=null"])
        ):
            job = composer.compose_job(overrides)
            if ours:
                run_hydra_job(job, lambda _cfg: 0.0, context, number=number, env={}, files=files)
            else:
                with read_write(job.cfg.hydra), open_dict(job.cfg.hydra):
                    job.cfg.hydra.job.id = job.cfg.hydra.job.num = number
                hydra.core.utils.run_job(lambda _cfg: 0.0, job.cfg, "hydra.sweep.dir", "hydra.sweep.subdir", context)
            for path in (tmp_path / f"sweep/{number}/.hydra").iterdir():
                written[ours][number, path.name] = OmegaConf.to_container(OmegaConf.load(path))
    assert written[True] == written[False], f"files differ from those of Hydra {version('hydra-core')}"


def plain(value: object) -> object:
    """A config without its interpolations resolved, for `hydra:` no longer leads anywhere after the job."""
    return OmegaConf.to_container(value, resolve=False) if OmegaConf.is_config(value) else value


def test_hydra_composes_what_our_composer_composes(loader, sweep):
    composer = Composer(loader, sweep)
    for overrides in (["x=2.5"], ["size=large", "size.width=5", "+new={a:1}"], ["deep.a=[1,2]", "text=null", "hydra.job.chdir=true"]):
        theirs = loader.load_sweep_config(sweep, overrides)
        assert plain(composer.compose(overrides)) == plain(theirs), f"Hydra {version('hydra-core')} composes a job in another way"
