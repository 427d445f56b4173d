"""What a plan says before anything is spent: against figures worked out by hand, and against a server that counts."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from judge_server import JudgeServer
from tiny_chat import write_tiny_policy
from typer.testing import CliRunner

from nashtune.cli import app
from nashtune.errors import BudgetError, OracleError, PromptError
from nashtune.judging import rubric
from nashtune.planning.budget import Spending, budget_of
from nashtune.planning.plan import make_plan, refuse_over_budget
from nashtune.planning.show import print_plan
from nashtune.recipe import Recipe, parse_recipe
from nashtune.records import Message, Prompt
from nashtune.run import Run
from nashtune.stages.judging import judge
from nashtune.stages.teacher import sample
from nashtune.store.ledger import Ledger, Terms
from nashtune.summaries import AVERAGE

RUNNER = CliRunner()
PROMPT_CHARACTERS = 40
ENGINE = {"model": "judge-1", "price": {"input": 10, "output": 30}, "base_url": "http://127.0.0.1:9/v1", "probe": False}
JUDGE_TOKENS = {"prompt_tokens", "completion_tokens"}


def settings(folder: Path, **changes: Any) -> dict[str, Any]:
    """The scripted policy, 2 x 50 prompts of 40 characters and 20 held out, with a paid teacher and judge."""
    source = folder / "prompts.jsonl"
    rows = [{"prompt": f"question number {n:04d}".ljust(PROMPT_CHARACTERS, "?")} for n in range(120)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "name": "planned",
        "folder": str(folder / "runs"),
        "iterations": 2,
        "policy": {"model": "none"},
        "prompts": {"source": str(source), "dedupe": {"near": None}, "per_iteration": 50, "validation": {"count": 20}},
        "sampling": {"engine": "scripted", "k": 3, "max_new_tokens": 200},
        "teacher": {"kind": "remote", "engine": ENGINE, "max_new_tokens": 100},
        "oracle": {"kind": "rubric", "engine": ENGINE},
    } | changes


def planned(folder: Path, **changes: Any) -> Recipe:
    return parse_recipe(settings(folder, **changes))


def written(folder: Path, **changes: Any) -> Path:
    file = folder / "planned.yaml"
    file.write_text(yaml.safe_dump(settings(folder, **changes)))
    return file


def judgment_by_hand(students: int) -> float:
    """Dollars of one rubric call: answers of 100 tokens (400 characters), the teacher's of 50 (200)."""
    prompt = Prompt.make((Message("user", "x" * PROMPT_CHARACTERS),))
    message = rubric.render(prompt, ["y" * 400] * students + ["z" * 200], 0)
    there, back = math.ceil(len(message) / 4), 100 * (students + 1)
    again = there + back + math.ceil(len(rubric.REPAIR) / 4)
    return ((there + 0.02 * again) * 10 + 1.02 * back * 30) / 1e6


def test_the_total_is_what_a_hand_works_out_and_half_of_it_in_batches(tmp_path: Path) -> None:
    plan = make_plan(planned(tmp_path))
    teacher = (PROMPT_CHARACTERS / 4 + 4) * 10 / 1e6 + 50 * 30 / 1e6
    judged = 100 * judgment_by_hand(3) + 20 * sum(judgment_by_hand(n) for n in (1, 2, 3))
    assert plan.sum_of("usd") == pytest.approx(120 * teacher + judged, abs=0.005)
    assert plan.sum_of("usd_batch") == pytest.approx(plan.sum_of("usd_sync") / 2)
    assert plan.sum_of("usd_worst") > 2 * plan.sum_of("usd")
    assert plan.sum_of("tokens", 1) == 50 * 3 * 100 + 20 * 100 + 50 * 2 * (14 + 2 * 100)
    batch = {"kind": "rubric", "engine": ENGINE | {"batch": True}}
    halved = make_plan(planned(tmp_path, oracle=batch, teacher={"kind": "none"}))
    assert halved.sum_of("usd") == halved.sum_of("usd_batch") > 0
    print_plan(plan)


def test_each_iteration_has_the_stages_of_the_run(tmp_path: Path) -> None:
    rows = make_plan(planned(tmp_path)).rows
    held_out = ["validate-sample", "validate-judge"]
    assert [r.stage for r in rows if r.iteration == 0] == ["validate-sample", "validate-teacher", "validate-judge"]
    assert [r.stage for r in rows if r.iteration == 2] == ["sample", "teacher", "judge", "train", *held_out]
    assert all(row.seconds is None for row in rows), "no rate is made up"


def test_an_unjudged_method_pays_for_validation_alone_and_for_its_own_judge(tmp_path: Path) -> None:
    def rows(**changes: Any) -> dict[tuple[int, str], Any]:
        return {(row.iteration, row.stage): row for row in make_plan(planned(tmp_path, **changes)).rows}

    spin = rows(method="spin")
    assert {key[1] for key, row in spin.items() if row.usd and "teacher" not in key[1]} == {"validate-judge"}
    free = rows(method="spin", validate={"oracle": {"kind": "scripted"}})
    assert not any(row.usd for (_, stage), row in free.items() if "judge" in stage)


def test_two_models_take_twice_the_time_of_one_once_they_differ(tiny_folder: Path, tmp_path: Path) -> None:
    from tiny_chat import tiny_recipe

    raw = tiny_recipe(tiny_folder, sampling={"mixture": 0.1}) | {"folder": str(tmp_path / "runs")}
    plan = make_plan(parse_recipe(raw), probe_prompts=2)
    first, second = (row for row in plan.rows if row.stage == "sample")
    assert first.seconds is not None
    assert second.seconds == pytest.approx(2 * first.seconds)
    assert second.tokens == first.tokens


def test_other_judges_are_cheaper_or_dearer_as_they_should_be(tmp_path: Path) -> None:
    names = {a.name: a for a in make_plan(planned(tmp_path)).alternatives}
    assert names["as in the recipe"].usd_sync == pytest.approx(names["rubric, the paper's"].usd_sync)
    assert names["compact, log-probs"].usd_sync < names["compact, 3 replies"].usd_sync
    assert names["compact, 3 replies"].usd_sync < names["rubric, the paper's"].usd_sync
    cascade = names["cascade: free judge, compact on 3, 5 % audited by rubric"]
    assert cascade.usd_sync < names["cascade: free judge, rubric on 3, 5 % audited"].usd_sync
    assert all(a.usd_batch == pytest.approx(a.usd_sync / 2) and a.usd_worst > a.usd_sync for a in names.values())
    calls = names["pairwise, both orders"].calls
    assert calls == 100 * 12 + 20 * (2 + 6 + 12), "K (K - 1) calls for K = 4, and for the held-out sets of 2, 3 and 4"


def test_a_plan_over_budget_is_shown_and_refused(tmp_path: Path) -> None:
    file = written(tmp_path)
    for cap in ("budget.usd=0.5", "budget.usd_per_iteration=0.5"):
        done = RUNNER.invoke(app, ["plan", str(file), cap])
        assert done.exit_code == 1
        assert "validate-judge" in done.output
        assert f"{cap.partition('=')[0]}: " in done.output
        assert "is expected to cost $" in done.output
        assert "the cap is $0.50" in done.output
    assert RUNNER.invoke(app, ["plan", str(file), "budget.usd=100"]).exit_code == 0


def test_a_run_over_budget_is_refused_before_its_first_call(tmp_path: Path) -> None:
    with JudgeServer() as server:
        engine = ENGINE | {"base_url": server.url}
        file = written(tmp_path, oracle={"kind": "rubric", "engine": engine}, teacher={"kind": "none"})
        done = RUNNER.invoke(app, ["run", str(file), "budget.usd=0.5"])
        assert done.exit_code == 1
        assert "budget.usd: the run is expected to cost $" in done.output
        assert server.requests == []
    assert not (tmp_path / "runs").exists(), "a refused run leaves nothing behind"


def test_what_the_ledger_spent_counts_when_a_run_goes_on(tmp_path: Path) -> None:
    recipe = planned(tmp_path)
    expected = make_plan(recipe)
    folder = tmp_path / "runs" / "planned"
    run_id = Run(folder, recipe).id
    with Ledger(folder / "ledger.sqlite") as ledger:
        ledger.plan("one", {})
        ledger.begin("one", Terms(run_id, 1, exposure=7.0))
    again = make_plan(recipe)
    assert again.budget.spent == 7.0
    others = expected.sum_of("usd") - expected.sum_of("usd", 1)
    assert again.budget.total == pytest.approx(others + 7.0), "iteration 1 has cost more than was expected of it"
    capped = recipe.model_copy(update={"budget": recipe.budget.model_copy(update={"usd": 7.5})})
    with pytest.raises(BudgetError, match=r"7\.00 of it spent already"):
        refuse_over_budget(capped)
    done = Spending({0: 1.0, 1: 1.0, 2: 1.0}, frozenset({0, 1, 2}))
    assert budget_of(capped, expected.rows, done).total == 3.0, "a finished iteration costs what it cost"


def test_a_probe_measures_what_the_server_counts_and_the_run_has_it_for_nothing(tmp_path: Path) -> None:
    with JudgeServer() as server:
        engine = ENGINE | {"base_url": server.url, "concurrency": 2}
        recipe = planned(
            tmp_path,
            oracle={"kind": "rubric", "engine": engine},
            teacher={"kind": "remote", "engine": engine | {"model": "teacher-1"}, "max_new_tokens": 100},
        )
        batched = planned(
            tmp_path,
            oracle={"kind": "rubric", "engine": engine | {"batch": True}},
            teacher={"kind": "remote", "engine": engine | {"model": "teacher-1"}, "max_new_tokens": 100},
        )
        plan = make_plan(batched, probe_prompts=4)
        assert len(server.requests) == 8
        with Ledger(tmp_path / "runs" / "planned" / "ledger.sqlite") as ledger:
            totals = ledger.totals(Run(tmp_path / "runs" / "planned", recipe).id, 1)
        assert plan.probe is not None
        judged = plan.probe.measured.judged
        assert judged is not None
        sent = [r for r in server.requests if r["model"] == "judge-1"]
        words = sum(len(m["content"].split()) for request in sent for m in request["messages"])
        assert judged.judgments == 4
        assert judged.calls == 1
        assert judged.prompt_tokens == words / 4, "the server counts words"
        row = next(r for r in plan.rows if r.stage == "judge")
        assert row.prompt_tokens / row.items == pytest.approx(judged.prompt_tokens)
        assert row.completion_tokens / row.items == pytest.approx(judged.completion_tokens)
        assert plan.probe.cost_usd == pytest.approx(totals["cost_usd"])
        assert plan.budget.spent == pytest.approx(plan.probe.cost_usd)
        assert set(plan.probe.usage_fields) == {"judge-1", "teacher-1"}
        assert set(plan.probe.usage_fields["judge-1"]) == JUDGE_TOKENS
        assert any("measured on" in text for text in plan.assumptions)
        print_plan(plan)
        assert make_plan(recipe, probe_prompts=4).probe is not None
        assert len(server.requests) == 8, "a second probe finds everything in the ledger"
        with Run.open(recipe) as run:
            judge(run, sample(run, 1))
        assert len(server.requests) == 2 * 50, "the run pays for what the probe has not asked"


def test_a_probe_of_a_real_model_counts_its_tokens(tiny_folder: Path, tmp_path: Path) -> None:
    from tiny_chat import tiny_recipe

    recipe = parse_recipe(tiny_recipe(tiny_folder) | {"folder": str(tmp_path / "runs")})
    plan = make_plan(recipe, probe_prompts=2)
    assert plan.probe is not None
    student = plan.probe.measured.student
    assert student is not None
    assert student.count == 6
    assert 1 <= student.tokens <= 12
    row = next(r for r in plan.rows if r.stage == "sample")
    assert row.tokens == pytest.approx(12 * 3 * student.tokens)
    assert row.seconds is not None
    assert plan.disk.policies == 2 * 4 * (plan.disk.parameters or 0) > 0
    assert plan.probe.cost_usd == 0
    assert not (tmp_path / "runs").exists(), "nothing was paid, so the run folder has nothing to keep"
    assert plan.judging.startswith("judging is free")
    assert plan.alternatives == ()


def test_rates_of_the_run_itself_are_used_once_it_has_any(tiny_folder: Path, tmp_path: Path) -> None:
    from tiny_chat import tiny_recipe

    from nashtune.loop import improve

    raw = tiny_recipe(tiny_folder, iterations=1, scale={"references": "workers"}) | {"folder": str(tmp_path / "runs")}
    recipe = parse_recipe(raw)
    assert make_plan(recipe).seconds() is None
    improve(recipe)
    plan = make_plan(recipe)
    run = Run.read(tmp_path / "runs" / "tiny")
    assert str(run.folder) in plan.rates
    assert plan.assumptions[0].startswith("prompts as this run split them")
    sampled = run.stage(1, "sample").record()
    row = next(r for r in plan.rows if (r.iteration, r.stage) == (1, "sample"))
    assert row.tokens == pytest.approx(sampled["facts"]["tokens"])
    assert row.seconds == pytest.approx(sampled["seconds"], rel=0.01)
    train = next(r for r in plan.rows if r.stage == "train")
    assert train.items == sum(run.stage(1, "pairs").record()["facts"]["kinds"].values())
    both = [run.stage(1, name).record() for name in ("train", "references-t")]
    took = sum(record["seconds"] for record in both) / both[0]["facts"]["tokens"]
    assert train.seconds == pytest.approx(took * train.tokens), (
        "reference log-probs belong to training, whoever computes them"
    )
    assert plan.seconds() is not None
    scored = next(r for r in plan.rows if r.stage == "kl-scores")
    assert scored.seconds == pytest.approx(run.stage(1, "kl-scores").record()["seconds"], rel=0.01)
    assert plan.budget.problem == ""


def test_a_model_without_a_price_is_an_error(tmp_path: Path) -> None:
    unknown = {"kind": "rubric", "engine": {"model": "no-such-model"}}
    with pytest.raises(OracleError, match=r"no-such-model.*price list"):
        make_plan(planned(tmp_path, oracle=unknown, teacher={"kind": "none"}))
    free = {"kind": "rubric", "engine": {"model": "no-such-model", "price": "free"}}
    plan = make_plan(planned(tmp_path, oracle=free, teacher={"kind": "none"}))
    assert plan.sum_of("usd_worst") == 0
    assert plan.sum_of("prompt_tokens") > 0
    assert plan.judging.startswith("judging is free")


def test_json_has_stable_keys(tmp_path: Path) -> None:
    done = RUNNER.invoke(app, ["plan", str(written(tmp_path)), "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.output)
    assert list(found) == [
        "name", "folder", "prompts", "validation_prompts", "stages", "iterations", "total", "judging", "alternatives",
        "prices", "assumptions", "rates", "disk", "budget", "probe",
    ]  # fmt: skip
    figures = {"calls", "prompt_tokens", "completion_tokens", "tokens", "usd", "usd_sync", "usd_batch", "usd_worst"}
    assert set(found["total"]) == {*figures, "seconds"}
    assert set(found["iterations"][0]) == {*figures, "iteration"}
    assert set(found["stages"][0]) == {*figures, "iteration", "stage", "model", "items", "seconds"}
    assert set(found["budget"]) == {"usd", "usd_per_iteration", "spent", "projected", "problem"}
    assert found["prompts"] == [50, 50]


def test_a_data_set_out_of_reach_is_named_or_made_do_without(tmp_path: Path) -> None:
    offline = {"HF_HUB_OFFLINE": "1", "PATH": "", "PYTHONPATH": ":".join(sys.path)}
    file = Path(__file__).parent.parent / "recipes" / "paper-7b.yaml"
    command = [sys.executable, "-m", "nashtune.cli", "plan", str(file), "--json"]
    refused = subprocess.run(command, env=offline, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "prompts.source" in refused.stderr
    assert "prompts.per_iteration=N" in refused.stderr
    assert "Traceback" not in refused.stderr
    command.insert(5, "prompts.per_iteration=20000")
    done = subprocess.run(command, env=offline, cwd=tmp_path, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["prompts"] == [20000] * 3
    assert found["total"]["usd"] > 1000
    assert "cannot be read here" in found["assumptions"][0]
    with pytest.raises(PromptError, match="no such file"):
        make_plan(planned(tmp_path, prompts={"source": "mistyped.jsonl", "per_iteration": 5}))


def test_payoffs_are_counted_and_so_are_the_average_and_the_divergence(tmp_path: Path) -> None:
    per_part = {"prompts": settings(tmp_path)["prompts"] | {"per_iteration": 30}}
    plain = make_plan(planned(tmp_path, iterations=3, **per_part))
    full = make_plan(planned(tmp_path, iterations=3, **per_part, validate={"payoffs": True}))
    sets = {n: 20 * judgment_by_hand(n) for n in (1, 2, 3, 4)}  # n policies' answers and the teacher's
    for plan, sizes in ((plain, (1, 2, 3, 3)), (full, (1, 2, 3, 4))):
        judged = [row.usd for row in plan.rows if row.stage == "validate-judge"]
        assert judged == pytest.approx([sets[n] for n in sizes], abs=0.005)
    policy = write_tiny_policy(tmp_path / "policy")
    native = planned(
        tmp_path,
        policy={"model": str(policy)},
        sampling={"k": 3, "max_new_tokens": 20},
        validate={"kl_samples": 2},
        average="weights",
    )
    plan = make_plan(native)
    drawn = [(row.iteration, row.tokens) for row in plan.rows if row.stage == "kl-sample"]
    assert drawn == [(1, 20 * 2 * 10), (2, 20 * 2 * 10)]
    assert [row.stage for row in plan.rows if row.iteration == AVERAGE] == ["validate-sample", "validate-judge"]
    without = make_plan(native.model_copy(update={"average": "best"}))
    assert (plan.disk.policies or 0) - (without.disk.policies or 0) == 4 * (plan.disk.parameters or 0) > 0


def test_evaluations_by_suites_are_planned_by_their_published_sizes(tmp_path: Path) -> None:
    suites = [
        {"suite": "alpaca_eval", "when": "each", "judge": ENGINE, "max_new_tokens": 100},
        {"suite": "mt_bench", "data": "absent", "judge": ENGINE},
    ]
    plan = make_plan(planned(tmp_path, evaluate=suites), answer_tokens=50)
    rows = {(row.iteration, row.stage): row for row in plan.rows}
    asked = [t for t in range(3) if (t, "alpaca_eval") in rows]
    assert asked == [0, 1, 2]
    row = rows[1, "alpaca_eval"]
    assert (row.calls, row.prompt_tokens, row.completion_tokens) == (805, 805 * 950, 805)
    assert row.usd == pytest.approx(805 * (950 * 10 + 1 * 30) / 1e6)
    assert row.usd_worst == pytest.approx(805 * (4 * (900 + 100) * 10 + 1 * 30) / 1e6)
    assert rows[2, "alpaca_eval answers"].tokens == 805 * 50
    assert [t for t in range(3) if (t, "mt_bench") in rows] == [0, 2], "at the end: the first and the exported policy"
    assert rows[2, "mt_bench"].calls == 160
    assert any("published data's sizes" in text for text in plan.assumptions)
