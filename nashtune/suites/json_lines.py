"""Objects of a .jsonl file, and where each stands."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nashtune.errors import EvaluationError


def json_lines(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each object with "FILE:LINE". Raises EvaluationError for a file that cannot be read and for a line that is no object."""
    try:
        lines = file.read_text(encoding="utf-8").split("\n")  # texts hold other line separators
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(f"{file}: {error}") from None
    if lines[0].startswith("version https://git-lfs"):
        raise EvaluationError(f"{file}: a pointer of git-lfs, not the data; `git lfs pull` fetches them")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise EvaluationError(f"{file}:{number}: not JSON: {error}") from None
        if not isinstance(row, dict):
            raise EvaluationError(f"{file}:{number}: {line[:80]!r}; accepted: an object")
        yield f"{file}:{number}", row


def read_json_lines(file: Path) -> list[dict[str, Any]]:
    """The objects alone."""
    return [row for _, row in json_lines(file)]
