"""From a prompt source to disjoint parts: read, check, deduplicate, hold out validation, split among iterations.

The result depends on the set of rows and the seed, never on the order of the rows: prompts are put in a seeded order
before anything is chosen among them.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from nashtune.errors import PromptError
from nashtune.judging.constraint_values import constraints_of, topic_of
from nashtune.prompt_dedupe import near_duplicates
from nashtune.prompt_overlap import OverlapIndex
from nashtune.prompt_sets import PROMPT_SETS
from nashtune.prompt_sources import BUILT_IN, Row, read_rows
from nashtune.prompt_values import messages_of, text_of
from nashtune.recipe import ContaminationSection, PromptsSection
from nashtune.records import Message, Prompt
from nashtune.seeds import canonical_json, content_hash, seed_for

PROMPT_COLUMNS = ("messages", "prompt", "instruction", "question", "text")
BAD_ROWS_SHOWN = 100

TokenCounter = Callable[[Sequence[Message]], int]


@dataclass(frozen=True, slots=True)
class PromptReport:
    """What became of the rows. ``bad_rows`` holds the first 100 as "file:line: reason"; all other figures are counts.

    ``overlap``: training prompts left out because validation has them. ``contaminated``: prompts that share words with an
    evaluation, left out or not as the recipe says; ``contaminated_by``: how many with each. ``unused``: good prompts that
    neither a part nor validation needed. ``parts``: prompts per iteration.
    """

    read: int
    bad: int
    bad_rows: tuple[str, ...]
    exact_duplicates: int
    near_duplicates: int
    overlap: int
    too_long: int
    unused: int
    validation: int
    parts: tuple[int, ...]
    contaminated: int = 0
    contaminated_by: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PromptSplit:
    """Disjoint prompts: one part per iteration, and the held-out ones."""

    parts: tuple[tuple[Prompt, ...], ...]
    validation: tuple[Prompt, ...]
    report: PromptReport


@dataclass(slots=True)
class Tally:
    """Counts of rows and prompts left out, and why."""

    counts: Counter[str] = field(default_factory=Counter)
    contaminated_by: Counter[str] = field(default_factory=Counter)
    bad_rows: list[str] = field(default_factory=list)

    def bad(self, line: str) -> None:
        self.counts["bad"] += 1
        if len(self.bad_rows) < BAD_ROWS_SHOWN:
            self.bad_rows.append(line)

    def __str__(self) -> str:
        c = self.counts
        first = f"; first bad row: {self.bad_rows[0]}" if self.bad_rows else ""
        return (
            f"rows read {c['read']}, bad {c['bad']}, exact duplicates {c['exact']}, near duplicates {c['near']}, "
            f"too long {c['too_long']}, also in validation {c['overlap']}, contaminated {c['contaminated']}{first}"
        )


def load_prompts(
    section: PromptsSection, iterations: int, seed: int, count_tokens: TokenCounter | None = None
) -> PromptSplit:
    """Load, deduplicate and split the prompts of a recipe.

    ``count_tokens`` gives a prompt's length in tokens after the chat template; None does not look at length. Prompts with
    the same messages are one prompt, whatever ``dedupe`` says. Raises PromptError for a source that cannot be read, for
    a bad row (strict), and where there are fewer prompts than asked for.
    """
    if section.dedupe.near == 0:
        raise PromptError("prompts.dedupe.near is 0, so all prompts would be alike; accepted: above 0 to 1, or null")
    tally = Tally()
    pool, held_out = _read(section, section.source, seed, tally)
    if section.validation.source is not None:
        others, reserved = _read(section, section.validation.source, seed, tally)
        held_out = reserved or others
    pool = _clean(_usable(pool, section, seed, count_tokens, tally), section, tally)
    count = section.validation.count
    if held_out or section.validation.source is not None:
        held_out = _distinct(_usable(held_out, section, seed, count_tokens, tally), section, tally)
        validation = held_out[:count]
        train = _distinct(_without(pool, validation, tally), section, tally, against=validation)
        spare = len(held_out) - len(validation)
    else:
        pool = _distinct(pool, section, tally)
        validation, spare = pool[:count], 0
        train = _without(pool[count:], validation, tally)
    need_held_out(count, len(validation), tally)
    parts = _divide(train, iterations, section.per_iteration, tally)
    sizes = tuple(len(part) for part in parts)
    report = report_of(tally, sizes, len(validation), len(train) - sum(sizes) + spare)
    return PromptSplit(parts, tuple(validation), report)


def report_of(tally: Tally, parts: tuple[int, ...], validation: int, unused: int) -> PromptReport:
    """What was tallied, with the sizes of what came out."""
    c = tally.counts
    return PromptReport(
        read=c["read"],
        bad=c["bad"],
        bad_rows=tuple(tally.bad_rows),
        exact_duplicates=c["exact"],
        near_duplicates=c["near"],
        overlap=c["overlap"],
        too_long=c["too_long"],
        unused=unused,
        validation=validation,
        parts=parts,
        contaminated=c["contaminated"],
        contaminated_by=dict(tally.contaminated_by),
    )


def read_prompts(section: PromptsSection) -> list[Prompt]:
    """A source's good prompts as they stand, undivided. Raises PromptError as ``load_prompts`` does."""
    pool, held_out = _read(section, section.source, 0, Tally())
    return [*pool, *held_out]


# ------------------------------------------------------------------------------------------------------ rows to prompts


def _read(section: PromptsSection, source: str, seed: int, tally: Tally) -> tuple[list[Prompt], list[Prompt]]:
    """(prompts, prompts that the source itself reserves for validation)."""
    if source.startswith(BUILT_IN):
        return _read_built_in(section, source.removeprefix(BUILT_IN), seed, tally)
    return list(good_prompts(section, source, tally)), []


def good_prompts(section: PromptsSection, source: str, tally: Tally) -> Iterator[Prompt]:
    """The prompts of a source's rows, one at a time. Raises PromptError for a bad row (strict)."""
    columns = (section.prompt_column,) if section.prompt_column else PROMPT_COLUMNS
    wanted = [*columns, *([section.teacher_column] if section.teacher_column else []), "constraints", "topic"]
    for row in read_rows(source, section.split, wanted):
        tally.counts["read"] += 1
        try:
            prompt = _prompt(row, section, columns)
        except PromptError as error:
            if section.on_bad_row == "strict":
                raise PromptError(f"{row.where}: {error}") from None
            tally.bad(f"{row.where}: {error}")
            continue
        yield prompt


def _read_built_in(section: PromptsSection, name: str, seed: int, tally: Tally) -> tuple[list[Prompt], list[Prompt]]:
    make = PROMPT_SETS.get(name)
    if make is None:
        accepted = ", ".join(BUILT_IN + known for known in PROMPT_SETS)
        raise PromptError(f"prompt source {BUILT_IN + name!r}: no such built-in set; accepted: {accepted}")
    for setting, value in (("prompt_column", section.prompt_column), ("teacher_column", section.teacher_column)):
        if value is not None:
            raise PromptError(f"prompts.{setting} is {value!r} but the built-in set {name!r} has no columns; remove it")
    pools: tuple[list[Prompt], list[Prompt]] = ([], [])
    for item in make(seed):
        tally.counts["read"] += 1
        prompt = item.prompt
        pools[item.held_out].append(
            Prompt.make(
                _with_system(prompt.messages, section.system),
                constraints=prompt.constraints,
                topic=prompt.topic,
                source=prompt.source,
            )
        )
    return pools


def _prompt(row: Row, section: PromptsSection, columns: Sequence[str]) -> Prompt:
    """The row's prompt; PromptError with the reason if it is bad."""
    if row.problem:
        raise PromptError(row.problem)
    column = next((c for c in columns if row.fields.get(c) is not None), None)
    if column is None:
        present = ", ".join(map(repr, row.fields)) or "none"
        raise PromptError(f"no prompt in its columns ({present}); accepted: {', '.join(columns)}")
    teacher = None
    if section.teacher_column:
        teacher = text_of(row.fields.get(section.teacher_column), f"teacher column {section.teacher_column!r}")
    return Prompt.make(
        _with_system(messages_of(row.fields[column], column), section.system),
        teacher=teacher,
        constraints=constraints_of(row.fields.get("constraints")),
        topic=topic_of(row.fields.get("topic")),
        source=row.where,
    )


def _with_system(messages: tuple[Message, ...], system: str | None) -> tuple[Message, ...]:
    if system is None or messages[0].role == "system":
        return messages
    return (Message("system", text_of(system, "prompts.system")), *messages)


# ------------------------------------------------------------------------------------------------ selection and division


def _usable(
    prompts: Sequence[Prompt], section: PromptsSection, seed: int, count_tokens: TokenCounter | None, tally: Tally
) -> list[Prompt]:
    """Distinct prompts that are short enough, in a seeded order in which each instruction is spread evenly."""
    groups: dict[str, Prompt] = {}
    for prompt in prompts:
        key = folded(prompt) if section.dedupe.exact else prompt.id
        other = groups.get(key)
        groups[key] = prompt if other is None else min(other, prompt, key=content_of)
    tally.counts["exact"] += len(prompts) - len(groups)
    short = list(groups.values())
    if count_tokens is not None:
        short = [p for p in short if count_tokens(p.messages) <= section.max_prompt_tokens]
    tally.counts["too_long"] += len(groups) - len(short)
    return _spread(short, seed)


def _spread(prompts: Sequence[Prompt], seed: int) -> list[Prompt]:
    """In the order of a hash of (seed, id), but with prompts of the same constraints at even distances, so that every part
    that is cut from it has its share of each instruction; where some were left to chance, win rates would vary with it."""
    groups: dict[str, list[Prompt]] = {}
    for prompt in sorted(prompts, key=lambda p: content_hash(seed, p.id)):
        groups.setdefault(_instruction(prompt), []).append(prompt)
    places: list[tuple[float, str, Prompt]] = []
    for name, group in groups.items():
        start = seed_for(seed, "spread", name) / 2**63  # in [0, 1)
        places += [((rank + start) / len(group), prompt.id, prompt) for rank, prompt in enumerate(group)]
    return [prompt for _, _, prompt in sorted(places, key=lambda place: place[:2])]


def _instruction(prompt: Prompt) -> str:
    return canonical_json([[c.kind, dict(c.args)] for c in prompt.constraints])


def folded(prompt: Prompt) -> str:
    """What prompts have in common that differ in white space alone."""
    return canonical_json([[m.role, " ".join(m.content.split())] for m in prompt.messages])


def content_of(prompt: Prompt) -> str:
    """Order among equal prompts: by content, so that the row that came first is not favoured."""
    return canonical_json([prompt.id, prompt.teacher, prompt.topic, _instruction(prompt)])


def _distinct(
    prompts: Sequence[Prompt], section: PromptsSection, tally: Tally, against: Sequence[Prompt] = ()
) -> list[Prompt]:
    """``prompts`` without near duplicates of earlier ones or of ``against``."""
    if section.dedupe.near is None:
        return list(prompts)
    texts = ["\n".join(m.content for m in p.messages if m.role != "system") for p in (*against, *prompts)]
    repeated = near_duplicates(texts, section.dedupe.near)[len(against) :]
    tally.counts["near"] += sum(repeated)
    return [p for p, drop in zip(prompts, repeated, strict=True) if not drop]


def _without(prompts: Sequence[Prompt], validation: Sequence[Prompt], tally: Tally) -> list[Prompt]:
    held_out = {folded(p) for p in validation}
    kept = [p for p in prompts if folded(p) not in held_out]
    tally.counts["overlap"] += len(prompts) - len(kept)
    return kept


def _clean(prompts: Sequence[Prompt], section: PromptsSection, tally: Tally) -> list[Prompt]:
    """``prompts`` without those that share words with an evaluation, where the recipe asks for it."""
    if (settings := section.contamination) is None:
        return list(prompts)
    index = overlap_index(settings)
    return [prompt for prompt in prompts if is_clean(prompt, index, settings, tally)]


def is_clean(prompt: Prompt, index: OverlapIndex, settings: ContaminationSection, tally: Tally) -> bool:
    """Whether a prompt stays, as far as evaluations are concerned; one that shares words with them is counted."""
    found = index.overlap(user_text(prompt))
    if found is not None:
        tally.counts["contaminated"] += 1
        tally.contaminated_by.update(found.sets)
    return found is None or not settings.drop


def overlap_index(settings: ContaminationSection) -> OverlapIndex:
    """The words of the evaluations' prompts. Raises PromptError naming the source and row that cannot be read."""
    return OverlapIndex({source: list(_texts(source)) for source in settings.against}, settings.words)


def _texts(source: str) -> Iterator[str]:
    for row in read_rows(source, "train", [*PROMPT_COLUMNS, "turns"]):
        if isinstance(turns := row.fields.get("turns"), list):  # MT-Bench asks twice
            yield from (text_of(turn, f"{row.where}: turns") for turn in turns)
            continue
        try:
            yield user_text(_prompt(row, PromptsSection(source=source), PROMPT_COLUMNS))
        except PromptError as error:
            raise PromptError(f"{row.where}: {error}") from None


def user_text(prompt: Prompt) -> str:
    """All that a prompt's user says."""
    return "\n".join(message.content for message in prompt.messages if message.role == "user")


def _divide(
    train: Sequence[Prompt], iterations: int, per_iteration: int | None, tally: Tally
) -> tuple[tuple[Prompt, ...], ...]:
    """Parts of ``per_iteration``, or all prompts in parts whose sizes differ by one at most."""
    need_training(iterations, per_iteration, len(train), tally)
    if per_iteration is not None:
        return tuple(tuple(train[t * per_iteration : (t + 1) * per_iteration]) for t in range(iterations))
    edges = [len(train) * t // iterations for t in range(iterations + 1)]
    return tuple(tuple(train[a:b]) for a, b in itertools.pairwise(edges))


def need_held_out(count: int, found: int, tally: Tally) -> None:
    """Raises PromptError where fewer than ``count`` prompts are there to be held out."""
    if found < count:
        raise PromptError(f"prompts.validation.count is {count} but {found} prompts are there ({tally})")


def need_training(iterations: int, per_iteration: int | None, found: int, tally: Tally) -> None:
    """Raises PromptError where there are fewer prompts to train on than asked for."""
    asked = (per_iteration or 1) * iterations
    if found < asked:
        what = f"{iterations} iterations with prompts.per_iteration {per_iteration or 'unset (at least 1)'}"
        raise PromptError(f"{what} need {asked} training prompts but {found} are there ({tally})")
