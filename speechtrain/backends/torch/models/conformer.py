"""Conformer (Gulati et al. 2020) with rotary positions (Su et al. 2021) in place of relative ones, so that attention can be fused."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from speechtrain.backends.torch.attention import attend_in_bfloat16, attends_in_float32, attention_precision, rotary_frequencies, rotate
from speechtrain.backends.torch.encoder import ConvStem, Encoder, Stack, frame_mask, halvings
from speechtrain.backends.torch.layers import DepthwiseConv, Dropout, FeedForward

_WHOLE = 1 << 30
"""Encoder frames of a chunk that is longer than any utterance."""


class RotaryEncoder(Encoder):
    """A stem and layers with rotary attention: what the conformer and its relatives have in common.

    Args:
        stem: (B, T, F), (B,) -> (B, T', D), (B,).
        layers: (x, mask (B, T', 1), attend, rotation) -> x.
        width: D.
        head_size: size of one attention head.
        subsampling: subsampling factor of the stem.
        dropout: behind the stem.
        chunk_frames: encoder frames of a chunk; no frame sees a later chunk than its own. None: every frame sees all.
        left_chunks: earlier chunks that a frame sees; None: all.
        train_chunk_frames: lengths of chunks of which one is drawn for each batch in training (Zhang et al. 2020, "U2"), among them None
            for whole utterances, so that one model serves all of them. None: `chunk_frames` in training too.
    """

    frequencies: torch.Tensor
    _train_chunks: torch.Tensor

    def __init__(
        self,
        stem: nn.Module,
        layers: Iterable[nn.Module],
        width: int,
        head_size: int,
        subsampling: int,
        dropout: float,
        chunk_frames: int | None = None,
        left_chunks: int | None = None,
        train_chunk_frames: Sequence[int | None] | None = None,
    ) -> None:
        super().__init__()
        self.stem = stem
        self.dropout = Dropout(dropout)
        self.layers = Stack(layers, width)
        self.register_buffer("frequencies", rotary_frequencies(head_size), persistent=False)
        self.output_size = width
        self.subsampling = subsampling
        self.receptive_field = None
        self.chunk_frames = chunk_frames
        self.left_chunks = left_chunks
        self.causal = chunk_frames == 1
        sizes = [_WHOLE if size is None else size for size in train_chunk_frames or ()]
        self.register_buffer("_train_chunks", torch.tensor(sizes, dtype=torch.long, device="cpu"), persistent=False)

    def output_lengths(self, lengths: torch.Tensor) -> torch.Tensor:
        """Compute the numbers of encoder frames (B,) of input frames (B,)."""
        output_lengths: torch.Tensor = self.stem.output_lengths(lengths)  # type: ignore[operator]
        return output_lengths

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode features (B, T, F) as (B, T', D), with their lengths (B,)."""
        x, lengths = self.stem(features, lengths)
        mask = frame_mask(lengths, x.shape[1])
        attend = self._attend(mask)
        angles = torch.float32 if attends_in_float32(x.device) else x.dtype
        return self.layers(self.dropout(x), mask[:, :, None].to(x.dtype), attend, self.rotation(0, x.shape[1], angles)), lengths

    def rotation(self, first: int, frames: int, dtype: torch.dtype) -> torch.Tensor:
        """Return the cosines and sines (2, T', d/2) of the frames from `first`."""
        angles = torch.arange(first, first + frames, device=self.frequencies.device)[:, None] * self.frequencies
        return torch.stack([angles.cos(), angles.sin()]).to(dtype)

    def _attend(self, mask: torch.Tensor) -> torch.Tensor | None:
        size = self._chunk_size()
        if size is None:
            # without padding no mask is needed, and attention takes its fastest path
            exported = torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export()
            return None if not exported and bool(mask.all()) else mask[:, None, None, :]
        chunks = torch.arange(mask.shape[1], device=mask.device) // size
        back = chunks[:, None] - chunks[None, :]
        seen = (back >= 0) if self.left_chunks is None else (back >= 0) & (back <= self.left_chunks)
        # a frame behind the end sees itself, so that nothing is divided by 0
        return (mask[:, None, None, :] & seen) | torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)

    def _chunk_size(self) -> torch.Tensor | int | None:
        """Return the encoder frames of a chunk for one batch; None: whole utterances."""
        if not self.training or not len(self._train_chunks):
            return self.chunk_frames
        drawn = torch.randint(len(self._train_chunks), (1,), device=self._train_chunks.device)
        return self._train_chunks[drawn]  # no number, for which a GPU would be waited for


class Conformer(RotaryEncoder):
    """See `conf/model/conformer.yaml` for the arguments; `input_size` is F."""

    def __init__(
        self,
        input_size: int,
        d_model: int,
        n_layers: int,
        n_heads: int,
        ff_multiplier: float,
        kernel_size: int,
        subsampling: int,
        stem_channels: int,
        dropout: float,
        chunk_frames: int | None = None,
        left_chunks: int | None = None,
        train_chunk_frames: Sequence[int | None] | None = None,
    ) -> None:
        strides = halvings(subsampling)
        causal = chunk_frames is not None or train_chunk_frames is not None
        hidden = round(ff_multiplier * d_model)
        super().__init__(
            ConvStem(input_size, [stem_channels] * len(strides), strides, d_model, causal=causal),
            (ConformerLayer(d_model, n_heads, hidden, kernel_size, dropout, causal=causal) for _ in range(n_layers)),
            d_model,
            d_model // n_heads,
            subsampling,
            dropout,
            chunk_frames,
            left_chunks,
            train_chunk_frames,
        )

    def stream(self) -> ConformerStream:
        """Return a fresh state for one live signal; in evaluation mode its outputs are those of `forward`.

        Raises:
            ValueError: the model looks at whole utterances.
        """
        if self.chunk_frames is None:
            raise ValueError("a conformer that looks at whole utterances cannot run on a live signal: train it with model.chunk_frames")
        return ConformerStream(self, self.chunk_frames)


class ConformerLayer(nn.Module):
    """A conformer layer: half a feed-forward, attention, convolution, half a feed-forward, a norm."""

    def __init__(self, d_model: int, n_heads: int, hidden: int, kernel_size: int, dropout: float, *, causal: bool = False) -> None:
        super().__init__()
        self.ff1 = FeedForward(d_model, hidden, dropout)
        self.attention = Attention(d_model, n_heads, dropout)
        self.conv = ConvModule(d_model, kernel_size, dropout, causal=causal)
        self.ff2 = FeedForward(d_model, hidden, dropout)
        self.norm = nn.LayerNorm(d_model)

    def forward(
        self,
        x: torch.Tensor,
        mask: torch.Tensor,
        attend: torch.Tensor | None,
        rotation: torch.Tensor,
        cache: dict[str, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Map frames (B, T', D) to frames (B, T', D); `cache` holds the past of a live signal, and is updated."""
        x = self.ff1(x)
        x = x + self.attention(x, attend, rotation, cache)
        x = x + self.conv(x, mask, cache)
        x = self.ff2(x)
        # under autocast a GPU's norm gives float32, and all that follows would be read and written in it
        return self.norm(x).to(x.dtype)  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Multi-head self-attention; queries and keys are rotated by their position."""

    def __init__(self, d_model: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.norm = nn.LayerNorm(d_model)
        self.qkv = nn.Linear(d_model, 3 * d_model)
        self.out = nn.Linear(d_model, d_model)
        self.dropout = Dropout(dropout)

    def forward(
        self, x: torch.Tensor, attend: torch.Tensor | None, rotation: torch.Tensor, cache: dict[str, torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Map (B, T', D) to (B, T', D); `attend` (B, 1, 1 or T', T') is true where a key may be attended to."""
        x = self.norm(x)
        attended = attend_in_bfloat16(x, self.qkv, self.n_heads, attend, rotation) if cache is None else None
        if attended is None:
            attended = self._attended(x, attend, rotation, cache)
        out: torch.Tensor = self.dropout(self.out(attended))
        return out

    def _attended(
        self, x: torch.Tensor, attend: torch.Tensor | None, rotation: torch.Tensor, cache: dict[str, torch.Tensor] | None
    ) -> torch.Tensor:
        batch, frames, width = x.shape
        q, k, v = self.qkv(x).view(batch, frames, 3, self.n_heads, width // self.n_heads).permute(2, 0, 3, 1, 4)
        with attention_precision(x.device) as wide:
            if wide:
                q, k, v = q.float(), k.float(), v.float()
            q, k = rotate(q, rotation), rotate(k, rotation)
            if cache is not None:
                k, v = (torch.cat([cache[name], new], dim=2) if name in cache else new for name, new in (("k", k), ("v", v)))
                cache.update(k=k, v=v)
            x = F.scaled_dot_product_attention(q, k, v, attn_mask=attend)  # (B, H, T', d)
        return x.transpose(1, 2).reshape(batch, frames, width)


class ConvModule(nn.Module):
    """Pointwise with gate, depthwise, batch norm, SiLU, pointwise."""

    def __init__(self, d_model: int, kernel_size: int, dropout: float, *, causal: bool = False) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d_model)
        self.expand = nn.Linear(d_model, 2 * d_model)
        self.depthwise = DepthwiseConv(d_model, kernel_size, causal=causal)
        self.batch_norm = nn.BatchNorm1d(d_model)
        self.project = nn.Linear(d_model, d_model)
        self.dropout = Dropout(dropout)

    def forward(self, x: torch.Tensor, mask: torch.Tensor, cache: dict[str, torch.Tensor] | None = None) -> torch.Tensor:
        """Map frames (B, T', D) to frames (B, T', D); those where the mask (B, T', 1) is 0 influence no others."""
        x = F.glu(self.expand(self.norm(x)), dim=-1) * mask
        if cache is None:
            x = self.depthwise(x)
        else:
            before = self.depthwise.before
            earlier = cache.get("conv", x.new_zeros(len(x), before, x.shape[2]))
            x = torch.cat([earlier, x], dim=1)
            cache["conv"] = x[:, x.shape[1] - before :]
            x = self.depthwise(x)[:, before:]
        x = F.silu(self.batch_norm(x.flatten(0, 1)).view(x.shape))  # (B T', D): four times as fast as (B, D, T')
        out: torch.Tensor = self.dropout(self.project(x))
        return out


class ConformerStream:
    """Takes features as they come and gives encoder frames a chunk at a time."""

    def __init__(self, encoder: Conformer, chunk_frames: int) -> None:
        self._encoder = encoder
        self._chunk = chunk_frames
        self._begin()

    def _begin(self) -> None:
        self._heard: torch.Tensor | None = None  # what the stem still looks at, and what no chunk is full of yet
        self._context = 0  # frames of it that were encoded before
        self._frames = 0  # encoder frames so far
        self._caches: list[dict[str, torch.Tensor]] = [{} for _ in self._encoder.layers]

    def push(self, features: torch.Tensor) -> torch.Tensor:
        """Return the encoder frames (B, t', D) of the chunks that features (B, t, F) complete; t' may be 0."""
        self._heard = features if self._heard is None else torch.cat([self._heard, features], dim=1)
        step = self._chunk * self._encoder.subsampling
        chunks = [self._heard.new_zeros(len(features), 0, self._encoder.output_size)]
        while self._heard.shape[1] - self._context >= step:
            chunks.append(self._run(self._context + step))
        return torch.cat(chunks, dim=1)

    def finish(self) -> torch.Tensor:
        """Return the encoder frames (B, t', D) of what is left; afterwards a new signal can begin."""
        assert self._heard is not None, "push comes first"
        left = self._heard.shape[1]
        out = self._run(left) if left > self._context else self._heard.new_zeros(len(self._heard), 0, self._encoder.output_size)
        self._begin()
        return out

    def _run(self, end: int) -> torch.Tensor:
        """Encode the received frames up to `end`, and drop those that no later frame attends to."""
        encoder, heard = self._encoder, self._heard
        assert heard is not None
        lengths = torch.full((len(heard),), end, device=heard.device)
        stem: Any = encoder.stem
        x, _ = stem(heard[:, :end], lengths)
        x = x[:, self._context // encoder.subsampling :]
        rotation = encoder.rotation(self._frames, x.shape[1], x.dtype)
        mask = x.new_ones(len(x), x.shape[1], 1)
        for layer, cache in zip(encoder.layers, self._caches, strict=True):
            x = layer(x, mask, None, rotation, cache)
            if encoder.left_chunks is not None:
                kept = encoder.left_chunks * self._chunk
                cache["k"], cache["v"] = (cache[name][:, :, max(0, cache[name].shape[2] - kept) :] for name in ("k", "v"))
        self._frames += x.shape[1]
        whole = -(-(stem.receptive_field - 1) // encoder.subsampling) * encoder.subsampling
        begin = max(0, end - whole)
        self._heard, self._context = heard[:, begin:], end - begin
        encoded: torch.Tensor = x
        return encoded
