"""The native engine: transformers' own model code, each prompt computed once for its K answers, slots refilled."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nashtune.errors import SamplingError
from nashtune.model.attention import Block, PackedLayout
from nashtune.model.loading import Policy, end_token_ids, load_model, load_tokenizer
from nashtune.sampling.engine import Completion, Request, SamplingParams
from nashtune.sampling.forward import check_forward, decode, prefill
from nashtune.sampling.nucleus import TokenSampler
from nashtune.sampling.slots import PromptCache, SlotCache
from nashtune.sampling.support import check_params, context_limit, refuse_unsupported


def open_native(
    policy: Policy,
    dtype: torch.dtype,
    slots: int = 40,
    device: torch.device | None = None,
    far: tuple[Policy, float] | None = None,
) -> NativeEngine:
    """Load ``policy`` for sampling, with the share of a ``far`` policy that is mixed in, if any. Raises ModelError where the
    engine and a model's plain forward pass disagree."""
    tokenizer = load_tokenizer(policy)
    model = load_model(policy, dtype, device)
    mixed = None if far is None else Mixture(load_model(far[0], dtype, device), far[1])
    engine = NativeEngine(model, tokenizer, end_token_ids(policy, tokenizer), slots=slots, mixture=mixed)
    engine.check_against_plain_forward()
    return engine


@dataclass(frozen=True, slots=True)
class Mixture:
    """A second model and its share m: tokens are drawn from the logits (1 - m) * first + m * second, the geometric mixture
    of both policies token by token (option II of algorithms 3 and 4 of arXiv 2404.03715)."""

    model: Any
    share: float

    def logits(self, first: Tensor, second: Tensor) -> Tensor:
        """Both [N, V] -> [N, V]. In fp32: halves of bf16 logits are no bf16 numbers."""
        return (1 - self.share) * first.float() + self.share * second.float()


def _check_mixture(first: Any, mixture: Mixture) -> None:
    refuse_unsupported(mixture.model)
    mixture.model.eval()
    if not 0 <= mixture.share <= 1:
        raise SamplingError(f"mixture: {mixture.share}; accepted: from 0 to 1")
    sizes = [model.get_input_embeddings().num_embeddings for model in (first, mixture.model)]
    if sizes[0] != sizes[1]:
        raise SamplingError(
            f"mixture: vocabularies of {sizes[0]} and {sizes[1]} tokens; accepted: one vocabulary for both"
        )


class NativeEngine:
    """Samples from a model loaded with ``attention="nashtune"``; implements ``sample.engine.Engine``.

    ``slots``: sequences decoded together. ``prefill_tokens``: prompt tokens computed in one forward pass (a longer
    prompt goes alone). ``on_tokens``: called after every step with the number of tokens sampled in it. ``mixture``: a
    second model of the same vocabulary, computed beside the first at each step with its own keys and values; log-probs are
    the mixture's. ``prefilled_tokens``: prompt tokens computed so far for requests.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        stop_token_ids: Sequence[int],
        *,
        slots: int = 40,
        prefill_tokens: int = 512,
        on_tokens: Callable[[int], None] | None = None,
        mixture: Mixture | None = None,
    ):
        if slots < 1:
            raise SamplingError(f"slots: {slots}; accepted: 1 or more")
        refuse_unsupported(model)
        if mixture is not None:
            _check_mixture(model, mixture)
        self.model: Any = model.eval()
        self.mixture = mixture
        self.tokenizer = tokenizer
        self.stop_token_ids = tuple(stop_token_ids)
        self.slots = slots
        self.prefill_tokens = prefill_tokens
        self.on_tokens = on_tokens
        self.prefilled_tokens = 0

    @torch.inference_mode()
    def generate(self, requests: Sequence[Request], params: SamplingParams) -> Iterator[Completion]:
        """Yield every completion of every request, longest prompts first.

        Raises SamplingError on a bad request or setting, before anything is sampled, and on logits that are not finite.
        """
        check_params(params)
        self._check_requests(requests, params)
        yield from _Run(self, requests, params).completions()

    def close(self) -> None:
        """Let go of the models' memory."""
        self.model = self.mixture = None

    @property
    def models(self) -> list[Any]:
        """The model, and the one mixed in, if any."""
        return [self.model] if self.mixture is None else [self.model, self.mixture.model]

    @torch.inference_mode()
    def check_against_plain_forward(self) -> None:
        """Check each model's prefill and decode against its own forward pass; raises ModelError."""
        for model in self.models:
            check_forward(model)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> tuple[PackedLayout, list[PromptCache], Tensor]:
        """Compute prompts in one packed pass of each model -> layout, each model's keys and values, logits of each prompt's
        last token [P, V]."""
        layout = PackedLayout([Block(len(p)) for p in prompts], self.model.device)
        caches, logits = zip(*(prefill(model, prompts, layout) for model in self.models), strict=True)
        return layout, list(caches), self._mixed(logits)

    def decode(self, caches: Sequence[SlotCache], tokens: Tensor, positions: Tensor, longest: int) -> Tensor:
        """One step for rows 0..n-1: tokens [n] at ``positions`` [n], the greatest ``longest`` -> logits [n, V]."""
        each = zip(self.models, caches, strict=True)
        return self._mixed([decode(model, cache, tokens, positions, longest) for model, cache in each])

    def _mixed(self, logits: Sequence[Tensor]) -> Tensor:
        return logits[0] if self.mixture is None else self.mixture.logits(logits[0], logits[1])

    def _check_requests(self, requests: Sequence[Request], params: SamplingParams) -> None:
        limit = context_limit(self.model.config.get_text_config())
        vocabulary = self.model.get_input_embeddings().num_embeddings
        for request in requests:
            who, length = f"prompt {request.prompt_id}", len(request.token_ids)
            if not length:
                raise SamplingError(f"{who}: no token ids; the native engine needs the rendered prompt")
            if limit is not None and length + params.max_new_tokens > limit:
                raise SamplingError(
                    f"{who}: {length} prompt tokens + max_new_tokens {params.max_new_tokens} exceed the model's context "
                    f"of {limit}"
                )
            if not 0 <= min(request.token_ids) <= max(request.token_ids) < vocabulary:
                raise SamplingError(f"{who}: token ids outside the model's vocabulary [0, {vocabulary})")
            if not all(0 <= seed < 1 << 63 for seed in request.seeds):
                raise SamplingError(f"{who}: seeds {request.seeds}; accepted: integers in [0, 2**63)")


@dataclass(frozen=True, slots=True)
class _Prompt:
    """A computed prompt: where its keys and values lie in its packed prefill, for each model."""

    request: Request
    caches: list[PromptCache]
    start: int

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


class _Run:
    """One call of generate: the state of its active rows, kept compact in rows 0..n-1 of the tensors below."""

    def __init__(self, engine: NativeEngine, requests: Sequence[Request], params: SamplingParams):
        self.engine, self.params = engine, params
        self.device = engine.model.device
        self.queue = deque(sorted((r for r in requests if r.seeds), key=lambda r: -len(r.token_ids)))
        self.ready: deque[_Sample] = deque()
        self.stop = torch.tensor(sorted({*engine.stop_token_ids, *params.stop_token_ids}), dtype=torch.long)
        self.stop = self.stop.to(self.device)
        self.stop_set = set(self.stop.tolist())
        self.sampler = TokenSampler(params)
        longest = max((len(r.token_ids) for r in self.queue), default=0)
        self.caches = [SlotCache(engine.slots, longest + params.max_new_tokens) for _ in engine.models]
        self.n = 0
        self.owners: list[_Sample | None] = [None] * engine.slots
        whole = {"dtype": torch.long, "device": self.device}
        self.prompt_length, self.steps, self.seeds = (torch.zeros(engine.slots, **whole) for _ in range(3))
        self.answers = torch.zeros(engine.slots, params.max_new_tokens, **whole)
        self.logprob = torch.zeros(engine.slots, dtype=torch.float64, device=self.device)
        self.longest = 0  # greatest position of the next step, known here so that no step asks the device

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
        self._close_up(holes)
        if self.n:
            self.longest = int((self.prompt_length + self.steps - 1)[: self.n].max())

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
                    self.ready.append(_Sample(prompt, k, token, logprob))

    def _admit(self, newcomers: dict[int, _Sample]) -> None:
        for prompt, group in groupby(newcomers.items(), key=lambda item: item[1].prompt):
            into = self._rows([row for row, _ in group])
            for cache, computed in zip(self.caches, prompt.caches, strict=True):
                cache.admit(into, computed, prompt.start, prompt.length)
        rows, samples = self._rows(list(newcomers)), list(newcomers.values())
        for row, sample in newcomers.items():
            self.owners[row] = sample
        self.steps[rows] = 1
        self.prompt_length[rows] = self._rows([s.prompt.length for s in samples])
        self.seeds[rows] = self._rows([s.prompt.request.seeds[s.k] for s in samples])
        self.answers[rows, 0] = self._rows([s.token for s in samples])
        self.logprob[rows] = torch.tensor([s.logprob for s in samples], dtype=torch.float64, device=self.device)

    def _close_up(self, holes: list[int]) -> None:
        """Move the last active rows into the holes."""
        kept = self.n - len(holes)
        targets = [row for row in holes if row < kept]
        sources = [row for row in range(kept, self.n) if row not in holes]
        self.n = kept
        if not sources:
            return
        for source, target in zip(sources, targets, strict=True):
            self.owners[target] = self.owners[source]
        here, there = self._rows(sources), self._rows(targets)
        for cache in self.caches:
            cache.move(here, there, self.longest)
        for state in (self.prompt_length, self.steps, self.seeds, self.answers, self.logprob):
            state[there] = state[here]

    def _step(self) -> list[int]:
        """Sample one token for each active row -> the rows that ended."""
        n = self.n
        steps, logprob = self.steps[:n], self.logprob[:n]
        last = self.answers[:n].gather(1, steps[:, None] - 1)[:, 0]
        logits = self.engine.decode(self.caches, last, self.prompt_length[:n] + steps - 1, self.longest)
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
