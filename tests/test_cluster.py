"""The Ray engine on a simulated cluster: actors, nodes, the driver and a training rank are lost, the rows stay the same."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from cluster_roles import Writer, units_in
from dying_scorer import DyingScorer
from hosted_judges import pairwise, write_judge
from test_reward_model import write_reward_model
from tiny_chat import tiny_recipe
from typer.testing import CliRunner

from nashtune.cli import app
from nashtune.errors import ModelError, RecipeError, SamplingError
from nashtune.recipe import RaySection, parse_recipe
from nashtune.records import Response
from nashtune.run import Run
from nashtune.scale.claims import AtWork, at_work, open_stage
from nashtune.stages import streaming
from nashtune.stages.judging import judge
from nashtune.stages.pairing import make_pairs
from nashtune.stages.teacher import sample
from nashtune.stages.training import train
from nashtune.store import tables
from nashtune.training import reference_units

HERE = Path(__file__).parent
try:
    import ray
except ModuleNotFoundError:
    ray = None
needs_ray = pytest.mark.skipif(ray is None, reason="the package ray is not installed (pip install 'nashtune[ray]')")


@pytest.fixture(scope="module")
def engine() -> Iterator[Any]:
    """An engine with a cluster of its own on this machine: two actors."""
    import ray_nodes

    from nashtune.scale.ray_cluster import RayEngine

    os.environ.update(ray_nodes.quiet())
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    settings = RaySection(max_actors=2, tries=3, runtime_env={"env_vars": {"PYTHONPATH": path}})
    engine = RayEngine(settings)
    yield engine
    engine.close()


def texts(folder: Path) -> list[str]:
    return [file.read_text() for file in sorted((folder / "stage").glob("*.parquet"))]


@needs_ray
def test_dead_actors_are_replaced_and_only_what_they_were_at_is_redone(engine: Any, tmp_path: Path) -> None:
    units = units_in(tmp_path, 12)
    open_stage(tmp_path / "stage", 12, ())
    done = list(engine.run(Writer(deadly=frozenset({2, 7}), together=2), units))
    assert sorted(unit.index for unit, _ in done) == list(range(12))
    assert all(facts == {"prompts": 2} for _, facts in done)
    said = texts(tmp_path)
    assert [text.split()[0] for text in said] == [str(n) for n in range(12)]
    begun = [len(list((tmp_path / "stage").glob(f"{n:06d}-k.begun-*"))) for n in range(12)]
    assert begun == [2 if n in (2, 7) else 1 for n in range(12)]
    found = at_work(tmp_path / "stage", {f.name for f in (tmp_path / "stage").glob("*.parquet")})
    assert found is not None
    assert (found.done, found.running, found.redone) == (12, 0, 2)
    assert list(engine.run(Writer(), units)) == []  # all are committed


@needs_ray
def test_a_unit_that_fails_again_and_again_ends_the_stage_with_its_error(engine: Any, tmp_path: Path) -> None:
    with pytest.raises(SamplingError, match=r"000001-k\.parquet failed 3 times \(scale\.ray\.tries\).*is broken"):
        list(engine.run(Writer(broken=frozenset({1})), units_in(tmp_path / "a", 3)))
    with pytest.raises(SamplingError, match=r"000000-k\.parquet failed 3 times.*its actor died"):
        list(engine.run(Writer(poison=frozenset({0})), units_in(tmp_path / "b", 1)))
    with pytest.raises(ModelError, match="no such model"):  # the same everywhere: not tried again
        list(engine.run(Writer(refused=frozenset({0})), units_in(tmp_path / "c", 1)))
    assert len(list((tmp_path / "c" / "stage").glob("*.begun-*"))) == 1
    assert len(list(engine.run(Writer(), units_in(tmp_path / "d", 4)))) == 4


@needs_ray
def test_actors_end_while_there_is_nothing_for_them_and_a_caller_may_stop_in_the_middle(
    engine: Any, tmp_path: Path
) -> None:
    running = engine.run(Writer(together=2), units_in(tmp_path / "a", 8))
    next(running)
    running.close()
    list(engine.run(Writer(), units_in(tmp_path / "b", 4)))
    workers = [int(text.split()[-1]) for text in texts(tmp_path / "b")]
    engine.pause()
    for pid in set(workers):
        if psutil.pid_exists(pid):
            psutil.Process(pid).wait(60)
    assert len(list(engine.run(Writer(), units_in(tmp_path / "c", 2)))) == 2


@needs_ray
def test_an_oracle_that_computes_judges_on_the_actors_row_for_row(
    engine: Any, tiny_folder: Path, tmp_path: Path
) -> None:
    engine.start()  # its cluster serves the run, too
    engine.pause()
    oracle = {"kind": "reward_model", "model": str(write_reward_model(tmp_path / "reward"))}
    found = {}
    for name in ("local", "ray"):
        scale: dict[str, Any] = {"engine": name} | ({"ray": {"max_actors": 1}} if name == "ray" else {})
        changes = {"oracle": oracle, "teacher": {"kind": "none"}, "scale": scale, "sampling": {"engine": "scripted"}}
        recipe = parse_recipe(tiny_recipe(tiny_folder, **changes) | {"folder": str(tmp_path / name)})
        with Run.open(recipe) as run:
            judgments = judge(run, sample(run, 1))
            found[name] = [judgment for _, _, judgment in judgments]
            facts = run.stage(1, "judge").record()["facts"]
            assert ("units_redone" in facts) == (name == "ray")  # done as work units
    assert len(found["local"]) == 12
    assert found["ray"] == found["local"]


@needs_ray
def test_actors_compute_reference_logprobs_and_one_that_dies_costs_its_unit_alone(
    engine: Any, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.start()
    engine.pause()
    made = partial(DyingScorer, marks=tmp_path)
    monkeypatch.setattr(reference_units, "ReferenceScorer", made)
    policies = {}
    for name in ("local", "ray"):
        scale: dict[str, Any] = {"engine": name} | ({"ray": {"max_actors": 2}} if name == "ray" else {})
        changes = {"teacher": {"kind": "none"}, "scale": scale, "iterations": 1}
        recipe = parse_recipe(tiny_recipe(tiny_folder, **changes) | {"folder": str(tmp_path / name)})
        if name == "ray":  # sampled and judged elsewhere: the actors have references alone to compute
            shutil.copytree(tmp_path / "local", tmp_path / "ray")
            for left in ("train", "policy"):
                shutil.rmtree(tmp_path / "ray" / "tiny" / "iteration-1" / left)
            (tmp_path / "ray" / "tiny" / "iteration-1" / "train.json").unlink()
        with Run.open(recipe) as run:
            pairs = make_pairs(run, judge(run, sample(run, 1)))
            policies[name] = train(run, 1, pairs).fingerprint
            stage = run.stage(1, "references-t")
    assert policies["ray"] == policies["local"]
    assert stage.record()["facts"] == {"pairs": 24, "units": 6, "units_redone": 1}
    begun = [file.name.split("-") for file in tmp_path.glob("?-*")]
    assert {int(process) for _, process in begun}.isdisjoint({os.getpid()})
    assert sorted(Counter(unit for unit, _ in begun).values()) == [1, 1, 1, 1, 1, 2]


@needs_ray
def test_a_model_without_a_run_is_evaluated_on_the_actors(engine: Any, tiny_folder: Path, tmp_path: Path) -> None:
    engine.start()
    engine.pause()
    rows = [{"key": n, "prompt": f"Say {n}.", "instruction_id_list": ["punctuation:no_comma"]} for n in range(5)]
    data = tmp_path / "ifeval.jsonl"
    data.write_text("".join(json.dumps(row | {"kwargs": [{}]}) + "\n" for row in rows))
    settings = [f"ifeval.data={data}", "ifeval.max_new_tokens=6", "unit_prompts=2", "slots=4"]
    found = {}
    for name, more in (("local", []), ("ray", ["scale.engine=ray", "scale.ray.max_actors=1"])):
        words = [word for setting in (*settings, *more) for word in ("-o", setting)]
        out = ["--suite", "ifeval", "--out", str(tmp_path / name), "--json"]
        done = CliRunner().invoke(app, ["eval", str(tiny_folder / "policy"), *out, *words])
        assert done.exit_code == 0, done.output
        folder = tmp_path / name / "ifeval" / "policy"
        found[name] = [tables.read(Response, file) for file in sorted((folder / "answers-1").glob("*.parquet"))]
        assert "units_redone" in json.loads((folder / "answers-1.json").read_text())["facts"]
    assert [len(rows) for rows in found["local"]] == [2, 2, 1]
    assert found["ray"] == found["local"]


@needs_ray
@pytest.mark.slow
def test_a_hosted_judge_has_actors_of_its_own_and_the_same_rows(
    engine: Any, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sampler's last unit waits until one is judged; the judge's actors say in the stage's folder what they are at."""
    engine.start()  # its cluster serves the run, too
    engine.pause()
    folder, found = write_judge(tmp_path / "judge"), {}
    seen: list[AtWork | None] = []
    watch = streaming._Alongside.watch

    def watched(self: Any) -> str:
        judged = self.run.stage(1, "judge").folder
        names, deadline = set[str](), time.monotonic() + 120
        while not names:
            assert time.monotonic() < deadline, "nobody judges beside the sampler"
            names = {file.name for file in judged.glob("*.parquet")}
            time.sleep(0.05)
        seen.append(at_work(judged, names))
        return watch(self)

    for name in ("local", "ray"):
        ray_ = {"max_actors": 1, "runtime_env": {"env_vars": {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}}}
        scale: dict[str, Any] = {"engine": name} | ({"ray": ray_} if name == "ray" else {})
        changes = {"oracle": pairwise(folder, actors=1 if name == "ray" else None), "teacher": {"kind": "none"}}
        recipe = parse_recipe(
            tiny_recipe(tiny_folder, **changes, scale=scale, sampling={"engine": "scripted"})
            | {"folder": str(tmp_path / name)}
        )
        if name == "ray":
            monkeypatch.setattr(streaming._Alongside, "watch", watched)
        with Run.open(recipe) as run:
            found[name] = [judgment for _, _, judgment in judge(run, sample(run, 1))]
            assert run.stage(1, "judge").record()["facts"]["engine_seconds"] > 0
            assert not (run.stage(1, "judge").folder / ".claims").exists()
    assert len(found["local"]) == 12
    assert found["ray"] == found["local"]
    assert seen[0] is not None
    assert len(seen[0].workers) == 1
    assert seen[0].units == 3


@needs_ray
def test_a_cluster_that_loses_what_a_cluster_loses_ends_as_one_machine_does(tmp_path: Path) -> None:
    import cluster_chaos

    found = cluster_chaos.story(tmp_path, 16, print)
    missed = {name: bar for name, bar in cluster_chaos.bars(found).items() if not bar[1](bar[0])}
    assert not missed, found


@pytest.mark.parametrize(
    ("scale", "told"),
    [
        ({"ray": {"address": "auto"}}, "scale.engine is 'local', which does not read scale.ray.address"),
        ({"engine": "ray", "workers": 2}, "scale.workers is 2.*scale.ray.max_actors"),
        ({"engine": "ray", "ray": {"min_actors": 3, "max_actors": 2}}, "max_actors is 2 but scale.ray.min_actors is 3"),
        ({"engine": "ray", "ray": {"resources": {"GPU": 1}}}, "scale.ray.resources has 'GPU'"),
        ({"engine": "ray", "ray": {"address": "ray://head:10001"}}, "Ray Client is not supported"),
    ],
)
def test_settings_that_nothing_reads_are_refused(tiny_folder: Path, scale: dict[str, Any], told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        parse_recipe(tiny_recipe(tiny_folder, scale=scale))


def test_ranks_of_ray_train_read_the_clusters_address(tiny_folder: Path) -> None:
    ranks = {"launcher": "ray", "train_processes": 2}
    assert (
        parse_recipe(tiny_recipe(tiny_folder, scale={**ranks, "ray": {"address": "auto"}})).scale.ray.address == "auto"
    )
    with pytest.raises(RecipeError, match=r"which does not read scale\.ray\.window"):
        parse_recipe(tiny_recipe(tiny_folder, scale={**ranks, "ray": {"address": "auto", "window": 3}}))


def test_without_ray_the_recipe_is_refused_with_how_to_get_it(tiny_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(tiny_recipe(tiny_folder, scale={"engine": "ray"}) | {"folder": str(tmp_path)}))
    code = "import sys; sys.modules['ray'] = None; from nashtune.cli import app; app()"
    done = subprocess.run([sys.executable, "-c", code, "run", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pip install 'nashtune[ray]'" in done.stderr
    assert "Traceback" not in done.stderr


@needs_ray
def test_an_address_where_nobody_listens_is_told_at_once(tiny_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    scale = {"engine": "ray", "ray": {"address": "127.0.0.1:1"}}
    file.write_text(yaml.safe_dump(tiny_recipe(tiny_folder, scale=scale) | {"folder": str(tmp_path)}))
    command = [sys.executable, "-m", "nashtune.cli", "run", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "scale.ray.address is '127.0.0.1:1', but there is no cluster" in done.stderr


@needs_ray
@pytest.mark.slow
def test_a_cluster_started_for_a_run_ends_with_it_however_it_ends(tiny_folder: Path, tmp_path: Path) -> None:
    import ray_nodes

    file, run = tmp_path / "recipe.yaml", tmp_path / "tiny"
    file.write_text(yaml.safe_dump(tiny_recipe(tiny_folder, scale={"engine": "ray"}) | {"folder": str(tmp_path)}))
    process = subprocess.Popen([sys.executable, "-m", "nashtune.cli", "run", str(file)], env=ray_nodes.quiet())
    while not list(run.glob("iteration-1/sample/*.parquet")):
        assert process.poll() is None
        time.sleep(0.01)
    below = psutil.Process(process.pid).children(recursive=True)
    assert any("raylet" in child.name() for child in below)
    process.kill()
    process.wait()
    assert not psutil.wait_procs(below, timeout=120)[1]
