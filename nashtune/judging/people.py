"""People as the oracle: tasks go out as files, votes come back as files. Whatever shows tasks (a page, a script) sits between.

``tasks/TASK.json``: {"task", "messages": [{"role", "content"}], "answers": [text, ...]} with the answers in a seeded order
and nothing that tells who wrote them. ``votes/*.jsonl``: one vote a line, {"task", "voter", "scores": [number or null, ...]}
(higher is better, any scale, one per answer as shown) or {"task", "voter", "better": i, "worse": j} (places as shown, from 0).
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nashtune import recipe
from nashtune.errors import OracleError
from nashtune.judging.showing import presentation_order
from nashtune.records import Judgment, Prompt, Response
from nashtune.seeds import content_hash
from nashtune.store.files import create_once

Comparison = tuple[int, int, float]
"""Places of two answers as shown, and P(the first is better) by one voter."""


class PeopleOracle:
    """P(i beats j) is the share of voters who prefer i (a tie counts half), for pairs that ``votes`` people compared; waits
    until each task has that many voters. ``measures["voters"]``: people who compared the answer with another."""

    name = "people"
    needs_logprobs: frozenset[str] = frozenset()

    def __init__(self, section: recipe.PeopleOracle) -> None:
        self._section = section
        self._folder = Path(section.folder).expanduser()
        self._read: dict[Path, int] = {}  # bytes of each votes file that are in _votes
        self._votes: dict[str, dict[str, list[Comparison]]] = {}
        self._sizes: dict[str, int] = {}
        self._looked = -math.inf

    async def judge(self, prompt: Prompt, candidates: Sequence[Response], seed: int) -> Judgment:
        if len(candidates) < 2:
            raise OracleError(f"prompt {prompt.id}: {len(candidates)} candidates to compare; accepted: two or more")
        order = presentation_order(len(candidates), seed)
        task = content_hash("people", prompt.id, [candidates[i].id for i in order])
        self._sizes[task] = len(candidates)
        body = {
            "task": task,
            "messages": [{"role": m.role, "content": m.content} for m in prompt.messages],
            "answers": [candidates[i].text for i in order],
        }
        create_once(self._folder / "tasks" / f"{task}.json", json.dumps(body, ensure_ascii=False, indent=1).encode())
        while len(self._voters(task)) < self._section.votes:
            await asyncio.sleep(self._section.poll_s)
        matrix, voters = _tally(self._voters(task), order)
        return Judgment(
            prompt_id=prompt.id,
            response_ids=tuple(c.id for c in candidates),
            oracle=self.name,
            matrix=matrix,
            measures={"voters": voters},
            order=order,
            raw=json.dumps(self._voters(task), sort_keys=True),
            model_requested="people",
        )

    async def aclose(self) -> None: ...

    def _voters(self, task: str) -> Mapping[str, list[Comparison]]:
        """Votes on a task; the files are looked at once for all tasks that wait, ``poll_s`` apart."""
        if time.monotonic() - self._looked >= self._section.poll_s:
            for file in sorted((self._folder / "votes").glob("*.jsonl")):
                if file.stat().st_size > self._read.get(file, 0):
                    self._read_new(file)
            self._looked = time.monotonic()
        return self._votes.get(task, {})

    def _read_new(self, file: Path) -> None:
        """Take in the lines added since the last look; a last line without its end is still being written."""
        data = file.read_bytes()
        start, end = self._read.get(file, 0), data.rfind(b"\n") + 1
        first = data[:start].count(b"\n") + 1
        for number, line in enumerate(data[start:end].splitlines(), first):
            if line.strip():
                self._take(line, f"{file}:{number}")
        self._read[file] = max(start, end)

    def _take(self, line: bytes, where: str) -> None:
        try:
            row = json.loads(line)
        except ValueError as error:
            raise OracleError(f"{where}: not valid JSON: {error}") from None
        if not isinstance(row, dict) or not isinstance(row.get("task"), str) or not isinstance(row.get("voter"), str):
            raise OracleError(f"{where}: {str(row)[:100]}; accepted: an object with the texts `task` and `voter`")
        size = self._size(row["task"])
        if size is None:
            raise OracleError(
                f"{where}: task {row['task']!r}; accepted: the name of a file in {self._folder / 'tasks'}"
            )
        self._votes.setdefault(row["task"], {}).setdefault(row["voter"], []).extend(_comparisons(row, size, where))

    def _size(self, task: str) -> int | None:
        """Answers shown in a task, perhaps of another run that shares the folder; None where there is no such task."""
        if task not in self._sizes:
            file = self._folder / "tasks" / f"{task}.json"
            if "/" in task or not file.is_file():
                return None
            self._sizes[task] = len(json.loads(file.read_text(encoding="utf-8"))["answers"])
        return self._sizes[task]


def _comparisons(row: Mapping[str, Any], size: int, where: str) -> list[Comparison]:
    """What a vote says. Raises OracleError naming file and line."""
    if "scores" in row:
        scores = row["scores"]
        good = isinstance(scores, list) and len(scores) == size and all(_is_score(s) for s in scores)
        if not good:
            raise OracleError(f"{where}: scores {str(scores)[:100]}; accepted: a list of {size} numbers or nulls")
        known = [(place, score) for place, score in enumerate(scores) if score is not None]
        return [(i, j, 0.5 if a == b else float(a > b)) for n, (j, b) in enumerate(known) for i, a in known[:n]]
    better, worse = row.get("better"), row.get("worse")
    places = [p for p in (better, worse) if isinstance(p, int) and not isinstance(p, bool) and 0 <= p < size]
    if len(places) != 2 or better == worse:
        raise OracleError(
            f"{where}: better {better!r}, worse {worse!r}; accepted: two different places from 0 to {size - 1}, or `scores`"
        )
    i, j = places
    return [(i, j, 1.0)] if i < j else [(j, i, 0.0)]


def _is_score(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value))


def _tally(
    voters: Mapping[str, Sequence[Comparison]], order: Sequence[int]
) -> tuple[tuple[tuple[float | None, ...], ...], tuple[float | None, ...]]:
    """The matrix of preferences and the number of voters per candidate, both in the candidates' own order. A voter who
    contradicts themselves on a pair counts as the mean of what they said."""
    count = len(order)
    said: dict[tuple[int, int], list[float]] = {}
    seen: list[set[str]] = [set() for _ in order]
    for voter, comparisons in voters.items():
        own: dict[tuple[int, int], list[float]] = {}
        for i, j, p in comparisons:
            own.setdefault((order[i], order[j]), []).append(p)
            seen[order[i]].add(voter)
            seen[order[j]].add(voter)
        for pair, values in own.items():
            said.setdefault(pair, []).append(math.fsum(values) / len(values))
    matrix: list[list[float | None]] = [[None] * count for _ in order]
    for (i, j), values in said.items():
        mean = math.fsum(values) / len(values)
        matrix[i][j], matrix[j][i] = mean, 1 - mean
    return tuple(map(tuple, matrix)), tuple(float(len(voters)) for voters in seen)
