"""What one judgment sends to which engine: calls, and tokens there and back, expected and at worst."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from nashtune import recipe
from nashtune.judging import compact, pairwise, rubric
from nashtune.judging.chat import TOKENS_PER_MESSAGE
from nashtune.judging.showing import fill, material
from nashtune.planning.lengths import Lengths
from nashtune.recipe import EngineSection, HostedSection
from nashtune.records import Prompt

RUBRIC_TOKENS = 100
"""Tokens of the rubric's reply for each answer, justification and score (the paper's 60M tokens for 100k sets of 6)."""
COMPACT_TOKENS = (5, 2)
"""Tokens of {"scores": []}, and of each score with its comma."""
PAIRWISE_TOKENS = 2
"""The digit and the end of the reply."""
REPAIR_SHARE = 0.02
"""Share of rubric replies that have to be asked for again."""
TURNED_SHARE = 0.25
"""Share of a cascade's sets on which the strong judge is asked again in reverse order."""
UNSURE_SHARE = 0.3
"""Share of sets that the strong judge of a cascade with `trust` sees (docs/judging-cost.md, trust 0.7)."""
WORST_BYTES_PER_TOKEN = 4
"""Bytes of an unusable reply, as it is shown to the judge once more."""

Render = Callable[[Prompt, Sequence[str], int], str]


@dataclass(frozen=True, slots=True)
class Factors:
    """Measured over modelled figures of a judgment; 1 where nothing was measured."""

    calls: float = 1.0
    prompt: float = 1.0
    completion: float = 1.0


@dataclass(frozen=True, slots=True)
class Bill:
    """Means for one candidate set, or for one answer of a remote teacher: calls to one engine and their tokens. ``worst_*``
    is what a budget reserves: every byte of the prompt a token, every reply of full length."""

    engine: EngineSection | HostedSection
    calls: float
    prompt_tokens: float
    completion_tokens: float
    worst_prompt: float
    worst_completion: float

    def times(self, expected: float, worst: float) -> Bill:
        return Bill(
            self.engine,
            self.calls * expected,
            self.prompt_tokens * expected,
            self.completion_tokens * expected,
            self.worst_prompt * worst,
            self.worst_completion * worst,
        )

    def corrected(self, factors: Factors) -> Bill:
        """With the expected figures multiplied by what was measured over what was expected."""
        return dataclasses.replace(
            self,
            calls=self.calls * factors.calls,
            prompt_tokens=self.prompt_tokens * factors.prompt,
            completion_tokens=self.completion_tokens * factors.completion,
        )


@dataclass(frozen=True, slots=True)
class Texts:
    """Real prompts of the recipe and stand-ins for the answers: of the expected length, and the longest there may be.
    A teacher of None is the answer that comes with each prompt."""

    lengths: Lengths
    prompts: Sequence[Prompt]
    student: str
    longest_student: str
    teacher: str | None
    longest_teacher: str | None

    def size(self, render: Render, students: int, teachers: int) -> tuple[float, float]:
        """Mean tokens of the judge's message, and mean bytes of the longest there may be."""
        shown = [render(p, self._answers(p, students, teachers), 0) for p in self.prompts]
        longest = [render(p, self._longest(p, students, teachers), 0) for p in self.prompts]
        tokens = fmean(self.lengths.text(text) for text in shown)
        return tokens, fmean(len(text.encode()) + TOKENS_PER_MESSAGE for text in longest)

    def _answers(self, prompt: Prompt, students: int, teachers: int) -> list[str]:
        return [self.student] * students + [self.teacher or prompt.teacher or self.student] * teachers

    def _longest(self, prompt: Prompt, students: int, teachers: int) -> list[str]:
        teacher = self.longest_teacher or prompt.teacher or self.longest_student
        return [self.longest_student] * students + [teacher] * teachers


def judge_bills(section: recipe.Oracle, students: int, teachers: int, texts: Texts) -> list[Bill]:
    """What judging a set of so many answers of the policy and of the teacher costs, engine by engine; [] where it is free."""
    match section:
        case recipe.RubricOracle():
            return [_rubric(section, students, teachers, texts)]
        case recipe.CompactOracle():
            return [_compact(section, students, teachers, texts)]
        case recipe.PairwiseOracle():
            return _pairwise(section, students, teachers, texts)
        case recipe.PanelOracle():
            return [b for m in section.members for b in judge_bills(m.oracle, students, teachers, texts)]
        case recipe.CascadeOracle():
            return _cascade(section, students, teachers, texts)
        case _:
            return []


def _rubric(section: recipe.RubricOracle, students: int, teachers: int, texts: Texts) -> Bill:
    prompt, longest = texts.size(rubric.render, students, teachers)
    reply = min(section.max_tokens, RUBRIC_TOKENS * (students + teachers))
    repairs = section.repair_attempts
    share = REPAIR_SHARE if repairs else 0.0
    more = longest + section.max_tokens * WORST_BYTES_PER_TOKEN + len(rubric.REPAIR) + 2 * TOKENS_PER_MESSAGE
    return Bill(
        section.asked,
        calls=1 + share,
        prompt_tokens=prompt + share * (prompt + reply + texts.lengths.text(rubric.REPAIR)),
        completion_tokens=reply * (1 + share),
        worst_prompt=longest + repairs * more,
        worst_completion=section.max_tokens * (1 + repairs),
    )


def _compact(section: recipe.CompactOracle, students: int, teachers: int, texts: Texts) -> Bill:
    prompt, longest = texts.size(compact.render, students, teachers)
    replies = 1 if section.use == "logprobs" else section.replies
    reply = min(section.max_tokens, COMPACT_TOKENS[0] + COMPACT_TOKENS[1] * (students + teachers))
    one = Bill(section.asked, 1, prompt, reply * replies, longest, section.max_tokens * replies)
    return one.times(section.orders, section.orders)


def _pairwise(section: recipe.PairwiseOracle, students: int, teachers: int, texts: Texts) -> list[Bill]:
    """Every duel twice, once in each order."""
    mixed, among = students * teachers, (students * (students - 1) + teachers * (teachers - 1)) // 2
    replies = 1 if section.use == "logprobs" else section.replies
    reply = min(section.max_tokens, PAIRWISE_TOKENS)
    found = []
    for duels, sides in ((mixed, (1, 1)), (among if section.pairs == "all" else 0, (2, 0))):
        if duels:
            prompt, longest = texts.size(_render_duel, *sides)
            one = Bill(section.asked, 1, prompt, reply * replies, longest, section.max_tokens * replies)
            found.append(one.times(2 * duels, 2 * duels))
    return found


def _render_duel(prompt: Prompt, answers: Sequence[str], seed: int) -> str:
    return fill(pairwise.TEMPLATE, material(prompt, answers, seed))


def _cascade(section: recipe.CascadeOracle, students: int, teachers: int, texts: Texts) -> list[Bill]:
    shown = min(section.shown, students + teachers)
    taught = min(teachers, shown)
    scores = not isinstance(section.strong, recipe.PairwiseOracle)
    again = TURNED_SHARE if section.certain_margin > 0 and scores else 0.0
    asked = 1.0 if section.trust is None else UNSURE_SHARE
    strong = judge_bills(section.strong, shown - taught, taught, texts)
    audit = judge_bills(section.audit_oracle or section.strong, students, teachers, texts) if section.audit else []
    return [
        *judge_bills(section.cheap, students, teachers, texts),
        *(bill.times(asked * (1 + again), 2 if again else 1) for bill in strong),
        *(bill.times(section.audit, section.audit) for bill in audit),
    ]


def teacher_bill(teacher: recipe.RemoteTeacher, texts: Texts, answer_tokens: float) -> Bill:
    """One answer of a remote teacher."""
    prompt = fmean(texts.lengths.messages(p.messages) for p in texts.prompts)
    sizes = [sum(len(m.content.encode()) + TOKENS_PER_MESSAGE for m in p.messages) for p in texts.prompts]
    return Bill(teacher.engine, 1, prompt, answer_tokens, fmean(sizes), teacher.max_new_tokens)
