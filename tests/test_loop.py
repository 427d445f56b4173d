"""The whole loop on a tiny model: what it leaves on disk, resuming, drift, rollback and fork."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_chat import tiny_recipe
from transformers import AutoModelForCausalLM, AutoTokenizer

from nashtune import Run, build_pairs, improve, judge, make_pairs, sample, train, validate
from nashtune.errors import DriftError, PairError, RunLockedError, StoreError
from nashtune.model.loading import load_model, load_tokenizer, render
from nashtune.recipe import Recipe, parse_recipe
from nashtune.records import Judgment, Response
from nashtune.show import status_json
from nashtune.stages.work import policy_of
from nashtune.store import tables


def recipe_for(tiny_folder: Path, runs: Path, **changes: Any) -> Recipe:
    return parse_recipe(tiny_recipe(tiny_folder, **changes) | {"folder": str(runs)})


def contents(run: Path) -> dict[str, tuple[int, bytes]]:
    """Time of change and bytes of every file of a run, but for the lock."""
    return {
        str(f.relative_to(run)): (f.stat().st_mtime_ns, f.read_bytes())
        for f in sorted(run.rglob("*"))
        if f.is_file() and f.name != "lock"
    }


@pytest.fixture(scope="module")
def finished(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    recipe = recipe_for(tiny_folder, tmp_path_factory.mktemp("finished"))
    improve(recipe)
    return Run.read(Path(recipe.folder) / "tiny")


def test_a_finished_run_has_every_row_and_the_best_is_an_ordinary_model(finished: Run) -> None:
    status = json.loads(json.dumps(status_json(finished), allow_nan=False))
    assert status["state"] == "finished"
    assert [row["iteration"] for row in status["iterations"]] == [0, 1, 2]
    for row in status["iterations"][1:]:
        for rival in ("initial", "previous", "teacher"):
            interval = row[f"win_rate_vs_{rival}"]
            assert 0 <= interval["low"] <= interval["value"] <= interval["high"] <= 1
            assert interval["n"] == 8
        assert sum(row["pairs"].values()) > 0
        assert set(row["seconds"]) >= {"sample", "judge", "pairs", "train", "validate-sample", "validate-judge"}
        assert row["tokens"]["sample"] > 0
        assert row["mean_words"] > 0
    best = finished.folder / "best"
    assert status["best"] in (0, 1, 2)
    model = AutoModelForCausalLM.from_pretrained(best)
    tokenizer = AutoTokenizer.from_pretrained(best)
    ids = tokenizer("hi", return_tensors="pt").input_ids
    assert model.generate(ids, max_new_tokens=2, do_sample=False).shape == (1, ids.shape[1] + 2)
    assert "2404.03715" in (best / "README.md").read_text()


def test_where_only_the_best_policy_was_kept_it_is_found_and_another_is_said_to_be_gone(
    finished: Run, tmp_path: Path
) -> None:
    shutil.copytree(finished.folder, tmp_path / "run")
    run = Run.read(tmp_path / "run")
    for iteration in (1, 2):
        shutil.rmtree(run.iteration_folder(iteration) / "policy")
    best = run.best()
    assert best is not None
    if best.iteration:
        assert policy_of(run, best.iteration).folder == run.folder / "best"
        assert policy_of(run, best.iteration).fingerprint == policy_of(finished, best.iteration).fingerprint
    with pytest.raises(StoreError, match=f"policy: missing.*best/ holds iteration {best.iteration}"):
        policy_of(run, next(t for t in (1, 2) if t != best.iteration))


def test_running_a_finished_run_again_changes_nothing(finished: Run) -> None:
    before = contents(finished.folder)
    improve(finished.recipe)
    assert contents(finished.folder) == before


def test_the_record_says_what_the_run_was_made_with(finished: Run) -> None:
    environment = json.loads((finished.folder / "environment.json").read_text())
    assert environment["packages"]["torch"]
    assert environment["cpu"]["cores"] >= 1
    resolved = (finished.folder / "recipe.resolved.yaml").read_text()
    assert "top_p: 0.95" in resolved
    assert "top_p" not in (finished.folder / "recipe.yaml").read_text()


def test_samples_are_stored_as_sampled_and_judgments_know_their_candidates(finished: Run) -> None:
    samples = list(tables.stream(Response, finished.stage(1, "sample").files()))
    assert len(samples) == 12 * 3
    assert all(r.token_ids and r.logprobs["t"] < 0 and r.logprobs["t"] == r.logprobs["0"] for r in samples)
    assert all("0" not in r.logprobs for r in tables.stream(Response, finished.stage(2, "sample").files()))
    ids = {r.id for r in samples} | {r.id for r in tables.stream(Response, finished.stage(1, "teacher").files())}
    judged = list(tables.stream(Judgment, finished.stage(1, "judge").files()))
    assert len(judged) == 12
    assert {i for j in judged for i in j.response_ids} == ids


def test_changing_the_recipe_of_a_begun_run_is_refused(finished: Run, tiny_folder: Path) -> None:
    runs = Path(finished.recipe.folder)
    with pytest.raises(DriftError, match=r"train.*batch_size.*fork"):
        improve(recipe_for(tiny_folder, runs, train={"batch_size": 3}))
    before = contents(finished.folder)
    improve(recipe_for(tiny_folder, runs, train={"checkpoint_steps": 9}))  # neutral
    changed = {name for name, value in contents(finished.folder).items() if value[1] != before[name][1]}
    assert changed == {"recipe.yaml", "recipe.resolved.yaml"}


def test_iterations_may_be_raised_where_parts_have_a_fixed_size(tiny_folder: Path, tmp_path: Path) -> None:
    short = {"prompts": {"per_iteration": 8, "validation": {"count": 4}}}
    improve(recipe_for(tiny_folder, tmp_path / "a", **short, iterations=1))
    improve(recipe_for(tiny_folder, tmp_path / "a", **short, iterations=2))
    improve(recipe_for(tiny_folder, tmp_path / "b", **short, iterations=2))
    a, b = (Run.read(tmp_path / x / "tiny") for x in "ab")
    assert a.stage(2, "train").output == b.stage(2, "train").output


def test_rollback_moves_later_iterations_aside_and_the_run_goes_on_alike(tiny_folder: Path, tmp_path: Path) -> None:
    recipe = recipe_for(tiny_folder, tmp_path)
    improve(recipe)
    run = Run.read(tmp_path / "tiny")
    policy = run.stage(2, "train").output
    with pytest.raises(StoreError, match=r"no finished iteration 7.*\[0, 1, 2\]"):
        run.rollback(7)
    (moved,) = run.rollback(1)
    assert (moved / "train.json").exists()
    assert [s.iteration for s in run.summaries()] == [0, 1]
    improve(recipe)
    assert run.stage(2, "train").output == policy
    run.rollback(1)
    improve(recipe_for(tiny_folder, tmp_path, train={"learning_rate": 2e-3}))  # a rollback lets the recipe change
    assert run.stage(2, "train").output != policy
    run.rollback(1)
    with pytest.raises(DriftError, match="seed"):
        improve(recipe_for(tiny_folder, tmp_path, seed=5))


def test_a_fork_keeps_what_was_paid_for_and_changes_the_rest(finished: Run, tmp_path: Path) -> None:
    target = tmp_path / "forked"
    with pytest.raises(DriftError, match="a fork keeps"):
        finished.fork(target, 1, ("seed=9",))
    with finished.fork(target, 1, ("train.learning_rate=2.0e-3",)) as fork:
        assert fork.recipe.name == "forked"
    assert (target / "iteration-1" / "judge.json").read_bytes() == (
        finished.folder / "iteration-1" / "judge.json"
    ).read_bytes()
    before = contents(finished.folder)
    improve(target / "recipe.yaml", target)
    forked = Run.read(target)
    assert forked.stage(1, "train").output == finished.stage(1, "train").output
    assert forked.stage(2, "train").output != finished.stage(2, "train").output
    assert contents(finished.folder) == before
    with pytest.raises(StoreError, match="exists already"):
        finished.fork(target, 1)


def test_the_parts_compose_in_a_notebook(tiny_folder: Path, tmp_path: Path) -> None:
    with Run.open(recipe_for(tiny_folder, tmp_path)) as run:
        candidates = sample(run, 1)
        prompt, answers = next(iter(candidates))
        assert prompt.text.startswith("Question")
        assert [a.source for a in answers] == ["student"] * 3 + ["teacher"]
        judgments = judge(run, candidates)
        pairs = make_pairs(run, judgments)
        assert tuple(pairs) == build_pairs(judgments, run.recipe.pairs, 1, run.recipe.seed).pairs
        policy = train(run, 1, pairs)
        assert (policy.folder / "model.safetensors").exists()
        validate(run, 0)
        assert validate(run, 1).win_rate_vs_initial is not None
        with pytest.raises(RunLockedError):
            Run.open(run.recipe)
    assert Run.read(tmp_path / "tiny").finished(1)


def test_no_pairs_is_an_error_that_says_why(tiny_folder: Path, tmp_path: Path) -> None:
    recipe = recipe_for(tiny_folder, tmp_path, oracle={"kind": "scripted", "unusable_rate": 1.0})
    with pytest.raises(PairError, match=r"not one training pair from 12 prompts.*unusable judgment"):
        improve(recipe)
    run = Run.read(tmp_path / "tiny")
    assert run.state() == "in iteration 1 of 2 after judge, pairs, sample, teacher, teacher-pool"
    assert run.summaries()[0].unusable_judgments == 8


@pytest.mark.parametrize("kind", ["none", "scripted", "column"])
def test_other_teachers(kind: str, tiny_folder: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"teacher": {"kind": kind}, "iterations": 1}
    if kind == "column":
        rows = [{"prompt": f"Ask {n}?", "gold": f"Answer {n}."} for n in range(24)]
        (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        changes["prompts"] = {"source": str(tmp_path / "p.jsonl"), "teacher_column": "gold"}
    improve(recipe_for(tiny_folder, tmp_path, **changes))
    run = Run.read(tmp_path / "tiny")
    summary = run.summaries()[1]
    assert (summary.win_rate_vs_teacher is None) == (kind == "none")
    if kind == "none":
        assert summary.pairs["S>S"] == sum(summary.pairs.values())
    if kind == "column":
        teacher = next(tables.stream(Response, run.stage(1, "teacher").files()))
        assert teacher.text.startswith("Answer ")
        assert teacher.finish == "stop"
        assert len(teacher.token_ids) == len(teacher.text) + 1  # the byte tokenizer, and the end token


def test_an_oracle_that_asks_for_fluency_gets_log_probs_under_the_initial_policy(
    tiny_folder: Path, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {
        "oracle": {"kind": "rules", "guard": {"min_fluency": -50.0}},
        "teacher": {"kind": "best_of_n", "n": 2},
    }
    changes["prompts"] = {"source": "nashtune:constraints"}
    recipe = recipe_for(tiny_folder, tmp_path, **changes)
    with Run.open(recipe) as run:
        train(run, 1, make_pairs(run, judge(run, sample(run, 1))))
        second = sample(run, 2)
        judge(run, second)
        model = load_model(policy_of(run, 0), torch.float32, attention="sdpa")
        tokenizer = load_tokenizer(policy_of(run, 0))
        prompt, answers = next(iter(second))
        assert [set(a.logprobs) for a in answers] == [{"t", "0"}] * 4
        asked, answer = render(tokenizer, prompt.messages), answers[0]
        assert answer.policy != policy_of(run, 0).fingerprint
        logps = model(torch.tensor([[*asked, *answer.token_ids]])).logits[0].log_softmax(-1)
        plain = sum(logps[len(asked) - 1 + i, token].item() for i, token in enumerate(answer.token_ids))
        assert answer.logprobs["0"] == pytest.approx(plain, abs=1e-3)
        assert answer.logprobs["0"] != pytest.approx(answer.logprobs["t"], abs=1e-3)


@pytest.mark.parametrize("name", ["dno", "dpo", "sft"])
def test_every_objective_runs_through_the_loop(name: str, tiny_folder: Path, tmp_path: Path) -> None:
    recipe = parse_recipe(tiny_recipe(tiny_folder) | {"folder": str(tmp_path), "objective": {"name": name}})
    improve(recipe)
    run = Run.read(tmp_path / "tiny")
    assert run.state() == "finished"
    assert run.stage(2, "train").output != run.stage(1, "train").output


def test_two_workers_sample_what_one_does(tiny_folder: Path, tmp_path: Path) -> None:
    outputs = []
    for workers in (1, 2):
        recipe = recipe_for(tiny_folder, tmp_path / str(workers), scale={"workers": workers})
        with Run.open(recipe) as run:
            sample(run, 1)
            outputs.append([(r.id, r.token_ids) for r in tables.stream(Response, run.stage(1, "sample").files())])
    assert outputs[0] == outputs[1]


def test_settings_of_speed_may_change_between_stages(tmp_path):
    """Neutral settings of an oracle's server are not part of what a stage was made from."""
    from nashtune.recipe import RubricOracle, identity

    engine = {"model": "m", "base_url": "http://127.0.0.1:1/v1"}
    slow = RubricOracle.model_validate({"kind": "rubric", "engine": engine | {"concurrency": 2, "timeout_s": 5}})
    fast = RubricOracle.model_validate({"kind": "rubric", "engine": engine | {"concurrency": 64}})
    assert identity(slow) == identity(fast)
    assert identity(slow) != identity(slow.model_copy(update={"max_tokens": 99}))


def test_a_notebook_with_an_event_loop_running_can_judge(tiny_folder: Path, tmp_path: Path) -> None:
    """Jupyter runs cells inside an event loop, in which asyncio.run is refused."""
    import asyncio

    from nashtune import judge, sample
    from nashtune.recipe import parse_recipe

    changes = {"sampling": {"engine": "scripted"}, "teacher": {"kind": "scripted"}}
    recipe = parse_recipe(tiny_recipe(tiny_folder, **changes) | {"folder": str(tmp_path)})

    async def cell() -> int:
        with Run.open(recipe) as run:
            return sum(judgment.outcome == "ok" for _, _, judgment in judge(run, sample(run, 1)))

    assert asyncio.run(cell()) == 12
