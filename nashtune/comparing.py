"""``nashtune compare``: two runs' recipes and figures, and their policies on the same prompts, paired."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from statistics import fmean
from typing import Any

from nashtune.errors import EvaluationError, StoreError
from nashtune.evaluate.significance import paired_difference
from nashtune.evaluate.winrate import contest
from nashtune.evaluated import all_scores, place_of, read_items, read_rows
from nashtune.recipe import SUITE_SECTIONS, identity
from nashtune.records import Interval, Judgment, Response
from nashtune.run import Run
from nashtune.store import tables
from nashtune.suites.registry import open_suite, suite_class
from nashtune.suites.suite import Compares

FIGURES = (
    "win_rate_vs_initial",
    "win_rate_vs_teacher",
    "p_beats_teacher",
    "satisfied_and_good",
    "mean_score",
    "mean_words",
)
"""Held-out figures shown side by side."""
NO_DIFFERENCE = ("name", "folder", "ledger", "shared")
"""Settings in which any two runs differ."""


def compare_runs(a: Run, b: Run) -> dict[str, Any]:
    """Both runs as JSON values: ``recipe`` differences; held-out figures of each iteration; paired differences (a less b)
    between the iterations with one number and between the best ones, of suites and of held-out contests; ``remarks`` say
    what could not be compared, and why."""
    remarks: list[str] = []
    return {
        "a": _head(a),
        "b": _head(b),
        "recipe": _recipe_differences(a, b),
        "iterations": _side_by_side(a, b),
        "suites": list(_suites(a, b, remarks)),
        "held_out": list(_held_out(a, b, remarks)),
        "remarks": list(dict.fromkeys(remarks)),
    }


def _head(run: Run) -> dict[str, Any]:
    best = run.best()
    return {"name": run.recipe.name, "folder": str(run.folder), "best": best.iteration if best else None}


def _recipe_differences(a: Run, b: Run) -> list[dict[str, Any]]:
    ours, theirs = _flat(a.recipe.resolved()), _flat(b.recipe.resolved())
    keys = [key for key in dict.fromkeys([*ours, *theirs]) if key.split(".")[0] not in NO_DIFFERENCE]
    return [
        {"setting": key, "a": ours.get(key), "b": theirs.get(key)} for key in keys if ours.get(key) != theirs.get(key)
    ]


def _flat(values: Mapping[str, Any], head: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{head}{key}.") if isinstance(value, Mapping) else {f"{head}{key}": value}
    return found


def _side_by_side(a: Run, b: Run) -> list[dict[str, Any]]:
    rows = [{summary.iteration: summary for summary in run.summaries()} for run in (a, b)]

    def figures(row: Any) -> dict[str, Any] | None:
        if row is None:
            return None
        values = {name: getattr(row, name) for name in FIGURES}
        return {n: asdict(v) if isinstance(v, Interval) else v for n, v in values.items() if v is not None}

    return [
        {"iteration": t, "a": figures(rows[0].get(t)), "b": figures(rows[1].get(t))}
        for t in sorted(rows[0].keys() | rows[1].keys())
    ]


def _matched(a: Mapping[int, Any], b: Mapping[int, Any], best: tuple[int | None, int | None]) -> list[tuple[int, int]]:
    """Iterations to compare: those of one number that both have, and the best with the best."""
    found = [(t, t) for t in a if t in b]
    ours, theirs = best
    if ours is not None and theirs is not None and ours in a and theirs in b and (ours, theirs) not in found:
        found.append((ours, theirs))
    return found


def _best(a: Run, b: Run) -> tuple[int | None, int | None]:
    rows = a.best(), b.best()
    return rows[0].iteration if rows[0] else None, rows[1].iteration if rows[1] else None


# ---- suites --------------------------------------------------------------------------------------------------------------


def _suites(a: Run, b: Run, remarks: list[str]) -> Iterator[dict[str, Any]]:
    ours, theirs = all_scores(a.folder), all_scores(b.folder)
    for name in (name for name in ours if name in theirs):
        for t, u in _matched(ours[name], theirs[name], _best(a, b)):
            one, other = ours[name][t], theirs[name][u]
            if one["suite"] != other["suite"] or one["made_from"]["suite"] != other["made_from"]["suite"]:
                remarks.append(f"{name}: the two were evaluated on other data, so they are not compared")
                break
            if one["made_from"]["settings"] != other["made_from"]["settings"]:
                remarks.append(f"{name}: the two were evaluated with other settings (judge, or how answers are drawn)")
            yield from _paired_suite(a, b, name, t, u, one, remarks)


def _paired_suite(
    a: Run, b: Run, name: str, t: int, u: int, one: Mapping[str, Any], remarks: list[str]
) -> Iterator[dict[str, Any]]:
    level, found = a.recipe.validate_.confidence, {"evaluation": name, "iteration_a": t, "iteration_b": u}
    ours, theirs = read_items(a.folder, name, t), read_items(b.folder, name, u)
    for metric in (metric for metric in ours if metric in theirs):
        shared = [item for item in ours[metric] if item in theirs[metric]]
        if len(shared) < 2:
            remarks.append(f"{metric}: {len(shared)} items in common; accepted: at least two")
            continue
        values = ([ours[metric][item] for item in shared], [theirs[metric][item] for item in shared])
        yield found | _row(metric, one["metrics"][metric]["unit"], *paired_difference(*values, level))
    if not issubclass(suite_class(one["suite"]), Compares):
        return
    section = SUITE_SECTIONS[one["suite"]].model_validate(one["settings"])
    try:
        suite = open_suite(section)
        if isinstance(suite, Compares):
            rows = [
                read_rows(run.folder / "evaluations" / name / place_of(i) / "verdicts.jsonl")
                for run, i in ((a, t), (b, u))
            ]
            full = {end: metric for metric, end in section.metric_names().items()}
            for end, (interval, p) in suite.differences((rows[0], ()), (rows[1], ()), level).items():
                yield found | _row(full[end], section.metrics[end], interval, p)
    except (EvaluationError, StoreError) as error:
        remarks.append(f"{name}: not compared further: {error}")


def _row(metric: str, unit: str, interval: Interval, p: float) -> dict[str, Any]:
    return {"metric": metric, "unit": unit, "difference": asdict(interval), "p": p}


# ---- held-out prompts ----------------------------------------------------------------------------------------------------


def _held_out(a: Run, b: Run, remarks: list[str]) -> Iterator[dict[str, Any]]:
    rows = [{s.iteration: s for s in run.summaries() if s.iteration > 0} for run in (a, b)]
    pairs = _matched(rows[0], rows[1], _best(a, b))
    if pairs and identity(a.recipe.validation_oracle) != identity(b.recipe.validation_oracle):
        remarks.append("held-out prompts: the two runs were judged by different oracles")
    for rival in ("initial", "teacher"):
        if pairs and (why := _other_rival(a, b, rival)):
            remarks.append(f"held-out contests with the {rival}: not compared, {why}")
            continue
        for t, u in pairs:
            ours, theirs = held_out_values(a, t, rival), held_out_values(b, u, rival)
            shared = [prompt for prompt in ours if prompt in theirs]
            if len(shared) < 2:
                remarks.append(f"held-out contests with the {rival}: {len(shared)} prompts in common")
                continue
            values = ([100 * ours[prompt] for prompt in shared], [100 * theirs[prompt] for prompt in shared])
            interval, p = paired_difference(*values, a.recipe.validate_.confidence)
            means = {"iteration_a": t, "iteration_b": u, "a": fmean(values[0]), "b": fmean(values[1])}
            yield means | _row(f"win_rate_vs_{rival}", "%", interval, p)


def _other_rival(a: Run, b: Run, rival: str) -> str:
    """Why the rival of one is not that of the other, "" where it is."""
    if rival == "initial":
        stages = [run.stage(0, "validate-sample") for run in (a, b)]
        same = stages[0].record()["output"] == stages[1].record()["output"]
        return "" if same else "their answers to the held-out prompts differ"
    stages = [run.stage(0, "validate-teacher") for run in (a, b)]
    if not all(stage.file.exists() for stage in stages):
        return "not both have one"
    return "" if stages[0].output == stages[1].output else "their teachers' answers differ"


def held_out_values(run: Run, iteration: int, rival: str) -> dict[str, float]:
    """Prompt -> P(policy of ``iteration`` beats the "initial" one or the "teacher"), where it is known."""
    rivals = run.stage(0, "validate-sample" if rival == "initial" else "validate-teacher")
    labels = {response.id: rival for response in tables.stream(Response, rivals.committed())}
    own = run.stage(iteration, "validate-sample").committed()
    labels |= {response.id: "policy" for response in tables.stream(Response, own)}
    found: dict[str, float] = {}
    for judgment in tables.stream(Judgment, run.stage(iteration, "validate-judge").committed()):
        whose = [labels.get(response, "") for response in judgment.response_ids]
        if values := contest([(judgment, whose)], "policy", rival).per_prompt:
            found[judgment.prompt_id] = values[0]
    return found
