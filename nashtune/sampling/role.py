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
from nashtune.sampling.on_vllm.target import Target
from nashtune.scale.local import Facts, Unit
from nashtune.seeds import content_hash, seed_for
from nashtune.store import tables
from nashtune.store.files import create_once

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from nashtune.sampling.on_vllm.engine import Setup, VllmEngine


@dataclass(frozen=True, slots=True)
class Opened:
    """What a worker keeps loaded between units: the engine, and how prompts are rendered and answers end."""

    engine: Engine
    tokenizer: PreTrainedTokenizerBase | None = None
    ends: tuple[int, ...] = ()

    def rest(self) -> bool:
        """Have the engine give back its memory; whether it is one that is worth keeping even so."""
        rest = getattr(self.engine, "rest", None)
        return rest is not None and rest()

    def close(self) -> None:
        self.engine.close()


@dataclass(frozen=True, slots=True)
class Sampler:
    """Draws ``n`` answers per prompt from a policy.

    ``purpose`` keeps the random streams of training, validation and teacher samples apart; ``is_initial`` says that the
    policy is the run's initial one, so that the log-prob under the sampler is also the one under policy "0". ``far`` is
    mixed into the policy's logits with the share ``sampling.mixture``; the log-prob under the mixture goes by "mixture".
    ``served`` is what a vLLM engine loads to answer as ``policy``.
    """

    policy: Policy | None
    sampling: SamplingSection
    n: int
    seed: int
    purpose: str
    source: Source = "student"
    is_initial: bool = False
    far: Policy | None = None
    served: Target | None = None

    def key(self) -> str:
        """Samplers of one policy share its engine, whatever they sample for."""
        parts = ["sampler", self.fingerprint, self.sampling.dtype, self.sampling.slots, self.sampling.stop_tokens]
        if self.served is not None:
            parts += [self.sampling.vllm.model_dump(mode="json"), self.served.context, self.served.lora_rank]
        return content_hash(*parts)

    @property
    def tells_initial(self) -> bool:
        """Whether the sampler's log-probs stand for those under policy "0". vLLM's do not: they differ from this project's
        forward pass by rounding, and what an oracle reads must mean the same in every iteration."""
        return self.is_initial and self.sampling.engine != "vllm"

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
        if self.sampling.engine == "vllm":
            from nashtune.sampling.on_vllm.engine import VllmEngine

            assert self.served is not None
            return self._serving(VllmEngine(self._setup(self.served)), self.served)
        from nashtune.model.loading import pick_dtype
        from nashtune.sampling.native import open_native

        assert self.policy is not None
        far = None if self.far is None else (self.far, self.sampling.mixture)
        engine = open_native(self.policy, pick_dtype(self.sampling.dtype), self.sampling.slots, far=far)
        return self._with_tokenizer(engine)

    def reopen(self, resting: object) -> Opened | None:
        """Go on with a vLLM engine that another sampler left at rest, where it was set up alike."""
        if self.served is None or not isinstance(resting, Opened):
            return None
        from nashtune.sampling.on_vllm.engine import VllmEngine

        engine = resting.engine
        if not isinstance(engine, VllmEngine) or engine.setup != self._setup(self.served):
            return None
        return self._serving(engine, self.served)

    def _setup(self, target: Target) -> Setup:
        from nashtune.model.loading import pick_dtype
        from nashtune.sampling.on_vllm.engine import Setup

        return Setup.of(self.sampling.vllm, pick_dtype(self.sampling.dtype), target)

    def _serving(self, engine: VllmEngine, target: Target) -> Opened:
        opened = self._with_tokenizer(engine)
        assert opened.tokenizer is not None
        try:
            engine.serve(target, opened.tokenizer)
        except BaseException:
            engine.close()
            raise
        return opened

    def _with_tokenizer(self, engine: Engine) -> Opened:
        from nashtune.model.loading import end_token_ids, load_tokenizer, stop_token_ids

        assert self.policy is not None
        tokenizer = load_tokenizer(self.policy)
        ends = end_token_ids(self.policy, tokenizer) + stop_token_ids(tokenizer, self.sampling.stop_tokens)
        return Opened(engine, tokenizer, ends)

    def work(self, opened: Opened, unit: Unit) -> Facts:
        """Answer the unit's prompts and commit the responses."""
        started = time.perf_counter()
        prompts = tables.read_unit(Prompt, unit.source, unit.index)
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
            names = ["mixture"] if self.far else ["t", "0"] if self.tells_initial else ["t"]
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
