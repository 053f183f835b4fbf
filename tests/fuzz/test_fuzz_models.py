"""Models that a stranger gives: their configs are changed and their files damaged in every way; no code runs, nothing passes silently."""

from __future__ import annotations

import copy
import io
import json
import math
import os
import pickle
import re
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import yaml
from conftest import REPOSITORY
from fuzzing import answer, files_below, generators

from speechtrain.app.resume import resume_arguments
from speechtrain.backends.checkpoint_files import STATE
from speechtrain.backends.keras.weights_file import read_state
from speechtrain.backends.torch.checkpoint import RESUME_KEYS, check_resumable, read_weights
from speechtrain.backends.zip_files import UNREADABLE
from speechtrain.config.compose import compose
from speechtrain.config.experiment import ExperimentConfig
from speechtrain.config.stored import read_yaml
from speechtrain.inference.archive import extract, stored_config, weights_of, write_archive
from speechtrain.inference.recognizer import Recognizer

CANARY = "canary"
OWN_CODE = (
    {"_target_": "os.system", "command": f"touch {CANARY}"},
    {"_target_": "torch.utils.collect_env.run", "command": f"touch {CANARY}"},
    {"_target_": "speechtrain.files.os.system", "command": f"touch {CANARY}"},
    {"_target_": "builtins.open", "file": CANARY, "mode": "w"},
    {"_target_": "pathlib.Path.touch", "_args_": [{"_target_": "pathlib.Path", "_args_": [CANARY]}]},
    {"_target_": "speechtrain.tracking.provenance.subprocess.run", "args": ["touch", CANARY]},
    {"_target_": "functools.partial", "_partial_": True, "_args_": [{"_target_": "os.system", "command": f"touch {CANARY}"}]},
)
"""What makes a file in the current folder, if it is built."""

SMALL = ["data=synthetic", "data.alphabet=abc", "features=logmel_8k", "features.n_mels=20", "backend.threads=1", "augment=none"]
MODELS = (
    ["model=mlp", "model.hidden_sizes=[8]"],
    ["model=tdnn", "model.channels=8", "model.stem_channels=[4]", "model.stem_time_strides=[2]", "model.dilations=[1,2]"],
    ["model=conformer", "model.d_model=8", "model.n_layers=1", "model.n_heads=2", "model.stem_channels=4", "model.subsampling=2"],
    [
        "model=zipformer",
        "model.rates=[1,2]",
        "model.widths=[8,8]",
        "model.layers=[1,1]",
        "model.heads=[2,2]",
        "model.hidden=[8,8]",
        "model.kernel_sizes=[3,3]",
        "model.head_size=4",
        "model.stem_channels=4",
    ],
    ["model=lstm", "model.hidden_size=8", "model.layers=1", "task=classification", "tokenizer.classes=[a,b,c]"],
)
VOCABULARY = ["", "a", "b", "c"]


@pytest.fixture(scope="module")
def models() -> list[tuple[dict[str, Any], dict[str, torch.Tensor]]]:
    """Configs as checkpoints have them, each with the weights of its model."""
    made = []
    for options in MODELS:
        cfg = ExperimentConfig.of(compose([*SMALL, *options]))
        made.append((cfg.as_dict(), outline(cfg)))
    return made


def outline(cfg: ExperimentConfig) -> dict[str, torch.Tensor]:
    from speechtrain.config.build import build
    from speechtrain.tasks.build import build_task

    features, backend = build("features", cfg.features), build("backend", cfg.backend)
    vocabulary = VOCABULARY if cfg.tokenizer["_target_"].endswith("CharTokenizer") else VOCABULARY[1:]
    task = build_task(cfg, tokenizer=build("tokenizer", cfg.tokenizer, vocabulary=vocabulary), input_size=features.size)
    return dict(backend.build(cfg.model, task, input_size=features.size, seed=0).state_dict())


def checkpoint_of(config: object, weights: Mapping[str, torch.Tensor], vocabulary: object = None) -> dict[str, Any]:
    state = {f"model.{name}": value for name, value in weights.items()}
    extra = {"config": config, "vocabulary": VOCABULARY if vocabulary is None else vocabulary}
    return {**dict.fromkeys(RESUME_KEYS, 0), "state_dict": state, "extra": extra}


# configs


def places(node: object, path: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    """The paths of all values inside a value."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [found for key, item in items for found in ((*path, key), *places(item, (*path, key)))]


def put(config: dict[str, Any], path: tuple[object, ...], value: object) -> None:
    node: Any = config
    for part in path[:-1]:
        node = node[part]
    node[path[-1]] = value


def odd_value(rng: Random) -> object:
    """A value that hardly any key takes, and that none takes harm from."""
    numbers = [-1, 0, 10**6, 10**9, 10**14, 2**31, 2**63, 2**200, -(2**70), 1e300, -0.5, math.nan, math.inf, -math.inf]
    texts = ["", " ", "x", "null", "a" * 5000, "\ud800", "a\0b", "\u2028", "../../etc/passwd", "%s%n", "[1,2]", "{a: 1}", "1e400"]
    nested = [[], {}, [[]], [None], {"a": {"b": []}}, {1: 2}, [1, "a", None], {"": ""}, [0] * 300, {str(n): n for n in range(300)}]
    return rng.choice([None, True, False, b"bytes", (1, 2), {3}, *numbers, *texts, *nested])


def must_be_refused(rng: Random) -> tuple[str, object]:
    """A value that no config may have, and what it is."""
    if rng.random() < 0.7:
        evil: object = copy.deepcopy(rng.choice(OWN_CODE))
        for _ in range(rng.randrange(3)):
            evil = rng.choice([[evil], {"a": evil}, [[1, evil]]])
        return "code", evil
    return "interpolation", rng.choice(
        ["${oc.env:HOME}", "${seed}", "a${oc.decode:1}", "${hydra:runtime.cwd}", ["${model}"], {"${seed}": 1}]
    )


def changed(config: dict[str, Any], rng: Random) -> tuple[dict[str, Any], bool]:
    """A copy of a config with one to three changes, and whether it must be refused."""
    config, never = copy.deepcopy(config), False
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        path = rng.choice(places({key: value for key, value in config.items() if key != "tracking"}))
        kind = rng.randrange(6)
        if kind == 0:
            parent: Any = config
            for part in path[:-1]:
                parent = parent[part]
            del parent[path[-1]]
        elif kind == 1:
            _, value = must_be_refused(rng)
            put(config, path, value)
            never = True
        elif kind == 2:
            put(config, (*path[:1], "colour") if isinstance(config[path[0]], dict) else ("colour",), odd_value(rng))
            never = True
        elif kind == 3:
            put(config, path, copy.deepcopy(config[rng.choice(list(config))]))  # a subtree in another place
        else:
            put(config, path, odd_value(rng))
        if never:
            break
    return config, never


def test_a_changed_config_is_refused_or_makes_a_model_and_never_runs_code(models: list[Any], tmp_path: Path) -> None:
    file = tmp_path / "model.ckpt"
    for number, rng in generators("configs", 25):
        before, weights = rng.choice(models)
        config, never = changed(before, rng)
        torch.save(checkpoint_of(config, weights, VOCABULARY[-len(weights["head.bias"]) :]), file)
        trust = rng.random() < 0.2
        outcome = answer(lambda: Recognizer.load(file, trust=trust), (number, config))  # noqa: B023
        assert not never or isinstance(outcome, str), f"accepted: {config}"
        if isinstance(outcome, str):
            assert str(file) in outcome, f"the file is not named: {outcome}"
        else:
            answer(lambda: outcome.transcribe(np.zeros(4000)), (number, config))  # noqa: B023
        assert files_below(Path.cwd()) <= {"model.ckpt"}, config


def test_a_changed_config_of_a_run_in_mlflow_is_refused_or_read_and_never_runs_code(models: list[Any]) -> None:
    for number, rng in generators("yaml", 40):
        config, _ = changed(rng.choice(models)[0], rng)
        plain = json.loads(json.dumps(config, default=str))
        text = yaml.safe_dump(plain, allow_unicode=rng.random() < 0.5)
        for _ in range(rng.choice([0, 0, 0, 1, 3])):
            at = rng.randrange(len(text))
            text = (
                text[:at] + rng.choice(["&a ", "*a", "!!python/object/apply:os.system ", "\t", "<<: ", "\x00", "- ", '"', "\n"]) + text[at:]
            )
        outcome = answer(lambda: ExperimentConfig.stored(read_yaml(text, "config.yaml"), "run 1", trust=False), (number, text))  # noqa: B023
        assert isinstance(outcome, (str, ExperimentConfig))
        assert files_below(Path.cwd()) == set()


def test_overrides_of_a_strangers_run_are_refused_or_harmless(tmp_path: Path) -> None:
    keys = [
        "data",
        "model",
        "tokenizer",
        "hydra",
        "hydra.launcher",
        "hydra/launcher",
        "hydra.job.env_set",
        "experiment",
        "seed",
        "trust",
        "rerun",
        "resume",
    ]
    tails = ["", "._target_", ".root", ".x.y._target_", "@data.corpora.a", "@hydra.callbacks.x", ".LD_PRELOAD"]
    values = [
        "os.system",
        "speechtrain.files.os.system",
        "{_target_: os.system, command: touch canary}",
        "[{_target_: os.system}]",
        "../../evil/x",
        "/evil/x",
        "${oc.env:HOME}",
        "${seed}",
        "true",
        "1,2",
        "glob(*)",
        "null",
        "",
        "'a b'",
        "a b",
        "tdnn",
        "[",
        "=",
        "'",
        "\u2028",
        "1e400",
    ]
    harm = ("_target_=os", "_target_=speechtrain.files", "_target_: os", "oc.env")
    run = tmp_path / "run"
    (run / ".hydra").mkdir(parents=True)
    for number, rng in generators("overrides", 100):
        typed = "".join(
            [
                rng.choice(["", "", "+", "++", "~", "--", " "]),
                rng.choice(keys),
                rng.choice(tails),
                rng.choice(["=", "=", "=", ""]),
                rng.choice(values),
            ]
        )
        (run / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(["seed=1", typed, rng.choice(["model=mlp", typed])]))
        outcome = answer(lambda: resume_arguments([f"resume={run}"]), (number, typed))
        taken = [] if isinstance(outcome, str) else outcome[:-3]
        assert not any(word in item for item in taken for word in harm if not item.lstrip().startswith("~")), typed
        assert not any(re.match(r"[+ ]*(data|model|tokenizer|experiment|\w+@[\w.]*)=[./]*/evil", item) for item in taken), typed
        assert not any(re.match(r"[+~ ]*(hydra\b|-|(trust|resume)(=|$))", item) for item in taken), typed


# files


def flipped(content: bytes, rng: Random) -> bytes:
    damaged = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 5, 20, 200])):
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def cut(content: bytes, rng: Random) -> bytes:
    start, end = sorted(rng.randrange(len(content) + 1) for _ in range(2))
    return rng.choice(
        [content[:end], content[start:], content[:start] + content[end:], content[:start] + bytes(end - start) + content[end:]]
    )


def grown(content: bytes, rng: Random) -> bytes:
    more = rng.choice([b"\0", b"PK\5\6", rng.randbytes(100), content[:500], content])
    at = rng.choice([0, len(content), rng.randrange(len(content))])
    return content[:at] + more + content[at:]


def directory_changed(content: bytes, rng: Random) -> bytes:
    """The entries of the directory, or its end, say something else: encryption, another method, sizes, offsets, a link."""
    damaged = bytearray(content)
    starts = [found.start() for found in re.finditer(re.escape(b"PK\1\2"), content)]
    field, width = rng.choice([(8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (38, 4), (42, 4)])
    value = rng.choice([1, 8, 12, 14, 99, 2**31, 2 ** (8 * width) - 1, 0xA1FF0000]) % 2 ** (8 * width)
    at = rng.choice(starts) + field if rng.random() < 0.8 else content.rfind(b"PK\5\6") + rng.choice([8, 10, 12, 16, 20])
    damaged[at : at + width] = value.to_bytes(width, "little")
    return bytes(damaged[: len(content)])


def packed_again(content: bytes, rng: Random) -> bytes:
    """The same files in another zip: compressed, one gone, one twice, one that is another, one more."""
    buffer, change = io.BytesIO(), rng.randrange(6)
    method = rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    with zipfile.ZipFile(io.BytesIO(content)) as before, zipfile.ZipFile(buffer, "w", method) as after:
        chosen = rng.choice(before.namelist())
        for name in before.namelist():
            if change != 0 or name != chosen:
                after.writestr(
                    name,
                    before.read(name)
                    if change != 1 or name != chosen
                    else rng.choice([b"", b"{}", b"[]", b"null", before.read(chosen)[:-1], content]),
                )
        if change == 2:
            after.writestr(chosen, before.read(chosen))
        elif change == 3:
            after.writestr(rng.choice(["../evil", "/evil", "a" * 300, "x\\y", "nested.zip", "\u2028"]), content)
        elif change == 4:
            after.writestr("bomb", bytes(70_000_000))
    return buffer.getvalue()


def of_another_program(_: bytes, rng: Random) -> bytes:
    buffer = io.BytesIO()
    kind = rng.randrange(6)
    if kind == 0:
        return rng.choice(
            [b"", b"PK", rng.randbytes(5000), b"#!/bin/sh\ntouch canary\n", json.dumps({"extra": {}}).encode(), bytes(100_000)]
        )
    if kind == 1:
        return pickle.dumps({"state_dict": {}, "extra": {}})
    if kind == 2:
        torch.save(
            rng.choice([[1, 2], torch.ones(3), {"state_dict": [1]}, {"extra": 3, "state_dict": {}}, {"model.a": torch.ones(2)}, None]),
            buffer,
        )
    elif kind == 3:
        torch.save({"state_dict": {}, "extra": {}}, buffer, _use_new_zipfile_serialization=False)
    elif kind == 4:
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("[Content_Types].xml", "<Types/>")
            archive.writestr(
                rng.choice(["word/document.xml", "x/data.pkl", STATE, "archive.json", "model.weights.h5"]),
                rng.choice(["", "[]", "{}", "x", "\x80\x02}."]),
            )
    else:
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            archive.addfile(tarfile.TarInfo("x"))
    return buffer.getvalue()


DAMAGES: tuple[Callable[[bytes, Random], bytes], ...] = (
    flipped,
    flipped,
    cut,
    grown,
    directory_changed,
    packed_again,
    of_another_program,
)


def damaged(content: bytes, rng: Random) -> tuple[str, bytes]:
    how = rng.choice(DAMAGES)
    return how.__name__, how(content, rng)


class Evil:
    """Runs a command where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {CANARY}",)


def crafted(content: dict[str, Any], rng: Random) -> dict[str, Any]:
    """A checkpoint whose weights or extras are not what they should be."""
    content = {**content, "state_dict": dict(content["state_dict"]), "extra": dict(content["extra"])}
    name = rng.choice(list(content["state_dict"]))
    value = content["state_dict"][name]
    odd = [
        value.clone().fill_(math.nan),
        value.double().fill_(math.inf),
        value[:1],
        value.int(),
        value.to(torch.complex64),
        torch.ones(1).expand(10**12),
    ]
    odd += [torch.empty(10**9, device="meta"), value.to_sparse(), 3, None, "x", Evil(), value.flatten(), torch.zeros(0)]
    kind = rng.randrange(5)
    if kind == 0:
        content["state_dict"][name] = rng.choice(odd)
    elif kind == 1:
        content["state_dict"][rng.choice(["more", "model.more", 3, name + "x"])] = content["state_dict"].pop(name)
    elif kind == 2:
        content["extra"][rng.choice(["config", "vocabulary"])] = rng.choice(
            [None, 3, Evil(), [Evil()], {"a": Evil()}, "x", ["a", "a"], [1], torch.ones(3), VOCABULARY * 3]
        )
    elif kind == 3:
        del content[rng.choice(["state_dict", "extra"])]
    else:
        content["extra"] = rng.choice([None, [], {}, Evil(), {"config": content["extra"]["config"]}])
    return content


def test_a_damaged_checkpoint_of_torch_is_refused_or_the_one_it_was(models: list[Any], tmp_path: Path) -> None:
    file = tmp_path / "model.ckpt"
    for number, rng in generators("torch", 30):
        config, weights = models[0]
        whole = checkpoint_of(config, weights)
        buffer = io.BytesIO()
        torch.save(whole if number % 4 else crafted(whole, rng), buffer)
        how, content = damaged(buffer.getvalue(), rng) if number % 4 else ("crafted", buffer.getvalue())
        file.write_bytes(content)
        same = []
        for read in (check_resumable, read_weights, stored_config, Recognizer.load):
            outcome = answer(lambda: read(file), (number, how, read))  # noqa: B023
            if isinstance(outcome, str):
                assert str(file) in outcome, outcome
            same.append(outcome)
        if isinstance(same[1], tuple) and how != "crafted":
            assert all(torch.equal(same[1][0][name], weights[name]) for name in weights), how
            assert same[1][1]["config"] == config, how
        assert how == "crafted" or isinstance(same[3], str) or (same[0] is None), how
        assert files_below(Path.cwd()) == {"model.ckpt"}, how


@pytest.fixture(scope="module")
def keras_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What Keras wrote, from `tests/old_runs`."""
    with tarfile.open(REPOSITORY / "tests" / "old_runs" / "runs.tar.xz") as archive:
        member = next(each for each in archive.getmembers() if each.name.endswith("keras/checkpoints/last.keras"))
        content = archive.extractfile(member)
        assert content is not None
        return content.read()


def weights_changed(content: bytes, rng: Random) -> bytes:
    """The HDF5 file inside is another one, with right checksums: links, other files, numbers that are not there, NaN."""
    buffer, name = io.BytesIO(), "model.weights.h5"
    with zipfile.ZipFile(io.BytesIO(content)) as before, zipfile.ZipFile(buffer, "w") as after:
        stored = io.BytesIO(before.read(name))
        with h5py.File(stored, "r+") as weights:
            paths: list[str] = []
            weights.visititems(lambda path, item: paths.append(path) if isinstance(item, h5py.Dataset) else None)
            path = rng.choice(paths)
            shape = weights[path].shape
            change = rng.randrange(7)
            if change != 6:
                del weights[path]
            if change == 0:
                weights[path] = h5py.ExternalLink("/etc/passwd", "/")
            elif change == 1:
                weights[path] = h5py.SoftLink("/")
            elif change == 2:
                weights.create_dataset(path, shape, dtype="f4", external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)])
            elif change == 3:
                weights.create_dataset(path, (10**6, 10**6), dtype="f4", chunks=(100, 100))
            elif change == 4:
                weights[path] = np.full(shape, np.nan, dtype=np.float32)
            elif change == 5:
                weights.create_dataset(path, data=np.zeros((1000, 1000)), compression="gzip")
            else:
                weights[f"{path}_again"] = weights["/"]
        for each in before.namelist():
            after.writestr(each, stored.getvalue() if each == name else before.read(each))
    return buffer.getvalue()


def test_a_damaged_file_of_keras_is_refused_or_the_one_it_was(keras_file: bytes, tmp_path: Path) -> None:
    file = tmp_path / "model.keras"
    file.write_bytes(keras_file)
    right = read_state(file), stored_config(file)[0].as_dict()
    for number, rng in generators("keras", 20):
        how, content = damaged(keras_file, rng) if number % 4 else ("weights", weights_changed(keras_file, rng))
        file.write_bytes(content)
        outcome = answer(lambda: stored_config(file), (number, how))
        assert isinstance(outcome, str) or outcome[0].as_dict() == right[1], how
        try:
            state: object = read_state(file)
        except UNREADABLE:
            state = None
        assert state is None or (how != "weights" and state == right[0]), how
        assert files_below(Path.cwd()) == {"model.keras"}, how


def test_a_damaged_archive_is_refused_or_the_one_it_was_and_leaves_nothing(models: list[Any], tmp_path: Path) -> None:
    config, weights = models[0]
    checkpoint, file, out = tmp_path / "w.ckpt", tmp_path / "a.zip", tmp_path / "out"
    torch.save(checkpoint_of(config, weights), checkpoint)
    write_archive(
        file, {"weights.ckpt": checkpoint, "config.yaml": yaml.safe_dump(config), "report/a.html": "x" * 9000}, {"weights": "weights.ckpt"}
    )
    content = file.read_bytes()
    checkpoint_bytes = checkpoint.read_bytes()
    indexes = [
        "",
        "[]",
        "{}",
        "null",
        '{"kind": 1}',
        "[" * 10**5,
        '{"files": 3}',
        '{"files": {"../x": "0"}}',
        "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"),
    ]
    for number, rng in generators("archives", 30):
        how, changed = damaged(content, rng)
        if number % 4 == 0:
            how, changed = "index", with_index(content, rng.choice(indexes))
        file.write_bytes(changed)

        def weights_inside() -> bytes:
            with weights_of(file) as found:
                return found.read_bytes()

        outcome = answer(weights_inside, (number, how))
        assert isinstance(outcome, str) or outcome == checkpoint_bytes, how
        answer(lambda: stored_config(file), (number, how))
        extracted = answer(lambda: extract(file, out), (number, how))
        if isinstance(extracted, str):
            assert str(file) in extracted
            assert not out.exists() or files_below(out) == set(), how
        else:
            assert (out / "weights.ckpt").read_bytes() == checkpoint_bytes
            shutil.rmtree(out)
        assert files_below(Path.cwd()) == {"a.zip", "w.ckpt"}, how


def with_index(content: bytes, index: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as before, zipfile.ZipFile(buffer, "w") as after:
        for name in before.namelist():
            after.writestr(name, index if name == "archive.json" else before.read(name))
    return buffer.getvalue()
