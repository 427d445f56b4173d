"""Prompts on disk, in buckets by a hash: what is too many for memory is put in order one bucket at a time.

A distribution sort: each prompt goes to the bucket of the leading bits of its place (the hash of seed and id that orders
prompts), so that reading bucket after bucket, each sorted by itself, gives all of them in order. Memory holds what was read
last, or one bucket.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nashtune.prompts import content_of, folded
from nashtune.records import Constraint, Message, Prompt
from nashtune.seeds import canonical_json, content_hash
from nashtune.store import tables

BITS = 7
"""Buckets are 2**BITS: each is held in memory once, and all of them have an open file."""
HELD_ROWS = 1 << 15
"""Most prompts in memory before they go to their buckets."""
HELD_CHARACTERS = 1 << 25
"""Most characters of messages in memory before that."""
ROWS = pa.schema(
    # place, id and the two halves of a hash of the words, then the columns of a prompt's table
    [(name, pa.uint64()) for name in ("place", "number", "words_high", "words_low")]
    + [field for field in tables.SCHEMAS[Prompt] if field.name != "id"]
)
KEY = np.dtype([("words_high", ">u8"), ("words_low", ">u8"), ("number", ">u8")])
OPTIONS = pa.ipc.IpcWriteOptions(compression="lz4")
Numbers = NDArray[np.uint64]


class Spill:
    """Prompts in any order in; in the order of hash(seed, id) out. ``fold``: of prompts that differ in white space alone only
    one stays. Files go below ``folder``, which must be empty."""

    def __init__(self, folder: Path, seed: int, *, fold: bool):
        self.rows = self.repeated = 0
        self._folder, self._seed, self._fold = folder, seed, fold
        self._held: list[tuple[Any, ...]] = []
        self._characters = 0
        folder.mkdir(parents=True)
        self._writers: list[Any] = []

    def add(self, prompt: Prompt) -> None:
        words = blake2b(folded(prompt).encode(), digest_size=16).digest()
        messages = canonical_json([{"content": m.content, "role": m.role} for m in prompt.messages])
        self._held.append(
            (
                int(content_hash(self._seed, prompt.id), 16),
                int(prompt.id, 16),
                int.from_bytes(words[:8]),
                int.from_bytes(words[8:]),
                messages,
                prompt.teacher,
                canonical_json([{"args": dict(c.args), "kind": c.kind} for c in prompt.constraints]),
                prompt.topic,
                prompt.source,
            )
        )
        self._characters += len(messages) + len(prompt.teacher or "")
        if len(self._held) == HELD_ROWS or self._characters > HELD_CHARACTERS:
            self._flush()

    def buckets(self) -> Iterator[pa.Table]:
        """Distinct prompts in order, a bucket at a time. Call it once; nothing can be added afterwards. ``repeated`` counts
        what was left out so far."""
        self._flush()
        for writer in self._writers:
            writer.close()
        self._find_repeated_words()
        for bucket in range(1 << BITS):
            if (file := self._folder / f"rows-{bucket:03d}").exists():
                yield self._distinct(self._read(file), self._folder / f"drop-{bucket:03d}")
                file.unlink()

    def _flush(self) -> None:
        if not self._held:
            return
        self.rows += len(self._held)
        columns = [
            pa.array(column, field.type) for column, field in zip(zip(*self._held, strict=True), ROWS, strict=True)
        ]
        self._held, self._characters = [], 0
        batch = pa.RecordBatch.from_arrays(columns, schema=ROWS)
        if not self._writers:
            files = (self._folder / f"rows-{bucket:03d}" for bucket in range(1 << BITS))
            self._writers = [pa.ipc.new_stream(file, ROWS, options=OPTIONS) for file in files]
        for bucket, chosen in _by_bucket(_numbers(batch, "place")):
            self._writers[bucket].write_batch(batch.take(pa.array(chosen)))
        if self._fold:
            self._append("words", _keys(batch), "words_high")

    def _append(self, name: str, keys: NDArray[Any], by: str) -> None:
        """Add fixed-size keys to the bucket files of that name."""
        for bucket, chosen in _by_bucket(keys[by].astype(np.uint64)):
            with (self._folder / f"{name}-{bucket:03d}").open("ab") as file:
                keys[chosen].tofile(file)

    def _find_repeated_words(self) -> None:
        """Of prompts with the same words the one with the smallest id stays; note the others, in the buckets they lie in."""
        for file in sorted(self._folder.glob("words-*")):
            keys = np.sort(np.fromfile(file, KEY), order=("words_high", "words_low", "number"))
            file.unlink()
            same = (keys["words_high"][1:] == keys["words_high"][:-1]) & (
                keys["words_low"][1:] == keys["words_low"][:-1]
            )
            start = np.concatenate([[0], np.flatnonzero(~same) + 1])
            first = np.repeat(keys["number"][start], np.diff([*start, len(keys)]))
            dropped = np.unique(keys["number"][keys["number"] != first])
            places = [int(content_hash(self._seed, name_of(number)), 16) for number in dropped.tolist()]
            found = np.array(list(zip(places, dropped.tolist(), strict=True)), [("place", ">u8"), ("number", ">u8")])
            self._append("drop", found, "place")

    def _read(self, file: Path) -> pa.Table:
        with pa.OSFile(str(file)) as source, pa.ipc.open_stream(source) as stream:
            return stream.read_all()

    def _distinct(self, table: pa.Table, drop: Path) -> pa.Table:
        """In order, without those noted, and each id once."""
        rows = table.num_rows
        if drop.exists():
            dropped = np.fromfile(drop, [("place", ">u8"), ("number", ">u8")])["number"].astype(np.uint64)
            table = table.filter(pa.array(~np.isin(_numbers(table, "number"), dropped)))
        numbers = _numbers(table, "number")
        order = np.lexsort((numbers, _numbers(table, "place")))  # stable: the same id in the order of reading
        numbers = numbers[order]
        same = np.concatenate([[False], numbers[1:] == numbers[:-1]]) if len(numbers) else np.zeros(0, bool)
        kept = order[~same]
        ends = np.concatenate([np.flatnonzero(~same)[1:], [len(order)]]) if len(order) else np.zeros(0, int)
        for place in np.flatnonzero(np.diff(ends, prepend=0) > 1):
            start = int(ends[place - 1]) if place else 0
            equal = order[start : ends[place]].tolist()
            kept[place] = min(equal, key=lambda row: content_of(prompt_at(table, int(row))))
        self.repeated += rows - len(kept)
        return table.take(pa.array(kept))


def prompt_at(table: pa.Table, row: int) -> Prompt:
    """The prompt in a row."""
    return prompt_of(table.slice(row, 1).to_pylist()[0])


def prompt_of(values: dict[str, Any]) -> Prompt:
    """The prompt of a row's values."""
    import json

    return Prompt(
        id=name_of(values["number"]),
        messages=tuple(Message(**message) for message in json.loads(values["messages"])),
        teacher=values["teacher"],
        constraints=tuple(Constraint(**c) for c in json.loads(values["constraints"])),
        topic=values["topic"],
        source=values["source"],
    )


def finished(table: pa.Table) -> pa.Table:
    """The columns of a prompt's table."""
    names = pa.array([name_of(number) for number in _numbers(table, "number").tolist()], pa.string())
    columns = [names if f.name == "id" else table[f.name] for f in tables.SCHEMAS[Prompt]]
    return pa.Table.from_arrays(columns, schema=tables.SCHEMAS[Prompt])


def words_in(table: pa.Table, others: pa.Table) -> NDArray[np.bool_]:
    """For each row, whether one of ``others`` has the same words, white space aside."""
    known = set(zip(_numbers(others, "words_high").tolist(), _numbers(others, "words_low").tolist(), strict=True))
    found = np.isin(_numbers(table, "words_high"), _numbers(others, "words_high"))
    for row in np.flatnonzero(found).tolist():
        found[row] = (table["words_high"][row].as_py(), table["words_low"][row].as_py()) in known
    return found


def name_of(number: int) -> str:
    """A prompt's id, as it is written."""
    return f"{number:016x}"


def _numbers(table: pa.Table | pa.RecordBatch, name: str) -> Numbers:
    return (
        table.column(name).to_numpy(zero_copy_only=False)
        if isinstance(table, pa.RecordBatch)
        else table[name].to_numpy()
    )


def _keys(batch: pa.RecordBatch) -> NDArray[Any]:
    keys = np.empty(batch.num_rows, KEY)
    for name in KEY.names or ():
        keys[name] = _numbers(batch, name)
    return keys


def _by_bucket(places: Numbers) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """(bucket, rows in it, in their order) of the leading bits."""
    buckets = (places >> np.uint64(64 - BITS)).astype(np.int64)
    order = np.argsort(buckets, kind="stable")
    edges = np.searchsorted(buckets[order], np.arange((1 << BITS) + 1))
    for bucket in range(1 << BITS):
        if edges[bucket] < edges[bucket + 1]:
            yield bucket, order[edges[bucket] : edges[bucket + 1]]
