"""Augmentation of waveforms: what it does, and that (seed, epoch, utterance) fixes it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import TINY, prepared

from speechtrain import compose
from speechtrain.data.features.wave_augment import WaveAugment, match_energy, read_excerpt, telephone
from speechtrain.errors import ConfigError, DataError

RATE = 8000
NOTHING = {
    "noise_folder": None,
    "noise_prob": 0.0,
    "noise_snr_db": (5, 5),
    "reverb_folder": None,
    "reverb_prob": 0.0,
    "lowpass_prob": 0.0,
    "lowpass_hz": (1000, 1000),
    "codec_prob": 0.0,
    "gain_db": 0.0,
}


def tone(hertz: float, seconds: float = 1.0) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def energy(samples: np.ndarray, low: float, high: float) -> float:
    spectrum = np.abs(np.fft.rfft(samples)) ** 2
    hertz = np.fft.rfftfreq(len(samples), 1 / RATE)
    return float(spectrum[(hertz >= low) & (hertz < high)].sum())


def applied(samples: np.ndarray, seed: int = 0, **given: object) -> np.ndarray:
    augment = WaveAugment(**{**NOTHING, **given})  # type: ignore[arg-type]
    rng = np.random.default_rng(seed)
    return augment(samples, RATE, augment.draw(rng), rng)


@pytest.fixture
def noises(tmp_path: Path) -> str:
    folder = tmp_path / "noise"
    folder.mkdir()
    soundfile.write(folder / "hum.wav", tone(100, 0.3), RATE)
    soundfile.write(folder / "hiss.flac", np.random.default_rng(1).normal(0, 0.1, 3 * 16000).astype(np.float32), 16000)
    return str(folder)


@pytest.mark.parametrize("snr_db", [-5, 0, 20])
def test_noise_has_the_ratio_that_was_asked_for(noises: str, snr_db: float) -> None:
    clean = tone(1000)
    for seed in range(4):
        noise = applied(clean, seed, noise_folder=noises, noise_prob=1.0, noise_snr_db=(snr_db, snr_db)) - clean
        assert 10 * np.log10(np.square(clean).mean() / np.square(noise).mean()) == pytest.approx(snr_db, abs=0.01)


def test_a_room_echoes_after_the_sound_and_keeps_its_place_and_level(tmp_path: Path) -> None:
    response = np.zeros(4000, dtype=np.float32)
    response[700], response[1700] = 1.0, 0.5  # the direct sound comes 700 samples after the file begins
    soundfile.write(tmp_path / "room.wav", response, RATE)
    click = np.zeros(RATE, dtype=np.float32)
    click[2000] = 0.5
    heard = applied(click, reverb_folder=str(tmp_path), reverb_prob=1.0)
    assert sorted(np.argsort(-np.abs(heard))[:2].tolist()) == [2000, 3000]
    assert heard[3000] / heard[2000] == pytest.approx(0.5, abs=1e-3)
    assert np.square(heard).mean() == pytest.approx(np.square(click).mean(), rel=1e-4)


def test_low_pass_and_telephone_take_the_upper_band_and_keep_the_lower() -> None:
    both = tone(500) + tone(3000)
    low = applied(both, lowpass_prob=1.0)
    assert energy(low, 2500, 3500) < 1e-4 * energy(both, 2500, 3500)
    assert energy(low, 400, 600) == pytest.approx(energy(both, 400, 600), rel=0.05)
    time = np.arange(16000) / 16000
    wide = (0.3 * np.sin(2 * np.pi * 6000 * time) + 0.3 * np.sin(2 * np.pi * 500 * time)).astype(np.float32)
    line = telephone(wide, 16000)
    spectrum = np.abs(np.fft.rfft(line))
    assert len(line) == len(wide)
    assert spectrum[6000] < 0.02 * spectrum[500]
    assert 0 < np.abs(line[200:-200] - telephone(line, 16000)[200:-200]).max() < 0.1


def test_gain_moves_the_level_within_its_bounds() -> None:
    clean = tone(440)
    gains = [20 * np.log10(np.abs(applied(clean, seed, gain_db=6.0)).max() / np.abs(clean).max()) for seed in range(50)]
    assert -6 <= min(gains) < -3
    assert 3 < max(gains) <= 6


def test_short_noise_is_repeated_and_silence_is_left_alone(tmp_path: Path, noises: str) -> None:
    assert len(read_excerpt(Path(noises) / "hum.wav", RATE, 3 * RATE, 0.9)) == 3 * RATE
    (tmp_path / "silence").mkdir()
    soundfile.write(tmp_path / "silence" / "silent.wav", np.zeros(800), RATE)
    clean = tone(440)
    np.testing.assert_array_equal(applied(clean, noise_folder=str(tmp_path / "silence"), noise_prob=1.0), clean)
    np.testing.assert_array_equal(match_energy(np.zeros(4, dtype=np.float32), clean[:4]), np.zeros(4))


WAVE = ["augment.lowpass_prob=0.5", "augment.codec_prob=0.3", "augment.gain_db=6"]
ALL = ["augment=light", *WAVE, "augment.frame_dropout=0.1", "features.normalize=none"]


@pytest.mark.parametrize("workers", [0, 2])
def test_seed_epoch_and_utterance_fix_the_result_whatever_the_number_of_processes(noises: str, workers: int) -> None:
    given = [*TINY, *ALL, f"augment.noise_folder={noises}", "data.batch_size=4"]

    def epoch(number: int, count: int, *more: str) -> dict[str, np.ndarray]:
        loader = prepared([*given, f"data.num_workers={count}", *more]).loader("train", shuffle=True, augment=True)
        loader.set_epoch(number)
        return {name: batch.features[row, : batch.feature_lengths[row]] for batch in loader for row, name in enumerate(batch.ids)}

    first, same, next_epoch, other = epoch(1, 0), epoch(1, workers), epoch(2, 0), epoch(1, 0, "seed=7")
    for name, values in first.items():
        np.testing.assert_array_equal(values, same[name])
        assert values.shape != next_epoch[name].shape or not np.array_equal(values, next_epoch[name])
        assert values.shape != other[name].shape or not np.array_equal(values, other[name])


def test_folders_that_are_missing_or_empty_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"augment\.noise_folder: no such folder"):
        compose([*TINY, "augment.noise_folder=nowhere"])
    (tmp_path / "empty").mkdir()
    loader = prepared([*TINY, f"augment.reverb_folder={tmp_path / 'empty'}", "augment.reverb_prob=1"]).loader("train", augment=True)
    with pytest.raises(DataError, match=r"empty: holds no audio(?s:.*)augment\.reverb_folder"):
        next(iter(loader))


def test_dropped_frames_are_set_to_the_mean() -> None:
    loader = prepared([*TINY, "augment=none", "augment.frame_dropout=0.3"]).loader("train", augment=True)
    batch = next(iter(loader))
    share = [float((batch.features[row, :length] == 0).all(axis=1).mean()) for row, length in enumerate(batch.feature_lengths)]
    assert 0.2 < sum(share) / len(share) < 0.4


def test_a_delay_puts_a_pause_before_the_utterance_and_leaves_it_as_it_is() -> None:
    plain, delayed = (
        prepared([*TINY, "augment=none", "features.normalize=none", f"augment.delay={delay}"]).loader("train", augment=True, views=2)
        for delay in (0, 0.3)
    )
    before = {name: batch.features[row, : batch.feature_lengths[row]] for batch in plain for row, name in enumerate(batch.ids)}
    waits = set()
    for batch in delayed:
        half = len(batch.ids) // 2
        np.testing.assert_array_equal(batch.feature_lengths[:half], batch.feature_lengths[half:])
        for row, name in enumerate(batch.ids):
            found = batch.features[row, : batch.feature_lengths[row]]
            pause = len(found) - len(before[name])
            waits.add(pause)
            np.testing.assert_allclose(found[pause:], before[name], atol=1e-5)
            if pause:
                assert (found[:pause] == found[0]).all()
                assert np.exp(found[0]).sum() <= np.quantile(np.exp(before[name]).sum(1), 0.2)
    assert len(waits) > 5
    assert 0 <= min(waits) < max(waits) <= 30
