"""How many prompts a run works on, and some of them to measure."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nashtune.errors import PromptError
from nashtune.planning.lengths import Lengths, filler_text
from nashtune.prompt_stream import stream_prompts
from nashtune.prompts import PromptReport, TokenCounter, load_prompts
from nashtune.recipe import Recipe
from nashtune.records import Message, Prompt
from nashtune.store import tables
from nashtune.store.files import write_json

MOST_READ = 20_000
"""Prompts of a part that are held in memory, where it was written by an earlier run or by streaming."""
MEASURED_PROMPTS = 32
"""Prompts that are rendered for the judge, spread over the part."""
UNSEEN_PROMPT_CHARACTERS = 800
"""Length assumed of prompts that cannot be read here."""
HUB_NAME = re.compile(r"[\w.-]+/[\w-]+")


@dataclass(frozen=True, slots=True)
class Work:
    """Prompts per iteration t = 1..T, held-out prompts, and a sample of both. ``how``: where the figures come from.
    ``first``: the prompts of iteration 1, where they were read, or the first MOST_READ of them."""

    parts: tuple[int, ...]
    validation: int
    sample: tuple[Prompt, ...]
    validation_sample: tuple[Prompt, ...]
    how: str
    first: tuple[Prompt, ...] = ()


def read_work(recipe: Recipe, run_folder: Path, lengths: Lengths, prompts: int | None = None) -> Work:
    """The run's own parts where it has begun; else the recipe's source, read, deduplicated and split as the run will.
    ``prompts``: as many in all as that, whatever there are; a data set of a hub is not fetched for a plan then.

    Raises PromptError, naming prompts.source where it is a data set that this machine cannot reach and
    prompts.per_iteration does not say how many prompts there would be.
    """
    if prompts is not None:
        return _resized(recipe, run_folder, lengths, prompts)
    begun = _begun(run_folder / "prompts", recipe.iterations)
    if begun is not None:
        return begun
    count = None if lengths.tokenizer is None else lengths.messages
    try:
        if recipe.prompts.streaming:
            return _streamed(recipe, count)
        split = load_prompts(recipe.prompts, recipe.iterations, recipe.seed, count)
    except PromptError as error:
        if not _is_out_of_reach(recipe.prompts.source):
            raise
        return _unseen(recipe, error)
    how = _as_read(recipe, split.report, count is not None)
    train = [prompt for part in split.parts for prompt in part]
    sizes = tuple(len(part) for part in split.parts)
    held = split.validation
    return Work(sizes, len(held), _spread(train), _spread(held), how, split.parts[0])


def _resized(recipe: Recipe, run_folder: Path, lengths: Lengths, prompts: int) -> Work:
    """In equal parts for the iterations; their texts are those at hand."""
    section = recipe.prompts
    if _is_out_of_reach(section.source):
        found = _stand_in(f"prompts.source {section.source} is not fetched for a plan", section.validation.count)
    else:
        # Fewer than prompts.per_iteration are no reason against a plan for more of their kind.
        whole = recipe.model_copy(update={"prompts": section.model_copy(update={"per_iteration": None})})
        found = read_work(whole, run_folder, lengths)
    each, rest = divmod(prompts, recipe.iterations)
    parts = tuple(each + (n < rest) for n in range(recipe.iterations))
    return replace(
        found, parts=parts, how=f"{prompts:,} prompts in {recipe.iterations} parts as --prompts says; {found.how}"
    )


def _as_read(recipe: Recipe, report: PromptReport, measured: bool) -> str:
    dropped = report.exact_duplicates + report.near_duplicates
    read = f"{report.read} rows, {dropped} duplicates and {report.too_long} too long left out"
    return f"prompts read from {recipe.prompts.source}: {read}{'' if measured else ' (length not looked at)'}"


def _streamed(recipe: Recipe, count: TokenCounter | None) -> Work:
    """Split on disk, in a folder that is thrown away."""
    with tempfile.TemporaryDirectory(prefix="nashtune-prompts-") as place:
        folder = Path(place)
        report = stream_prompts(
            recipe.prompts, recipe.iterations, recipe.seed, folder, recipe.sampling.unit_prompts, count
        )
        write_json(folder / "report.json", {})
        found = _begun(folder, recipe.iterations)
    assert found is not None
    return replace(found, how=_as_read(recipe, report, count is not None))


def _begun(folder: Path, iterations: int) -> Work | None:
    files = [folder / f"part-{t}.parquet" for t in range(1, iterations + 1)]
    held_out = folder / "validation.parquet"
    if not all(file.exists() for file in (*files, held_out, folder / "report.json")):
        return None
    sizes = tuple(tables.shape(file)[0] for file in files)
    first, held = _first(files[0]), tuple(tables.read(Prompt, held_out))
    how = f"prompts as this run split them ({folder})"
    return Work(sizes, len(held), _spread(first), _spread(held), how, first)


def _first(file: Path) -> tuple[Prompt, ...]:
    """All prompts of a part, or as many units as hold MOST_READ: they are in random order, so the first ones will do."""
    read: list[Prompt] = []
    for group in range(tables.shape(file)[1]):
        if len(read) >= MOST_READ:
            break
        read += tables.read(Prompt, file, group)
    return tuple(read)


def _is_out_of_reach(source: str) -> bool:
    """Whether a source that could not be read is the name of a data set rather than of something on this machine."""
    return HUB_NAME.fullmatch(source) is not None and not Path(source).exists()


def _unseen(recipe: Recipe, error: PromptError) -> Work:
    section = recipe.prompts
    if section.per_iteration is None:
        raise PromptError(
            f"prompts.source: {section.source!r} cannot be read on this machine, and prompts.per_iteration does not say how "
            f"many prompts there are; accepted: a source that can be read, or `prompts.per_iteration=N` ({error})"
        ) from None
    how = f"prompts.source {section.source} cannot be read here: prompts.per_iteration as given"
    return replace(_stand_in(how, section.validation.count), parts=(section.per_iteration,) * recipe.iterations)


def _stand_in(how: str, validation: int) -> Work:
    """Of prompts that nobody has seen."""
    one = Prompt.make((Message("user", filler_text(UNSEEN_PROMPT_CHARACTERS)),))
    return Work((), validation, (one,), (one,), f"{how}, {UNSEEN_PROMPT_CHARACTERS} characters each assumed")


def _spread(prompts: Sequence[Prompt]) -> tuple[Prompt, ...]:
    step = max(1, len(prompts) // MEASURED_PROMPTS)
    return tuple(prompts[::step][:MEASURED_PROMPTS])
