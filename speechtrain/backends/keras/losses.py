"""Losses with kernels of their own; the other losses are written in their tasks."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import keras
from keras import ops

from speechtrain.backends.keras.engine import TENSORFLOW
from speechtrain.backends.keras.layers import frame_mask


def named(name: str, *, compiled: bool) -> Callable[[Any, Any, Any, Any], Any]:
    """Return the loss of that name, by the fastest kernel of the engine; `compiled`: XLA has to know it."""
    if name == "ctc" and keras.config.backend() == TENSORFLOW and not compiled:
        return _ctc_of_tensorflow
    loss: Callable[[Any, Any, Any, Any], Any] = globals()[name]
    return loss


def consistency(log_probs: Any, lengths: Any) -> Any:
    """Return the divergence (B,) between two views, summed over frames; each view learns from the other, which gets no gradient.

    Half of the symmetric Kullback-Leibler divergence of CR-CTC (Yao et al. 2024, equation 3).

    Args:
        log_probs: (2B, T', V), all utterances in one view and then all in the other.
        lengths: (2B,) encoder frames.
    """
    first, second = ops.split(log_probs, 2, axis=0)
    mask = ops.cast(frame_mask(ops.split(lengths, 2, axis=0)[0], ops.shape(log_probs)[1]), log_probs.dtype)
    forward, backward = _divergence(ops.stop_gradient(second), first), _divergence(ops.stop_gradient(first), second)
    return ops.sum(0.5 * (forward + backward) * mask, axis=1)


def _divergence(truth: Any, estimate: Any) -> Any:
    return ops.sum(ops.exp(truth) * (truth - estimate), axis=-1)


def ctc(log_probs: Any, lengths: Any, targets: Any, target_lengths: Any, *, native: bool = False) -> Any:
    """Return the CTC loss of each utterance in nats, in float32; 0 with gradient 0 where no alignment exists.

    Args:
        log_probs: (B, T', V), normalised, blank 0.
        lengths: (B,) encoder frames.
        targets: (B, L).
        target_lengths: (B,).
        native: on TensorFlow, use its own kernel: three times as fast as the loop that Keras makes of it, but unknown to XLA.
    """
    lengths, targets, target_lengths = (ops.cast(x, "int32") for x in (lengths, targets, target_lengths))
    inside = frame_mask(target_lengths, ops.shape(targets)[1])
    repeats = (targets[:, 1:] == targets[:, :-1]) & inside[:, 1:]
    aligned = (lengths >= target_lengths + ops.sum(ops.cast(repeats, "int32"), axis=1)) & (lengths > 0)
    # The engines disagree on a row without an alignment, and some refuse one without labels: those are given a frame and a label to
    # stand in, whose loss does not count.
    usual = aligned & (target_lengths > 0)
    log_probs = ops.cast(log_probs, "float32")
    blanks = -ops.sum(log_probs[:, :, 0] * ops.cast(frame_mask(lengths, ops.shape(log_probs)[1]), "float32"), axis=1)
    targets = ops.where(inside & usual[:, None], targets, 0)
    targets = ops.where(usual[:, None] | (ops.arange(ops.shape(targets)[1]) > 0)[None, :], targets, 1)
    lengths, target_lengths = ops.where(usual, lengths, 1), ops.where(usual, target_lengths, 1)
    losses = (_native if native else _portable)(log_probs, lengths, targets, target_lengths)
    return ops.where(usual, losses, ops.where(aligned, blanks, ops.zeros_like(losses)))


def _ctc_of_tensorflow(log_probs: Any, lengths: Any, targets: Any, target_lengths: Any) -> Any:
    """Compute `ctc` with TensorFlow's own kernel; the graphs of all steps call one graph of it instead of tracing it anew each."""
    integers = (ops.cast(x, "int32") for x in (lengths, targets, target_lengths))
    return ctc_graph(log_probs.shape[-1])(ops.cast(log_probs, "float32"), *integers)


@cache
def ctc_graph(classes: int) -> Any:
    """Return `ctc` with TensorFlow's own kernel for so many classes, as a function that is traced when it is called first."""
    import tensorflow as tf

    rows = tf.TensorSpec([None], tf.int32)
    signature = [tf.TensorSpec([None, None, classes], tf.float32), rows, tf.TensorSpec([None, None], tf.int32), rows]
    return tf.function(partial(ctc, native=True), input_signature=signature, autograph=False)


def _portable(log_probs: Any, lengths: Any, targets: Any, target_lengths: Any) -> Any:
    return ops.ctc_loss(targets, log_probs, target_lengths, lengths)


def _native(log_probs: Any, lengths: Any, targets: Any, target_lengths: Any) -> Any:
    import tensorflow as tf

    # the kernel works with probabilities, which vanish in float32 below exp(-87)
    return tf.cond(
        tf.reduce_min(log_probs) > -80.0,
        lambda: tf.nn.ctc_loss(tf.sparse.from_dense(targets), log_probs, None, lengths, logits_time_major=False, blank_index=0),
        lambda: _portable(log_probs, lengths, targets, target_lengths),
    )
