"""The matrix game of a run's policies, worked out by hand from scripted judgments."""

from __future__ import annotations

import numpy as np
import pytest

from nashtune.evaluate.payoffs import TEACHER, payoffs, tally
from nashtune.evaluate.winrate import win_rate
from nashtune.records import Judgment

A, B, C, T = 0, 1, 2, TEACHER


def judged(prompt: str, scores: list[float | None], players: list[int | None], outcome: str = "ok"):
    ids = tuple(f"{prompt}-{i}" for i in range(len(scores)))
    return Judgment(prompt, ids, "scripted", outcome=outcome, scores=tuple(scores)), players  # type: ignore[arg-type]


def test_cells_are_means_over_prompts_of_means_within_a_prompt() -> None:
    rows = [
        # prompt x, judged in two sets: A against B 1, 1 (two answers of B) and then 0: (1 + 1 + 0) / 3
        judged("x", [3, 1, 2], [A, B, B]),
        judged("x", [1, 2], [A, B]),
        judged("y", [1, 2, 9], [A, B, T]),
        judged("z", [1, 2], [A, B], outcome="unusable"),
        judged("w", [None, 2, 5], [A, B, None]),  # of nobody's answer nothing is counted
    ]
    tallied = tally(rows, 2)
    assert tallied.shape == (4, 3, 3)
    assert tallied[:2, A, B] == pytest.approx([2 / 3, 0])
    assert np.isnan(tallied[2:, A, B]).all()
    found = payoffs(tallied, [0, 1], 0, 0.95, 1)
    cell, expected = found.matrix[A][B], win_rate([2 / 3, 0.0], 0.95)
    assert cell is not None
    assert (cell.value, cell.low, cell.high, cell.n) == pytest.approx((1 / 3, expected.low, expected.high, 2))
    assert found.matrix[B][A].value == pytest.approx(2 / 3)
    assert found.matrix[A][A] is None
    assert [cell and cell.value for cell in found.teacher] == [0.0, 0.0]
    assert found.unknown == 0
    # B beats A in 2/3: A, the best by some other measure, is exploited by 1/6, B by nobody
    assert found.exploitability["best"].value == pytest.approx(1 / 6)
    assert found.exploitability["last"].value == 0
    # the mixture of both: B wins (1/2 + 2/3) / 2 of its contests
    assert found.exploitability["uniform"].value == pytest.approx(1 / 12)
    assert found.equilibrium == pytest.approx((0, 1))


def cycle(prompts: int, wins: int):
    """A beats B beats C beats A, in ``wins`` of ``prompts`` prompts each; in the others it is the other way round."""
    for n in range(prompts):
        for one, other in ((A, B), (B, C), (C, A)):
            first = n < wins
            yield judged(f"p{n}", [2, 1] if first else [1, 2], [one, other])


def test_a_cycle_is_solved_by_the_uniform_mixture() -> None:
    found = payoffs(tally(cycle(20, 16), 3), [0, 1, 2], 1, 0.95, 1)
    assert [round(found.matrix[i][(i + 1) % 3].value, 6) for i in range(3)] == [0.8] * 3
    assert found.equilibrium == pytest.approx((1 / 3, 1 / 3, 1 / 3))
    assert found.exploitability["uniform"].value == pytest.approx(0, abs=1e-12)
    last = found.exploitability["last"]
    assert last.value == pytest.approx(0.3)
    # the bootstrap's interval of a share of 20 prompts: 1.96 sqrt(0.8 * 0.2 / 20) = 0.175, in steps of 1/20
    assert last.low == pytest.approx(0.3 - 0.175, abs=0.051)
    assert last.high == pytest.approx(0.3 + 0.175, abs=0.051)
    assert last.n == 20
    assert payoffs(tally(cycle(20, 16), 3), [0, 1, 2], 1, 0.95, 1) == found


def test_ten_defeats_of_ten_are_not_certainty() -> None:
    rows = [judged(f"p{n}", [2, 1], [A, B]) for n in range(10)]
    last = payoffs(tally(rows, 2), [0, 1], 0, 0.95, 1).exploitability["last"]
    assert last.value == 0.5
    assert last.low == pytest.approx(win_rate([1.0] * 10, 0.95).low - 0.5)
    assert last.high == 0.5


def test_what_was_never_compared_is_unknown_and_the_rest_is_a_lower_bound() -> None:
    rows = [judged(f"p{n}", [1, 2], [A, B]) for n in range(4)] + [judged(f"p{n}", [3, 2], [A, C]) for n in range(4)]
    found = payoffs(tally(rows, 3), [0, 1, 2], 0, 0.95, 1)
    assert found.matrix[B][C] is None
    assert found.matrix[C][B] is None
    assert found.unknown == 1
    assert found.equilibrium is None
    assert set(found.exploitability) == {"last", "best"}
    assert found.exploitability["last"].value == 0.5  # A always beats C; of B nothing is known
    assert found.teacher == (None, None, None)


def test_a_policy_that_met_nobody_has_no_exploitability() -> None:
    found = payoffs(tally([judged("p", [1, 2], [A, B])], 3), [0, 1, 2], None, 0.95, 1)
    assert found.exploitability == {}
    assert payoffs(tally([], 2), [0, 1], 0, 0.95, 1).matrix == ((None, None), (None, None))
