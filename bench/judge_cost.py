"""What a judging protocol costs per useful pair, and how often its pairs have the wrong sign.

    python bench/judge_cost.py [--json]

On published GPT-4 judgments (AlpacaEval 2), split by instruction into a half that fits the cheap judge and a half that is
measured. Needs the reference data ($NASHTUNE_REFERENCE_DATA, else ../shared/data); skips without them. See
docs/judging-cost.md.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import judge_data
import numpy as np
from bars import Row, arguments, finish
from judge_cheap import check_cheap, check_people, fit_cheap
from judge_counts import MEASURES, interval, run, totals
from judge_data import Case, Floats
from judge_protocols import JUDGE, TRUST, Counter, World

from nashtune import recipe
from nashtune.judging.preference_head import PreferenceHead
from nashtune.judging.prices import find_price

DRAWS = 10
"""Draws of the judge's noise."""
SENSITIVITY_DRAWS = 4
RESAMPLES = 2000
MOST_DOLLARS = 0.25
"""Of the paper's dollars per useful pair."""
NO_WORSE = 0.02
"""Share by which wrong signs may exceed the paper's at the upper end of the difference's 95 % interval."""


def main() -> None:
    options = arguments(__doc__).parse_args()
    where = judge_data.folder()
    if where is None:
        print(
            "skipped: no reference data (alpacaeval_annotations_open.parquet) in $NASHTUNE_REFERENCE_DATA or "
            "../shared/data"
        )
        print(json.dumps({"skipped": "no reference data"}))
        return
    started = time.process_time()
    data = judge_data.read(where)
    price = find_price(recipe.EngineSection(model=JUDGE))
    world = World(Counter.best_at_hand(), price, judge_data.thresholds(data.fit), judge_data.noise(data))
    trust = choose_trust(data.fit, world)
    head, chosen = fit_cheap(data.fit, world)
    result = report(run(world, head, data.test, DRAWS), data, world, f"cascade, trust {trust:g}")
    result["trust"] = trust
    result["sensitivity"] = sensitivity(world, head, data.test)
    result["cheap_judge"] = chosen | check_cheap(head, data.test, world)
    result["pandalm"] = check_people(head, judge_data.pandalm(where))
    result["llmbar"] = judge_data.llmbar(where)
    result["cpu_seconds"] = round(time.process_time() - started, 1)
    if not options.json:
        show(result)
    finish(result, bars(result["trusting_cascade_against_paper"]), options.json)


def choose_trust(cases: Sequence[Case], world: World) -> float:
    """The highest of TRUST with which the cascade keeps to the dollars asked of it, on the second half of the fit half, by a
    cheap judge fitted on the first; the lowest where none does. The test half has no part in it."""
    middle = len(cases) // 2
    head, _ = fit_cheap(cases[:middle], world)
    sums = run(world, head, cases[middle:], SENSITIVITY_DRAWS)
    cost = MEASURES["dollars_per_1000_useful_pairs"]
    dollars = {name: float(cost(totals(counts, np.ones((1, len(counts)))))[0]) for name, counts in sums.items()}
    kept = [t for t in TRUST if dollars[f"cascade, trust {t:g}"] <= MOST_DOLLARS * dollars["paper"]]
    return max(kept, default=min(TRUST))


def bars(against: Row) -> dict[str, tuple[float, Callable[[float], bool], str]]:
    """What is asked of a cascade, ``against`` the paper's protocol."""
    ratio, worse = against["dollars_per_useful_pair"], against["wrong"]
    return {
        "cascade's dollars per useful pair, of the paper's": (ratio[0], lambda x: x <= MOST_DOLLARS, "at most 0.25"),
        "cascade's wrong signs less the paper's (held-out judge), upper end": (
            worse[2], lambda x: x <= NO_WORSE, f"at most {NO_WORSE}",
        ),
    }  # fmt: skip


def sensitivity(world: World, head: PreferenceHead, cases: Sequence[Case]) -> dict[str, Row]:
    """The bars' figures under other assumptions; decides nothing (added after the first look at the test half)."""
    changes: dict[str, dict[str, float]] = {
        "no noise in the judge": {"noise": 0.0},
        "half the noise": {"noise": world.noise / 2},
        "40 tokens per justified candidate": {"justified": 40},
        "at most 2 pairs a prompt": {"max_per_prompt": 2},
        "at most 1 pair a prompt": {"max_per_prompt": 1},
    }
    found: dict[str, Row] = {}
    for name, change in changes.items():
        sums = run(replace(world, **change), head, cases, SENSITIVITY_DRAWS)  # type: ignore[arg-type]
        by = {p: totals(counts, np.ones((1, len(cases)))) for p, counts in sums.items() if counts[:, 3].any()}
        dollars = {p: MEASURES["dollars_per_1000_useful_pairs"](s)[0] for p, s in by.items()}
        found[name] = {
            p: {
                "dollars per useful pair, of the paper's": round(float(dollars[p] / dollars["paper"]), 3),
                "wrong_sign_full": round(float(MEASURES["wrong_sign_full"](s)[0]), 3),
                "wrong_sign_held_out": round(float(MEASURES["wrong_sign_held_out"](s)[0]), 3),
            }
            for p, s in by.items()
        }
    return found


def report(sums: dict[str, Floats], data: judge_data.Data, world: World, trusting: str) -> Row:
    """``trusting``: the name of the cascade that the bars are about."""
    groups = len(data.test)
    draws = np.random.default_rng(0).multinomial(groups, np.full(groups, 1 / groups), RESAMPLES)
    weights = np.concatenate([np.ones((1, groups)), draws.astype(np.float64)])
    with np.errstate(divide="ignore", invalid="ignore"):
        by = {name: totals(counts, weights) for name, counts in sums.items()}
        table = {p: {name: interval(f(s)) for name, f in MEASURES.items()} for p, s in by.items()}
        plain, bar = _against_paper(by, "cascade"), _against_paper(by, trusting)
        plain["useful_pairs_of_random_triple"] = interval(by["cascade"]["useful"] / by["random triple"]["useful"])
    students = np.array([case.values[:-1] for case in data.test])
    return {
        "judge": JUDGE,
        "price": world.price.source,
        "tokens_by": world.counter.name,
        "instructions": {"fit": len(data.fit), "test": groups},
        "students": data.students,
        "noise_log_odds": round(world.noise, 3),
        "flips": [round(f, 3) for f in data.flips],
        "best_student_beats_teacher": round(float((students.max(1) > 0).mean()), 3),
        "thresholds": [round(float(t), 3) for t in world.steps],
        "decided_pairs": {name: round(float(s["decided"][0]), 1) for name, s in by.items()},
        "protocols": table,
        "cascade_against_paper": plain,
        "trusting_cascade_against_paper": bar,
    }


def _against_paper(by: dict[str, dict[str, Floats]], name: str) -> Row:
    """A protocol's figures of the paper's, or less the paper's."""
    cost = MEASURES["dollars_per_1000_useful_pairs"]
    wrong, full = MEASURES["wrong_sign_held_out"], MEASURES["wrong_sign_full"]
    useful = MEASURES["useful_pairs_per_prompt"]
    students = MEASURES["wrong_sign_held_out_students_only"]
    found, paper = by[name], by["paper"]
    return {
        "dollars_per_useful_pair": interval(cost(found) / cost(paper)),
        "wrong": interval(wrong(found) - wrong(paper)),
        "wrong_full": interval(full(found) - full(paper)),
        "wrong_students_only": interval(students(found) - students(paper)),
        "useful_pairs": interval(useful(found) / useful(paper)),
    }


def show(result: Row) -> None:
    names = ("dollars_per_1000_prompts", "useful_pairs_per_prompt", "dollars_per_1000_useful_pairs", "mean_margin",
             "wrong_sign_full", "wrong_sign_held_out", "balanced_agreement_held_out")  # fmt: skip
    print(" | ".join(("protocol", *names)))
    for protocol, row in result["protocols"].items():
        cells = ["-" if row[n] is None else "{} ({}, {})".format(*row[n]) for n in names]
        print(" | ".join((protocol, *cells)))


if __name__ == "__main__":
    main()
