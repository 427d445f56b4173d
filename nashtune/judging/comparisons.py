"""Comparisons to learn a judge from: judgments that a run has paid for, and preference data sets."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

from nashtune.errors import OracleError
from nashtune.judging.preference_rows import USUAL, Answer, Comparison, NotComparable, comparison_of
from nashtune.prompt_sources import READERS
from nashtune.records import Judgment, Prompt, Response
from nashtune.run import Run
from nashtune.seeds import content_hash
from nashtune.store import tables

FILES = (".jsonl", ".parquet", ".csv")
ACCEPTED = (
    f"a run folder, or a {', '.join(FILES)} file with the columns prompt, chosen, rejected or prompt, response_1, \
response_2, preference (or another usual layout)"
)


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
            _read_file(path, found)
        else:
            problem = "is no run folder (it has no recipe.yaml)" if path.is_dir() else "cannot be read"
            raise OracleError(f"--from {source!r}: {problem}; accepted: {ACCEPTED}")
        if len(found.comparisons) == before:
            left_out = ", ".join(f"{reason}: {count}" for reason, count in found.left_out.items()) or "it is empty"
            raise OracleError(
                f"--from {source!r}: no comparison of two answers in it ({left_out}); accepted: {ACCEPTED}"
            )
    return found


def _read_file(path: Path, found: Found) -> None:
    for row in READERS[path.suffix](path, USUAL.wanted()):
        try:
            comparison = comparison_of(row)
        except NotComparable as reason:
            found.left_out[str(reason)] += 1
            continue
        if math.isnan(comparison.target):
            found.left_out["no verdict"] += 1
        else:
            found.add(comparison)


# ---- a run folder --------------------------------------------------------------------------------------------------------


def _read_run(run: Run, found: Found) -> None:
    """Verdicts of the training iterations; those on validation prompts stay out, so that validation stays unseen."""
    prompts = {p.id: p for p in tables.stream(Prompt, sorted(run.folder.glob("prompts/part-*.parquet")))}
    for iteration in sorted(range(run.last_iteration() + 1), key=str):
        units = run.stage(iteration, "judge").files()
        wanted = {name for judgment in tables.stream(Judgment, units) for name in judgment.response_ids}
        answers = {r.id: Answer(r.text, r.finish != "length") for r in _responses(run, iteration) if r.id in wanted}
        for judgment in tables.stream(Judgment, units):
            _add_judgment(judgment, prompts, answers, found)


def _responses(run: Run, iteration: int) -> Iterator[Response]:
    """All answers that an iteration's stages committed, one file in memory at a time."""
    files = (file for name in run.begun_stages(iteration) for file in run.stage(iteration, name).files())
    return tables.stream(Response, (file for file in files if tables.holds(Response, file)))


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
