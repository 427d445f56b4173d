"""Arena-Hard's prompts and published answers, from a folder or the hub; nashtune ships none of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nashtune.errors import EvaluationError
from nashtune.records import Message, Prompt
from nashtune.suites.arena_hard.formats import Answers, read_answers, text_field
from nashtune.suites.arena_hard.settings import (
    BASELINES,
    JUDGE_JSON,
    VERSIONS,
    JudgeSettings,
    Version,
    read_judge_settings,
)
from nashtune.suites.json_lines import read_json_lines

HUB = "lmarena-ai/arena-hard-auto"
TABLE = "arena_hard_prompts.parquet"
"""Both versions in one table: version, uid, category, subcategory, prompt, and answers in the columns below."""
TABLE_ANSWERS: Mapping[str, str] = {
    "answer_gpt_4_0314": "gpt-4-0314",
    "answer_gpt_4_0613": "gpt-4-0613",
    "answer_gpt_35_turbo_0125": "gpt-3.5-turbo-0125",
    "answer_o3_mini": "o3-mini-2025-01-31",
}


@dataclass(frozen=True, slots=True)
class Question:
    """One prompt. ``category`` decides judge prompt and baseline; ``subcategory`` is v0.1's cluster."""

    uid: str
    category: str
    subcategory: str
    prompt: str


@dataclass(frozen=True, slots=True)
class ArenaHard:
    """Questions, the judge's settings where the data hold them, and answers by model."""

    version: Version
    questions: tuple[Question, ...]
    judging: JudgeSettings | None
    answers: Mapping[str, Answers]

    def prompts(self) -> list[Prompt]:
        """What a policy is asked, in the questions' order."""
        return [Prompt.make([Message("user", q.prompt)], source=f"arena_hard:{q.uid}") for q in self.questions]

    @property
    def categories(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(question.category for question in self.questions))

    def only(self, *categories: str) -> ArenaHard:
        """The questions of some categories. Raises EvaluationError for one that there is not."""
        if unknown := [name for name in categories if name not in self.categories]:
            raise EvaluationError(
                f"arena_hard {self.version}: no category {unknown[0]!r}; accepted: {', '.join(self.categories)}"
            )
        return dataclasses.replace(self, questions=tuple(q for q in self.questions if q.category in categories))

    def baseline_of(self, category: str) -> str:
        """The model that a category is judged against. Raises EvaluationError where none is known."""
        known = self.judging.baselines if self.judging else BASELINES
        if category not in known:
            raise EvaluationError(f"arena_hard {self.version}: no baseline for {category!r}; known: {', '.join(known)}")
        return known[category]

    def need_judging(self) -> JudgeSettings:
        """Raises EvaluationError where there is none."""
        if self.judging is None:
            raise EvaluationError(
                f"arena_hard judging needs the judge's prompts: {JUDGE_JSON}, or utils/judge_utils.py and "
                f"config/arena-hard-{self.version}.yaml of upstream's repository, in the data folder or named apart"
            )
        return self.judging


def load_arena_hard(
    source: str, version: Version = "v2.0", models: Sequence[str] = (), judging: str | None = None
) -> ArenaHard:
    """Read a clone of upstream's repository, its data/arena-hard-VERSION alone, a folder with TABLE, or a data set of the hub.

    The baselines' answers are loaded where they are there, and those of ``models``, which must be. ``judging`` is a file or
    folder with the judge's settings, for data that hold none. Raises EvaluationError naming what is missing or wrong.
    """
    if version not in VERSIONS:
        raise EvaluationError(f"arena_hard version: {version!r}; accepted: {', '.join(VERSIONS)}")
    folder = Path(source).expanduser()
    root = folder if folder.is_dir() else None
    settings = _judging(judging, root, version)
    if root and (root / TABLE).is_file():
        return _from_table(root / TABLE, version, models, settings)
    bench = _bench(root, version) if root else _from_hub(source, version, models)
    questions = tuple(
        _question(row, f"{bench / 'question.jsonl'}: entry {n}")
        for n, row in enumerate(read_json_lines(bench / "question.jsonl"))
    )
    unjudged = ArenaHard(version, questions, settings, {})
    baselines = {unjudged.baseline_of(category) for category in unjudged.categories}
    answers = {}
    for name in sorted(baselines.union(models)):
        file = bench / "model_answer" / f"{name}.jsonl"
        if name in models or file.is_file():
            answers[name] = read_answers(file, name)
    return dataclasses.replace(unjudged, answers=answers)


def _judging(named: str | None, root: Path | None, version: Version) -> JudgeSettings | None:
    if named is None:
        # the data folder of a clone stands two levels below its settings
        places = [root, *root.absolute().parents[:2]] if root else []
        return next((found for place in places if (found := read_judge_settings(place, version))), None)
    found = read_judge_settings(Path(named).expanduser(), version)
    if found is None:
        raise EvaluationError(
            f"arena_hard judge settings: {named!r}; accepted: {JUDGE_JSON}, a folder with it, or upstream's repository"
        )
    return found


def _bench(root: Path, version: Version) -> Path:
    for place in (root / "data" / f"arena-hard-{version}", root):
        if (place / "question.jsonl").is_file():
            return place
    raise EvaluationError(
        f"arena_hard data: {root}: none of data/arena-hard-{version}/question.jsonl, question.jsonl, {TABLE}"
    )


def _from_hub(source: str, version: Version, models: Sequence[str]) -> Path:
    """The folder of a hub data set's files, questions and the answers wanted."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    inside = f"data/arena-hard-{version}"
    wanted = [
        f"{inside}/question.jsonl",
        *(f"{inside}/model_answer/{name}.jsonl" for name in [*BASELINES.values(), *models]),
    ]
    try:
        folder = Path(snapshot_download(source, repo_type="dataset", allow_patterns=wanted))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise EvaluationError(
            f"arena_hard data: {source!r} is neither a folder nor a data set that the hub gave "
            f"({type(error).__name__}: {str(error).splitlines()[0]}); the published one is {HUB}"
        ) from None
    return _bench(folder, version)


def _question(row: Mapping[str, Any], where: str) -> Question:
    other = row.get("subcategory") or row.get("cluster") or ""
    return Question(
        text_field(row, "uid", where), text_field(row, "category", where), str(other), text_field(row, "prompt", where)
    )


def _from_table(file: Path, version: Version, models: Sequence[str], settings: JudgeSettings | None) -> ArenaHard:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows = [row for row in pq.read_table(file).to_pylist() if row.get("version") == version]
    except (OSError, pa.ArrowException) as error:
        raise EvaluationError(f"{file}: {error}") from None
    if not rows:
        raise EvaluationError(f"{file}: no rows of version {version!r}")
    questions = tuple(_question(row, f"{file}: row {n} of {version}") for n, row in enumerate(rows))
    answers = {}
    for column, name in TABLE_ANSWERS.items():
        texts = {row["uid"]: row[column] for row in rows if row.get(column) is not None}
        if texts:
            answers[name] = Answers(name, texts)
    if lacking := [name for name in models if name not in answers]:
        raise EvaluationError(f"{file}: no answers of {lacking[0]!r}; it has those of {', '.join(answers)}")
    return ArenaHard(version, questions, settings, answers)
