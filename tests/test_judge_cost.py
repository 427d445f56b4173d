"""The arithmetic of bench/judge_cost.py, on inputs small enough to work by hand."""

import json
import os
import subprocess
import sys
from pathlib import Path

import judge_cheap
import judge_counts
import judge_data
import numpy as np
import pytest
import torch
from bars import finish
from judge_cost import bars, report
from judge_counts import COLUMNS, MEASURES, count, interval, totals
from judge_data import Case, Data
from judge_protocols import Counter, World, protocols

from nashtune.judging.preference_head import PreferenceHead
from nashtune.judging.prices import Price
from nashtune.records import Judgment, Message, Prompt, Response, Usage

STEPS = np.array([-4.5, -3.5, -2.5, -1.5, -0.5, 0.5])  # a value of 0, the teacher's, is 5 points
PRICE = Price(0.001, 0.001, 0.01, "by hand")


def world(noise: float = 0.0) -> World:
    """Every text has 100 tokens: a call reads 100, and three compact replies are 300."""
    return World(Counter(lambda text: 100, "a constant"), PRICE, STEPS, noise)


def case(values: list[float], held_out: list[bool | None], lengths: list[int], name: str = "q") -> Case:
    """Students a, b, ... and the teacher last; one feature, the place."""
    prompt = Prompt.make([Message("user", name)])
    last = len(values) - 1
    responses = tuple(
        Response(f"{name}{k}", prompt.id, k, "teacher" if k == last else "student", "m", chr(97 + k) * n)
        for k, n in enumerate(lengths)
    )
    return Case(prompt, responses, tuple(values), tuple(held_out), np.arange(last + 1.0)[:, None])


FOUR = case([1, -1, -3, 0], [True, False, False, True], [1, 2, 4, 3])  # 6, 4, 2 and the teacher's 5 points
SIX = case([-5, -4, -3, -2, -1, 0], [None] * 6, [1, 2, 3, 4, 5, 6], "six")


def judged(on: Case, scores: list[float], usage: Usage) -> Judgment:
    return Judgment(on.prompt.id, tuple(r.id for r in on.responses), "judge", scores=tuple(scores), usage=usage)


def test_counts_of_one_instruction_worked_by_hand():
    # The judge takes a for 5 and b for 6. Pairs by the paper's rule, with the published difference: a > c (4), b > a (-2),
    # b > teacher (-1), b > c (2), teacher > c (3). b and c are alike to the held-out judge, who decides the other four.
    row = count(FOUR, judged(FOUR, [5, 6, 2, 5], Usage(100, 20, 0.5, 1)), world())
    found = dict(zip(COLUMNS, row, strict=True))
    assert found | {"pairs": 5, "useful": 3, "prompts_useful": 1, "margin": 6, "wrong_full": 2} == found
    assert found | {"decided": 4, "wrong_held_out": 2, "decided_ss": 2, "wrong_ss": 1} == found
    # It prefers the longer answer in teacher/b (the judge does not), the shorter in a/b (not), a/c and teacher/c.
    assert found | {"long": 1, "right_long": 0, "short": 3, "right_short": 2} == found
    assert found | {"calls": 1, "input": 100, "output": 20, "dollars": 0.5} == found


def test_figures_are_ratios_of_sums_over_the_drawn_instructions():
    useless = count(FOUR, judged(FOUR, [0, 0, 0, 0], Usage(50, 10, 0.25, 1)), world())
    counts = np.array([count(FOUR, judged(FOUR, [5, 6, 2, 5], Usage(100, 20, 0.5, 1)), world()), useless])
    sums = totals(counts, np.array([[1.0, 1.0], [2.0, 0.0]]))
    found = {name: measure(sums).tolist() for name, measure in MEASURES.items()}
    assert found["dollars_per_1000_useful_pairs"] == pytest.approx([1000 * 0.75 / 3, 1000 * 1 / 6])
    assert found["dollars_per_1000_prompts_with_a_useful_pair"] == pytest.approx([750, 500])
    assert found["dollars_per_1000_prompts"] == pytest.approx([375, 500])
    assert found["tokens_per_useful_pair"] == pytest.approx([180 / 3, 240 / 6])
    assert found["useful_pairs_per_prompt"] == pytest.approx([1.5, 3])
    assert found["mean_margin"] == pytest.approx([6 / 5, 12 / 10])
    assert found["wrong_sign_full"] == pytest.approx([2 / 5, 4 / 10])
    assert found["wrong_sign_held_out"] == pytest.approx([2 / 4, 4 / 8])
    assert found["wrong_sign_held_out_students_only"] == pytest.approx([1 / 2, 2 / 4])
    assert found["balanced_agreement_held_out"] == pytest.approx([(0 / 1 + 2 / 3) / 2] * 2)


def test_an_interval_leaves_its_estimate_out_of_the_resamples():
    assert interval(np.array([500.0, *range(101)])) == [500.0, 2.5, 97.5]
    assert interval(np.array([np.inf, 1.0, 2.0])) is None


def test_replies_are_billed_by_kind_and_a_set_is_rendered_once():
    asked: list[str] = []
    counter = Counter(lambda text: asked.append(text) or len(text), "characters")
    assert counter.reply("rubric", 6, 100) == 600
    assert counter.reply("compact", 3, 100) == 3 * len('{"scores": [5, 5, 5]}')
    before = len(asked)
    first = counter.prompt("compact", FOUR.prompt, FOUR.responses)
    assert first == counter.prompt("compact", FOUR.prompt, FOUR.responses[::-1]) == len(asked[-1])
    assert len(asked) == before + 1
    assert all(response.text in asked[-1] for response in FOUR.responses)


def test_protocols_pay_for_what_they_ask():
    head = PreferenceHead(*(torch.tensor(x) for x in ([0.0], [1.0], [10.0])), torch.zeros(1, 0), torch.zeros(1, 0))
    ask = protocols(world(), head, [SIX], 0)
    paper = ask["paper"](SIX, 0)
    assert paper.scores == (0, 1, 2, 3, 4, 5)
    assert paper.usage == Usage(100, 600, pytest.approx(100 * 0.001 + 600 * 0.01), 1)
    assert ask["compact"](SIX, 0).usage == Usage(100, 300, pytest.approx(3.1), 1)
    triple = ask["random triple"](SIX, 0)
    assert (triple.response_ids[-1], len(triple.response_ids), triple.usage.calls) == (SIX.responses[-1].id, 3, 1)
    assert ask["teacher wins"](SIX, 0).usage == Usage()
    assert ask["longest wins"](SIX, 0).scores == (0, 0, 0, 0, 0, 6)
    assert ask["shortest wins"](SIX, 0).scores == (6, 0, 0, 0, 0, 0)


def test_the_cascade_pays_for_three_answers_a_repeat_and_the_audit():
    head = PreferenceHead(*(torch.tensor(x) for x in ([0.0], [1.0], [10.0])), torch.zeros(1, 0), torch.zeros(1, 0))
    level = case([0.0] * 6, [None] * 6, [1, 2, 3, 4, 5, 6], "level")
    ask = protocols(world(), head, [SIX, level], 0)
    bare = ask["cascade, no repeat, no audit"]
    # The cheap judge thinks the more of an answer the later it stands: best and worst student, and the teacher.
    assert bare(SIX, 0).scores == (0, None, None, None, 4, 5)
    assert bare(SIX, 0).usage == bare(level, 0).usage == Usage(100, 300, pytest.approx(3.1), 1)
    usages = [(ask["cascade"](SIX, seed).usage, ask["cascade"](level, seed).usage) for seed in range(300)]
    audits = 0
    for clear, close in usages:
        audited = clear.calls == 2  # the audit alone; where all points are equal there is the repeat as well
        audits += audited
        assert clear.cost_usd == pytest.approx(3.1 + 6.1 * audited)
        assert (close.calls, close.cost_usd) == (clear.calls + 1, pytest.approx(clear.cost_usd + 3.1))
    assert 5 <= audits <= 30  # 15 expected, standard deviation 3.8
    audited = next(seed for seed, (clear, _) in enumerate(usages) if clear.calls == 2)
    assert ask["cascade"](SIX, audited).scores == (0, 1, 2, 3, 4, 5)


def test_noise_and_thresholds_are_those_that_give_the_known_shares():
    # Values of 1 and -1 change sides with probability Phi(-1) = 0.1587 under noise of standard deviation 1.
    data = Data([], [], (), np.repeat([-1.0, 1.0], 4000), (0.1587, 0.1587))
    assert judge_data.noise(data) == pytest.approx(1, abs=0.02)
    cases = [case([float(v), 0.0], [None, None], [1, 2], str(v)) for v in np.linspace(-9, 9, 2001)]
    steps = judge_data.thresholds(cases)
    points = judge_data.points(np.array([c.values[0] for c in cases]), steps)
    assert points.mean() == pytest.approx(judge_data.PAPER_STUDENT_SCORE, abs=0.01)
    p = judge_data.PAPER_STUDENT_SCORE / 6
    assert (points == 6).mean() == pytest.approx(p**6, abs=0.002)


def test_comparisons_have_the_published_sign_and_both_orders():
    cases = [FOUR, case([0.1, 0.2, -3, 0], [None] * 4, [1, 2, 3, 4], "ties")]
    features, data, groups = judge_cheap.comparisons(cases, world())
    assert groups == [FOUR.prompt.id] * 6 + [cases[1].prompt.id] * 6
    points = judge_data.points(np.array([v for c in cases for v in c.values]), STEPS)
    signs = 0.5 + 0.5 * np.sign(points[data.firsts.numpy()] - points[data.seconds.numpy()])
    assert data.targets.tolist() == signs.tolist()
    assert sorted(data.targets.tolist()).count(0.5) == 3  # 0.1, 0.2 and the teacher's 0 are 5 points each
    assert 0 < (data.firsts > data.seconds).sum() < 12
    assert features.shape == (8, 1)


def test_the_report_compares_the_cascade_with_the_paper():
    def counts(dollars: float, useful: float, wrong: float) -> np.ndarray:
        row = dict.fromkeys(COLUMNS, 1.0) | {
            "dollars": dollars,
            "useful": useful,
            "wrong_held_out": wrong,
            "decided": 10,
        }
        return np.array([[row[name] for name in COLUMNS]] * 5)

    sums = {"paper": counts(6, 3, 2), "cascade": counts(3, 1, 1), "random triple": counts(2, 4, 1)}
    found = report(sums, Data([], [FOUR] * 5, (), np.array([]), (0.1, 0.2)), world(), "cascade")[
        "cascade_against_paper"
    ]
    assert found["dollars_per_useful_pair"] == [1.5, 1.5, 1.5]  # 3 dollars for a pair against 2
    assert found["wrong"] == pytest.approx([-0.1] * 3)
    assert found["useful_pairs_of_random_triple"] == [0.25] * 3


@pytest.mark.parametrize(("ratio", "worse", "code"), [(0.25, 0.02, 0), (0.26, 0.02, 1), (0.25, 0.021, 1)])
def test_a_missed_bar_is_the_exit_code(capsys: pytest.CaptureFixture[str], ratio: float, worse: float, code: int):
    against = {"dollars_per_useful_pair": [ratio, 0.1, 0.9], "wrong": [0.0, -0.1, worse]}
    with pytest.raises(SystemExit) as stop:
        finish({}, bars(against), as_json=True)
    assert stop.value.code == code
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [bar["met"] for bar in last["bars"].values()] == [ratio <= 0.25, worse <= 0.02]


def test_without_the_data_the_script_says_so(tmp_path: Path):
    script = Path(judge_counts.__file__).with_name("judge_cost.py")
    variables = os.environ | {"NASHTUNE_REFERENCE_DATA": str(tmp_path)}
    done = subprocess.run([sys.executable, script, "--json"], env=variables, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == {"skipped": "no reference data"}
