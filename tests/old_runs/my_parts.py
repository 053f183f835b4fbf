"""A user's own encoder and task, as they were written for the version that made the runs beside this file."""

from typing import ClassVar

import numpy as np
import torch
from torch import nn

from speechtrain.backends.torch.encoder import Encoder
from speechtrain.tasks.base import Head, Sample, Scorer, Task


class Narrow(Encoder):
    """One layer on every frame."""

    def __init__(self, input_size: int, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(input_size, width)
        self.output_size, self.subsampling, self.receptive_field = width, 1, 1

    def output_lengths(self, lengths: torch.Tensor) -> torch.Tensor:
        return lengths

    def forward(self, features, lengths):
        return torch.relu(self.layer(features)), lengths


class Tagging(Task):
    """Binary cross-entropy of each token of the vocabulary: does it occur? (docs/tasks.md)"""

    directions: ClassVar = {"loss": "minimize", "tag_accuracy": "maximize"}
    shown = ("loss", "tag_accuracy")

    def __init__(self, tokenizer, pool="max"):
        self.tokenizer = tokenizer
        self.pool = pool

    @property
    def head(self):
        return Head(len(self.tokenizer.vocabulary), pool=self.pool, log_softmax=False)

    def target(self, reference):
        wanted = np.zeros((1, self.head.size), dtype=np.float32)
        wanted[0, self.tokenizer.encode(reference.text)] = 1
        return wanted

    def placeholder(self, frames):
        return np.zeros((1, self.head.size), dtype=np.float32)

    def loss(self, ops, values, lengths, targets, target_lengths):
        x, y = values[:, 0], targets[:, 0]
        log_of_sum = ops.framework.log(1 + ops.framework.exp(-ops.absolute(x)))
        each = ops.where(x > 0, x, 0 * x) - x * y + log_of_sum  # -y log p - (1 - y) log (1 - p), without overflow
        return ops.sum(each, axis=1) * ops.mask(target_lengths, targets)[:, 0]

    def scorer(self, *, detailed=False):
        return TaggingScorer(self.tokenizer)


class TaggingScorer(Scorer):
    """Counts right guesses."""

    def __init__(self, tokenizer):
        self.tokenizer, self.samples = tokenizer, []
        self.loss, self.right, self.count = 0.0, 0, 0

    def update(self, batch, outputs):
        found = outputs.values[:, 0] > 0
        self.loss += outputs.losses.sum()
        self.right += (found == (batch.targets[:, 0] > 0)).sum()
        self.count += found.size
        for row, (name, text) in enumerate(zip(batch.ids, batch.texts, strict=True)):
            spelt = [self.tokenizer.vocabulary[label] for label in np.flatnonzero(found[row])]
            self.samples.append(Sample(name, " ".join(sorted(set(text))), " ".join(spelt)))

    def compute(self):
        return {"loss": self.loss / max(1, len(self.samples)), "tag_accuracy": self.right / max(1, self.count)}
