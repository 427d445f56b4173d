"""The frozen records that stages exchange. Nothing downstream of a record needs to know which engine or oracle made it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from nashtune.seeds import content_hash

Role = Literal["system", "user", "assistant"]
Finish = Literal["stop", "length", "unknown"]
Source = Literal["student", "teacher"]
PairKind = Literal["T>S", "S>T", "S>S", "T>T"]
Outcome = Literal["ok", "unusable"]


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy on disk: an ordinary transformers folder, the fingerprint of its contents, and the name it goes by."""

    folder: Path
    fingerprint: str
    name: str
    trust_remote_code: bool = False


@dataclass(frozen=True, slots=True)
class Message:
    """One chat turn."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Constraint:
    """A verifiable instruction: a kind known to the ``rules`` oracle and its arguments (JSON values)."""

    kind: str
    args: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a policy is asked. ``id`` is a hash of the messages; the last message is the user's.

    ``topic`` is the word or phrase an answer must stay on (used by the rules oracle's relevance guard);
    ``source`` names file and line for error messages.
    """

    id: str
    messages: tuple[Message, ...]
    teacher: str | None = None
    constraints: tuple[Constraint, ...] = ()
    topic: str | None = None
    source: str = ""

    @staticmethod
    def make(messages: Sequence[Message], **rest: Any) -> Prompt:
        """Build a prompt with its content-derived id."""
        return Prompt(content_hash([[m.role, m.content] for m in messages]), tuple(messages), **rest)

    @property
    def text(self) -> str:
        """The last user turn, for display and judges."""
        return self.messages[-1].content


@dataclass(frozen=True, slots=True)
class Response:
    """One answer to one prompt, by the student (a policy of this run) or the teacher.

    ``token_ids`` are the tokens exactly as sampled, the end token included where it was sampled; they are never made
    again from ``text``. ``logprobs`` maps a policy's name ("t" the sampler, "0" the initial policy, "mixture" a sampler mixed
    of both) to log p(tokens | prompt) in nats, summed over the response's tokens.
    """

    id: str
    prompt_id: str
    k: int
    source: Source
    policy: str
    text: str
    token_ids: tuple[int, ...] = ()
    finish: Finish = "unknown"
    defects: tuple[str, ...] = ()
    logprobs: Mapping[str, float] = field(default_factory=dict)

    def replace(self, **changes: Any) -> Response:
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True, slots=True)
class LogProb:
    """log p(response | prompt) in nats under a named policy, computed after sampling."""

    response_id: str
    policy: str
    logprob: float


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens billed for one judgment (all its calls) and their price, None where unknown."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float | None = None
    calls: int = 0


@dataclass(frozen=True, slots=True)
class Judgment:
    """An oracle's word on one prompt's whole candidate set (K candidates).

    ``scores`` [K] and/or ``matrix`` [K][K] of P(i beats j), None where unknown; the diagonal is ignored.
    ``measures`` holds named per-candidate figures [K] for reports (rules: "satisfied", "good").
    ``order`` is the order in which candidates were shown. An unusable reply is an outcome of its own, with its reason,
    its raw text and its cost: never a tie, a loss or a zero.
    """

    prompt_id: str
    response_ids: tuple[str, ...]
    oracle: str
    outcome: Outcome = "ok"
    reason: str = ""
    scores: tuple[float | None, ...] | None = None
    matrix: tuple[tuple[float | None, ...], ...] | None = None
    measures: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict)
    order: tuple[int, ...] = ()
    raw: str = ""
    model_requested: str = ""
    model_returned: str = ""
    usage: Usage = field(default_factory=Usage)

    def preference(self, i: int, j: int) -> float | None:
        """P(candidate i beats candidate j): the matrix where given, else the sign of the score difference (tie 0.5)."""
        if self.outcome != "ok":
            return None
        if self.matrix is not None:
            return self.matrix[i][j]
        if self.scores is None:
            return None
        a, b = self.scores[i], self.scores[j]
        if a is None or b is None:
            return None
        return 0.5 if a == b else float(a > b)

    def win_rates(self, among: Sequence[int] | None = None) -> tuple[float | None, ...]:
        """r_t per candidate (Algorithm 2, line 5): its mean preference over the other candidates with a known verdict, or
        over those of them whose places are ``among``."""
        n = len(self.response_ids)
        rates: list[float | None] = []
        for i in range(n):
            others = (j for j in (range(n) if among is None else among) if j != i)
            known = [p for j in others if (p := self.preference(i, j)) is not None]
            rates.append(sum(known) / len(known) if known else None)
        return tuple(rates)


@dataclass(frozen=True, slots=True)
class Pair:
    """A clear win: ``chosen`` over ``rejected`` for one prompt. r are win rates in the candidate set, scores the judge's,
    p estimates of P(y beats pi_t): mean preferences over the student's other answers, None where there are none."""

    id: str
    prompt_id: str
    chosen_id: str
    rejected_id: str
    kind: PairKind
    r_chosen: float
    r_rejected: float
    score_chosen: float | None
    score_rejected: float | None
    iteration: int
    p_chosen: float | None = None
    p_rejected: float | None = None

    @property
    def margin(self) -> float:
        """Difference of scores where the oracle scores, else of win rates."""
        if self.score_chosen is not None and self.score_rejected is not None:
            return self.score_chosen - self.score_rejected
        return self.r_chosen - self.r_rejected


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with a confidence interval; ``n`` counts clusters (prompts)."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class Payoffs:
    """The game between a run's policies on the held-out prompts: P(policy i beats policy j), and what it says of each."""

    policies: tuple[int, ...]
    """K iterations, oldest first."""
    matrix: tuple[tuple[Interval | None, ...], ...]
    """[K][K], None where no set held both, and on the diagonal."""
    teacher: tuple[Interval | None, ...]
    """[K]: P(policy i beats the teacher)."""
    equilibrium: tuple[float, ...] | None
    """[K]: the weights of the mixture that no policy beats; None while a cell is unknown."""
    best: int | None
    """The best iteration at the time."""
    exploitability: Mapping[str, Interval]
    """max_i P(policy i beats pi) - 1/2 for pi the "last" policy, the "best" one and the "uniform" mixture, over the policies
    that pi is known to have met; what is not known is left out."""

    @property
    def unknown(self) -> int:
        """Pairs of policies that no oracle has compared."""
        return sum(cell is None for i, row in enumerate(self.matrix) for cell in row[:i])


@dataclass(frozen=True, slots=True)
class IterationSummary:
    """One row of the run's table. Iteration 0 is the initial policy (validated, not trained)."""

    iteration: int
    win_rate_vs_initial: Interval | None = None
    win_rate_vs_previous: Interval | None = None
    win_rate_vs_teacher: Interval | None = None
    p_beats_teacher: float | None = None
    """One-sided p-value of "wins more than half of its contests with the teacher" (sign flips, clustered by prompt)."""
    kl_from_previous: Interval | None = None
    """KL(pi_t || pi_t-1) in nats per answer at temperature 1, on held-out prompts."""
    improvement_bound: Interval | None = None
    """1/2 + eta KL: what eq. (9) promises an exact step of that length against the previous policy."""
    exploitability: Interval | None = None
    """max_i P(pi_i beats this policy) - 1/2 over the run's policies so far."""
    payoffs: Payoffs | None = None
    satisfied: float | None = None
    satisfied_and_good: float | None = None
    good: float | None = None
    mean_score: float | None = None
    mean_words: float | None = None
    words_by_quantile: tuple[float, ...] = ()
    pairs: Mapping[str, int] = field(default_factory=dict)
    replayed_pairs: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    defects: Mapping[str, int] = field(default_factory=dict)
    dynamics: Mapping[str, float | None] = field(default_factory=dict)
    unusable_judgments: int = 0
    tokens: Mapping[str, int] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    cost_usd: float | None = None
    train: Mapping[str, float] = field(default_factory=dict)
