"""Decode steps of few distinct shapes, so that each shape's step can be captured once as a CUDA graph and replayed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from nashtune.sampling.forward import decode
from nashtune.sampling.slots import STEP, SlotCache, Step


class Decoder:
    """Computes the decode steps of one model with one cache."""

    def __init__(self, model: Any, cache: SlotCache):
        self.model, self.cache = model, cache

    def decode(self, step: Step) -> Tensor:
        """-> logits [n, V]."""
        return decode(self.model, self.cache, step)


class StaticDecoder(Decoder):
    """The same in a fixed number of rows, the other sizes rounded up to powers of two; needs a cache allocated ``whole``.

    On a CUDA device a shape's first step is captured as a graph, whose inputs are copied in place from then on.
    """

    def __init__(self, model: Any, cache: SlotCache):
        super().__init__(model, cache)
        self.shapes: set[tuple[int, ...]] = set()
        self._graphs: dict[tuple[int, ...], tuple[Any, Step, Tensor]] = {}
        self._pool: Any = None

    def decode(self, step: Step) -> Tensor:
        n, step = len(step.tokens), self._padded(step)
        self.shapes.add(step.shape)
        if step.tokens.device.type != "cuda":
            return super().decode(step)[:n]
        if step.shape not in self._graphs:
            self._graphs[step.shape] = self._capture(step)
        graph, inputs, logits = self._graphs[step.shape]
        for kept, new in zip(inputs.tensors, step.tensors, strict=True):
            kept.copy_(new)
        graph.replay()
        return logits[:n]

    def _padded(self, step: Step) -> Step:
        """Idle rows stand at the start of an empty answer; idle places belong to row 0, which does not look at them."""
        answers, prompts = self.cache.answers, self.cache.prompts
        short = answers.rows - len(step.tokens)
        tokens, own, prompt = (torch.nn.functional.pad(x, (0, short)) for x in (step.tokens, step.own, step.prompt))
        place, members, count = step.place, step.members, step.prompts
        if count:
            places, count = len(members) // count, min(prompts.most_rows, _power(count))
            wide = _power(places)
            members = members.view(-1, places)
            members = torch.nn.functional.pad(members, (0, wide - places, 0, count - len(members))).flatten()
            place = torch.div(place, places, rounding_mode="floor") * wide + place % places
        columns = tuple(
            min(store.most_tokens, STEP * _power(-(-c // STEP))) if c else 0
            for store, c in zip((prompts, answers), step.columns, strict=True)
        )
        place = torch.nn.functional.pad(place, (0, short))
        return Step(tokens, own, prompt, place, members, count, (columns[0], columns[1]))

    def _capture(self, step: Step) -> tuple[Any, Step, Tensor]:
        """Record the step's kernels. It runs a few times over the same tokens first, which stores the same keys again."""
        names = ("tokens", "own", "prompt", "place", "members")
        inputs = replace(step, **dict(zip(names, (x.clone() for x in step.tensors), strict=True)))
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                decode(self.model, self.cache, inputs)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            logits = decode(self.model, self.cache, inputs)
        self._pool = self._pool or graph.pool()
        return graph, inputs, logits


def _power(count: int) -> int:
    """The lowest power of two that is not below ``count``."""
    return 1 << (count - 1).bit_length()
