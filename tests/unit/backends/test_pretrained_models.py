"""Pretrained checkpoints of the hub's form: the same text and numbers as their own library's, and fine-tuned as people do it."""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import checkpoints
import numpy as np
import pytest
import torch
from backend_setup import Setup
from checkpoints import Make, encoder, recordings
from conftest import TINY

import speechtrain
from speechtrain import compose
from speechtrain.backends.base import Backend
from speechtrain.backends.callbacks import Callback
from speechtrain.backends.torch.backend import TorchBackend
from speechtrain.errors import ConfigError, UserError
from speechtrain.tasks.base import Head
from speechtrain.tracking.mlflow.flavor import requirements


@pytest.fixture
def backend() -> Backend:
    return TorchBackend(threads=1)


VARIANTS = (
    "wav2vec2_adapter",
    "bert",
    "mms",
    "conformer_rotary",
    "bert_relative",
    "hubert_batch_norm",
)  # of which the others show nearly all


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")  # of the library's own WavLM
@pytest.mark.parametrize("kind", [pytest.param(each, marks=pytest.mark.slow) if each in VARIANTS else each for each in checkpoints.KINDS])
def test_it_gives_what_the_librarys_own_pipeline_gives_alone_and_in_a_padded_batch(made: Make, kind: str) -> None:
    from transformers import pipeline

    folder = made(kind)
    recognizer = speechtrain.load(str(folder), "backend.threads=1")
    theirs = pipeline("automatic-speech-recognition", str(folder))
    audios = recordings()
    wanted = [theirs(audio)["text"] for audio in audios]
    assert len(set(wanted)) > 1
    assert [recognizer.transcribe(audio).text for audio in audios] == wanted
    assert [each.text for each in recognizer.transcribe_all(audios)] == wanted
    together = list(recognizer._outputs(audios))
    for audio, in_batch in zip(audios, together, strict=True):
        inputs = theirs.feature_extractor(audio, sampling_rate=16000, return_tensors="pt", return_attention_mask=True)
        with torch.inference_mode():
            log_probs = theirs.model(**inputs).logits[0].log_softmax(-1)[:, recognizer.tokenizer.outputs]
        np.testing.assert_allclose(recognizer.log_probs(audio), log_probs, atol=1e-4)
        np.testing.assert_allclose(in_batch, log_probs, atol=1e-4)


def test_a_language_is_chosen_by_its_adapter_and_vocabulary(made: Make) -> None:
    from transformers import pipeline

    folder = made("mms")
    theirs = pipeline("automatic-speech-recognition", str(folder))
    theirs.tokenizer.set_target_lang("deu")
    theirs.model.load_adapter("deu")
    recognizer = speechtrain.load(f"{folder}@deu", "backend.threads=1")
    assert recognizer.tokenizer.vocabulary == ["", "<s>", "</s>", "<unk>", " ", "ä", "b", "c", "e"]
    for audio in recordings()[:4]:
        assert recognizer.transcribe(audio).text == theirs(audio)["text"]
    with pytest.raises(ConfigError, match=r"model.language: .* has no adapter.fra.safetensors; it has deu, eng"):
        speechtrain.load(f"{folder}@fra")
    with pytest.raises(ConfigError, match=r"model.language: is fra, and .* has deu, eng"):
        compose(["model=pretrained", f"model.path={folder}", "model.language=fra", "tokenizer=pretrained"])


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *((kind, ["model.lora_rank=2"]) for kind in ("wav2vec2", "wavlm", "bert_adapter")),
        *((kind, []) for kind in ("conformer", "parakeet")),
    ],
)
def test_every_weight_that_is_to_be_trained_gets_a_gradient(made: Make, kind: str, options: list[str]) -> None:
    net = encoder(made(kind), *options, "model.freeze_extractor=false", "model.mask_time_prob=0.3", "model.mask_time_length=2").train()
    for name, value in net.named_parameters():  # updates begin as zeros, and hide what is behind them
        if "lora_" in name:
            torch.nn.init.normal_(value)
    features = torch.randn(3, 20000 if kind in ("wav2vec2", "wavlm", "conformer") else 200, 1 if "w" in kind or "conf" in kind else 80)
    lengths = torch.tensor([features.shape[1], features.shape[1] // 2, features.shape[1] // 3])
    net(features, lengths)[0].square().sum().backward()
    trained = {name: value for name, value in net.named_parameters() if value.requires_grad}
    without = [name for name, value in trained.items() if value.grad is None or not value.grad.any()]
    assert [name for name in without if not name.endswith(("k_proj.bias", "linear_k.bias", "mask"))] == []  # softmax takes no shift
    if options:
        assert any("lora_A" in name for name in trained)
        assert all("lora_" in name or name == "mask" for name in trained)


def test_parts_stay_frozen_as_long_as_they_are_told_to(made: Make) -> None:
    net = encoder(made("mms"))
    assert not any(each.requires_grad for each in net.net.feature_extractor.parameters())
    assert all(each.requires_grad for each in net.net.encoder.parameters())
    adapters = encoder(made("mms"), "model.train=adapters")
    assert {name.split(".")[4] for name, each in adapters.named_parameters() if each.requires_grad} == {"adapter_layer"}
    assert not any(each.requires_grad for each in encoder(made("wav2vec2"), "model.train=head").parameters())
    with pytest.raises(ConfigError, match=r"model.train: is adapters, and the checkpoint has no adapters"):
        encoder(made("wav2vec2"), "model.train=adapters")
    late = encoder(made("wav2vec2"), "model.unfreeze_after=3").train()
    samples, lengths = torch.randn(1, 5000, 1), torch.tensor([5000])
    for step, learns in ((0, False), (2, False), (3, True)):
        late.at_step(step)
        assert late(samples, lengths)[0].requires_grad == learns


def test_wavlm_gives_pytorch_no_reason_to_warn(made: Make) -> None:
    net = encoder(made("wavlm")).train()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net(torch.randn(2, 20000, 1), torch.tensor([20000, 9000]))[0].sum().backward()


@pytest.mark.parametrize("kind", ["wav2vec2", "wavlm"])
def test_utterances_pass_by_layers_which_all_keep_a_gradient(made: Make, kind: str) -> None:
    net = encoder(made(kind), "model.freeze_extractor=false", "model.mask_time_prob=0", "model.dropout=0").train()
    inside: list[torch.Tensor] = []
    net.net.encoder.layers[0].register_forward_pre_hook(lambda _, inputs: inside.append(inputs[0]))
    net.net.encoder.layers[-1].register_forward_hook(lambda _, __, output: inside.append(output[0] if kind == "wavlm" else output))
    for share, passed in ((1.0, [True, True]), (0.0, [False, False])):
        net.prepare(layer_dropout=share, checkpointing=False)
        net(torch.randn(2, 5000, 1), torch.tensor([5000, 4000]))[0].sum().backward()
        assert [torch.equal(before, after) for before, after in zip(inside[-2], inside[-1], strict=True)] == passed
    assert [name for name, value in net.named_parameters() if value.requires_grad and value.grad is None] == []


def test_a_run_with_low_rank_updates_begins_with_one_that_had_none_and_not_the_other_way_round(
    made: Make, backend: Backend, tmp_path: Path
) -> None:
    task: Any = SimpleNamespace(head=Head(5))

    def model(*options: str) -> Any:
        cfg = compose(["model=pretrained", f"model.path={made('wav2vec2')}", *options]).model
        return backend.build(cfg, task, input_size=1, seed=len(options))

    plain, with_updates = model(), model("model.lora_rank=2")
    backend.save(plain, tmp_path / "plain.ckpt", {})
    backend.save(with_updates, tmp_path / "updates.ckpt", {})
    left = backend.warm_start(with_updates, tmp_path / "plain.ckpt")
    assert left
    assert all("lora_" in name for name in left)
    samples, lengths = torch.randn(1, 5000, 1), torch.tensor([5000])
    with torch.inference_mode():
        torch.testing.assert_close(with_updates.eval()(samples, lengths)[0], plain.eval()(samples, lengths)[0])
    for other in (plain, model("model.lora_rank=4")):
        with pytest.raises(ConfigError, match=r"init_from: has low-rank updates of rank 2 .*\n.*set model.lora_rank=2"):
            backend.warm_start(other, tmp_path / "updates.ckpt")


def test_a_training_thaws_the_encoder_when_it_is_told_to(made: Make, backend: Backend, tmp_path: Path) -> None:
    options = ["model=pretrained", f"model.path={made('wav2vec2')}", "model.unfreeze_after=2", "trainer.epochs=1", "optimizer.lr=1e-2"]
    options += ["data.batch_size=4", "data.train_size=16", "trainer.layer_dropout=0.1", "trainer.gradient_checkpointing=true"]
    setup = Setup(backend, tmp_path, base=[*TINY[:1], *TINY[2:], *options])
    model = setup.build()
    seen: list[torch.Tensor] = []

    class Watches(Callback):
        def on_batch_end(self, epoch: int, batch_index: int, batch_count: int, loss: float, lr: float) -> None:
            layer = model.encoder.net.encoder.layers[1]
            seen.append(layer.feed_forward.output_dense.weight.detach().clone())
            assert layer.gradient_checkpointing

    setup.train(model, Watches())
    assert [torch.equal(one, other) for one, other in pairwise(seen)][:3] == [True, False, False]


def test_stretches_of_frames_and_bands_of_features_are_masked_in_training_only(made: Make) -> None:
    net = encoder(made("wav2vec2"), "model.mask_time_prob=0.3", "model.mask_feature_prob=0.25", "model.mask_feature_length=4")
    masked = net.masks(torch.ones(200, 100, 16), torch.full((16,), 7.0), 1)
    assert 0.2 < (masked == 7).any(2).float().mean() < 0.35
    assert 0.15 < (masked == 0).all(1).float().mean() < 0.35
    samples, lengths = torch.randn(2, 8000, 1), torch.tensor([8000, 5000])
    net.eval()
    with torch.inference_mode():
        assert torch.equal(net(samples, lengths)[0], net(samples, lengths)[0])


def test_positions_that_an_evaluation_computed_are_not_those_of_the_training(made: Make) -> None:
    net = encoder(made("conformer_rotary"), "model.freeze_extractor=false").eval()
    samples, lengths = torch.randn(1, 5000, 1), torch.tensor([5000])
    with torch.inference_mode():
        before = net(samples, lengths)[0]
    with torch.autocast("cpu", torch.bfloat16):
        net(samples, lengths)[0].sum().backward()
    with torch.inference_mode():
        assert torch.equal(net(samples, lengths)[0], before)


def test_what_stands_behind_the_layers_learns_as_fast_as_the_head(made: Make) -> None:
    scales = encoder(made("wav2vec2_adapter"), "model.layer_lr_decay=0.5").lr_scales()
    wanted = {"net.adapter.layers.0.conv.weight": 1.0, "net.encoder.layer_norm.weight": 1.0, "net.encoder.layers.1.layer_norm.weight": 0.5}
    wanted |= {"net.encoder.layers.0.layer_norm.weight": 0.25, "net.feature_projection.projection.weight": 0.125, "mask": 0.125}
    assert {name: scales[name] for name in wanted} == wanted
    assert encoder(made("wav2vec2"), "model.layer_lr_decay=0.5").lr_scales()["net.encoder.layer_norm.weight"] == 0.125


def test_several_devices_need_to_know_of_weights_that_are_frozen_at_first(made: Make) -> None:
    options = ["model=pretrained", f"model.path={made('wav2vec2')}", "model.unfreeze_after=3", "trainer.devices=auto"]
    with pytest.raises(ConfigError, match=r"model.unfreeze_after: .*\n.*trainer.strategy=ddp_find_unused_parameters_true"):
        compose(options)
    compose([*options, "trainer.strategy=ddp_find_unused_parameters_true"])


@pytest.mark.slow
def test_lower_layers_learn_more_slowly(made: Make, backend: Backend, tmp_path: Path) -> None:
    options = [
        f"model.path={made('wav2vec2')}",
        "model=pretrained",
        "model.layer_lr_decay=0.5",
        "optimizer=sgd",
        "optimizer.momentum=0",
        "optimizer.nesterov=false",
    ]
    options += ["model.dropout=0", "scheduler=constant", "scheduler.warmup_ratio=0", "trainer.epochs=1", "model.mask_time_prob=0"]
    before, after = [], []
    for decay in (1.0, 0.5):
        own = [*TINY[:1], *TINY[2:], *options, f"model.layer_lr_decay={decay}", "data.batch_size=40", "optimizer.lr=1e-3"]
        setup = Setup(backend, tmp_path / str(decay), base=own)
        model = setup.build()
        backend.load_pretrained(model)
        start = {name: value.detach().clone() for name, value in model.named_parameters()}
        setup.train(model)
        moved = {name: float((value.detach() - start[name]).norm()) for name, value in model.named_parameters()}
        (before if decay == 1.0 else after).append(moved)
    top, bottom = (f"encoder.net.encoder.layers.{number}.feed_forward.output_dense.weight" for number in (1, 0))
    below = "encoder.net.feature_projection.projection.weight"
    for name, factor in (("head.weight", 1.0), (top, 0.5), (bottom, 0.25), (below, 0.125)):
        assert after[0][name] == pytest.approx(factor * before[0][name], rel=0.1)


@pytest.mark.parametrize("form", ["old_names", "sharded", "without_head"])
def test_weights_are_read_in_every_form_that_the_library_has_had(made: Make, tmp_path: Path, form: str) -> None:
    from safetensors.torch import load_file, save_file

    folder = made("wav2vec2", head=form != "without_head")
    net = encoder(folder)
    net.load_pretrained()
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    state = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    if form == "old_names":
        state = {name.replace("parametrizations.weight.original0", "weight_g"): value for name, value in state.items()}
        state = {name.replace("parametrizations.weight.original1", "weight_v"): value for name, value in state.items()}
    if form == "sharded":
        names = sorted(state)
        parts = {"model-1.safetensors": names[:20], "model-2.safetensors": names[20:]}
        for file, own in parts.items():
            save_file({name: state[name] for name in own}, copy / file)
        index = {"weight_map": {name: file for file, own in parts.items() for name in own}}
        (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    else:
        torch.save(state, copy / "pytorch_model.bin")
    again = encoder(copy)
    head = again.load_pretrained()
    assert (head is None) == (form == "without_head")
    for (name, one), other in zip(net.state_dict().items(), again.state_dict().values(), strict=True):
        assert name == "mask" or torch.equal(one, other), name


def test_a_name_that_the_hub_does_not_give_is_told_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for name in ("hf://someone/something", "someone/something"):
        with pytest.raises(ConfigError, match=r"someone/something could not be fetched from the hub .*\n.*hf download someone/something"):
            encoder(name)


@pytest.mark.slow
def test_a_run_begins_with_a_checkpoint_and_its_model_does_not_need_it(
    made: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(made("wav2vec2"), folder)
    options = [*TINY[:1], *TINY[2:], "model=pretrained", f"model.path={folder}", "data.batch_size=8", "optimizer.lr=1e-4"]
    options += ["model.lora_rank=2", "trainer.gradient_checkpointing=true", "trainer.precision=bf16-mixed", "trainer.ema_decay=0.9"]
    with caplog.at_level(logging.INFO):
        result = speechtrain.train(compose([*options, "trainer.epochs=1"]))
    assert f"pretrained weights of {folder}" in caplog.text
    shutil.rmtree(folder)
    recognizer = speechtrain.load(str(result.folder))
    audio = recordings()[0]
    text = recognizer.transcribe(audio).text
    assert recognizer.transcribe(np.zeros(100, dtype=np.float32), 16000).text == ""
    resumed = speechtrain.train(compose([*options, "trainer.epochs=2", f"resume={result.folder}"]))
    assert len(resumed.history) == 2
    needed = {line.partition("==")[0] for line in requirements(result.folder / "checkpoints/last.ckpt")}
    assert {"transformers", "peft", "lightning"} <= needed
    assert speechtrain.load(str(result.folder)).cfg.model["architecture"]["hidden_size"] == 16
    assert isinstance(text, str)
    content = torch.load(result.folder / "checkpoints/last.ckpt", weights_only=True)
    stored = content["extra"]["config"]
    own, stored["features"]["extractor"] = (
        stored["features"]["extractor"],
        {"feature_extractor_type": "pipeline", "trust_remote_code": True},
    )
    torch.save(content, tmp_path / "strange.ckpt")
    with pytest.raises(UserError, match=r"is of the kind 'pipeline'"):
        speechtrain.load(str(tmp_path / "strange.ckpt"))
    stored["features"]["extractor"] = own
    stored["model"]["architecture"]["num_hidden_layers"] = 10**8
    torch.save(content, tmp_path / "deep.ckpt")
    with pytest.raises(UserError, match=r"deep.ckpt holds another model: model.num_hidden_layers of its config is 100000000"):
        speechtrain.load(str(tmp_path / "deep.ckpt"))
    with pytest.raises(ConfigError, match=r"model.path: no such folder"):
        compose(options)
