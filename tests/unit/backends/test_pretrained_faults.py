"""Folders of pretrained checkpoints that are damaged or made to do harm: each ends with a message, and nothing of it runs."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import Make, encoder
from conftest import thinned
from safetensors.torch import load_file, save_file

import speechtrain
from speechtrain import compose
from speechtrain.backends.torch.pretrained_files import read_pretrained
from speechtrain.config.build import build
from speechtrain.config.pretrained import Checkpoint
from speechtrain.errors import ConfigError, UserError

Damage = Callable[[Path], None]


def values(file: str, **changes: Any) -> Damage:
    """Change keys of a file; None removes one."""

    def damage(folder: Path) -> None:
        content = json.loads((folder / file).read_text()) if (folder / file).is_file() else {}
        inner = content.get("feature_extractor", content)
        inner.update(changes)
        for key in [key for key, value in changes.items() if value is None]:
            del inner[key]
        (folder / file).write_text(json.dumps(content))

    return damage


def weights(change: Callable[[dict[str, torch.Tensor]], object], file: str = "model.safetensors") -> Damage:
    """Change the weights in a file."""

    def damage(folder: Path) -> None:
        state = load_file(folder / file)
        change(state)
        save_file(state, folder / file)

    return damage


def content(file: str, text: bytes) -> Damage:
    return lambda folder: (folder / file).write_bytes(text) and None


class Runs:
    """An object whose unpickling would write a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("it_was_run",)


def pickled(write: Callable[[Path], object]) -> Damage:
    def damage(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        write(folder / "pytorch_model.bin")

    return damage


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n"
INDEX = "model.safetensors.index.json"

VOCABULARIES: list[tuple[Damage, str]] = [
    (values("vocab.json", z=-4), "has the token 'z' with the number -4, and the head of its config.json has 32 outputs"),
    (values("vocab.json", more=40), "has the token 'more' with the number 40, and the head of its config.json has 32 outputs"),
    (values("vocab.json", z="first"), r"cannot be read \(ValueError: invalid literal for int"),
    (values("vocab.json", deu={"a": 1}), r"cannot be read \(TypeError: int"),
    (values("tokenizer_config.json", added_tokens_decoder=["5"]), r"cannot be read \(ValueError: dictionary update"),
    (values("tokenizer_config.json", added_tokens_decoder={"5": {}}), r"cannot be read \(KeyError: 'content'"),
    (content("added_tokens.json", b'{"a": "b"}'), r"cannot be read \(ValueError: invalid literal for int"),
    (content("vocab.json", POINTER), "vocab.json is a pointer of Git LFS, .*\n.*run git lfs pull in"),
]
EXTRACTORS: list[tuple[Damage, str]] = [
    (values("processor_config.json", sampling_rate=0), "sampling_rate=0, which is no number from 1000 to"),
    (values("processor_config.json", sampling_rate="fast"), "sampling_rate='fast', which is no number"),
    (values("processor_config.json", feature_extractor_type="ParakeetFeatureExtractor", feature_size=None), "says no feature_size"),
    (values("processor_config.json", feature_size=10**9), "feature_size=1000000000, which is no number from 1 to 4096"),
]
ARCHITECTURES: list[tuple[Damage, str]] = [
    (values("config.json", hidden_size="big"), "no wav2vec2 can be built of it .*expected int, got str"),
    (values("config.json", hidden_size=0), "no wav2vec2 can be built of it .ZeroDivisionError"),
    (values("config.json", num_hidden_layers=10**7), "asks for num_hidden_layers=10000000, and 1000 is the most"),
    (values("config.json", intermediate_size=10**10), "it would have 660,000,008,[0-9]{3} weights, and 8,000,000,000 are the most"),
    (values("config.json", conv_stride=[5, 2, 2, 2, 2, 2, 0]), "asks for conv_stride=0, and 1 is the least"),
    (values("config.json", model_type="parakeet_ctc"), "the checkpoint takes 80 mel energies\n.*of the same model as its other files"),
]
WEIGHTS: list[tuple[Damage, str]] = [
    (content("model.safetensors", POINTER), "model.safetensors is a pointer of Git LFS, .*\n.*run git lfs pull in"),
    (lambda folder: (folder / "model.safetensors").unlink(), "has no model.safetensors and no pytorch_model.bin"),
    (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
    (pickled(lambda path: path.write_bytes(pickle.dumps({"x": Runs()}))), "holds more than weights, and nothing of it was run"),
    (pickled(lambda path: torch.save({"x": Runs()}, path)), "holds more than weights, and nothing of it was run"),
    (pickled(lambda path: (path.parent / INDEX).write_text('{"weight_map": ["a"]}')), f"{INDEX} names no files of weights"),
    (pickled(lambda path: (path.parent / INDEX).write_text('{"weight_map": {"a": "../b"}}')), f"{INDEX} names '../b', which is no file of"),
    (weights(lambda state: state.update({"lm_head.bias": torch.zeros(5)})), r"its head has weights of the shapes \(32, 16\) and \(5,\)"),
    (weights(lambda state: state.update({"lm_head.weight": torch.zeros(32)})), r"its head has weights of the shapes \(32,\) and \(32,\)"),
    (
        weights(lambda state: state.update({"lm_head.bias": torch.zeros(32, dtype=torch.int8)})),
        "'lm_head.bias' is of the type int8: give the checkpoint as it was before it was quantised",
    ),
    (
        weights(lambda state: state.pop("wav2vec2.encoder.pos_conv_embed.conv.parametrizations.weight.original1")),
        "it has a weight encoder.pos_conv_embed.*original0, and none encoder.pos_conv_embed.*original1",
    ),
]


@pytest.fixture
def folder(made: Make, tmp_path: Path) -> Path:
    """A checkpoint that may be damaged."""
    shutil.copytree(made("wav2vec2"), tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.mark.parametrize(("damage", "message"), [*VOCABULARIES, *EXTRACTORS])
def test_what_describes_a_checkpoint_is_refused_with_what_is_wrong(folder: Path, damage: Damage, message: str) -> None:
    damage(folder)
    checkpoint = Checkpoint.find(str(folder))
    with pytest.raises(ConfigError, match=message):
        _ = checkpoint.extractor, checkpoint.tokens()


@pytest.mark.parametrize(("damage", "message"), WEIGHTS)
def test_weights_are_refused_with_what_is_wrong_and_nothing_of_them_is_run(folder: Path, damage: Damage, message: str) -> None:
    damage(folder)
    checkpoint = Checkpoint.find(str(folder))
    with pytest.raises(ConfigError, match=message):
        read_pretrained(checkpoint, checkpoint.architecture, None, None)
    assert not Path("it_was_run").exists()


@pytest.mark.parametrize(("damage", "message"), thinned(ARCHITECTURES, 3))
def test_an_architecture_is_refused_before_it_takes_memory(folder: Path, damage: Damage, message: str) -> None:
    damage(folder)
    with pytest.raises(ConfigError, match=message):
        build("model", {**compose(["model=pretrained", "model.path=a/b"]).model, "path": str(folder)}, input_size=1)


@pytest.mark.parametrize("damage", [VOCABULARIES[0][0], EXTRACTORS[0][0], WEIGHTS[0][0], ARCHITECTURES[0][0]])
def test_a_model_of_a_damaged_folder_is_not_loaded(folder: Path, damage: Damage) -> None:
    damage(folder)
    with pytest.raises(ConfigError, match=str(folder) if damage is not ARCHITECTURES[0][0] else "no wav2vec2 can be built"):
        speechtrain.load(str(folder), "backend.threads=1")


def test_a_broken_tokenizer_is_named(made: Make, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(made("parakeet"), folder)
    whole = json.loads((folder / "tokenizer.json").read_text())
    del whole["model"]["merges"]
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    with pytest.raises(UserError, match=r"the tokenizer.json of the checkpoint cannot be used \(Missing vocab/merges"):
        speechtrain.load(str(folder), "backend.threads=1")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda state: state.update({"foo": torch.zeros(3)}), "has a weight 'foo', which the model has not"),
        (lambda state: [state.pop(name) for name in list(state) if "adapter" in name], "has no weights of an adapter"),
        (
            lambda state: state.update({"lm_head.weight": torch.zeros(5, 16), "lm_head.bias": torch.zeros(5)}),
            r"needs a head of 9 tokens, and the checkpoint has a head of the shape \(5, 16\)",
        ),
    ],
)
def test_an_adapter_of_another_model_is_refused(made: Make, tmp_path: Path, damage: Any, message: str) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(made("mms"), folder)
    weights(damage, "adapter.deu.safetensors")(folder)
    with pytest.raises(UserError, match=message):
        speechtrain.load(f"{folder}@deu", "backend.threads=1")


def test_a_head_with_more_outputs_than_tokens_is_warned_of(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    values("vocab.json", x=None, q=None)(folder)
    tokens = Checkpoint.find(str(folder)).tokens()
    assert len(tokens["tokens"]) == 32
    assert "2 of the 32 outputs of the head have no token in the vocabulary" in caplog.text


def test_a_checkpoint_is_heard_at_its_own_rate(folder: Path) -> None:
    values("processor_config.json", sampling_rate=8000)(folder)
    assert speechtrain.load(str(folder), "backend.threads=1").sample_rate == 8000


@pytest.mark.slow
def test_what_is_wrong_with_a_checkpoint_is_said_with_the_name_of_its_file(made: Make, tmp_path: Path) -> None:
    folder = tmp_path / "wrong"
    shutil.copytree(made("wav2vec2"), folder)
    options = ["model=pretrained", f"model.path={folder}", "tokenizer=pretrained"]
    changes: list[tuple[str, dict[str, Any] | str, str]] = [
        ("config.json", {"model_type": "whisper"}, "describes a model of the kind 'whisper'"),
        ("config.json", "[1]", "config.json cannot be read .it holds a list"),
        ("config.json", {"hidden_act": "${oc.env:HOME}"}, "nothing is resolved"),
        ("processor_config.json", {"feature_extractor": {"feature_extractor_type": "WhisperFeatureExtractor"}}, "WhisperFeatureExtractor"),
        ("tokenizer_config.json", {"tokenizer_class": "Wav2Vec2PhonemeCTCTokenizer"}, "train a new head with tokenizer=phoneme"),
    ]
    for file, change, message in changes:
        before = (folder / file).read_text()
        (folder / file).write_text(change if isinstance(change, str) else json.dumps({**json.loads(before), **change}))
        with pytest.raises(ConfigError, match=message):
            compose(options)
        (folder / file).write_text(before)
    compose(options)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:1000])
    with pytest.raises(ConfigError, match=r"model.path: .*model.safetensors cannot be read"):
        encoder(folder).load_pretrained()
    config = json.loads((folder / "config.json").read_text())
    (folder / "model.safetensors").write_bytes(whole)
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 64}))
    with pytest.raises(
        ConfigError, match=r"asks for a weight encoder.layers.0.feed_forward.intermediate_dense.weight of the shape \(64, 16\)"
    ):
        encoder(folder).load_pretrained()
    with pytest.raises(ConfigError, match="no such folder"):
        compose(["model=pretrained", "model.path=./nowhere"])
    with pytest.raises(ConfigError, match="needs a head of 32 tokens, and the checkpoint has no head"):
        speechtrain.load(str(made("wav2vec2", head=False)))
