"""The cheap judge of judge_cost.py: fitted on one half of the instructions, checked on the other and against people."""

from __future__ import annotations

from collections.abc import Sequence

import judge_data
import numpy as np
import torch
from bars import Row
from judge_data import Case
from judge_protocols import World

from nashtune.judging.judge_report import balanced_accuracy
from nashtune.judging.preference_head import Comparisons, PreferenceHead, choose, fit_head
from nashtune.seeds import seed_for


def comparisons(cases: Sequence[Case], world: World) -> tuple[torch.Tensor, Comparisons, list[str]]:
    """Every two candidates of each case with the sign of their published points (a tie is 0.5)."""
    features = torch.tensor(np.concatenate([case.features for case in cases]), dtype=torch.float32)
    rows: list[tuple[int, int, float]] = []
    groups: list[str] = []
    start = 0
    for case in cases:
        full = judge_data.points(np.array(case.values), world.steps)
        for i in range(len(full)):
            for j in range(i):
                # Which is first is drawn, so that balanced accuracy has two sides.
                a, b = (i, j) if seed_for("first", case.responses[i].id, case.responses[j].id) % 2 else (j, i)
                rows.append((start + a, start + b, 0.5 + 0.5 * float(np.sign(full[a] - full[b]))))
                groups.append(case.prompt.id)
        start += len(full)
    firsts, seconds, targets = zip(*rows, strict=True)
    return features, Comparisons(torch.tensor(firsts), torch.tensor(seconds), torch.tensor(targets)), groups


def fit_cheap(cases: Sequence[Case], world: World) -> tuple[PreferenceHead, Row]:
    """As `nashtune fit-judge` does: an inner fifth of the instructions chooses kind, ridge and temperature."""
    features, data, groups = comparisons(cases, world)
    names = sorted(set(groups), key=lambda name: seed_for("inner", name))
    inner = set(names[: len(names) // 5])
    choice = choose(features, data, [g in inner for g in groups], ("bradley-terry", "general"), 0)
    head = fit_head(features, data, choice.kind, choice.ridge, 0).at(choice.temperature)
    return head, {"kind": choice.kind, "ridge": choice.ridge, "temperature": round(choice.temperature, 3)}


def check_cheap(head: PreferenceHead, cases: Sequence[Case], world: World) -> Row:
    """Against the published points of the test half: all comparisons, and those of two students."""
    features, data, groups = comparisons(cases, world)
    predicted = head.pair_logits(features, data.firsts, data.seconds).sigmoid().double().numpy()
    size = judge_data.K + 1
    students = ((data.firsts % size != judge_data.K) & (data.seconds % size != judge_data.K)).numpy()
    length = torch.tensor([len(r.text) for case in cases for r in case.responses])
    longer = 0.5 + 0.5 * torch.sign(length[data.firsts] - length[data.seconds]).double().numpy()
    found = {}
    for name, mask in {"all": np.ones_like(students), "two students": students}.items():
        of = [g for g, use in zip(groups, mask, strict=True) if use]
        for judge, said in (("head", predicted), ("longer", longer)):
            got = balanced_accuracy(said[mask], data.targets.double().numpy()[mask], of, 0)
            found[f"balanced agreement of {judge}, {name}"] = [round(v, 3) for v in (got.value, got.low, got.high)]
    return found


def check_people(head: PreferenceHead, rows: Sequence[judge_data.Labelled]) -> Row:
    """Balanced agreement with the majority of PandaLM's annotators."""
    logits = [float(head.logits(torch.tensor(row.features, dtype=torch.float32))[0, 1].sigmoid()) for row in rows]
    said: dict[str, list[float | None]] = {
        "cheap judge": list(logits),
        "longer": [0.5 + 0.5 * np.sign(len(r.first) - len(r.second)) for r in rows],
        "GPT-3.5 (published)": [r.judge for r in rows],
        "one annotator, others agreeing": [r.one_annotator for r in rows],
    }
    found = {}
    for name, words in said.items():
        known = [(p, float(r.human), r.group) for p, r in zip(words, rows, strict=True) if p is not None]
        p, t, groups = zip(*known, strict=True)
        got = balanced_accuracy(np.array(p), np.array(t), groups, 0)
        found[name] = [round(v, 3) for v in (got.value, got.low, got.high)] + [len(known)]
    return found
