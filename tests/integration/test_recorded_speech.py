"""Every kind of recorded speech that is beside the checkout is read, checked and trained on for an epoch."""

from __future__ import annotations

import math

import pytest
from conftest import SHARED_DATA, thinned

import speechtrain

pytestmark = pytest.mark.long

RECORDED = {
    "fsdd": ["features=logmel_8k", "data.train=train.jsonl", "data.val=valid.jsonl", "data.test=test.jsonl"],
    "fsdd_strings": ["features=logmel_8k", "data.train=train.jsonl", "data.val=valid.jsonl", "data.test=test.jsonl"],
    "librispeech_tc100": [
        "data.train=train.jsonl",
        "data.val=valid.jsonl",
        "data.test=test.jsonl",
        "tokenizer=bpe",
        "tokenizer.vocab_size=64",
    ],
    "librispeech_devclean10_mp3": ["data.train=all.jsonl", "data.split.val=20", "data.split.test=20"],
    "an4_mini": ["data.train=train.jsonl", "data.test=test.jsonl", "data.split.val=20", "tokenizer=word"],
}


@pytest.mark.parametrize("folder", thinned(RECORDED, 3))
def test_recorded_speech_is_read_checked_and_trained_on(folder: str) -> None:
    if not (SHARED_DATA / folder).is_dir():
        pytest.skip(f"no recorded speech at {SHARED_DATA / folder}")
    options = ["data=manifest", f"data.root={SHARED_DATA / folder}", *RECORDED[folder], "data.on_bad=error", "trainer.epochs=1"]
    small = ["data.limit_utterances=48", "model.channels=32", "tracking=[]", "report.enabled=false", "backend.threads=1"]
    result = speechtrain.train(speechtrain.compose([*options, *small]))
    assert result.metrics["data/skipped"] == 0
    for metric in ("train/loss", "val/loss", "val/cer", "test/wer"):
        assert math.isfinite(result.metrics[metric])
