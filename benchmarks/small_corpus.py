"""`experiment=small_corpus` beside recognisers of other libraries that are trained from scratch for the same CPU time.

    python benchmarks/small_corpus.py corpus SHARED/data DIR       1.8 h of LibriSpeech, two other readers for the test
    python -m speechtrain experiment=small_corpus data.root=DIR budget_minutes=40 backend.threads=1
    python benchmarks/small_corpus.py train conformer DIR SECONDS   or gru, parakeet; CPU seconds of training alone

All of them have the same loop: 80 log-mels normalised by utterance, letters, three speeds, masks, AdamW with a linear
warm-up over 15 % of the budget and half a cosine down, float32, one thread; they are tested once, as they are at the end of the budget.

gru: two bidirectional layers of 128 behind a convolution. conformer: torchaudio's, 4 layers of 96, behind two convolutions of stride 2.
parakeet: Transformers' FastConformer, 8 layers of 176, frames of 80 ms.
"""

from __future__ import annotations

import os

os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

import argparse
import json
import math
import random
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jiwer
import soundfile
import torch
import torchaudio
from torch import Tensor, nn

TEST_READERS = {"2277", "2902"}
SAMPLE_RATE, N_MELS = 16000, 80
SPEEDS = (0.9, 1.0, 1.1)
WARMUP = 0.15


def make_corpus(shared: Path, folder: Path) -> None:
    """Write the lists and the audio of the corpus; the test readers are the last woman and the last man of dev-clean's ten."""
    (folder / "audio").mkdir(parents=True)

    def rows(manifest: Path) -> Iterator[dict[str, Any]]:
        for line in manifest.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            source = manifest.parent / row["audio_filepath"]
            row["audio_filepath"] = f"audio/{source.name}"
            shutil.copy(source, folder / row["audio_filepath"])
            yield row

    ten_readers = list(rows(shared / "librispeech_devclean10_mp3" / "all.jsonl"))
    parts = {
        "train": [*rows(shared / "librispeech_tc100" / "train.jsonl"), *(row for row in ten_readers if row["speaker"] not in TEST_READERS)],
        "valid": list(rows(shared / "librispeech_tc100" / "valid.jsonl")),
        "test": [row for row in ten_readers if row["speaker"] in TEST_READERS],
    }
    for name, part in parts.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
        print(f"{name}: {len(part)} utterances, {sum(row['duration'] for row in part) / 3600:.2f} h")


def halved(lengths: Tensor, times: int = 1) -> Tensor:
    """Return lengths after convolutions of stride 2."""
    for _ in range(times):
        lengths = (lengths + 1) // 2
    return lengths


class Gru(nn.Module):
    """A plain recurrent recogniser."""

    def __init__(self, n_labels: int, width: int = 128) -> None:
        super().__init__()
        self.stem = nn.Conv1d(N_MELS, width, 5, stride=2, padding=2)
        self.layers = nn.GRU(width, width, 2, bidirectional=True, batch_first=True, dropout=0.2)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(2 * width, n_labels)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Map (batch, frames, mels) to logits."""
        hidden = torch.relu(self.stem(features.transpose(1, 2))).transpose(1, 2)
        lengths = halved(lengths)
        hidden, _ = self.layers(self.dropout(hidden))  # packed sequences of 800 frames take 18 times the CPU time in backward
        return self.head(self.dropout(hidden)), lengths


class Conformer(nn.Module):
    """torchaudio's conformer behind two convolutions, the second one by channel."""

    def __init__(self, n_labels: int, width: int = 96, n_layers: int = 4) -> None:
        super().__init__()
        convolutions = [nn.Conv2d(1, width, 3, 2, 1), nn.ReLU(), nn.Conv2d(width, width, 3, 2, 1, groups=width), nn.Conv2d(width, width, 1)]
        self.stem = nn.Sequential(*convolutions, nn.ReLU())
        self.project = nn.Linear(width * N_MELS // 4, width)
        self.layers = torchaudio.models.Conformer(width, 4, 4 * width, n_layers, 31, dropout=0.1)
        self.head = nn.Linear(width, n_labels)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Map (batch, frames, mels) to logits."""
        hidden = self.stem(features[:, None]).transpose(1, 2).flatten(2)
        hidden, lengths = self.layers(self.project(hidden), halved(lengths, 2))
        return self.head(hidden), lengths


class Parakeet(nn.Module):
    """Transformers' FastConformer for CTC, with random weights."""

    def __init__(self, n_labels: int) -> None:
        from transformers import ParakeetCTCConfig, ParakeetForCTC

        super().__init__()
        encoder = {
            "hidden_size": 176,
            "num_hidden_layers": 8,
            "num_attention_heads": 4,
            "intermediate_size": 704,
            "subsampling_conv_channels": 96,
            "num_mel_bins": N_MELS,
            "layerdrop": 0.0,
            "scale_input": False,
        }
        self.network = ParakeetForCTC(ParakeetCTCConfig(vocab_size=n_labels, pad_token_id=0, encoder_config=encoder))

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Map (batch, frames, mels) to logits."""
        mask = torch.arange(features.shape[1])[None] < lengths[:, None]
        return self.network(input_features=features, attention_mask=mask).logits, halved(lengths, 3)


MODELS: Mapping[str, tuple[type[nn.Module], float, float]] = {
    "gru": (Gru, 3e-3, 400.0),
    "conformer": (Conformer, 1e-3, 100.0),
    "parakeet": (Parakeet, 1e-3, 100.0),
}
"""Models with their learning rates, and with the seconds of a batch, of which recurrent layers need many."""

Utterance = tuple[list[Tensor], str]


def load(manifest: Path, speeds: Sequence[float] = (1.0,)) -> list[Utterance]:
    """Read utterances: features at each speed, and the text."""
    mel = torchaudio.transforms.MelSpectrogram(SAMPLE_RATE, n_fft=512, win_length=400, hop_length=160, n_mels=N_MELS, f_min=20)

    def features(samples: Tensor) -> Tensor:
        frames = torch.log(mel(samples) + 1e-6).T
        return (frames - frames.mean(0)) / (frames.std(0) + 1e-3)

    def at_speed(samples: Tensor, speed: float) -> Tensor:
        return samples if speed == 1.0 else torchaudio.functional.resample(samples, round(SAMPLE_RATE * speed), SAMPLE_RATE)

    utterances = []
    for line in manifest.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        samples = torch.from_numpy(soundfile.read(manifest.parent / row["audio_filepath"], dtype="float32")[0])
        utterances.append(([features(at_speed(samples, speed)) for speed in speeds], row["text"]))
    return utterances


def masked(features: Tensor) -> Tensor:
    """Return features with two masks over mels and five over time."""
    features, frames = features.clone(), len(features)
    for _ in range(2):
        width = random.randint(0, 27)
        start = random.randint(0, N_MELS - width)
        features[:, start : start + width] = 0
    for _ in range(5):
        width = random.randint(0, max(1, min(50, frames // 20)))
        start = random.randint(0, frames - width)
        features[start : start + width] = 0
    return features


def batches(utterances: Sequence[Utterance], seconds: float) -> list[list[int]]:
    """Divide utterances of like length into batches, in random order."""
    order = random.sample(range(len(utterances)), len(utterances))
    found: list[list[int]] = []
    for first in range(0, len(order), 320):
        batch: list[int] = []
        for index in sorted(order[first : first + 320], key=lambda index: len(utterances[index][0][0])):
            if batch and (len(batch) + 1) * len(utterances[index][0][0]) / 100 > seconds:
                found.append(batch)
                batch = []
            batch.append(index)
        found.append(batch)
    random.shuffle(found)
    return found


@torch.no_grad()
def error_rates(model: nn.Module, utterances: Sequence[Utterance], symbols: str) -> str:
    """Return the character and word error rate of greedy decoding."""
    model.eval()
    hypotheses = []
    for features, _ in utterances:
        chosen = features[len(features) // 2]
        logits, lengths = model(chosen[None], torch.tensor([len(chosen)]))
        best = torch.unique_consecutive(logits[0, : lengths[0]].argmax(-1)).tolist()
        hypotheses.append("".join(symbols[label - 1] for label in best if label))
    model.train()
    references = [text for _, text in utterances]
    return f"CER {100 * jiwer.cer(references, hypotheses):.2f} %, WER {100 * jiwer.wer(references, hypotheses):.2f} %"


def train(name: str, folder: Path, budget: float) -> None:
    """Train a peer for so many CPU seconds and test it."""
    torch.set_num_threads(1)
    torch.manual_seed(1)
    random.seed(1)
    utterances, valid, test = load(folder / "train.jsonl", SPEEDS), load(folder / "valid.jsonl"), load(folder / "test.jsonl")
    symbols = "".join(sorted({character for _, text in utterances for character in text}))
    kind, rate, seconds = MODELS[name]
    model = kind(len(symbols) + 1)
    print(f"{name}: {sum(each.numel() for each in model.parameters())} parameters")
    optimizer = torch.optim.AdamW(model.parameters(), rate, betas=(0.9, 0.98), weight_decay=1e-3)
    start, epoch, spent = time.process_time(), 0, 0.0
    while spent < budget:
        for batch in batches(utterances, seconds):
            done = min(1.0, spent / budget)
            factor = done / WARMUP if done < WARMUP else 0.5 * (1 + math.cos(math.pi * (done - WARMUP) / (1 - WARMUP)))
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
            features = [masked(random.choice(utterances[index][0])) for index in batch]
            texts = [utterances[index][1] for index in batch]
            logits, lengths = model(nn.utils.rnn.pad_sequence(features, batch_first=True), torch.tensor([len(each) for each in features]))
            targets = torch.tensor([1 + symbols.index(character) for text in texts for character in text])
            target_lengths = torch.tensor([len(text) for text in texts])
            log_probs = logits.log_softmax(-1).transpose(0, 1)
            loss = nn.functional.ctc_loss(log_probs, targets, lengths, target_lengths, zero_infinity=True)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            spent = time.process_time() - start
            if spent >= budget:
                break
        epoch += 1
        print(f"epoch {epoch}, {spent:.0f} CPU-s, loss {loss.item():.3f}", flush=True)
        if epoch % 5 == 0:
            before = time.process_time()
            print(f"validation: {error_rates(model, valid, symbols)}", flush=True)
            start += time.process_time() - before
    print(f"test after {epoch} epochs: {error_rates(model, test, symbols)}")


def main() -> None:
    """Choose by the first argument."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    corpus = commands.add_parser("corpus")
    corpus.add_argument("shared", type=Path)
    corpus.add_argument("folder", type=Path)
    training = commands.add_parser("train")
    training.add_argument("model", choices=MODELS)
    training.add_argument("folder", type=Path)
    training.add_argument("seconds", type=float)
    given = parser.parse_args()
    if given.command == "corpus":
        make_corpus(given.shared, given.folder)
    else:
        train(given.model, given.folder, given.seconds)


if __name__ == "__main__":
    main()
