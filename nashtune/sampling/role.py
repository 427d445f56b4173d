"""The sampler as a work-unit role: a row group of prompts in, a committed object of responses out."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nashtune.recipe import SamplingSection
from nashtune.records import Policy, Prompt, Response, Source
from nashtune.sampling.defects import find_defects
from nashtune.sampling.engine import Engine, Request, SamplingParams
from nashtune.scale.local import Facts, Unit, Work
from nashtune.seeds import content_hash, seed_for
from nashtune.store import tables
from nashtune.store.files import create_once

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Sampler:
    """Draws ``n`` answers per prompt from a policy.

    ``purpose`` keeps the random streams of training, validation and teacher samples apart; ``is_initial`` says that the
    policy is the run's initial one, so that the log-prob under the sampler is also the one under policy "0".
    """

    policy: Policy | None
    sampling: SamplingSection
    n: int
    seed: int
    purpose: str
    source: Source = "student"
    is_initial: bool = False

    def key(self) -> str:
        """Workers keep their loaded policy as long as they do the same sampling."""
        return content_hash("sampler", self.identity(), self.sampling.slots)

    @property
    def fingerprint(self) -> str:
        return self.policy.fingerprint if self.policy else "scripted"

    def identity(self) -> list[object]:
        """What decides the samples, besides the prompts."""
        return [self.fingerprint, self.sampling.model_dump(mode="json"), self.n, self.seed, self.purpose, self.source]

    def open(self) -> Work:
        if self.sampling.engine == "scripted":
            from nashtune.sampling.scripted import ScriptedEngine

            return _Worker(self, ScriptedEngine(), None)
        from nashtune.model.loading import end_token_ids, load_tokenizer, pick_dtype, stop_token_ids
        from nashtune.sampling.native import open_native

        assert self.policy is not None
        engine = open_native(self.policy, pick_dtype(self.sampling.dtype), self.sampling.slots)
        tokenizer = load_tokenizer(self.policy)
        ends = end_token_ids(self.policy, tokenizer) + stop_token_ids(tokenizer, self.sampling.stop_tokens)
        return _Worker(self, engine, tokenizer, ends)


class _Worker:
    def __init__(
        self, role: Sampler, engine: Engine, tokenizer: PreTrainedTokenizerBase | None, ends: tuple[int, ...] = ()
    ):
        self.role, self.engine, self.tokenizer = role, engine, tokenizer
        section = role.sampling
        self.params = SamplingParams(section.temperature, section.top_p, section.top_k, section.max_new_tokens, ends)

    def __call__(self, unit: Unit) -> Facts:
        started = time.perf_counter()
        prompts = tables.read(Prompt, unit.source, unit.index)
        responses = self.answer(prompts)
        create_once(unit.target, tables.encode(Response, responses))
        defects = Counter(name for r in responses for name in r.defects)
        return {
            "tokens": sum(len(r.token_ids) for r in responses),
            "prompts": len(prompts),
            "responses": len(responses),
            "worker_seconds": time.perf_counter() - started,
            **{f"defect {name}": count for name, count in sorted(defects.items())},
        }

    def answer(self, prompts: Sequence[Prompt]) -> list[Response]:
        """K responses per prompt, ordered as the prompts and by k."""
        requests = [self.request(prompt) for prompt in prompts]
        by_place: dict[tuple[str, int], Response] = {}
        for done in self.engine.generate(requests, self.params):
            logprobs = {} if done.logprob is None else {"t": done.logprob}
            if logprobs and self.role.is_initial:
                logprobs["0"] = logprobs["t"]
            by_place[done.prompt_id, done.k] = Response(
                id=content_hash("response", self.role.identity(), done.prompt_id, done.k),
                prompt_id=done.prompt_id,
                k=done.k,
                source=self.role.source,
                policy=self.role.fingerprint,
                text=done.text,
                token_ids=done.token_ids,
                finish=done.finish,
                defects=find_defects(done.text, done.finish, self.role.sampling.defects),
                logprobs=logprobs,
            )
        return [by_place[prompt.id, k] for prompt in prompts for k in range(self.role.n)]

    def request(self, prompt: Prompt) -> Request:
        ids: Sequence[int] = ()
        if self.tokenizer is not None:
            from nashtune.model.loading import render

            ids = render(self.tokenizer, prompt.messages)
        role = self.role
        seeds = tuple(seed_for(role.seed, role.purpose, prompt.id, k) for k in range(role.n))
        return Request(prompt.id, prompt.messages, tuple(ids), seeds)
