"""Features and augmentation of spectra by themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from speechtrain.data.features.augment import Augment, word_spans
from speechtrain.data.features.features import LogMel
from speechtrain.errors import ConfigError


def logmel(**changes: Any) -> LogMel:
    keys = {
        "sample_rate": 16000,
        "n_mels": 80,
        "window": 0.025,
        "hop": 0.01,
        "f_min": 20.0,
        "f_max": None,
        "preemphasis": 0.0,
        "normalize": "none",
    }
    return LogMel(**{**keys, **changes})


def augment(**changes: Any) -> Augment:
    keys = {"speed": 0.0, "tempo": 0.0, "warp": 0.0, "noise_prob": 0.0, "noise_snr_db": [5, 30], "eq_db": 0.0, "freq_masks": 0}
    keys |= {"freq_mask_width": 0, "time_masks": 0, "time_mask_width": 0, "time_mask_ratio": 0.2, "recombine_prob": 0.0}
    return Augment(**{**keys, **changes})


def tone(hertz: float, seconds: float = 1.0, rate: int = 16000) -> Any:
    return (0.3 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def test_frames_come_every_hop() -> None:
    features = logmel()
    for samples in (1, 159, 160, 16000, 16159):
        assert len(features.spectrum(np.ones(samples, np.float32))) == features.num_frames(samples) == 1 + samples // 160
    assert features.frame_rate == 100


def test_energies_agree_with_torchaudio() -> None:
    import torchaudio

    reference = torchaudio.transforms.MelSpectrogram(
        16000, n_fft=512, win_length=400, hop_length=160, f_min=20, f_max=8000, n_mels=80, mel_scale="slaney", pad_mode="constant"
    )
    samples = np.random.default_rng(0).normal(0, 0.1, 16000).astype(np.float32)
    features = logmel()
    torch.testing.assert_close(features.mel(features.spectrum(samples)), reference(torch.from_numpy(samples)).T, rtol=1e-4, atol=1e-6)


def test_a_tone_is_where_it_belongs_and_a_warp_moves_it() -> None:
    features = logmel()
    spectrum = features.spectrum(tone(1000))
    peak = features.mel(spectrum)[50].argmax()
    assert features.mel(spectrum, warp=1.2)[50].argmax() == features.mel(features.spectrum(tone(1200)))[50].argmax() > peak


def test_a_warp_leaves_no_band_empty() -> None:
    features = logmel()
    for percent in range(70, 140):
        assert (features.filters(percent / 100).sum(0) > 0).all(), percent


@pytest.mark.parametrize(("normalize", "dims"), [("utterance", (0, 1)), ("band", (0,))])
def test_normalised_features_have_mean_0_and_deviation_1(normalize: str, dims: tuple[int, ...]) -> None:
    features = logmel(normalize=normalize)
    out = features.finish(features.mel(features.spectrum(np.random.default_rng(0).normal(0, 1, 16000).astype(np.float32))))
    torch.testing.assert_close(out.mean(dims), torch.zeros_like(out.mean(dims)), atol=1e-4, rtol=0)
    torch.testing.assert_close(out.std(dims, correction=0), torch.ones_like(out.mean(dims)), atol=1e-3, rtol=0)


def test_silence_gives_finite_features() -> None:
    for normalize in ("utterance", "band", "none"):
        features = logmel(normalize=normalize)
        assert torch.isfinite(features.finish(features.mel(features.spectrum(np.zeros(1600, np.float32))))).all()


def test_what_lies_far_below_the_loudest_energy_is_raised() -> None:
    samples = np.concatenate([tone(1000), 1e-5 * tone(1000)])
    plain, limited = logmel(), logmel(top_db=40)
    spectrum = plain.spectrum(samples)
    spread = [float(out.max() - out.min()) * 10 / np.log(10) for out in (each.finish(each.mel(spectrum)) for each in (plain, limited))]
    assert spread[0] > 80
    assert spread[1] == pytest.approx(40, abs=1e-3)


def speech() -> Any:
    """A second of noise without an offset, whose level varies by 40 dB."""
    levels = 10 ** np.repeat(np.linspace(-2, 0, 100), 160)
    samples = 0.1 * levels * np.random.default_rng(0).normal(size=16000)
    return (samples - samples.mean()).astype(np.float32)


def computed(features: LogMel, samples: Any) -> torch.Tensor:
    return features.finish(features.mel(features.unpack(features.pack(features.spectrum(samples)))))


@pytest.mark.parametrize("normalize", ["utterance", "band"])
@pytest.mark.parametrize("level", [0.0, 1e-6])
def test_zeros_and_near_zeros_around_speech_change_none_of_its_features(normalize: str, level: float) -> None:
    features = logmel(normalize=normalize, silence_db=60, remove_dc=True)
    silence = (level * np.random.default_rng(1).normal(size=48_000)).astype(np.float32)
    alone, padded = computed(features, speech()), computed(features, np.concatenate([silence, speech(), silence]))
    torch.testing.assert_close(padded[302:399], alone[2:99], atol=0.1, rtol=0)
    assert float(padded.abs().max()) <= float(alone.abs().max()) + 0.5  # silence is like a pause of the recording
    apart = computed(logmel(normalize=normalize), np.concatenate([silence, speech(), silence]))
    assert float((apart[302:399] - alone[2:99]).abs().max()) > 1


@pytest.mark.parametrize("normalize", ["utterance", "band"])
def test_faint_noise_around_speech_changes_no_feature_of_it(normalize: str) -> None:
    features = logmel(normalize=normalize, silence_db=60, speech_db=25)
    noise = (1e-3 * np.random.default_rng(1).normal(size=48_000)).astype(np.float32)
    alone, padded = computed(features, speech()), computed(features, np.concatenate([noise, speech(), noise]))
    torch.testing.assert_close(padded[302:399], alone[2:99], atol=0.1, rtol=0)
    apart = computed(logmel(normalize=normalize, silence_db=60), np.concatenate([noise, speech(), noise]))
    assert float((apart[302:399] - alone[2:99]).abs().max()) > 1


@pytest.mark.parametrize("normalize", ["utterance", "band"])
def test_a_click_that_is_louder_than_speech_leaves_the_features_of_speech_nearly_as_they_are(normalize: str) -> None:
    features = logmel(normalize=normalize, silence_db=60, speech_db=25)
    samples = np.concatenate([speech(), speech()])
    clicked = samples.copy()
    clicked[15_600:16_400] *= 30
    change = computed(features, clicked)[:90] - computed(features, samples)[:90]
    assert float(change.square().mean().sqrt()) < 0.5


def test_a_recording_of_zeros_alone_has_features_of_zero() -> None:
    assert not computed(logmel(normalize="utterance", silence_db=60, speech_db=25, remove_dc=True), np.zeros(1600, np.float32)).any()


def test_an_offset_of_the_samples_changes_no_feature_also_beside_zeros() -> None:
    features = logmel(normalize="utterance", silence_db=60, remove_dc=True)
    silence = np.zeros(16_000, np.float32)
    alone = computed(features, speech())
    torch.testing.assert_close(computed(features, speech() + np.float32(0.3)), alone, atol=1e-3, rtol=0)
    shifted = computed(features, np.concatenate([silence, speech() + np.float32(0.3), silence]))
    torch.testing.assert_close(shifted[102:199], alone[2:99], atol=0.1, rtol=0)
    kept = logmel(normalize="utterance", silence_db=60)
    assert float((computed(kept, speech() + np.float32(0.3)) - computed(kept, speech())).abs().max()) > 1
    assert kept.identity != features.identity  # spectra that were stored with the offset are not taken


def test_nothing_of_whole_recordings_is_computed_without_normalisation_so_that_models_can_stream() -> None:
    shifted = speech() + np.float32(0.3)
    torch.testing.assert_close(
        computed(logmel(normalize="none", silence_db=60, remove_dc=True), shifted), computed(logmel(normalize="none"), shifted)
    )


def test_bands_too_narrow_to_hold_a_frequency_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"features.n_mels: 300 bands are too narrow"):
        logmel(n_mels=300)


def test_tempo_changes_the_length_and_speed_the_pitch_too() -> None:
    features = logmel()
    spectrum = features.spectrum(tone(1000))
    lengths = {len(augment(tempo=0.2)(spectrum, features, np.random.default_rng(seed))) for seed in range(20)}
    assert min(lengths) < 95
    assert max(lengths) > 105
    assert all(101 / 1.21 <= length <= 101 * 1.21 for length in lengths)
    peaks = {int(augment(speed=0.2)(spectrum, features, np.random.default_rng(seed))[20].argmax()) for seed in range(20)}
    assert len(peaks) > 3


def test_masks_stay_within_their_bounds() -> None:
    features = logmel(normalize="utterance")
    spectrum = features.spectrum(np.random.default_rng(0).normal(0, 1, 16000).astype(np.float32))
    masked = 0
    for seed in range(10):
        out = augment(time_masks=2, time_mask_width=10, freq_masks=1, freq_mask_width=5)(spectrum, features, np.random.default_rng(seed))
        assert int((out == 0).all(1).sum()) <= 20
        assert int((out == 0).all(0).sum()) <= 5
        masked += int((out == 0).sum())
    assert masked


def test_masks_take_the_mean_also_of_features_that_are_not_normalised() -> None:
    features = logmel()
    spectrum = features.spectrum(np.random.default_rng(0).normal(0, 1, 16000).astype(np.float32))
    plain = augment()(spectrum, features, np.random.default_rng(0))
    out = augment(time_masks=3, time_mask_width=10)(spectrum, features, np.random.default_rng(0))
    changed = out[(out != plain).any(1)]
    assert len(changed)
    torch.testing.assert_close(changed, torch.full_like(changed, float(plain.mean())))


def test_noise_comes_at_the_ratio_asked_for() -> None:
    features = logmel()
    mel = features.mel(features.spectrum(tone(1000)))
    noise = augment(noise_prob=1.0, noise_snr_db=[10, 10])._noise(mel, features, np.random.default_rng(0))
    assert 10 * np.log10(float(mel.sum() / noise.sum())) == pytest.approx(10, abs=0.5)


def test_words_share_the_pauses_between_them() -> None:
    entries = [{"word": "one", "start": 0.1, "end": 0.4}, {"word": "two", "start": 0.6, "end": 0.9}]
    words = word_spans({"words": entries}, "x", 101, 100.0)
    assert [(word.text, word.start, word.end) for word in words] == [("one", 0, 50), ("two", 50, 101)]
    assert word_spans(None, "x", 101, 100.0) == []
