"""Readers: every kind of prompt source as one stream of rows, each with its place ("file:line") for error messages."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nashtune.errors import PromptError

READ_ROWS = 1024  # rows of a parquet row group held as Python values at a time
BUILT_IN = "nashtune:"


@dataclass(frozen=True, slots=True)
class Row:
    """One row as found: its ``fields``, or the ``problem`` that kept it from being read."""

    where: str
    fields: Mapping[str, Any]
    problem: str = ""


def read_rows(source: str, split: str, columns: Sequence[str]) -> Iterator[Row]:
    """Stream the rows of a file, a folder, a saved data set or a Hugging Face data set (``split`` is for the last two).

    Of columnar formats only ``columns`` are read. Raises PromptError where the source as a whole cannot be read; a
    single unreadable row is a Row with a problem.
    """
    path = Path(source)
    if path.is_dir() and ((path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file()):
        return _saved_data_set(path, split, columns)
    if path.is_dir():
        return _folder(path, columns)
    if path.is_file():
        return _file(path, columns)
    if path.suffix not in READERS and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source):
        return _hub_data_set(source, split, columns)
    raise PromptError(f"prompt source {source!r}: no such file or folder; accepted: {ACCEPTED}")


def _file(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    reader = READERS.get(path.suffix)
    if reader is None:
        raise PromptError(f"{path}: cannot read files of kind {path.suffix!r}; accepted: {ACCEPTED}")
    try:
        yield from reader(path, columns)
    except OSError as error:
        raise PromptError(f"{path}: cannot be read: {error}") from None


def _folder(folder: Path, columns: Sequence[str]) -> Iterator[Row]:
    """All files of known kinds below the folder, in the order of their paths; hidden ones are passed over."""
    inside = sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix in READERS)
    files = [p for p in inside if not any(part.startswith((".", "_")) for part in p.relative_to(folder).parts)]
    if not files:
        raise PromptError(f"{folder}: no prompt files in this folder; accepted: {ACCEPTED}")
    for path in files:
        yield from _file(path, columns)


def _lines(path: Path) -> Iterator[tuple[str, str | None]]:
    """(place, text) of each line that is not blank; text None where it is not UTF-8. Only \\n ends a line."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                yield f"{path}:{number}", None
                continue
            if line.strip():
                yield f"{path}:{number}", line


def _jsonl(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    for where, line in _lines(path):
        if line is None:
            yield Row(where, {}, NOT_UTF8)
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield Row(where, {}, f"not valid JSON ({error}); accepted: one JSON object per line")
            continue
        yield _object_row(where, value)


def _json(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise PromptError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(values, list):
        raise PromptError(f"{path}: found {type(values).__name__} at the top; accepted: a list of objects")
    for number, value in enumerate(values, 1):
        yield _object_row(f"{path}:row {number}", value)


def _object_row(where: str, value: Any) -> Row:
    if isinstance(value, dict):
        return Row(where, value)
    return Row(where, {}, f"found {type(value).__name__} {str(value)[:60]!r}; accepted: an object with named columns")


def _text(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    for where, line in _lines(path):
        yield Row(where, {}, NOT_UTF8) if line is None else Row(where, {"prompt": line.strip()})


def _csv(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.reader(file, strict=True)
        try:
            header = next(rows, [])
            _need_column(str(path), header, columns)
            while True:
                where = f"{path}:{rows.line_num + 1}"
                try:
                    cells = next(rows, None)
                except csv.Error as error:
                    yield Row(where, {}, f"not valid CSV: {error}")
                    continue
                if cells is None:
                    return
                if len(cells) == len(header):
                    yield Row(where, dict(zip(header, cells, strict=True)))
                elif cells:
                    yield Row(where, {}, f"{len(cells)} cells; accepted: {len(header)}, as in the header")
        except UnicodeDecodeError:
            raise PromptError(f"{path}: after line {rows.line_num}: {NOT_UTF8}") from None
        except csv.Error as error:
            raise PromptError(f"{path}:1: not valid CSV: {error}") from None


def _parquet(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            wanted = _need_column(str(path), names, columns)
            for batch in file.iter_batches(batch_size=READ_ROWS, columns=wanted):
                for fields in batch.to_pylist():
                    number += 1
                    yield Row(f"{path}:row {number}", fields)
    except pa.ArrowException as error:
        raise PromptError(f"{path}: damaged or not a parquet file, after row {number}: {error}") from None


def _saved_data_set(path: Path, split: str, columns: Sequence[str]) -> Iterator[Row]:
    datasets = _datasets(str(path))
    try:
        data = datasets.load_from_disk(str(path))
    except (OSError, ValueError) as error:
        raise PromptError(f"{path}: not a usable saved data set: {error}") from None
    if isinstance(data, datasets.DatasetDict):
        if split not in data:
            raise PromptError(f"{path}: prompts.split is {split!r}; accepted: {', '.join(map(str, data))}")
        data = data[split]
    return _data_set_rows(str(path), data, columns)


def _hub_data_set(name: str, split: str, columns: Sequence[str]) -> Iterator[Row]:
    datasets = _datasets(name)
    try:
        data = datasets.load_dataset(name, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise PromptError(
            f"prompt source {name!r}: not a file or folder here, and loading split {split!r} of a Hugging Face "
            f"data set of that name failed: {error}"
        ) from None
    return _data_set_rows(name, data, columns)


def _datasets(source: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise PromptError(
            f"prompt source {source!r} is a data set and needs the package 'datasets': pip install nashtune[hub]"
        ) from None
    return datasets


def _data_set_rows(name: str, data: Any, columns: Sequence[str]) -> Iterator[Row]:
    data = data.select_columns(_need_column(name, data.column_names, columns))
    for number, fields in enumerate(data, 1):
        yield Row(f"{name}:row {number}", fields)


def _need_column(where: str, present: Sequence[str], columns: Sequence[str]) -> list[str]:
    """The wanted ones among the columns present; PromptError if there is none at all."""
    wanted = [c for c in columns if c in present]
    if not wanted:
        raise PromptError(
            f"{where}: has the columns {', '.join(map(repr, present)) or 'none'}; accepted: {', '.join(columns)} "
            "(prompts.prompt_column names another)"
        )
    return wanted


NOT_UTF8 = "not UTF-8 text"
READERS = {".jsonl": _jsonl, ".json": _json, ".parquet": _parquet, ".csv": _csv, ".txt": _text}
ACCEPTED = (
    f"a {', '.join(READERS)} file, a folder of them, a saved data set folder, a Hugging Face data set name, "
    f"or {BUILT_IN}NAME"
)
