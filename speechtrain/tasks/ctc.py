"""Connectionist temporal classification (Graves et al. 2006): text without alignment. Label 0 is the blank."""

from __future__ import annotations

from typing import ClassVar

import jiwer
import numpy as np
import numpy.typing as npt

from speechtrain.data.batches import Batch
from speechtrain.data.tokenizer import Tokenizer
from speechtrain.decode.base import Decoder
from speechtrain.tasks.base import Direction, Outputs, Sample, Scorer, Task


class Ctc(Task):
    """CTC over the tokenizer's vocabulary.

    Args:
        tokenizer: labels and text.
        decoder: posteriors to labels.
        on_infeasible: what to do with training utterances that have fewer encoder frames than CTC needs.
        consistency: weight of CR-CTC's consistency loss (Yao et al. 2024), which trains on two views of each utterance.
    """

    directions: ClassVar[dict[str, Direction]] = {"loss": "minimize", "cer": "minimize", "wer": "minimize", "exact": "maximize"}
    loss = "ctc"

    def __init__(self, tokenizer: Tokenizer, decoder: Decoder, on_infeasible: str = "skip", consistency: float = 0.0) -> None:
        self.tokenizer = tokenizer
        self.decoder = decoder
        self.on_infeasible = on_infeasible
        self.consistency = consistency

    @property
    def output_size(self) -> int:
        """V: the vocabulary with the blank."""
        return len(self.tokenizer.vocabulary)

    def infeasible(
        self, lengths: npt.NDArray[np.int64], target_lengths: npt.NDArray[np.int64], repeats: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.bool_]:
        """Which utterances (B,) have fewer frames than labels plus the blanks that part equal neighbours."""
        return lengths < target_lengths + repeats

    def scorer(self) -> Scorer:
        """A fresh count."""
        return CtcScorer(self.tokenizer, self.decoder)


class CtcScorer(Scorer):
    """Loss a label, character and word error rate, share of utterances without any error."""

    def __init__(self, tokenizer: Tokenizer, decoder: Decoder) -> None:
        self._tokenizer = tokenizer
        self._decoder = decoder
        self._loss = 0.0
        self._labels = 0
        self.samples: list[Sample] = []

    def update(self, batch: Batch, outputs: Outputs) -> None:
        """Count a batch; an utterance that cannot be aligned adds its errors but no loss."""
        aligned = np.isfinite(outputs.losses) & (outputs.losses > 0)
        self._loss += float(outputs.losses[aligned].sum())
        self._labels += int(batch.target_lengths[aligned].sum())
        for utterance, reference, labels in zip(batch.ids, batch.texts, self._decoder(outputs.log_probs, outputs.lengths), strict=True):
            self.samples.append(Sample(utterance, reference, self._tokenizer.decode(labels)))

    def compute(self) -> dict[str, float]:
        """`loss` in nats a label, `cer`, `wer`, `exact`."""
        if not self.samples:
            return {}
        references = [sample.reference for sample in self.samples]
        hypotheses = [sample.hypothesis for sample in self.samples]
        return {
            "loss": self._loss / max(1, self._labels),
            "cer": jiwer.cer(references, hypotheses),
            "wer": jiwer.wer(references, hypotheses),
            "exact": float(np.mean([first.split() == second.split() for first, second in zip(references, hypotheses, strict=True)])),
        }
