"""Who is at work on which unit, as the workers' files and `nashtune status` tell it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from cluster_roles import Writer, units_in
from tiny_chat import tiny_recipe

from nashtune.errors import ModelError
from nashtune.run import Run
from nashtune.scale.claims import FOLDER, Claims, at_work, close_stage, lose, open_stage
from nashtune.scale.local import LocalEngine
from nashtune.show import print_status, status_json


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.glob("*.parquet")}


def test_a_stage_under_way_by_worker(tmp_path: Path) -> None:
    folder = tmp_path / "stage"
    open_stage(folder, 5, ())
    a, b = Claims("a"), Claims("b")
    for worker, number in ((a, 0), (b, 1), (a, 2)):
        worker.begin(folder, f"{number}.parquet")
        if number < 2:
            (folder / f"{number}.parquet").touch()
    found = at_work(folder, names(folder))
    assert found is not None
    assert (found.units, found.done, found.running, found.redone) == (5, 2, 1, 0)
    assert [(w.name, w.done, w.unit) for w in found.workers] == [("a", 1, "2.parquet"), ("b", 1, "")]
    lose(folder, "a", False)
    lose(folder, "b", True)  # its unit is committed
    found = at_work(folder, names(folder))
    assert found is not None
    assert (found.running, found.redone) == (0, 1)
    assert close_stage(folder) == 1
    assert at_work(folder, names(folder)) is None


def test_what_a_killed_attempt_had_begun_counts_as_lost(tmp_path: Path) -> None:
    folder = tmp_path / "stage"
    open_stage(folder, 2, names(folder))
    Claims("a").begin(folder, "0.parquet")
    Claims("b").begin(folder, "1.parquet")
    (folder / "1.parquet").touch()
    open_stage(folder, 2, names(folder))  # the next attempt
    Claims("a").begin(folder, "0.parquet")  # a process id may come again
    found = at_work(folder, names(folder))
    assert found is not None
    assert (found.running, found.redone) == (1, 1)
    assert [w.done for w in found.workers] == [0, 1]


@pytest.mark.parametrize("workers", [1, 2])
def test_the_local_engine_says_who_works(tmp_path: Path, workers: int) -> None:
    units = units_in(tmp_path, 4)
    open_stage(tmp_path / "stage", 4, ())
    engine = LocalEngine(workers)
    try:
        with pytest.raises(ModelError):
            list(engine.run(Writer(refused=frozenset({3}), together=workers), units))
    finally:
        engine.close()
    found = at_work(tmp_path / "stage", names(tmp_path / "stage"))
    assert found is not None
    assert len(found.workers) == workers
    assert (found.done, found.running) == (3, 1)
    assert sum(worker.done for worker in found.workers) == 3


def test_status_tells_of_a_stage_under_way_and_a_finished_one_is_cleared(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, run = tmp_path / "recipe.yaml", tmp_path / "tiny"
    changes = {"sampling": {"engine": "scripted"}, "oracle": {"kind": "scripted"}, "teacher": {"kind": "scripted"}}
    file.write_text(yaml.safe_dump(tiny_recipe(tiny_folder, **changes) | {"folder": str(tmp_path)}))
    killed = [
        sys.executable,
        str(Path(__file__).parent / "killed_at.py"),
        str(run),
        "iteration-1/sample/000001-*.parquet",
    ]
    subprocess.run([*killed, "run", str(file)], capture_output=True, check=False)
    print_status(Run.read(run))
    told = capsys.readouterr().out
    assert "iteration-1/sample: 2 of 3 units done" in told
    work = status_json(Run.read(run))["work"]["iteration-1/sample"]
    assert (work["units"], work["done"], len(work["workers"])) == (3, 2, 1)
    json.dumps(work)
    subprocess.run([*killed[:2], str(run), "iteration-1/judge/000000-*.parquet", "run", str(file)], check=False)
    facts = json.loads((run / "iteration-1" / "sample.json").read_text())["facts"]
    assert facts["units_redone"] == 0
    assert not list(run.rglob(FOLDER))
