"""Losses with kernels of their own; the other losses are written in their tasks."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def consistency(log_probs: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Return the divergence (B,) between two views, summed over frames; each view learns from the other, which gets no gradient.

    Half of the symmetric Kullback-Leibler divergence of CR-CTC (Yao et al. 2024, equation 3).

    Args:
        log_probs: (2B, T', V), all utterances in one view and then all in the other.
        lengths: (2B,) encoder frames.
    """
    first, second = log_probs.chunk(2)
    mask = torch.arange(log_probs.shape[1], device=lengths.device)[None, :] < lengths.chunk(2)[0][:, None]
    forward = F.kl_div(first, second.detach(), reduction="none", log_target=True).sum(-1)
    backward = F.kl_div(second, first.detach(), reduction="none", log_target=True).sum(-1)
    return (0.5 * (forward + backward) * mask).sum(1)


def ctc(log_probs: torch.Tensor, lengths: torch.Tensor, targets: torch.Tensor, target_lengths: torch.Tensor) -> torch.Tensor:
    """Return the CTC loss of each utterance in nats, in float32; 0 with gradient 0 where no alignment exists.

    Args:
        log_probs: (B, T', V), normalised, blank 0.
        lengths: (B,) encoder frames.
        targets: (B, L).
        target_lengths: (B,).
    """
    return F.ctc_loss(log_probs.float().transpose(0, 1), targets, lengths, target_lengths, blank=0, reduction="none", zero_infinity=True)
