"""A row of a preference data set: its prompt, its two answers and the side that is said to be better.

The usual layouts are known by their columns, and any column can be named (``Columns``).
Prompt: prompt; question; instruction, with input below it where there is one; input alone.
Answers: chosen, rejected; or response_1, response_2 (response1, response_a, output_1, answer_1 and their seconds as well).
The better one: chosen; else preference (P(the first is better)), label or winner (a code), score_1 and score_2, or the
majority of annotator1, annotator2, ...
Without a prompt, chosen and rejected are whole conversations: message lists, or texts "Human: ... Assistant: ...".
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from nashtune.errors import PromptError
from nashtune.prompt_sources import Row
from nashtune.prompt_values import shown, whole
from nashtune.records import Message, Prompt, Role
from nashtune.seeds import content_hash, seed_for

PROMPTS = ("prompt", "question", "instruction", "input")
CHOSEN = ("chosen", "rejected")
ANSWERS = (
    ("response_1", "response_2"),
    ("response_a", "response_b"),
    ("response1", "response2"),
    ("output_1", "output_2"),
    ("answer_1", "answer_2"),
)
LABELS = ("preference", "label", "winner")
SCORES = ("score_1", "score_2")
ANNOTATORS = tuple(f"annotator{gap}{n}" for n in range(1, 10) for gap in ("", "_"))
KNOWN = (*PROMPTS, *CHOSEN, *(name for pair in ANSWERS for name in pair), *LABELS, *SCORES, *ANNOTATORS)
TURN = re.compile(r"\n\n(Human|Assistant):")
Code = Literal["first", "second", "tie", "none"]
CODES: Mapping[Code, tuple[str, ...]] = {
    "first": ("1", "a", "first", "model_a", "model_1", "response_1", "response_a", "output_1"),
    "second": ("2", "b", "second", "model_b", "model_2", "response_2", "response_b", "output_2"),
    "tie": ("0", "tie"),
    "none": (),
}
"""What labels and verdicts are written as, in any case of letters."""
VALUES: Mapping[Code, float] = {"first": 1.0, "second": 0.0, "tie": 0.5, "none": math.nan}
"""P(the first answer is better) of each code; NaN is no verdict."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer's text and whether it ended by itself."""

    text: str
    finished: bool = True


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two answers to one prompt and ``target`` = P(first is better) in [0, 1]; NaN where nobody has said."""

    prompt: Prompt
    first: Answer
    second: Answer
    target: float

    @property
    def group(self) -> str:
        """The same for prompts that differ in white space and case alone: they are held out together or not at all."""
        return content_hash([[m.role, " ".join(m.content.casefold().split())] for m in self.prompt.messages])

    def turned(self, seed: int) -> bool:
        """Whether ``shown`` swaps the answers."""
        # Sorted texts, so that the order drawn is the same whichever answer the source put first.
        draw = seed_for(seed, "shown", self.prompt.id, sorted((self.first.text, self.second.text))) % 2
        return (self.first.text < self.second.text) != bool(draw)

    def shown(self, seed: int) -> Comparison:
        """In an order that a hash of the seed and the texts draws, so that no source's own order tells the better."""
        return self.swapped() if self.turned(seed) else self

    def swapped(self) -> Comparison:
        return Comparison(self.prompt, self.second, self.first, 1 - self.target)


class NotComparable(Exception):
    """A row that holds no two answers to one prompt, through nobody's fault; says why."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Columns that go by other names than the usual, and codes that do; None and () take the usual ones."""

    prompt: str | None = None
    answers: tuple[str, str] | None = None
    label: str | None = None
    annotators: tuple[str, ...] = ()
    codes: Mapping[Code, tuple[str, ...]] = field(default_factory=lambda: CODES)

    def wanted(self) -> tuple[str, ...]:
        """Every column that may be read."""
        named = (self.prompt, *(self.answers or ()), self.label, *self.annotators)
        return tuple(dict.fromkeys((*KNOWN, *(name for name in named if name))))


USUAL = Columns()


def with_codes(given: Sequence[str]) -> Mapping[Code, tuple[str, ...]]:
    """The usual codes with those replaced that ``given`` names, each "CODE=VALUE" ("none=garbage"). Raises PromptError."""
    found: dict[str, list[str]] = {}
    for text in given:
        name, sign, value = text.partition("=")
        if not sign or name not in CODES:
            raise PromptError(f"--code {text!r}; accepted: {', '.join(CODES)}, each as first=VALUE")
        found.setdefault(name, []).append(value.strip().casefold())
    taken = {value for values in found.values() for value in values}
    return {
        code: tuple(found[code]) if code in found else tuple(v for v in usual if v not in taken)
        for code, usual in CODES.items()
    }


def comparison_of(row: Row, columns: Columns = USUAL) -> Comparison:
    """Raises PromptError naming the row's place, NotComparable where it holds no two answers to one prompt."""
    if row.problem:
        raise PromptError(f"{row.where}: {row.problem}")
    try:
        names = answer_columns(row.fields, columns)
        if _whole_conversations(row.fields, names, columns):
            prompt, first, second = _conversations(row, names)
        else:
            prompt = _prompt(row, columns)
            first, second = (_answer(row.fields, name) for name in names)
        return Comparison(prompt, first, second, _target(row.fields, names, columns))
    except PromptError as error:
        raise PromptError(f"{row.where}: {error}") from None


def answer_columns(fields: Mapping[str, Any], columns: Columns) -> tuple[str, str]:
    """Names of the two columns that hold a row's answers. Raises PromptError."""
    if columns.answers is not None:
        return columns.answers
    for names in (CHOSEN, *ANSWERS):
        if any(fields.get(name) is not None for name in names):
            return names
    present = ", ".join(repr(name) for name, value in fields.items() if value is not None)
    raise PromptError(
        f"columns {present}; accepted: chosen and rejected, or response_1, response_2, preference (or another usual layout, "
        "or columns named by options)"
    )


def code_of(value: Any, column: str, codes: Mapping[Code, tuple[str, ...]]) -> float:
    """P(the first is better) that a label or verdict stands for; NaN for none. Raises PromptError."""
    whole_number = isinstance(value, float) and value.is_integer()
    text = str(int(value) if whole_number else value).strip().casefold()
    if not isinstance(value, bool):
        for code, values in codes.items():
            if text in values:
                return VALUES[code]
    accepted = "; ".join(f"{code}: {', '.join(values)}" for code, values in codes.items() if values)
    raise PromptError(f"column {column!r}: {shown(value)}; accepted: {accepted} (--code names others)")


def majority(verdicts: Sequence[float]) -> float:
    """The verdict (1, 0.5 or 0) that more of them give than any other, NaN where there is none such; NaNs do not vote."""
    votes = Counter(v for v in verdicts if not math.isnan(v)).most_common(2)
    return votes[0][0] if len(votes) == 1 or (votes and votes[0][1] > votes[1][1]) else math.nan


def annotator_columns(fields: Mapping[str, Any], columns: Columns) -> tuple[str, ...]:
    """The columns that hold people's verdicts: those named, else the usual ones that are there."""
    return columns.annotators or tuple(name for name in ANNOTATORS if name in fields)


def annotations_of(fields: Mapping[str, Any], columns: Columns) -> tuple[float, ...]:
    """Each annotator's verdict; NaN where one is missing. Raises PromptError."""
    names = annotator_columns(fields, columns)
    return tuple(math.nan if fields.get(n) is None else code_of(fields[n], n, columns.codes) for n in names)


# ---- the parts of a row ------------------------------------------------------------------------------------------------------


def _target(fields: Mapping[str, Any], names: tuple[str, str], columns: Columns) -> float:
    label = columns.label or next((n for n in LABELS if fields.get(n) is not None), None)
    if columns.label is None and names == CHOSEN:
        return 1.0
    if columns.label is None and columns.annotators:
        return majority(annotations_of(fields, columns))
    if label == "preference":
        return _probability(fields.get(label))
    if label is not None:
        return code_of(fields.get(label), label, columns.codes)
    if any(name in fields for name in SCORES):
        first, second = (_number(fields, name) for name in SCORES)
        return 0.5 if first == second else float(first > second)
    if annotator_columns(fields, columns):
        return majority(annotations_of(fields, columns))
    if names == ("response_1", "response_2"):
        return _probability(None)
    raise PromptError(f"no label; accepted: a column {', '.join(LABELS)}, {' and '.join(SCORES)}, or annotator1, ...")


def _prompt(row: Row, columns: Columns) -> Prompt:
    fields = row.fields
    usual = [name for name in PROMPTS if fields.get(name) is not None]
    filled = [name for name in usual if not isinstance(fields[name], str) or fields[name].strip()]
    column = columns.prompt or next(iter([*filled, *usual, PROMPTS[0]]))
    messages = _messages(fields.get(column), column)
    if column == "instruction" and isinstance(more := fields.get("input"), str) and more.strip():
        text = f"{messages[-1].content}\n\n{_text(more, 'column {!r}'.format('input'))}"
        messages = (*messages[:-1], Message("user", text))
    return Prompt.make(messages, source=row.where)


def _messages(value: Any, column: str) -> tuple[Message, ...]:
    """A string, or chat messages that end with the user's (in CSV: their JSON)."""
    where = f"column {column!r}"
    if isinstance(value, str) and value.lstrip().startswith('[{"'):
        with suppress(ValueError, RecursionError):  # else it is a prompt that only looks like JSON
            value = json.loads(value)
    if isinstance(value, str):
        return (Message("user", _text(value, where)),)
    accepted = "a string, or a list of {role, content} that ends with the user's"
    if not isinstance(value, list) or not value:
        raise PromptError(f"{where}: {shown(value)}; accepted: {accepted}")
    messages = _turns(value, where, accepted)
    if messages[-1].role != "user":
        raise PromptError(f"{where}: the last message is the {messages[-1].role}'s; accepted: {accepted}")
    return messages


def _turns(value: Sequence[Any], where: str, accepted: str, empty: bool = False) -> tuple[Message, ...]:
    messages = []
    for item in value:
        if not isinstance(item, dict) or item.get("role") not in get_args(Role):
            raise PromptError(f"{where}: {shown(item)}; accepted: {accepted}, roles {', '.join(get_args(Role))}")
        content = item.get("content")
        text = whole(content, where) if empty and isinstance(content, str) else _text(content, f"{where}, content")
        messages.append(Message(item["role"], text))
    return tuple(messages)


def _whole_conversations(fields: Mapping[str, Any], names: tuple[str, str], columns: Columns) -> bool:
    """Whether the answers hold their prompt too: message lists, or transcripts in a set without a column for prompts."""
    value = fields.get(names[0])
    if isinstance(value, list):
        return True
    has_prompt = columns.prompt is not None or any(fields.get(name) is not None for name in PROMPTS)
    return not has_prompt and isinstance(value, str) and value.startswith("\n\nHuman:")


def _conversations(row: Row, names: tuple[str, str]) -> tuple[Prompt, Answer, Answer]:
    """Two conversations that differ in the assistant's last turn alone."""
    first, second = (_conversation(row.fields.get(name), name) for name in names)
    if first[:-1] != second[:-1]:
        raise NotComparable("the two conversations have different prompts")
    if not first[:-1] or first[-2].role != "user":
        raise NotComparable("a conversation without the user's turn before the last")
    return Prompt.make(first[:-1], source=row.where), Answer(first[-1].content), Answer(second[-1].content)


def _conversation(value: Any, column: str) -> tuple[Message, ...]:
    where, accepted = f"column {column!r}", "a conversation that ends with the assistant's turn"
    if isinstance(value, list) and value:
        messages = _turns(value, where, accepted, empty=True)
    elif isinstance(value, str) and value.startswith("\n\nHuman:"):
        parts = TURN.split(whole(value, where))[1:]
        roles: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}
        messages = tuple(Message(roles[n], t.strip()) for n, t in zip(parts[::2], parts[1::2], strict=True))
    else:
        raise PromptError(f"{where}: {shown(value)}; accepted: {accepted}")
    if messages[-1].role != "assistant":
        raise PromptError(f"{where}: the last turn is the {messages[-1].role}'s; accepted: {accepted}")
    return messages


def _answer(fields: Mapping[str, Any], column: str) -> Answer:
    value = fields.get(column)
    if not isinstance(value, str):
        raise PromptError(f"column {column!r}: {shown(value)}; accepted: a string")
    return Answer(whole(value, f"column {column!r}"))


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise PromptError(f"{where}: {shown(value)}; accepted: text")
    return whole(value, where)


def _number(fields: Mapping[str, Any], column: str) -> float:
    try:
        value = math.nan if isinstance(fields.get(column), bool) else float(fields.get(column))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise PromptError(f"column {column!r}: {shown(fields.get(column))}; accepted: a number")
    return value


def _probability(value: Any) -> float:
    """P(response_1 is better), a number or (in CSV) its text."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number <= 1:
        raise PromptError(
            f"column 'preference': {shown(value)}; accepted: a number from 0 to 1, P(response_1 is better)"
        )
    return number
