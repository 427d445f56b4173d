"""Attention of short segments on a CPU in bf16, by matrix products.

PyTorch's fused kernel for CPUs is made for long sequences: over a hundred tokens, forward and backward pass together, it takes
two to three times as long as the products themselves do, in fp32 or bf16. Here scores are products of bf16, softmax is fp32, and
probabilities are rounded to bf16, as flash kernels do; the backward pass computes them a second time.
Legend: queries L, keys S, heads H in G groups, each of which shares keys and values, D numbers per head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

LONGEST = 512
"""Keys up to which this is the faster way."""


def dense_attention(
    query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], bias: Tensor, scale: float | None
) -> Tensor:
    """query [1, H, L, D]; keys [1, G, S', D] and values [1, G, S', E] in pieces, whose lengths add up to S; all bf16. ``bias``
    [L, S] fp32: 0 where the row's token may see the column's, else very small. -> [1, H, L, E]."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return _Dense.apply(query, bias, scale, *keys, *values)  # type: ignore[return-value]


def bias_of(seen: Tensor) -> Tensor:
    """The bias of a boolean mask, True where the row's token may see the column's."""
    return torch.zeros(seen.shape).masked_fill_(~seen, -1e30)


class _Dense(torch.autograd.Function):
    """Keeps the pieces as they are: those of a prompt belong to all of its answers."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, bias: Tensor, scale: float, *pieces: Tensor) -> Tensor:
        _, heads, rows, width = query.shape
        key, value = _joined(pieces)
        q = query.reshape(len(key), heads // len(key) * rows, width)  # a group's heads are rows of one product
        out = torch.bmm(_probabilities(q, key, bias, scale).to(value.dtype), value)
        ctx.save_for_backward(q, out, *pieces)
        ctx.bias, ctx.scale, ctx.shape = bias, scale, query.shape  # the bias is a constant that all layers share
        return out.view(1, heads, rows, value.shape[2])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        q, out, *pieces = ctx.saved_tensors
        key, value = _joined(pieces)
        d_out = grads[0].reshape(out.shape)
        probabilities = _probabilities(q, key, ctx.bias, ctx.scale)
        d_value = torch.bmm(probabilities.to(q.dtype).transpose(1, 2), d_out)
        slopes = torch.bmm(d_out, value.transpose(1, 2)).float()
        slopes.sub_((d_out.float() * out.float()).sum(-1, keepdim=True)).mul_(probabilities).mul_(ctx.scale)
        d_scores = slopes.to(q.dtype)
        d_query, d_key = torch.bmm(d_scores, key), torch.bmm(d_scores.transpose(1, 2), q)
        lengths = [piece.shape[2] for piece in pieces[: len(pieces) // 2]]
        parts = [part for d in (d_key, d_value) for part in d[None].split(lengths, 2)]
        return d_query.view(ctx.shape), None, None, *parts


def _joined(pieces: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Keys [G, S, D] and values [G, S, E]."""
    half = len(pieces) // 2
    if half == 1:
        return pieces[0][0], pieces[1][0]
    return torch.cat([piece[0] for piece in pieces[:half]], 1), torch.cat([piece[0] for piece in pieces[half:]], 1)


def _probabilities(query: Tensor, key: Tensor, bias: Tensor, scale: float) -> Tensor:
    """What each of the queries [G, H / G * L, D] takes of the keys [G, S, D]: [G, H / G * L, S] in fp32."""
    scores = torch.bmm(query, key.transpose(1, 2)).float().mul_(scale)
    by_head = scores.view(len(scores), scores.shape[1] // max(1, bias.shape[0]), *bias.shape)
    return torch.softmax(by_head.add_(bias), -1).view(scores.shape)
