"""The sampler as a work-unit role: a row group of prompts in, a committed object of responses out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nashtune.recipe import SamplingSection, identity
from nashtune.records import Policy, Prompt, Response, Source
from nashtune.sampling.defects import find_defects
from nashtune.sampling.engine import Engine, Request, SamplingParams
from nashtune.scale.local import Facts, Unit
from nashtune.seeds import content_hash, seed_for
from nashtune.store import tables
from nashtune.store.files import create_once

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Opened:
    """What a worker keeps loaded between units: the engine, and how prompts are rendered and answers end."""

    engine: Engine
    tokenizer: PreTrainedTokenizerBase | None = None
    ends: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Sampler:
    """Draws ``n`` answers per prompt from a policy.

    ``purpose`` keeps the random streams of training, validation and teacher samples apart; ``is_initial`` says that the
    policy is the run's initial one, so that the log-prob under the sampler is also the one under policy "0". ``far`` is
    mixed into the policy's logits with the share ``sampling.mixture``; the log-prob under the mixture goes by "mixture".
    """

    policy: Policy | None
    sampling: SamplingSection
    n: int
    seed: int
    purpose: str
    source: Source = "student"
    is_initial: bool = False
    far: Policy | None = None

    def key(self) -> str:
        """Samplers of one policy share its engine, whatever they sample for."""
        return content_hash(
            "sampler", self.fingerprint, self.sampling.dtype, self.sampling.slots, self.sampling.stop_tokens
        )

    @property
    def fingerprint(self) -> str:
        if self.policy is None:
            return "scripted"
        own = self.policy.fingerprint
        return own if self.far is None else f"{own} with {self.sampling.mixture:g} of {self.far.fingerprint}"

    def identity(self) -> list[object]:
        """What decides the samples, besides the prompts."""
        return [self.fingerprint, identity(self.sampling), self.n, self.seed, self.purpose, self.source]

    def open(self) -> Opened:
        if self.sampling.engine == "scripted":
            from nashtune.sampling.scripted import ScriptedEngine

            return Opened(ScriptedEngine())
        from nashtune.model.loading import end_token_ids, load_tokenizer, pick_dtype, stop_token_ids
        from nashtune.sampling.native import open_native

        assert self.policy is not None
        far = None if self.far is None else (self.far, self.sampling.mixture)
        engine = open_native(self.policy, pick_dtype(self.sampling.dtype), self.sampling.slots, far=far)
        tokenizer = load_tokenizer(self.policy)
        ends = end_token_ids(self.policy, tokenizer) + stop_token_ids(tokenizer, self.sampling.stop_tokens)
        return Opened(engine, tokenizer, ends)

    def work(self, opened: Opened, unit: Unit) -> Facts:
        """Answer the unit's prompts and commit the responses."""
        started = time.perf_counter()
        prompts = tables.read(Prompt, unit.source, unit.index)
        responses = self.answer(opened, prompts)
        create_once(unit.target, tables.encode(Response, responses))
        tokens = sum(len(r.token_ids) for r in responses)
        return {"tokens": tokens, "prompts": len(prompts), "seconds": time.perf_counter() - started}

    def answer(self, opened: Opened, prompts: Sequence[Prompt]) -> list[Response]:
        """K responses per prompt, ordered as the prompts and by k."""
        section = self.sampling
        requests = [self.request(opened, prompt) for prompt in prompts]
        params = SamplingParams(section.temperature, section.top_p, section.top_k, section.max_new_tokens, opened.ends)
        by_place: dict[tuple[str, int], Response] = {}
        for done in opened.engine.generate(requests, params):
            names = ["mixture"] if self.far else ["t", "0"] if self.is_initial else ["t"]
            logprobs = {} if done.logprob is None else dict.fromkeys(names, done.logprob)
            by_place[done.prompt_id, done.k] = Response(
                id=content_hash("response", self.identity(), done.prompt_id, done.k),
                prompt_id=done.prompt_id,
                k=done.k,
                source=self.source,
                policy=self.fingerprint,
                text=done.text,
                token_ids=done.token_ids,
                finish=done.finish,
                defects=find_defects(done.text, done.finish, self.sampling.defects),
                logprobs=logprobs,
            )
        return [by_place[prompt.id, k] for prompt in prompts for k in range(self.n)]

    def request(self, opened: Opened, prompt: Prompt) -> Request:
        ids: Sequence[int] = ()
        if opened.tokenizer is not None:
            from nashtune.model.loading import render

            ids = render(opened.tokenizer, prompt.messages)
        seeds = tuple(seed_for(self.seed, self.purpose, prompt.id, k) for k in range(self.n))
        return Request(prompt.id, prompt.messages, tuple(ids), seeds)
