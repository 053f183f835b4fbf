"""Torch models learn four recorded strings of digits by heart; quartznet needs more steps than a test can have."""

from __future__ import annotations

from pathlib import Path

import pytest
from backend_setup import QUIET, Setup
from conftest import SHARED_DATA

from speechtrain.backends.torch.backend import TorchBackend

SPEECH = SHARED_DATA / "fsdd_strings"
WAYS = {
    "tdnn": ["optimizer.lr=5e-3"],
    "conformer": ["model.n_layers=2", "optimizer.lr=3e-3"],
    "fastconformer": ["model.n_layers=2", "optimizer.lr=3e-3", "model.subsampling=4"],
    "ebranchformer": ["model.n_layers=2", "optimizer.lr=3e-3"],
    "zipformer": ["optimizer.lr=2e-3"],
    "crdnn": ["optimizer.lr=3e-3"],
    "wav2vec2": ["optimizer.lr=1e-3", "features=waveform", "features.sample_rate=8000"],
    "lstm": ["optimizer.lr=3e-3", "model.detach_every=null", "trainer.epochs=400"],
}


@pytest.mark.slow
@pytest.mark.parametrize("model", WAYS)
def test_a_model_learns_four_strings_by_heart(tmp_path: Path, model: str) -> None:
    if not SPEECH.is_dir():
        pytest.skip(f"no recorded speech at {SPEECH}")
    data = ["data=manifest", f"data.root={SPEECH}", "data.train=valid.jsonl", "data.limit_utterances=4"]
    data += [] if "features=waveform" in WAYS[model] else ["features=logmel_8k"]
    ways = [
        f"model={model}",
        "model.dropout=0",
        "augment=none",
        "trainer.epochs=150",
        "data.num_buckets=1",
        "objective.metric=train/loss",
        *WAYS[model],
    ]
    setup = Setup(TorchBackend(threads=1), tmp_path, *data, *ways, base=QUIET)
    built = setup.build()
    setup.train(built)
    assert setup.measure(built, "train")["train/wer"] <= 0.02
