"""IFEval and IFBench as suites: answers sampled once, checked by programs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nashtune.errors import EvaluationError
from nashtune.recipe import EngineSection, IfBenchSection, IfEvalSection
from nashtune.records import Interval, Prompt
from nashtune.seeds import content_hash
from nashtune.store.files import write_atomic
from nashtune.suites.ifbench import types as ifbench
from nashtune.suites.ifeval import data
from nashtune.suites.ifeval.checkers import IFEVAL
from nashtune.suites.ifeval.scores import Followed, FollowScores, check_answer, score
from nashtune.suites.json_lines import json_lines
from nashtune.suites.suite import Answers, Decoding, Given, Row, ScoreTable, SuiteScores

if TYPE_CHECKING:
    from nashtune.judging.dispatch import Dispatcher

ANSWERS, STRICT, LOOSE = "input_response_data.jsonl", "eval_results_strict.jsonl", "eval_results_loose.jsonl"
"""As the published evaluation reads and writes them."""


class InstructionSuite:
    """One item a prompt; one row a prompt, with a verdict for each of its instructions."""

    turns = 1
    reads_logprobs = False
    calls = 0

    def __init__(self, section: IfEvalSection | IfBenchSection) -> None:
        self.section = section
        if isinstance(section, IfBenchSection):
            self.items = data.load_prompts(section.data, ifbench.IFBENCH, ifbench.FILES)
        else:
            self.items = data.load_prompts(section.data, IFEVAL)

    @property
    def engine(self) -> EngineSection | None:
        return None

    def check(self) -> None:
        if all(item.unknown for item in self.items):
            raise EvaluationError(f"{self.section.data}: every prompt has types that are not known")

    def identity(self) -> dict[str, Any]:
        shown = [[item.key, item.text, [[i.id, dict(i.args)] for i in item.instructions]] for item in self.items]
        return {"data": content_hash(shown), "prompts": len(self.items)}

    def prompts(self, turn: int, earlier: Answers) -> list[Prompt]:
        return [item.prompt(self.section.suite) for item in self.items]

    def decoding(self, item: int) -> Decoding:
        return Decoding(self.section.temperature, self.section.top_p, self.section.max_new_tokens)

    async def judge(self, answers: Answers, dispatcher: Dispatcher | None) -> list[Row]:
        rows = []
        for item, turns in zip(self.items, answers, strict=True):
            if item.unknown:
                rows.append({"key": item.key, "ids": [i.id for i in item.instructions], "unknown": list(item.unknown)})
                continue
            found = check_answer(item, turns[0])
            rows.append(
                {"key": item.key, "ids": list(found.ids), "strict": list(found.strict), "loose": list(found.loose)}
            )
        return rows

    def read_answers(self, file: Path) -> Given:
        found = {}
        for where, row in json_lines(file):
            if not isinstance(row.get("prompt"), str) or not isinstance(row.get("response"), str):
                raise EvaluationError(f"{where}: no prompt and response; accepted: both as text")
            found[row["prompt"].strip()] = row["response"]
        if lacking := [item.key for item in self.items if item.text.strip() not in found]:
            raise EvaluationError(
                f"{file}: no response to {len(lacking)} of {len(self.items)} prompts, the first of key {lacking[0]}"
            )
        return Given(file.stem, [[found[item.text.strip()]] for item in self.items])

    def export(self, folder: Path, rows: Sequence[Row], answers: Answers, generator: str) -> list[Path]:
        said = [{"prompt": item.text, "response": turns[0]} for item, turns in zip(self.items, answers, strict=True)]
        _write(folder / ANSWERS, said)
        for name, how in ((STRICT, "strict"), (LOOSE, "loose")):
            _write(
                folder / name,
                (
                    {
                        "follow_all_instructions": all(row[how]),
                        "follow_instruction_list": row[how],
                        "instruction_id_list": row["ids"],
                        **one,
                    }
                    for row, one in zip(rows, said, strict=True)
                    if "unknown" not in row
                ),
            )
        return [folder / name for name in (ANSWERS, STRICT, LOOSE)]

    def scores(self, rows: Sequence[Row], answers: Answers, confidence: float) -> SuiteScores:
        known = [row for row in rows if "unknown" not in row]
        unknown = {row["key"]: tuple(row["unknown"]) for row in rows if "unknown" in row}
        followed = [Followed(row["key"], tuple(row["ids"]), tuple(row["strict"]), tuple(row["loose"])) for row in known]
        found = score(followed, unknown, confidence)
        return SuiteScores(
            metrics={end: _percent(getattr(found, end)) for end in self.section.metrics},
            items={
                "prompt_strict": {one.key: 100.0 * all(one.strict) for one in followed},
                "prompt_loose": {one.key: 100.0 * all(one.loose) for one in followed},
            },
            counts={
                "answers": len(rows),
                "verdicts": len(followed),
                "instructions": sum(len(one.ids) for one in followed),
                "unknown": len(unknown),
            },
            tables=(_by_type(found),),
            warnings=tuple(_warnings(unknown, answers)),
        )


def _percent(interval: Interval) -> Interval:
    return Interval(100 * interval.value, 100 * interval.low, 100 * interval.high, interval.n)


def _by_type(found: FollowScores) -> ScoreTable:
    rows = [
        (name, (float(row.count), 100 * row.strict.value, 100 * row.loose.value)) for name, row in found.types.items()
    ]
    return ScoreTable("by type", ("instructions", "strict (%)", "loose (%)"), tuple(rows))


def _warnings(unknown: Mapping[str, tuple[str, ...]], answers: Answers) -> list[str]:
    found = []
    if unknown:
        types = sorted({name for names in unknown.values() for name in names})
        found.append(f"{len(unknown)} prompts have types without a check and count nowhere: {', '.join(types)}")
    if empty := sum(not text.strip() for turns in answers for text in turns):
        found.append(f"{empty} answers are empty")
    return found


def _write(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    write_atomic(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
