"""What judge_cost.py counts of every protocol, and the figures made of the counts.

Legend: G instructions, C = len(COLUMNS), B resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import judge_data
import numpy as np
from judge_data import Case, Floats
from judge_protocols import World, protocols

from nashtune import recipe
from nashtune.judging.preference_head import PreferenceHead
from nashtune.pairs import build_pairs
from nashtune.records import Judgment
from nashtune.seeds import seed_for

COLUMNS = (
    "calls", "input", "output", "dollars", "pairs", "useful", "prompts_useful", "margin", "wrong_full",
    "decided", "wrong_held_out", "decided_ss", "wrong_ss", "long", "right_long", "short", "right_short",
)  # fmt: skip


def count(case: Case, judgment: Judgment, world: World) -> list[float]:
    """One instruction's COLUMNS."""
    place = {r.id: i for i, r in enumerate(case.responses)}
    full = judge_data.points(np.array(case.values), world.steps)
    seen = [case.responses[place[name]] for name in judgment.response_ids]
    section = recipe.PairsSection(max_per_prompt=world.max_per_prompt)
    pairs = build_pairs([(case.prompt, seen, judgment)], section, iteration=1, seed=0).pairs
    sums = dict.fromkeys(COLUMNS, 0.0)
    for pair in pairs:
        a, b = place[pair.chosen_id], place[pair.rejected_id]
        sums["pairs"] += 1
        sums["useful"] += full[a] - full[b] >= 1
        sums["margin"] += full[a] - full[b]
        sums["wrong_full"] += case.values[a] < case.values[b]
        one, two = case.held_out[a], case.held_out[b]
        if one is not None and two is not None and one != two:
            students = pair.kind == "S>S"
            sums["decided"] += 1
            sums["wrong_held_out"] += two
            sums["decided_ss"] += students
            sums["wrong_ss"] += students and two
    sums["prompts_useful"] = float(sums["useful"] > 0)
    sums |= _by_length(case, judgment, place)
    usage = judgment.usage
    sums |= {"calls": usage.calls, "input": usage.prompt_tokens, "output": usage.completion_tokens}
    sums["dollars"] = usage.cost_usd or 0.0
    return [float(sums[name]) for name in COLUMNS]


def _by_length(case: Case, judgment: Judgment, place: dict[str, int]) -> dict[str, float]:
    """Comparisons that protocol and held-out judge both decide, by whether the latter prefers the longer answer."""
    sums: dict[str, float] = dict.fromkeys(("long", "right_long", "short", "right_short"), 0.0)
    at = [place[name] for name in judgment.response_ids]
    for i, a in enumerate(at):
        for j, b in enumerate(at[:i]):
            one, two, said = case.held_out[a], case.held_out[b], judgment.preference(i, j)
            if one is None or two is None or one == two or said is None or said == 0.5:
                continue
            longer = (len(case.responses[a].text) > len(case.responses[b].text)) == one
            sums["long" if longer else "short"] += 1
            sums["right_long" if longer else "right_short"] += (said > 0.5) == one
    return sums


def run(world: World, head: PreferenceHead, cases: Sequence[Case], draws: int) -> dict[str, Floats]:
    """Each protocol's counts [G, C], the mean over draws of the judge's noise."""
    sums: dict[str, Floats] = {name: np.zeros((len(cases), len(COLUMNS))) for name in protocols(world, head, cases, 0)}
    for draw in range(draws):
        for name, protocol in protocols(world, head, cases, draw).items():
            rows = [count(case, protocol(case, seed_for("judge", draw, case.prompt.id)), world) for case in cases]
            sums[name] += np.array(rows) / draws
    return sums


MEASURES: dict[str, Callable[[dict[str, Floats]], Floats]] = {
    "input_tokens_per_prompt": lambda s: s["input"] / s["prompts"],
    "output_tokens_per_prompt": lambda s: s["output"] / s["prompts"],
    "calls_per_prompt": lambda s: s["calls"] / s["prompts"],
    "dollars_per_1000_prompts": lambda s: 1000 * s["dollars"] / s["prompts"],
    "pairs_per_prompt": lambda s: s["pairs"] / s["prompts"],
    "useful_pairs_per_prompt": lambda s: s["useful"] / s["prompts"],
    "tokens_per_useful_pair": lambda s: (s["input"] + s["output"]) / s["useful"],
    "dollars_per_1000_useful_pairs": lambda s: 1000 * s["dollars"] / s["useful"],
    "dollars_per_1000_prompts_with_a_useful_pair": lambda s: 1000 * s["dollars"] / s["prompts_useful"],
    "mean_margin": lambda s: s["margin"] / s["pairs"],
    "wrong_sign_full": lambda s: s["wrong_full"] / s["pairs"],
    "wrong_sign_held_out": lambda s: s["wrong_held_out"] / s["decided"],
    "wrong_sign_held_out_students_only": lambda s: s["wrong_ss"] / s["decided_ss"],
    "balanced_agreement_held_out": lambda s: (s["right_long"] / s["long"] + s["right_short"] / s["short"]) / 2,
}


def totals(counts: Floats, weights: Floats) -> dict[str, Floats]:
    """counts [G, C] and weights [B, G] -> the sum of each column [B], and of the instructions."""
    return dict(zip(COLUMNS, (weights @ counts).T, strict=True)) | {"prompts": weights.sum(1)}


def interval(values: Floats) -> list[float] | None:
    """[value, low, high] of the estimate, first, and its resamples, the rest."""
    if not np.isfinite(values[0]):
        return None
    low, high = np.nanquantile(values[1:], (0.025, 0.975))
    return [round(float(v), 4) for v in (values[0], low, high)]
