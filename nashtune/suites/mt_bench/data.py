"""MT-Bench's questions, reference answers and judge prompts, from a folder; nashtune ships none of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nashtune.errors import EvaluationError
from nashtune.suites.json_lines import read_json_lines

REFERENCE_CATEGORIES = frozenset({"math", "reasoning", "coding"})
"""Categories whose answers are graded against a reference answer."""
TEMPERATURES: Mapping[str, float] = {
    "writing": 0.7,
    "roleplay": 0.7,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
}
"""At which each category is answered, as published answers are; 0.7 for any other."""
QUESTIONS = ("question.jsonl", "mt_bench_questions.jsonl")
JUDGE_PROMPTS = ("judge_prompts.jsonl", "mt_bench_judge_prompts.jsonl")
REFERENCES = ("reference_answer/gpt-4.jsonl", "mt_bench_reference_gpt-4.jsonl")
Mode = Literal["single", "pairwise"]
Turns = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Question:
    """Two turns of a user; ``reference`` holds the answers to both where the category has some."""

    id: int
    category: str
    turns: Turns
    reference: Turns | None

    @property
    def temperature(self) -> float:
        return TEMPERATURES.get(self.category, 0.7)


@dataclass(frozen=True, slots=True)
class JudgePrompt:
    """A judge's system message and its template, with {names} for the texts."""

    name: str
    system: str
    template: str


@dataclass(frozen=True, slots=True)
class MtBench:
    """Questions, and the judge's prompts by name."""

    questions: tuple[Question, ...]
    prompts: Mapping[str, JudgePrompt]

    def judge_prompt(self, question: Question, turn: int, mode: Mode) -> JudgePrompt:
        """The prompt for a question's first or second turn. Raises EvaluationError where the data have none of its name."""
        by_reference = question.category in REFERENCE_CATEGORIES
        stem = {"single": ("single-math-v1", "single-v1"), "pairwise": ("pair-math-v1", "pair-v2")}[mode]
        name = stem[0 if by_reference else 1] + ("-multi-turn" if turn == 2 else "")
        if name not in self.prompts:
            raise EvaluationError(f"mt_bench data: no judge prompt {name!r}; the file has {', '.join(self.prompts)}")
        return self.prompts[name]


def load_mt_bench(source: str, references: str | None = None) -> MtBench:
    """Read a folder with FastChat's files (data/mt_bench of its repository, judge_prompts.jsonl beside them).

    ``references`` is another file of reference answers. Raises EvaluationError naming file, line and field.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        raise EvaluationError(f"mt_bench data: {source!r} is no folder; accepted: one with {', '.join(QUESTIONS)}")
    answers = {}
    for line in read_json_lines(Path(references).expanduser() if references else _file(folder, REFERENCES)):
        answers[line["question_id"]] = two_turns(line["choices"][0]["turns"], f"reference to {line['question_id']}")
    questions = tuple(_question(line, answers) for line in read_json_lines(_file(folder, QUESTIONS)))
    prompts = {
        line["name"]: JudgePrompt(line["name"], line["system_prompt"], line["prompt_template"])
        for line in read_json_lines(_file(folder, JUDGE_PROMPTS))
    }
    return MtBench(questions, prompts)


def _question(line: Mapping[str, Any], references: Mapping[int, Turns]) -> Question:
    number, category = line["question_id"], line["category"]
    reference = references.get(number)
    if category in REFERENCE_CATEGORIES and reference is None:
        raise EvaluationError(f"mt_bench data: question {number} ({category}) has no reference answer")
    return Question(number, category, two_turns(line["turns"], f"question {number}"), reference)


def two_turns(turns: Any, where: str) -> Turns:
    """Raises EvaluationError where there are not two texts."""
    match turns:
        case [str() as first, str() as second]:
            return first, second
    raise EvaluationError(f"mt_bench: {where}: turns are {turns!r:.100}; accepted: two texts")


def _file(folder: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise EvaluationError(f"{folder}: none of {', '.join(names)}")
