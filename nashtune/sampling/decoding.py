"""One call of the native engine: its queue of prompts, its active rows, and the prompts that they share."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nashtune.errors import SamplingError
from nashtune.sampling.engine import Completion, Request, SamplingParams
from nashtune.sampling.groups import Groups
from nashtune.sampling.nucleus import TokenSampler
from nashtune.sampling.slots import PromptCache, SlotCache, Step, round_up

if TYPE_CHECKING:
    from nashtune.sampling.native import NativeEngine


@dataclass(eq=False, slots=True)
class _Prompt:
    """A computed prompt: where its keys and values lie in its packed prefill, for each model, until its ``waiting`` samples
    all have a row."""

    request: Request
    caches: Sequence[PromptCache]
    start: int
    waiting: int = 0

    @property
    def length(self) -> int:
        return len(self.request.token_ids)


@dataclass(frozen=True, slots=True)
class _Sample:
    """Answer ``k`` to a prompt, with its first token already drawn."""

    prompt: _Prompt
    k: int
    token: int
    logprob: float


class Decoding:
    """The state of the active rows, kept compact in rows 0..n-1 of the tensors below.

    Answers to one prompt share its keys and values, except where every prompt has one answer only.
    """

    def __init__(self, engine: NativeEngine, requests: Sequence[Request], params: SamplingParams):
        self.engine, self.params = engine, params
        self.device = engine.model.device
        self.queue = deque(sorted((r for r in requests if r.seeds), key=lambda r: -len(r.token_ids)))
        self.ready: deque[_Sample] = deque()
        self.stop = torch.tensor(sorted({*engine.stop_token_ids, *params.stop_token_ids}), dtype=torch.long)
        self.stop = self.stop.to(self.device)
        self.stop_set = set(self.stop.tolist())
        self.sampler = TokenSampler(params)
        self.shared = any(len(r.seeds) > 1 for r in self.queue)
        self.n = 0
        self.owners: list[_Sample | None] = [None] * engine.slots
        self.groups: Groups[_Prompt] = Groups(engine.slots, self.device)
        whole = {"dtype": torch.long, "device": self.device}
        # ``begin``: tokens of the row's cache that are its own copy of the prompt; ``prompt``: those that it shares.
        self.begin, self.prompt, self.seeds = (torch.zeros(engine.slots, **whole) for _ in range(3))
        self.steps = torch.ones(engine.slots, **whole)
        self.answers = torch.zeros(engine.slots, params.max_new_tokens, **whole)
        self.logprob = torch.zeros(engine.slots, dtype=torch.float64, device=self.device)
        self.longest = 0  # most tokens of a row's cache after the next step, known here so that no step asks the device
        self.caches = self._caches()
        self.decoders = engine.decoders(self.caches)

    def _caches(self) -> list[SlotCache]:
        longest = max((len(r.token_ids) for r in self.queue), default=0)
        own, shared = (0, longest) if self.shared else (longest, 0)
        slots, most = self.engine.slots, self.params.max_new_tokens
        prompts = min(slots, len(self.queue))
        return [
            SlotCache(slots, own + most, shared, prompts=prompts, whole=self.engine.static) for _ in self.engine.models
        ]

    def completions(self) -> Iterator[Completion]:
        ended: list[int] = []
        while True:
            yield from self._refill(ended)
            if not self.n:
                return
            ended = self._step()
            for row in ended:
                length = int(self.steps[row])
                sample, logprob = self.owners[row], float(self.logprob[row])
                assert sample is not None
                yield self._completion(sample.prompt.request, sample.k, self.answers[row, :length].tolist(), logprob)

    def _refill(self, holes: list[int]) -> Iterator[Completion]:
        """Put waiting samples into the rows that ended and those never used; close up the holes that remain."""
        newcomers: dict[int, _Sample] = {}
        changed = bool(holes)
        self._leave(holes)
        while holes or self.n < self.engine.slots:
            while self.queue and not self.ready:
                yield from self._prefill()
            if not self.ready:
                break
            row = holes.pop(0) if holes else self.n  # lowest first, so that no newcomer is moved by closing up
            self.n = max(self.n, row + 1)
            newcomers[row] = self.ready.popleft()
        if newcomers:
            self._admit(newcomers)
        if newcomers or changed:
            self._close_up(holes)
            self.groups.arrange(self.n)
            self.longest = int((self.begin + self.steps)[: self.n].max()) if self.n else 0

    def _leave(self, rows: list[int]) -> None:
        for row in rows:
            sample = self.owners[row]
            assert sample is not None
            if self.shared:
                self.groups.leave(sample.prompt)

    def _prefill(self) -> Iterator[Completion]:
        """Compute the next prompts and draw the first token of each of their samples; some samples may end there."""
        requests, tokens, samples = [], 0, 0
        while self.queue and samples < self.engine.slots:
            tokens += len(self.queue[0].token_ids)
            if requests and tokens > self.engine.prefill_tokens:
                break
            requests.append(self.queue.popleft())
            samples += len(requests[-1].seeds)
        layout, caches, logits = self.engine.prefill([r.token_ids for r in requests])
        self.engine.prefilled_tokens += sum(block.length for block in layout.blocks)
        counts = torch.tensor([len(r.seeds) for r in requests], device=self.device)
        seeds = torch.tensor([seed for r in requests for seed in r.seeds], device=self.device)
        draw = self.sampler.draw(logits.repeat_interleave(counts, 0), seeds, torch.zeros_like(seeds))
        drawn = zip(draw.tokens.tolist(), draw.logprobs.tolist(), strict=True)
        self._report(samples)
        start = 0
        for request, block in zip(requests, layout.blocks, strict=True):
            prompt = _Prompt(request, caches, start)
            start += block.length
            for k in range(len(request.seeds)):
                token, logprob = next(drawn)
                if token in self.stop_set or self.params.max_new_tokens == 1 or not math.isfinite(logprob):
                    yield self._completion(request, k, [token], logprob)
                else:
                    prompt.waiting += 1
                    self.ready.append(_Sample(prompt, k, token, logprob))

    def _admit(self, newcomers: dict[int, _Sample]) -> None:
        for prompt, group in groupby(newcomers.items(), key=lambda item: item[1].prompt):
            self._seat(prompt, self._rows([row for row, _ in group]))
        rows, samples = self._rows(list(newcomers)), list(newcomers.values())
        for row, sample in newcomers.items():
            self.owners[row] = sample
        self.steps[rows] = 1
        lengths = self.prompt if self.shared else self.begin
        lengths[rows] = self._rows([s.prompt.length for s in samples])
        self.seeds[rows] = self._rows([s.prompt.request.seeds[s.k] for s in samples])
        self.answers[rows, 0] = self._rows([s.token for s in samples])
        self.logprob[rows] = torch.tensor([s.logprob for s in samples], dtype=torch.float64, device=self.device)

    def _seat(self, prompt: _Prompt, rows: Tensor) -> None:
        """Let ``rows`` continue the prompt: with the copy that other rows share already, or with a new one."""
        new = self.shared and self.groups.join(prompt, rows, prompt.length)
        for cache, computed in zip(self.caches, prompt.caches, strict=True):
            if new:
                cache.admit_prompt(self.groups.number(prompt), computed, prompt.start, prompt.length)
            elif not self.shared:
                cache.admit(rows, computed, prompt.start, prompt.length)
        prompt.waiting -= len(rows)
        if not prompt.waiting:
            prompt.caches = ()  # so that a packed prefill lives no longer than it is needed

    def _close_up(self, holes: list[int]) -> None:
        """Move the last active rows, and the last prompts, into the holes."""
        kept = self.n - len(holes)
        targets = [row for row in holes if row < kept]
        sources = [row for row in range(kept, self.n) if row not in holes]
        self.n = kept
        if sources:
            for source, target in zip(sources, targets, strict=True):
                self.owners[target] = self.owners[source]
            here, there = self._rows(sources), self._rows(targets)
            for cache in self.caches:
                cache.answers.move(here, there, self.longest)
            for state in (self.begin, self.prompt, self.steps, self.seeds, self.answers, self.logprob, self.groups.of):
                state[there] = state[here]
        for source, target, length in self.groups.close_up():
            for cache in self.caches:
                cache.prompts.move(self._rows([source]), self._rows([target]), length)

    def _step(self) -> list[int]:
        """Sample one token for each active row -> the rows that ended."""
        n, groups = self.n, self.groups
        steps, logprob = self.steps[:n], self.logprob[:n]
        last = self.answers[:n].gather(1, steps[:, None] - 1)[:, 0]
        columns = (round_up(groups.longest), round_up(self.longest))
        own = self.begin[:n] + steps - 1
        step = Step(last, own, self.prompt[:n], groups.place, groups.members, groups.count, columns)
        logits = self.engine.decode(self.decoders, step)
        draw = self.sampler.draw(logits, self.seeds[:n], steps)
        self.answers[:n].scatter_(1, steps[:, None], draw.tokens[:, None])
        logprob += draw.logprobs
        steps += 1
        self.longest += 1
        self._report(n)
        ended = torch.isin(draw.tokens, self.stop) | (steps == self.params.max_new_tokens) | ~logprob.isfinite()
        return ended.nonzero()[:, 0].tolist()

    def _completion(self, request: Request, k: int, ids: list[int], logprob: float) -> Completion:
        if not math.isfinite(logprob):
            raise SamplingError(
                f"prompt {request.prompt_id}, answer {k}: the model's logits for token {len(ids)} of the answer are not "
                "finite; the weights are damaged, or their values too large for this dtype"
            )
        stopped = ids[-1] in self.stop_set
        text = self.engine.tokenizer.decode(ids[:-1] if stopped else ids, skip_special_tokens=True)
        assert isinstance(text, str)
        return Completion(request.prompt_id, k, text, tuple(ids), "stop" if stopped else "length", logprob)

    def _rows(self, numbers: list[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.long, device=self.device)

    def _report(self, tokens: int) -> None:
        if self.engine.on_tokens is not None:
            self.engine.on_tokens(tokens)
