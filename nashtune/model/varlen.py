"""Packed attention as sequences of different length: one call of a flash-attention kernel for prompts and answers alike.

Each prompt is a sequence over its own keys, each answer one over its prompt's keys and then its own. Queries stay where they are;
keys and values are gathered, so a prompt's are read once for each of its answers. With the causal mask aligned to the
last key, as these kernels align it, an answer's tokens see the whole prompt and themselves.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from nashtune.model.attention import AttentionStyle, Block


@dataclass(frozen=True, slots=True)
class Sequences:
    """Blocks as N sequences of queries and keys. Segments without tokens are left out."""

    query_ends: Tensor
    """[N + 1] int32, cumulative numbers of queries."""
    key_ends: Tensor
    """[N + 1] int32, cumulative numbers of keys."""
    keys: Tensor
    """[S] where each sequence's keys lie in the packed row, end to end."""
    most_queries: int
    most_keys: int


def sequences(blocks: Sequence[Block], device: torch.device) -> Sequences:
    """Prompts and branches of the blocks in the order in which they are packed."""
    queries, keys, places = [], [], []
    start = 0

    def segment(length: int, before: Tensor) -> Tensor:
        nonlocal start
        own = torch.arange(start, start + length)
        start += length
        if length:
            queries.append(length)
            keys.append(len(before) + length)
            places.append(torch.cat([before, own]))
        return own

    nothing = torch.arange(0)
    for block in blocks:
        prompt = segment(block.prompt, nothing)
        for length in block.branches:
            segment(length, prompt)

    def ends(lengths: list[int]) -> Tensor:
        return torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32)

    return Sequences(ends(queries), ends(keys), torch.cat(places).to(device), max(queries), max(keys))


class Kernel(Protocol):
    """Causal attention, aligned to each sequence's last key: query [L, heads, D], key and value [S, kv_heads, D] ->
    [L, heads, D]."""

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, layout: Sequences, style: AttentionStyle
    ) -> Tensor: ...


def attend(
    query: Tensor, key: Tensor, value: Tensor, layout: Sequences, style: AttentionStyle, kernel: Kernel
) -> Tensor:
    """query [1, heads, L, D], key and value [1, kv_heads, L, D] -> [1, heads, L, D]."""
    gathered, values = (x[0].transpose(0, 1).index_select(0, layout.keys) for x in (key, value))
    return kernel(query[0].transpose(0, 1), gathered, values, layout, style).transpose(0, 1)[None]


def kernel_for(dtype: torch.dtype, style: AttentionStyle) -> Kernel | None:
    """The installed kernel that computes ``style`` in ``dtype``: flash_attn's, else torch's own; None where there is none."""
    if dtype not in (torch.bfloat16, torch.float16):
        return None
    found = installed()
    if "flash_attn" in found:
        return _flash_attn
    return _torch_varlen if "torch" in found and style.softcap is None else None


@cache
def installed() -> tuple[str, ...]:
    """Which packages bring such a kernel here; none of them runs on a CPU."""
    if not torch.cuda.is_available():
        return ()
    names = {"flash_attn": "flash_attn", "torch": "torch.nn.attention.varlen"}
    return tuple(name for name, module in names.items() if importlib.util.find_spec(module) is not None)


def _flash_attn(query: Tensor, key: Tensor, value: Tensor, layout: Sequences, style: AttentionStyle) -> Tensor:
    from flash_attn import flash_attn_varlen_func  # type: ignore[import-not-found]

    function: Any = flash_attn_varlen_func
    return function(
        query,
        key,
        value,
        layout.query_ends,
        layout.key_ends,
        layout.most_queries,
        layout.most_keys,
        softmax_scale=style.scale,
        causal=True,
        window_size=(-1 if style.window is None else style.window - 1, 0),
        softcap=style.softcap or 0.0,
    )


def _torch_varlen(query: Tensor, key: Tensor, value: Tensor, layout: Sequences, style: AttentionStyle) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn  # type: ignore[import-not-found]

    function: Any = varlen_attn
    return function(
        query,
        key,
        value,
        layout.query_ends,
        layout.key_ends,
        layout.most_queries,
        layout.most_keys,
        scale=style.scale,
        window_size=(-1 if style.window is None else style.window - 1, 0),
        enable_gqa=key.shape[1] != query.shape[1],
    )
