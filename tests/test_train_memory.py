"""What training holds in memory: activations within their budget, and one model at a time."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_pairs import learnable_pairs, tiny_job, tiny_policy
from transformers import PreTrainedModel

from nashtune.errors import TrainingError
from nashtune.recipe import TrainSection
from nashtune.records import Policy
from nashtune.training.packing import TrainingPair
from nashtune.training.trainee import Precision, Trainee
from nashtune.training.trainer import train_policy

LAYERS = 8


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return tiny_policy(tmp_path_factory.mktemp("policy") / "zero", num_hidden_layers=LAYERS)


def long_pairs() -> list[TrainingPair]:
    return [TrainingPair(str(i), (5,) * 40, (6 + i,) * 50, (90,) * 30, 1.0, 0.0, None, None) for i in range(4)]


def trainee(policy: Policy, precision: str, gigabytes: float | None) -> Trainee:
    section = TrainSection.model_validate({"precision": precision, "activation_gb": gigabytes})
    return Trainee.load(policy, section, Precision.of(section), 0)


def forward_backward(policy: Policy, precision: str, gigabytes: float | None) -> tuple[int, list[torch.Tensor]]:
    """Bytes kept between the passes by everything but the weights, and the gradients."""
    held = trainee(policy, precision, gigabytes)
    own = {t.untyped_storage().data_ptr() for t in (*held.model.parameters(), *held.masters.values())}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        logprobs = held.forward(long_pairs())
    logprobs.sum().backward()
    return sum(kept.values()), [p.grad for p in held.parameters.values() if p.grad is not None]


@pytest.mark.parametrize("precision", ["float32", "autocast"])
def test_as_many_layers_are_recomputed_as_the_budget_takes(policy: Policy, precision: str) -> None:
    tokens = 40 + 4 * 49 + 29  # prompt and rejected answer are shared
    whole = trainee(policy, precision, 100.0).budget
    assert whole is not None
    assert whole.recompute(tokens) == 0
    assert 5 * whole.recomputed < whole.kept  # a layer keeps several times its input
    everything, gradients = forward_backward(policy, precision, None)
    needed = tokens * whole.kept * LAYERS / 1e9
    assert 0.6 * everything / 1e9 < needed < everything / 1e9  # the rest is the output layer's
    outside = everything - needed * 1e9
    for share in (0.75, 0.5, 0.25):
        budget = trainee(policy, precision, share * needed).budget
        assert budget is not None
        count = budget.recompute(tokens)
        assert [layer.gradient_checkpointing for layer in budget.layers] == [n < count for n in range(LAYERS)]
        assert budget.recompute(tokens // 8) == 0
        kept, same = forward_backward(policy, precision, share * needed)
        assert kept - outside <= 1.02 * share * needed * 1e9
        one_less = kept - outside + tokens * (budget.kept - budget.recomputed)
        assert one_less > 0.98 * share * needed * 1e9  # no layer more than it takes
        assert all(torch.equal(a, b) for a, b in zip(gradients, same, strict=True))


def test_a_budget_too_small_for_the_layers_inputs_is_refused(policy: Policy) -> None:
    held = trainee(policy, "float32", 1e-5)
    with pytest.raises(
        TrainingError, match=r"train\.activation_gb is 1e-05: a micro-batch of 265 tokens needs 0\.000543 GB"
    ):
        held.forward(long_pairs())


def test_a_trained_policy_does_not_depend_on_the_budget(policy: Policy, tmp_path: Path) -> None:
    results = []
    for name, change in (("whole", {}), ("budget", {"activation_gb": 3e-4})):
        job = tiny_job(tmp_path / name, policy, learnable_pairs(8), microbatch_tokens=256, **change)
        results.append((job.key(), load_file(train_policy(job).policy.folder / "model.safetensors")))
    (key, whole), (same_key, budget) = results
    assert key == same_key  # so that it may be changed under a run that stopped for lack of memory
    assert all(torch.equal(whole[name], budget[name]) for name in whole)


def models() -> list[PreTrainedModel]:
    gc.collect()
    return [o for o in gc.get_objects() if type(o).__name__ == "LlamaForCausalLM"]


@pytest.mark.parametrize("same", [True, False])
def test_never_a_second_model_in_memory(
    same: bool, policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference log-probs of another policy are on disk before the policy is loaded; where the reference is the policy, its
    weights are read once."""
    before, seen, loads = len(models()), [], []
    load, load_fixed = Trainee.load, Trainee.load_fixed

    def counted(function: Any, name: str) -> Any:
        def call(*arguments: Any, **named: Any) -> Trainee:
            loads.append(name)
            held = function(*arguments, **named)
            seen.append(len(models()) - before)
            return held

        return staticmethod(call)

    monkeypatch.setattr(Trainee, "load_fixed", counted(load_fixed, "read"))
    monkeypatch.setattr(Trainee, "load", counted(load, "trained"))
    initial = policy if same else tiny_policy(tmp_path / "other", seed=1, num_hidden_layers=LAYERS)
    train_policy(tiny_job(tmp_path, policy, learnable_pairs(8), initial=initial, name="dpo"))
    assert loads == (["trained", "read"] if same else ["read", "trained", "read"])  # a trained one is read first
    assert seen == [1] * len(loads)


def test_memory_is_handed_on_when_training_ends(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's GPU cache is emptied when no model is left, as the sampler may be another process. The call alone: no GPU here."""
    before, left = len(models()), []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: left.append(len(models()) - before))
    train_policy(tiny_job(tmp_path, policy, learnable_pairs(4)))
    assert left[-1:] == [0]
