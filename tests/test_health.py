"""The judge's health: figures worked out by hand, biased judges that are caught, fair ones that are not."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_loop import recipe_for
from typer.testing import CliRunner

from nashtune import Run, improve, judge, sample
from nashtune.cli import app
from nashtune.errors import OracleError, RecipeError, StoreError
from nashtune.judging import biases
from nashtune.judging.agreement import Drift, agreement, drift, position_flips
from nashtune.judging.biases import JudgedSet, chi_square_tail, placement_p
from nashtune.judging.health import examine, find_alarms
from nashtune.recipe import HealthSection
from nashtune.records import Judgment, Response
from nashtune.report.assemble import assemble
from nashtune.report.html import render_report
from nashtune.stages.anchors import anchor_drift, judge_anchors
from nashtune.stages.health import run_health
from nashtune.stages.validation import held_out

Judged = tuple[list[Response], Judgment]
NUMBERS = itertools.count()


def judged(lengths: Sequence[int], scores: Sequence[float | None] | None = None, **rest: Any) -> Judged:
    """A judged set of answers of these lengths; ``sources``, ``policies`` and fields of Judgment may be given."""
    prompt = rest.pop("prompt_id", f"p{next(NUMBERS)}")
    sources = rest.pop("sources", ["student"] * len(lengths))
    policies = rest.pop("policies", ["pi"] * len(lengths))
    answers = [
        Response(f"{prompt}-{k}", prompt, k, source, policy, "x" * n)
        for k, (n, source, policy) in enumerate(zip(lengths, sources, policies, strict=True))
    ]
    ids = tuple(a.id for a in answers)
    return answers, Judgment(prompt, ids, "test", scores=None if scores is None else tuple(scores), **rest)


def sets_of(*items: Judged) -> list[JudgedSet]:
    return [JudgedSet.of(*item) for item in items]


def scored(prompt: str, scores: Sequence[float], **rest: Any) -> Judgment:
    return judged([1] * len(scores), scores, prompt_id=prompt, **rest)[1]


# ---- by hand ---------------------------------------------------------------------------------------------------------


def test_position_by_hand() -> None:
    found = biases.position(sets_of(judged([1, 1], [3, 5], order=(1, 0)), judged([1, 1], [4, 2], order=(0, 1))))
    assert found is not None
    assert (found.sets, found.best_share, found.mean_standing, found.effect) == (2, (1, 0), (1, -1), 0.5)
    assert found.p == found.standing_p == pytest.approx(0.157299, abs=1e-6)  # chi-square 2, one degree of freedom
    tied = biases.position(sets_of(judged([1, 1, 1], [6, 6, 1], order=(2, 0, 1))))
    assert tied is not None
    assert tied.best_share == (0, 0.5, 0.5)
    assert biases.position(sets_of(judged([1, 1], [3, 5]))) is None, "no order was recorded"
    assert placement_p([[1, 1], [2, 2]]) is None


@pytest.mark.parametrize(
    ("x", "freedom"), [(3.841459, 1), (5.991465, 2), (7.814728, 3), (9.487729, 4), (18.307038, 10)]
)
def test_chi_square_tail_has_the_tabled_quantiles(x: float, freedom: int) -> None:
    assert chi_square_tail(x, freedom) == pytest.approx(0.05, abs=1e-7)
    assert chi_square_tail(0, freedom) == 1


def test_length_by_hand() -> None:
    found = biases.length(sets_of(judged([1, 2, 3], [1, 3, 2])), 0.95)
    assert found.preference is not None
    assert found.preference.value == pytest.approx(2 / 3)
    assert found.correlation == pytest.approx(0.5)
    assert found.p == pytest.approx(0.479500, abs=1e-6)  # z is 1 over the root of 2
    same = biases.length(sets_of(judged([2, 2], [1, 3]), judged([1, 5], [4, 4])), 0.95)
    assert (same.preference, same.correlation, same.p) == (None, None, None)


def test_favour_by_hand() -> None:
    answers: dict[str, Any] = {"sources": ["student", "student", "teacher"], "policies": ["a", "b", "remote:judge-1"]}
    found = biases.favour(sets_of(judged([1, 1, 1], [5, 4, 4], **answers, model_returned="judge-1")), 0.95)
    assert found.student is not None
    assert found.student.value == 0.75
    assert found.own_model is not None
    assert found.own_model.value == 0.25
    assert biases.favour(sets_of(judged([1, 1, 1], [5, 4, 4], **answers)), 0.95).own_model is None


def test_spread_by_hand() -> None:
    unusable = judged([1, 1], outcome="unusable")
    found = biases.spread(sets_of(judged([1] * 3, [1, 1, 1]), judged([1] * 3, [2, 2, 4]), unusable))
    assert found.histogram == {"1": 3, "2": 2, "4": 1}
    assert found.entropy == pytest.approx(1.459148, abs=1e-6)
    assert (found.ties, found.equal_sets, found.sets) == (pytest.approx(4 / 6), 0.5, 2)


def test_cycles_by_hand() -> None:
    cycle = ((None, 1.0, 0.0), (0.0, None, 1.0), (1.0, 0.0, None))
    order = ((None, 1.0, 1.0), (None, None, 0.9), (None, None, None))
    tie = ((None, 1.0, 0.5), (0.0, None, 1.0), (0.5, 0.0, None))
    found = biases.cycles(sets_of(*(judged([1] * 3, matrix=m) for m in (cycle, order, tie))))
    assert found is not None
    assert (found.triples, found.share, found.expected) == (2, 0.5, 0.25)
    assert biases.cycles(sets_of(judged([1] * 3, [1, 2, 3]))) is None


def test_agreement_by_hand() -> None:
    first = [scored("a", [3, 2, 1]), scored("b", [1, 2]), scored("only here", [1, 2])]
    found = agreement(first, [scored("b", [1, 2]), scored("a", [3, 1, 2])])
    assert found.comparisons == 4
    assert found.balanced_accuracy is not None
    assert found.balanced_accuracy.value == pytest.approx((2 / 3 + 1) / 2)
    assert found.balanced_accuracy.low <= found.balanced_accuracy.value <= found.balanced_accuracy.high <= 1
    assert found.balanced_accuracy.n == 2
    assert found.score_correlation == pytest.approx(1.8 / 2.8)
    nothing = agreement(first, [])
    assert (nothing.comparisons, nothing.balanced_accuracy, nothing.score_correlation) == (0, None, None)


def test_position_flips_by_hand() -> None:
    first, second = scored("a", [3, 2, 1], order=(0, 1, 2)), scored("a", [3, 1, 2], order=(2, 1, 0))
    assert position_flips(first, second) == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="same order"):
        position_flips(first, first)
    with pytest.raises(ValueError, match="same answers"):
        position_flips(first, scored("b", [3, 1, 2], order=(2, 1, 0)))


def test_drift_by_hand_among_other_company() -> None:
    first = scored("a", [3, 1])
    now = replace(first, response_ids=("new", *first.response_ids), scores=(6.0, 4.0, 4.0))
    found = drift([first], [now])
    assert found is not None
    assert (found.answers, found.mean_change, found.comparisons, found.flips) == (2, 2, 0, None)
    turned = drift([first], [replace(now, scores=(6.0, 1.0, 3.0))])
    assert turned is not None
    assert (turned.comparisons, turned.flips) == (1, 1)
    assert drift([first], [scored("b", [1, 2])]) is None


def test_answers_that_were_not_judged_are_refused() -> None:
    answers, judgment = judged([1, 2], [1, 2])
    with pytest.raises(ValueError, match="not those of the judgment"):
        JudgedSet.of(answers[::-1], judgment)


# ---- biased and fair judges --------------------------------------------------------------------------------------------


def judges(kind: str, rng: random.Random) -> Judged:
    """One set of 4 answers whose quality, length and place are independent, as a judge of this kind sees it."""
    lengths, quality = [rng.randint(10, 500) for _ in range(4)], [rng.random() for _ in range(4)]
    order = tuple(rng.sample(range(4), 4))
    if kind in ("cyclic", "transitive"):
        beats = (lambda i, j: (j - i) % 3 == 1) if kind == "cyclic" else (lambda i, j: quality[i] > quality[j])
        matrix = tuple(tuple(None if i == j else float(beats(i, j)) for j in range(3)) for i in range(3))
        return judged(lengths[:3], matrix=matrix, order=tuple(i for i in order if i < 3))
    scores = {
        "fair": lambda i: 1 + int(5 * quality[i]),
        "random": lambda i: rng.randint(1, 6),
        "longest": lambda i: lengths[i],
        "shortest": lambda i: -lengths[i],
        "first": lambda i: 6 - order.index(i),
        "last": lambda i: order.index(i),
        "constant": lambda i: 3,
        "mute": lambda i: 1 + int(5 * quality[i]),
    }[kind]
    outcome = "unusable" if kind == "mute" and rng.random() < 0.3 else "ok"
    return judged(lengths, [float(scores(i)) for i in range(4)], order=order, outcome=outcome)


@pytest.mark.parametrize(
    ("kind", "alarms"),
    [
        ("fair", []),
        ("random", []),
        ("transitive", []),
        ("longest", ["max_length_preference"]),
        ("shortest", ["max_length_preference"]),
        ("first", ["max_position_effect"]),
        ("last", ["max_position_effect"]),
        ("cyclic", ["max_cycles"]),
        ("constant", ["max_equal_sets"]),
        ("mute", ["min_usable"]),
    ],
)
def test_biased_judges_are_caught_and_fair_ones_are_not(kind: str, alarms: list[str]) -> None:
    for seed in range(3):
        rng = random.Random(seed)
        health = examine((judges(kind, rng) for _ in range(150)), HealthSection())
        assert [a.name for a in health.alarms] == alarms, seed
        json.dumps(health.to_dict(), allow_nan=False)
    few = examine((judges(kind, random.Random(1)) for _ in range(19)), HealthSection())
    assert not few.alarms, "too few sets to say"


def test_p_values_of_fair_judges_are_spread_evenly() -> None:
    found = [
        examine((judges("fair", random.Random(s * 997 + n)) for n in range(40)), HealthSection()) for s in range(60)
    ]
    for values in ([h.position.p for h in found if h.position], [h.length.p for h in found]):
        known = [p for p in values if p is not None]
        assert len(known) == 60
        assert 0.3 < sum(known) / 60 < 0.7
        assert sum(p < 0.05 for p in known) <= 9


def test_a_random_tournament_has_a_quarter_of_its_triples_cyclic() -> None:
    rng, sets = random.Random(4), []
    for _ in range(800):
        toss = {(i, j): float(rng.random() < 0.5) for i, j in itertools.combinations(range(4), 2)}
        matrix = tuple(tuple(toss.get((i, j)) for j in range(4)) for i in range(4))  # one way round is enough
        sets.append(judged([1] * 4, matrix=matrix))
    found = biases.cycles(sets_of(*sets))
    assert found is not None
    assert found.triples == 3200
    assert found.share == pytest.approx(found.expected, abs=0.03)


def test_a_judge_that_drifts_is_caught() -> None:
    first = [scored(f"d{n}", [1, 4, 5]) for n in range(20)]
    for shift, alarms in ((0.4, []), (1, ["max_drift"])):
        now = [scored(f"d{n}", [1 + shift, 4 + shift, 5 + shift]) for n in range(20)]
        found = examine([], HealthSection(min_sets=1), (first, now))
        assert found.drift is not None
        assert (found.drift.flips, found.judgments, found.usable) == (0, 0, None)
        assert [a.name for a in find_alarms(replace(found, judgments=20), HealthSection())] == alarms


def test_what_judging_again_at_once_changes_is_no_drift() -> None:
    moved = Drift(answers=60, mean_change=1.2, comparisons=0, flips=None, rejudged=0.9)
    assert [
        a.name for a in find_alarms(replace(examine([], HealthSection(), moved), judgments=20), HealthSection())
    ] == []
    alarms = find_alarms(
        replace(examine([], HealthSection(), replace(moved, rejudged=0.6)), judgments=20), HealthSection()
    )
    assert [(a.name, round(a.value, 3)) for a in alarms] == [("max_drift", 0.6)]


def test_anchors_are_bought_anew_each_time_and_show_a_judge_that_changed(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import judge_server

    with judge_server.JudgeServer() as server:
        engine = {"base_url": server.url, "model": "judge-1", "price": {"input": 1, "output": 1}, "probe": False}
        changes: dict[str, Any] = {"sampling": {"engine": "scripted"}, "teacher": {"kind": "scripted"}}
        changes |= {"oracle": {"kind": "rubric", "engine": engine}, "health": {"anchors": 4}}
        with Run.open(recipe_for(tiny_folder, tmp_path, **changes)) as run:
            first = held_out(run, 0)
            asked = len(server.requests)
            judge_anchors(run, 0, first)
            assert len(server.requests) == asked + 8
            assert anchor_drift(run, 0) is None
            same = judge_server.score
            monkeypatch.setattr(judge_server, "score", lambda text: same(text) - 1)
            for _ in range(2):
                judge_anchors(run, 1, first)
            assert len(server.requests) == asked + 12, "once bought, not again"
            found = anchor_drift(run, 1)
            facts = run.stage(1, "anchor-judge").record()["facts"]
    assert found is not None
    moved, again = found
    assert moved is not None
    assert again is not None
    assert (moved.answers, moved.mean_change, again.mean_change) == (8, 1, 0)
    assert facts["cost_usd"] > 0
    with pytest.raises(RecipeError, match=r"health\.anchors is 9 but prompts\.validation\.count is 8"):
        recipe_for(tiny_folder, tmp_path, health={"anchors": 9})


def test_no_judgments_is_no_alarm() -> None:
    found = examine([], HealthSection(min_sets=1))
    assert (found.judgments, found.usable, found.position, found.cycles, found.alarms) == (0, None, None, None, ())


# ---- in a run ----------------------------------------------------------------------------------------------------------

HALF_MUTE: dict[str, Any] = {
    "oracle": {"kind": "scripted", "unusable_rate": 0.5},
    "health": {"min_sets": 5, "min_usable": 1, "anchors": 8},
}


@pytest.fixture(scope="module")
def finished(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    recipe = recipe_for(tiny_folder, tmp_path_factory.mktemp("health"), iterations=1, **HALF_MUTE)
    improve(recipe)
    return Run.read(Path(recipe.folder) / "tiny")


def test_judge_check_reads_what_the_stages_recorded(finished: Run) -> None:
    done = CliRunner().invoke(app, ["judge-check", str(finished.folder), "--json"])
    assert done.exit_code == 0, done.output
    rows = json.loads(done.output)
    assert [(r["iteration"], r["stage"]) for r in rows] == [(0, "validate-judge"), (1, "judge"), (1, "validate-judge")]
    assert [r["health"]["judgments"] for r in rows] == [8, 12, 8]
    for row in rows:
        recorded = finished.stage(row["iteration"], row["stage"]).record()["facts"]
        assert row["health"] == recorded["health"]
        assert row["health"]["usable"] == pytest.approx(1 - recorded["unusable"] / recorded["judgments"])
    assert rows[0]["health"]["drift"] is rows[1]["health"]["drift"] is None
    assert rows[2]["health"]["drift"]["mean_change"] == 0, "the scripted oracle scores a text alike every time"
    assert rows[2]["health"]["drift"]["rejudged"] == 0
    made = [finished.stage(t, "anchor-judge").record()["facts"]["judgments"] for t in (0, 1)]
    assert made == [16, 8], "twice in the first iteration, then once"
    assert rows[1]["health"]["favour"]["student"] is not None


def test_judge_check_shows_alarms_and_is_strict_where_asked(finished: Run) -> None:
    shown = CliRunner().invoke(app, ["judge-check", str(finished.folder), "--iteration", "1"])
    assert shown.exit_code == 0, shown.output
    assert "1, training" in shown.output
    assert "0, held-out" not in shown.output
    assert "alarm: Iteration 1, judge on training prompts: only" in shown.output
    assert CliRunner().invoke(app, ["judge-check", str(finished.folder), "--strict"]).exit_code == 1
    refused = CliRunner().invoke(app, ["judge-check", str(finished.folder), "--iteration", "7"])
    assert refused.exit_code == 1
    assert "no judgments of iteration 7; accepted: [0, 1]" in refused.output


def test_the_report_shows_the_judge_and_its_alarms(finished: Run) -> None:
    data = assemble(finished)
    page = render_report(data)
    assert 'id="judge-table"' in page
    assert '<th scope="row">1, training</th>' in page
    assert "Iteration 1, judge on training prompts: only" in page.partition("</aside>")[0]
    assert [(h.iteration, h.stage) for h in data.health] == [(s.iteration, s.stage) for s in run_health(finished)]


def test_the_run_stops_on_an_alarm_and_goes_on_when_told(tiny_folder: Path, tmp_path: Path) -> None:
    def judge_one(**health: Any) -> None:
        changes = HALF_MUTE | {"health": HALF_MUTE["health"] | health}
        with Run.open(recipe_for(tiny_folder, tmp_path, **changes)) as run:
            judge(run, sample(run, 1))

    with pytest.raises(OracleError, match=r"usable.*health\.min_usable: 0\.\d+, threshold 1\).*stop_on_alarm=false"):
        judge_one(stop_on_alarm=True)
    run = Run.read(tmp_path / "tiny")
    made = run.stage(1, "judge").output
    with pytest.raises(OracleError):
        judge_one(stop_on_alarm=True)
    judge_one(stop_on_alarm=True, min_usable=0)
    judge_one(stop_on_alarm=False)
    assert run.stage(1, "judge").output == made, "nothing was judged again"
    assert assemble(run).health[0].health["alarms"][0]["name"] == "min_usable"


def test_a_judgment_whose_answers_are_gone_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    recipe = recipe_for(tiny_folder, tmp_path)
    with Run.open(recipe) as run:
        judge(run, sample(run, 1))
        run.stage(1, "teacher").file.unlink()
        with pytest.raises(StoreError, match="that was judged is in none of"):
            run_health(run)


def test_flips_panels_and_audits_are_read_off_the_judgments() -> None:
    from nashtune.judging.health import examine
    from nashtune.recipe import HealthSection
    from nashtune.records import Judgment, Response

    def judged(number: int, repeats: bool) -> tuple[list[Response], Judgment]:
        answers = [Response(f"{number}-{k}", str(number), k, "student", "t", "text") for k in range(3)]
        audit = (1.0, 5.0, 3.0) if number % 2 else (5.0, 1.0, 3.0)
        cascade = (audit[0], audit[1], None) if repeats else (audit[1], audit[0], None)
        measures = {"audit": audit, "cascade": cascade, "flipped": (1.0, 0.5, None), "agreement": (1.0, 0.0, 0.5)}
        return answers, Judgment(str(number), tuple(a.id for a in answers), "cascade", scores=audit, measures=measures)

    good = examine([judged(n, repeats=True) for n in range(40)], HealthSection(max_flips=0.8))
    assert (good.flipped, good.members) == (0.75, 0.5)
    assert good.audit is not None
    assert good.audit.comparisons == 40
    assert good.audit.balanced_accuracy is not None
    assert good.audit.balanced_accuracy.value == 1
    assert good.alarms == ()
    bad = examine([judged(n, repeats=False) for n in range(40)], HealthSection())
    assert {alarm.name for alarm in bad.alarms} == {"max_flips", "min_audit_agreement"}
