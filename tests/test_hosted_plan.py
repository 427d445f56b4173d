"""Plans of recipes that host their judge: no dollars a token, the GPUs of the judge in their place."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hosted_judges import pairwise, write_judge
from test_plan_scale import H100, RUNNER, hours, planned, settings
from tiny_chat import tiny_recipe, write_prompts, write_tiny_policy

from nashtune.cli import app
from nashtune.errors import PlanError
from nashtune.judging.hosted import Host
from nashtune.planning.calibration import calibrate
from nashtune.planning.cluster import Cluster
from nashtune.planning.hardware import find_gpu
from nashtune.planning.lengths import local_lengths, local_policy
from nashtune.planning.limits import PREFILL_SHARE, judging_rates
from nashtune.planning.plan import make_plan
from nashtune.planning.rates import ENGINE_START, READ_RATE
from nashtune.planning.work import read_work
from nashtune.recipe import load_recipe, parse_recipe

ROOT = Path(__file__).parent.parent
HOST: dict[str, Any] = {"model": "some/judge-8B", "engine": "vllm"}
RAY = {"engine": "ray", "ray": {"max_actors": 16}}


def oracle(**host: Any) -> dict[str, Any]:
    return {"kind": "rubric", "hosted": HOST | host}


def test_a_hosted_judge_costs_no_dollars_and_its_tokens_are_told(tmp_path: Path) -> None:
    plan = make_plan(parse_recipe(settings(tmp_path, oracle=oracle(), prompts=plain(tmp_path))))
    rows = [row for row in plan.to_dict()["stages"] if row["stage"] == "judge"]
    assert {row["model"] for row in rows} == {"some/judge-8B"}
    assert all(row["usd"] == row["usd_worst"] == 0 for row in rows)
    assert all(row["prompt_tokens"] > 1000 for row in rows)
    assert plan.to_dict()["prices"] == {}
    notes = " ".join(plan.assumptions)
    assert "some/judge-8B: hosted, no dollars a token" in notes
    assert "every byte of a prompt" not in notes, "no budget is reserved for it"


def plain(folder: Path) -> dict[str, Any]:
    return settings(folder)["prompts"] | {"per_iteration": 15, "validation": {"count": 5}}


def test_judging_hours_are_those_of_its_tokens_on_its_gpus(tmp_path: Path) -> None:
    """By hand: tokens over rates, and the time to load."""
    parallel = {"actors": 4, "vllm": {"tensor_parallel": 2}}
    cluster = H100 | {"prompts": 40_000, "mtbf": math.inf}
    plan = planned(tmp_path, cluster, oracle=oracle(**parallel), scale=RAY | {"overlap": False})
    read, write = judging_rates(find_gpu("H100"), 8.0)
    assert read == pytest.approx(PREFILL_SHARE * find_gpu("H100").flops / 16e9)
    bills = make_plan(parse_recipe(settings(tmp_path, oracle=oracle(), prompts=plain(tmp_path)))).to_dict()["stages"]
    (bill, *_) = [row for row in bills if row["stage"] == "judge"]
    each = (bill["prompt_tokens"] / read + bill["completion_tokens"] / write) / 15 / 8
    judged = [row for row in plan.rows if row.stage == "judge"]
    load = ENGINE_START + 2 * 8e9 / READ_RATE
    assert [row.judge_hours * 3600 for row in judged] == pytest.approx([20_000 * each + load] * 2, rel=0.001)
    assert {row.limit for row in judged} == {"GPUs of some/judge-8B"}
    assert plan.total.api_usd == 0
    assert "and 8 of the same type for the judge" in plan.machines


def test_a_judge_with_actors_of_its_own_works_beside_the_sampler_and_one_without_in_turn(tmp_path: Path) -> None:
    cluster = H100 | {"prompts": 40_000, "mtbf": math.inf}
    own = planned(tmp_path, cluster, oracle=oracle(actors=16), scale=RAY)
    turns = planned(tmp_path, cluster, oracle=oracle(), scale=RAY)
    assert hours(own, "judge") < hours(turns, "judge"), "what is hidden behind sampling"
    assert own.barriers.hours > own.total.hours
    assert turns.barriers.hours == pytest.approx(turns.total.hours)
    assert "for the judge" not in turns.machines
    held = [row for row in turns.rows if row.stage == "judge"]
    assert sum(row.gpu_hours for row in held) == pytest.approx(16 * hours(turns, "judge")), "the nodes' GPUs are held"
    more = planned(tmp_path, cluster | {"judge_gpus": 32}, oracle=oracle(actors=16), scale=RAY)
    assert hours(more, "judge") <= hours(own, "judge")
    assert "and 32 of the same type" in more.machines


@pytest.mark.parametrize(
    ("host", "options", "told"),
    [
        ({"model": "some/judge"}, {}, "its name tells no size; accepted: --judge-parameters"),
        ({}, {"judge_gpus": 8}, "hosted.actors is null, so that the judge takes turns"),
        ({"actors": 2}, {"judge_tpm": 1e6}, "no model of this recipe is served"),
    ],
)
def test_what_a_plan_of_a_hosted_judge_cannot_have_is_refused(
    tmp_path: Path, host: dict[str, Any], options: dict[str, Any], told: str
) -> None:
    with pytest.raises(PlanError, match=told):
        planned(tmp_path, H100 | options, oracle=oracle(**host), scale=RAY)


def test_the_recipe_for_a_hundred_million_prompts_needs_no_api() -> None:
    recipe = load_recipe(ROOT / "recipes" / "scale-100m.yaml")
    assert recipe.oracle.kind == "compact"
    assert recipe.oracle.engine is None
    assert Cluster(nodes=64, gpus=8, gpu="H100").total_gpus == recipe.scale.ray.max_actors


def test_a_calibration_measures_the_hosted_judge_without_its_loading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NASHTUNE_CACHE", str(tmp_path / "cache"))
    answer, loaded = Host.answer, []

    def watched(self: Host, requests: Any) -> Any:
        loaded.append(self._loaded is not None)
        return answer(self, requests)

    monkeypatch.setattr(Host, "answer", watched)
    write_tiny_policy(tmp_path / "policy")
    write_prompts(tmp_path / "prompts.jsonl", 40)
    judge = write_judge(tmp_path / "judge")
    changes = {"teacher": {"kind": "none"}, "prompts": {"per_iteration": 4, "validation": {"count": 2}}}
    recipe = parse_recipe(tiny_recipe(tmp_path, oracle=pairwise(judge), **changes))
    work = read_work(recipe, tmp_path / "runs" / "x", local_lengths(recipe, local_policy(recipe)))
    times = calibrate(recipe, work, fresh=True)
    assert times.judge is not None
    assert times.judge > 0
    assert times.pairs_per_prompt is not None
    assert loaded == [False, True], "the first set loads the model and is counted apart; the others are one batch"
    assert times.load_judge > 0


def test_plan_shows_a_hosted_judge_on_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(settings(tmp_path, oracle=oracle(), prompts=plain(tmp_path))))
    found = RUNNER.invoke(app, ["plan", str(file)])
    assert found.exit_code == 0, found.output
    assert "hosted" in found.output
