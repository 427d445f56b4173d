"""An interrupted training ends in the same bytes as one that was never stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tiny_pairs import learnable_pairs, six_steps

from nashtune.errors import StoreError, TrainingError
from nashtune.recipe import LoraSection
from nashtune.records import Policy
from nashtune.training.head_start import plan_of, reference_folder
from nashtune.training.job import StepMetrics, TrainJob
from nashtune.training.references import ReferenceShards
from nashtune.training.trainee import Precision, Trainee
from nashtune.training.trainer import train_policy

KINDS: dict[str, dict[str, Any]] = {
    "float32": {},
    "autocast": {"precision": "autocast"},
    "bfloat16": {"precision": "bfloat16", "weight_decay": 0.1, "schedule": "cosine"},
    "adapters": {"precision": "bfloat16", "lora": LoraSection(rank=2), "learning_rate": 1e-2},
    "dpo": {"name": "dpo"},
}


class Stop(Exception):
    """Ends a run from within, as a crash would."""


def stop_after(step: int) -> Any:
    def on_step(metrics: StepMetrics) -> None:
        if metrics.step == step:
            raise Stop

    return on_step


def result_bytes(job: TrainJob) -> bytes:
    return (job.output / "model.safetensors").read_bytes()


def metrics_without_seconds(job: TrainJob) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (job.folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_weights_are_bit_identical(policy: Policy, other: Policy, tmp_path: Path, kind: str) -> None:
    whole, cut = (six_steps(tmp_path / n, policy, initial=other, **KINDS[kind]) for n in ("whole", "cut"))
    expected = train_policy(whole)
    for stop, kept in ((1, []), (3, ["checkpoint-2"]), (5, ["checkpoint-4"])):
        with pytest.raises(Stop):
            train_policy(cut, stop_after(stop))
        assert [f.name for f in cut.folder.glob("checkpoint-*")] == kept
    steps: list[int] = []
    result = train_policy(cut, lambda metrics: steps.append(metrics.step))
    assert steps == [5, 6]
    assert result_bytes(cut) == result_bytes(whole)
    assert metrics_without_seconds(cut) == metrics_without_seconds(whole)
    assert [row["step"] for row in metrics_without_seconds(cut)] == [1, 2, 3, 4, 5, 6]
    assert (result.steps, result.tokens, result.metrics) == (expected.steps, expected.tokens, expected.metrics)
    assert not list(cut.folder.glob("checkpoint-*"))


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from test_trainer_resume import six_steps
from nashtune.records import Policy
from nashtune.training.trainee import Precision, Trainee
from nashtune.training.trainer import train_policy
torch.set_num_threads(int(sys.argv[4]))
policy = Policy(Path(sys.argv[1]), sys.argv[2], "zero")
train_policy(six_steps(Path(sys.argv[3]), policy), lambda m: m.step == 3 and os.kill(os.getpid(), signal.SIGKILL))
"""


def test_kill_9_and_resume(policy: Policy, tmp_path: Path) -> None:
    whole, cut = six_steps(tmp_path / "whole", policy), six_steps(tmp_path / "cut", policy)
    train_policy(whole)
    arguments = [str(policy.folder), policy.fingerprint, str(tmp_path / "cut"), str(torch.get_num_threads())]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.run([sys.executable, "-c", KILLED, *arguments], capture_output=True, env=environment)
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    assert [row["step"] for row in metrics_without_seconds(cut)] == [1, 2, 3]
    (cut.folder / "checkpoint-4.partial").mkdir()  # as a kill while writing the next one would leave it
    steps: list[int] = []
    train_policy(cut, lambda metrics: steps.append(metrics.step))
    assert steps == [3, 4, 5, 6]
    assert result_bytes(cut) == result_bytes(whole)
    assert metrics_without_seconds(cut) == metrics_without_seconds(whole)
    assert not list(cut.folder.glob("checkpoint-*"))


def test_references_are_of_the_policy_trained_from_even_when_lost(policy: Policy, tmp_path: Path) -> None:
    whole, cut = six_steps(tmp_path / "whole", policy), six_steps(tmp_path / "cut", policy)
    train_policy(whole)
    with pytest.raises(Stop):
        train_policy(cut, stop_after(3))
    for shard in cut.folder.glob("references/*/*.parquet"):
        shard.unlink()
    train_policy(cut)
    assert result_bytes(cut) == result_bytes(whole)


def test_stored_references_are_not_computed_again(policy: Policy, other: Policy, tmp_path: Path) -> None:
    job = six_steps(tmp_path, policy, initial=other, name="dpo")
    with pytest.raises(Stop):
        train_policy(job, stop_after(1))
    (other.folder / "model.safetensors").rename(tmp_path / "moved")  # would be needed to compute them
    try:
        train_policy(job)
    finally:
        (tmp_path / "moved").rename(other.folder / "model.safetensors")


def change_shards(job: TrainJob, **columns: Any) -> None:
    """Rewrite stored references: each column by a function of its values."""
    for file in job.folder.glob("references/*/*.parquet"):
        table = pq.read_table(file).to_pydict()
        rows = {name: columns.get(name, list)(values) for name, values in table.items()}
        pq.write_table(pa.table(rows, schema=pq.read_schema(file)), file)


def test_a_reference_that_is_not_the_policy_is_refused(policy: Policy, tmp_path: Path) -> None:
    job = six_steps(tmp_path, policy)
    with pytest.raises(Stop):
        train_policy(job, stop_after(1))
    change_shards(job, chosen=lambda values: [v + 0.01 for v in values])
    with pytest.raises(TrainingError, match=r"before the first step policy and reference differ by 0\.01"):
        train_policy(job)
    change_shards(job, pair_id=lambda values: values[::-1])
    with pytest.raises(StoreError, match="holds other pairs"):
        train_policy(job)


def test_damaged_and_missing_shards_are_named(policy: Policy, tmp_path: Path) -> None:
    job = six_steps(tmp_path, policy)
    with pytest.raises(Stop):
        train_policy(job, stop_after(1))
    shard = next(job.folder.glob("references/*/*.parquet"))
    shard.write_bytes(b"not parquet")
    with pytest.raises(StoreError, match=rf"{shard.name}: missing or damaged"):
        train_policy(job)


def test_shards_are_written_for_every_batch(tmp_path: Path) -> None:
    from nashtune.training.packing import plan_steps

    pairs = learnable_pairs(41)
    plan = plan_steps(pairs, batch_size=4, microbatch_tokens=64, epochs=1, seed=0)
    shards = ReferenceShards(tmp_path, pairs, plan)
    assert shards.missing() == list(range(11))
    calls: list[int] = []

    def forward(microbatch: Any) -> torch.Tensor:
        calls.append(len(microbatch))
        return torch.tensor([[len(p.chosen_ids), -len(p.rejected_ids)] for p in microbatch], dtype=torch.float32)

    shards.compute(forward)
    assert sum(calls) == 41
    assert shards.missing() == []
    shards.compute(forward)
    assert sum(calls) == 41
    assert shards.read().tolist() == [[len(p.chosen_ids), -len(p.rejected_ids)] for p in pairs]


def test_a_finished_job_is_not_trained_again(policy: Policy, tmp_path: Path) -> None:
    job = six_steps(tmp_path, policy)
    first = train_policy(job)
    written = (job.output / "model.safetensors").stat().st_mtime_ns
    assert train_policy(job, stop_after(1)) == first
    assert (job.output / "model.safetensors").stat().st_mtime_ns == written
    with pytest.raises(Stop):  # other settings are another job
        train_policy(six_steps(tmp_path, policy, beta=0.2), stop_after(1))


def test_a_checkpoint_of_another_job_is_refused(policy: Policy, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        train_policy(six_steps(tmp_path, policy), stop_after(3))
    with pytest.raises(TrainingError, match="checkpoint-2 was made with other pairs, policy or settings"):
        train_policy(six_steps(tmp_path, policy, beta=0.2))


def test_checkpoint_spacing_changes_nothing(policy: Policy, tmp_path: Path) -> None:
    often, never = (six_steps(tmp_path / str(n), policy, checkpoint_steps=n) for n in (1, 50))
    assert often.key() == never.key()
    train_policy(often)
    train_policy(never)
    assert result_bytes(often) == result_bytes(never)


def test_the_first_steps_forward_pass_gives_its_references_too(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are the ones that a pass of their own gives, and a job that stopped before its first checkpoint reads them."""
    passes: list[bool] = []
    forward = Trainee.forward

    def counted(self: Trainee, *arguments: Any) -> torch.Tensor:
        passes.append(torch.is_grad_enabled())
        return forward(self, *arguments)

    job, again = six_steps(tmp_path / "one", policy), six_steps(tmp_path / "two", policy)
    with monkeypatch.context() as patch:
        patch.setattr(Trainee, "forward", counted)
        train_policy(job)
    assert len(list(job.folder.glob("references/*/*.parquet"))) == 3
    assert passes.count(True) == 3 * passes.count(
        False
    )  # six steps, of three batches; two are passed without gradients
    plan = plan_of(again, again.pairs)
    whole = ReferenceShards(tmp_path / "alone", again.pairs, plan)
    precision = Precision.of(again.train)
    whole.compute(Trainee.load_fixed(policy, precision).forward)
    kept = ReferenceShards(reference_folder(job, policy), job.pairs, plan)
    assert torch.equal(kept.read(), whole.read())
    with pytest.raises(Stop):
        train_policy(again, stop_after(1))
    assert ReferenceShards(reference_folder(again, policy), again.pairs, plan).missing() == []
    train_policy(again)
    assert result_bytes(again) == result_bytes(job)
