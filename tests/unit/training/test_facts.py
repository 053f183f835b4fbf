"""What is known before the first step: the loss of a guess, and what recordings and texts are like."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import SHARED_DATA

from speechtrain.backends.torch.losses import ctc
from speechtrain.training.facts import guess_loss, is_clipped, is_silent

RATE = 16000


def test_the_loss_of_a_guess_is_the_least_that_one_distribution_for_all_frames_reaches() -> None:
    generator = torch.Generator().manual_seed(1)
    frequent = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05])
    lengths = [60, 80, 100, 140, 200, 90, 120, 75]
    sizes = [length // 5 + number for number, length in enumerate(lengths)]
    texts = [1 + torch.multinomial(frequent, size, replacement=True, generator=generator) for size in sizes]
    targets = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
    logits = torch.zeros(6, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.3)
    for _ in range(50):
        log_probs = logits.log_softmax(-1).expand(len(lengths), max(lengths), 6)
        loss = ctc(log_probs, torch.tensor(lengths), targets, torch.tensor(sizes)).sum() / sum(sizes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    counts = np.bincount(torch.cat(texts).numpy())
    assert guess_loss(counts.tolist(), lengths, sizes) == pytest.approx(float(loss.detach()), rel=0.05)
    assert int(logits.argmax()) == 0, "and such a model says nothing, for the blank is its likeliest label"


def test_the_loss_of_a_guess_of_one_class_is_the_entropy_of_the_classes() -> None:
    assert guess_loss([50, 50], [1] * 100, [1] * 100) == pytest.approx(np.log(2), abs=1e-3)
    assert guess_loss([100], [1] * 100, [1] * 100) == pytest.approx(0, abs=1e-3)


def speech(seconds: float = 2.0) -> np.ndarray:
    """A tone that comes and goes as syllables do."""
    time = np.arange(round(seconds * RATE)) / RATE
    return (0.3 * np.sin(2 * np.pi * 300 * time) * np.abs(np.sin(2 * np.pi * 2 * time)) ** 3).astype(np.float32)


def test_silence_and_an_even_noise_are_told_from_speech() -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 2 * RATE).astype(np.float32)
    assert is_silent(np.zeros(RATE, np.float32), RATE)
    assert is_silent(noise, RATE)
    assert not is_silent(speech(), RATE)
    assert not is_silent(speech() + 0.1 * noise, RATE)
    assert not is_silent(speech() * 1e-2, RATE), "quiet speech is speech"


def test_recordings_that_were_cut_off_at_a_level_are_told_from_loud_ones() -> None:
    assert is_clipped(np.clip(20 * speech(), -1, 1))
    assert is_clipped(0.2 * np.clip(20 * speech(), -1, 1)), "also where the level was lowered afterwards"
    assert not is_clipped(speech() / np.abs(speech()).max())
    assert not is_clipped(np.zeros(RATE, np.float32))


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="no recorded speech beside the checkout")
@pytest.mark.parametrize(
    "corpus", ["fsdd/test", "kathleen_en/valid", "librispeech_tc100/test", "librispeech_devclean10_mp3/all", "an4_mini/train"]
)
def test_no_recording_of_a_good_corpus_is_taken_for_silent_or_clipped(corpus: str) -> None:
    manifest = SHARED_DATA / f"{corpus}.jsonl"
    lines = manifest.read_text(encoding="utf-8").splitlines()
    bad = []
    for line in lines[:: max(1, len(lines) // 24)]:
        path = manifest.parent / json.loads(line)["audio_filepath"]
        samples, rate = soundfile.read(Path(path), dtype="float32")
        bad += [path.name] if is_silent(samples, rate) or is_clipped(samples) else []
    assert bad == []
