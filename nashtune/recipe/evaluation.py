"""Published suites that a run, or any model, is evaluated by: the settings of each by `suite`.

Another suite is a subclass of ``SuiteSection`` with its own `suite` literal, in the union below, and a class in
``nashtune/suites/registry.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from nashtune.recipe.base import NEUTRAL, Section
from nashtune.recipe.engine import EngineSection
from nashtune.recipe.harness import OPEN_LLM, HarnessTask


@dataclass(frozen=True, slots=True)
class Asks:
    """About what a suite takes with its published data, for `nashtune plan`: ``prompts`` answered in ``turns`` turns; ``calls``
    of the judge, each of ``tokens`` besides the answers it shows, ``answers`` of the policy's (a baseline's are like them), a
    reply of ``reply`` tokens and at most ``longest``."""

    prompts: int
    turns: int = 1
    calls: int = 0
    tokens: int = 0
    answers: float = 0.0
    reply: int = 0
    longest: int = 0


class SuiteSection(Section):
    """What all suites have. ``metrics`` are the ends of the metrics' names with their units; "" is the suite's own name."""

    metrics: ClassVar[Mapping[str, str]] = {}
    gameable: ClassVar[frozenset[str]] = frozenset()
    """Metrics by which a policy is chosen only where another one of the suite agrees."""

    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9._-]+$", json_schema_extra=NEUTRAL)
    """Name of this evaluation: its folder under `evaluations/`, and the head of its metrics' names; null takes the suite's.
    Two evaluations by one suite need two names."""
    when: Literal["each", "end"] = Field(default="end", json_schema_extra=NEUTRAL)
    """each: the initial policy and every iteration, after its validation; end: the initial and the exported policy alone."""

    @property
    def called(self) -> str:
        return self.name or self.suite_name

    @property
    def suite_name(self) -> str:
        return getattr(self, "suite")  # noqa: B009 - each suite's own literal

    def metric_names(self) -> dict[str, str]:
        """Metric as `validate.select` names it -> the end of its name."""
        return {f"{self.called}_{end}" if end else self.called: end for end in self.metrics}

    @property
    def judges(self) -> tuple[EngineSection, ...]:
        """Servers that are paid for judging."""
        judge = getattr(self, "judge", None)
        return (judge,) if isinstance(judge, EngineSection) else ()

    def unit(self, end: str) -> str:
        """The unit of a metric, by the end of its name."""
        return self.metrics[end]

    def asks(self) -> Asks | None:
        """What it takes; None where nobody knows without the data."""
        return None

    def problems(self) -> list[str]:
        """Settings of this suite that fight each other, each as a sentence."""
        return []


class AlpacaEvalSection(SuiteSection):
    """AlpacaEval 2: 805 prompts, answers compared with a baseline's by log-probs of one letter; raw and length-controlled."""

    metrics: ClassVar[Mapping[str, str]] = {"lc": "%", "win_rate": "%", "discrete_win_rate": "%"}
    gameable: ClassVar[frozenset[str]] = frozenset({"lc"})

    suite: Literal["alpaca_eval"]
    data: str = "tatsu-lab/alpaca_eval"
    """A folder with alpaca_eval's files, or a data set of the hub that has them."""
    baseline: str | None = None
    """Another baseline's answers, a model_outputs.json; null takes the data's (gpt4_1106_preview)."""
    judge: EngineSection = EngineSection(model="gpt-4-1106-preview")
    """Where the judge answers; it must give log-probs. Published figures are by gpt-4-1106-preview."""
    temperature: float = Field(default=0.7, ge=0)
    """Softmax temperature of the policy's answers."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus mass of the policy's answers."""
    max_new_tokens: int = Field(default=2048, ge=1)
    """Longest answer (tokens)."""
    difficulty: Literal["parity", "correct"] = Field(default="parity", json_schema_extra=NEUTRAL)
    """How a judged row finds its instruction's difficulty for length control. parity: by its place among the rows, as
    published figures do, which takes another instruction's where rows are missing before it; correct: by its prompt."""

    def asks(self) -> Asks:
        return Asks(prompts=805, calls=805, tokens=900, answers=1, reply=1, longest=1)


class MtBenchSection(SuiteSection):
    """MT-Bench: 80 questions of two turns, each answer rated from 1 to 10, or compared with a baseline's in both orders."""

    metrics: ClassVar[Mapping[str, str]] = {"": "of 10", "first_turn": "of 10", "second_turn": "of 10", "win_rate": "%"}

    suite: Literal["mt_bench"]
    data: str
    """A folder with FastChat's question.jsonl, judge_prompts.jsonl and reference_answer/."""
    references: str | None = None
    """Another file of reference answers than the folder's, for math, reasoning and coding."""
    mode: Literal["single", "pairwise"] = "single"
    """single: ratings; pairwise: games against `baseline`, each in both orders."""
    baseline: str | None = None
    """Answers to compare with, in FastChat's model_answer format, for mode pairwise."""
    judge: EngineSection = EngineSection(model="gpt-4")
    """Where the judge answers. Published figures are by gpt-4."""
    temperature: float | None = Field(default=None, ge=0)
    """Softmax temperature of the policy's answers; null takes FastChat's by category (0 to 0.7)."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus mass of the policy's answers."""
    max_new_tokens: int = Field(default=1024, ge=1)
    """Longest answer to a turn (tokens)."""

    def asks(self) -> Asks:
        if self.mode == "pairwise":
            return Asks(prompts=80, turns=2, calls=320, tokens=490, answers=3, reply=180, longest=2048)
        return Asks(prompts=80, turns=2, calls=160, tokens=390, answers=1.5, reply=180, longest=2048)

    def problems(self) -> list[str]:
        if self.mode == "pairwise" and self.baseline is None:
            return ["mode is 'pairwise' but baseline is not set; accepted: a file of answers to compare with"]
        if self.mode == "single" and self.baseline is not None:
            return [f"baseline is {self.baseline!r}, which mode 'single' does not read; accepted: mode 'pairwise'"]
        return []

    def metric_names(self) -> dict[str, str]:
        read = {"win_rate"} if self.mode == "pairwise" else {"", "first_turn", "second_turn"}
        return {name: end for name, end in super().metric_names().items() if end in read}


class ArenaHardSection(SuiteSection):
    """Arena-Hard: 500 (v0.1) or 750 (v2.0) hard prompts, each answer against a baseline's in both orders, on five degrees."""

    metrics: ClassVar[Mapping[str, str]] = {"win_rate": "%", "style_controlled": "%"}

    suite: Literal["arena_hard"]
    version: Literal["v0.1", "v2.0"] = "v2.0"
    """Which set of prompts and baselines."""
    data: str = "lmarena-ai/arena-hard-auto"
    """A clone of upstream's repository, its data/arena-hard-VERSION folder alone, a folder with arena_hard_prompts.parquet, or
    a data set of the hub in upstream's layout."""
    judge_prompts: str | None = None
    """Where the judge's prompts are, for data without them (the hub's): arena_hard_judge.json, a folder with it, or a clone of
    upstream's repository; null looks in `data`."""
    categories: tuple[str, ...] = ()
    """Categories to judge (v2.0: hard_prompt, creative_writing); empty takes all."""
    baseline: str | None = None
    """Another baseline's answers, in upstream's model_answer format; null takes each category's own."""
    style_tokens: str | None = "o200k_base"
    """How answers' lengths are counted for style control: o200k_base (as published; needs bpe-openai or tiktoken),
    tokenizer:FOLDER-OR-NAME, words or characters; null gives no style-controlled win rate."""
    judge: EngineSection = EngineSection(model="gpt-4.1")
    """Where the judge answers. Published figures are by gpt-4.1 and gemini-2.5 (v2.0), gpt-4-1106-preview (v0.1)."""
    temperature: float = Field(default=0.0, ge=0)
    """Softmax temperature of the policy's answers."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus mass of the policy's answers."""
    max_new_tokens: int = Field(default=4096, ge=1)
    """Longest answer (tokens)."""

    def metric_names(self) -> dict[str, str]:
        return {name: end for name, end in super().metric_names().items() if end == "win_rate" or self.style_tokens}


class InstructionSection(SuiteSection):
    """What the suites of verifiable instructions share: checked by programs, so nobody is asked and nothing is paid."""

    metrics: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("prompt_strict", "prompt_loose", "instruction_strict", "instruction_loose"), "%"
    )

    temperature: float = Field(default=0.0, ge=0)
    """Softmax temperature of the policy's answers."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus mass of the policy's answers."""


class IfEvalSection(InstructionSection):
    """IFEval: 541 prompts with 25 types of instructions that a program can check, strictly and loosely."""

    suite: Literal["ifeval"]
    data: str = "google/IFEval"
    """A .jsonl file, a folder with one, or a data set of the hub (key, prompt, instruction_id_list, kwargs)."""
    max_new_tokens: int = Field(default=1280, ge=1)
    """Longest answer (tokens); lm-evaluation-harness's is 1280."""

    def asks(self) -> Asks:
        return Asks(prompts=541)


class IfBenchSection(InstructionSection):
    """IFBench: 300 prompts with 58 further types."""

    suite: Literal["ifbench"]
    data: str = "allenai/IFBench_test"
    """A .jsonl file, a folder with one, or a data set of the hub (key, prompt, instruction_id_list, kwargs)."""
    max_new_tokens: int = Field(default=4096, ge=1)
    """Longest answer (tokens)."""

    def asks(self) -> Asks:
        return Asks(prompts=300)


class HarnessSection(SuiteSection):
    """Tasks of lm-evaluation-harness, by default the Open LLM leaderboard's six, in a process of their own."""

    metrics: ClassVar[Mapping[str, str]] = {"": "%", **{task.task: task.unit for task in OPEN_LLM}}
    """Those of the default tasks."""

    suite: Literal["harness"]
    tasks: tuple[HarnessTask, ...] = Field(default=OPEN_LLM, min_length=1)
    """What is run, and which metric of each is read."""
    include_path: str | None = None
    """A folder of further tasks (yaml files, as lm-evaluation-harness reads them)."""
    model: Literal["hf", "vllm"] = "hf"
    """What computes: transformers, or vLLM."""
    model_args: dict[str, str | int | float | bool] = Field(default_factory=dict)
    """Further arguments of lm-evaluation-harness's model."""
    dtype: str = "auto"
    """Arithmetic of the model; auto is what its config says."""
    batch_size: int | Literal["auto"] = Field(default=1, json_schema_extra=NEUTRAL)
    """Requests computed together."""
    device: str | None = Field(default=None, json_schema_extra=NEUTRAL)
    """Where: cuda, cpu, ...; null takes a GPU where there is one."""
    limit: int | None = Field(default=None, ge=1)
    """Only so many documents of each task, for tries; null takes all."""
    apply_chat_template: bool = False
    """Ask through the model's chat template, shots as turns; the leaderboard did not."""
    trust_remote_code: bool = False
    """Run model code shipped with the weights."""
    seed: int = 1234
    """Of the draw of shots, where a task draws them; lm-evaluation-harness's own default."""
    python: str | None = Field(default=None, json_schema_extra=NEUTRAL)
    """Interpreter of an environment that has lm-evaluation-harness; null takes this one."""
    regression_errors: float = Field(default=1.0, gt=0, json_schema_extra=NEUTRAL)
    """A task is flagged where a policy is worse than the initial one by more than so many standard errors of the difference."""

    def metric_names(self) -> dict[str, str]:
        ends = [task.task for task in self.tasks]
        average = {self.called: ""} if self.averages else {}
        return average | {f"{self.called}_{end}": end for end in ends}

    @property
    def averages(self) -> bool:
        """Whether the tasks' figures have one unit, so that their mean says something."""
        return all(task.unit == "%" for task in self.tasks)

    def unit(self, end: str) -> str:
        return next((task.unit for task in self.tasks if task.task == end), "%")

    def problems(self) -> list[str]:
        names = [task.task for task in self.tasks]
        twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
        return [f"tasks has {name!r} {names.count(name)} times; accepted: once" for name in twice]


SuiteSettings = Annotated[
    AlpacaEvalSection | MtBenchSection | ArenaHardSection | IfEvalSection | IfBenchSection | HarnessSection,
    Field(discriminator="suite"),
]
SUITE_SECTIONS: Mapping[str, type[SuiteSection]] = {
    "alpaca_eval": AlpacaEvalSection,
    "mt_bench": MtBenchSection,
    "arena_hard": ArenaHardSection,
    "ifeval": IfEvalSection,
    "ifbench": IfBenchSection,
    "harness": HarnessSection,
}
"""The sections by `suite`."""


def evaluation_problems(suites: Sequence[SuiteSection]) -> Iterator[str]:
    """What evaluations' settings ask of each other, each as a sentence."""
    names = [suite.called for suite in suites]
    for name in dict.fromkeys(name for name in names if names.count(name) > 1):
        yield f"evaluate has {names.count(name)} evaluations called {name!r}; accepted: one, so give each a `name`"
    for suite in suites:
        yield from (f"evaluate.{suite.called}: {problem}" for problem in suite.problems())


def set_fields(section: Section) -> set[str]:
    """Fields that differ from their defaults."""
    return {name for name, info in type(section).model_fields.items() if getattr(section, name) != info.default}
