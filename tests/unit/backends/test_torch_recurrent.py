"""Recurrent layers over padded batches."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from speechtrain.backends.torch.models.recurrent import encode_padded


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_padded_sequences_are_encoded_as_packed_ones(kind: type[nn.LSTM | nn.GRU], bidirectional: bool) -> None:
    torch.manual_seed(0)
    layers = kind(8, 6, num_layers=2, batch_first=True, bidirectional=bidirectional).double()
    x = torch.randn(3, 20, 8, dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([12, 20, 1])
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    expected, _ = pad_packed_sequence(layers(packed)[0], batch_first=True, total_length=20)
    encoded = encode_padded(layers, x, lengths)
    torch.testing.assert_close(encoded, expected)
    for ours, theirs in zip(*(torch.autograd.grad(y.square().sum(), [x, *layers.parameters()]) for y in (encoded, expected)), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_dropout_between_layers_is_that_of_the_layers() -> None:
    layers = nn.GRU(4, 4, num_layers=2, batch_first=True, bidirectional=True, dropout=1.0)
    x, lengths = torch.randn(1, 5, 4), torch.tensor([5])
    torch.testing.assert_close(encode_padded(layers, x, lengths), encode_padded(layers, -x, lengths))  # the second layer hears nothing
    layers.eval()
    torch.testing.assert_close(encode_padded(layers, x, lengths), layers(x)[0])
