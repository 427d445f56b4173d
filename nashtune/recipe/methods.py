"""Named methods: each a preset of pair rule, replay, references and objective that a recipe may override.

`method: NAME` fills in what the recipe does not say. A setting that is written always wins; an objective written by
another name than the method's replaces the method's whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ON_POLICY: dict[str, Any] = {"replay": {"fraction": 0.0}}
OFFLINE: dict[str, Any] = {"sampling": {"policy": "initial"}, "replay": {"fraction": 0.0}}
BEST_WORST: dict[str, Any] = {"pairs": {"rule": "best_worst"}}


@dataclass(frozen=True, slots=True)
class Method:
    """A preset and where it comes from. ``needs`` says what a recipe must bring besides."""

    summary: str
    source: str
    settings: Mapping[str, Any]
    needs: str = "an oracle"


METHODS: dict[str, Method] = {
    "dno": Method(
        "Direct Nash Optimization as its experiments ran: large-margin pairs, the previous policy as reference, replay",
        "arXiv 2404.03715 algorithm 2",
        {"pairs": {"rule": "paper"}, "objective": {"name": "dno-prct"}, "replay": {"fraction": 0.3}},
        "an oracle; the paper has a teacher",
    ),
    "dno-soft": Method(
        "DNO with the soft targets of eq. 8, on every difference",
        "arXiv 2404.03715 algorithm 1",
        {"pairs": {"rule": "all"}, "objective": {"name": "dno"}, "replay": {"fraction": 0.3}},
    ),
    "dno-restrictive": Method(
        "DNO that only learns from the teacher's wins over the student",
        "arXiv 2404.03715 section 5",
        {"pairs": {"rule": "restrictive"}, "objective": {"name": "dno-prct"}, "replay": {"fraction": 0.3}},
        "an oracle, a teacher",
    ),
    "dno-lookahead": Method(
        "DNO that pools the pairs of all iterations and retrains from the initial policy each time",
        "arXiv 2404.03715 section 5",
        {
            "pairs": {"rule": "paper"},
            "objective": {"name": "dno-prct"},
            "replay": {"fraction": "all"},
            "train": {"start": "initial"},
        },
        "an oracle; the paper has a teacher",
    ),
    "dno-regularized": Method(
        "DNO regularised towards the initial policy, option I: sampled from the policy itself",
        "arXiv 2404.03715 algorithms 3 and 4, option I",
        {"pairs": {"rule": "paper"}, "objective": {"name": "dno-regularized"}, "replay": {"fraction": 0.3}},
        "an oracle; the paper has a teacher",
    ),
    "dno-regularized-mixed": Method(
        "DNO regularised towards the initial policy, option II: sampled token by token from the mixture of both",
        "arXiv 2404.03715 algorithms 3 and 4, option II",
        {
            "pairs": {"rule": "paper"},
            "objective": {"name": "dno-regularized", "eta": 0.1, "tau": 0.01},
            "sampling": {"mixture": 0.1},
            "replay": {"fraction": 0.3},
        },
        "an oracle; the native engine; memory for two models; the paper has a teacher",
    ),
    "spin": Method(
        "SPIN: the teacher's answer over every sample of the policy, without judging",
        "arXiv 2401.01335",
        {**ON_POLICY, "pairs": {"rule": "teacher_wins"}, "objective": {"name": "spin"}},
        "a teacher; the oracle judges validation only",
    ),
    "offline-dpo": Method(
        "DPO on samples of the initial policy alone, one part of the prompts after the other",
        "arXiv 2305.18290",
        {**OFFLINE, "pairs": {"rule": "paper"}, "objective": {"name": "dpo"}},
    ),
    "iterative-dpo": Method(
        "DPO on fresh samples of each policy, best against worst, the initial policy as reference throughout",
        "arXiv 2312.11456",
        {**ON_POLICY, **BEST_WORST, "objective": {"name": "dpo"}},
    ),
    "self-rewarding": Method(
        "the policy grades its own samples; DPO of best against worst, the previous policy as reference",
        "arXiv 2401.10020",
        {**ON_POLICY, **BEST_WORST, "oracle": {"kind": "self"}, "objective": {"name": "dno-prct", "alpha": 0.0}},
        "nothing; validate.oracle for a judge other than itself",
    ),
    "sppo": Method(
        "Self-Play Preference Optimization: best and worst sample regressed on their win rates against the policy",
        "arXiv 2405.00675",
        {**ON_POLICY, **BEST_WORST, "objective": {"name": "sppo"}},
        "an oracle; sampling.k of 3 or more",
    ),
    "rspo": Method(
        "SPPO with forward and reverse divergence from the initial policy",
        "arXiv 2503.00030",
        {**ON_POLICY, **BEST_WORST, "objective": {"name": "rspo"}},
        "an oracle; sampling.k of 3 or more",
    ),
    "inpo": Method(
        "Iterative Nash Policy Optimization: best against worst, a squared loss, both policies as reference",
        "arXiv 2407.00617",
        {**ON_POLICY, **BEST_WORST, "objective": {"name": "inpo"}},
    ),
    "comal": Method(
        "INPO whose far reference is replaced every few iterations",
        "arXiv 2410.23223",
        {**ON_POLICY, **BEST_WORST, "objective": {"name": "comal"}},
    ),
    "mnpo": Method(
        "Multiplayer Nash Preference Optimization: several past policies as references",
        "arXiv 2509.23102",
        {**ON_POLICY, **BEST_WORST, "objective": {"name": "mnpo"}},
    ),
    "rebel": Method(
        "REBEL: score differences regressed on log-ratios, best against worst",
        "arXiv 2404.16767",
        {**ON_POLICY, **BEST_WORST, "objective": {"name": "rebel"}},
        "an oracle that scores",
    ),
    "iterative-kto": Method(
        "KTO on fresh samples: positives are good answers, negatives bad ones",
        "arXiv 2402.01306",
        {**ON_POLICY, "pairs": {"rule": "paper"}, "objective": {"name": "kto"}},
    ),
    "sft-on-positives": Method(
        "supervised fine-tuning on the positives of the initial policy's and the teacher's answers",
        "the SFT baseline of arXiv 2404.03715",
        {**OFFLINE, "pairs": {"rule": "paper"}, "objective": {"name": "sft"}},
    ),
    "best-of-n": Method(
        "supervised fine-tuning on each prompt's best sample (rejection sampling), iterated",
        "arXiv 2304.06767",
        {**ON_POLICY, **BEST_WORST, "objective": {"name": "sft"}},
    ),
}


def with_method(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's written settings over those of its method, if it names a known one."""
    method = METHODS.get(raw["method"]) if isinstance(raw.get("method"), str) else None
    return over(method.settings, raw) if method else dict(raw)


def over(preset: Mapping[str, Any], written: Mapping[str, Any]) -> dict[str, Any]:
    """``written`` laid over ``preset``, section by section. A section that names another ``name`` or ``kind`` than the
    preset's is another thing, and replaces it."""
    merged = dict(preset)
    for key, value in written.items():
        below = merged.get(key)
        mergeable = isinstance(below, Mapping) and isinstance(value, Mapping) and not _differs(below, value)
        merged[key] = over(below, value) if mergeable else value  # type: ignore[arg-type]
    return merged


def _differs(below: Mapping[str, Any], value: Mapping[str, Any]) -> bool:
    return any(tag in below and tag in value and below[tag] != value[tag] for tag in ("name", "kind"))


def without(preset: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` less what ``preset`` says already: what a recipe with that method has to write."""
    kept: dict[str, Any] = {}
    for key, value in values.items():
        below = preset.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping) and not _differs(below, value):
            if inside := without(below, value):
                kept[key] = inside
        elif key not in preset or below != value:
            kept[key] = value
    return kept
