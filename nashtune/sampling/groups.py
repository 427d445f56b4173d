"""Which rows answer which prompt: numbers 0..P-1 for the prompts at hand, and each row's place among its prompt's rows."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

import torch
from torch import Tensor

Prompt = TypeVar("Prompt", bound=Hashable)


class Groups(Generic[Prompt]):
    """``of`` [S] is each row's prompt number. ``place`` [n], ``members`` [P * J] and ``count`` P describe the active rows
    as last arranged; ``longest`` is the length of the longest prompt at hand."""

    def __init__(self, slots: int, device: torch.device):
        self.of = torch.zeros(slots, dtype=torch.long, device=device)
        self.place = self.members = torch.zeros(0, dtype=torch.long, device=device)
        self.count = self.longest = 0
        self._rows: dict[Prompt, int] = {}  # how many rows each has
        self._numbers: dict[Prompt, int] = {}
        self._prompts: dict[int, tuple[Prompt, int]] = {}  # by number, with its length

    def number(self, prompt: Prompt) -> int:
        return self._numbers[prompt]

    def join(self, prompt: Prompt, rows: Tensor, length: int) -> bool:
        """Add ``rows`` to the prompt's -> whether it was not at hand, and has the lowest free number now."""
        new = prompt not in self._numbers
        if new:
            number = next(i for i in range(len(self._prompts) + 1) if i not in self._prompts)
            self._numbers[prompt], self._prompts[number], self._rows[prompt] = number, (prompt, length), 0
        self._rows[prompt] += len(rows)
        self.of[rows] = self._numbers[prompt]
        return new

    def leave(self, prompt: Prompt) -> None:
        """Take one row from the prompt's; its last one frees its number."""
        self._rows[prompt] -= 1
        if not self._rows[prompt]:
            del self._rows[prompt], self._prompts[self._numbers.pop(prompt)]

    def close_up(self) -> Iterator[tuple[int, int, int]]:
        """Give the last prompts the lowest free numbers, yielding old number, new number and length of each."""
        while self._prompts and (last := max(self._prompts)) >= len(self._prompts):
            free = next(i for i in range(last) if i not in self._prompts)
            prompt, length = self._prompts[free] = self._prompts.pop(last)
            self._numbers[prompt] = free
            self.of[self.of == last] = free
            yield last, free, length

    def arrange(self, n: int) -> None:
        """Give each of rows 0..n-1 its place, when rows or prompts have changed."""
        self.count = len(self._prompts)
        self.longest = max((length for _, length in self._prompts.values()), default=0)
        if not self.count or not n:
            self.place, self.members = self.of.new_zeros(n), self.of.new_zeros(0)
            return
        of = self.of[:n]
        sizes = torch.bincount(of, minlength=self.count)
        most = int(sizes.max())
        order = of.argsort(stable=True)
        rank = torch.empty_like(of)
        rank[order] = torch.arange(n, device=of.device) - (sizes.cumsum(0) - sizes)[of[order]]
        self.place = of * most + rank
        self.members = of.new_zeros(self.count * most)
        self.members[self.place] = torch.arange(n, device=of.device)
