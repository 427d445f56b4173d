"""Reference log-probs as work units: the same values and the same training, whoever computes them, and whoever dies."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tiny_chat import tiny_recipe
from tiny_pairs import learnable_pairs, tiny_job

from nashtune.errors import StoreError, TrainingError
from nashtune.recipe import parse_recipe
from nashtune.records import Pair, Policy
from nashtune.run import Run
from nashtune.scale.local import LocalEngine
from nashtune.scale.units import Unit
from nashtune.stages.judging import judge
from nashtune.stages.pairing import make_pairs
from nashtune.stages.teacher import sample
from nashtune.stages.training import train
from nashtune.store import tables
from nashtune.store.files import create_once
from nashtune.training import reference_units
from nashtune.training.head_start import plan_of, reference_folder
from nashtune.training.job import TrainJob
from nashtune.training.reference_units import ReferenceScorer, cut, encode_inputs, read_units
from nashtune.training.references import ReferenceShards
from nashtune.training.trainee import Precision
from nashtune.training.trainer import train_policy

FLOAT = Precision(torch.float32)


def units_of(job: TrainJob, folder: Path) -> list[Unit]:
    plan = plan_of(job, job.pairs)
    units = []
    for index, batches in enumerate(cut(job.pairs, plan)):
        source = folder / "inputs" / f"{index}.parquet"
        create_once(source, encode_inputs(job.pairs, plan, batches))
        units.append(Unit(index, source, folder / f"{index:06d}-key.parquet"))
    return units


def steps(job: TrainJob) -> list[dict[str, Any]]:
    """What each step of a finished job said, but for how long it took."""
    lines = (job.folder / "metrics.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name != "seconds"} for line in lines]


def test_two_workers_compute_what_the_trainer_would_and_training_is_the_same(
    policy: Policy, other: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two references, one of them the policy itself, and adapters, in bf16: equal to the last bit."""
    monkeypatch.setattr(os, "cpu_count", lambda: 2)  # a thread for each worker, as this process has
    changes: dict[str, Any] = {"name": "dno-regularized", "precision": "autocast", "initial": other, "epochs": 2}
    alone = tiny_job(tmp_path / "alone", policy, learnable_pairs(11), **changes)
    job = replace(alone, folder=tmp_path / "workers" / "train", output=tmp_path / "workers" / "policy")
    train_policy(alone)
    computed = {}
    engine = LocalEngine(2)
    for name, reference in job.references.items():
        units = units_of(job, tmp_path / name)
        assert len(units) == 3
        assert sorted(unit.index for unit, _ in engine.run(ReferenceScorer(reference, job.train), units)) == [0, 1, 2]
        computed[name] = [unit.target for unit in units]
        shards = ReferenceShards(reference_folder(alone, reference), alone.pairs, plan_of(alone, alone.pairs))
        assert torch.equal(read_units(computed[name], job.pairs, reference, Precision.of(job.train)), shards.read())
    engine.close()
    train_policy(replace(job, computed=computed))
    assert not (job.folder / "references").exists()
    assert steps(job) == steps(alone)
    assert len(steps(job)) == 6


def test_units_hold_whole_batches_and_small_sets_are_cut_for_several_workers(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = tiny_job(tmp_path, policy, learnable_pairs(200))
    plan = plan_of(job, job.pairs)
    found = cut(job.pairs, plan)
    assert [batch for unit in found for batch in unit] == list(range(50))
    assert 16 <= len(found) <= 25
    monkeypatch.setattr(reference_units, "UNIT_TOKENS", 1)
    assert cut(job.pairs, plan) == [(batch,) for batch in range(50)]


def rewritten(file: Path, how: str) -> None:
    table = pq.read_table(file)
    note = json.loads(table.schema.metadata[b"nashtune"])
    if how == "truncated":
        file.write_bytes(file.read_bytes()[:-9])
    elif how == "missing":
        file.unlink()
    elif how == "columns":
        pq.write_table(table.drop_columns(["rejected"]), file)
    elif how == "fewer":
        pq.write_table(table.slice(1), file)
    elif how == "policy":
        pq.write_table(_noted(table, note | {"policy": "0123456789abcdef"}), file)
    elif how == "nobody's":
        pq.write_table(table.replace_schema_metadata({}), file)
    else:
        pq.write_table(_noted(table, note | {"precision": str(replace(FLOAT, weights=torch.bfloat16))}), file)


def _noted(table: pa.Table, note: dict[str, Any]) -> pa.Table:
    return table.replace_schema_metadata({b"nashtune": json.dumps(note)})


@pytest.mark.parametrize(
    ("how", "error", "told"),
    [
        ("truncated", StoreError, r"000001-key\.parquet: damaged: .*remove it, and the same command computes"),
        ("missing", StoreError, r"000001-key\.parquet: missing; run the same command again"),
        ("columns", StoreError, r"000001-key\.parquet: damaged"),
        ("fewer", StoreError, r"1 of 11 pairs have no reference log-probs"),
        ("policy", StoreError, r"000001-key\.parquet: holds log-probs of another policy"),
        ("nobody's", StoreError, r"000001-key\.parquet: holds log-probs of another policy"),
        ("precision", TrainingError, r"computed in .*bfloat16.*but training computes in .*float32"),
    ],
)
def test_units_that_cannot_be_believed_are_refused(
    scored: tuple[TrainJob, list[Path]], tmp_path: Path, how: str, error: type[Exception], told: str
) -> None:
    job, files = scored
    copies = [Path(shutil.copy(file, tmp_path / file.name)) for file in files]
    rewritten(copies[1], how)
    with pytest.raises(error, match=told):
        train_policy(replace(job, folder=tmp_path / "train", computed={"t": copies}))


@pytest.fixture(scope="module")
def scored(policy: Policy, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainJob, list[Path]]:
    folder = tmp_path_factory.mktemp("scored")
    job = tiny_job(folder, policy, learnable_pairs(11))
    units = units_of(job, folder)
    list(LocalEngine().run(ReferenceScorer(policy, job.train), units))
    return job, [unit.target for unit in units]


def test_values_far_from_the_policys_are_found_before_the_first_step(
    scored: tuple[TrainJob, list[Path]], tmp_path: Path
) -> None:
    """A little more than rounding is not believed, a little of it is."""
    job, files = scored
    for shift in (0.001, 0.5):
        folder = tmp_path / str(shift)
        folder.mkdir()
        copies = []
        for file in files:
            table = pq.read_table(file)
            chosen = pa.array([value + shift for value in table["chosen"].to_pylist()], pa.float32())
            pq.write_table(table.set_column(1, "chosen", chosen), folder / file.name)
            copies.append(folder / file.name)
        moved = replace(job, folder=folder / "train", output=folder / "policy", computed={"t": copies})
        if shift < 0.1:
            train_policy(moved)
            continue
        with pytest.raises(
            TrainingError, match=r"policy and reference differ by 0\.5[\s\S]*scale\.references: trainer"
        ):
            train_policy(moved)


# ---- in a run --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def paired(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose first iteration has its pairs."""
    folder = tmp_path_factory.mktemp("paired")
    with Run.open(recipe_of(tiny_folder, folder)) as run:
        make_pairs(run, judge(run, sample(run, 1)))
    return folder / "tiny"


def recipe_of(tiny_folder: Path, folder: Path, **scale: Any) -> Any:
    changes: dict[str, Any] = {"iterations": 1, "teacher": {"kind": "none"}, "scale": scale}
    return parse_recipe(tiny_recipe(tiny_folder, **changes) | {"folder": str(folder)})


def trained(paired: Path, tiny_folder: Path, folder: Path, **scale: Any) -> Run:
    """A copy of the run, trained."""
    if not folder.exists():
        shutil.copytree(paired, folder / "tiny")
    with Run.open(recipe_of(tiny_folder, folder, **scale)) as run:
        train(run, 1, tables.read(Pair, run.stage(1, "pairs").folder / "pairs.parquet"))
    return run


def fingerprint(run: Run) -> str:
    return run.stage(1, "train").output


def test_a_run_with_workers_has_a_stage_of_references_and_trains_the_same_policy(
    paired: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    alone = trained(paired, tiny_folder, tmp_path / "alone")
    assert not alone.stage(1, "references-t").file.exists()
    assert list((alone.stage(1, "train").folder / "references").rglob("*.parquet"))
    folder = tmp_path / "workers"
    run = trained(paired, tiny_folder, folder, references="workers")
    stage = run.stage(1, "references-t")
    assert fingerprint(run) == fingerprint(alone)
    assert stage.record()["facts"] == {"pairs": 24, "units": 6, "units_redone": 0}
    assert len(stage.committed()) == 6
    assert sorted(f.suffix for f in stage.folder.iterdir()) == [".parquet"] * 6  # neither inputs nor claims are left
    assert not list((run.stage(1, "train").folder / "references").glob("*"))
    # Training again reads what is committed, whatever is said about workers by then; what was removed is computed again.
    before = {file: file.read_bytes() for file in stage.committed()}
    stage.committed()[2].unlink()
    run.stage(1, "train").file.unlink()
    shutil.rmtree(run.stage(1, "train").folder)
    again = trained(paired, tiny_folder, folder, references="workers", train_processes=1)
    assert {file: file.read_bytes() for file in stage.committed()} == before
    assert fingerprint(again) == fingerprint(alone)


def test_what_the_trainer_has_begun_it_goes_on_with(paired: Path, tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run = trained(paired, tiny_folder, folder)
    expected = fingerprint(run)
    stage = run.stage(1, "train")
    stage.file.unlink()
    (stage.folder / "result.json").unlink()
    run = trained(paired, tiny_folder, folder, references="workers")
    assert not run.stage(1, "references-t").file.exists()
    assert fingerprint(run) == expected


def test_who_computes_references_is_told_by_the_engine(tiny_folder: Path, tmp_path: Path) -> None:
    by_workers = {
        str(scale): recipe_of(tiny_folder, tmp_path, **scale).scale.references_by_workers
        for scale in ({}, {"workers": 2}, {"engine": "ray"}, {"engine": "ray", "references": "trainer"})
    }
    assert list(by_workers.values()) == [False, True, True, False]
    one, other = (recipe_of(tiny_folder, tmp_path, **scale).identity() for scale in ({}, {"references": "workers"}))
    assert one == other
