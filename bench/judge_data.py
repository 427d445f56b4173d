"""Published judgments as candidate sets: what judge_cost.py measures on.

Legend: an instruction has K = 5 students' answers and the teacher's; value = log-odds that the published judge prefers
an answer to the teacher's (the teacher's own is 0); D features.
"""

from __future__ import annotations

import math
import os
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nashtune.records import Message, Prompt, Response
from nashtune.seeds import seed_for

Floats = NDArray[np.float64]
K = 5
TEACHER = "gpt4_1106_preview"
AUTHORITY = ("alpaca_eval_gpt4", "text_davinci_003")
"""Judge and baseline of the held-out word: another judge model, prompt and opponent."""
STUDENTS = (
    "alpaca-7b",
    "alpaca-farm-ppo-human",
    "falcon-40b-instruct",
    "gpt-3.5-turbo-1106",
    "gpt35_turbo_instruct",
    "minichat-3b",
    "oasst-rlhf-llama-33b",
    "phi-2",
    "phi-2-sft",
    "vicuna-13b",
)
"""Win rates of 2 to 9 % against the teacher; those without the held-out word on the very same outputs drop out."""
REJUDGED = ("alpaca_eval_gpt4_turbo_fn", "alpaca_eval_cot_gpt4_turbo_fn")
"""One judge model without and with written reasons, on the same outputs."""
NEAR = ("claude", "claude-2", "Mixtral-8x7B-Instruct-v0.1_concise")
"""Models whose values are known and whose win rates (14 to 17 %) are like those of the models judged twice."""
PAPER_STUDENT_SCORE = 3.46
"""Mean score of the students at the paper's iteration 0; its teacher's was 4.99."""
CLIP = 1e-8
"""Published probabilities are read no closer to 0 and 1 than this."""


@dataclass(frozen=True, slots=True)
class Case:
    """An instruction with its candidates, the teacher's last."""

    prompt: Prompt
    responses: tuple[Response, ...]
    values: tuple[float, ...]
    held_out: tuple[bool | None, ...]
    """Whether the authority prefers each answer to its own baseline; None where it did not decide."""
    features: Floats
    """[K + 1, D]"""


@dataclass(frozen=True, slots=True)
class Data:
    fit: list[Case]
    test: list[Case]
    students: tuple[str, ...]
    near_values: Floats
    """Values of NEAR on the fit half."""
    flips: tuple[float, float]
    """Share of the first rejudge's losses, and of its wins, that the second decides otherwise."""


def folder() -> Path | None:
    """Where the reference data lie, or None."""
    default = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    found = Path(os.environ.get("NASHTUNE_REFERENCE_DATA") or default)
    return found if (found / "alpacaeval_annotations_open.parquet").is_file() else None


def table(where: Path, name: str) -> list[dict[str, Any]]:
    import pyarrow.parquet as parquet

    return parquet.read_table(where / f"{name}.parquet").to_pylist()


def read(where: Path) -> Data:
    instructions = table(where, "alpacaeval_prompts")
    rows = {(r["model"], r["index"]): r for r in table(where, "alpacaeval_annotations_open")}
    others = table(where, "alpacaeval_other_judges_open")
    word = _held_out(others, rows)
    students = tuple(m for m in STUDENTS if sum((m, i) in word for i in range(len(instructions))) > 700)
    fit, test = [], []
    for row in sorted(instructions, key=lambda r: seed_for("judge cost half", r["instruction"])):
        case = _case(row, rows, word, students)
        (fit if len(fit) < len(instructions) // 2 else test).append(case)
    of_fit = {int(case.prompt.source) for case in fit}
    near = [log_odds(r["preference"] - 1) for (m, i), r in rows.items() if m in NEAR and i in of_fit]
    return Data(fit, test, students, np.array(near), _flips(others))


def log_odds(p: float) -> float:
    p = min(max(p, CLIP), 1 - CLIP)
    return math.log(p / (1 - p))


def _held_out(others: Sequence[Mapping[str, Any]], rows: Mapping[tuple[str, int], Any]) -> dict[tuple[str, int], bool]:
    """The authority's decided verdicts on outputs of the same length as those that the main judge saw."""
    found = {}
    for r in others:
        key = (r["model"], r["index"])
        same = key in rows and rows[key]["output_len"] == r["output_len"]
        if (r["judge"], r["baseline"]) == AUTHORITY and same and r["preference"] in (1.0, 2.0):
            found[key] = r["preference"] == 2.0
    return found


def _flips(others: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    said: list[dict[tuple[str, int], tuple[float, int]]] = [{}, {}]
    for r in others:
        if r["judge"] in REJUDGED and r["preference"] in (1.0, 2.0):
            said[REJUDGED.index(r["judge"])][r["model"], r["index"]] = (r["preference"], r["output_len"])
    both = [(a[0], said[1][k][0]) for k, a in said[0].items() if k in said[1] and a[1] == said[1][k][1]]
    lost, won = [b != a for a, b in both if a == 1.0], [b != a for a, b in both if a == 2.0]
    return sum(lost) / len(lost), sum(won) / len(won)


def _case(row: Mapping[str, Any], rows: Mapping, word: Mapping, students: Sequence[str]) -> Case:
    index = row["index"]
    able = [m for m in students if (m, index) in rows and rows[m, index]["output"]]
    models = sorted(able, key=lambda m: seed_for("judge cost students", index, m))[:K]
    prompt = Prompt.make([Message("user", row["instruction"])], source=str(index))
    texts = [*(rows[m, index]["output"] for m in models), row["reference_output"]]
    names = [*models, TEACHER]
    return Case(
        prompt,
        tuple(
            Response(f"{index}-{m}", prompt.id, k, "teacher" if m == TEACHER else "student", m, text)
            for k, (m, text) in enumerate(zip(names, texts, strict=True))
        ),
        (*(log_odds(rows[m, index]["preference"] - 1) for m in models), 0.0),
        tuple(word.get((m, index)) for m in names),
        features(row["instruction"], texts),
    )


# ---- the judge's noise and its points ------------------------------------------------------------------------------------


def noise(data: Data) -> float:
    """Standard deviation (log-odds) of the change from one judging to another that turns as many verdicts on NEAR's
    answers as the second of REJUDGED turned of the first's (mean of the shares among losses and among wins)."""
    wanted, values = sum(data.flips) / 2, data.near_values
    draw = np.random.default_rng(0).standard_normal((20, len(values)))

    def turned(sd: float) -> float:
        again = values + sd * draw
        return float(((again[:, values < 0] > 0).mean() + (again[:, values > 0] < 0).mean()) / 2)

    low, high = 0.0, 20.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if turned(middle) < wanted else (low, middle)
    return (low + high) / 2


def thresholds(cases: Sequence[Case]) -> Floats:
    """The six values at which a score rises by one: on ``cases`` the students' scores follow the binomial distribution
    of 6 points whose mean is the paper's."""
    p = PAPER_STUDENT_SCORE / 6
    shares = [math.comb(6, n) * p**n * (1 - p) ** (6 - n) for n in range(7)]
    values = [v for case in cases for v in case.values[:-1]]
    return np.quantile(values, np.cumsum(shares)[:6])


def points(values: Floats, steps: Floats) -> Floats:
    return np.searchsorted(steps, values, side="right").astype(np.float64)


# ---- what the cheap judge knows ------------------------------------------------------------------------------------------

REFUSAL = re.compile(r"\b(sorry|cannot|can't|unable|as an ai|i don't have)\b", re.IGNORECASE)
HEDGE = re.compile(r"\b(however|may|might|important|note|depends?|consider|ensure)\b", re.IGNORECASE)
LIST_LINE = re.compile(r"^\s*(\d+[.)]|[-*•])\s", re.MULTILINE)


def features(instruction: str, answers: Sequence[str]) -> Floats:
    """Surface features of each answer, then the same less their mean over the set [K + 1, D]."""
    asked = set(re.findall(r"\w+", instruction.lower()))
    own = np.array([_surface(text, asked) for text in answers])
    return np.hstack([own, own - own.mean(0)])


def _surface(text: str, asked: set[str]) -> list[float]:
    words = re.findall(r"\w+", text.lower())
    count = max(1, len(words))
    kinds = set(words)
    triples = [tuple(words[i : i + 3]) for i in range(len(words) - 2)]
    sentences = max(1, len(re.findall(r"[.!?](\s|$)", text)))
    length = math.log1p(len(text))
    return [
        length,
        length**2,
        math.log(count),
        sum(map(len, words)) / count,
        math.log(count / sentences),
        len(kinds) / count**0.5,
        1 - len(set(triples)) / max(1, len(triples)),
        math.log1p(len(LIST_LINE.findall(text))),
        math.log1p(text.count("\n\n")),
        math.log1p(text.count("**")),
        float("```" in text),
        sum(c.isdigit() for c in text) / max(1, len(text)),
        sum(c in ",;:()" for c in text) / max(1, len(text)),
        len(kinds & asked) / max(1, len(asked)),
        len(kinds & asked) / max(1, len(kinds)),
        float(bool(REFUSAL.search(text[:300]))),
        len(HEDGE.findall(text)) / count,
        float(text.rstrip()[-1:] in tuple(".!?\"')`:")),
        float(text[:1].isupper()),
        float(text.count("?")),
    ]


# ---- sets with human labels ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Labelled:
    """Two answers, which of them people call better, and what a published judge said (None: no word)."""

    group: str
    first: str
    second: str
    features: Floats
    """[2, D]"""
    human: bool
    """The first is better."""
    judge: float | None
    """1 the first, 0 the second, 0.5 a tie."""
    one_annotator: float | None


def pandalm(where: Path) -> list[Labelled]:
    """Rows on which two of three annotators name one side; each row's own annotator is drawn by seed among the three and
    compared with the other two where these agree."""
    side = {1: 1.0, 2: 0.0, 0: 0.5, "1": 1.0, "2": 0.0, "Tie": 0.5}
    found = []
    for r in table(where, "pref_pandalm_human3"):
        votes = [int(r[f"annotator{n}"]) for n in (1, 2, 3)]
        winner = next((v for v in (1, 2) if votes.count(v) >= 2), None)
        if winner is None:
            continue
        asked = r["instruction"] + "\n" + (r["input"] or "")
        drawn = random.Random(seed_for("annotator", r["idx"])).randrange(3)
        rest = [v for n, v in enumerate(votes) if n != drawn]
        one = side[votes[drawn]] if rest[0] == rest[1] == winner else None
        first, second = str(r["response1"]), str(r["response2"])
        both = features(asked, [first, second])
        found.append(Labelled(asked, first, second, both, winner == 1, side.get(r["judge_gpt35"]), one))
    return found


def llmbar(where: Path) -> list[dict[str, Any]]:
    """GPT-4 with and without written reasons: accuracy against the label (both orders), and verdicts that the order
    turned."""
    label = {(r["subset"], r["idx"]): r["label"] for r in table(where, "pref_llmbar")}
    found = []
    for strategy in ("Vanilla", "CoT"):
        rows = [
            r
            for r in table(where, "pref_llmbar_judges")
            if r["judge"] == "GPT-4" and r["strategy"] == strategy and r["winner"] and r["winner_swapped"]
        ]
        right = [(r[w] == label[r["subset"], r["idx"]]) for r in rows for w in ("winner", "winner_swapped")]
        turned = [r["winner"] != r["winner_swapped"] for r in rows]
        found.append(
            {
                "strategy": strategy,
                "comparisons": len(rows),
                "accuracy": round(sum(right) / len(right), 3),
                "turned_by_order": round(sum(turned) / len(turned), 3),
            }
        )
    return found
