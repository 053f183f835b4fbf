"""A run that does not learn is named, with its figures and what to type; no run that learns is accused of anything."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from speechtrain.training.diagnosis import Evidence, Finding, diagnose, figures
from speechtrain.training.facts import Facts

RECORDED = [json.loads(line) for line in (Path(__file__).parent / "recorded_runs.jsonl").read_text(encoding="utf-8").splitlines()]
"""Facts and epochs of trainings as they were: what they learnt (`codes` is empty), or what kept them from it."""
GOOD = [each for each in RECORDED if not each["codes"]]


def found_in(run: dict[str, Any]) -> dict[str, Finding]:
    """What is said of a run in the course of its training, by name."""
    facts = Facts.of(run["facts"])
    told: dict[str, Finding] = {}
    for count in range(len(run["epochs"]) + 1):
        evidence = Evidence(facts, run["epochs"][:count], ended=count == len(run["epochs"]), failure=run.get("failure"))
        told |= {finding.code: finding for finding in diagnose(evidence)}
    return told


def test_there_are_at_least_twenty_runs_that_learn() -> None:
    assert len({json.dumps(each["overrides"]) for each in GOOD}) >= 20


@pytest.mark.parametrize("run", GOOD, ids=lambda run: str(run["name"]))
def test_a_run_that_learns_is_not_accused_at_any_of_its_epochs(run: dict[str, Any]) -> None:
    assert found_in(run) == {}


@pytest.mark.parametrize("run", [each for each in RECORDED if each["codes"]], ids=lambda run: str(run["name"]))
def test_what_keeps_a_recorded_run_from_learning_is_named(run: dict[str, Any]) -> None:
    assert set(run["codes"]) <= set(found_in(run))


WELL = Facts.of({**GOOD[0]["facts"], "recordings": 24})

BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "frozen-head": ({"head_trained": False}, "the head is frozen"),
    "long-warmup": ({"lr_top": 0.95}, "rises for 95% of the run"),
    "high-lr": ({"lr": 0.6}, "optimizer.lr=0.6 is too high"),
    "low-lr": ({"lr": 6e-6, "lr_sum": 7e-4}, "optimizer.lr=6e-06 is too low: AdamW moves a weight by 0.0007 at most"),
    "regularisation": ({"label_smoothing": 0.9}, "task.label_smoothing=0.9 outweighs the loss"),
    "masks": ({"masked": 0.9}, "hide 90% of an utterance"),
    "too-few-frames": ({"infeasible": 0.7}, "70% of the training utterances have fewer frames than their text needs"),
    "silence": ({"silent": 0.5}, "50% of 24 training recordings are silent"),
    "clipping": ({"clipped": 0.9}, "90% of 24 training recordings are clipped"),
    "case": ({"unseen": 0.5, "other_case": 0.5}, "50% of the tokens of the validation texts are in the vocabulary in the other case only"),
    "no-overlap": ({"unseen": 0.6}, "60% of the tokens of the validation texts are in no training text"),
    "small-validation": ({"val": 2, "val_labels": 9}, "the 2 validation utterances have 9 labels"),
}
"""What a good recipe is broken by, as facts of before the first step, and what is said of it."""


@pytest.mark.parametrize("code", BROKEN)
def test_what_is_known_before_the_first_step_is_said_before_it(code: str) -> None:
    changes, said = BROKEN[code]
    assert diagnose(Evidence(WELL)) == []
    (finding,) = diagnose(Evidence(replace(WELL, **changes)))
    assert finding.code == code
    assert said in finding.message
    assert any(word in finding.fix for word in ("=", "tokenizer", "requires_grad"))


def test_a_loss_that_is_no_number_any_more_is_named_with_a_lower_rate() -> None:
    (finding,) = diagnose(Evidence(WELL, GOOD[0]["epochs"][:1], ended=True, failure="the loss became NaN or infinite in epoch 2"))
    assert (finding.code, finding.message) == ("not-finite", "the loss became NaN or infinite in epoch 2")
    assert f"optimizer.lr={WELL.lr / 10:.1g}" in finding.fix if WELL.lr else True
    (finding,) = diagnose(Evidence(WELL, [{**GOOD[0]["epochs"][0], "val/loss": float("nan")}]))
    assert finding.code == "not-finite"


def test_what_was_known_before_explains_what_is_seen_later() -> None:
    stuck = next(each for each in RECORDED if each["name"] == "mask")
    later = found_in(stuck)["nothing-learnt"]
    assert later.fix == "mend first what was known before training: masks"


def test_a_model_that_knows_its_training_data_by_heart_is_named_from_half_of_the_run_on() -> None:
    run = next(each for each in RECORDED if each["name"] == "overfits")
    facts = Facts.of(run["facts"])
    assert diagnose(Evidence(facts, run["epochs"][:19])) == []
    (finding,) = diagnose(Evidence(facts, run["epochs"], ended=True))
    assert "val/loss is 2.51, train/loss 0.118: the model memorises its 100 training utterances" in finding.message
    assert "lowest in epoch 14, 1.99" in finding.message
    assert "model.dropout" in finding.fix


def test_a_test_run_is_not_asked_to_learn() -> None:
    stuck = next(each for each in RECORDED if each["name"] == "mask")
    facts = replace(Facts.of(stuck["facts"]), test_run="quick")
    assert diagnose(Evidence(facts, stuck["epochs"], ended=True)) == []


def test_a_longer_run_that_begins_with_trained_weights_may_have_a_low_rate() -> None:
    assert diagnose(Evidence(replace(WELL, lr=1e-5, lr_sum=1e-3, pretrained=True))) == []


def test_the_figures_stand_beside_what_is_expected_of_them() -> None:
    lines = figures(Evidence(WELL, GOOD[0]["epochs"][:2]))
    assert f"{WELL.guess_loss:.3f} is what a guess by token frequencies gets" in lines["train/loss"]
    assert lines["steps"] == f"{2 * WELL.epoch_steps} of {WELL.steps}"
    assert "no epoch is over" in figures(Evidence(WELL))["train/loss"]
