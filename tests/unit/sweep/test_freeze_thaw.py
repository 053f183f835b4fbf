"""The model of learning curves, the rule that continues trials by it, and the sampler that proposes them by it."""

from __future__ import annotations

import math

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from speechtrain.sweep.study.attributes import RETRY_OF, TrialEntry
from speechtrain.sweep.study.curve_model import Curve, CurveModel, NothingKnownError, features_of
from speechtrain.sweep.study.freeze_thaw import FreezeThaw, FreezeThawSampler
from speechtrain.sweep.study.ledger import Ledger
from speechtrain.sweep.study.standings import Progress, Standings

EPOCHS = 9


def loss(x: float, epoch: int) -> float:
    """Loss after an epoch, counted from 1: it falls, and is the least for x = 0.3."""
    return (1.0 + 4.0 * (x - 0.3) ** 2) * (1.0 + 2.0 / epoch)


def curve(x: float, epochs: int) -> dict[int, float]:
    return {epoch - 1: loss(x, epoch) for epoch in range(1, epochs + 1)}


def standings_of(rule: FreezeThaw, trained: dict[float, int]) -> Standings:
    """Standings in which slot n has the n-th x and has paused after so many epochs, if these are not all."""
    standings = Standings(rule, "minimize")
    for slot, (x, epochs) in enumerate(trained.items()):
        standings.put(slot, curve(x, epochs), epochs if epochs < EPOCHS else None)
        standings.features[slot] = {"x": x}
    return standings


def next_slot(standings: Standings, *, all_begun: bool = False) -> int | None:
    complete = {slot for slot, values in standings.curves.items() if len(values) == EPOCHS}
    return standings.rule.next_slot(standings, Progress(all_begun=all_begun, open_slots=[], complete=complete))


def test_parameters_become_numbers_on_the_scale_they_are_drawn_on():
    distributions = {
        "lr": FloatDistribution(1e-4, 1e-2, log=True),
        "layers": IntDistribution(2, 6),
        "kernel": CategoricalDistribution(["7", "15", "31"]),
        "model": CategoricalDistribution(["tdnn", "conformer"]),
        "fixed": FloatDistribution(1.0, 1.0),
    }
    features = features_of({"lr": 1e-3, "layers": 3, "kernel": "15", "model": "tdnn", "fixed": 1.0}, distributions)

    assert features == {"lr": pytest.approx(0.5), "layers": 0.25, "kernel": 0.5, "model=tdnn": 1.0, "fixed": 0.5}


def test_the_model_predicts_the_end_of_a_curve_from_its_beginning_and_from_like_parameters():
    curves = {
        number: Curve({"x": x}, {step + 1: value for step, value in curve(x, epochs).items()}, epochs == EPOCHS)
        for number, (x, epochs) in enumerate([(0.0, 9), (0.5, 9), (0.9, 9), (0.1, 3), (0.35, 3), (0.8, 3)])
    }
    model = CurveModel(curves, [1, 3])
    begun, _ = model.predict([curves[number].features for number in (3, 4, 5)], [3, 4, 5])
    new, sure = model.predict([{"x": 0.3}, {"x": 0.7}, {"x": 0.45}], [-1, -1, -1])

    assert begun.argmin() == 1
    assert begun.argmax() == 2
    assert new[0] < new[2] < new[1]
    assert model.horizon == EPOCHS
    assert (sure > 0).all()


@pytest.mark.parametrize("cost", [math.inf, -1.0, 0.0])
def test_a_loss_that_diverged_and_one_that_is_negative_make_a_model(cost: float):
    curves = {0: Curve({"x": 0.1}, {1: 2.0, 3: 1.0}, is_complete=True), 1: Curve({"x": 0.9}, {1: cost}), 2: Curve({"y=a": 1.0}, {1: 1.5})}

    assert np.isfinite(CurveModel(curves, [1, 3]).predict([{"x": 0.5}], [-1])[0]).all()


def test_without_a_complete_trial_the_length_of_a_training_has_to_be_given():
    curves = {0: Curve({"x": 0.1}, {1: 2.0}), 1: Curve({"x": 0.2}, {1: 3.0})}
    with pytest.raises(NothingKnownError):
        CurveModel(curves, [1])
    assert CurveModel(curves, [1], 9).horizon == 9
    with pytest.raises(NothingKnownError):
        CurveModel({0: Curve({"x": 0.1}, {1: math.inf})}, [1], 9)


def test_of_a_long_study_the_model_knows_the_best_and_the_newest_trials():
    curves = {
        number: Curve({"x": x}, {9: loss(x, 9)}, is_complete=True) for number, x in enumerate([0.3, *np.linspace(0.6, 1.0, 400), 0.0, 0.05])
    }
    mean, _ = CurveModel(curves, []).predict([{"x": 0.3}, {"x": 0.8}, {"x": 0.02}], [-1] * 3)

    assert mean[0] < mean[2] < mean[1]


def test_a_trial_that_runs_is_taken_for_as_good_as_it_is_predicted():
    curves = {number: Curve({"x": x}, {9: loss(x, 9)}, is_complete=True) for number, x in enumerate([0.0, 0.6, 1.0])}
    model = CurveModel(curves, [])
    (before, _), (after, _) = (
        model.improvement([{"x": 0.35}], [-1]),
        (model.expect([{"x": 0.35}]), model.improvement([{"x": 0.35}], [-1]))[1],
    )

    assert after[0] < before[0]


@pytest.mark.parametrize("epochs", [EPOCHS, None])
def test_the_trial_that_promises_most_is_continued(epochs: int | None):
    standings = standings_of(FreezeThaw(n_startup_trials=4, epochs=epochs), {0.0: 9, 0.9: 9, 0.8: 3, 0.28: 3, 0.6: 3, 1.0: 3})

    assert next_slot(standings) == 3
    standings.put(3, curve(0.28, 9), None)
    assert next_slot(standings) is None  # a new one promises more than what is left


def test_a_trial_that_stopped_early_and_one_that_failed_do_not_say_how_long_a_training_is():
    standings = standings_of(FreezeThaw(n_startup_trials=4, epochs=EPOCHS), {0.9: 3, 0.8: 3, 0.3: 3, 0.6: 3, 0.95: 3})
    standings.put(0, curve(0.9, 2), None)  # complete
    standings.put(4, curve(0.95, 8), None)  # failed
    progress = Progress(all_begun=True, open_slots=[], complete={0})

    assert standings.rule.next_slot(standings, progress) == 2


def test_nothing_is_continued_before_enough_have_begun_and_it_is_known_how_long_a_training_is():
    assert next_slot(standings_of(FreezeThaw(n_startup_trials=4), {0.9: 9, 0.8: 3, 0.3: 3})) is None
    assert next_slot(standings_of(FreezeThaw(n_startup_trials=4), {0.9: 9, 0.8: 3, 0.3: 3}), all_begun=True) == 2  # no other will begin
    rule = FreezeThaw(n_startup_trials=1)
    assert next_slot(standings_of(rule, {0.8: 3, 0.3: 3})) is None
    assert next_slot(standings_of(rule, {0.8: 3, 0.3: 3}), all_begun=True) == 1
    assert rule.goes_on(standings_of(rule, {0.8: 3}).rungs[3], 0)
    assert not FreezeThaw(epochs=9).goes_on(standings_of(rule, {0.8: 3}).rungs[3], 0)


def test_once_all_have_begun_what_will_hardly_be_the_best_is_not_continued():
    trained = {0.3: 9, 0.0: 9, 0.6: 9, 0.9: 9, 0.95: 3, 1.0: 3}
    assert next_slot(standings_of(FreezeThaw(n_startup_trials=4), trained), all_begun=True) is None

    assert next_slot(standings_of(FreezeThaw(n_startup_trials=4, least_probability=0.0), trained), all_begun=True) in (4, 5)


def test_a_ledger_keeps_the_parameters_for_the_rule_also_while_an_attempt_begins():
    storage = optuna.storages.InMemoryStorage()
    study = optuna.create_study(storage=storage, study_name="study")
    ledger = Ledger(n_trials=3, retries=1, standings=Standings(FreezeThaw(epochs=9), "minimize"))
    distributions = {"x": FloatDistribution(0, 1)}
    failed = optuna.create_trial(state=TrialState.FAIL, params={"x": 0.25}, distributions=distributions)
    study.add_trial(failed)
    study.add_trial(optuna.create_trial(state=TrialState.RUNNING, system_attrs={RETRY_OF: 0}))
    for trial in study.trials:
        ledger.put(TrialEntry(trial))

    assert ledger.standings is not None
    assert ledger.standings.features == {0: {"x": 0.25}}


@pytest.mark.parametrize("changes", [{"min_resource": 0}, {"reduction_factor": 1}, {"n_startup_trials": 0}, {"least_probability": 1.5}])
def test_what_makes_no_rule_is_refused(changes: dict[str, float]):
    with pytest.raises(ValueError, match="must be"):
        FreezeThaw(**changes)  # type: ignore[arg-type]


def test_the_sampler_proposes_near_the_best_also_from_trials_that_were_pruned_early():
    study = optuna.create_study(pruner=optuna.pruners.NopPruner())
    proposed = []
    for number in range(24):
        study.sampler = FreezeThawSampler(seed=number)
        trial = study.ask()
        x = trial.suggest_float("x", 0.0, 1.0)
        trial.suggest_categorical("model", ["a", "b"])
        epochs = EPOCHS if number % 4 == 0 else 3
        for step, value in curve(x, epochs).items():
            trial.report(value, step)
        study.tell(trial, loss(x, EPOCHS) if epochs == EPOCHS else None, TrialState.COMPLETE if epochs == EPOCHS else TrialState.PRUNED)
        proposed.append(x)

    assert np.abs(np.array(proposed[-8:]) - 0.3).mean() < 0.1
    assert np.abs(np.array(proposed[:8]) - 0.3).mean() > 0.2


def test_the_sampler_stays_in_the_space_and_keeps_its_steps():
    study = optuna.create_study()
    for number in range(14):
        study.sampler = FreezeThawSampler(seed=number, n_startup_trials=4)
        trial = study.ask()
        x, width = trial.suggest_float("x", 0.0, 1.0, step=0.25), trial.suggest_int("width", 16, 64, log=True)
        layers = trial.suggest_int("layers", 1, 7, step=2)
        if number % 2:
            trial.suggest_float("sometimes", 1e-3, 1e-1, log=True)
        assert x in (0.0, 0.25, 0.5, 0.75, 1.0)
        assert 16 <= width <= 64
        assert layers in (1, 3, 5, 7)
        study.tell(trial, x + width / 64)


def test_the_sampler_tries_no_config_twice_as_long_as_there_are_others():
    study = optuna.create_study()
    tried = set()
    for number in range(12):
        study.sampler = FreezeThawSampler(seed=number, n_startup_trials=4)
        trial = study.ask()
        config = (trial.suggest_categorical("model", ["a", "b", "c"]), trial.suggest_int("layers", 1, 4))
        study.tell(trial, float(config[1]))
        tried |= {config} if number >= 4 else set()

    assert len(tried) == 8


def test_the_sampler_keeps_away_from_configs_that_run_and_from_those_that_break_a_constraint():
    study = optuna.create_study()
    space = {"x": FloatDistribution(0, 1)}
    for x in np.linspace(0, 1, 9):
        study.add_trial(optuna.create_trial(value=loss(x, 9), params={"x": x}, distributions=space, constraints={"c": x - 0.5}))
    asked = []
    for number in range(6):
        study.sampler = FreezeThawSampler(seed=number)
        asked.append(study.ask(space).params["x"])

    assert np.ptp(asked) > 0.01
    assert np.mean(np.array(asked) < 0.6) > 0.5


def test_ranks_of_earlier_studies_are_not_mixed_with_reports():
    study = optuna.create_study()
    space = {"x": FloatDistribution(0, 1)}
    for x in np.linspace(0, 1, 9):
        study.add_trial(optuna.create_trial(value=abs(x - 0.9), params={"x": x}, distributions=space))  # an earlier study has other results
    for x in (0.1, 0.25, 0.5, 0.8):
        reports = curve(x, EPOCHS)
        study.add_trial(optuna.create_trial(value=0.5, params={"x": x}, distributions=space, intermediate_values=reports))
    study.sampler = FreezeThawSampler(seed=1)

    assert abs(study.ask(space).params["x"] - 0.3) < 0.15


@pytest.mark.parametrize("changes", [{"n_candidates": 0}, {"n_startup_trials": 0}])
def test_a_sampler_that_cannot_be_is_refused(changes: dict[str, int]):
    with pytest.raises(ValueError, match="must be a whole number"):
        FreezeThawSampler(**changes)


def test_with_several_objectives_the_sampler_draws_at_random():
    study = optuna.create_study(directions=["minimize", "maximize"], sampler=FreezeThawSampler(seed=1, n_startup_trials=2))
    for _ in range(4):
        trial = study.ask()
        study.tell(trial, [trial.suggest_float("x", 0, 1), 1.0])

    assert study.ask({"x": FloatDistribution(0, 1)}).params["x"] <= 1
