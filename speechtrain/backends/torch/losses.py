"""Losses by the name that a task gives, each (log_probs, lengths, targets, target_lengths) -> (B,)."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def ctc(log_probs: torch.Tensor, lengths: torch.Tensor, targets: torch.Tensor, target_lengths: torch.Tensor) -> torch.Tensor:
    """CTC loss of each utterance in nats, in float32; 0 with gradient 0 where no alignment exists.

    Args:
        log_probs: (B, T', V), normalised, blank 0.
        lengths: (B,) encoder frames.
        targets: (B, L).
        target_lengths: (B,).
    """
    losses = F.ctc_loss(log_probs.float().transpose(0, 1), targets, lengths, target_lengths, blank=0, reduction="none", zero_infinity=True)
    # the CPU kernel's gradient of a row without alignment is 0 only with zero_infinity and a loss of exactly infinity
    repeats = ((targets[:, 1:] == targets[:, :-1]) & (targets[:, 1:] != 0)).sum(1)
    return torch.where(lengths >= target_lengths + repeats, losses, 0.0)
