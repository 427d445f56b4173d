"""Keys and values of running sequences: one slot (row) each, refilled as sequences end.

Shapes: S slots, n active rows (always rows 0..n-1), KV key/value heads, G query heads per key/value head, D head size,
C capacity in tokens, T tokens attended to in the current step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from nashtune.model.attention import AttentionStyle, masked_attention

STEP = 32  # attended and allocated lengths are multiples of this: few distinct kernel shapes, aligned masks


class PromptCache(Cache):
    """Collects the keys and values of one packed prefill: per layer [1, KV, L, D]."""

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        self.keys.append(key_states)
        self.values.append(value_states)
        return key_states, value_states


class SlotCache(Cache):
    """Per layer two tensors [S, KV, C, D], grown as sequences lengthen; also the attention layout of a decode step."""

    def __init__(self, slots: int, longest: int):
        """``longest``: most tokens a sequence of this run can hold."""
        super().__init__(layers=[])
        self.slots = slots
        self.longest = _round_up(longest)
        self.capacity = 0
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self._positions = torch.empty(0, dtype=torch.long)
        self._cells: dict[int, Tensor] = {}
        self._attended = 0
        self._biases: dict[int | None, Tensor] = {}

    def admit(self, rows: Tensor, prompt: PromptCache, start: int, length: int) -> None:
        """Give ``rows`` the keys and values of the prompt that lies at ``start`` in a packed prefill."""
        if not self.keys:
            self.keys, self.values = ([self._empty(x) for x in side] for side in (prompt.keys, prompt.values))
        self._reserve(length + 1)
        for kept, new in ((self.keys, prompt.keys), (self.values, prompt.values)):
            for mine, theirs in zip(kept, new, strict=True):
                mine[rows, :, :length] = theirs[0, :, start : start + length]

    def move(self, sources: Tensor, targets: Tensor, length: int) -> None:
        """Copy the first ``length`` tokens of rows ``sources`` to rows ``targets``."""
        for cached in (*self.keys, *self.values):
            cached[targets, :, :length] = cached[sources, :, :length]

    def begin_step(self, positions: Tensor, longest: int) -> None:
        """Prepare a decode step of ``n`` rows, each with one token at ``positions`` [n]; ``longest`` is the greatest."""
        self._reserve(longest + 1)
        self._positions = positions
        self._cells.clear()
        self._attended = _round_up(longest + 1)
        self._biases.clear()

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Store one token's keys and values [n, KV, 1, D] per row; returns all that may be attended to [n, KV, T, D]."""
        sides = ((self.keys[layer_idx], key_states), (self.values[layer_idx], value_states))
        key, value = (self._store(cached, new) for cached, new in sides)
        return key, value

    def attend(self, query: Tensor, key: Tensor, value: Tensor, style: AttentionStyle) -> Tensor:
        """Attention of one token per row [n, heads, 1, D] over its own past.

        Query heads of one key/value head go together as if they were positions, which spares repeating keys and values.
        """
        n, heads, _, size = query.shape
        groups = heads // key.shape[1]
        query, bias = query.reshape(n, -1, groups, size), self._bias(style.window, query.dtype)
        if query.device.type == "cpu" and style.softcap is None:
            out = _two_products(query, key, value, bias, style.scale)
        else:
            out = masked_attention(query, key, value, bias.expand(n, 1, groups, self._attended), style)
        return out.reshape(n, heads, 1, -1)

    def _store(self, cached: Tensor, new: Tensor) -> Tensor:
        n, heads = new.shape[:2]
        if heads not in self._cells:
            lines = torch.arange(n * heads, device=new.device) * self.capacity
            self._cells[heads] = lines + self._positions.repeat_interleave(heads)
        cached.flatten(0, 2).index_copy_(0, self._cells[heads], new.flatten(0, 2))
        return cached[:n, :, : self._attended]

    def _bias(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """Additive mask [n, 1, 1, T]: 0 where the row's token may look, else -inf."""
        if window not in self._biases:
            columns = torch.arange(self._attended, device=self._positions.device)
            distance = self._positions[:, None] - columns
            hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
            bias = torch.zeros(hidden.shape, dtype=dtype, device=columns.device).masked_fill_(hidden, float("-inf"))
            self._biases[window] = bias[:, None, None]
        return self._biases[window]

    def _reserve(self, tokens: int) -> None:
        """Grow every layer to hold ``tokens`` per row, by half at least, so that copying stays a small part."""
        if tokens <= self.capacity:
            return
        self.capacity = min(self.longest, _round_up(max(tokens, self.capacity * 3 // 2)))
        for side in (self.keys, self.values):
            for layer, old in enumerate(side):
                side[layer] = old.new_zeros(*old.shape[:2], self.capacity, old.shape[3])
                side[layer][:, :, : old.shape[2]] = old

    def _empty(self, like: Tensor) -> Tensor:
        return like.new_zeros(self.slots, like.shape[1], 0, like.shape[3])


def _two_products(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float | None) -> Tensor:
    """Attention written out: with a few queries per key/value head a CPU does it in two thirds of the fused kernel's time.

    Keys go on the left, as a batched product takes the slice of a larger cache there without copying it.
    """
    scores = (key @ query.transpose(-1, -2)).transpose(-1, -2)
    scores = scores * (query.shape[-1] ** -0.5 if scale is None else scale) + bias
    return torch.softmax(scores, -1) @ value


def _round_up(tokens: int) -> int:
    return -(-tokens // STEP) * STEP
