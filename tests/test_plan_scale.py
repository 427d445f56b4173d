"""A run played through on several machines: against closed forms, and through the command line against what it refuses."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
import yaml
from plan_table import CASES
from plan_table import row as table_row
from test_calibration import START, TIMES
from tiny_chat import tiny_recipe
from typer.testing import CliRunner

from nashtune.cli import app
from nashtune.errors import PlanError
from nashtune.planning.closed_form import (
    calls_seconds,
    expected_lost_sampling,
    expected_training_seconds,
    least_seconds,
    sampling_seconds,
    training_seconds,
)
from nashtune.planning.cluster import Cluster
from nashtune.planning.hardware import GPUS, find_gpu, sampling_rate, training_rate
from nashtune.planning.scale_plan import ScalePlan, make_scale_plan
from nashtune.planning.show_scale import print_scale_plan
from nashtune.planning.simulate import Calls, Machines, Preparing, Training, Units, call, play, sample, train
from nashtune.recipe import parse_recipe

RUNNER = CliRunner()
ROOT = Path(__file__).parent.parent
ENGINE = {"model": "judge-1", "price": {"input": 1, "output": 4}, "base_url": "http://127.0.0.1:9/v1", "probe": False}
H100 = {"nodes": 2, "gpus": 8, "gpu": "H100", "parameters": 7.0, "trials": 5}
UNLIMITED = ENGINE | {"concurrency": 10**9}


def settings(folder: Path, **changes: Any) -> dict[str, Any]:
    """The scripted policy, 2 x 800 prompts and 20 held out, with a paid judge."""
    source = folder / "prompts.jsonl"
    if not source.exists():
        source.write_text("".join(json.dumps({"prompt": f"question {n:04d}".ljust(40, "?")}) + "\n" for n in range(40)))
    return {
        "name": "planned",
        "folder": str(folder / "runs"),
        "iterations": 2,
        "policy": {"model": "some/model-7B"},
        "prompts": {"source": str(source), "dedupe": {"near": None}, "validation": {"count": 20}},
        "sampling": {"engine": "scripted", "k": 4, "max_new_tokens": 200, "unit_prompts": 25},
        "oracle": {"kind": "rubric", "engine": ENGINE},
    } | changes


def planned(folder: Path, cluster: dict[str, Any], **changes: Any) -> ScalePlan:
    options: dict[str, Any] = {"prompts": 1600, **cluster}
    return make_scale_plan(parse_recipe(settings(folder, **changes)), Cluster(**options))


def hours(plan: ScalePlan, stage: str) -> float:
    return math.fsum(row.hours for row in plan.rows if row.stage == stage)


# ---- against closed forms ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 79, 80, 81, 160, 161, 1003])
@pytest.mark.parametrize("last", [30.0, 240.0])
def test_sampling_without_failures_and_spread_is_the_closed_form(number: int, last: float) -> None:
    units, machines = Units("sample", number, 240.0, last, load=180.0), Machines(10, 8)
    found = sample(units, machines, random.Random(0))
    assert found.seconds == pytest.approx(sampling_seconds(units, machines), rel=1e-12)
    assert found.busy == pytest.approx((number - 1) * 240 + last)
    assert (found.lost, found.redone, found.failures) == (0, 0, 0)
    held = found.busy + found.loading + found.idle
    assert held == pytest.approx(80 * found.seconds), "every second of every engine is accounted for"


@pytest.mark.parametrize("boot", [0.0, 90.0])
def test_starting_and_booting_without_failures_is_the_closed_form(boot: float) -> None:
    """Nodes are booted at the beginning, after a judge that worked alone, and, where 2 of 4 train, after training."""
    machines = Machines(4, 2, boot=boot)
    works = [
        Preparing("start", 11.0),
        Units("sample", 20, 30.0, 10.0, load=4.0, start=7.0),
        Calls("judge", 20, 10.0, 5.0, 100.0, "tokens"),
        Training("train", 500, 10, 5, 200, 4, nodes=2, start=13.0),
        Units("validate-sample", 9, 30.0, 30.0, load=4.0),
        Units("kl-sample", 9, 30.0, 30.0),
    ]
    found = play(works, machines, "0")
    by_hand = [11, boot + 7 + 4 + 2 * 30 + 30, 19 * 10 + 5 + 100, boot + 13 + 10 + 500 + 2 * 4 + 5, boot + 4 + 60, 60]
    assert [one.seconds for one in found] == pytest.approx(by_hand)
    assert sum(by_hand) == pytest.approx(least_seconds(works, machines))
    assert found[1].down == boot * 8
    assert found[1].loading == 8 * (7 + 4)
    kept = play(works, replace(machines, keep=True), "0")
    assert sum(one.seconds for one in kept) == pytest.approx(sum(by_hand) - 2 * boot), "held, they boot once"
    assert least_seconds(works, replace(machines, keep=True)) == pytest.approx(sum(by_hand) - 2 * boot)


def test_a_judge_that_computes_on_the_nodes_leaves_them_up() -> None:
    works = [
        Units("sample", 4, 10.0, 10.0),
        Calls("judge", 4, 50.0, 50.0, 0, "here", local=True),
        Units("b", 4, 10.0, 10.0),
    ]
    found = play(works, Machines(2, 1, boot=30.0), "0")
    assert [one.seconds for one in found] == [50, 200, 20]
    assert least_seconds(works, Machines(2, 1, boot=30.0)) == 270


class Failures(random.Random):
    """Nodes fail after these times, then no more."""

    def __init__(self, *times: float):
        super().__init__(0)
        self.times = [*times][::-1]

    def expovariate(self, lambd: float = 1.0) -> float:
        return self.times.pop() if self.times else math.inf


def test_an_engine_on_a_lost_nodes_successor_starts_and_loads_though_the_others_had_loaded_before() -> None:
    """One node, units of 10 s, lost at 25: two are done, 5 s of the third lost; the successor is there at 45, its engine has its
    libraries and model 12 s later, and two units are left."""
    units = Units("sample", 4, 10.0, 10.0, again=12.0)
    found = sample(units, Machines(1, 1, mtbf=1e6, replace=20.0), Failures(25.0))
    assert (found.seconds, found.lost, found.down, found.loading, found.redone) == (25 + 20 + 12 + 20, 5, 20, 12, 1)
    usual = sample(
        replace(units, again=None, start=3.0, load=2.0), Machines(1, 1, mtbf=1e6, replace=20.0), Failures(26.0)
    )
    assert (usual.loading, usual.seconds) == (5 + 5, 26 + 20 + 5 + 20), "two were done at 25"
    work = Training("train", 100, load=4, save=2, interval=50, checkpoint=1, nodes=1, start=0.0, again=9.0)
    trained = train(work, Machines(1, 1, mtbf=1e6, replace=20.0), Failures(30.0))
    assert trained.seconds == 4 + (30 + 20 + 9) + 51 + 52


def test_sampling_by_hand() -> None:
    """5 units of 10 s, the last of 4, on 2 engines that load 3 s: 3 + 10 + 10 + 4."""
    units = Units("sample", 5, 10.0, 4.0, 3.0)
    assert sample(units, Machines(1, 2), random.Random(0)).seconds == 27 == sampling_seconds(units, Machines(2, 1))


@pytest.mark.parametrize("seconds", [0.5, 999.0, 1000.0, 1001.0, 12_345.0])
def test_training_without_failures_is_the_closed_form(seconds: float) -> None:
    work = Training("train", seconds, load=60, save=30, interval=1000, checkpoint=20, nodes=4)
    found = train(work, Machines(4, 8), random.Random(0))
    assert found.seconds == pytest.approx(training_seconds(work), rel=1e-12)
    assert training_seconds(work) == 60 + seconds + 30 + 20 * (math.ceil(seconds / 1000) - 1)


def test_units_lost_to_failures_are_what_the_closed_form_expects() -> None:
    units, machines = Units("sample", 400, 240.0, 100.0, load=18.0), Machines(4, 8, mtbf=3000.0, replace=60.0)
    lost = [sample(units, machines, random.Random(seed)).lost for seed in range(600)]
    error = stdev(lost) / math.sqrt(len(lost))
    expected = expected_lost_sampling(units, machines)
    assert abs(fmean(lost) - expected) < 3 * error
    assert error < 0.05 * expected, "the test can see a difference"


def test_engines_are_accounted_for_while_nodes_fail() -> None:
    units = Units("sample", 200, 100.0, 50.0, load=30.0, start=12.0)
    machines = Machines(3, 4, mtbf=900.0, replace=200.0, spread=0.3)
    for seed in range(20):
        found = sample(units, machines, random.Random(seed), boot=75.0)
        kept = found.busy + found.lost + found.loading + found.down + found.idle
        assert kept == pytest.approx(12 * found.seconds)
        assert found.failures > 0
        assert found.redone > 0


def test_training_under_failures_takes_what_the_closed_form_expects() -> None:
    work = Training("train", 10_000, 60, 30, 900, 20, nodes=4, start=100.0, again=400.0)
    machines = Machines(4, 8, mtbf=12_000.0, replace=120.0)
    found = [train(work, machines, random.Random(seed)).seconds for seed in range(2000)]
    error = stdev(found) / math.sqrt(len(found))
    assert abs(fmean(found) - expected_training_seconds(work, machines)) < 3 * error
    assert expected_training_seconds(work, machines) > training_seconds(work) + 20 * error


def test_a_judge_slower_than_the_sampler_takes_its_own_time() -> None:
    sampled = sample(Units("sample", 40, 10.0, 10.0), Machines(1, 4), random.Random(0))
    judge = Calls("judge", 40, 30.0, 15.0, latency=7.0, binding="tokens", alongside=True)
    assert sampled.seconds + call(judge, sampled).seconds == pytest.approx(10 + 39 * 30 + 15 + 7), (
        "from the first unit on"
    )
    apart = Calls("judge", 40, 30.0, 15.0, latency=7.0, binding="tokens")
    assert call(apart, None).seconds == pytest.approx(calls_seconds(apart)) == 39 * 30 + 15 + 7
    loads = replace(apart, start=9.0)
    assert call(loads, None).seconds == pytest.approx(calls_seconds(loads)) == 9 + 39 * 30 + 15 + 7
    beside = replace(judge, start=25.0)
    assert sampled.seconds + call(beside, sampled).seconds == pytest.approx(25 + 39 * 30 + 15 + 7), (
        "while units are drawn"
    )


def test_a_judge_faster_than_the_sampler_is_hidden_but_for_the_last_units() -> None:
    sampled = sample(Units("sample", 40, 10.0, 10.0), Machines(1, 4), random.Random(0))
    found = call(Calls("judge", 40, 1.0, 1.0, 2.0, "tokens", alongside=True), sampled)
    assert found.seconds == pytest.approx(4 + 2), "four units are committed at the end, and the last reply has to come"


def test_the_whole_run_without_failures_is_the_sum_of_the_closed_forms() -> None:
    machines = Machines(2, 2)
    works = [
        Units("sample", 9, 20.0, 5.0, 3.0),
        Calls("judge", 9, 4.0, 2.0, 1.0, "tokens"),
        Training("train", 500, 10, 5, 200, 4, nodes=2),
    ]
    assert math.fsum(o.seconds for o in play(works, machines, "0")) == pytest.approx(least_seconds(works, machines))


# ---- plans of recipes ----------------------------------------------------------------------------------------------------


def test_a_plan_by_hand(tmp_path: Path) -> None:
    """Two iterations of 800 prompts, 4 answers of 100 tokens: 32 units of 25 prompts on 16 engines."""
    rates = {"sampling_rate": 1000.0, "training_rate": 2000.0, "mtbf": math.inf, "judge_tpm": 1e5, "price": 2.5}
    plan = planned(tmp_path, H100 | rates | {"boot_minutes": 0})
    judged = [row for row in plan.rows if row.stage == "judge"]
    sampled = [row for row in plan.rows if row.stage == "sample"]
    load, unit = 120 + 14, 1 + 25 * 4 * 100 / 1000
    assert least(plan, "sample") <= hours(plan, "sample") < 3 * least(plan, "sample")
    assert least(plan, "sample") == pytest.approx(2 * (load + 2 * unit) / 3600)
    assert hours(plan, "start") == 0, "not measured for GPUs"
    assert [row.gpu_usd for row in sampled] == pytest.approx([row.hours * 16 * 2.5 for row in sampled])
    tokens = 1600 * (sum(row.api_usd for row in judged) / 1600 - 4 * 4 * 1.02 * 100 / 1e6) * 1e6 + 1600 * 4 * 1.02 * 100
    assert sum(row.judge_hours for row in judged) == pytest.approx(tokens / 1e5 / 60, rel=1e-6), "tokens over TPM"
    assert {row.limit for row in judged} == {"tokens a minute of judge-1"}
    # 2 new pairs a prompt and 30 % of them again in iteration 2, 64 pairs over 16 GPUs; exchanged weights hide none of it.
    trained, pair = [row for row in plan.rows if row.stage == "train"], 14 + 200
    steps = (1600 / 64, 1600 * 1.3 / 64)
    step = max(4 * pair / 2000, 8 * 7e9 / 50e9)
    for row, count in zip(trained, steps, strict=True):
        references = count * 64 * pair / (3 * 2000 * 16)
        writing = 12 * 7 / 2 * (math.ceil((count * step + references) / (50 * step)) - 1)
        assert row.hours == pytest.approx((120 + 28 + references + count * step + writing + 28) / 3600)


def least(plan: ScalePlan, stage: str) -> float:
    """Of a stage of the plan by hand: 134 s of loading and two rounds of 11 s."""
    count = sum(row.stage == stage for row in plan.rows)
    return count * (134 + 2 * 11) / 3600


def test_the_judge_is_the_bottleneck_where_its_limit_is_low(tmp_path: Path) -> None:
    slow, fast = planned(tmp_path, H100 | {"judge_tpm": 2e4}), planned(tmp_path, H100 | {"judge_tpm": 1e9})
    assert slow.total.hours > 3 * fast.total.hours
    assert any("bottleneck: judging" in line and "tokens a minute" in line for line in slow.advice)
    halved = planned(tmp_path, H100 | {"judge_tpm": 1e4})
    assert hours(halved, "judge") / hours(slow, "judge") == pytest.approx(2, rel=0.05)


def test_overlap_saves_time_and_released_gpus_money(tmp_path: Path) -> None:
    cluster = H100 | {"judge_tpm": 1e5, "mtbf": math.inf}
    beside = planned(tmp_path, cluster)
    apart = planned(tmp_path, cluster, scale={"overlap": False})
    assert beside.total.hours < apart.total.hours
    assert beside.barriers.hours == pytest.approx(apart.total.hours)
    kept = planned(tmp_path, cluster | {"keep_gpus": True})
    boots = 2 * 2 / 60  # after the judge of each iteration's samples; that of validation is faster than booting is
    assert beside.total.hours - kept.total.hours == pytest.approx(boots)
    at_once = planned(tmp_path, cluster | {"boot_minutes": 0})
    assert kept.total.hours - at_once.total.hours == pytest.approx(2 / 60), "the run's first stage boots too"
    assert kept.total.gpu_usd > beside.total.gpu_usd
    waited = hours(kept, "judge") + hours(kept, "validate-judge")
    assert kept.total.gpu_hours - beside.total.gpu_hours == pytest.approx(16 * (waited - boots))


def test_failures_cost_time_and_are_counted(tmp_path: Path) -> None:
    calm = planned(tmp_path, H100 | {"mtbf": math.inf, "prompts": 200_000})
    rough = planned(tmp_path, H100 | {"mtbf": 0.5, "prompts": 200_000})
    assert calm.total.failures == calm.total.redone_units == calm.total.lost == 0
    assert rough.total.failures > 1
    assert rough.total.redone_units > 1
    assert rough.total.hours > calm.total.hours
    rare = planned(tmp_path, H100 | {"mtbf": 0.5, "prompts": 200_000}, train={"checkpoint_steps": 1000})
    assert rare.total.lost > rough.total.lost
    assert any("train.checkpoint_steps=" in line for line in rare.advice)
    again = planned(tmp_path, H100 | {"mtbf": 0.5, "prompts": 200_000})
    assert again.total == rough.total, "the seed decides"
    assert planned(tmp_path, H100 | {"mtbf": 0.5, "prompts": 200_000, "seed": 1}).total != rough.total


def test_advice_on_unit_size_keeps_units_between_two_and_five_minutes(tmp_path: Path) -> None:
    cluster = H100 | {"sampling_rate": 1000.0, "prompts": 1_000_000, "judge_tpm": 1e9}
    small = planned(tmp_path, cluster)
    (advice,) = [line for line in small.advice if line.startswith("units")]
    wanted = int(advice.split("sampling.unit_prompts=")[1])
    assert 120 <= wanted * 4 * 100 / 1000 <= 300
    sized = settings(tmp_path)["sampling"] | {"unit_prompts": wanted}
    (said,) = [line for line in planned(tmp_path, cluster, sampling=sized).advice if line.startswith("units")]
    assert "within the 2 to 5 minutes" in said


def test_a_judge_of_ones_own_takes_gpus_and_no_dollars_a_token(tmp_path: Path) -> None:
    oracle = {"kind": "rubric", "engine": UNLIMITED | {"price": "free"}}
    cluster = H100 | {"judge_parameters": 70.0, "prompts": 100_000}
    one, two = (planned(tmp_path, cluster | {"judge_gpus": n}, oracle=oracle) for n in (8, 16))
    assert one.total.api_usd == 0
    assert hours(one, "judge") > 1.8 * hours(two, "judge"), "twice the GPUs, half the time"
    assert {row.limit for row in one.rows if row.stage == "judge"} == {"GPUs of judge-1"}
    assert sum(row.gpu_hours for row in one.rows if row.stage == "judge") > 8 * hours(one, "judge")


def test_a_batch_of_more_gpus_than_pairs_is_said_to_idle(tmp_path: Path) -> None:
    plan = planned(tmp_path, H100 | {"nodes": 16})
    assert any("leave 64 without a pair" in line for line in plan.advice)
    assert any("exchanges weights" in line for line in plan.advice)


def test_gpus_that_do_not_train_are_not_paid_for_meanwhile(tmp_path: Path) -> None:
    """64 pairs over 3 GPUs: 22 on the busiest, whatever the others wait."""
    cluster = H100 | {
        "nodes": 1,
        "train_gpus": 3,
        "parameters": 1.0,
        "training_rate": 100.0,
        "mtbf": math.inf,
        "price": 1.0,
        "boot_minutes": 0,
    }
    few, kept = planned(tmp_path, cluster), planned(tmp_path, cluster | {"keep_gpus": True})
    (first, _), (held, _) = ([r for r in plan.rows if r.stage == "train"] for plan in (few, kept))
    step = 22 * (14 + 200) / 100
    references = 1600 * (14 + 200) / (3 * 100 * 3)
    assert 3600 * first.hours == pytest.approx(120 + 4 + references + 1600 / 64 * step + 4)
    assert first.gpu_hours == pytest.approx(3 * first.hours) == pytest.approx(first.gpu_usd)
    assert held.gpu_hours == pytest.approx(8 * first.hours)
    assert held.idle - first.idle == pytest.approx(5 * first.hours), "five of the eight look on"


def test_rates_of_other_sizes_and_types_are_scaled_by_their_rule() -> None:
    a100, l4 = GPUS["A100-80GB"], GPUS["L4-24GB"]
    assert a100.training is not None
    known = a100.training
    assert training_rate(a100, known.parameters, None).value == known.tokens
    assert training_rate(a100, known.parameters, None).origin == "published"
    assert training_rate(a100, 2 * known.parameters, None).value == pytest.approx(known.tokens / 2)
    assert training_rate(l4, known.parameters, None).value == pytest.approx(known.tokens * 121 / 312)
    assert "FLOP/s" in training_rate(l4, known.parameters, None).source
    assert "bandwidth" in sampling_rate(l4, known.parameters, None).source
    given = sampling_rate(l4, 7e9, 1234.0)
    assert (given.value, given.origin) == (1234.0, "given")
    assert find_gpu("h100").name == "H100-80GB"


def test_every_assumption_is_told_with_its_origin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = planned(tmp_path, H100 | {"price": 2.0})
    origins = {figure.origin for figure in plan.assumptions}
    assert origins == {"given", "recipe", "published", "assumed", "derived", "measured"}
    assert all(figure.source for figure in plan.assumptions)
    print_scale_plan(plan)
    printed = capsys.readouterr().out
    assert all(str(figure) in printed for figure in plan.assumptions)
    assert all(line in printed for line in plan.advice)


def test_suites_are_sampled_and_asked_at_their_judges_limits(tmp_path: Path) -> None:
    suites = [
        {"suite": "mt_bench", "data": "absent", "judge": ENGINE | {"model": "suite-judge", "tokens_per_minute": 1000}}
    ]
    plan = planned(tmp_path, H100, evaluate=suites)
    asked = [row for row in plan.rows if row.stage == "mt_bench"]
    assert [row.iteration for row in asked] == [0, 2]
    assert {row.limit for row in asked} == {"tokens a minute of suite-judge"}
    assert sum(row.stage == "mt_bench answers" and row.kind == "sampling" for row in plan.rows) == 2


# ---- machines like this one ----------------------------------------------------------------------------------------------


def test_machines_like_this_one_go_by_the_calibration(tiny_folder: Path) -> None:
    recipe = parse_recipe(tiny_recipe(tiny_folder, scale={"workers": 2}))
    plan = make_scale_plan(recipe, Cluster(nodes=1), times=TIMES)
    sampled = [row for row in plan.rows if row.stage == "sample"]
    # 12 prompts in units of 4 on two workers: two rounds; the first iteration's policy is loaded already, in the second what
    # scored the divergence's answers was open.
    seconds = [TIMES.sampling(12, 3, unit_prompts=4, models=1, load=load) for load in (False, True)]
    assert [3600 * row.hours for row in sampled] == pytest.approx(seconds)
    trained = [row for row in plan.rows if row.stage == "train"]
    alone = TIMES.training(12 * 1.5, references=1, epochs=1)
    assert 3600 * trained[0].hours == pytest.approx(alone + TIMES.load_scorer), (
        "workers load the policy for its log-probs"
    )
    itself = parse_recipe(tiny_recipe(tiny_folder, scale={"workers": 2, "references": "trainer"}))
    rows = make_scale_plan(itself, Cluster(nodes=1), times=TIMES).rows
    assert 3600 * next(row.hours for row in rows if row.stage == "train") == pytest.approx(alone)
    twice = make_scale_plan(recipe, Cluster(nodes=2), times=TIMES)
    (first, *_) = [row for row in twice.rows if row.stage == "sample"]
    assert 3600 * first.hours == pytest.approx(seconds[0] / 2), "three units on four workers: one round"
    assert plan.total.usd == 0


def test_machines_like_this_one_start_as_rehearsed(tiny_folder: Path) -> None:
    recipe = parse_recipe(tiny_recipe(tiny_folder, scale={"workers": 2}))
    known, unknown = (
        make_scale_plan(recipe, Cluster(nodes=1), times=replace(TIMES, start=start)) for start in (START, None)
    )
    assert known.rows[0].stage == "start"
    assert 3600 * known.rows[0].hours == START.run
    more = [3600 * (a.hours - b.hours) for a, b in zip(known.rows[1:], unknown.rows, strict=True)]
    stages = [(row.iteration, row.stage) for row in unknown.rows]
    first, trained = stages.index((0, "validate-sample")), stages.index((1, "train"))
    expected = [START.crew * (n == first) + START.trainer * (n == trained) for n in range(len(more))]
    assert more == pytest.approx(expected, abs=1e-6)
    assert known.least_hours - unknown.least_hours == pytest.approx(known.total.hours - unknown.total.hours)
    told = {figure.name: figure for figure in known.assumptions}
    assert told["replacing a worker, until it could load a model"].value == START.worker
    assert told["until the run's first stage"].origin == "measured"
    (left_out,) = [figure for figure in unknown.assumptions if "starting processes" in figure.name]
    assert (left_out.value, left_out.origin) == (0, "assumed")
    assert "--calibrate" in left_out.source


def test_a_lost_workers_successor_starts_anew(tiny_folder: Path) -> None:
    """With a longer start of a worker, and it alone, only plans with failures take longer."""
    recipe = parse_recipe(tiny_recipe(tiny_folder, scale={"workers": 2}))

    def total(worker: float, mtbf: float) -> float:
        times = replace(TIMES, start=replace(START, worker=worker))
        return make_scale_plan(recipe, Cluster(nodes=1, mtbf=mtbf, replace_minutes=0.1), times=times).total.hours

    assert total(6.0, math.inf) == total(600.0, math.inf)
    assert total(600.0, 0.05) > total(6.0, 0.05)


def test_what_a_run_recorded_of_loading_is_apart_from_its_rates(tiny_folder: Path, tmp_path: Path) -> None:
    """Records written by hand: 10 s before the first unit in the run's first stage, 2 and 4 later."""
    from nashtune.loop import improve
    from nashtune.planning.measured import measure
    from nashtune.run import Run

    recipe = parse_recipe(tiny_recipe(tiny_folder) | {"folder": str(tmp_path / "runs")})
    improve(recipe)
    run = Run.read(tmp_path / "runs" / "tiny")
    recorded = {t: run.stage(t, "sample").record() for t in (1, 2)}
    assert all(0 <= record["facts"]["start_seconds"] <= record["seconds"] for record in recorded.values())
    for (t, name), seconds in {(0, "validate-sample"): 3.0, (0, "validate-teacher-pool"): 10.0, (1, "sample"): 2.0,
                               (2, "sample"): 4.0}.items():  # fmt: skip
        file = run.stage(t, name).file
        record = json.loads(file.read_text())
        file.write_text(json.dumps(record | {"seconds": 20.0, "facts": record["facts"] | {"start_seconds": seconds}}))
    found = measure(run, "the run").loading
    tokens = sum(record["facts"]["tokens"] for record in recorded.values())
    assert found is not None
    assert (found.load, found.start, found.rate) == (3, 7, tokens / (40 - 6))
    plan = make_scale_plan(recipe, Cluster(nodes=1))
    told = {figure.name: figure.value for figure in plan.assumptions}
    assert (told["loading a sampler"], told["starting workers"]) == (3, 7)
    assert told["sampling with one worker"] == pytest.approx(found.rate)
    (first, second) = [3600 * row.hours for row in plan.rows if row.stage == "sample"]
    assert second - first == pytest.approx(3), "the second loads"
    file = run.stage(2, "sample").file
    old = json.loads(file.read_text())
    del old["facts"]["start_seconds"]
    file.write_text(json.dumps(old))
    assert measure(run, "the run").loading is None
    told = {figure.name: figure.source for figure in make_scale_plan(recipe, Cluster(nodes=1)).assumptions}
    assert "in its rates" in told["starting workers and loading a sampler"]


def test_nothing_measured_here_is_said(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"--nodes without --gpu.*--calibrate"):
        planned(tmp_path, {"nodes": 2})


# ---- the command ---------------------------------------------------------------------------------------------------------


def written(folder: Path, **changes: Any) -> str:
    file = folder / "planned.yaml"
    file.write_text(yaml.safe_dump(settings(folder, **changes)))
    return str(file)


def test_json_and_text_of_the_command(tmp_path: Path) -> None:
    options = [
        "--nodes",
        "2",
        "--gpus",
        "8",
        "--gpu",
        "A100-80GB",
        "--prompts",
        "1600",
        "--trials",
        "3",
        "--mtbf",
        "inf",
    ]
    found = RUNNER.invoke(app, ["plan", written(tmp_path), *options, "--json"])
    assert found.exit_code == 0, found.output
    told = json.loads(found.output)
    assert told["total"]["usd"] == pytest.approx(sum(s["gpu_usd"] + s["api_usd"] for s in told["stages"]))
    assert told["total"]["hours"] == pytest.approx(sum(s["hours"] for s in told["stages"]))
    assert told["twice_the_nodes"]["hours"] <= told["total"]["hours"]
    assert {"name", "value", "unit", "origin", "source"} == set(told["assumptions"][0])
    text = RUNNER.invoke(app, ["plan", written(tmp_path), *options])
    assert text.exit_code == 0
    assert "bottleneck" in text.output


def test_paid_calls_over_the_budget_are_exit_code_1(tmp_path: Path) -> None:
    options = ["--nodes", "1", "--gpus", "8", "--gpu", "H100", "--trials", "1"]
    found = RUNNER.invoke(app, ["plan", written(tmp_path, budget={"usd": 0.01}), *options])
    assert found.exit_code == 1
    assert "budget.usd" in found.output


G8 = ["--gpus", "8", "--gpu", "H100"]
REFUSED = {
    "unknown type": (["--nodes", "1", "--gpus", "8", "--gpu", "V9000"], "A100-80GB, B200-180GB, H100-80GB"),
    "ambiguous type": (["--nodes", "1", "--gpus", "8", "--gpu", "A100"], "A100-40GB, A100-80GB"),
    "no gpus": (["--nodes", "1", "--gpus", "0", "--gpu", "H100"], "--gpus 0; accepted"),
    "no nodes": (["--nodes", "0", *G8], "--nodes 0; accepted"),
    "negative price": ([*G8, "--price", "-1"], "--price -1"),
    "negative boot": ([*G8, "--boot-minutes", "-1"], "--boot-minutes -1"),
    "nan": ([*G8, "--mtbf", "nan"], "--mtbf nan"),
    "endless price": ([*G8, "--price", "inf"], "--price inf"),
    "gpus without type": (["--nodes", "1", "--gpus", "8"], "--gpus without --gpu"),
    "type without gpus": (["--gpu", "H100"], "without --gpus"),
    "too many to train": ([*G8, "--train-gpus", "9"], "--train-gpus 9; accepted: at most the 8"),
    "no machines": (["--mtbf", "12"], "--mtbf is about several machines"),
    "judge without size": ([*G8, "--judge-gpus", "8"], "--judge-parameters"),
    "a judge that is paid": ([*G8, "--judge-gpus", "8", "--judge-parameters", "70"], "judge-1 is paid by the token"),
    "own judge with limits": ([*G8, "--judge-gpus", "8", "--judge-parameters", "7", "--judge-tpm", "9"], "--judge-tpm"),
    "probe": ([*G8, "--probe", "4"], "--probe"),
    "few prompts": ([*G8, "--prompts", "1"], "--prompts 1"),
    "too many runs": ([*G8, "--trials", "1001"], "--trials 1001"),
    "too large to train": ([*G8, "--parameters", "30", "--train-gpus", "2"], "training GPUs"),
    "too large to sample": ([*G8, "--parameters", "400"], "sampling.vllm.tensor_parallel"),
    "failing always": ([*G8, "--mtbf", "0.0001"], "would never end"),
    "too many units": ([*G8, "--prompts", "100000000"], "sampling.unit_prompts"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_makes_no_sense_is_refused_with_what_is_accepted(name: str, tmp_path: Path) -> None:
    options, said = REFUSED[name]
    found = RUNNER.invoke(app, ["plan", written(tmp_path), *options])
    assert found.exit_code == 1, found.output
    assert said in " ".join(found.output.split())
    assert "Traceback" not in found.output


def test_a_model_of_unknown_size_asks_for_it(tmp_path: Path) -> None:
    found = RUNNER.invoke(app, ["plan", written(tmp_path, policy={"model": "some/model"}), *G8])
    assert found.exit_code == 1
    assert "--parameters" in found.output


def test_limits_that_nobody_reads_are_refused(tmp_path: Path) -> None:
    found = RUNNER.invoke(app, ["plan", written(tmp_path, oracle={"kind": "scripted"}), *G8, "--judge-tpm", "9"])
    assert found.exit_code == 1
    assert "no model of this recipe is served" in found.output


# ---- the tables of the docs ----------------------------------------------------------------------------------------------


def test_the_tables_of_the_docs_can_be_made_again() -> None:
    """One run of each kind; the recipes are parsed with all others."""
    told: dict[str, None] = {}
    docs = (ROOT / "docs" / "planning-at-scale.md").read_text()
    cases = [case for case in CASES if case.recipe == "paper-600k"]
    assert cases
    line = table_row(cases[0], 2, told)
    assert line.startswith(f"| {cases[0].title} |")
    assert all(f"| {case.title} |" in docs for case in CASES), "docs/planning-at-scale.md shows every row"
    assert len(told) > 20
