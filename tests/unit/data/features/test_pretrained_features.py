"""The input of pretrained checkpoints: the numbers of their own feature extractors, and as many frames as are announced."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from speechtrain.data.features.pretrained import PretrainedFeatures
from speechtrain.errors import ConfigError

WAVE = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "sampling_rate": 16000, "do_normalize": True}
MELS = {
    "feature_extractor_type": "SeamlessM4TFeatureExtractor",
    "sampling_rate": 16000,
    "num_mel_bins": 80,
    "stride": 2,
    "padding_value": 1.0,
}
PARAKEET = {"feature_extractor_type": "ParakeetFeatureExtractor", "sampling_rate": 16000, "feature_size": 80, "hop_length": 160}


def features(settings: dict[str, Any]) -> PretrainedFeatures:
    return PretrainedFeatures(16000, None, extractor=settings)


def noise(samples: int) -> Any:
    return np.random.default_rng(samples).normal(0, 0.1, samples).astype(np.float32)


@pytest.mark.parametrize("settings", [WAVE, {**WAVE, "do_normalize": False}, MELS, PARAKEET])
def test_they_are_those_of_the_checkpoints_own_extractor(settings: dict[str, Any]) -> None:
    import transformers

    made = features(settings)
    kind = str(settings["feature_extractor_type"])
    theirs = getattr(transformers, kind)(**{key: value for key, value in settings.items() if key != "feature_extractor_type"})
    audio = noise(7600)
    found = made.finish(made.mel(made.unpack(made.pack(made.spectrum(audio)))))
    (expected, *_), *_ = theirs(audio, sampling_rate=16000, return_tensors="pt").values()
    expected = expected.reshape(len(expected), -1)
    if settings is MELS:  # two frames of ours are one of theirs
        found = found.reshape(len(expected), -1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("settings", [WAVE, MELS, PARAKEET])
def test_there_are_as_many_frames_as_announced_and_none_is_nan(settings: dict[str, Any]) -> None:
    made = features(settings)
    for samples in (1, 100, 399, 400, 560, 561, 12345):
        found = made.spectrum(noise(samples))
        assert found.shape == (made.num_frames(samples), made.size)
        assert found.isfinite().all()
    assert made.frame_rate == (16000 if settings is WAVE else 100)


def test_samples_of_16_bits_are_stored_as_such_and_others_as_they_are() -> None:
    made = features(WAVE)
    of_file = np.round(noise(1000) * 32768) / np.float32(32768)
    for samples, kind in ((of_file, torch.int16), (noise(1000), torch.float32), (np.float32([-1.0, 1.0]), torch.float32)):
        packed = made.pack(made.spectrum(samples))
        assert packed.dtype == kind
        assert torch.equal(made.unpack(packed)[:, 0], torch.from_numpy(samples))


def test_another_rate_than_the_checkpoints_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"features.sample_rate: is 8000 Hz, and the checkpoint takes audio at 16000 Hz"):
        PretrainedFeatures(8000, None, extractor=WAVE)
