"""Seconds of a training step, beside torchaudio's conformer of the same size run in turn: `python benchmarks/train_step.py`.

Forward, CTC, backward, clip and AdamW on made-up features; threads pinned; wall and CPU time, best of several rounds, in turn, so that
a busy machine slows both alike. The figure to quote is the ratio.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torchaudio.models import Conformer as TorchaudioConformer

from speechtrain.backends.torch import losses
from speechtrain.backends.torch.models import Conformer, Crdnn, Tdnn
from speechtrain.backends.torch.module import SpeechModel


class Reference(torch.nn.Module):
    """torchaudio's conformer behind the same stem and head as ours."""

    def __init__(self, ours: Conformer, heads: int, hidden: int, layers: int, kernel: int, classes: int) -> None:
        super().__init__()
        self.stem = ours.stem
        self.encoder = TorchaudioConformer(ours.output_size, heads, hidden, layers, kernel, dropout=0.1)
        self.head = torch.nn.Linear(ours.output_size, classes)

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, T, F) -> (B, T', V)."""
        x, lengths = self.stem(features, lengths)
        x, lengths = self.encoder(x, lengths)
        return self.head(x).log_softmax(-1), lengths


def stepper(model: torch.nn.Module, batch: int, frames: int, mels: int, classes: int) -> Callable[[], None]:
    """A function that does one training step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    lengths = torch.linspace(0.8 * frames, frames, batch).long()
    features = torch.randn(batch, frames, mels)
    labels = frames // 12
    targets, target_lengths = torch.randint(1, classes, (batch, labels)), torch.full((batch,), labels)

    def step() -> None:
        log_probs, out_lengths = model(features, lengths)
        loss = losses.ctc(log_probs, out_lengths, targets, target_lengths).sum() / targets.numel()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()

    return step


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="of an utterance")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--width", type=int, default=144)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    mels, classes, heads, kernel, frames = 80, 32, 4, 31, round(100 * given.seconds)
    hidden = 4 * given.width
    ours = Conformer(mels, given.width, given.layers, heads, 4, kernel, 4, 32, 0.1)
    models = {
        "torchaudio conformer": Reference(ours, heads, hidden, given.layers, kernel, classes),
        "conformer": SpeechModel(Conformer(mels, given.width, given.layers, heads, 4, kernel, 4, 32, 0.1), classes),
        "crdnn": SpeechModel(Crdnn(mels, [16, 32], [2, 2], "gru", 128, 2, True, 128, 0.1), classes),
        "tdnn": SpeechModel(Tdnn(mels, [16, 32], [2, 1], 96, 5, [1, 1, 2, 2], 0.1), classes),
    }
    steps = {name: stepper(model, given.batch, frames, mels, classes) for name, model in models.items()}
    best: dict[str, tuple[float, float]] = {}
    for step in steps.values():
        step()
    for _ in range(given.rounds):
        for name, step in steps.items():
            wall, cpu = time.perf_counter(), time.process_time()
            step()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            best[name] = min(best.get(name, (wall, cpu)), (wall, cpu))
    reference = best["torchaudio conformer"][0]
    print(f"{given.batch} x {given.seconds:g} s, {given.threads} threads, best of {given.rounds}")
    for name, (wall, cpu) in best.items():
        size = sum(parameter.numel() for parameter in models[name].parameters())
        print(f"{name:22s} {size / 1e6:6.2f} M  {wall:7.3f} s wall  {cpu:7.3f} s CPU  {reference / wall:5.2f} x torchaudio")


if __name__ == "__main__":
    main()
