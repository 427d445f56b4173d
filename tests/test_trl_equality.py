"""One batch through TRL's trainers and through ours: the same losses, and the same gradients."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_chat import byte_tokenizer
from tiny_models import tiny_model
from tiny_pairs import learnable_pairs

from nashtune.objectives import OBJECTIVES, PairTerms, Sides, preference_loss
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


def given(policy: Sides, references: dict[str, Sides], lengths: Sides | None = None) -> PairTerms:
    """Terms in which the oracle was certain."""
    ones = torch.ones_like(policy.chosen)
    certain = Sides(ones, 0 * ones)
    return PairTerms(policy, references, certain, certain, certain, lengths or Sides(ones, ones))


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
    values = response_logprobs(model, batch).view(-1, 2)
    terms = given(Sides(*values.unbind(1)), {"0": Sides(*stored.unbind(1))})
    result = preference_loss(OBJECTIVES["dpo"], terms, {**OBJECTIVES["dpo"].defaults(), "beta": BETA})
    result.losses.mean().backward()
    assert result.margin is not None
    assert result.margin.abs().min() > 1e-3  # a loss away from ln 2
    assert result.losses.mean().item() == pytest.approx(expected, abs=1e-5)
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        assert (gradients[name] - gradient).norm() <= 1e-4 * gradient.norm(), name


# ---- losses on random log-probs -----------------------------------------------------------------------------------------

COUNT, TOKENS = 6, 12


def random_batch(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probs per token of the policy and of the reference, and the mask of real tokens, each [2 B, L]: chosen answers,
    then rejected ones."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, TOKENS + 1, (2 * COUNT, 1), generator=draw)
    mask = torch.arange(TOKENS) < lengths
    policy, reference = -4 * torch.rand(2, 2 * COUNT, TOKENS, generator=draw)
    return policy * mask, reference * mask, mask


def ours(name: str, seed: int, **settings: float) -> torch.Tensor:
    """Losses [B]."""
    policy, reference, mask = random_batch(seed)
    sides = [Sides(*values.sum(1).float().chunk(2)) for values in (policy, reference, mask)]
    row = OBJECTIVES[name]
    terms = given(sides[0], dict.fromkeys(("t", "0"), sides[1]), sides[2])
    return preference_loss(row, terms, {**row.defaults(), "alpha": 0.0, **settings}).losses


class Reporter(torch.nn.Module):
    """A model whose log-probs per token are given."""

    is_gradient_checkpointing = False

    def __init__(self, values: torch.Tensor):
        super().__init__()
        self.values = values

    def forward(self, **_: Any) -> Any:
        nothing = torch.zeros_like(self.values)
        return SimpleNamespace(log_probs=self.values, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool())


def trainer_stub(policy: torch.Tensor, reference: torch.Tensor, **fields: Any) -> Any:
    """What a TRL trainer's loss reads of the trainer besides its settings; what it logs goes nowhere."""
    from collections import defaultdict

    accelerator = SimpleNamespace(device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x)
    return SimpleNamespace(
        model=Reporter(policy),
        ref_model=Reporter(reference),
        accelerator=accelerator,
        args=SimpleNamespace(gradient_checkpointing_kwargs=None),
        aux_loss_enabled=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
        **fields,
    )


def trl_dpo(loss_type: str, seed: int, beta: float, **fields: Any) -> float:
    """The mean loss by DPOTrainer's own code."""
    from trl import DPOTrainer

    if f'"{loss_type}"' not in inspect.getsource(DPOTrainer):
        pytest.skip(f"this version of TRL has no loss_type {loss_type!r}")
    policy, reference, mask = random_batch(seed)
    stub = trainer_stub(
        policy,
        reference,
        ld_alpha=None,
        precompute_ref_logps=False,
        f_divergence_type="reverse_kl",
        loss_types=[loss_type],
        loss_weights=[1.0],
        beta=beta,
        use_weighting=False,
        **fields,
    )
    whole = torch.nn.functional.pad(mask, (1, 0))  # one prompt token before each answer
    inputs = {
        "input_ids": torch.zeros(whole.shape, dtype=torch.long),
        "attention_mask": torch.ones(whole.shape),
        "completion_mask": whole.long(),
    }
    return DPOTrainer._compute_loss(stub, stub.model, inputs, False).item()


# Our objective and settings, TRL's loss_type and beta, and what TRL's loss must be multiplied by.
DPO_LOSSES: list[tuple[str, dict[str, float], str, float, float]] = [
    ("dpo", {"beta": 0.3}, "sigmoid", 0.3, 1.0),
    ("dno-prct", {"beta": 0.3}, "sigmoid", 0.3, 1.0),
    ("spin", {"beta": 0.3}, "sigmoid", 0.3, 1.0),
    ("dpo", {"beta": 2.0, "per_token": 1}, "sigmoid_norm", 2.0, 1.0),
    ("ipo", {"tau": 0.4, "per_token": 1}, "ipo", 0.4, 1.0),  # TRL's is the length-normalised one
    ("sppo", {"eta": 5.0}, "sppo_hard", 1 / 5.0, 0.5),  # P 1 and 0; TRL leaves out the 1/2
]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("name", "settings", "loss_type", "beta", "factor"), DPO_LOSSES, ids=[f"{n}-{t}" for n, _, t, _, _ in DPO_LOSSES]
)
def test_losses_equal_those_of_trls_dpo_trainer(
    name: str, settings: dict[str, float], loss_type: str, beta: float, factor: float, seed: int
) -> None:
    expected = factor * trl_dpo(loss_type, seed, beta)
    assert ours(name, seed, **settings).mean().item() == pytest.approx(expected, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["cpo", "simpo"])
def test_cpo_and_simpo_equal_trls(name: str, seed: int) -> None:
    module = pytest.importorskip("trl.experimental.cpo", reason="this version of TRL has no CPOTrainer")
    policy, _, mask = random_batch(seed)
    stub = trainer_stub(policy, policy, alpha=0.0, beta=1.5, label_smoothing=0.0, simpo_gamma=0.6)
    stub.loss_type = "sigmoid" if name == "cpo" else "simpo"
    logprobs = policy.sum(1) / (1 if name == "cpo" else mask.sum(1))
    expected = module.CPOTrainer.cpo_loss(stub, *logprobs.chunk(2))[0]
    settings = {"beta": 1.5} | ({"offset": 0.6} if name == "simpo" else {})
    torch.testing.assert_close(ours(name, seed, **settings), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_orpo_equals_trls(seed: int) -> None:
    module = pytest.importorskip("trl.experimental.orpo", reason="this version of TRL has no ORPOTrainer")
    policy, _, mask = random_batch(seed)
    stub = trainer_stub(policy, policy, beta=0.3)
    ratio = module.ORPOTrainer.odds_ratio_loss(stub, *(policy.sum(1) / mask.sum(1)).chunk(2))[0]
    torch.testing.assert_close(ours("orpo", seed, beta=0.3), -ratio, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shift", [-1.0, 0.3])  # a KL estimate that is cut at 0, and one that is not
@pytest.mark.parametrize("seed", range(3))
def test_kto_equals_trls_where_the_kl_is_estimated_on_the_same_answers(seed: int, shift: float) -> None:
    trl = pytest.importorskip("trl")
    if not hasattr(trl, "KTOTrainer"):
        pytest.skip("this version of TRL has no KTOTrainer")
    policy, reference, mask = random_batch(seed)
    reference = reference - shift * mask
    settings = {"beta": 0.2, "desirable": 1.3, "undesirable": 0.7}
    stub = trainer_stub(
        policy,
        reference,
        beta=0.2,
        loss_type="kto",
        calculate_KL=True,
        precompute_ref_logps=False,
        desirable_weight=1.3,
        undesirable_weight=0.7,
        _compute_kl_logps=lambda model, _: model.values.sum(1),
    )
    whole = torch.nn.functional.pad(mask, (1, 0))
    inputs = {
        "input_ids": torch.zeros(whole.shape, dtype=torch.long),
        "attention_mask": torch.ones(whole.shape),
        "completion_mask": whole.long(),
        "label": torch.tensor([True] * COUNT + [False] * COUNT),
    }
    expected = trl.KTOTrainer._compute_loss(stub, stub.model, inputs, False).item()
    sides = [Sides(*values.sum(1).chunk(2)) for values in (policy, reference)]
    row = OBJECTIVES["kto"]
    got = preference_loss(row, given(sides[0], {"t": sides[1]}), {**row.defaults(), **settings}).losses.mean().item()
    assert got == pytest.approx(expected, abs=1e-5)
