"""Two ranks that share weights and work (FSDP2, gloo) train as one process does."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import train_in_ranks
from safetensors.torch import load_file
from tiny_pairs import learnable_pairs, six_steps, tiny_job, tiny_policy
from transformers import AutoModelForCausalLM

from nashtune.errors import ModelError, TrainingError
from nashtune.recipe import LoraSection
from nashtune.records import Policy
from nashtune.training.checkpoint import last_checkpoint
from nashtune.training.job import StepMetrics, TrainJob, finished
from nashtune.training.packing import Plan, TrainingPair, packed_tokens, plan_steps
from nashtune.training.steps import Steps
from nashtune.training.trainer import train_policy
from nashtune.training.world import World

FIVE_DECIMALS = 5e-6
SLOW = pytest.mark.slow
KINDS: dict[str, dict[str, Any]] = {
    "float32": {"weight_decay": 0.1, "schedule": "cosine"},
    "autocast": {"precision": "autocast"},
    "bfloat16": {"precision": "bfloat16"},
    "adapters": {"lora": LoraSection(rank=2), "learning_rate": 1e-2},
    "bfloat16 adapters": {"precision": "bfloat16", "lora": LoraSection(rank=2), "learning_rate": 1e-2},
    "recomputed": {"gradient_checkpointing": True},
    "dpo, one rank idle": {"name": "dpo", "batch_size": 1},
    "sft": {"name": "sft"},
}
QUICK = ("float32", "bfloat16 adapters", "dpo, one rank idle")


class Stop(Exception):
    """Ends a run from within, as a crash would."""


def stop_after_3(metrics: StepMetrics) -> None:
    if metrics.step == 3:
        raise Stop


def trace(job: TrainJob) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (job.folder / "metrics.jsonl").read_text().splitlines()]


def assert_same_training(one: TrainJob, two: TrainJob) -> None:
    """The same losses to 5 decimals, everything else of the traces too, and policies that are equal but for rounding. With bf16
    weights that are trained, one process sums the gradients of embeddings and output layer in fp32, ranks sum rounded ones."""
    rounded = one.train.precision == "bfloat16" and one.train.lora is None
    loss, rest = (1e-3, 2e-2) if rounded else (FIVE_DECIMALS, 1e-4)
    for expected, found in zip(trace(one), trace(two), strict=True):
        assert found["loss"] == pytest.approx(expected["loss"], abs=loss)
        for name, value in expected.items():
            if name not in ("loss", "seconds"):
                assert found[name] == (value if value is None else pytest.approx(value, rel=rest, abs=rest)), name
    start = load_file(one.policy.folder / "model.safetensors")
    weights = [load_file(job.output / "model.safetensors") for job in (one, two)]
    assert weights[0].keys() == weights[1].keys()
    for name, expected in weights[0].items():
        moved = (expected - start[name]).norm()
        # Adam divides by the gradient's size, which blows rounding up where it is about 0; the bound allows for it.
        assert (weights[1][name] - expected).norm() <= (0.2 if rounded else 0.02) * moved, name
    assert {f.name for f in one.output.iterdir()} == {f.name for f in two.output.iterdir()}


@pytest.mark.parametrize("kind", [k if k in QUICK else pytest.param(k, marks=SLOW) for k in KINDS])
def test_two_ranks_train_as_one_process(policy: Policy, other: Policy, tmp_path: Path, kind: str) -> None:
    one, two = (six_steps(tmp_path / n, policy, initial=other, **KINDS[kind]) for n in ("one", "two"))
    train_policy(one)
    train_in_ranks(two)
    assert_same_training(one, two)
    result = finished(two, two.key())
    assert result is not None
    assert len(result.rank_memory_gb) == 2
    assert result.peak_memory_gb == max(result.rank_memory_gb) > 0.1
    if "adapters" in kind:
        files = [load_file(tmp_path / n / "adapter" / "adapter_model.safetensors") for n in ("one", "two")]
        assert files[0].keys() == files[1].keys()
    assert not list(two.folder.glob("checkpoint-*"))


@pytest.mark.parametrize("family", ["gemma2", pytest.param("qwen3", marks=SLOW)])
def test_tied_embeddings_and_other_families(tmp_path: Path, family: str) -> None:
    policy = tiny_policy(tmp_path / "zero", family, tie_word_embeddings=True)
    one, two = (six_steps(tmp_path / n, policy) for n in ("one", "two"))
    train_policy(one)
    train_in_ranks(two)
    assert_same_training(one, two)
    assert "lm_head.weight" not in load_file(two.output / "model.safetensors")
    assert AutoModelForCausalLM.from_pretrained(two.output).dtype == torch.float32


@pytest.mark.slow
def test_three_ranks_that_divide_nothing_evenly(policy: Policy, tmp_path: Path) -> None:
    one, three = (six_steps(tmp_path / n, policy) for n in ("one", "three"))
    train_policy(one)
    train_in_ranks(three, 3)
    assert_same_training(one, three)


In = Callable[..., Any]
ALONE: In = train_policy
TOGETHER: In = lambda job, on_step=None: train_in_ranks(job, on_step=on_step)  # noqa: E731


@pytest.mark.parametrize(("before", "after"), [(TOGETHER, ALONE), (ALONE, TOGETHER)], ids=["2 to 1", "1 to 2"])
@pytest.mark.parametrize("kind", ["float32", pytest.param("bfloat16 adapters", marks=SLOW)])
def test_another_number_of_ranks_goes_on(policy: Policy, tmp_path: Path, kind: str, before: In, after: In) -> None:
    whole, cut = (six_steps(tmp_path / n, policy, **KINDS[kind]) for n in ("whole", "cut"))
    train_policy(whole)
    with pytest.raises(Stop):
        before(cut, stop_after_3)
    assert [f.name for f in cut.folder.glob("checkpoint-*")] == ["checkpoint-2"]
    kept = trace(cut)[:2]
    after(cut)
    assert trace(cut)[:2] == kept
    assert_same_training(whole, cut)


def kill_9(rank: int, step: int, metrics: StepMetrics) -> None:
    if metrics.step == step and os.environ["RANK"] == str(rank):
        os.kill(os.getpid(), signal.SIGKILL)


def test_ranks_go_on_from_the_last_checkpoint_after_one_was_killed(policy: Policy, tmp_path: Path) -> None:
    whole, cut = (six_steps(tmp_path / n, policy) for n in ("whole", "cut"))
    train_policy(whole)
    for rank, step, checkpoint in ((1, 1, None), (1, 3, 2), (0, 4, 4), (0, 5, 4)):
        with pytest.raises((AssertionError, RuntimeError), match=r"-9|peer|some ranks only"):
            train_in_ranks(cut, on_step=partial(kill_9, rank, step))
        found = last_checkpoint(cut.folder, cut.key())
        assert (found and found.step) == checkpoint
    train_in_ranks(cut)
    assert_same_training(whole, cut)


def die_at_the_checkpoint() -> None:
    from torch.distributed.checkpoint import state_dict_saver

    if os.environ["RANK"] == "1":
        state_dict_saver.save = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)


def test_a_rank_left_alone_at_a_checkpoint_refuses_nothing(policy: Policy, tmp_path: Path) -> None:
    """It would end the run, where a death is what all are started again for."""
    with pytest.raises(AssertionError, match=r"RuntimeError.* in some ranks only") as told:
        train_in_ranks(six_steps(tmp_path, policy), before=die_at_the_checkpoint)
    assert "TrainingError" not in str(told.value)


def test_the_optimizer_comes_along_to_another_number_of_ranks(policy: Policy, tmp_path: Path) -> None:
    """What the test above would not see if moments were lost: the bias correction of step 3 would be that of step 1."""
    from nashtune.training.optimizer import Optimizer
    from nashtune.training.trainee import Precision, Trainee

    jobs = [six_steps(tmp_path / n, policy) for n in ("one", "two")]
    states = []
    for job, train in zip(jobs, (ALONE, TOGETHER), strict=True):
        with pytest.raises(Stop):
            train(job, stop_after_3)
        trainee = Trainee.load(policy, job.train, Precision(torch.float32), 0)
        optimizer = Optimizer(trainee.parameters, trainee.masters, job.train)
        checkpoint = last_checkpoint(job.folder, job.key())
        assert checkpoint is not None
        checkpoint.restore(optimizer)
        states.append(optimizer.state())
    assert states[0].keys() == states[1].keys()
    assert sum(name.startswith("exp_avg_sq.") for name in states[0]) == len(trainee.parameters)
    for name, value in states[0].items():
        difference = (states[1][name] - value).norm()
        assert difference <= 1e-3 * value.norm(), name
        assert value.norm() > 0


class Greedy(World):
    """Each rank takes the micro-batches of rank 0."""

    def share(self, items: Sequence[Any]) -> Sequence[Any]:
        return items[:: self.size]


def change_steps(change: Callable[[World, Plan], tuple[World, Plan]]) -> None:
    right = Steps.__init__

    def wrong(self: Steps, job: TrainJob, plan: Plan, world: World) -> None:
        world, plan = change(world, plan)
        right(self, job, plan, world)

    Steps.__init__ = wrong  # type: ignore[method-assign]


def same_microbatches_in_every_rank() -> None:
    change_steps(lambda world, plan: (Greedy(world.rank, world.size), plan))


def another_order_in_every_rank() -> None:
    """What a seed that depends on the process would do."""
    change_steps(lambda world, plan: (world, replace(plan, order=plan.order[:: -1 if world.rank else 1])))


def gradients_averaged() -> None:
    """The mean of the ranks' gradients in place of their sum."""
    from torch.distributed.tensor import DTensor

    from nashtune.training.optimizer import Optimizer

    right = Optimizer.clip

    def wrong(self: Optimizer) -> float:
        for master in self.masters.values():
            assert isinstance(master.grad, DTensor)
            master.grad /= 2
        return right(self)

    Optimizer.clip = wrong  # type: ignore[method-assign]


BROKEN = [
    same_microbatches_in_every_rank,
    another_order_in_every_rank,
    pytest.param(gradients_averaged, marks=SLOW),
]


@pytest.mark.parametrize("broken", BROKEN)
def test_what_would_be_wrong_is_seen(policy: Policy, tmp_path: Path, broken: Callable[[], None]) -> None:
    one, two = (
        tiny_job(tmp_path / n, policy, learnable_pairs(8), epochs=3, max_grad_norm=100.0) for n in ("one", "two")
    )
    train_policy(one)
    train_in_ranks(two, before=broken)
    with pytest.raises(AssertionError):
        assert_same_training(one, two)


def test_all_ranks_refuse_what_one_of_them_sees(tmp_path: Path) -> None:
    broken = tiny_policy(tmp_path / "zero")
    model = AutoModelForCausalLM.from_pretrained(broken.folder)
    with torch.no_grad():
        model.model.embed_tokens.weight[250] = float("nan")
    model.save_pretrained(broken.folder)
    pairs = learnable_pairs(8)
    pairs[3] = TrainingPair("sick", (5, 250), (6, 7), (8, 9), 1.0, 0.0, None, None)
    job = tiny_job(tmp_path, broken, pairs, batch_size=8)
    with pytest.raises(TrainingError, match="step 1: the loss is not finite"):
        train_in_ranks(job)  # which asserts that both have said so
    report = json.loads((job.folder / "nonfinite-step-1.json").read_text())
    assert [row["pair"] for row in report["pairs"] if row["loss"] == "nan"] == ["sick"]
    assert len(report["pairs"]) == 8
    assert not job.output.exists()


def test_independent_processes_are_refused(policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(TrainingError, match=r"scale\.train_processes .* is 2, but 1 processes were started together"):
        World.join(range(2, 3))


def test_a_model_without_known_layers_is_refused() -> None:
    from nashtune.training.sharding import layers

    with pytest.raises(ModelError, match=r"Linear does not say what its layers are .* set scale\.train_processes: 1"):
        layers(torch.nn.Linear(2, 2))  # type: ignore[arg-type]


def test_plans_keep_their_batches_and_keep_ranks_busy() -> None:
    pairs = learnable_pairs(64)
    alone = plan_steps(pairs, batch_size=16, microbatch_tokens=128, epochs=2, seed=5)
    for processes in (2, 3, 4):
        plan = plan_steps(pairs, batch_size=16, microbatch_tokens=128, epochs=2, seed=5, processes=processes)
        assert plan.order == alone.order
        for batch, other in zip(plan.batches, alone.batches, strict=True):
            assert sorted(i for m in batch for i in m) == sorted(i for m in other for i in m)
            cost = [packed_tokens([pairs[i] for i in m]) for m in batch]
            assert max(cost) <= 128
            shares = [World(rank, processes).share(batch) for rank in range(processes)]
            assert sorted(m for share in shares for m in share) == sorted(batch)
            assert max(map(len, shares)) == -(-len(other) // processes)
            loads = [sum(World(rank, processes).share(cost)) for rank in range(processes)]
            assert max(loads) - min(loads) <= max(cost)
