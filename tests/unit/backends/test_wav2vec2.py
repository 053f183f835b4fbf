"""Fine-tuning of torchaudio's bundles: the same numbers as theirs, padding or not, and clear words about files."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY
from test_torch_onnx import check_outputs
from torchaudio import pipelines
from torchaudio.models import wav2vec2_model

import speechtrain
from speechtrain import compose
from speechtrain.backends.torch.exports import to_onnx
from speechtrain.backends.torch.models.wav2vec2 import Wav2Vec2
from speechtrain.backends.torch.speech_model import SpeechModel
from speechtrain.config.build import build
from speechtrain.errors import ConfigError
from speechtrain.tasks.base import Head

SMALL = ["model.channels=16", "model.d_model=32", "model.n_layers=2", "model.n_heads=2", "model.position_kernel=8"]


def encoder(*options: str) -> Wav2Vec2:
    torch.manual_seed(0)
    found: Wav2Vec2 = build("model", compose(["model=wav2vec2", *options]).model, input_size=1)
    return found.eval()


def small_bundle(of: str, file: Path) -> tuple[Any, Any]:
    """A bundle like one of torchaudio's with fewer and smaller layers, whose weights are written, and its model."""
    like = getattr(pipelines, of)
    small = {
        "extractor_conv_layer_config": [(16, kernel, stride) for _, kernel, stride in like._params["extractor_conv_layer_config"]],
        "encoder_embed_dim": 32,
        "encoder_num_layers": 2,
        "encoder_num_heads": 2,
        "encoder_ff_interm_features": 64,
        "encoder_pos_conv_kernel": 8,
        "aux_num_out": 29,
    }
    bundle = pipelines.Wav2Vec2Bundle(file.name, {**like._params, **small}, 16000, like._normalize_waveform, "Wav2Vec2")
    torch.manual_seed(1)
    net = wav2vec2_model(**bundle._params)
    torch.save(net.state_dict(), file)
    return bundle, net.eval()


@pytest.mark.parametrize("of", ["WAV2VEC2_BASE", "WAV2VEC2_LARGE_LV60K"])
def test_pretrained_weights_give_what_torchaudio_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of: str) -> None:
    bundle, net = small_bundle(of, tmp_path / "small.pth")
    monkeypatch.setattr(pipelines, "SMALL", bundle, raising=False)
    own = encoder(f"model.weights={tmp_path}/small.pth", "model.bundle=SMALL")
    own.load_pretrained()
    own.eval()
    samples = torch.randn(1, 8000)
    with torch.inference_mode():
        theirs = net.extract_features(samples)[0][-1]
        wanted = theirs if net.encoder.transformer.layer_norm_first else net.encoder.transformer.layer_norm(theirs)
        found, lengths = own(samples[:, :, None], torch.tensor([8000]))
    assert lengths.tolist() == [24]
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert not any(each.requires_grad for each in own.extractor.parameters())
    assert all(each.requires_grad for each in own.layers.parameters())
    thawed = encoder(f"model.weights={tmp_path}/small.pth", "model.bundle=SMALL", "model.freeze_extractor=false")
    assert all(each.requires_grad for each in thawed.parameters())


@pytest.mark.parametrize("options", [[], ["model.layer_norm=true"]])
def test_an_utterance_alone_equals_itself_in_a_batch(options: list[str]) -> None:
    net = encoder(*SMALL, *options)
    lengths = torch.tensor([6100, 399, 400, 3333, 1])
    samples = torch.randn(5, 6100, 1) * (torch.arange(6100)[None, :] < lengths[:, None])[:, :, None]
    with torch.inference_mode():
        together, frames = net(samples, lengths)
        assert frames.tolist() == net.output_lengths(lengths).tolist() == [18, 0, 1, 10, 0]
        for row, length in enumerate(lengths):
            alone, own = net(samples[row : row + 1, :length], lengths[row : row + 1])
            assert own[0] == frames[row]
            torch.testing.assert_close(together[row, : own[0]], alone[0, : own[0]], atol=1e-5, rtol=0)


@pytest.mark.parametrize("options", [[], ["model.layer_norm=true"]])
def test_every_parameter_gets_a_gradient_and_stretches_are_masked_in_training_only(options: list[str]) -> None:
    net = encoder(*SMALL, *options, "model.mask_prob=0.3").train()
    samples, lengths = torch.randn(3, 20000, 1), torch.tensor([20000, 15000, 12000])
    net(samples, lengths)[0].square().sum().backward()
    assert [name for name, each in net.named_parameters() if each.grad is None or not each.grad.any()] == []
    masked = net._masked(torch.zeros(50, 400, 32))
    assert 0.2 < masked.float().mean() < 0.35
    stretches = "".join("x" if each else " " for each in masked[0].tolist())
    assert all(len(each) >= 10 for each in stretches[:-10].split()[:-1])
    net.eval()
    with torch.inference_mode():
        assert torch.equal(net(samples, lengths)[0], net(samples, lengths)[0])


@pytest.mark.slow
def test_a_bundle_is_known_by_the_name_of_its_file_and_others_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "wav2vec2_fairseq_base_ls960.pth"
    torch.save({"some": torch.zeros(1)}, file)
    net = encoder(f"model.weights={file}")
    assert len(net.layers) == 12
    assert net.output_size == 768
    with pytest.raises(ConfigError, match="is not the file of this model: Missing key"):
        net.load_pretrained()
    file.write_bytes(b"no")
    with pytest.raises(ConfigError, match="is not the file of this model"):
        net.load_pretrained()
    (tmp_path / "mine.pth").touch()
    for options, message in (
        ([f"model.weights={tmp_path}/mine.pth"], "mine.pth is not the name of a file"),
        (["model.bundle=WAV2VEC3"], "there is no bundle WAV2VEC3"),
        (["model.bundle=WAVLM_BASE"], "is a WavLM"),
    ):
        with pytest.raises(ConfigError, match=message):
            encoder(*options)


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["model.layer_norm=true"]])
def test_it_gives_its_outputs_in_onnx_runtime(tmp_path: Path, options: list[str]) -> None:
    model = SpeechModel(encoder(*SMALL, *options), Head(7)).eval()
    to_onnx(model, tmp_path / "model.onnx", 1)
    check_outputs(tmp_path / "model.onnx", model, 1, [(1, 5000), (3, 7777), (2, 16000)], shorter=700)


def test_a_run_begins_with_the_weights_and_its_model_does_not_need_their_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bundle, net = small_bundle("WAV2VEC2_BASE", tmp_path / "small.pth")
    monkeypatch.setattr(pipelines, "SMALL", bundle, raising=False)
    options = [*TINY[:1], *TINY[2:], "model=wav2vec2", "model.bundle=SMALL", f"model.weights={tmp_path}/small.pth", "data.batch_size=8"]
    options += ["augment.speed=0.1", "augment.time_masks=1", "augment.time_mask_width=800", "augment.gain_db=6", "optimizer.lr=1e-4"]
    with caplog.at_level(logging.INFO):
        result = speechtrain.train(compose([*options, "trainer.epochs=1"]))
    assert f"pretrained weights of {tmp_path}/small.pth" in caplog.text
    trained, theirs = result.model.encoder, net.encoder.transformer.layers[0].feed_forward.output_dense.weight
    assert torch.equal(trained.extractor[0].conv.weight, net.feature_extractor.conv_layers[0].conv.weight)
    moved = trained.layers[0].layer.feed_forward.output_dense.weight - theirs
    assert 0 < moved.abs().max() < 5e-3
    (tmp_path / "small.pth").unlink()
    recognizer = speechtrain.load(str(result.folder))
    assert isinstance(recognizer.transcribe(np.random.default_rng(0).normal(0, 0.1, 8000).astype(np.float32), 8000).text, str)
    assert recognizer.transcribe(np.zeros(100, dtype=np.float32), 16000).text == ""
    resumed = speechtrain.train(compose([*options, "trainer.epochs=2", f"resume={result.folder}"]))
    assert len(resumed.history) == 2
    with pytest.raises(ConfigError, match=r"model.weights: no such file"):
        compose(options)
