"""Comparisons to learn a judge from: judgments that a run has paid for, and preference data sets."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, get_args

import pyarrow.parquet as pq

from nashtune.errors import OracleError, PromptError
from nashtune.prompt_sources import READERS, Row
from nashtune.prompt_values import shown, whole
from nashtune.records import Judgment, Message, Prompt, Response, Role
from nashtune.run import Run
from nashtune.seeds import content_hash, seed_for
from nashtune.store import tables

COLUMNS = ("prompt", "chosen", "rejected", "response_1", "response_2", "preference")
FILES = (".jsonl", ".parquet", ".csv")
ACCEPTED = (
    f"a run folder, or a {', '.join(FILES)} file with the columns prompt, chosen, rejected or prompt, response_1, \
response_2, preference"
)


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer's text and whether it ended by itself."""

    text: str
    finished: bool = True


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two answers to one prompt and ``target`` = P(first is better) in [0, 1]."""

    prompt: Prompt
    first: Answer
    second: Answer
    target: float

    @property
    def group(self) -> str:
        """The same for prompts that differ in white space and case alone: they are held out together or not at all."""
        return content_hash([[m.role, " ".join(m.content.casefold().split())] for m in self.prompt.messages])

    def shown(self, seed: int) -> Comparison:
        """In an order that a hash of the seed and the texts draws, so that no source's own order tells the better."""
        # Sorted texts, so that the order drawn is the same whichever answer the source put first.
        draw = seed_for(seed, "shown", self.prompt.id, sorted((self.first.text, self.second.text))) % 2
        return self if (self.first.text < self.second.text) == bool(draw) else self.swapped()

    def swapped(self) -> Comparison:
        return Comparison(self.prompt, self.second, self.first, 1 - self.target)


@dataclass(slots=True)
class Found:
    """What the sources gave, and how many rows or verdicts were left out, by reason."""

    comparisons: list[Comparison] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    seen: set[str] = field(default_factory=set)

    def add(self, comparison: Comparison) -> None:
        """Keep a comparison unless it says nothing or was seen with the same verdict."""
        key = content_hash(comparison.prompt.id, comparison.first.text, comparison.second.text, comparison.target)
        if comparison.first.text == comparison.second.text:
            self.left_out["the same text twice"] += 1
        elif key in self.seen:
            self.left_out["repeated"] += 1
        else:
            self.seen.add(key)
            self.comparisons.append(comparison)


def read_comparisons(sources: Sequence[str]) -> Found:
    """All comparisons of the sources, each a run folder or a preference data set file.

    Raises PromptError naming file, line and value of the first bad row, OracleError for a source that cannot be read at
    all or that holds no comparison.
    """
    if not sources:
        raise OracleError(f"--from: no source given; accepted: {ACCEPTED}")
    found = Found()
    for source in sources:
        path, before = Path(source).expanduser(), len(found.comparisons)
        if (path / "recipe.yaml").is_file():
            _read_run(Run.read(path), found)
        elif path.is_file() and path.suffix in FILES:
            for row in READERS[path.suffix](path, COLUMNS):
                found.add(_comparison(row))
        else:
            problem = "is no run folder (it has no recipe.yaml)" if path.is_dir() else "cannot be read"
            raise OracleError(f"--from {source!r}: {problem}; accepted: {ACCEPTED}")
        if len(found.comparisons) == before:
            left_out = ", ".join(f"{reason}: {count}" for reason, count in found.left_out.items()) or "it is empty"
            raise OracleError(
                f"--from {source!r}: no comparison of two answers in it ({left_out}); accepted: {ACCEPTED}"
            )
    return found


# ---- a run folder --------------------------------------------------------------------------------------------------------


def _read_run(run: Run, found: Found) -> None:
    """Verdicts of the training iterations; those on validation prompts stay out, so that validation stays unseen."""
    prompts = {p.id: p for p in tables.stream(Prompt, sorted(run.folder.glob("prompts/part-*.parquet")))}
    for folder in sorted(run.folder.glob("iteration-*")):
        units = sorted((folder / "judge").glob("*.parquet"))
        wanted = {name for judgment in tables.stream(Judgment, units) for name in judgment.response_ids}
        answers = {r.id: Answer(r.text, r.finish != "length") for r in _responses(folder) if r.id in wanted}
        for judgment in tables.stream(Judgment, units):
            _add_judgment(judgment, prompts, answers, found)


def _responses(folder: Path) -> Iterator[Response]:
    """All answers that an iteration's stages committed, one file in memory at a time."""
    names = tables.SCHEMAS[Response].names
    return tables.stream(Response, [f for f in sorted(folder.glob("*/*.parquet")) if pq.read_schema(f).names == names])


def _add_judgment(
    judgment: Judgment, prompts: Mapping[str, Prompt], answers: Mapping[str, Answer], found: Found
) -> None:
    if judgment.outcome != "ok":
        found.left_out["unusable judgments"] += 1
        return
    if judgment.prompt_id not in prompts or not set(judgment.response_ids) <= answers.keys():
        found.left_out["judgments whose prompt or answers are gone"] += 1
        return
    for i, j in combinations(range(len(judgment.response_ids)), 2):
        preference = judgment.preference(i, j)
        if preference is None:
            found.left_out["no verdict"] += 1
            continue
        first, second = answers[judgment.response_ids[i]], answers[judgment.response_ids[j]]
        found.add(Comparison(prompts[judgment.prompt_id], first, second, preference))


# ---- a preference data set -----------------------------------------------------------------------------------------------


def _comparison(row: Row) -> Comparison:
    """Raises PromptError naming the row's place."""
    if row.problem:
        raise PromptError(f"{row.where}: {row.problem}")
    try:
        messages = _messages(row.fields.get("prompt"))
        prompt = Prompt.make(messages, source=row.where)
        if row.fields.get("chosen") is not None or row.fields.get("rejected") is not None:
            return Comparison(prompt, _answer(row.fields, "chosen"), _answer(row.fields, "rejected"), 1.0)
        if row.fields.get("response_1") is None and row.fields.get("response_2") is None:
            columns = ", ".join(repr(name) for name, value in row.fields.items() if value is not None)
            raise PromptError(
                f"columns {columns}; accepted: chosen and rejected, or response_1, response_2, preference"
            )
        target = _probability(row.fields.get("preference"))
        return Comparison(prompt, _answer(row.fields, "response_1"), _answer(row.fields, "response_2"), target)
    except PromptError as error:
        raise PromptError(f"{row.where}: {error}") from None


def _messages(value: Any) -> tuple[Message, ...]:
    """A string, or chat messages that end with the user's (in CSV: their JSON)."""
    if isinstance(value, str) and value.lstrip().startswith('[{"'):
        with suppress(ValueError, RecursionError):  # else it is a prompt that only looks like JSON
            value = json.loads(value)
    if isinstance(value, str):
        return (Message("user", _text(value, "column 'prompt'")),)
    accepted = "a string, or a list of {role, content} that ends with the user's"
    if not isinstance(value, list) or not value:
        raise PromptError(f"column 'prompt': {shown(value)}; accepted: {accepted}")
    messages = []
    for item in value:
        if not isinstance(item, dict) or item.get("role") not in get_args(Role):
            raise PromptError(
                f"column 'prompt': {shown(item)}; accepted: {accepted}, roles {', '.join(get_args(Role))}"
            )
        messages.append(Message(item["role"], _text(item.get("content"), "column 'prompt', content")))
    if messages[-1].role != "user":
        raise PromptError(f"column 'prompt': the last message is the {messages[-1].role}'s; accepted: {accepted}")
    return tuple(messages)


def _answer(fields: Mapping[str, Any], column: str) -> Answer:
    value = fields.get(column)
    if not isinstance(value, str):
        raise PromptError(f"column {column!r}: {shown(value)}; accepted: a string")
    return Answer(whole(value, f"column {column!r}"))


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise PromptError(f"{where}: {shown(value)}; accepted: text")
    return whole(value, where)


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
