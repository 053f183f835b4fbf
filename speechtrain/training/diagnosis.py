"""What is wrong with a training that does not learn, by which figures, and what to type: rules over facts and metrics.

Each rule is a function of what is known, so that a run is judged alike while it trains, from its folder, and in tests. What a rule says
must be true of no run that goes on to learn; limits are set by the runs in `tests/unit/training/recorded_runs.jsonl`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise

from speechtrain.training.facts import Facts

Epoch = Mapping[str, float]

_LR_RANGE = (1e-7, 0.1)  # learning rates outside of which optimizers such as Adam learn nothing
_LEAST_WAY = 0.01  # sum of all learning rates below which such optimizers leave weights, of about 0.1, where they are
_MOST_SHRINKING = 0.01  # share of each weight that a step may take off it
_MASKED = 0.8  # share of an utterance behind masks, in the mean
_FEW_LABELS = 30  # in the validation texts: one error more or less is 3 %
_ENOUGH_STEPS = 60  # in which every model that learns has come down to the loss of a guess
_PLATEAU = 200  # steps for which models that learn may stay there
_PATIENCE = 5000  # steps; a longer run is not waited for until its half
_WORSE = 1.25  # times the loss of a guess, above which a model knows less than the frequencies of tokens
_AS_GUESSED = 0.96  # times that loss, above which it knows no more
_RISEN = 1.15  # times the lowest validation loss
_BEHIND = 1.6  # times the loss in training
_LITTLE, _MUCH = 0.25, 0.5  # times the loss of a guess; what lies below is well learnt, whatever the loss in training
_SAYS_NOTHING = 0.9  # share of the validation texts for which nothing is recognised
_FIND_LR = "trainer.find_lr=true, which tries rates from 1e-6 to 1 before training"
_LOOK = "python -m speechtrain.inspect with the same words and out=look shows recordings beside their texts"


@dataclass(frozen=True)
class Finding:
    """Describes one thing that keeps a training from learning.

    Attributes:
        code: a short name, the same in every run.
        message: what is wrong, with the figures that say so.
        fix: what to type.
    """

    code: str
    message: str
    fix: str

    def __str__(self) -> str:
        return f"{self.message}\n    -> {self.fix}"

    def as_dict(self) -> dict[str, str]:
        """Return the finding as JSON can hold it."""
        return asdict(self)


@dataclass(frozen=True)
class Evidence:
    """Holds what a run is judged by.

    Attributes:
        facts: what was known before the first step.
        epochs: metrics of the epochs so far; the last may be those of a part of one.
        ended: whether the training ran to its end.
        failure: what ended the training, if that was an error.
        done: how many epochs that is, where the last is a part of one; None: all of them are whole.
    """

    facts: Facts
    epochs: Sequence[Epoch] = field(default_factory=tuple)
    ended: bool = False
    failure: str | None = None
    done: float | None = None

    @property
    def steps(self) -> int:
        """Return the optimizer steps so far."""
        return min(self.facts.steps, round(self.facts.epoch_steps * (len(self.epochs) if self.done is None else self.done)))

    def values(self, metric: str) -> list[float]:
        """Return a metric wherever it was measured, in order."""
        return [each[metric] for each in self.epochs if metric in each]

    @property
    def losses(self) -> list[float]:
        """Return the loss a label of each epoch, in nats."""
        return self.values("train/loss")

    @property
    def is_warm(self) -> bool:
        """Return whether the learning rate has been at its highest, for as many steps as every model needs that learns."""
        past = self.facts.lr_top * self.facts.steps if self.facts.lr_top <= 0.6 else 0.0
        return bool(self.losses) and self.steps >= past + _ENOUGH_STEPS

    @property
    def lower_rate(self) -> str:
        """Return the words for a learning rate of a tenth."""
        return "a lower optimizer.lr" if self.facts.lr is None else f"optimizer.lr={self.facts.lr / 10:.1g}"

    @property
    def higher_rate(self) -> str:
        """Return the words for a learning rate of ten times as much."""
        return "a higher optimizer.lr" if self.facts.lr is None else f"optimizer.lr={self.facts.lr * 10:.1g}"

    def last(self, metric: str) -> float | None:
        """Return the value measured last."""
        values = self.values(metric)
        return values[-1] if values else None


Rule = Callable[[Evidence], Finding | None]


def diagnose(evidence: Evidence) -> list[Finding]:
    """Return what keeps a run from learning, what is known before its first step first; empty: nothing is known to."""
    before = [finding for rule in BEFORE if (finding := rule(evidence)) is not None]
    found = {finding.code: finding for finding in before}
    for rule in DURING:
        if (finding := rule(evidence)) is None:
            continue
        reasons = ", ".join(each.code for each in before)
        unexplained = finding.code in found or not reasons
        found[finding.code] = finding if unexplained else replace(finding, fix=f"mend first what was known before training: {reasons}")
    return [each for each in found.values() if evidence.facts.test_run is None or each.code in _OF_TESTS_TOO]


def figures(evidence: Evidence) -> dict[str, str]:
    """Return the figures that a run is judged by, as texts by name."""
    facts, epochs = evidence.facts, len(evidence.epochs)
    loss = f"{evidence.losses[-1]:.3f} a label after {epochs} epochs" if evidence.losses else "no epoch is over"
    lines = {
        "steps": f"{evidence.steps} of {facts.steps}",
        "train/loss": loss if facts.guess_loss is None else f"{loss}; {facts.guess_loss:.3f} is what a guess by token frequencies gets",
        "optimizer": f"{facts.optimizer}, lr {facts.lr:g}" if facts.lr is not None else facts.optimizer,
        "data": f"{facts.train} utterances to train on, {facts.val} to validate on",
    }
    if (empty := evidence.last("val/empty")) is not None:
        lines["val/empty"] = f"{empty:.0%} of the validation texts, for which nothing is recognised"
    if (norm := evidence.last("train/grad_norm")) is not None:
        lines["gradient"] = f"norm {norm:.3g} in the mean of the last epoch"
    return lines


def _frozen_head(evidence: Evidence) -> Finding | None:
    if evidence.facts.head_trained or evidence.facts.pretrained:
        return None
    message = "the head is frozen: its weights stay as they were drawn, whatever the encoder learns"
    return Finding("frozen-head", message, "leave requires_grad (Keras: trainable) of the head as the model is built")


def _long_warmup(evidence: Evidence) -> Finding | None:
    facts = evidence.facts
    if facts.lr_top <= 0.6:
        return None
    message = f"the learning rate rises for {facts.lr_top:.0%} of the run's {facts.steps} steps: the warm-up takes most of it"
    return Finding("long-warmup", message, "scheduler.warmup_steps=null scheduler.warmup_ratio=0.1, or more trainer.epochs")


def _configured_rate(evidence: Evidence) -> Finding | None:
    facts = evidence.facts
    if facts.lr is None or facts.lr_sum is None or not facts.adaptive:
        return None
    low, high = _LR_RANGE
    if facts.lr >= high:
        message = f"optimizer.lr={facts.lr:g} is too high: each step of {facts.optimizer} moves every weight by about so much"
        return Finding("high-lr", message, f"optimizer.lr={facts.lr / 100:.1g}, or {_FIND_LR}")
    if facts.lr < low or (facts.lr_sum < _LEAST_WAY and facts.steps >= _ENOUGH_STEPS and not facts.pretrained):
        message = (
            f"optimizer.lr={facts.lr:g} is too low: {facts.optimizer} moves a weight by {facts.lr_sum:.1g} at most in {facts.steps} steps, "
            "and weights are drawn at about 0.1"
        )
        return Finding("low-lr", message, f"optimizer.lr={facts.lr * 100:.1g}, or {_FIND_LR}")
    return None


def _regularisation(evidence: Evidence) -> Finding | None:
    facts = evidence.facts
    reasons = []
    if facts.label_smoothing >= 0.5:
        reasons.append(f"task.label_smoothing={facts.label_smoothing:g} outweighs the loss")
    if facts.dropout >= 0.8:
        reasons.append(f"model.dropout={facts.dropout:g} leaves {1 - facts.dropout:.0%} of each layer")
    if facts.shrinking > _MOST_SHRINKING:
        reasons.append(f"optimizer.lr times optimizer.weight_decay takes {facts.shrinking:.0%} off each weight at every step")
    if not reasons:
        return None
    fix = "task.label_smoothing=0.05, model.dropout=0.1, optimizer.weight_decay=1e-2"
    return Finding("regularisation", "; ".join(reasons), fix)


def _too_few_frames(evidence: Evidence) -> Finding | None:
    share = evidence.facts.infeasible
    if share <= 0.3:
        return None
    message = f"{share:.0%} of the training utterances have fewer frames than their text needs at this subsampling, and teach nothing"
    return Finding(
        "too-few-frames", message, "a model with less subsampling (model.subsampling, model.stem_time_strides), or tokenizer=bpe"
    )


def _silence(evidence: Evidence) -> Finding | None:
    facts = evidence.facts
    if facts.silent <= 0.3:
        return None
    message = f"{facts.silent:.0%} of {facts.recordings} training recordings are silent, or an even noise without speech"
    return Finding("silence", message, f"data.channel=1 if they have several and speech is on another one; {_LOOK}")


def _clipping(evidence: Evidence) -> Finding | None:
    facts = evidence.facts
    if facts.clipped <= 0.5:
        return None
    message = (
        f"{facts.clipped:.0%} of {facts.recordings} training recordings are clipped: over 2 % of their samples are cut off at one level"
    )
    return Finding("clipping", message, f"convert or record them again with less gain; {_LOOK}")


def _other_case(evidence: Evidence) -> Finding | None:
    share = evidence.facts.other_case
    if share <= 0.02:
        return None
    message = f"{share:.0%} of the tokens of the validation texts are in the vocabulary in the other case only"
    return Finding("case", message, "data.normalize=[nfc,lowercase,spaces], which brings all texts into one case")


def _no_overlap(evidence: Evidence) -> Finding | None:
    share = evidence.facts.unseen - evidence.facts.other_case
    if share <= 0.3:
        return None
    message = f"{share:.0%} of the tokens of the validation texts are in no training text, so that they cannot be recognised"
    return Finding("no-overlap", message, "tokenizer=char or tokenizer=bpe; look at data.train, data.val and data.normalize")


def _small_validation(evidence: Evidence) -> Finding | None:
    facts = evidence.facts
    if not facts.val or facts.guess_loss is None or facts.val_labels >= _FEW_LABELS:
        return None
    message = f"the {facts.val} validation utterances have {facts.val_labels} labels: which epoch is the best is chance"
    return Finding("small-validation", message, "data.split.val=10, or a longer data.val")


def _masks(evidence: Evidence) -> Finding | None:
    share = evidence.facts.masked
    if share <= _MASKED:
        return None
    message = f"the masks of augment hide {share:.0%} of an utterance in the mean"
    return Finding("masks", message, "augment=light, or narrower augment.time_mask_width and augment.freq_mask_width")


BEFORE: tuple[Rule, ...] = (
    *(_frozen_head, _long_warmup, _configured_rate, _regularisation, _masks),
    *(_too_few_frames, _silence, _clipping, _other_case, _no_overlap, _small_validation),
)
"""Rules over what is known before the first step."""


def _not_finite(evidence: Evidence) -> Finding | None:
    bad = [name for name in ("train/loss", "val/loss") if not math.isfinite(evidence.last(name) or 0.0)]
    if evidence.failure is None and not bad:
        return None
    message = evidence.failure or f"{bad[0]} is {evidence.last(bad[0])} after {len(evidence.epochs)} epochs"
    return Finding(
        "not-finite",
        message,
        f"{evidence.lower_rate}, scheduler.warmup_ratio=0.1, trainer.gradient_clip_val=1; bad_batch.npz has the batch",
    )


def _exploding(evidence: Evidence) -> Finding | None:
    losses, guess = evidence.losses, evidence.facts.guess_loss
    if len(losses) < 2 or guess is None:
        return None
    least = min(losses[:-1])
    if losses[-1] <= 3 * least or losses[-1] <= 1.5 * guess:
        return None
    message = f"train/loss rose from {least:.3g} to {losses[-1]:.3g}"
    if norms := evidence.values("train/grad_norm"):
        message += f", with gradients of norm {norms[-1]:.3g} ({min(norms):.3g} before)"
    return Finding("exploding", message, f"{evidence.lower_rate}, or trainer.gradient_clip_val=1")


def _worse_than_a_guess(evidence: Evidence) -> Finding | None:
    losses, guess = evidence.losses, evidence.facts.guess_loss
    if guess is None or not evidence.is_warm or not losses[-1] > _WORSE * guess:
        return None
    norms, steps = evidence.values("train/grad_norm"), evidence.steps
    said = f"train/loss is {losses[-1]:.3g} after {steps} steps; a guess that knows only how frequent each token is gets {guess:.3g}"
    if len(losses) > 1 and any(later > 1.05 * earlier for earlier, later in pairwise(losses)):
        return Finding(
            "high-lr", f"{said}, and the loss rises between epochs: the learning rate is too high", f"{evidence.lower_rate}, or {_FIND_LR}"
        )
    if len(norms) > 1 and norms[-1] >= 0.7 * norms[0] and losses[-1] > 0.3 * losses[0]:
        message = (
            f"{said}. It falls slowly, with gradients of norm {norms[-1]:.3g} as at first ({norms[0]:.3g}): the learning rate is too low"
        )
        return Finding("low-lr", message, f"{evidence.higher_rate}, or {_FIND_LR}")
    return Finding("worse-than-a-guess", said, f"{_FIND_LR}; {_LOOK}")


def _nothing_learnt(evidence: Evidence) -> Finding | None:
    losses, guess, facts = evidence.losses, evidence.facts.guess_loss, evidence.facts
    late = evidence.ended or (2 * evidence.steps >= facts.steps and evidence.steps >= _PLATEAU) or evidence.steps >= _PATIENCE
    if guess is None or not losses or not late or not _AS_GUESSED * guess < losses[-1] <= _WORSE * guess:
        return None
    empty = evidence.last("val/empty")
    if empty is not None and empty < _SAYS_NOTHING:
        return None
    said = f"train/loss is {losses[-1]:.3f} after {evidence.steps} of {facts.steps} steps, as that of a guess is ({guess:.3f}) that "
    said += "knows only how frequent each token is and how long texts are"
    said += "" if empty is None else f", and for {empty:.0%} of the validation texts nothing is recognised"
    return Finding("nothing-learnt", said, _remedy(evidence))


def _remedy(evidence: Evidence) -> str:
    """Return what to try with a model that stays at the loss of a guess, the likeliest first."""
    facts = evidence.facts
    tries = []
    if facts.adaptive and facts.lr is not None and facts.lr > 0.01:
        tries.append(evidence.lower_rate)
    if facts.steps < 1000:
        tries.append("more steps: trainer.epochs, or a smaller data.batch_seconds")
    if facts.masked > 0.4:
        tries.append("augment=light until it reads")
    tries += [_FIND_LR, "task.intermediate=0.3", f"{_LOOK}: do they belong together?"]
    return "\n    -> ".join(tries)


def _overfitting(evidence: Evidence) -> Finding | None:
    """Find a loss on validation data that rises again, or stays far above that in training.

    The error rate may still fall then, as the model only becomes too sure of what it says: fewer epochs are no remedy.
    """
    facts, guess = evidence.facts, evidence.facts.guess_loss
    both = [(number, each) for number, each in enumerate(evidence.epochs, 1) if "val/loss" in each and "train/loss" in each]
    if guess is None or not both or not (evidence.ended or 2 * evidence.steps >= facts.steps):
        return None
    best, lowest = min(both, key=lambda item: item[1]["val/loss"])
    train, val = both[-1][1]["train/loss"], both[-1][1]["val/loss"]
    said = f"val/loss is {val:.3g}, train/loss {train:.3g}: the model memorises its {facts.train} training utterances"
    if val > max(_RISEN * lowest["val/loss"], _LITTLE * guess) and train < lowest["train/loss"]:
        said += f" (val/loss was lowest in epoch {best}, {lowest['val/loss']:.3g})"
    elif val > max(_BEHIND * train, _MUCH * guess):
        said += ", or validation data are of another kind"
    else:
        return None
    fixes = ("a higher model.dropout, or more and wider masks: augment.time_masks, augment.time_mask_width", "a smaller model")
    more = "more data; where there is none: init_from= or model=pretrained, which begin with what others have learnt"
    return Finding("overfitting", said, "\n    -> ".join((*fixes, more)))


DURING: tuple[Rule, ...] = (_not_finite, _exploding, _worse_than_a_guess, _nothing_learnt, _overfitting)
"""Rules over the epochs so far."""
_OF_TESTS_TOO = {"frozen-head", "too-few-frames", "silence", "clipping", "case", "no-overlap", "not-finite"}
"""What is said of test runs, too, which are too short to learn."""
