"""AlpacaEval 2 as a suite."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from nashtune.errors import EvaluationError
from nashtune.recipe import AlpacaEvalSection, EngineSection
from nashtune.records import Interval, Prompt
from nashtune.seeds import content_hash
from nashtune.suites.alpaca_eval.data import GAMED, AlpacaSet, load_set, read_json_list
from nashtune.suites.alpaca_eval.formats import read_annotations, read_outputs, write_annotations, write_outputs
from nashtune.suites.alpaca_eval.length_control import Alignment, LengthControlled, compare, length_controlled, warning
from nashtune.suites.alpaca_eval.metrics import JudgedRun, RawMetrics, raw_metrics
from nashtune.suites.suite import Answers, Decoding, Given, Row, ScoreTable, SuiteScores

if TYPE_CHECKING:
    from nashtune.judging.dispatch import Dispatcher
    from nashtune.suites.alpaca_eval.judge import Annotation

OUTPUTS, ANNOTATIONS = "model_outputs.json", "annotations.json"


class AlpacaEval2:
    """One item an instruction; one row a verdict, in the order of the items."""

    turns = 1
    reads_logprobs = True

    def __init__(self, section: AlpacaEvalSection) -> None:
        self.section = section
        self.data: AlpacaSet = load_set(section.data, section.baseline)

    @property
    def engine(self) -> EngineSection | None:
        return self.section.judge

    @property
    def calls(self) -> int:
        return len(self.data.instructions)

    def check(self) -> None:
        self.data.need_template()
        if self.data.controls is not None and importlib.util.find_spec("sklearn") is None:
            raise EvaluationError("length control needs scikit-learn: pip install 'nashtune[eval]'")

    def identity(self) -> dict[str, Any]:
        data = self.data
        controls = data.controls
        columns = (controls.difficulty, controls.delta, controls.gamma, controls.wins) if controls else ()
        shown = [data.instructions, data.references, data.template]
        fingerprint = content_hash(shown, [column.tolist() for column in columns])
        return {"data": fingerprint, "prompts": len(data.instructions), "baseline": data.baseline}

    def prompts(self, turn: int, earlier: Answers) -> list[Prompt]:
        return self.data.prompts()

    def decoding(self, item: int) -> Decoding:
        return Decoding(self.section.temperature, self.section.top_p, self.section.max_new_tokens)

    async def judge(self, answers: Answers, dispatcher: Dispatcher | None) -> list[Row]:
        from nashtune.suites.alpaca_eval.judge import annotate

        assert dispatcher is not None
        return [self._row(a) for a in await annotate(self.data, [turns[0] for turns in answers], dispatcher)]

    def _row(self, annotation: Annotation) -> Row:
        """The answer itself is kept with the answers."""
        row = asdict(annotation)
        row["length"] = len(row.pop("output"))
        row["baseline_length"] = len(self.data.references[annotation.index])
        row["logprobs"] = {name: value for name, value in annotation.logprobs.items() if not math.isinf(value)}
        return row

    def read_answers(self, file: Path) -> Given:
        answers = read_outputs(file, self.data)
        named = {str(row.get("generator") or file.stem) for row in read_json_list(file, ("instruction", "output"))}
        return Given(" and ".join(sorted(named)), [[text] for text in answers])

    def read_verdicts(self, file: Path) -> tuple[str, list[Row], Answers]:
        run = read_annotations(file, self.data)
        texts = [""] * len(self.data.instructions)
        for row in read_json_list(file, ("instruction", "output_2")):
            texts[self.data.place[row["instruction"]]] = row["output_2"]
        columns = zip(run.index, run.preferences, run.lengths, run.baseline_lengths, strict=True)
        rows: list[Row] = [
            {
                "index": int(i),
                "preference": None if math.isnan(preference) else float(preference),
                "reason": "no preference in the file" if math.isnan(preference) else "",
                "length": int(length),
                "baseline_length": int(baseline),
            }
            for i, preference, length, baseline in columns
        ]
        return run.model, rows, [[text] for text in texts]

    def export(self, folder: Path, rows: Sequence[Row], answers: Answers, generator: str) -> list[Path]:
        from nashtune.suites.alpaca_eval.judge import FIRST, SECOND, Annotation

        write_outputs(folder / OUTPUTS, self.data, [turns[0] for turns in answers], generator)
        annotations = []
        for row in rows:
            known = {name: value for name, value in row.items() if name not in ("length", "baseline_length")}
            logprobs = (
                {name: row["logprobs"].get(name, -math.inf) for name in (FIRST, SECOND)} if row["logprobs"] else {}
            )
            annotations.append(Annotation(**known | {"output": answers[row["index"]][0], "logprobs": logprobs}))
        write_annotations(folder / ANNOTATIONS, self.data, annotations, generator)
        return [folder / OUTPUTS, folder / ANNOTATIONS]

    # ---- figures -------------------------------------------------------------------------------------------------------

    def scores(self, rows: Sequence[Row], answers: Answers, confidence: float) -> SuiteScores:
        run, data = _judged(rows), self.data
        absent = len(data.instructions) - len(rows)
        raw = raw_metrics(run, absent, confidence)
        metrics: dict[str, Interval | float] = {
            "win_rate": _percent(raw.interval),
            "discrete_win_rate": raw.discrete_win_rate,
        }
        controlled = self._controlled(run, confidence)
        unfit, warnings = {}, _warnings(raw, rows, absent, answers)
        if controlled is None:
            warnings.append(f"no length-controlled win rate: {self.section.data} has no {GAMED}")
        else:
            metrics = {
                "lc": Interval(controlled.win_rate, controlled.low, controlled.high, len(rows)),
                **metrics,
            }
            if far := warning(raw.win_rate, controlled.win_rate):
                warnings.append(far)
                unfit["lc"] = far
        return SuiteScores(
            metrics=metrics,
            items={
                "win_rate": {str(i): 100 * y for i, y in zip(run.index, run.wins, strict=True) if not math.isnan(y)}
            },
            counts={
                "answers": len(data.instructions),
                "verdicts": raw.n_total,
                "unusable": raw.unjudged,
                "wins": raw.n_wins,
                "losses": raw.n_wins_base,
                "ties": raw.n_draws,
            },
            facts=_facts(raw, controlled, self.section.difficulty) | {"baseline": data.baseline},
            tables=(_by_dataset(run, data),),
            warnings=tuple(warnings),
            unfit=unfit,
        )

    def _controlled(self, run: JudgedRun, confidence: float) -> LengthControlled | None:
        if self.data.controls is None:
            return None
        return length_controlled(run, self.data.controls, self.section.difficulty, confidence=confidence)

    def differences(
        self, a: tuple[Sequence[Row], Answers], b: tuple[Sequence[Row], Answers], confidence: float
    ) -> Mapping[str, tuple[Interval, float]]:
        """Of the length-controlled win rates; the raw ones are means over items."""
        if self.data.controls is None:
            return {}
        found = compare(_judged(a[0]), _judged(b[0]), self.data.controls, confidence)["length_controlled"]
        return {"lc": (Interval(found.value, found.low, found.high, found.prompts), found.p)}


def _judged(rows: Sequence[Row]) -> JudgedRun:
    return JudgedRun(
        model="alpaca_eval",
        index=np.array([row["index"] for row in rows], dtype=np.int64),
        preferences=np.array([math.nan if row["preference"] is None else row["preference"] for row in rows]),
        lengths=np.array([float(row["length"]) for row in rows]),
        baseline_lengths=np.array([float(row["baseline_length"]) for row in rows]),
    )


def _percent(interval: Interval) -> Interval:
    return Interval(100 * interval.value, 100 * interval.low, 100 * interval.high, interval.n)


def _warnings(raw: RawMetrics, rows: Sequence[Row], absent: int, answers: Answers) -> list[str]:
    found = []
    if raw.unjudged:
        reason = next(row["reason"] for row in rows if row["preference"] is None)
        found.append(f"{raw.unjudged} of {len(rows)} verdicts are unusable and count nowhere, the first: {reason}")
    if absent:
        found.append(
            f"{absent} prompts have no row; with difficulty 'parity' later rows take another prompt's difficulty"
        )
    if empty := sum(not turns[0].strip() for turns in answers) - absent:
        found.append(f"{empty} answers are empty")
    return found


def _facts(raw: RawMetrics, controlled: LengthControlled | None, difficulty: Alignment) -> dict[str, Any]:
    spread = raw.standard_error
    found: dict[str, Any] = {
        "standard_error": None if math.isnan(spread) else spread,
        "avg_length": raw.avg_length,
    }
    if controlled is not None:
        found |= {
            "lc_standard_error": None if math.isnan(controlled.spread) else controlled.spread,
            "difficulty": f"{difficulty} ({'by the row’s place, as published' if difficulty == 'parity' else 'by the prompt'})",
            "lc_weights": asdict(controlled.weights),
        }
    return found


def _by_dataset(run: JudgedRun, data: AlpacaSet) -> ScoreTable:
    groups: dict[str, list[tuple[float, float]]] = {}
    for place, y, length in zip(run.index, run.wins, run.lengths, strict=True):
        groups.setdefault(data.datasets[place] or "all", []).append((float(y), float(length)))
    rows = []
    for name, found in groups.items():
        known = [y for y, _ in found if not math.isnan(y)]
        figures = (100 * fmean(known) if known else None, fmean(length for _, length in found), float(len(found)))
        rows.append((name, figures))
    return ScoreTable("by source of the prompts", ("win rate (%)", "characters", "answers"), tuple(rows))
