"""A pairwise preference set to hold judges against: labelled comparisons, and the verdicts that it comes with.

Legend: N comparisons.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from nashtune.errors import PromptError
from nashtune.judging.constraint_values import constraints_of, topic_of
from nashtune.judging.preference_rows import (
    CHOSEN,
    USUAL,
    Columns,
    Comparison,
    NotComparable,
    annotations_of,
    annotator_columns,
    answer_columns,
    code_of,
    comparison_of,
)
from nashtune.prompt_sources import Row, read_rows
from nashtune.prompt_values import shown
from nashtune.records import Prompt

SUBSETS = ("subset",)
RULES = ("constraints", "topic")


@dataclass(frozen=True, slots=True)
class Stored:
    """A column with a judge's verdicts and, where it was asked twice, one with those given when the answers stood the
    other way round; both speak of the data's first and second answer, not of the places shown."""

    column: str
    swapped: str | None = None

    @staticmethod
    def parse(text: str) -> Stored:
        """From "COLUMN" or "COLUMN,SWAPPED". Raises PromptError."""
        names = [name.strip() for name in text.split(",")]
        if not 1 <= len(names) <= 2 or not all(names):
            raise PromptError(f"--verdicts {text!r}; accepted: COLUMN, or COLUMN,COLUMN_SWAPPED")
        return Stored(*names)


@dataclass(frozen=True, slots=True)
class VerdictFile:
    """Verdicts in a file of their own, one row for each comparison and judge.

    ``key`` names the columns, the same here and in the data, that tell which comparison a row is about; ``judges`` those
    that tell whose it is."""

    source: str
    key: tuple[str, ...]
    judges: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Reading:
    """How a set is read: its columns, where they have no usual name, and the verdicts to take along."""

    columns: Columns = USUAL
    subset: str | None = None
    split: str = "train"
    limit: int | None = None
    stored: tuple[Stored, ...] = ()
    file: VerdictFile | None = None


Word = tuple[float | None, float | None]
"""P(the first answer is better) by one judge, shown the first answer first, and shown it second. None: not asked so; NaN:
asked, and no verdict."""


@dataclass(frozen=True, slots=True)
class LabelledPair:
    """One comparison, its place in the data, and what people and judges have said of it."""

    comparison: Comparison
    where: str
    subset: str | None
    annotations: tuple[float, ...]
    verdicts: dict[str, Word]
    turned: bool = False
    """Whether the answers stand here the other way round than in the data."""


@dataclass(slots=True)
class PairwiseSet:
    """What a source gave. ``left_out``: rows that hold no comparison, by reason."""

    pairs: list[LabelledPair] = field(default_factory=list)
    annotators: tuple[str, ...] = ()
    left_out: Counter[str] = field(default_factory=Counter)

    @property
    def judges(self) -> list[str]:
        """Names of the judges whose verdicts came with the data."""
        return list(dict.fromkeys(name for pair in self.pairs for name in pair.verdicts))


def read_pairwise(source: str, reading: Reading, seed: int = 0) -> PairwiseSet:
    """Every comparison of a file, folder or data set. Where the data's order tells the better one (chosen, rejected), an
    order is drawn by a hash of ``seed`` and the texts. Raises PromptError naming file, row and value of the first bad row."""
    found, at = PairwiseSet(), dict[tuple[str, ...], int]()
    for row in read_rows(source, reading.split, _wanted(reading)):
        if reading.limit is not None and len(found.pairs) == reading.limit:
            break
        try:
            pair = _pair(row, reading, seed)
        except NotComparable as reason:
            found.left_out[str(reason)] += 1
            continue
        if pair.comparison.first.text == pair.comparison.second.text:
            found.left_out["the same text twice"] += 1
            continue
        if reading.file is not None:
            _remember(at, row, reading.file.key, len(found.pairs))
        found.annotators = found.annotators or annotator_columns(row.fields, reading.columns)
        found.pairs.append(pair)
    if not found.pairs:
        left_out = ", ".join(f"{reason}: {count}" for reason, count in found.left_out.items()) or "it is empty"
        raise PromptError(f"{source}: no comparison of two answers in it ({left_out})")
    if reading.file is not None:
        _join(found, reading.file, reading, at)
    return found


def _wanted(reading: Reading) -> list[str]:
    named = [name for one in reading.stored for name in (one.column, one.swapped) if name] if not reading.file else []
    named += [*(reading.file.key if reading.file else ()), *([reading.subset] if reading.subset else [])]
    return list(dict.fromkeys((*reading.columns.wanted(), *SUBSETS, *RULES, *named)))


def _pair(row: Row, reading: Reading, seed: int) -> LabelledPair:
    comparison = comparison_of(row, reading.columns)
    fields, codes = row.fields, reading.columns.codes
    try:
        rules = {"constraints": constraints_of(fields.get("constraints")), "topic": topic_of(fields.get("topic"))}
        prompt = Prompt.make(comparison.prompt.messages, source=row.where, **rules)
        stored = () if reading.file else reading.stored
        pair = LabelledPair(
            Comparison(prompt, comparison.first, comparison.second, comparison.target),
            row.where,
            _subset(fields, reading.subset),
            annotations_of(fields, reading.columns),
            {one.column: _word(fields, one, codes) for one in stored},
        )
        chosen_first = answer_columns(fields, reading.columns) == CHOSEN
    except PromptError as error:
        raise PromptError(f"{row.where}: {error}") from None
    return _turned(pair) if chosen_first and comparison.turned(seed) else pair


def _subset(fields: Mapping[str, Any], column: str | None) -> str | None:
    name = column or next((name for name in SUBSETS if fields.get(name) is not None), None)
    if name is None:
        return None
    value = fields.get(name)
    if not isinstance(value, str | int) or isinstance(value, bool) or value == "":
        raise PromptError(f"column {name!r}: {shown(value)}; accepted: a name or a whole number")
    return str(value)


def _word(fields: Mapping[str, Any], stored: Stored, codes: Any) -> Word:
    """Raises PromptError for a column that is not there, or a value that is no code; null is no verdict."""
    for name in (stored.column, stored.swapped):
        if name is not None and name not in fields:
            present = ", ".join(map(repr, fields))
            raise PromptError(f"no column {name!r}; accepted: one of {present}")
    said = [
        math.nan if fields[name] is None else code_of(fields[name], name, codes)
        for name in (stored.column, stored.swapped)
        if name is not None
    ]
    return said[0], said[1] if len(said) == 2 else None


def _turned(pair: LabelledPair) -> LabelledPair:
    verdicts = {name: _turned_word(word) for name, word in pair.verdicts.items()}
    said = tuple(1 - value for value in pair.annotations)
    return replace(
        pair, comparison=pair.comparison.swapped(), annotations=said, verdicts=verdicts, turned=not pair.turned
    )


def _turned_word(word: Word) -> Word:
    """The same verdicts where the answers have changed places: who was shown first is now the second."""
    given, swapped = (None if said is None else 1 - said for said in word)
    return swapped, given


# ---- verdicts in a file of their own -----------------------------------------------------------------------------------------


def _key(row: Row, columns: Sequence[str]) -> tuple[str, ...]:
    if row.problem:
        raise PromptError(f"{row.where}: {row.problem}")
    if missing := [name for name in columns if row.fields.get(name) is None]:
        raise PromptError(f"{row.where}: column {missing[0]!r}: missing; accepted: a value (--key, --judges)")
    return tuple(str(row.fields[name]) for name in columns)


def _remember(at: dict[tuple[str, ...], int], row: Row, key: Sequence[str], place: int) -> None:
    if at.setdefault(_key(row, key), place) != place:
        raise PromptError(f"{row.where}: {dict(zip(key, _key(row, key), strict=True))} is there twice; accepted: once")


def _join(found: PairwiseSet, file: VerdictFile, reading: Reading, at: Mapping[tuple[str, ...], int]) -> None:
    """Give every comparison the verdicts that the file holds about it; those about others (a limit's) are counted."""
    if len(reading.stored) != 1:
        raise PromptError(f"--verdicts: {len(reading.stored)} given; accepted with --verdicts-file: one")
    stored = reading.stored[0]
    wanted = [*file.key, *file.judges, stored.column, *([stored.swapped] if stored.swapped else [])]
    for row in read_rows(file.source, reading.split, wanted):
        place = at.get(_key(row, file.key))
        name = "/".join(_key(row, file.judges)) if file.judges else stored.column
        if place is None:
            found.left_out["verdicts on rows that are not looked at"] += 1
            continue
        pair = found.pairs[place]
        if name in pair.verdicts:
            raise PromptError(f"{row.where}: a second verdict of {name} on {pair.where}; accepted: one (--judges)")
        try:
            word = _word(row.fields, stored, reading.columns.codes)
        except PromptError as error:
            raise PromptError(f"{row.where}: {error}") from None
        pair.verdicts[name] = _turned_word(word) if pair.turned else word
