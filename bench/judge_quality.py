"""Published figures of judges on labelled comparisons, reproduced from the stored verdicts by `nashtune judge-check`'s code.

    python bench/judge_quality.py --data ../shared/data

- LLMBar (Zeng et al., arXiv 2310.07641): for each of 65 judges and 5 subsets, the right verdicts in either order and in both,
  and the share that is the same in both, against the 325 statistics files of princeton-nlp/LLMBar at commit 900616b
  (published/llmbar.csv holds their counts). Its files also print a kappa; it was computed from the winners "0" and "1" where
  winners are "1" and "2", so it says nothing and is not reproduced.
- PandaLM (WeOpenML/PandaLM): Cohen's kappa of the three annotators (README at 3871806), and accuracy and macro-averaged
  precision, recall and F1 of two judges against the majority (README at 6fdac72).

Exit code 1 where a figure differs from the published one. Legend: a judge is MODEL/STRATEGY.
"""

from __future__ import annotations

import argparse
import csv
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from nashtune.checks.verdicts import annotator_verdicts, labels_of, stored_verdicts
from nashtune.judging.judge_quality import Quality, macro_scores, quality
from nashtune.judging.pairwise_set import Reading, Stored, VerdictFile, read_pairwise
from nashtune.judging.preference_rows import Columns, with_codes
from nashtune.judging.rater_agreement import RatersAgreement, raters_agreement
from nashtune.records import Interval

PUBLISHED = Path(__file__).parent / "published" / "llmbar.csv"
PANDALM_KAPPA = {
    ("annotator1", "annotator2"): 0.85,
    ("annotator1", "annotator3"): 0.88,
    ("annotator2", "annotator3"): 0.86,
}
PANDALM_SCORES = {
    "judge_gpt35": (71.07, 58.79, 57.36, 57.55),
    "judge_pandalm7b": (66.77, 57.38, 57.50, 57.43),
}
"""Percent: accuracy, precision, recall, F1."""
PANDALM_LABELS = {"tie": 105, "first": 422, "second": 472}
COUNTS = ("n", "right_first_order", "right_second_order", "right_both", "same_verdict")


@dataclass(frozen=True, slots=True)
class LlmBar:
    """Every judge's figures, with those of its subsets, and their COUNTS by (subset, judge)."""

    judges: dict[str, Quality]
    counts: dict[tuple[str, str], tuple[int, ...]]


def llmbar(data: Path) -> LlmBar:
    file = VerdictFile(str(data / "pref_llmbar_judges.parquet"), ("subset", "idx"), ("judge", "strategy"))
    reading = Reading(Columns(codes=with_codes(["none=0"])), stored=(Stored("winner", "winner_swapped"),), file=file)
    found = read_pairwise(str(data / "pref_llmbar.parquet"), reading)
    labels, judges, counts = labels_of(found), {}, {}
    for verdicts in stored_verdicts(found):
        judges[verdicts.name] = quality(labels, verdicts)
        for subset, part in judges[verdicts.name].subsets.items():
            mask = np.array([s == subset for s in labels.subset])
            right = [int((verdicts.said[mask, order] == labels.target[mask]).sum()) for order in (0, 1)]
            assert part.orders is not None
            assert part.orders.both_right is not None
            assert sum(right) == part.counted.right
            both = round(part.orders.both_right.value * part.comparisons)
            same = part.orders.same + part.orders.both_missing  # two replies without a winner are the same there
            counts[subset, verdicts.name] = (part.comparisons, *right, both, same)
    return LlmBar(judges, counts)


def llmbar_published() -> dict[tuple[str, str], tuple[int, ...]]:
    """COUNTS by (subset, judge)."""
    with PUBLISHED.open(newline="") as file:
        return {
            (row["subset"], f"{row['judge']}/{row['strategy']}"): tuple(int(row[name]) for name in COUNTS)
            for row in csv.DictReader(file)
        }


def pandalm(data: Path) -> tuple[RatersAgreement, dict[str, Quality]]:
    """The annotators among themselves, and the two judges against their majority."""
    stored = tuple(map(Stored, PANDALM_SCORES))
    reading = Reading(Columns(codes=with_codes(["none=garbage"])), stored=stored)
    found = read_pairwise(str(data / "pref_pandalm_human3.parquet"), reading)
    labels = labels_of(found)
    people = raters_agreement(annotator_verdicts(found), labels.cluster)
    return people, {verdicts.name: quality(labels, verdicts) for verdicts in stored_verdicts(found)}


def check_llmbar(data: Path, console: Console) -> int:
    """Print the judges and return the number of published figures that are not ours."""
    found, published = llmbar(data), llmbar_published()
    table = Table(title="LLMBar: accuracy over both orders (subset by subset), the same verdict in both, place, length")
    subsets = list(next(iter(found.judges.values())).subsets)
    for name in ("judge", *subsets, "adversarial", "same", "first shown", "longer right", "shorter right", "none"):
        table.add_column(name.removeprefix("Adversarial/"), justify="left" if name == "judge" else "right")
    for name, judge in sorted(found.judges.items()):
        average = {subset: part.strict_accuracy for subset, part in judge.subsets.items()}
        values = {subset: value.value for subset, value in average.items() if value is not None}
        adversarial = [value for subset, value in values.items() if subset.startswith("Adversarial/")]
        assert judge.orders is not None
        assert judge.place is not None
        measures = (
            judge.orders.consistency,
            judge.place.first_shown,
            judge.length.longer_right,
            judge.length.shorter_right,
        )
        row = [*values.values(), sum(adversarial) / len(adversarial)]
        table.add_row(name, *(f"{100 * v:.1f}" for v in row), *map(_percent, measures), str(judge.counted.none))
    console.print(table)
    wrong = [key for key in published.keys() | found.counts.keys() if published.get(key) != found.counts.get(key)]
    console.print(f"{len(published) - len(wrong)} of {len(published)} published statistics files equal, count by count")
    return len(wrong)


def check_pandalm(data: Path, console: Console) -> int:
    people, judges = pandalm(data)
    table, wrong = Table(title="PandaLM: people, and judges against their majority"), 0
    for name in ("figure", "ours (95 %)", "published"):
        table.add_column(name, justify="left" if name == "figure" else "right")
    for pair in people.pairs:
        assert pair.kappa is not None
        wrong += round(pair.kappa.value, 2) != PANDALM_KAPPA[pair.raters]
        table.add_row(f"kappa {' '.join(pair.raters)}", _decimal(pair.kappa), f"{PANDALM_KAPPA[pair.raters]:.2f}")
    table.add_row("alpha of the three", _decimal(people.alpha), "-")
    for one in people.against_others:
        table.add_row(f"{one.rater} with the majority of the others", _percent(one.same), "-")
    for name, judge in judges.items():
        for figure, ours, published in zip(
            ("accuracy", "precision", "recall", "F1"), macro_scores(judge.confusion), PANDALM_SCORES[name], strict=True
        ):
            wrong += round(100 * ours, 2) != published
            table.add_row(f"{name} {figure}, ties a class", f"{100 * ours:.2f}", f"{published:.2f}")
        table.add_row(f"{name} accuracy where people prefer one", _percent(judge.accuracy), "-")
        table.add_row(f"{name} kappa with the majority", _decimal(judge.label.kappa), "-")
    counts = {label: sum(next(iter(judges.values())).confusion[label].values()) for label in PANDALM_LABELS}
    wrong += counts != PANDALM_LABELS
    table.add_row("majority: tie, first, second", ", ".join(map(str, counts.values())), "105, 422, 472")
    console.print(table)
    return wrong


def _percent(value: Interval | None) -> str:
    return "-" if value is None else f"{100 * value.value:.1f} ({100 * value.low:.0f}-{100 * value.high:.0f})"


def _decimal(value: Interval | None) -> str:
    return "-" if value is None else f"{value.value:.3f} ({value.low:.2f}-{value.high:.2f})"


def main() -> int:
    parser = argparse.ArgumentParser(description="Published figures of judges, reproduced.")
    parser.add_argument("--data", type=Path, required=True, help="folder of the preference sets")
    data = parser.parse_args().data
    console = Console()
    console = Console(width=max(console.width, 190)) if not console.is_terminal else console
    wrong = check_llmbar(data, console) + check_pandalm(data, console)
    console.print("every published figure reproduced" if not wrong else f"{wrong} published figures differ")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
