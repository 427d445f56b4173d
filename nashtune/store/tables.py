"""Records as parquet rows. Flat fields are typed columns; nested ones are JSON text, so any reader can open the files."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Generic, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from nashtune.errors import StoreError
from nashtune.records import Constraint, Judgment, LogProb, Message, Pair, Prompt, Response, Usage
from nashtune.seeds import canonical_json
from nashtune.store.files import whole
from nashtune.store.objects import on_store, unit_of

Record = TypeVar("Record", Prompt, Response, Judgment, Pair, LogProb)

_TEXT, _INT, _REAL = pa.string(), pa.int32(), pa.float64()
SCHEMAS: dict[type, pa.Schema] = {
    Prompt: pa.schema(
        {"id": _TEXT, "messages": _TEXT, "teacher": _TEXT, "constraints": _TEXT, "topic": _TEXT, "source": _TEXT}
    ),
    Response: pa.schema(
        {"id": _TEXT, "prompt_id": _TEXT, "k": _INT, "source": _TEXT, "policy": _TEXT, "text": _TEXT}
        | {"token_ids": pa.list_(_INT), "finish": _TEXT, "defects": _TEXT, "logprobs": _TEXT}
    ),
    Judgment: pa.schema(
        dict.fromkeys(("prompt_id", "response_ids", "oracle", "outcome", "reason", "scores", "matrix"), _TEXT)
        | dict.fromkeys(("measures", "order", "raw", "model_requested", "model_returned", "usage"), _TEXT)
    ),
    Pair: pa.schema(
        {"id": _TEXT, "prompt_id": _TEXT, "chosen_id": _TEXT, "rejected_id": _TEXT, "kind": _TEXT}
        | dict.fromkeys(("r_chosen", "r_rejected", "score_chosen", "score_rejected"), _REAL)
        | {"iteration": _INT, "p_chosen": _REAL, "p_rejected": _REAL}
    ),
    LogProb: pa.schema({"response_id": _TEXT, "policy": _TEXT, "logprob": _REAL}),
}
_JSON_FIELDS = {
    Prompt: ("messages", "constraints"),
    Response: ("defects", "logprobs"),
    Judgment: ("response_ids", "scores", "matrix", "measures", "order", "usage"),
    Pair: (),
    LogProb: (),
}


class Encoder(Generic[Record]):
    """Writes a zstd parquet file in memory, ``row_group`` rows a group; holds only one group of records at a time."""

    def __init__(self, kind: type[Record], row_group: int = 1024):
        self._schema, self._json_fields, self._row_group = SCHEMAS[kind], _JSON_FIELDS[kind], row_group
        self._sink = io.BytesIO()
        self._writer = pq.ParquetWriter(self._sink, self._schema, compression="zstd")
        self._rows: list[dict[str, Any]] = []

    def add(self, record: Record) -> None:
        row = {name: getattr(record, name) for name in self._schema.names}
        for name in self._json_fields:
            row[name] = canonical_json(_plain(row[name]))
        self._rows.append(row)
        if len(self._rows) == self._row_group:
            self._flush()

    def finish(self) -> bytes:
        """The whole file; nothing can be added after this."""
        self._flush()
        self._writer.close()
        return self._sink.getvalue()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
            self._rows = []


def _plain(value: Any) -> Any:
    """Records inside a record as dictionaries. (``asdict`` of the whole would copy token by token.)"""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def encode(kind: type[Record], records: Iterable[Record], row_group: int = 1024) -> bytes:
    """A zstd parquet file of ``records``, ``row_group`` rows a group."""
    encoder = Encoder(kind, row_group)
    for record in records:
        encoder.add(record)
    return encoder.finish()


def read(kind: type[Record], path: Path, group: int | None = None) -> list[Record]:
    """All records of a file, or those of one row group. Raises StoreError naming the file."""
    try:
        with pq.ParquetFile(_source(path), metadata=None if group is None else _footer(path)) as file:
            table = file.read() if group is None else file.read_row_group(group)
    except FileNotFoundError:
        raise StoreError(f"{path}: missing") from None
    except pa.ArrowException as error:
        raise StoreError(f"{path}: damaged: {error}") from None
    return [_record(kind, row) for row in table.to_pylist()]


def read_unit(kind: type[Record], table: Path, index: int) -> list[Record]:
    """The rows of one work unit of a table: a row group of a file; or an object, in a folder of such on a store. Raises
    StoreError naming it."""
    return read(kind, unit_of(table, index)) if on_store(table) else read(kind, table, index)


def stream(kind: type[Record], paths: Iterable[Path]) -> Iterator[Record]:
    """Records of several files, one file in memory at a time."""
    for path in paths:
        yield from read(kind, path)


def shape(path: Path) -> tuple[int, int]:
    """Rows and row groups of a file. Raises StoreError naming the file."""
    try:
        found = pq.read_metadata(_source(path))
    except FileNotFoundError:
        raise StoreError(f"{path}: missing") from None
    except pa.ArrowException as error:
        raise StoreError(f"{path}: damaged: {error}") from None
    return found.num_rows, found.num_row_groups


def holds(kind: type[Record], path: Path) -> bool:
    """Whether a file has the columns of ``kind``. Raises StoreError naming the file."""
    try:
        return pq.read_schema(_source(path)).names == SCHEMAS[kind].names
    except pa.ArrowException as error:
        raise StoreError(f"{path}: damaged: {error}") from None


def _footer(path: Path) -> pq.FileMetaData | None:
    """The footer of a file that is read group by group: reading it anew for each would cost groups x groups. None: unread."""
    if on_store(path):
        return None
    found = path.stat()
    return _footer_of(path, found.st_ino, found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=4)
def _footer_of(path: Path, *_: int) -> pq.FileMetaData:
    return pq.read_metadata(path)


def _source(path: Path) -> Path | io.BytesIO:
    """What pyarrow reads. An object comes whole, in one request: units are read whole anyway."""
    return io.BytesIO(whole(path)) if on_store(path) else path


def _record(kind: type[Record], row: dict[str, Any]) -> Record:
    for name in _JSON_FIELDS[kind]:
        row[name] = json.loads(row[name])
    match kind.__name__:
        case "Prompt":
            row["messages"] = tuple(Message(**m) for m in row["messages"])
            row["constraints"] = tuple(Constraint(**c) for c in row["constraints"])
        case "Response":
            row["token_ids"], row["defects"] = tuple(row["token_ids"]), tuple(row["defects"])
        case "Judgment":
            row["response_ids"], row["order"] = tuple(row["response_ids"]), tuple(row["order"])
            row["scores"] = None if row["scores"] is None else tuple(row["scores"])
            row["matrix"] = None if row["matrix"] is None else tuple(map(tuple, row["matrix"]))
            row["measures"] = {name: tuple(values) for name, values in row["measures"].items()}
            row["usage"] = Usage(**row["usage"])
    return kind(**row)
