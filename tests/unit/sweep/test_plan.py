from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import thinned
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode

from speechtrain.config import CONF_DIR
from speechtrain.config.compose import preset_params
from speechtrain.config.overrides import sweep_arguments, unresolved
from speechtrain.config.schemas.sweeps import SweeperOptions
from speechtrain.errors import ConfigError
from speechtrain.sweep.plan import Planner, SweepPlan, study_name_of
from speechtrain.sweep.plugin import _read_options
from speechtrain.sweep.space.compose import Composer
from speechtrain.sweep.space.space import parse_space

Plan = Callable[..., SweepPlan]


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """Plans the sweep of a command line, with files of the user's own.

    Of experiments two have a model with `n_heads`, and one without.
    The models `narrow` and `wide` take any argument, and the preset sweeps models.
    """
    own = tmp_path / "experiment"
    own.mkdir()
    for name, content in {"one": "model: conformer", "two": "model: fastconformer", "plain": "model: tdnn"}.items():
        (own / f"{name}.yaml").write_text(f"# @package _global_\ndefaults: [override /{content}]\n")
    for name, epochs in {"short": 2, "long": 3}.items():
        (own / f"{name}.yaml").write_text(f"# @package _global_\ntrainer: {{epochs: {epochs}}}\n")
    (tmp_path / "model").mkdir()
    for name in ("narrow", "wide"):
        (tmp_path / f"model/{name}.yaml").write_text("_target_: types.SimpleNamespace\n")
    (tmp_path / "sweep").mkdir()
    preset = "# @package _global_\nhydra: {sweeper: {params: {model: 'choice(conformer,fastconformer)'}}}\n"
    (tmp_path / "sweep/formers.yaml").write_text(preset)

    def planned(*arguments: str) -> SweepPlan:
        places = ["hydra.job.name=speechtrain", f"hydra.searchpath=[file://{tmp_path}]"]
        taken = sweep_arguments(arguments, preset_params(arguments, str(tmp_path)))
        with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
            loader = GlobalHydra.instance().config_loader()
            cfg = loader.load_configuration("config", [*taken, *places], RunMode.MULTIRUN)
            return Planner(_read_options(cfg.hydra.sweeper, SweeperOptions), Composer(loader, cfg), cfg).plan(
                unresolved(cfg.hydra.overrides.task)
            )

    return planned


@pytest.mark.parametrize(
    "swept",
    [["experiment=one,two"], ["model=conformer,fastconformer", "optimizer=adamw,sgd"], ["sweep=formers"]],
    ids=["experiment", "two groups", "preset"],
)
def test_a_fixed_key_that_only_the_swept_options_have_holds_for_all_of_them(plan: Plan, swept: list[str]) -> None:
    planned = plan(*swept, "model.n_heads=4", "data=synthetic")

    assert planned.n_trials == 2 ** len(swept)
    assert all("model.n_heads=4" in planned.space.overrides(point) for point in planned.first)


def test_a_key_that_is_added_beside_swept_options_is_added_to_each_of_them(plan: Plan) -> None:
    planned = plan("model=narrow,wide", "+model.dropout=0.5", "data=synthetic")

    jobs = [planned.space.overrides(point) for point in planned.first]
    assert [sorted(job[:2]) for job in jobs] == [["+model.dropout=0.5", "model=narrow"], ["+model.dropout=0.5", "model=wide"]]


def test_a_fixed_key_that_one_of_the_swept_experiments_lacks_is_told_with_its_name(plan: Plan) -> None:
    with pytest.raises(ConfigError, match=r"model.n_heads: there is no such key, with experiment=plain\n"):
        plan("experiment=one,plain", "model.n_heads=4", "data=synthetic")


@pytest.mark.parametrize(
    ("swept", "longest"),
    [
        (["trainer.epochs=1,3"], "3 epochs"),
        (["trainer.epochs=1,4"], None),
        (["experiment=short,long"], "3 epochs"),
    ],
)
def test_a_pruner_is_idle_only_if_even_the_longest_trials_are_too_short_for_it(
    plan: Plan, caplog: pytest.LogCaptureFixture, swept: list[str], longest: str | None
) -> None:
    with caplog.at_level(logging.WARNING):
        plan(*swept, "data=synthetic")

    warned = f"n_min_trials=1) waits longer than {longest};" in caplog.text
    assert warned if longest is not None else not caplog.text


@pytest.mark.parametrize(
    ("typed", "message"),
    thinned(
        [
            (["stop_when.wall_hours=0"], "hydra.sweeper.stop_when.wall_hours: must be more than 0"),
            (
                ["stop_when={goal: 0.1, no_improvement: 0.1}", "objectives=[val/wer,params]"],
                "stop_when.no_improvement: needs one objective, and there are 2",
            ),
            (["stop_when.goal=null"], "the space of seed has infinitely many points"),
        ],
        3,
    ),
)
def test_conditions_that_cannot_end_a_study_are_told(plan: Plan, typed: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        plan("seed=interval(1,9)", "data=synthetic", *(f"hydra.sweeper.{item}" for item in typed))


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["hydra.sweeper.objectives=[val/wer,params]"], "finalists.n: a race has one winner, and there are 2 objectives"),
        (["seed=1,2"], "finalists.seed_key: seed is swept, and the race chooses it"),
        (["hydra.sweeper.finalists.seed_key=trainer.sede"], "finalists.seed_key: there is no key 'trainer.sede' with a value"),
        (["hydra.sweeper.finalists.seed_key=dry_run"], "dry_run has to be a whole number in the config, received False"),
        (["hydra.sweeper.finalists.n=1"], "finalists.n: must be at least 2"),
        (["hydra.sweeper.finalists.significance=1"], "finalists.significance: must be more than 0 and less than 1"),
    ],
)
def test_a_race_that_has_no_seed_to_choose_or_no_winner_is_refused(plan: Plan, typed: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        plan("optimizer.lr=0.1,0.2", "data=synthetic", "hydra.sweeper.finalists.n=5", *typed)


def test_a_race_begins_with_the_seed_after_those_of_the_search(plan: Plan) -> None:
    planned = plan("optimizer.lr=0.1,0.2", "data=synthetic", "seed=4", "hydra.sweeper.finalists.n=5", "hydra.sweeper.seeds_per_trial=3")

    assert planned.race is not None
    assert (planned.race.first_seed, planned.race.max_seeds) == (7, 5)
    assert plan("optimizer.lr=0.1,0.2", "data=synthetic").race is None


def test_a_rule_that_pauses_trials_is_refused_with_several_objectives(plan: Plan) -> None:
    with pytest.raises(ConfigError, match=r"hydra.sweeper.pruner: SuccessiveHalving compares trials by one objective"):
        plan("seed=1,2", "hydra/sweeper/pruner=halving", "hydra.sweeper.objectives=[val/wer,params]")


def test_the_name_of_a_study_is_that_of_earlier_versions_so_that_old_studies_are_continued():
    when = [{"if": {"model": "conformer"}, "params": {"model.kernel_size": "choice(7,15)"}}]
    typed = ["model=conformer,crdnn", "optimizer.lr=tag(log,interval(1e-4,1e-2))", "seed=1"]
    space = parse_space(typed, {"model.d_model": "range(64,257,32)"}, when)
    options = SweeperOptions(
        constraints=["params <= 2e6"],
        enqueue=[{"model": "crdnn"}],
        objectives=["val/wer"],
        direction=None,
        seeds_per_trial=1,
        custom_search_space=None,
    )

    assert study_name_of(space, options, "speechtrain") == "d_model-model-lr-kernel_size-71dff4"


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"params": 3}, "params"),
        ({"when": [1]}, "when[0]"),
        ({"enqueue": 3}, "enqueue"),
        ({"direction": 3}, "direction"),
        ({"sampler": {"seed": "x"}}, "sampler.seed"),
        ({"pruner": [1]}, "pruner"),
        ({"study_name": "../x"}, "study_name"),
        ({"study_name": ""}, "study_name"),
    ],
)
def test_an_option_of_the_wrong_kind_is_named(changed, key):
    sound = {"params": None, "when": None, "enqueue": [], "direction": None, "sampler": "tpe", "pruner": None, "study_name": "a/b"}

    assert list(SweeperOptions(**sound).rules()) == []
    assert [problem[0] for problem in SweeperOptions(**sound | changed).rules()] == [key]


def test_a_name_of_a_study_that_is_too_long_for_a_folder_is_told_so() -> None:
    def told(name: str) -> list[str]:
        return [f"{message} {fix}" for key, message, fix in SweeperOptions(study_name=name).rules() if key == "study_name"]

    assert told("é" * 101) == ["is too long for a folder: 202 bytes in UTF-8 give a name of 200 bytes or fewer"]
    assert "cannot name a study" in told("..")[0]
    assert told("é" * 100) == []
