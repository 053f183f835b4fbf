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
from checkpoints import Make
from conftest import TINY
from test_torch_onnx import check_outputs

import speechtrain
from speechtrain import compose
from speechtrain.app.arguments import arguments_of
from speechtrain.backends.base import Backend
from speechtrain.backends.callbacks import Callback
from speechtrain.backends.torch.backend import TorchBackend
from speechtrain.backends.torch.exports import to_onnx
from speechtrain.backends.torch.huggingface import write_folder
from speechtrain.config.build import build
from speechtrain.config.checkpoint_values import with_checkpoint_files
from speechtrain.config.experiment import ExperimentConfig
from speechtrain.config.pretrained import Checkpoint
from speechtrain.config.schemas.commands import ExportConfig
from speechtrain.errors import ConfigError, UserError
from speechtrain.inference import hub_folder
from speechtrain.inference.export import write_exports
from speechtrain.inference.recognizer import Recognizer
from speechtrain.tasks.base import Head
from speechtrain.tasks.build import build_task
from speechtrain.tracking.mlflow.flavor import requirements


@pytest.fixture
def backend() -> Backend:
    return TorchBackend(threads=1)


def recordings() -> list[Any]:
    """Ten recordings, with lengths at which a last frame of mel energies is whole, half, and behind the end."""
    rng = np.random.default_rng(0)
    lengths = (5000, 5120, 5280, 6400, 7777, 9000, 10240, 11520, 12345, 16000)
    return [np.round(rng.normal(0, 0.1, length).clip(-0.9, 0.9) * 32768).astype(np.float32) / 32768 for length in lengths]


def encoder(folder: Path | str, *options: str) -> Any:
    torch.manual_seed(0)
    cfg = compose(["model=pretrained", f"model.path={folder}", *options])
    return build("model", cfg.model, input_size=build("features", cfg.features).size)


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
        ("tokenizer_config.json", {"pad_token": "<blank>"}, None),
    ]
    for file, change, message in changes:
        before = (folder / file).read_text()
        (folder / file).write_text(change if isinstance(change, str) else json.dumps({**json.loads(before), **change}))
        if message is not None:
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


def recognizer_of(*options: str) -> Recognizer:
    """A model as a run builds it, with a large head, so that its texts differ."""
    cfg = with_checkpoint_files(ExperimentConfig.of(compose([*TINY[:1], "backend.threads=1", *options])))
    backend, features = TorchBackend(threads=1), build("features", cfg.features)
    tokenizer = build("tokenizer", cfg.tokenizer, texts=["abc de f", "the theme", "dead bed"])
    task = build_task(cfg, tokenizer=tokenizer, input_size=features.size)
    model = backend.build(cfg.model, task, input_size=features.size, seed=1)
    backend.load_pretrained(model, tokenizer.outputs)
    torch.nn.init.normal_(model.head.weight)
    for name, value in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value)
    return Recognizer(backend, model, task, features, tokenizer, cfg)


def test_code_that_a_checkpoint_names_is_left_out_wherever_its_config_comes_from(made: Make) -> None:
    folder = made("wav2vec2")
    architecture = {
        **Checkpoint.find(str(folder)).architecture,
        "auto_map": {"AutoModelForCTC": "evil.Model"},
        "_attn_implementation": "evil",
    }
    cfg = compose(["model=pretrained", f"model.path={folder}"])
    net = build("model", {**cfg.model, "architecture": architecture}, input_size=1).net
    assert not hasattr(net.config, "auto_map")
    assert net.config._attn_implementation == "sdpa"
    with pytest.raises(ConfigError, match=r"model.architecture: is of the kind 'llama'"):
        build("model", {**cfg.model, "architecture": {**architecture, "model_type": "llama"}}, input_size=1)


def test_a_folder_is_not_written_with_weights_that_only_one_side_has(made: Make, tmp_path: Path) -> None:
    own = recognizer_of("model=pretrained", f"model.path={made('wav2vec2')}")
    own.model.encoder.net.further = torch.nn.Linear(2, 2)
    with pytest.raises(NotImplementedError, match=r"the weight wav2vec2.further.bias of wav2vec2 is not in both"):
        write_folder(own.model, tmp_path, hub_folder.outputs_of(own))


def test_a_model_card_names_no_place_on_this_machine(made: Make, tmp_path: Path) -> None:
    (tmp_path / "noise").mkdir()
    own = recognizer_of("model=pretrained", f"model.path={made('wav2vec2')}", f"augment.noise_folder={tmp_path}/noise")
    hub_folder.write_card(own, tmp_path, hub_folder.Card("m", "Manifest", {"cer": 0.1}, "the test data"))
    card = (tmp_path / "README.md").read_text()
    assert "noise_folder: noise" in card
    assert "path: checkpoint_wav2vec2" in card
    assert str(tmp_path) not in card
    assert str(made("wav2vec2").parent) not in card
    assert "data:" not in card
    cached = tmp_path / "hub/models--someone--small--one/snapshots" / ("a" * 40)
    own.cfg = own.cfg.with_values({"model.path": str(cached)})
    hub_folder.write_card(own, tmp_path, hub_folder.Card("m", None, {"cer": 0.1}, "the test data"))
    card = (tmp_path / "README.md").read_text()
    assert 'base_model: "someone/small--one"' in card
    assert f"revision: {'a' * 40}" in card


OWN = ["model=wav2vec2", "model.channels=16", "model.d_model=32", "model.n_layers=2", "model.n_heads=2", "model.position_kernel=8"]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("wav2vec2", ["model.lora_rank=2"]),
        ("hubert", ["tokenizer=bpe", "tokenizer.vocab_size=14"]),
        ("parakeet", ["tokenizer=pretrained"]),
        pytest.param("bert_adapter", ["tokenizer=pretrained"], marks=pytest.mark.slow),
        pytest.param("mms", ["tokenizer=pretrained", "model.language=deu"], marks=pytest.mark.slow),
        (None, OWN),
        (None, [*OWN, "model.layer_norm=true", "tokenizer=bpe", "tokenizer.vocab_size=14"]),
    ],
)
def test_its_folder_gives_the_same_text_in_the_librarys_pipeline(made: Make, tmp_path: Path, kind: str | None, options: list[str]) -> None:
    from transformers import pipeline

    own = recognizer_of(*([] if kind is None else ["model=pretrained", f"model.path={made(kind)}"]), *options)
    hub_folder.write_processor(own, tmp_path)
    write_folder(own.model, tmp_path, hub_folder.outputs_of(own))
    theirs = pipeline("automatic-speech-recognition", str(tmp_path))
    audios = recordings()
    texts = [own.transcribe(audio).text for audio in audios]
    assert len(set(texts)) > 3
    assert [theirs(audio)["text"].strip() for audio in audios] == texts


@pytest.mark.slow
def test_an_exported_folder_has_a_card_and_begins_another_training(made: Make, tmp_path: Path) -> None:
    options = [*TINY[:1], *TINY[2:], "model=pretrained", f"model.path={made('wavlm')}", "data.train_size=8", "trainer.epochs=1"]
    result = speechtrain.train(compose([*options, "export.on_train_end=[huggingface]"], output_dir=tmp_path / "run"))
    arguments = [f"from={result.folder}", "format=[huggingface,archive]", "utterances=2"]
    for _ in range(2):  # the second takes the place of the first
        assert write_exports(*arguments_of(ExportConfig, arguments)) == []
    folder = tmp_path / "run/exports/huggingface"
    card = (folder / "README.md").read_text()
    assert card.startswith('---\nlibrary_name: "transformers"\npipeline_tag: "automatic-speech-recognition"')
    assert f"| CER | {100 * result.metrics['test/cer']:.2f} % |" in card
    assert "Trained by speechtrain on Synthetic" in card
    assert "mask_time_prob: 0.05" in card
    audio = recordings()[0]
    wanted = speechtrain.load(str(result.folder)).transcribe(audio).text
    (archive,) = (tmp_path / "run/exports").glob("*.zip")
    for name in (folder, archive):
        assert speechtrain.load(str(name)).transcribe(audio).text == wanted
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".")] == []
    (folder / "README.md").write_text("with a licence")
    assert write_exports(*arguments_of(ExportConfig, arguments)) == []
    assert (folder / "README.md").read_text() == "with a licence"
    with pytest.raises(UserError, match="have no counterpart of WordTokenizer"):
        hub_folder.write_processor(recognizer_of(*OWN, "tokenizer=word"), tmp_path)
    with pytest.raises(NotImplementedError, match="Transformers has no Tdnn; take model=pretrained or model=wav2vec2"):
        write_folder(recognizer_of("model=tdnn").model, tmp_path, [0])


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in checkpoints.KINDS if kind != "wav2vec2_layer_norm"])
def test_it_gives_its_outputs_in_onnx_runtime(made: Make, tmp_path: Path, kind: str) -> None:
    model = speechtrain.load(str(made(kind))).model.cpu().eval()
    model.head.weight.data *= 0.1  # the checkpoint's is so large that its texts differ
    size, shapes, shorter = (80, [(1, 100), (3, 155)], 30) if kind.startswith(("bert", "parakeet")) else (1, [(1, 5000), (3, 7777)], 700)
    to_onnx(model, tmp_path / "model.onnx", size)
    check_outputs(tmp_path / "model.onnx", model, size, shapes, shorter=shorter)
