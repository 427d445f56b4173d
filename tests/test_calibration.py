"""Predicted seconds: their arithmetic by hand, and a calibration of a real tiny model."""

from __future__ import annotations

import json
import random
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_chat import tiny_recipe

from nashtune.errors import ModelError, PlanError
from nashtune.planning import calibration
from nashtune.planning.calibration import calibrate, started
from nashtune.planning.lengths import local_lengths, local_policy
from nashtune.planning.plan import make_plan
from nashtune.planning.show import print_plan
from nashtune.planning.start import Start, start_of
from nashtune.planning.timed import TimedSampler, fit_steps
from nashtune.planning.times import NO_START, Times
from nashtune.planning.unit_size import unit_advice
from nashtune.planning.work import read_work
from nashtune.recipe import Recipe, parse_recipe

TIMES = Times(
    machine="a machine",
    workers=2,
    slots=10,
    step=0.1,
    row=0.01,
    prefill=0.001,
    load_sampler=3.0,
    answer_tokens=20.0,
    answer_characters=80.0,
    longest_answer=30.0,
    prompt_tokens=50.0,
    answers=100,
    judge=0.002,
    pairs_per_prompt=1.5,
    train_pair=0.5,
    reference_pair=0.2,
    train_fixed=4.0,
    load_scorer=2.0,
    score=0.25,
)
START = Start(run=7.0, crew=2.5, worker=6.0, trainer=1.25, load=1.5)


@pytest.fixture(autouse=True)
def rehearsals(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[Recipe]:
    """What was rehearsed: in each test but those of rehearsals themselves, START in place of ten seconds of imports."""
    asked: list[Recipe] = []

    def start(recipe: Recipe) -> Start:
        asked.append(recipe)
        return START

    monkeypatch.setattr(calibration, "start_of", start)
    return asked


def test_scoring_seconds_by_hand() -> None:
    """Units of 4, 4 and 2 prompts on two workers: 8 + 4 answers on one, 8 on the other."""
    assert TIMES.scoring(10, 2, 4) == pytest.approx(12 * 0.25 + 2.0)


def test_sampling_seconds_by_hand() -> None:
    one = (
        0.1 * 30 + 0.01 * 8 * 20 + 0.001 * 4 * 50
    )  # 4 prompts with 2 answers: 8 rows in 10 slots, as long as the longest
    assert TIMES.sampling(4, 2, unit_prompts=4, models=1, load=False) == pytest.approx(one)
    assert TIMES.sampling(8, 2, unit_prompts=4, models=1, load=True) == pytest.approx(one + 3), "two units, two workers"
    assert TIMES.sampling(12, 2, unit_prompts=4, models=1, load=False) == pytest.approx(2 * one)
    refilled = 0.1 * (30 + 10 * 20 / 10) + 0.01 * 20 * 20 + 0.001 * 4 * 50  # 20 rows: the second ten after the first
    assert TIMES.sampling(4, 5, unit_prompts=4, models=2, load=True) == pytest.approx(2 * refilled + 2 * 3)


@pytest.mark.parametrize(
    ("prompts", "unit", "told"),
    [
        # u prompts with 2 answers: 0.1 (30 + (2u - 10) 20/10) + 0.01 (2u) 20 + 0.001 u 50 = 1 + 0.85 u seconds
        (100_000, 200, r"200 prompts takes 2\.9 minutes of sampling, and 2 to 5 are advised: sampling\.unit_prompts is right"),
        (100_000, 16, r"0\.2 minutes .*sampling\.unit_prompts=222 \(3\.2 minutes"),
        (100_000, 2000, r"28\.4 minutes .*sampling\.unit_prompts=222 "),
        (400, 16, r"sampling\.unit_prompts=50 \(0\.7 minutes, at least 4 units for each worker"),
        (128, 16, "128 prompts give 2 workers too few units as it is"),
    ],
)  # fmt: skip
def test_the_plan_advises_units_of_minutes_that_every_worker_has_some_of(prompts: int, unit: int, told: str) -> None:
    found = unit_advice(TIMES, prompts, 2, unit)
    assert re.search(told, found), found


def test_judging_and_training_seconds_by_hand() -> None:
    assert TIMES.judging(100, 6) == pytest.approx(1.2)
    assert replace(TIMES, load_judge=3.0).judging(100, 6) == pytest.approx(4.2), "each stage opens its judge"
    assert TIMES.training(40, references=2, epochs=3) == pytest.approx(4 + 40 * (2 * 0.2 + 3 * 0.5))


def test_the_cost_of_steps_rows_and_prompts_is_found_again() -> None:
    draw = random.Random(0)
    clock, prefilled = 0.0, 0
    rows = [(clock, 0, prefilled)]
    for n in range(200):
        if n % 20 == 0:
            more, tokens = draw.randint(50, 300), 8
            clock, prefilled = clock + 0.002 * more, prefilled + more
        else:
            tokens = draw.randint(1, 40)
            clock += 0.03 + 0.001 * tokens
        rows.append((clock, tokens, prefilled))
    assert fit_steps(rows) == pytest.approx((0.03, 0.001, 0.002))
    flat = [(0.1 * n, 5 + n, 0) for n in range(30)]  # more rows are not slower: none is made negative
    step, row, _ = fit_steps(flat)
    assert (step, row) == pytest.approx((0.1, 0.0), abs=1e-9)


def recipe(folder: Path, tmp_path: Path, **changes: Any) -> Recipe:
    return parse_recipe(tiny_recipe(folder, **changes) | {"folder": str(tmp_path / "runs")})


def test_a_calibrated_plan_knows_every_stages_seconds_and_measures_once(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NASHTUNE_CACHE", str(tmp_path / "cache"))
    measured: list[int] = []
    work = TimedSampler.work

    def counted(self: TimedSampler, opened: Any, unit: Any) -> Any:
        measured.append(unit.index)
        return work(self, opened, unit)

    monkeypatch.setattr(TimedSampler, "work", counted)
    settings = recipe(tiny_folder, tmp_path)
    plan = make_plan(settings, calibrated=True)
    assert measured == [0]
    assert all(row.seconds is not None and row.seconds > 0 for row in plan.rows)
    assert plan.seconds() == pytest.approx(sum(row.seconds or 0 for row in plan.rows))
    assert not (tmp_path / "runs").exists(), "a plan leaves no run behind"
    print_plan(plan)
    pools = [row.seconds for row in plan.rows if row.stage == "teacher-pool"]
    assert pools[1] > pools[0], "the first iteration's teacher is the policy that is loaded already"
    again = make_plan(settings, calibrated=True)
    assert measured == [0]
    assert [row.seconds for row in again.rows] == [row.seconds for row in plan.rows]
    make_plan(recipe(tiny_folder, tmp_path, sampling={"slots": 4}), calibrated=True)
    assert measured == [0, 0], "other settings are measured anew"


def test_a_start_is_in_the_first_of_each_kind_of_stage(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NASHTUNE_CACHE", str(tmp_path / "cache"))
    settings = recipe(tiny_folder, tmp_path)
    known = started(TIMES, START)
    assert known.load_sampler == START.load, "the rehearsal's, in which libraries are there"
    seconds: dict[bool, dict[tuple[int, str], float | None]] = {}
    for with_start in (True, False):
        times = known if with_start else replace(known, start=None)
        monkeypatch.setattr("nashtune.planning.plan.calibrate", lambda recipe, work, times=times: times)
        plan = make_plan(settings, calibrated=True)
        seconds[with_start] = {(row.iteration, row.stage): row.seconds for row in plan.rows}
        assert any((START.assumptions() if with_start else NO_START) in line for line in plan.assumptions)
    assert seconds[True].pop((0, "start")) == START.run
    more = {key: (value or 0.0) - (seconds[False][key] or 0.0) for key, value in seconds[True].items()}
    assert {key: pytest.approx(value) for key, value in more.items() if value} == {
        (0, "validate-sample"): START.crew,
        (1, "train"): START.trainer,
    }


def test_a_calibration_without_a_start_is_read_and_only_the_start_rehearsed(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rehearsals: list[Recipe]
) -> None:
    monkeypatch.setenv("NASHTUNE_CACHE", str(tmp_path / "cache"))
    settings = recipe(tiny_folder, tmp_path)
    work = read_work(settings, tmp_path / "none", local_lengths(settings, local_policy(settings)))
    first = calibrate(settings, work)
    assert (first.start, first.load_sampler, len(rehearsals)) == (START, START.load, 1)
    (file,) = (tmp_path / "cache" / "calibration").glob("*.json")
    assert json.loads(file.read_text())["start"]["worker"] == START.worker, "kept in the file"
    assert calibrate(settings, work) == first
    assert len(rehearsals) == 1
    old = json.loads(file.read_text())
    del old["start"]
    file.write_text(json.dumps(old))
    monkeypatch.setattr(calibration, "_measure", None)  # nothing else is measured again
    assert calibrate(settings, work) == first
    assert len(rehearsals) == 2
    assert "start" in json.loads(file.read_text())


def test_a_start_is_rehearsed_for_real_and_leaves_nothing(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NASHTUNE_CACHE", str(tmp_path / "cache"))
    settings = recipe(tiny_folder, tmp_path, scale={"workers": 2})
    began = time.time()
    found = start_of(settings)
    all_of_it = time.time() - began
    assert found.run + found.crew + found.load + found.trainer < all_of_it
    assert found.run > 0.2, "an interpreter and this project's libraries"
    assert found.run + found.crew > found.worker > found.crew, (
        "workers start after the run's process, before prompts are read"
    )
    assert found.worker > 0.2, "torch is imported in each"
    assert found.load > 0
    assert not (tmp_path / "runs").exists()


def test_a_start_that_fails_is_told_with_its_reason(tiny_folder: Path, tmp_path: Path) -> None:
    broken = recipe(tiny_folder, tmp_path, prompts={"source": str(tmp_path / "gone.jsonl")})
    with pytest.raises(PlanError, match=r"(?s)rehearsal of the run's start failed.*gone\.jsonl"):
        start_of(broken)


def test_a_judge_that_costs_money_is_not_asked_and_has_no_seconds(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NASHTUNE_CACHE", str(tmp_path / "cache"))
    engine = {"model": "judge-1", "price": "free", "base_url": "http://127.0.0.1:9/v1", "probe": False}
    paid = recipe(tiny_folder, tmp_path, oracle={"kind": "rubric", "engine": engine}, teacher={"kind": "none"})
    rows = {(row.iteration, row.stage): row.seconds for row in make_plan(paid, calibrated=True).rows}
    assert rows[1, "judge"] is None
    assert all(rows[1, stage] for stage in ("sample", "train", "validate-sample"))


def test_without_a_model_there_is_nothing_to_calibrate(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"--calibrate: sampling\.engine is 'scripted'; accepted: native"):
        make_plan(recipe(tiny_folder, tmp_path, sampling={"engine": "scripted"}), calibrated=True)


def test_other_machines_have_other_figures(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NASHTUNE_CACHE", str(tmp_path / "cache"))
    settings = recipe(tiny_folder, tmp_path)
    make_plan(settings, calibrated=True)
    (file,) = (tmp_path / "cache" / "calibration").glob("*.json")
    monkeypatch.setattr(calibration, "machine", lambda: "another")
    make_plan(settings, calibrated=True)
    assert len(list(file.parent.glob("*.json"))) == 2
