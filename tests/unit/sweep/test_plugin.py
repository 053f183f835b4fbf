from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import CompactHydraException
from hydra.types import HydraContext, RunMode

from speechtrain.sweep.plugin import start_sweep

CONFIG = """
defaults: [_self_, {db: mysql}, {override hydra/sweeper: optuna}]
retries: 1
"""


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Sweeps over another Hydra program, and returns what Hydra prints of it without a stack trace."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf" / "db").mkdir(parents=True)
    (tmp_path / "conf" / "config.yaml").write_text(CONFIG)
    for name, content in {"mysql": "port: 3306", "postgres": "port: 5432\nschema: public"}.items():
        (tmp_path / "conf" / "db" / f"{name}.yaml").write_text(f"{content}\n")

    def of(*arguments: str) -> str:
        with initialize_config_dir(str(tmp_path / "conf"), version_base="1.3", job_name="shop"):
            loader = GlobalHydra.instance().config_loader()
            cfg = loader.load_configuration("config", list(arguments), RunMode.MULTIRUN)
            with pytest.raises(CompactHydraException) as raised:
                start_sweep(list(cfg.hydra.overrides.task), HydraContext(loader, Callbacks()), lambda _: 0.0, cfg)
        return str(raised.value)

    return of


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["db.prot=1,2"], "  db.prot: there is no such key\n    -> did you mean 'db.port'?  (there is: port)"),
        (["db=mysql,oracle"], "  db: there is no 'oracle'\n    -> there is: mysql, postgres"),
        (
            ["db=mysql,postgres", "++hydra.sweeper.params={db.schema:a}"],
            "  db.schema: there is no such key, with db=mysql\n    -> there is: port",
        ),
        (["retires=1,2"], "  retires: there is no such key\n    -> did you mean 'retries'?  (there is: db, hydra, retries)"),
        (["retries=1,2", "+hydra.sweeper.n_trails=2"], "  hydra.sweeper.n_trails: there is no such key\n    -> did you mean 'n_trials'?"),
        (
            ["retries=1,2", "hydra.sweeper.n_jobs=two"],
            "  hydra.sweeper.n_jobs: must be a whole number, received 'two'",
        ),
        (["retries=1,2", "hydra.sweeper.finalists.n=2.5"], "  hydra.sweeper.finalists.n: must be a whole number, received 2.5"),
        (
            ["retries=1,2", "hydra.sweeper.finalists=3"],
            "  hydra.sweeper.finalists: has keys of its own, received 3\n    -> there is: n, max_seeds",
        ),
        (["retries=1,2", "hydra.sweeper.stop_when.cpu_hours=2h"], "  hydra.sweeper.stop_when.cpu_hours: must be a number, received '2h'"),
        (
            ["retries=1,2", "+hydra.sweeper.finalists.seeds=2"],
            "  hydra.sweeper.finalists.seeds: there is no such key\n    -> did you mean 'max_seeds'?",
        ),
        (
            ["retries=1,2", "hydra.sweeper.finalists={n: 2, seed_key: sed}"],
            "  hydra.sweeper.finalists.seed_key: there is no key 'sed' with a value in the config of a job",
        ),
        (["retries=1,2", "hydra.sweeper.n_jobs=0"], "  hydra.sweeper.n_jobs: must be at least 1, received 0"),
        (
            ["retries=1,2", "+hydra.sweeper.search_space={x:{type:int}}"],
            "  hydra.sweeper.search_space: there is no such key\n    -> write hydra.sweeper.params",
        ),
        (
            ["retries=1,2", "hydra.sweeper.constraints=['params<=3']"],
            "  hydra.sweeper.constraints: is known to speechtrain's own training alone",
        ),
        (
            ["retries=1,2", "hydra.sweeper.custom_search_space=.shop.none", "hydra.sweeper.n_trials=2"],
            "  hydra.sweeper.custom_search_space: there is no function '.shop.none'",
        ),
        (["retries=interval(0,1)"], "  hydra.sweeper.n_trials: the space of retries has infinitely many points"),
    ],
)
def test_a_mistake_in_the_sweep_of_another_program_is_told_by_its_key_and_the_options_that_lead_to_it(told, arguments, said):
    assert told(*arguments).startswith(f"1 problem in the config:\n{said}")
