"""Training end to end on tiny models: it learns, in every precision and with adapters, and refuses what it must."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_pairs import learnable_pairs, tiny_job, tiny_policy
from transformers import AutoModelForCausalLM

from nashtune.errors import ModelError, TrainingError
from nashtune.model.loading import load_model
from nashtune.recipe import LoraSection, TrainSection
from nashtune.records import Policy
from nashtune.training.job import StepMetrics
from nashtune.training.logprobs import score_responses
from nashtune.training.optimizer import Optimizer, learning_rate
from nashtune.training.packing import TrainingPair
from nashtune.training.trainee import Precision, Trainee
from nashtune.training.trainer import train_policy

LN2 = math.log(2)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return tiny_policy(tmp_path_factory.mktemp("policy") / "zero")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def margins(policy: Policy, pairs: list[TrainingPair]) -> torch.Tensor:
    """log p(chosen) - log p(rejected) of each pair, by the scorer."""
    rows = torch.tensor(score_responses(policy, [p.answers() for p in pairs]))
    return rows[:, 0] - rows[:, 1]


@pytest.mark.parametrize("precision", ["float32", "autocast", "bfloat16"])
@pytest.mark.parametrize("lora", [None, LoraSection(rank=4, alpha=8)])
def test_a_policy_learns_to_prefer(policy: Policy, tmp_path: Path, precision: str, lora: LoraSection | None) -> None:
    pairs = learnable_pairs(12)
    rate = 3e-3 if lora is None else 3e-2
    job = tiny_job(tmp_path, policy, pairs, precision=precision, lora=lora, epochs=6, learning_rate=rate, alpha=0.0)
    seen: list[StepMetrics] = []
    result = train_policy(job, seen.append)
    assert seen[0].loss == pytest.approx(LN2, abs=1e-6)
    assert [m.step for m in seen] == list(range(1, 19))
    assert seen[-1].loss < 0.3
    assert seen[-1].accuracy == 1.0
    gain = margins(result.policy, pairs) - margins(policy, pairs)
    assert (gain > 0).all()
    assert result.tokens == 6 * sum(len(p.chosen_ids) + len(p.rejected_ids) for p in pairs)
    assert result.metrics["loss"] == pytest.approx(sum(m.loss for m in seen) / 18)
    assert result.peak_memory_gb > 0.1
    assert not list(job.folder.glob("checkpoint-*"))
    assert not torch.are_deterministic_algorithms_enabled()


def test_first_step_agrees_with_the_formula(policy: Policy, tmp_path: Path) -> None:
    pairs, other = learnable_pairs(4), tiny_policy(tmp_path / "other", seed=1)
    job = tiny_job(tmp_path, policy, pairs, initial=other, name="dpo", beta=0.05, alpha=0.3)
    seen: list[StepMetrics] = []
    train_policy(job, seen.append)
    margin = 0.05 * (margins(policy, pairs) - margins(other, pairs)).double()
    chosen = torch.tensor([row[0] for row in score_responses(policy, [p.answers(1) for p in pairs])])
    nll = -chosen / torch.tensor([len(p.chosen_ids) for p in pairs])
    loss = -torch.nn.functional.logsigmoid(margin).mean() + 0.3 * nll.mean()
    assert seen[0].margin == pytest.approx(margin.mean().item(), abs=1e-5)
    assert seen[0].accuracy == pytest.approx((margin > 0).double().mean().item())
    assert seen[0].nll == pytest.approx(nll.mean().item(), rel=1e-5)
    assert seen[0].chosen_logprob == pytest.approx(chosen.mean().item(), rel=1e-5)
    assert seen[0].loss == pytest.approx(loss.item(), abs=1e-5)


def test_microbatches_do_not_change_the_result(policy: Policy, tmp_path: Path) -> None:
    pairs = learnable_pairs(8)
    folders = [tmp_path / "many", tmp_path / "one", tmp_path / "recomputed"]
    changes: list[dict[str, Any]] = [{"microbatch_tokens": 64}, {"microbatch_tokens": 4096}]
    changes.append({"gradient_checkpointing": True})
    for folder, change in zip(folders, changes, strict=True):
        # Adam divides by the gradient's size, which blows rounding up where it is about 0; the bound allows for it.
        train_policy(tiny_job(folder, policy, pairs, learning_rate=1e-4, **change))
    start, many = weights(policy.folder), weights(folders[0] / "policy")
    for folder in folders[1:]:
        for name, tensor in weights(folder / "policy").items():
            moved = (many[name] - start[name]).norm()
            assert (tensor - many[name]).norm() < 0.01 * moved, name


def test_sft_learns_the_chosen_answers_alone(policy: Policy, tmp_path: Path) -> None:
    pairs = [TrainingPair(p.id, p.prompt_ids, p.chosen_ids, (), 1.0, 0.0, None, None) for p in learnable_pairs(8)]
    job = tiny_job(tmp_path, policy, pairs, name="sft", epochs=5, learning_rate=3e-3)
    result = train_policy(job)
    rows = [json.loads(line) for line in (job.folder / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["margin"] is rows[0]["accuracy"] is rows[0]["rejected_logprob"] is None
    assert rows[-1]["nll"] < rows[0]["nll"] - 1
    assert result.tokens == 5 * sum(len(p.chosen_ids) for p in pairs)
    assert "margin" not in result.metrics


def test_bf16_keeps_updates_smaller_than_its_rounding(policy: Policy, tmp_path: Path) -> None:
    job = tiny_job(tmp_path, policy, learnable_pairs(8), precision="bfloat16", learning_rate=1e-5)
    train_policy(job)
    before, after = weights(policy.folder), weights(job.output)
    assert before.keys() == after.keys()
    for name in before:
        moved = (after[name] - before[name]).abs()
        assert after[name].dtype == torch.float32
        assert moved.max() < 4e-5  # rounding the weights to bf16 on the way would move them by up to 1e-3
        assert moved.max() > 1e-6


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_adapters_are_merged_and_kept(policy: Policy, tmp_path: Path, precision: str) -> None:
    from peft import PeftModel

    section = LoraSection(rank=2, alpha=4, target_modules=("q_proj", "down_proj"))
    job = tiny_job(tmp_path, policy, learnable_pairs(8), precision=precision, lora=section, learning_rate=1e-2)
    train_policy(job)
    before, after = weights(policy.folder), weights(job.output)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {n for n in before if "q_proj" in n or "down_proj" in n}
    plain = load_model(policy, torch.float32, attention="eager")
    merged = PeftModel.from_pretrained(plain, str(tmp_path / "adapter")).merge_and_unload()  # type: ignore[operator]
    for name, tensor in merged.state_dict().items():
        torch.testing.assert_close(tensor, after[name])


@pytest.mark.parametrize("save_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3"])
def test_saved_policies_are_ordinary_folders(tmp_path: Path, family: str, save_dtype: str) -> None:
    policy = tiny_policy(tmp_path / "zero", family, tie_word_embeddings=True)
    pairs = learnable_pairs(4)
    result = train_policy(tiny_job(tmp_path, policy, pairs, save_dtype=save_dtype))
    assert "lm_head.weight" not in weights(result.policy.folder)
    model = AutoModelForCausalLM.from_pretrained(result.policy.folder)
    assert model.dtype == getattr(torch, save_dtype)
    again = train_policy(tiny_job(tmp_path / "next", result.policy, pairs))
    assert again.policy.fingerprint != result.policy.fingerprint != policy.fingerprint


def test_soft_targets_train_less_far_than_hard_ones(policy: Policy, tmp_path: Path) -> None:
    pairs, reached = learnable_pairs(8), []
    for name in ("dno", "dno-prct"):
        changes = {"name": name, "epochs": 80, "schedule": "linear", "alpha": 0.0, "beta": 1.0}
        job = tiny_job(tmp_path / name, policy, pairs, learning_rate=1e-3, **changes)
        reached.append(margins(train_policy(job).policy, pairs) - margins(policy, pairs))
    # Eq. (8) is least at r_w - r_l = 0.7; each pair's way there depends on rounding, their mean hardly.
    torch.testing.assert_close(reached[0], torch.full((8,), 0.7), rtol=0, atol=0.4)
    assert reached[0].mean().item() == pytest.approx(0.7, abs=0.1)
    assert reached[1].min() > 3


def test_pairs_that_cannot_be_trained_on_are_refused(policy: Policy, tmp_path: Path) -> None:
    def pair(prompt: int, chosen: int, rejected: int, token: int = 7) -> TrainingPair:
        return TrainingPair("bad", (token,) * prompt, (8,) * chosen, (9,) * rejected, 1.0, 0.0, None, None)

    for bad, message in (
        ([], "0 pairs"),
        ([pair(3, 0, 4)], "pair bad: chosen_ids is empty"),
        ([pair(3, 4, 0)], "pair bad: rejected_ids is empty"),
        ([pair(0, 4, 4)], "pair bad: its prompt has 0 tokens"),
        ([pair(200, 3, 57)], "pair bad: 257 tokens .* takes at most 256"),
        ([pair(3, 3, 3, token=300)], "pair bad: token id 300"),
    ):
        with pytest.raises(TrainingError, match=message):
            train_policy(tiny_job(tmp_path, policy, bad))


def test_numbers_that_are_not_finite_stop_training_and_name_the_pairs(tmp_path: Path) -> None:
    broken = tiny_policy(tmp_path / "zero")
    tensors = AutoModelForCausalLM.from_pretrained(broken.folder)
    with torch.no_grad():
        tensors.model.embed_tokens.weight[250] = float("nan")
    tensors.save_pretrained(broken.folder)
    pairs = learnable_pairs(8)
    pairs[3] = TrainingPair("sick", (5, 250), (6, 7), (8, 9), 1.0, 0.0, None, None)
    job = tiny_job(tmp_path, broken, pairs, batch_size=8)
    with pytest.raises(TrainingError, match=r"iteration 1, step 1: the loss is not finite"):
        train_policy(job)
    report = json.loads((job.folder / "nonfinite-step-1.json").read_text())
    assert [row["pair"] for row in report["pairs"] if row["loss"] == "nan"] == ["sick"]
    assert not job.output.exists()


def test_an_infinite_gradient_is_not_applied(policy: Policy, tmp_path: Path) -> None:
    job = tiny_job(tmp_path, policy, learnable_pairs(4), alpha=1e37)  # finite losses whose squared gradients overflow
    with pytest.raises(TrainingError, match=r"step 1: the gradient norm \(inf\) is not finite"):
        train_policy(job)
    assert len(json.loads((job.folder / "nonfinite-step-1.json").read_text())["pairs"]) == 4


def test_adapters_on_modules_that_are_not_there_are_refused(policy: Policy, tmp_path: Path) -> None:
    job = tiny_job(tmp_path, policy, learnable_pairs(4), lora=LoraSection(target_modules=("w_q",)))
    with pytest.raises(ModelError, match=r"train\.lora\.target_modules: \('w_q',\)"):
        train_policy(job)


def test_learning_rates() -> None:
    def rates(**section: Any) -> list[float]:
        return [learning_rate(step, 6, 1.2, TrainSection(**section)) for step in range(6)]

    assert rates(warmup_steps=2) == pytest.approx([0.4, 0.8, 1.2, 1.2, 1.2, 1.2])
    assert rates(warmup_steps=2, schedule="linear") == pytest.approx([0.4, 0.8, 1.2, 0.9, 0.6, 0.3])
    cosine = [0.6 * (1 + math.cos(math.pi * n / 6)) for n in range(6)]
    assert rates(warmup_steps=0, schedule="cosine") == pytest.approx(cosine)
    assert rates(warmup_steps=9) == pytest.approx([0.12, 0.24, 0.36, 0.48, 0.6, 0.72])


def test_norms_and_biases_do_not_decay() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LayerNorm(3))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = Optimizer(dict(model.named_parameters()), {}, TrainSection(weight_decay=0.5))
    (
        model(torch.ones(1, 3)).sum() * 0
    ).backward()  # a gradient of zeros is a gradient: the pairs' losses may all be flat
    optimizer.step(0.1)
    for name, parameter in model.named_parameters():
        factor = 1 - 0.1 * 0.5 if name == "0.weight" else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * factor)


def test_what_no_pair_reached_stays_as_it_is() -> None:
    """An expert that no token was sent to: as where its gradient is None."""
    experts = torch.nn.ModuleList(torch.nn.Linear(3, 3, bias=False) for _ in range(2))
    used, idle = (expert.weight for expert in experts)
    section = TrainSection(weight_decay=0.5)
    optimizer = Optimizer(dict(experts.named_parameters()), {}, section)
    reference = copy.deepcopy(used)
    plain = torch.optim.AdamW([reference], lr=0.1, betas=section.betas, weight_decay=0.5)
    before = idle.detach().clone()
    for _ in range(2):
        experts[0](torch.ones(1, 3)).sum().backward()
        reference.grad = used.grad.clone()
        optimizer.step(0.1)
        plain.step()
    assert torch.equal(idle, before)
    torch.testing.assert_close(used, reference)
    experts[1](torch.ones(1, 3)).sum().backward()
    optimizer.step(0.1)
    assert not torch.equal(idle, before), "its place for gradients is still there"


@pytest.mark.parametrize("precision", ["autocast", "bfloat16"])
def test_rounded_weights_follow_their_masters_after_each_step(policy: Policy, precision: str) -> None:
    section = TrainSection.model_validate({"precision": precision})
    trainee = Trainee.load(policy, section, Precision.of(section), 0)
    optimizer = Optimizer(trainee.parameters, trainee.masters, section, trainee.copies)
    before = trainee.model.get_output_embeddings().weight.detach().clone()
    trainee.forward(learnable_pairs(4)).sum().backward()
    optimizer.step(0.1)
    assert trainee.masters
    for name, master in trainee.masters.items():
        assert torch.equal(trainee.parameters[name].detach(), master.to(torch.bfloat16)), name
    output = trainee.model.get_output_embeddings().weight.detach()
    assert not torch.equal(output, before)
    if precision == "autocast":
        assert trainee.ends.matrix is not None
        assert torch.equal(trainee.ends.matrix, output.to(torch.bfloat16))


def test_gradients_are_clipped_to_the_norm() -> None:
    weight = torch.nn.Parameter(torch.zeros(2, 2))
    optimizer = Optimizer({"w": weight}, {}, TrainSection(max_grad_norm=1.0))
    weight.grad = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    assert optimizer.clip() == pytest.approx(5.0)
    assert weight.grad.norm().item() == pytest.approx(1.0, abs=1e-5)
