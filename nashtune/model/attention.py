"""Attention for rows that are not a padded rectangle, registered with transformers under the name ``nashtune``.

A model loaded with ``attn_implementation="nashtune"`` builds no mask of its own; each forward call brings a layout
(``model(..., layout=layout)``) that knows which token may see which. So the models' own code (projections, norms, rotary
embeddings, residuals) runs unchanged for every family that goes through transformers' attention interface.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from nashtune.errors import ModelError
from nashtune.model import flex, varlen
from nashtune.model.dense_attention import LONGEST, bias_of, dense_attention

ATTENTION = "nashtune"
PackedKernel = Literal["auto", "segments", "blocks", "flex", "varlen"]
"""How a packed layout is computed; see the recipe's train.attention."""
SHORT = 2048
"""Tokens attended to, up to which a CPU is faster in fp32 than in bf16."""


@dataclass(frozen=True, slots=True)
class AttentionStyle:
    """What a layer asks of its attention: score scale, sliding window (tokens seen, itself included), logit soft-cap."""

    scale: float | None
    window: int | None = None
    softcap: float | None = None


class Layout(Protocol):
    """Who sees whom in one forward call."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, style: AttentionStyle) -> Tensor:
        """query [N, heads, L, D], key and value as the cache returned them -> [N, heads, L, D_v]."""
        ...


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    layout: Layout | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    if layout is None:
        raise ModelError(
            f"{type(module).__name__} was called without a layout; load the model with attention='sdpa' for plain use"
        )
    if rest.get("s_aux") is not None:
        raise ModelError(f"{type(module).__name__} uses attention sinks, which this engine does not support")
    if dropout:
        raise ModelError(
            f"{type(module).__name__} asks for attention dropout {dropout}; accepted: 0 (set it so in the config)"
        )
    out = layout.attend(query, key, value, AttentionStyle(scaling, sliding_window, softcap))
    return out.transpose(1, 2).contiguous(), None


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, _attention)


def masked_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, style: AttentionStyle, *, causal: bool = False
) -> Tensor:
    """Scaled dot-product attention with grouped heads; ``mask`` is boolean (True: may see) or an additive bias.

    query [N, heads, L, D], key [N, kv_heads, S, D], value [N, kv_heads, S, D_v] -> [N, heads, L, D_v].
    """
    grouped = key.shape[1] != query.shape[1]
    if style.softcap is None:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=causal and mask is None, scale=style.scale, enable_gqa=grouped
        )
    if grouped:
        repeats = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    scale = style.scale if style.scale is not None else query.shape[-1] ** -0.5
    scores = torch.tanh((query @ key.transpose(-1, -2)) * (scale / style.softcap)) * style.softcap
    if mask is None and causal:
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    return torch.softmax(scores, -1, dtype=torch.float32).to(value.dtype) @ value


@dataclass(frozen=True)
class Block:
    """One prompt of ``prompt`` tokens and the branches (answers) that continue it, each of so many *input* tokens.

    Branches see the prompt and themselves, never each other; every branch's positions start at the prompt's length.
    """

    prompt: int
    branches: tuple[int, ...] = ()

    @property
    def length(self) -> int:
        return self.prompt + sum(self.branches)

    @cached_property
    def positions(self) -> Tensor:
        """Rotary positions of the block's tokens [L]."""
        starts = [torch.arange(self.prompt), *(torch.arange(self.prompt, self.prompt + n) for n in self.branches)]
        return torch.cat(starts)

    def mask(self, window: int | None, device: torch.device) -> Tensor | None:
        """Boolean [L, L], True where the row's token may see the column's; None where plain causal attention says it."""
        if len(self.branches) < 2 and (window is None or self.length <= window):
            return None
        lengths = torch.tensor([self.prompt, *self.branches])
        owner = torch.repeat_interleave(torch.arange(len(lengths)), lengths).to(device)
        position = self.positions.to(device)
        seen = torch.ones(self.length, self.length, dtype=torch.bool, device=device).tril()
        seen &= (owner[None] == owner[:, None]) | (owner[None] == 0)
        if window is not None:
            seen &= position[:, None] - position[None] < window
        return seen


def automatic_kernel(device: torch.device, dtype: torch.dtype, style: AttentionStyle) -> PackedKernel:
    """What packed attention runs on where nothing else is asked for."""
    if device.type == "cpu":
        return "segments"
    if varlen.kernel_for(dtype, style) is not None:
        return "varlen"
    return "flex" if importlib.util.find_spec("triton") is not None else "blocks"


def check_kernel(kernel: PackedKernel, device: torch.device) -> None:
    """Raises ModelError where models on ``device`` cannot be trained with ``kernel``."""
    if kernel in ("flex", "varlen") and device.type == "cpu":
        raise ModelError(
            f"train.attention is {kernel!r}, which needs a GPU for its backward pass; accepted on a CPU: 'auto', 'segments', "
            "'blocks'"
        )


class PackedLayout:
    """Blocks laid end to end in one row of tokens [1, L], without padding."""

    def __init__(self, blocks: Sequence[Block], device: torch.device | str = "cpu", kernel: PackedKernel = "auto"):
        self.blocks = tuple(blocks)
        self.device = torch.device(device)
        self.kernel: PackedKernel = kernel
        self._masks: dict[int | None, list[Tensor | None]] = {}
        self._flex_masks: dict[int | None, Any] = {}
        self._segment_masks: dict[tuple[int, int, int | None], Tensor] = {}
        self._biases: dict[tuple[int, int, int | None], Tensor] = {}

    @property
    def position_ids(self) -> Tensor:
        """[1, L], restarting at each block."""
        return torch.cat([b.positions for b in self.blocks])[None].to(self.device)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, style: AttentionStyle) -> Tensor:
        kernel = self.kernel
        if kernel == "auto":
            kernel = automatic_kernel(self.device, value.dtype, style)
        match kernel:
            case "segments":
                return self._by_segment(query, key, value, style)
            case "blocks":
                return self._by_block(query, key, value, style)
        # Under autocast the rotary embedding leaves queries and keys in fp32; these kernels take one dtype.
        query, key = query.to(value.dtype), key.to(value.dtype)
        if kernel == "varlen":
            found = varlen.kernel_for(value.dtype, style)
            if found is None:
                raise ModelError(
                    f"train.attention is 'varlen', but no kernel here computes {style} in {value.dtype} on "
                    f"{self.device.type}; accepted: flash_attn or a torch with torch.nn.attention.varlen, on a GPU, in bf16 "
                    "(train.precision autocast or bfloat16), or another train.attention"
                )
            return varlen.attend(query, key, value, self._sequences, style, found)
        if style.window not in self._flex_masks:
            self._flex_masks[style.window] = flex.block_mask(self.blocks, style.window, self.device)
        return flex.attend(query, key, value, self._flex_masks[style.window], style, compiled=True)

    @cached_property
    def _sequences(self) -> varlen.Sequences:
        return varlen.sequences(self.blocks, self.device)

    def _by_block(self, query: Tensor, key: Tensor, value: Tensor, style: AttentionStyle) -> Tensor:
        """Whole blocks one by one, each with a mask where it has several branches."""
        if style.window not in self._masks:
            self._masks[style.window] = [b.mask(style.window, self.device) for b in self.blocks]
        masks = self._masks[style.window]
        out, start = [], 0
        for block, mask in zip(self.blocks, masks, strict=True):
            rows = slice(start, start + block.length)
            out.append(
                masked_attention(query[:, :, rows], key[:, :, rows], value[:, :, rows], mask, style, causal=True)
            )
            start += block.length
        return torch.cat(out, 2)

    def _by_segment(self, query: Tensor, key: Tensor, value: Tensor, style: AttentionStyle) -> Tensor:
        """Prompts and branches one by one, so that no score between two branches is computed. In bf16 short ones are products
        of matrices, and longer ones the fused kernel's in fp32, up to where that is the slower one.

        Splitting (not slicing) spares each segment a zero-filled gradient of full length.
        """
        lengths = [n for block in self.blocks for n in (block.prompt, *block.branches)]
        longest = max(block.prompt + max(block.branches, default=0) for block in self.blocks)
        dtype = value.dtype
        dense = dtype == torch.bfloat16 and longest <= LONGEST and style.softcap is None
        if dense:
            query, key = query.to(dtype), key.to(dtype)  # autocast leaves rotary embeddings in fp32
        elif longest <= SHORT:
            query, key, value = query.float(), key.float(), value.float()
        parts = zip(*(tensor.split(lengths, 2) for tensor in (query, key, value)), strict=True)
        out: list[Tensor] = []
        with torch.autocast("cpu", enabled=False) if dense or longest <= SHORT else contextlib.nullcontext():
            for block in self.blocks:
                q, k, v = next(parts)
                out.append(self._segment(q, [k], [v], style, dense))
                for _ in block.branches:
                    q, own_k, own_v = next(parts)
                    out.append(self._segment(q, [k, own_k], [v, own_v], style, dense))
        return torch.cat(out, 2).to(dtype)

    def _segment(
        self, query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], style: AttentionStyle, dense: bool
    ) -> Tensor:
        """A prompt, or an answer, whose keys and values come after the prompt's."""
        before, length = sum(k.shape[2] for k in keys[:-1]), query.shape[2]
        if dense:
            return dense_attention(query, keys, values, self._bias(before, length, style.window), style.scale)
        mask = self._segment_mask(before, length, style.window)
        if len(keys) == 1:
            return masked_attention(query, keys[0], values[0], mask, style, causal=True)
        return masked_attention(query, torch.cat([*keys], 2), torch.cat([*values], 2), mask, style)

    def _bias(self, before: int, length: int, window: int | None) -> Tensor:
        key = (before, length, window)
        if key not in self._biases:
            self._biases[key] = bias_of(_seen(before, length, window))
        return self._biases[key]

    def _segment_mask(self, before: int, length: int, window: int | None) -> Tensor | None:
        """Boolean [length, before + length] for a segment that follows ``before`` tokens; None where causal says it all."""
        if before == 0 and (window is None or length <= window):
            return None
        key = (before, length, window)
        if key not in self._segment_masks:
            self._segment_masks[key] = _seen(before, length, window)
        return self._segment_masks[key]


def _seen(before: int, length: int, window: int | None) -> Tensor:
    """Boolean [length, before + length]: what a segment after ``before`` tokens sees."""
    distance = torch.arange(before, before + length)[:, None] - torch.arange(before + length)
    return (distance >= 0) if window is None else (distance >= 0) & (distance < window)
