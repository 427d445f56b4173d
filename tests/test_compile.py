"""Compiled norms and MLPs: the same training, references equal to the policy, clear words where nothing can be compiled."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import tiny_model
from tiny_pairs import learnable_pairs, tiny_job, tiny_policy

from nashtune.errors import ModelError
from nashtune.recipe import LoraSection, TrainSection
from nashtune.records import Policy
from nashtune.training.job import StepMetrics
from nashtune.training.kernels import compile_layers
from nashtune.training.trainee import Precision, Trainee
from nashtune.training.trainer import train_policy


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return tiny_policy(tmp_path_factory.mktemp("policy") / "zero")


ADAPTERS = LoraSection(rank=4, alpha=8, target_modules=("q_proj", "down_proj"))


@pytest.mark.parametrize("lora", [None, pytest.param(ADAPTERS, marks=pytest.mark.slow)], ids=["all", "adapters"])
def test_training_is_the_same_to_rounding(policy: Policy, tmp_path: Path, lora: LoraSection | None) -> None:
    steps: dict[bool, list[StepMetrics]] = {False: [], True: []}
    weights = []
    for compiled, seen in steps.items():
        job = tiny_job(
            tmp_path / str(compiled), policy, learnable_pairs(8), precision="float32", lora=lora, compile=compiled
        )
        weights.append(load_file(train_policy(job, seen.append).policy.folder / "model.safetensors"))
    assert [s.loss for s in steps[True]] == pytest.approx([s.loss for s in steps[False]], abs=1e-4)
    assert [s.grad_norm for s in steps[True]] == pytest.approx([s.grad_norm for s in steps[False]], rel=1e-3)
    plain, other = weights
    assert plain.keys() == other.keys()  # the compiled wrapper leaves no trace in what is saved


def test_compiled_references_are_the_policy_s_own_log_probs(policy: Policy) -> None:
    """In the pass without gradients as in the one with them, to the last bit, in bf16 arithmetic too."""
    pairs = learnable_pairs(4)
    section = TrainSection(compile=True, precision="autocast")
    trainee = Trainee.load(policy, section, Precision.of(section), 0)
    layer: Any = trainee.model.get_decoder().layers[0]  # type: ignore[index]
    assert [part._compiled_call_impl is not None for part in layer.children()] == [False, True, True, True]
    for count in (2, 4):
        with torch.no_grad():
            reference = trainee.forward(pairs[:count])
        assert torch.equal(reference, trainee.forward(pairs[:count]).detach())
    plain = Trainee.load(policy, section.model_copy(update={"compile": False}), Precision.of(TrainSection()), 0)
    assert torch.allclose(plain.forward(pairs), trainee.forward(pairs), atol=0.5)


def test_where_nothing_can_be_compiled_that_is_said(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor import config

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))  # nothing compiled earlier is found
    monkeypatch.setattr(config.cpp, "cxx", ("no-such-compiler",))
    torch._dynamo.reset()
    with pytest.raises(
        ModelError, match=r"train\.compile is true, but torch cannot compile for cpu here: .*; accepted: a mach"
    ):
        train_policy(tiny_job(tmp_path / "job", policy, learnable_pairs(4), compile=True))
    torch._dynamo.reset()


def test_layers_without_such_parts_are_refused() -> None:
    model = tiny_model("llama", attn_implementation="nashtune")
    layers: Any = model.get_decoder().layers
    for layer in layers:
        for name, part in list(layer.named_children()):
            if "attn" not in name:
                setattr(layer, name, torch.nn.Sequential(part))
    gc.collect()
    with pytest.raises(ModelError, match="have no norms or MLPs of their own; accepted: false"):
        compile_layers(model)
