"""The model of learning curves, the rule that continues trials by it, and the sampler that proposes them by it."""

from __future__ import annotations

import math

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from speechtrain.sweep.study.curve_model import Curve, CurveModel, features_of
from speechtrain.sweep.study.freeze_thaw import FreezeThaw, FreezeThawSampler
from speechtrain.sweep.study.standings import Progress, Standings

EPOCHS = 9
RUNNING = Progress(all_begun=False, open_slots=[], has_result=True)
ALL_BEGUN = Progress(all_begun=True, open_slots=[], has_result=True)


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


def test_without_a_complete_trial_there_is_no_model():
    with pytest.raises(ValueError, match="no trial is complete"):
        CurveModel({0: Curve({"x": 0.1}, {1: 2.0})}, [1])


def test_the_trial_that_promises_most_is_continued():
    standings = standings_of(FreezeThaw(n_startup_trials=4), {0.0: 9, 0.9: 9, 0.8: 3, 0.28: 3, 0.6: 3, 1.0: 3})

    assert standings.rule.next_slot(standings, RUNNING) == 3
    standings.put(3, curve(0.28, 9), None)
    assert standings.rule.next_slot(standings, RUNNING) is None  # a new one promises more than what is left


def test_nothing_is_continued_before_a_trial_shows_how_long_a_training_is_and_enough_have_begun():
    rule = FreezeThaw(n_startup_trials=4)
    standings = standings_of(rule, {0.9: 9, 0.8: 3, 0.3: 3})

    assert rule.next_slot(standings, RUNNING) is None
    assert rule.next_slot(standings, ALL_BEGUN) == 2  # no other will begin
    assert rule.next_slot(standings_of(rule, {0.8: 3, 0.3: 3}), Progress(all_begun=False, open_slots=[], has_result=False)) is None
    assert rule.next_slot(standings_of(rule, {0.8: 3, 0.3: 3}), Progress(all_begun=True, open_slots=[], has_result=False)) == 1


def test_once_all_have_begun_what_will_hardly_be_the_best_is_not_continued():
    trained = {0.3: 9, 0.0: 9, 0.6: 9, 0.9: 9, 0.95: 3, 1.0: 3}
    standings = standings_of(FreezeThaw(n_startup_trials=4), trained)
    assert standings.rule.next_slot(standings, ALL_BEGUN) is None

    standings = standings_of(FreezeThaw(n_startup_trials=4, least_probability=0.0), trained)
    assert standings.rule.next_slot(standings, ALL_BEGUN) in (4, 5)


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


def test_with_several_objectives_the_sampler_draws_at_random():
    study = optuna.create_study(directions=["minimize", "maximize"], sampler=FreezeThawSampler(seed=1, n_startup_trials=2))
    for _ in range(4):
        trial = study.ask()
        study.tell(trial, [trial.suggest_float("x", 0, 1), 1.0])

    assert study.ask({"x": FloatDistribution(0, 1)}).params["x"] <= 1
