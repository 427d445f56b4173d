"""Who says which answer is better: the oracles a recipe may name by `kind`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from nashtune.recipe.base import ADDED, NEUTRAL, Rate, Section
from nashtune.recipe.hosted import Asking


class Guard(Section):
    """The rules oracle's idea of a proper answer: what no satisfied rule may buy."""

    finished: bool = True
    """The answer ended by itself."""
    min_words: int = Field(default=6, ge=0)
    """Shortest proper answer (words)."""
    max_words: int = Field(default=60, ge=1)
    """Longest proper answer (words)."""
    on_topic: bool = True
    """The answer names the prompt's topic, where the prompt has one."""
    min_distinct_words: Rate = 0.5
    """Least share of distinct words."""
    no_meta: bool = True
    """The answer does not talk about its own instruction ("Here is a sentence in lowercase ...")."""
    min_fluency: float | None = None
    """Least mean log-prob per token under the initial policy (nats); null does not look. Needs one more forward pass."""


class RulesOracle(Section):
    """Verifiable instructions decide; a quality guard keeps the oracle from being gamed. Free."""

    kind: Literal["rules"]
    guard: Guard = Guard()


class RubricOracle(Asking):
    """The paper's judge: one call shows all candidates side by side, additive 6-point rubric, JSON answer."""

    kind: Literal["rubric"]
    temperature: float | None = Field(default=0.0, ge=0)
    """Sampling temperature of the judge; null leaves it to the server (reasoning models take no other)."""
    max_tokens: int = Field(default=2048, ge=16)
    """Longest reply of the judge (tokens)."""
    repair_attempts: int = Field(default=1, ge=0, le=3)
    """Times an unusable reply is asked to be repaired before it is kept as unusable."""


class CompactOracle(Asking):
    """The rubric without justifications: scores only, averaged over several replies or read off log-probs."""

    kind: Literal["compact"]
    use: Literal["replies", "logprobs"] = "replies"
    """replies: the mean of sampled scores; logprobs: the expected score at each place of one greedy reply."""
    orders: int = Field(default=1, ge=1)
    """Presentations of the candidates in different orders; their scores are averaged."""
    replies: int = Field(default=3, ge=1)
    """Replies per presentation, for `use: replies`."""
    temperature: float | None = Field(default=1.0, ge=0)
    """Sampling temperature of the judge, for `use: replies`."""
    max_tokens: int = Field(default=64, ge=8)
    """Longest reply of the judge (tokens)."""


class PairwiseOracle(Asking):
    """Two answers at a time, in both orders; gives P(i beats j), with which preferences may be cyclic."""

    kind: Literal["pairwise"]
    use: Literal["replies", "logprobs"] = "replies"
    """replies: the share of sampled verdicts; logprobs: P of the verdict's token in one greedy reply."""
    pairs: Literal["all", "teacher"] = "all"
    """all: K (K - 1) calls a prompt; teacher: only the teacher's answers with the student's."""
    replies: int = Field(default=1, ge=1)
    """Replies per pair and order, for `use: replies`."""
    temperature: float | None = Field(default=0.0, ge=0)
    """Sampling temperature of the judge, for `use: replies`."""
    max_tokens: int = Field(default=8, ge=1)
    """Longest reply of the judge (tokens)."""


class SelfOracle(Section):
    """Self-rewarding: the policy that wrote the answers grades each by the rubric, as an expected score. Free."""

    kind: Literal["self"]
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic; auto is bfloat16 where this machine is fast at it."""
    microbatch_tokens: int = Field(default=4096, ge=64)
    """Tokens computed at once (memory)."""


class RewardModelOracle(Section):
    """A reward model (Hugging Face sequence classification with one output) scores each answer; P(i beats j) is the
    Bradley-Terry sigmoid of the difference. An answer too long for the model is never cut: it gets no verdict."""

    kind: Literal["reward_model"]
    model: str
    """Hub name or folder of the reward model; its tokenizer needs a chat template."""
    revision: str | None = None
    """Hub revision (commit, tag or branch)."""
    trust_remote_code: bool = False
    """Run model code shipped with the weights."""
    max_tokens: int | None = Field(default=None, ge=16)
    """Longest conversation with its answer that is judged (tokens); null takes the model's context. No text is cut:
    a longer candidate has no verdict, and a set with fewer than two short enough is an unusable judgment."""
    batch_size: int = Field(default=8, ge=1, json_schema_extra=NEUTRAL)
    """Candidates of a prompt computed together."""


class PreferenceModelOracle(Section):
    """A pairwise preference model made by `nashtune fit-judge`: P(i beats j | prompt) from a causal model's hidden
    states. Free, and able to express cycles."""

    kind: Literal["preference_model"]
    folder: str
    """Folder that `nashtune fit-judge` wrote."""
    max_tokens: int | None = Field(default=None, ge=16)
    """Longest prompt with its answer that is judged (tokens); null takes the backbone's context. No text is cut:
    a longer candidate has no verdict, and a set with fewer than two short enough is an unusable judgment."""
    batch_tokens: int = Field(default=4096, ge=64, json_schema_extra=NEUTRAL)
    """Tokens computed at once; a longer candidate is computed alone."""


class PeopleOracle(Section):
    """Your own people: tasks are written to files, votes are read from files, and the run waits for them."""

    kind: Literal["people"]
    folder: str
    """Where `tasks/*.json` are written and `votes/*.jsonl` are read; may be shared by several runs."""
    votes: int = Field(default=1, ge=1)
    """People who must have voted on a task."""
    poll_s: float = Field(default=2.0, gt=0, json_schema_extra=NEUTRAL)
    """Seconds between looks for new votes."""


class ScriptedOracle(Section):
    """Deterministic scores from the text, for tests and dry runs."""

    kind: Literal["scripted"]
    prefer: Literal["hash", "longer", "shorter"] = "hash"
    """What the made-up scores (1 to 6) follow."""
    unusable_rate: Rate = 0.0
    """Share of judgments reported as unusable."""
    latency_s: float = Field(default=0.0, ge=0, json_schema_extra=NEUTRAL)
    """Seconds that a judgment takes, as a server's would (the verdict is the same)."""
    concurrency: int = Field(default=16, ge=1, json_schema_extra=NEUTRAL)
    """Judgments under way at once, where they take time."""


class PanelMember(Section):
    """A judge of a panel."""

    oracle: Oracle
    """Any oracle."""
    weight: float = Field(default=1.0, gt=0)
    """Its part in the panel's mean."""


class PanelOracle(Section):
    """Several judges; their preferences are averaged and their agreement reported."""

    kind: Literal["panel"]
    members: tuple[PanelMember, ...] = Field(min_length=2)
    """The judges."""
    quorum: int = Field(default=1, ge=1)
    """Least number of members with a usable judgment; with fewer the panel's is unusable."""


class CascadeOracle(Section):
    """A cheap oracle scores all candidates, a strong one those that matter, or the sets that the cheap one is not sure of; a
    random share is audited whole."""

    kind: Literal["cascade"]
    cheap: Oracle
    """Sees every candidate."""
    strong: Oracle
    """Sees the teacher, the likely best and the likely worst."""
    trust: float | None = Field(default=None, ge=0.5, le=1, json_schema_extra=ADDED)
    """Where the cheap oracle is at least this sure (mean of max(P, 1 - P) over its comparisons), its verdict stands and the
    strong one is not asked; null asks it about every set. For cheap oracles that give probabilities."""
    shown: int = Field(default=3, ge=2)
    """Candidates the strong oracle sees; as many as there are, or more, shows all."""
    z: float = Field(default=1.0, ge=0)
    """Standard errors by which the cheap oracle's win rates are widened when choosing them."""
    certain_margin: float = Field(default=1.0, ge=0)
    """Where best and worst are closer than this (points), the strong oracle is asked again in reverse order."""
    audit: Rate = 0.05
    """Share of prompts judged whole by `audit_oracle`."""
    audit_oracle: Oracle | None = None
    """The audit's judge, as the paper's rubric; null is the strong oracle with all candidates."""
    min_accuracy: Rate | None = 0.55
    """Least held-out balanced accuracy of a fitted cheap oracle (its lower bound), else the run does not begin; null does
    not ask."""


Oracle = Annotated[
    RulesOracle
    | RubricOracle
    | CompactOracle
    | PairwiseOracle
    | SelfOracle
    | RewardModelOracle
    | PreferenceModelOracle
    | PeopleOracle
    | PanelOracle
    | CascadeOracle
    | ScriptedOracle,
    Field(discriminator="kind"),
]
for _section in (PanelMember, PanelOracle, CascadeOracle):
    _section.model_rebuild()
