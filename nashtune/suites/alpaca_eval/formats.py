"""alpaca_eval's own files, read and written: model_outputs.json and annotations.json."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nashtune.errors import EvaluationError
from nashtune.store.files import write_json
from nashtune.suites.alpaca_eval.data import AlpacaSet, read_json_list
from nashtune.suites.alpaca_eval.judge import ANNOTATOR, Annotation
from nashtune.suites.alpaca_eval.metrics import JudgedRun


def read_outputs(file: Path, data: AlpacaSet) -> list[str]:
    """Answers in the set's order. Raises EvaluationError where one is missing, twice or to no prompt of the set."""
    answers: dict[int, str] = {}
    for number, row in enumerate(read_json_list(file, ("instruction", "output"))):
        place = data.place.get(row["instruction"])
        if place is None or place in answers:
            what = "is to no prompt of the set" if place is None else "repeats a prompt"
            raise EvaluationError(f"{file}: entry {number} {what}: {row['instruction']!r:.100}")
        answers[place] = row["output"]
    if lacking := [i for i in range(len(data.instructions)) if i not in answers]:
        first = data.instructions[lacking[0]]
        raise EvaluationError(
            f"{file}: no answer to {len(lacking)} of {len(data.instructions)} prompts, the first {first!r:.100}"
        )
    return [answers[i] for i in range(len(data.instructions))]


def write_outputs(file: Path, data: AlpacaSet, answers: Sequence[str], generator: str) -> None:
    """Answers as alpaca_eval takes them."""
    rows = zip(data.datasets, data.instructions, answers, strict=True)
    write_json(
        file, [{"dataset": d, "instruction": i, "output": answer, "generator": generator} for d, i, answer in rows]
    )


def read_annotations(file: Path, data: AlpacaSet) -> JudgedRun:
    """A judged run from alpaca_eval's annotations; rows stay in the file's order, which "parity" needs. The baseline is
    output_1 there. Raises EvaluationError naming the entry where one is bad."""
    rows = read_json_list(file, ("instruction", "output_1", "output_2"))
    index, preferences = [], []
    for number, row in enumerate(rows):
        place = data.place.get(row["instruction"])
        if place is None:
            raise EvaluationError(f"{file}: entry {number} is to no prompt of the set: {row['instruction']!r:.100}")
        index.append(place)
        preferences.append(_number(row.get("preference"), f"{file}: entry {number}"))
    return JudgedRun(
        model=str(rows[0].get("generator_2") or file.parent.name),
        index=np.array(index),
        preferences=np.array(preferences),
        lengths=np.array([float(len(row["output_2"])) for row in rows]),
        baseline_lengths=np.array([float(len(row["output_1"])) for row in rows]),
    )


def _number(value: Any, where: str) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise EvaluationError(f"{where}: preference is {value!r}; accepted: a number from 1 to 2, 0, or null")
    return float(value)


def write_annotations(file: Path, data: AlpacaSet, annotations: Sequence[Annotation], generator: str) -> None:
    """Judgments as alpaca_eval writes them; the judge's two log-probs in the form of a completion of its."""
    write_json(file, [_row(data, annotation, generator) for annotation in annotations])


def _row(data: AlpacaSet, annotation: Annotation, generator: str) -> dict[str, Any]:
    i = annotation.index
    top = [{"token": name, "logprob": value} for name, value in annotation.logprobs.items() if not math.isinf(value)]
    top.sort(key=lambda token: -token["logprob"])
    completion = {"logprobs": {"content": [top[0] | {"top_logprobs": top}]}, "text": top[0]["token"]} if top else None
    return {
        "instruction": data.instructions[i],
        "output_1": data.references[i],
        "generator_1": data.baseline,
        "dataset": data.datasets[i],
        "output_2": annotation.output,
        "generator_2": generator,
        "annotator": ANNOTATOR,
        "preference": annotation.preference,
        "raw_completion": completion,
        "price_per_example": annotation.cost_usd,
    }


def judged_run(data: AlpacaSet, annotations: Sequence[Annotation], model: str) -> JudgedRun:
    """Our own judgments as a run."""
    return JudgedRun(
        model=model,
        index=np.array([a.index for a in annotations]),
        preferences=np.array([math.nan if a.preference is None else a.preference for a in annotations]),
        lengths=np.array([float(len(a.output)) for a in annotations]),
        baseline_lengths=np.array([float(len(data.references[a.index])) for a in annotations]),
    )
