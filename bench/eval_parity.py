"""Are our AlpacaEval 2 figures the published ones?

    python bench/eval_parity.py [--data DIR] [--common DIR] [--json]

DIR holds published annotations (*annotations_*.parquet: model, index, row, output_len, preference) and the leaderboard's rows
(*leaderboard_*.csv, with the published weights and the C that gives the published LC where they are known); the set of prompts
(*alpacaeval_prompts.parquet) and the two gamed baselines (*gamed_baselines.parquet) come from --common where DIR has none.
Default: $NASHTUNE_REFERENCE_DATA, else ../shared/data; skips where there is none. Every model's raw columns, LC with the
published C and LC with C by cross-validation are compared with its published row.
"""

from __future__ import annotations

import csv
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from bars import Row, arguments, finish

from nashtune.errors import EvaluationError
from nashtune.suites.alpaca_eval.length_control import Controls, length_controlled
from nashtune.suites.alpaca_eval.metrics import JudgedRun, raw_metrics

RAW = ("win_rate", "standard_error", "n_wins", "n_wins_base", "n_draws", "n_total", "discrete_win_rate", "avg_length")
PRINTED = 1e-8
"""The leaderboard's rates are compared to about as many digits as it prints."""
EXCEPTIONS = {
    "gpt4_1106_preview": "the baseline itself: never fitted, LC is 50 by definition",
    "dbrx-instruct": "its published LC does not follow from its own published weights",
    "NullModel": "its published LC does not follow from its own published weights",
}
"""Models whose published LC cannot be expected, with the reason."""


def find(pattern: str, *folders: Path | None) -> Path:
    """The first file of that pattern in the first folder that has any."""
    for folder in filter(None, folders):
        if found := sorted(folder.glob(pattern)):
            return found[0]
    raise SystemExit(f"no {pattern} in {', '.join(str(folder) for folder in folders if folder)}")


def floats(values: list[Any]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], dtype=float)


def read_controls(*folders: Path | None) -> tuple[Controls, np.ndarray]:
    """What runs are fitted with, and the baseline's answer lengths [prompts]."""
    prompts = pq.read_table(find("*alpacaeval_prompts.parquet", *folders)).to_pydict()
    gamed = pq.read_table(find("*gamed_baselines.parquet", *folders)).to_pydict()
    controls = Controls(
        difficulty=floats(prompts["instruction_difficulty"]),
        delta=floats(gamed["std_delta_len"]),
        gamma=floats(gamed["instruction_difficulty"]),
        wins=floats(gamed["preference_surrogate"]),
    )
    return controls, floats(prompts["reference_len"])


def read_runs(file: Path, baseline_lengths: np.ndarray) -> Iterator[JudgedRun]:
    """Every model's rows, in the order of its published file."""
    rows: dict[str, list[Row]] = defaultdict(list)
    columns = ["model", "index", "row", "output_len", "preference"]
    for row in pq.read_table(file, columns=columns).to_pylist():
        rows[row["model"]].append(row)
    for model, mine in sorted(rows.items()):
        mine.sort(key=lambda row: row["row"])
        index = np.array([row["index"] for row in mine])
        preferences = floats([row["preference"] for row in mine])
        lengths = floats([row["output_len"] for row in mine])
        yield JudgedRun(model, index, preferences, lengths, baseline_lengths[index])


def compare(run: JudgedRun, published: Mapping[str, str], controls: Controls) -> Row:
    """Our figures less the published ones; NaN where a figure is not published or cannot be expected."""
    prompts = len(controls.difficulty)
    raw = raw_metrics(run, empty=prompts - len(run.index))
    row: Row = {"model": run.model, "rows": len(run.index), "complete": len(run.index) == prompts}
    row["raw"] = max(abs(getattr(raw, name) - float(published[name])) for name in RAW)
    row["win_rate"], row["exception"] = raw.win_rate, EXCEPTIONS.get(run.model)
    lc, C = published.get("length_controlled_winrate"), published.get("published_C")
    if run.model == "gpt4_1106_preview" or not lc:
        return row
    chosen = length_controlled(run, controls, resamples=0)
    row |= {"lc": chosen.win_rate, "lc_published": float(lc), "lc_cross_validated": abs(chosen.win_rate - float(lc))}
    row["C"], row["C_published"] = chosen.weights.C, float(C) if C else None
    if C:
        row["lc_given_C"] = abs(length_controlled(run, controls, C=float(C), resamples=0).win_rate - float(lc))
    correct = length_controlled(run, controls, "correct", C=chosen.weights.C, resamples=0)
    row["lc_correctly_aligned"] = correct.win_rate
    return row


def rank_correlation(rows: list[Row]) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr([r["lc"] for r in rows], [r["lc_published"] for r in rows]).statistic)


def show(rows: list[Row]) -> None:
    for row in rows:
        given, free = row.get("lc_given_C"), row.get("lc_cross_validated")
        cells = ["-" if value is None else f"{value:.1e}" for value in (row["raw"], given, free)]
        note = row["exception"] or ("" if row["complete"] else f"{row['rows']} rows")
        print(f"{row['model']:<34} raw {cells[0]:>8}  LC given C {cells[1]:>8}  LC {cells[2]:>8}  {note}")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--data", type=Path, help="published annotations and leaderboard rows")
    parser.add_argument("--common", type=Path, help="prompts and gamed baselines, where --data has none")
    options = parser.parse_args()
    default = Path(__file__).parent.parent.parent / "shared" / "data"
    data = options.data or Path(os.environ.get("NASHTUNE_REFERENCE_DATA") or default)
    if not data.is_dir():
        print(f"skipped: no reference data in {data} ($NASHTUNE_REFERENCE_DATA, --data)")
        return
    controls, lengths = read_controls(data, options.common)
    with find("*leaderboard_*.csv", data).open() as stream:
        published = {row["model"]: row for row in csv.DictReader(stream)}
    runs = list(read_runs(find("*annotations_*.parquet", data), lengths))
    unpublished = [run.model for run in runs if run.model not in published]
    rows = [compare(run, published[run.model], controls) for run in runs if run.model in published]
    if not rows:
        raise EvaluationError(f"{data}: none of the annotated models has a published row")
    if not options.json:
        show(rows)
    fitted = [row for row in rows if "lc" in row and not row["exception"]]
    given = [row["lc_given_C"] for row in fitted if row["complete"] and "lc_given_C" in row]
    bars = {
        "raw columns, largest difference": (max(r["raw"] for r in rows), lambda x: x <= PRINTED, "at most 1e-8"),
        "LC with the published C, complete rows": (max(given, default=0.0), lambda x: x <= 1e-5, "at most 1e-5"),
        "LC by cross-validation": (max(r["lc_cross_validated"] for r in fitted), lambda x: x <= 0.16, "at most 0.16"),
    }
    if len(fitted) > 2:
        bars["rank correlation of LC"] = (rank_correlation(fitted), lambda x: x >= 0.999, "at least 0.999")
    result = {"models": len(rows), "without a published row": unpublished, "rows": rows}
    finish(result, bars, options.json)


if __name__ == "__main__":
    main()
