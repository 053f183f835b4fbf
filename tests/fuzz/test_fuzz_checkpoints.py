"""Files that describe pretrained checkpoints, with one value of any kind in the place of another: used, or refused in our own words."""

from __future__ import annotations

import copy
import json
import shutil
import tracemalloc
from pathlib import Path
from random import Random
from typing import Any

import pytest
from checkpoints import Make
from fuzzing import answer, generators

from speechtrain import compose
from speechtrain.config.build import build
from speechtrain.config.pretrained import Checkpoint
from speechtrain.data.features.pretrained import PretrainedFeatures
from speechtrain.data.text.pretrained import PretrainedTokenizer

ODD: list[Any] = [
    *(None, True, 0, -1, 10**12, 1.5, float("nan"), "", "x", "${oc.env:HOME}", "???", "\0", [], {}, [1], [[]], ["a", None]),
    *({"content": 3}, {"a": {"b": 1}}, {"0": {"content": "<s>"}}, "Wav2Vec2FeatureExtractor", "pipeline", "wav2vec2", "os.system"),
]


def places(value: Any) -> list[tuple[Any, Any]]:
    """Each mapping or list at any depth, with each of its keys."""
    items = list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    return [(value, key) for key, _ in items] + [place for _, item in items for place in places(item)]


def changed(content: Any, rng: Random) -> Any:
    """A file's content with one change."""
    content = copy.deepcopy(content)
    holder, key = rng.choice(places(content) or [({}, "")])
    if rng.random() < 0.1:
        return rng.choice(ODD)
    if rng.random() < 0.2 and isinstance(holder, dict):
        holder.pop(key, None)
    else:
        holder[key] = rng.choice(ODD)
    return content


def describe(folder: Path, language: str | None) -> None:
    checkpoint = Checkpoint.find(str(folder))
    assert checkpoint.architecture["model_type"]
    features = PretrainedFeatures(16000, None, extractor=checkpoint.extractor)
    assert features.size > 0
    tokenizer = PretrainedTokenizer(definition=checkpoint.tokens(language))
    labels = tokenizer.encode("the bad egg")
    assert max(labels, default=0) < len(tokenizer.vocabulary) <= 65_536
    tokenizer.decode(labels)


@pytest.mark.parametrize(("kind", "language"), [("wav2vec2", None), ("mms", "deu"), ("parakeet", None), ("bert", None)])
def test_a_file_with_any_value_in_it_is_read_or_refused(made: Make, tmp_path: Path, kind: str, language: str | None) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(made(kind), folder)
    files = {path: path.read_text() for path in folder.glob("*.json")}
    describe(folder, language)
    tracemalloc.start()
    for _, rng in generators(f"checkpoint {kind}", 60):
        path = rng.choice(sorted(files))
        path.write_text(json.dumps(changed(json.loads(files[path]), rng)))
        answer(lambda: describe(folder, language), f"{path.name}: {path.read_text()}")
        path.write_text(files[path])
    assert tracemalloc.get_traced_memory()[1] < 200e6
    tracemalloc.stop()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wav2vec2", "wavlm", "bert_relative", "parakeet"])
def test_an_architecture_with_any_value_in_it_is_built_or_refused(made: Make, kind: str) -> None:
    architecture = Checkpoint.find(str(made(kind))).architecture
    size = 80 if kind.startswith(("bert", "parakeet")) else 1
    node = compose(["model=pretrained", "model.path=a/b"]).model
    for _, rng in generators(f"architecture {kind}", 60):
        strange = changed(architecture, rng)
        if isinstance(strange, dict):
            answer(lambda: build("model", {**node, "architecture": strange}, input_size=size), strange)  # noqa: B023
