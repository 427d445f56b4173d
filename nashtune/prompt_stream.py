"""As ``load_prompts``, for more prompts than memory holds: the same prompts in the same order, written part by part.

Three passes over the disk: rows are read one at a time and distributed into buckets (``prompt_spill``); repeated ones are
found by hashes alone; the buckets, one at a time in order, are cut into validation, which has the smallest hashes, and the
iterations' parts. As everything is decided by hashes of seed and content, neither the order of the rows nor an interruption
changes the result.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nashtune.errors import PromptError
from nashtune.prompt_spill import OPTIONS, ROWS, Spill, finished, prompt_of, words_in
from nashtune.prompts import (
    PromptReport,
    Tally,
    TokenCounter,
    good_prompts,
    is_clean,
    need_held_out,
    need_training,
    overlap_index,
    report_of,
)
from nashtune.recipe import PromptsSection
from nashtune.records import Prompt
from nashtune.store.tables import SCHEMAS

SPILL = ".spill"
"""Folder of what is being sorted, inside the folder of the prompts."""
VALIDATION = "validation"
MOST_UNITS = 100_000
"""Work units of a part: its table of them is read with each unit (about 500 bytes and 3 microseconds a unit)."""
BATCH = 4096
"""Prompts looked at together where their text is read."""


def stream_prompts(
    section: PromptsSection,
    iterations: int,
    seed: int,
    folder: Path,
    unit_prompts: int,
    count_tokens: TokenCounter | None = None,
) -> PromptReport:
    """Write ``folder``/validation.parquet and part-1.parquet to part-T.parquet, ``unit_prompts`` rows a group; files that are
    there stay as they are.

    Prompts, their order and the report are those of ``load_prompts``, but that prompts with verifiable instructions are not
    spread evenly: chance decides each part's share. Near duplicates are not looked for, and the recipe has to say so. Raises
    PromptError as ``load_prompts`` does, and nothing is written then.
    """
    _refuse_what_is_read_whole(section)
    _refuse_small_units(section.per_iteration or 0, unit_prompts)
    spill = folder / SPILL
    shutil.rmtree(spill, ignore_errors=True)  # an interrupted attempt's
    try:
        return _split(section, iterations, seed, folder, unit_prompts, count_tokens)
    finally:
        shutil.rmtree(spill, ignore_errors=True)


def _refuse_what_is_read_whole(section: PromptsSection) -> None:
    for source in filter(None, (section.source, section.validation.source)):
        path = Path(source)
        inside = path.rglob("*.json") if path.is_dir() else ()
        whole = [path] if path.suffix == ".json" else [f for f in inside if f.parent == path or f.is_file()]
        if whole and not (path / "dataset_info.json").is_file() and not (path / "dataset_dict.json").is_file():
            raise PromptError(
                f"{whole[0]}: prompts.streaming reads a row at a time, and a .json list has to be read whole; "
                "accepted: .jsonl, .parquet, .csv, .txt"
            )


def _refuse_small_units(prompts: int, unit_prompts: int) -> None:
    if prompts > MOST_UNITS * unit_prompts:
        raise PromptError(
            f"sampling.unit_prompts is {unit_prompts}, and a part of {prompts} prompts would have more than {MOST_UNITS} work "
            f"units; accepted: {-(-prompts // MOST_UNITS)} or more (`nashtune plan --calibrate` advises a size)"
        )


def _split(
    section: PromptsSection,
    iterations: int,
    seed: int,
    folder: Path,
    unit_prompts: int,
    count_tokens: TokenCounter | None,
) -> PromptReport:
    tally, spill = Tally(), folder / SPILL
    select = _Selection(section, tally, count_tokens)
    count, spare = section.validation.count, 0
    pool = _distribute(section, section.source, spill / "pool", seed, tally)
    validation = ROWS.empty_table()
    if section.validation.source is not None:
        others = _distribute(section, section.validation.source, spill / "held-out", seed, tally)
        for table in select.short(others):
            missing = count - validation.num_rows
            validation = _with_first(validation, table, missing)
            spare += max(0, table.num_rows - missing)
        need_held_out(count, validation.num_rows, tally)
    remaining = select.clean(pool)
    train = _Training(remaining, validation, count, select, spill / "train")
    with ExitStack() as stack:
        out = _Parts(folder, unit_prompts, stack)
        if section.per_iteration is None:
            total = train.keep()
            need_held_out(count, train.validation.num_rows, tally)
            need_training(iterations, None, total, tally)
            edges = [total * t // iterations for t in range(iterations + 1)]
            sizes = tuple(end - start for start, end in pairwise(edges))
            _refuse_small_units(max(sizes), unit_prompts)
            unused = out.write(train.kept(), sizes)
        else:
            sizes = (section.per_iteration,) * iterations
            unused = out.write(train.tables(), sizes)
            need_held_out(count, train.validation.num_rows, tally)
            need_training(iterations, section.per_iteration, sum(sizes) - out.wanting + unused, tally)
        out.write_validation(train.validation)
        out.publish()
    return report_of(tally, sizes, count, unused + spare)


def _distribute(section: PromptsSection, source: str, folder: Path, seed: int, tally: Tally) -> Spill:
    spill = Spill(folder, seed, fold=section.dedupe.exact)
    for prompt in good_prompts(section, source, tally):
        spill.add(prompt)
    return spill


class _Selection:
    """Which prompts stay, a bucket at a time; what does not is tallied."""

    def __init__(self, section: PromptsSection, tally: Tally, count_tokens: TokenCounter | None):
        self.tally = tally
        self._longest, self._count = section.max_prompt_tokens, count_tokens
        self._evaluations = section.contamination
        self._index = overlap_index(section.contamination) if section.contamination else None

    def short(self, spill: Spill) -> Iterator[pa.Table]:
        """Distinct prompts that are short enough, in order."""
        before = 0
        for table in spill.buckets():
            self.tally.counts["exact"] += spill.repeated - before
            before = spill.repeated
            if self._count is None:
                yield table
                continue
            count = self._count
            fits = [count(prompt.messages) <= self._longest for prompt in prompts_in(table)]
            self.tally.counts["too_long"] += len(fits) - sum(fits)
            yield table.filter(pa.array(fits, pa.bool_()))

    def clean(self, spill: Spill) -> Iterator[pa.Table]:
        """Of those, the ones that share no words with evaluations, where that is asked for."""
        for table in self.short(spill):
            if self._index is None or self._evaluations is None:
                yield table
                continue
            index, settings = self._index, self._evaluations
            stay = [is_clean(prompt, index, settings, self.tally) for prompt in prompts_in(table)]
            yield table.filter(pa.array(stay, pa.bool_()))


class _Training:
    """What is left for training once ``validation`` has ``count`` prompts: the first ones, unless they are there already."""

    def __init__(self, tables: Iterator[pa.Table], validation: pa.Table, count: int, select: _Selection, file: Path):
        self.validation = validation
        self._tables, self._count, self._tally, self._file = tables, count, select.tally, file

    def tables(self) -> Iterator[pa.Table]:
        for table in self._tables:
            wanting = self._count - self.validation.num_rows
            self.validation = _with_first(self.validation, table, wanting)
            rest = table.slice(wanting)
            held_out = words_in(rest, self.validation)
            self._tally.counts["overlap"] += int(held_out.sum())
            yield rest.filter(pa.array(~held_out)) if held_out.any() else rest

    def keep(self) -> int:
        """Put them all on disk, in order, and say how many they are."""
        total = 0
        with pa.ipc.new_stream(self._file, ROWS, options=OPTIONS) as writer:
            for table in self.tables():
                writer.write_table(table)
                total += table.num_rows
        return total

    def kept(self) -> Iterator[pa.Table]:
        """What ``keep`` put there."""
        with pa.OSFile(str(self._file)) as source, pa.ipc.open_stream(source) as stream:
            for batch in stream:
                yield pa.Table.from_batches([batch])


def _with_first(table: pa.Table, more: pa.Table, count: int) -> pa.Table:
    """``table`` and copies of the first ``count`` rows of ``more``: a slice, be it empty, would keep all of it in memory."""
    count = min(count, more.num_rows)
    return pa.concat_tables([table, more.take(pa.array(np.arange(count)))]) if count else table


def prompts_in(table: pa.Table) -> Iterator[Prompt]:
    """The prompts of a table, some in memory at a time."""
    for batch in table.to_batches(BATCH):
        yield from map(prompt_of, batch.to_pylist())


class _Parts:
    """The files of the parts, under temporary names until all of them are whole."""

    def __init__(self, folder: Path, unit_prompts: int, stack: ExitStack):
        self.wanting = 0
        self._folder, self._unit, self._stack = folder, unit_prompts, stack
        self._begun: dict[Path, Path] = {}

    def write(self, tables: Iterator[pa.Table], sizes: Sequence[int]) -> int:
        """Cut the tables into parts of these sizes; returns how many prompts none of them needed. ``wanting``: how many more
        they could have held."""
        left = dict(enumerate(sizes, 1))
        files = {t: self._file(f"part-{t}") for t in left}
        spare = 0
        for table in tables:
            for t in left:
                taken = table.slice(0, left[t])
                table = table.slice(taken.num_rows)
                left[t] -= taken.num_rows
                files[t].add(taken)
                if not left[t]:
                    files[t].close()
            spare += table.num_rows
        self.wanting = sum(left.values())
        return spare

    def write_validation(self, table: pa.Table) -> None:
        file = self._file(VALIDATION)
        file.add(table)
        file.close()

    def publish(self) -> None:
        """Give the files their names, those that had none yet."""
        for partial, target in self._begun.items():
            if not target.exists():
                partial.replace(target)

    def _file(self, name: str) -> _GroupedFile:
        partial = self._folder / f".{name}.{uuid.uuid4().hex}.partial"
        self._begun[partial] = self._folder / f"{name}.parquet"
        self._stack.callback(partial.unlink, missing_ok=True)
        return self._stack.enter_context(_GroupedFile(partial, self._unit))


class _GroupedFile:
    """A parquet file of prompts whose row groups all have ``size`` rows, but for the last."""

    def __init__(self, path: Path, size: int):
        self._path, self._size = path, size
        self._writer = pq.ParquetWriter(path, SCHEMAS[Prompt], compression="zstd")
        self._waiting = ROWS.empty_table()

    def __enter__(self) -> _GroupedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def add(self, table: pa.Table) -> None:
        if not table.num_rows:
            return
        together = pa.concat_tables([self._waiting, table])
        whole = together.num_rows - together.num_rows % self._size
        if whole:
            self._writer.write_table(finished(together.slice(0, whole)), row_group_size=self._size)
        # copied, so that a few rows do not keep a bucket in memory
        self._waiting = together.slice(whole).take(pa.array(np.arange(together.num_rows - whole)))

    def close(self) -> None:
        """Write what is left, down to the disk."""
        if not self._writer.is_open:
            return
        if self._waiting.num_rows:
            self._writer.write_table(finished(self._waiting))
            self._waiting = ROWS.empty_table()
        self._writer.close()
        with self._path.open("rb") as file:
            os.fsync(file.fileno())
