"""The recipes still give about the scores that docs/benchmarks.md tells, less the scatter between seeds: minutes each, `-m slow`."""

from __future__ import annotations

import pytest
from conftest import SHARED_DATA

import speechtrain

pytestmark = pytest.mark.slow
recorded = pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="no recorded speech beside the checkout")


def run(*overrides: str) -> dict[str, float]:
    return speechtrain.train(speechtrain.compose([*overrides, "tracking=[]"])).metrics


def test_the_default_run_understands_unseen_voices() -> None:
    assert run()["test/wer"] <= 0.035


def test_the_conformer_does_so_too_in_the_same_time() -> None:
    assert run("model=conformer")["test/wer"] <= 0.08


@recorded
def test_fsdd() -> None:
    found = [run("experiment=fsdd", f"data.root={SHARED_DATA / 'fsdd'}", f"seed={seed}", "backend.threads=1") for seed in (1, 2, 3)]
    assert sum(each["test/cer"] for each in found) / 3 <= 0.008
    assert sum(each["test/exact"] for each in found) / 3 >= 0.993


@recorded
@pytest.mark.parametrize(("speaker", "exact"), [("nicolas", 0.84), ("theo", 0.93)])
def test_fsdd_unseen_speaker(speaker: str, exact: float) -> None:
    root = SHARED_DATA / "fsdd"
    found = run("experiment=fsdd_unseen_speaker", f"data.root={root}", f"data.split.test=[{speaker}]", "backend.threads=1")
    assert found["test/exact"] >= exact


@recorded
def test_digit_strings() -> None:
    assert run("experiment=digit_strings", f"data.root={SHARED_DATA / 'fsdd_strings'}", "backend.threads=1")["test/wer"] <= 0.01
