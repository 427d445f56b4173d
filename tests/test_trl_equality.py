"""One batch through TRL's DPOTrainer and through ours, in fp32: the same loss and the same gradients."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from nashtune.training.objectives import OBJECTIVES, PairTerms, Sides, preference_loss
from tiny_chat import byte_tokenizer
from tiny_models import tiny_model
from tiny_pairs import learnable_pairs

from nashtune.training.logprobs import response_logprobs
from nashtune.training.packing import TrainingPair, pack

pytest.importorskip("trl")
BETA = 0.2


def perturbed(family: str, attention: str) -> torch.nn.Module:
    """The policy's weights with 2 % noise: a reference that is near it but not equal."""
    model = tiny_model(family, attn_implementation=attention)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02 * parameter.std())
    return model


def trl_loss(family: str, pairs: Sequence[TrainingPair], folder: Path) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients by name."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    policy = tiny_model(family, attn_implementation="eager")
    arguments = DPOConfig(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        report_to=[],
        per_device_train_batch_size=len(pairs),
        gradient_checkpointing=False,
        beta=BETA,
    )
    trainer = DPOTrainer(
        model=policy,
        ref_model=perturbed(family, "eager"),
        args=arguments,
        # Only the collator and the loss are used, with our token ids; the text is never read.
        train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}] * len(pairs)),
        processing_class=byte_tokenizer(),
    )
    rows = [{name: list(getattr(p, name)) for name in ("prompt_ids", "chosen_ids", "rejected_ids")} for p in pairs]
    loss = trainer.compute_loss(policy, trainer.data_collator(rows))
    loss.backward()
    return loss.item(), {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral"])
def test_loss_and_gradients_equal_trl(family: str, tmp_path: Path) -> None:
    pairs = learnable_pairs(4)
    expected, expected_gradients = trl_loss(family, pairs, tmp_path)
    batch = pack([p.answers() for p in pairs])
    model, reference = tiny_model(family, attn_implementation="nashtune"), perturbed(family, "nashtune")
    with torch.no_grad():
        stored = response_logprobs(reference, batch).view(-1, 2)  # type: ignore[arg-type]
    values, ones = response_logprobs(model, batch).view(-1, 2), torch.ones(len(pairs))
    sides = Sides(ones, ones)
    terms = PairTerms(Sides(*values.unbind(1)), {"0": Sides(*stored.unbind(1))}, sides, sides, sides)
    result = preference_loss(OBJECTIVES["dpo"], terms, beta=BETA, alpha=0.0)
    result.losses.mean().backward()
    assert result.margin is not None
    assert result.margin.abs().min() > 1e-3  # a loss away from ln 2
    assert result.losses.mean().item() == pytest.approx(expected, abs=1e-5)
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        assert (gradients[name] - gradient).norm() <= 1e-4 * gradient.norm(), name
