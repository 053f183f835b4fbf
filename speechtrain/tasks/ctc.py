"""Connectionist temporal classification (Graves et al. 2006): text without alignment. Label 0 is the blank."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from speechtrain.config.targets import Direction
from speechtrain.data.batches import Batch, Reference
from speechtrain.data.text.base import Tokenizer
from speechtrain.decode.align import spans_of, words_of
from speechtrain.decode.base import Decoder, ranking
from speechtrain.tasks.base import Array, Head, Ops, Outputs, Sample, Scorer, Task, Transcription


class Ctc(Task):
    """CTC over the tokenizer's vocabulary.

    Args:
        tokenizer: labels and text.
        decoder: posteriors to labels.
        on_infeasible: what to do with training utterances that have fewer encoder frames than CTC needs.
        consistency: weight of CR-CTC's consistency loss (Yao et al. 2024), which trains on two views of each utterance.
        intermediate: weight of a CTC loss in the middle of the encoder, through the same head (Lee and Watanabe 2021).
        label_smoothing: weight of the divergence from equal probabilities, summed over frames (Kim et al. 2018, section 3.2).
    """

    directions: Mapping[str, Direction] = {"loss": "minimize", "per": "minimize", "cer": "minimize", "wer": "minimize", "exact": "maximize"}
    shown = ("loss", "cer", "wer")
    report = "errors"
    timed = True
    decoder: Decoder

    def __init__(
        self,
        tokenizer: Tokenizer,
        decoder: Decoder,
        on_infeasible: str = "skip",
        consistency: float = 0.0,
        intermediate: float = 0.0,
        label_smoothing: float = 0.0,
    ) -> None:
        self.tokenizer = tokenizer
        if not tokenizer.counts_phonemes:
            self.directions = {name: direction for name, direction in type(self).directions.items() if name != "per"}
        self.decoder = decoder
        self.on_infeasible = on_infeasible
        self.consistency = consistency
        self.intermediate = intermediate
        self.label_smoothing = label_smoothing

    @property
    def head(self) -> Head:
        """Describe a head of log-probabilities of the blank and the vocabulary, all equally likely at first where that helps."""
        return Head(len(self.tokenizer.vocabulary), zero_init=True)

    def target(self, reference: Reference) -> npt.NDArray[np.int64]:
        """Return the labels (L,) of an utterance's text."""
        return self.tokenizer.labels(reference.text)

    def count_labels(self, texts: Iterable[str]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Count the labels of each text (N,), and the equal neighbours among them, between which there has to be a blank (N,)."""
        own = type(self).target is Ctc.target
        return self.tokenizer.count_labels(texts) if own else super().count_labels(texts)

    def loss(self, ops: Ops, values: Array, lengths: Array, targets: Array, target_lengths: Array) -> Array:
        """Compute the loss (B,) in nats; 0 with gradient 0 where no alignment exists."""
        return ops.ctc(values, lengths, targets, target_lengths)

    def regularised(self, ops: Ops, losses: Array, values: Array, lengths: Array) -> Array:
        """Add the share of label smoothing to the losses (B,); still 0 where no alignment exists."""
        if not self.label_smoothing:
            return losses
        # of equal probabilities from those found, up to a constant: log-probabilities far below the others pull hardest
        divergence = ops.sum(-ops.mean(values, -1) * ops.mask(lengths, values), 1)
        smoothed = (1 - self.label_smoothing) * losses + self.label_smoothing * divergence
        return ops.where(losses > 0, smoothed, losses)

    def infeasible(
        self, lengths: npt.NDArray[np.int64], target_lengths: npt.NDArray[np.int64], repeats: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.bool_]:
        """Return which utterances (B,) have fewer frames than labels plus the blanks that part equal neighbours."""
        return lengths < target_lengths + repeats

    def transcription(self, values: npt.NDArray[np.float32], *, frame_seconds: float, offset: float = 0.0, nbest: int = 0) -> Transcription:
        """Decode log-probabilities (T', V) of one utterance; see `Task.transcription`.

        Raises:
            ConfigError: alternatives are asked for, and the decoder gives one text only.
        """
        (labels,) = self.decoder(values[None], np.array([len(values)]))
        words = words_of(spans_of(values, labels), self.tokenizer, frame_seconds, offset)
        confidence = overall_confidence([(word.text, word.confidence) for word in words], values)
        ranked = ranking(self.decoder).best(values, nbest) if nbest else []
        alternatives = tuple((self.tokenizer.decode(each.labels), each.score) for each in ranked)
        return Transcription(self.tokenizer.decode(labels).strip(), confidence, tuple(words), alternatives)

    def scorer(self, *, detailed: bool = False) -> Scorer:
        """Return a new scorer; its samples hold confidences if it is detailed."""
        return CtcScorer(self.tokenizer, self.decoder, detailed=detailed)


class CtcScorer(Scorer):
    """Loss a label, character and word error rate, share of utterances without any error."""

    def __init__(self, tokenizer: Tokenizer, decoder: Decoder, *, detailed: bool = False) -> None:
        self._tokenizer = tokenizer
        self._decoder = decoder
        self._detailed = detailed
        self._loss = 0.0
        self._labels = 0
        self.samples: list[Sample] = []

    def update(self, batch: Batch, outputs: Outputs) -> None:
        """Count a batch; an utterance that cannot be aligned adds its errors but no loss."""
        aligned = np.isfinite(outputs.losses) & (outputs.losses > 0)
        self._loss += float(outputs.losses[aligned].sum())
        self._labels += int(batch.target_lengths[aligned].sum())
        decoded = self._decoder(outputs.values, outputs.lengths)
        for row, (utterance, reference, labels) in enumerate(zip(batch.ids, batch.texts, decoded, strict=True)):
            wanted = self._tokenizer.reference(reference)
            sample = Sample(utterance, wanted, self._tokenizer.decode(labels))
            if self._detailed:
                log_probs = outputs.values[row, : outputs.lengths[row]]
                words = word_confidences(log_probs, labels, self._tokenizer)
                sample = replace(sample, confidence=overall_confidence(words, log_probs), words=tuple(words))
            self.samples.append(sample)

    def totals(self) -> tuple[float, int, list[Sample]]:
        """Return the summed loss, the number of labels and the samples."""
        return self._loss, self._labels, self.samples

    def add(self, totals: tuple[float, int, list[Sample]]) -> None:
        """Add the counts of another process."""
        loss, labels, samples = totals
        self._loss += loss
        self._labels += labels
        self.samples += samples

    def compute(self) -> dict[str, float]:
        """Compute the metrics of all samples.

        Returns:
            `loss` in nats per label, `cer`, `wer`, `exact`, and `empty`, the share of texts for which nothing is recognised; with phonemes
            as tokens also `per`, which then equals `wer`.
        """
        if not self.samples:
            return {}
        references = [sample.reference for sample in self.samples]
        hypotheses = [sample.hypothesis for sample in self.samples]
        import jiwer  # not for inference, which counts no errors

        tokens = jiwer.wer(references, hypotheses)
        return {
            "loss": self._loss / max(1, self._labels),
            **({"per": tokens} if self._tokenizer.counts_phonemes else {}),
            "cer": jiwer.cer(references, hypotheses),
            "wer": tokens,
            "exact": float(np.mean([first.split() == second.split() for first, second in zip(references, hypotheses, strict=True)])),
            "empty": sum(bool(first and not second.strip()) for first, second in zip(references, hypotheses, strict=True))
            / max(1, sum(map(bool, references))),
        }


def word_confidences(log_probs: npt.NDArray[np.float32], labels: Sequence[int], tokenizer: Tokenizer) -> list[tuple[str, float]]:
    """Return the words of the text that labels spell, each with the probability that all its labels are right, taken as independent.

    Args:
        log_probs: (T', V).
        labels: the decoded labels, without blanks.
        tokenizer: spells them.
    """
    return [(word.text, word.confidence) for word in words_of(spans_of(log_probs, labels), tokenizer, 1.0)]


def overall_confidence(words: Sequence[tuple[str, float]], log_probs: npt.NDArray[np.float32]) -> float:
    """Return the expected share of correct words; without any word, the probability that nothing was said in any frame."""
    if words:
        return float(np.mean([confidence for _, confidence in words]))
    return float(np.exp(log_probs.max(-1).sum())) if len(log_probs) else 1.0
