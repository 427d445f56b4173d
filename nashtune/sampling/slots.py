"""Keys and values of running sequences: one slot (row) each for its answer, refilled as sequences end, and one place for
each prompt, which all answers to it read.

Shapes: S slots, n active rows (always rows 0..n-1), P prompts at hand (always 0..P-1), J places for rows of one prompt, KV
key/value heads, G query heads per key/value head, D head size, T tokens attended to, of the prompt and of the answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from nashtune.errors import ModelError
from nashtune.model.attention import AttentionStyle

STEP = 16  # attended and allocated lengths are multiples of this: few distinct kernel shapes


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


@dataclass(frozen=True, slots=True)
class Step:
    """One decode step: what the cache and its attention need to know of the rows.

    ``tokens`` [n] go in; ``own`` [n] is each one's index in its answer, ``prompt`` [n] the length of its shared prompt (its
    position is the sum). ``place`` [n] is the row's place among the P * J of the prompts' rows, ``members`` [P * J] the row
    at each place (0 where there is none). ``columns``: tokens attended to, of the prompts and of the answers.
    """

    tokens: Tensor
    own: Tensor
    prompt: Tensor
    place: Tensor
    members: Tensor
    prompts: int
    columns: tuple[int, int]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.tokens, self.own, self.prompt, self.place, self.members

    @property
    def shape(self) -> tuple[int, ...]:
        """What decides every shape of the step."""
        return len(self.tokens), self.prompts, len(self.members), *self.columns


class SlotCache(Cache):
    """Per layer keys and values of answers [S, KV, T, D] and of prompts [P, KV, T, D], grown as needed; also the attention
    layout of a decode step.

    ``tokens`` and ``prompt_tokens``: most tokens of an answer and of a shared prompt. ``whole`` allocates all at the first
    use, for steps whose tensors must stay where they are.
    """

    def __init__(self, slots: int, tokens: int, prompt_tokens: int, *, prompts: int = 0, whole: bool = False):
        super().__init__(layers=[])
        self.answers = _Store(slots, round_up(tokens), slots, whole=whole)
        self.prompts = _Store(0, round_up(prompt_tokens), prompts or slots, whole=whole)
        self._step: Step | None = None
        self._layer = 0
        self._key: Tensor | None = None
        self._indices: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        self._biases: dict[int | None, Tensor] = {}

    def admit_prompt(self, number: int, prompt: PromptCache, start: int, length: int) -> None:
        """Keep the prompt that lies at ``start`` in a packed prefill as shared prompt ``number``."""
        self.answers.like(prompt)
        self.prompts.like(prompt)
        self.prompts.reserve(number + 1, length)
        self.prompts.fill(torch.tensor([number], device=prompt.keys[0].device), prompt, start, length)

    def admit(self, rows: Tensor, prompt: PromptCache, start: int, length: int) -> None:
        """Give ``rows`` a copy each of that prompt, as the beginning of their answers: where no other row reads it."""
        self.answers.like(prompt)
        self.answers.reserve(0, length + 1)
        self.answers.fill(rows, prompt, start, length)

    def begin_step(self, step: Step) -> None:
        """Prepare for a model's forward pass over ``step``."""
        self.answers.reserve(0, step.columns[1])
        self._step = step
        self._indices.clear()
        self._biases.clear()

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Store one token's keys and values [n, KV, 1, D] per row; returns what rows have of their answers [n, KV, T, D]."""
        assert self._step is not None
        n, own = len(self._step.own), self._step.columns[1]
        cells = self._index(key_states.shape[1])[0]
        key, value = self.answers.keys[layer_idx], self.answers.values[layer_idx]
        key.flatten(0, 2).index_copy_(0, cells, key_states.flatten(0, 2))
        value.flatten(0, 2).index_copy_(0, cells, value_states.flatten(0, 2))
        self._layer, self._key = layer_idx, key[:n, :, :own]
        return self._key, value[:n, :, :own]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, style: AttentionStyle) -> Tensor:
        """Attention of one token per row [n, heads, 1, D] over its prompt and its own answer.

        Scores over a prompt are one product for all of its rows, and so is the sum of its values; between them one softmax
        runs over prompt and answer together, which spares combining two by their log-sum-exp. Keys stand on the left
        where their cache is larger than the slice in use: a batched product takes it there without copying it.
        """
        if key is not self._key:
            raise ModelError("a layer attends to another layer's keys, which the native engine does not support")
        assert self._step is not None
        n, heads, _, size = query.shape
        query = query * (size**-0.5 if style.scale is None else style.scale)
        query = query.reshape(n, key.shape[1], heads // key.shape[1], size)
        scores = (key @ query.transpose(-1, -2)).transpose(-1, -2)
        shared = self._step.columns[0]
        if shared:
            scores = torch.cat([self._prompt_scores(query), scores], -1)
        if style.softcap is not None:
            scores = torch.tanh(scores / style.softcap) * style.softcap
        weights = torch.softmax(scores.add_(self._bias(style.window, query.dtype)), -1)
        out = weights[..., shared:] @ value
        if shared:
            out = out.add_(self._prompt_values(weights[..., :shared]).view_as(out))
        return out.reshape(n, heads, 1, -1)

    def _prompt_scores(self, query: Tensor) -> Tensor:
        """[n, KV, G, D] -> [n, KV, G, T]."""
        assert self._step is not None
        (n, heads, groups, size), prompts, columns = query.shape, self._step.prompts, self._step.columns[0]
        _, gather, scatter = self._index(heads)
        together = query.reshape(n * heads, groups * size).index_select(0, gather).view(prompts, heads, -1, size)
        key = self.prompts.keys[self._layer][:prompts, :, :columns]
        scores = (key @ together.transpose(-1, -2)).transpose(-1, -2)
        return scores.reshape(-1, groups * columns).index_select(0, scatter).view(n, heads, groups, columns)

    def _prompt_values(self, weights: Tensor) -> Tensor:
        """[n, KV, G, T] -> [n * KV, G * D_v]."""
        assert self._step is not None
        (_, heads, groups, columns), prompts = weights.shape, self._step.prompts
        _, gather, scatter = self._index(heads)
        together = weights.flatten(0, 1).index_select(0, gather).view(prompts, heads, -1, columns)
        value = self.prompts.values[self._layer][:prompts, :, :columns]
        return (together @ value).view(-1, groups * value.shape[-1]).index_select(0, scatter)

    def _index(self, heads: int) -> tuple[Tensor, Tensor, Tensor]:
        """For so many key/value heads: the cell of each row's new token; where each place of a prompt finds its row; where
        each row finds its place. [n * KV], [P * KV * J], [n * KV]."""
        if heads not in self._indices:
            step = self._step
            assert step is not None
            head = torch.arange(heads, device=step.own.device)
            rows = torch.arange(len(step.own), device=step.own.device)
            cells = (rows[:, None] * heads + head) * self.answers.tokens + step.own[:, None]
            places = max(1, len(step.members) // max(1, step.prompts))
            gather = step.members.view(step.prompts, 1, places) * heads + head[:, None]
            prompt = torch.div(step.place, places, rounding_mode="floor")
            scatter = (prompt[:, None] * heads + head) * places + (step.place - prompt * places)[:, None]
            self._indices[heads] = cells.flatten(), gather.flatten(), scatter.flatten()
        return self._indices[heads]

    def _bias(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """Additive mask [n, 1, 1, T of the prompt + T of the answer]: 0 where the row's token may look, else -inf."""
        if window not in self._biases:
            step = self._step
            assert step is not None
            prompt, own = (torch.arange(columns, device=step.own.device) for columns in step.columns)
            hidden = torch.cat([prompt >= step.prompt[:, None], own > step.own[:, None]], -1)
            if window is not None:
                distance = torch.cat([(step.prompt + step.own)[:, None] - prompt, step.own[:, None] - own], -1)
                hidden |= distance >= window
            bias = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, float("-inf"))
            self._biases[window] = bias[:, None, None]
        return self._biases[window]


class _Store:
    """Keys and values per layer, each [rows, KV, tokens, D]; rows and tokens grow to their limits."""

    def __init__(self, rows: int, most_tokens: int, most_rows: int, *, whole: bool):
        self.rows, self.tokens = rows, 0
        self.most_rows, self.most_tokens, self.whole = most_rows, most_tokens, whole
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def like(self, prompt: PromptCache) -> None:
        """Take over the number of layers, heads and sizes, once."""
        if self.keys:
            return
        for mine, theirs in ((self.keys, prompt.keys), (self.values, prompt.values)):
            mine += [x.new_zeros(self.rows, x.shape[1], 0, x.shape[3]) for x in theirs]
        if self.whole:
            self._resize(self.most_rows, self.most_tokens)

    def reserve(self, rows: int, tokens: int) -> None:
        """Hold at least so much, growing by half at least, so that copying stays a small part."""
        more = [self.rows, self.tokens]
        if rows > self.rows:
            more[0] = min(self.most_rows, max(rows, self.rows * 3 // 2))
        if tokens > self.tokens:
            more[1] = min(self.most_tokens, round_up(max(tokens, self.tokens * 3 // 2)))
        if more != [self.rows, self.tokens]:
            self._resize(*more)

    def _resize(self, rows: int, tokens: int) -> None:
        self.rows, self.tokens = rows, tokens
        for side in (self.keys, self.values):
            for layer, old in enumerate(side):
                side[layer] = old.new_zeros(rows, old.shape[1], tokens, old.shape[3])
                side[layer][: old.shape[0], :, : old.shape[2]] = old

    def fill(self, rows: Tensor, prompt: PromptCache, start: int, length: int) -> None:
        for kept, new in ((self.keys, prompt.keys), (self.values, prompt.values)):
            for mine, theirs in zip(kept, new, strict=True):
                mine[rows, :, :length] = theirs[0, :, start : start + length]

    def move(self, sources: Tensor, targets: Tensor, length: int) -> None:
        """Copy the first ``length`` tokens of rows ``sources`` to rows ``targets``."""
        for cached in (*self.keys, *self.values):
            cached[targets, :, :length] = cached[sources, :, :length]


def round_up(tokens: int) -> int:
    return -(-tokens // STEP) * STEP
