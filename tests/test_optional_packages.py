"""8-bit moments, 4-bit base weights and Liger kernels: what they do where their package is installed, refused where not."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_trainer import margins
from tiny_models import tiny_model
from tiny_pairs import learnable_pairs, tiny_job, tiny_policy

from nashtune.errors import ModelError, NashtuneError, TrainingError
from nashtune.recipe import LoraSection, TrainSection
from nashtune.records import Policy
from nashtune.training.kernels import apply_liger
from nashtune.training.optimizer import Optimizer
from nashtune.training.trainer import StepMetrics, train_policy

WIDE = {"hidden_size": 128, "intermediate_size": 256}  # tensors large enough for 8-bit moments, layers for blocks of 64


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return tiny_policy(tmp_path_factory.mktemp("policy") / "zero", **WIDE)


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        (
            {"optimizer": "adamw_8bit"},
            TrainingError,
            r"train\.optimizer is 'adamw_8bit', which needs .*nashtune\[quantized\]",
        ),
        (
            {"lora": LoraSection(base="nf4")},
            ModelError,
            r"train\.lora\.base is 'nf4', which needs .*nashtune\[quantized\]",
        ),
        ({"liger": True}, ModelError, r"train\.liger is true, but the model is on cpu"),
        (
            {"attention": "varlen", "precision": "autocast"},
            ModelError,
            r"train\.attention is 'varlen', which needs a GPU",
        ),
        ({"attention": "flex"}, ModelError, r"train\.attention is 'flex', which needs a GPU"),
    ],
)
def test_what_is_not_there_is_refused(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], error: type, told: str
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(error, match=told) as caught:
        train_policy(tiny_job(tmp_path, policy, learnable_pairs(4), **change))
    assert isinstance(caught.value, NashtuneError)


def test_8_bit_moments_train_as_far_as_whole_ones(policy: Policy, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    pairs, gains = learnable_pairs(8), []
    for optimizer in ("adamw", "adamw_8bit"):
        job = tiny_job(
            tmp_path / optimizer, policy, pairs, optimizer=optimizer, epochs=4, learning_rate=1e-4, alpha=0.0
        )
        gains.append(margins(train_policy(job).policy, pairs) - margins(policy, pairs))
    assert gains[0].min() > 0
    assert not torch.equal(gains[0], gains[1])
    torch.testing.assert_close(gains[0], gains[1], rtol=0.25, atol=0.05)


def test_8_bit_moments_are_small_and_come_back_from_a_checkpoint() -> None:
    pytest.importorskip("bitsandbytes")
    section = TrainSection(optimizer="adamw_8bit")

    def fresh() -> tuple[torch.nn.Parameter, Optimizer]:
        weight = torch.nn.Parameter(torch.linspace(-1, 1, 128 * 128).view(128, 128))
        return weight, Optimizer({"w": weight}, {}, section)

    def steps(weight: torch.nn.Parameter, optimizer: Optimizer, numbers: range) -> None:
        for number in numbers:
            weight.grad = torch.randn(128, 128, generator=torch.Generator().manual_seed(number))
            optimizer.step(1e-2)

    whole, first = fresh(), fresh()
    steps(*whole, range(6))
    steps(*first, range(3))
    state = {name: tensor.clone() for name, tensor in first[1].state().items()}
    moments = sum(t.nbytes for name, t in state.items() if not name.startswith("master"))
    assert moments < 2.1 * 128 * 128
    second = fresh()
    second[1].restore(state.__getitem__, frozenset(state))
    steps(*second, range(3, 6))
    assert torch.equal(second[0], whole[0])


@pytest.mark.parametrize("precision", ["float32", "autocast", "bfloat16"])
def test_adapters_on_a_4_bit_base_learn_and_merge_into_whole_weights(
    policy: Policy, tmp_path: Path, precision: str
) -> None:
    pytest.importorskip("bitsandbytes")
    pairs, seen = learnable_pairs(8), []
    lora = LoraSection(rank=4, alpha=8, target_modules=("q_proj", "down_proj"), base="nf4")
    job = tiny_job(tmp_path, policy, pairs, lora=lora, precision=precision, epochs=6, learning_rate=1e-2, alpha=0.0)
    result = train_policy(job, seen.append)
    first: StepMetrics = seen[0]
    assert first.loss == pytest.approx(0.6931, abs=1e-3)  # policy and reference share the rounded base
    assert seen[-1].loss < 0.5 * first.loss
    before, after = (load_file(p.folder / "model.safetensors") for p in (policy, result.policy))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {n for n in before if "q_proj" in n or "down_proj" in n}
    moved = (margins(result.policy, pairs) - margins(policy, pairs)).mean()  # of the merged policy, without rounding
    assert moved > 0


def test_a_4_bit_base_is_small(policy: Policy) -> None:
    pytest.importorskip("bitsandbytes")
    from nashtune.training.kernels import quantize_nf4

    model = tiny_model("llama", attn_implementation="nashtune", **WIDE)
    layers = [m.weight for name, m in model.model.named_modules() if type(m) is torch.nn.Linear]
    whole = sum(w.nbytes for w in layers)
    head = model.lm_head.weight
    quantize_nf4(model, torch.float32)
    small = sum(m.weight.nbytes for m in model.model.modules() if type(m).__name__ == "Linear4bit")
    assert small == whole / 8
    assert model.lm_head.weight is head


def test_liger_changes_one_model_and_not_its_family(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package's interface alone: its kernels need a GPU."""
    from transformers.models.llama import modeling_llama

    calls: list[dict[str, Any]] = []

    def apply(model: Any, **switches: bool) -> None:
        calls.append(switches)
        modeling_llama.LlamaRMSNorm = None  # as the package does
        model.model.norm.patched = True

    patches = ModuleType("liger_kernel.transformers.monkey_patch")
    vars(patches).update(MODEL_TYPE_TO_APPLY_LIGER_FN={"llama": None}, _apply_liger_kernel_to_instance=apply)
    package, inner = ModuleType("liger_kernel"), ModuleType("liger_kernel.transformers")
    package.__spec__ = object()  # type: ignore[assignment]
    vars(inner).update(monkey_patch=patches)
    for module in (package, inner, patches):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    norm = modeling_llama.LlamaRMSNorm
    for family in ("llama", "phi3"):
        model = tiny_model(family, attn_implementation="nashtune")
        monkeypatch.setattr(type(model), "device", torch.device("cuda"))
        if family == "llama":
            apply_liger(model)
            assert model.model.norm.patched
        else:
            with pytest.raises(ModelError, match="Liger has no kernels for 'phi3'; accepted: llama"):
                apply_liger(model)
    assert modeling_llama.LlamaRMSNorm is norm
    assert calls == [{"rope": False, "cross_entropy": False, "fused_linear_cross_entropy": False}]
