"""The model being trained: its precision, adapters, and how it becomes an ordinary policy folder again."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nashtune.errors import ModelError
from nashtune.model.loading import DTYPES, bf16_is_fast, load_model, load_tokenizer, save_policy
from nashtune.recipe import LoraSection, TrainSection
from nashtune.records import Policy
from nashtune.training.logprobs import check_architecture, response_logprobs
from nashtune.training.packing import PackedBatch, TrainingPair, pack, share

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(frozen=True, slots=True)
class Precision:
    """dtype of the weights used in computing, and of matrix products where that differs."""

    weights: torch.dtype
    autocast: torch.dtype | None = None

    @staticmethod
    def of(name: Literal["auto", "float32", "autocast", "bfloat16"]) -> Precision:
        """The recipe's train.precision; auto is autocast where bf16 is fast, else float32."""
        if name == "auto":
            name = "autocast" if bf16_is_fast() else "float32"
        if name == "autocast":
            return Precision(torch.float32, torch.bfloat16)
        return Precision(DTYPES[name])


@dataclass(slots=True)
class Trainee:
    """A policy in memory, ready to be trained. Dropout is off: the policy must start equal to its reference."""

    model: PreTrainedModel
    precision: Precision
    masters: dict[str, Tensor] = field(default_factory=dict)
    """fp32 values of trained parameters that compute in bf16."""
    adapted: PeftModel | None = None

    @staticmethod
    def load(
        policy: Policy, section: TrainSection, precision: Precision, seed: int, device: torch.device | None = None
    ) -> Trainee:
        """Load for training; ``seed`` decides the adapters' initial values. Raises ModelError."""
        trainee = Trainee.load_fixed(policy, precision, convert=False, device=device)
        if section.lora is not None:
            trainee.adapted = _adapt(trainee.model, section.lora, seed)
        trainee._to_weights_dtype()
        if section.gradient_checkpointing:
            trainee.model.gradient_checkpointing_enable({"use_reentrant": False})
        trainee.model.train()
        return trainee

    @staticmethod
    def load_fixed(
        policy: Policy, precision: Precision, *, convert: bool = True, device: torch.device | None = None
    ) -> Trainee:
        """Load a policy that is only read, computing exactly as a trained one does."""
        # Always read in fp32: masters must hold the policy's weights, not their bf16 rounding.
        model = load_model(policy, torch.float32, device)
        _without_dropout(model)
        check_architecture(model)
        trainee = Trainee(model, precision)
        if convert:
            model.requires_grad_(False)
            trainee._to_weights_dtype()
        return trainee

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """What is trained, by name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def forward(self, pairs: Sequence[TrainingPair], sides: int = 2) -> Tensor:
        """Log-probs of the pairs' answers [n, sides], in nats; what pairs have in common is computed once."""
        items, places = share(pairs, sides)
        logprobs = self._logprobs(pack(items, self.model.device))
        return logprobs[torch.tensor(places, device=logprobs.device)].view(-1, sides)

    def _logprobs(self, batch: PackedBatch) -> Tensor:
        return response_logprobs(self.model, batch, self.precision.autocast)

    def _to_weights_dtype(self) -> None:
        if self.precision.weights == torch.float32:
            return
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                self.masters[name] = parameter.data
            parameter.data = parameter.data.to(self.precision.weights)

    def save(self, policy: Policy, section: TrainSection, output: Path, seed: int) -> None:
        """Write the trained policy to ``output``; with adapters, merged, and the adapters to ``adapter`` beside it."""
        tokenizer = load_tokenizer(policy)
        model = self.model
        if section.lora is not None:
            model = self._merged(policy, section.lora, output.with_name("adapter"), seed)
        else:
            for name, parameter in model.named_parameters():
                parameter.data = self.masters.get(name, parameter.data)
        save_policy(model.to(DTYPES[section.save_dtype]), tokenizer, output)  # type: ignore[arg-type]

    def _merged(self, policy: Policy, section: LoraSection, folder: Path, seed: int) -> PreTrainedModel:
        adapted = self.adapted
        if self.precision.weights != torch.float32:  # merging into bf16 weights would round the adapters away
            self.model = load_model(policy, torch.float32)
            gc.collect()
            adapted = _adapt(self.model, section, seed)
            for name, parameter in self.parameters.items():
                parameter.data = self.masters[name]
        assert adapted is not None
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        adapted.save_pretrained(str(partial))
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
        return adapted.merge_and_unload()  # type: ignore[operator]


def _adapt(model: PreTrainedModel, section: LoraSection, seed: int) -> PeftModel:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise ModelError("train.lora needs the peft package; `pip install 'nashtune[lora]'`") from None
    targets = section.target_modules if isinstance(section.target_modules, str) else list(section.target_modules)
    config = LoraConfig(r=section.rank, lora_alpha=section.alpha, target_modules=targets, task_type="CAUSAL_LM")  # type: ignore[arg-type]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            return get_peft_model(model, config)  # type: ignore[return-value]
        except ValueError as error:
            raise ModelError(f"train.lora.target_modules: {section.target_modules!r}: {error}") from error


def _without_dropout(model: PreTrainedModel) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # type: ignore[assignment]
