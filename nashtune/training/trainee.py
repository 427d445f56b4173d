"""The model being trained: its precision, adapters, and how it becomes an ordinary policy folder again."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nashtune.errors import ModelError
from nashtune.model.allocator import give_back_memory
from nashtune.model.attention import PackedKernel, check_kernel
from nashtune.model.loading import DTYPES, bf16_is_fast, default_device, load_model, load_tokenizer, save_policy
from nashtune.recipe import LoraSection, TrainSection
from nashtune.records import Policy
from nashtune.store.files import write_json
from nashtune.training.activations import ActivationBudget
from nashtune.training.kernels import apply_liger, compile_layers, quantize_nf4
from nashtune.training.logprobs import check_architecture, response_logprobs
from nashtune.training.packing import PackedBatch, TrainingPair, pack, share
from nashtune.training.vocabulary import Ends, Head

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(frozen=True, slots=True)
class Precision:
    """dtype of the weights used in computing, of matrix products where that differs, and whatever else decides how log-probs
    are rounded: policy and reference must have it in common."""

    weights: torch.dtype
    autocast: torch.dtype | None = None
    attention: PackedKernel = "auto"
    nf4: bool = False
    """4-bit weights under adapters."""
    liger: bool = False
    compiled: bool = False
    """Norms and MLPs run as torch compiles them."""

    @staticmethod
    def of(section: TrainSection) -> Precision:
        """What the recipe asks for; precision auto is autocast where bf16 is fast, else float32."""
        name = section.precision
        if name == "auto":
            name = "autocast" if bf16_is_fast() else "float32"
        weights = torch.float32 if name == "autocast" else DTYPES[name]
        autocast = torch.bfloat16 if name == "autocast" else None
        nf4 = section.lora is not None and section.lora.base == "nf4"
        return Precision(weights, autocast, section.attention, nf4, section.liger, section.compile)


@dataclass(slots=True)
class Trainee:
    """A policy in memory, ready to be trained. Dropout is off: the policy must start equal to its reference."""

    model: PreTrainedModel
    precision: Precision
    masters: dict[str, Tensor] = field(default_factory=dict)
    """fp32 values of trained parameters that compute in bf16."""
    adapted: PeftModel | None = None
    ends: Ends = field(default_factory=Ends)
    """What is kept of embeddings and output layer between micro-batches."""
    budget: ActivationBudget | None = None
    rounded: bool = False
    """Whether weights that the model computes with were rounded from fp32, so that adapters must not be merged into them."""

    @staticmethod
    def load(
        policy: Policy, section: TrainSection, precision: Precision, seed: int, device: torch.device | None = None
    ) -> Trainee:
        """Load for training; ``seed`` decides the adapters' initial values. Raises ModelError."""
        trainee = Trainee.load_fixed(policy, precision, convert=False, device=device)
        if section.lora is not None:
            trainee.adapted = _adapt(trainee.model, section.lora, seed)
        trainee._to_weights_dtype()
        trainee._keep_ends()
        if section.gradient_checkpointing:
            trainee.model.gradient_checkpointing_enable({"use_reentrant": False})
        trainee.model.train()
        if section.activation_gb is not None:
            trainee.budget = ActivationBudget.measure(trainee.model, section.activation_gb, precision.autocast)
        return trainee

    @staticmethod
    def load_fixed(
        policy: Policy, precision: Precision, *, convert: bool = True, device: torch.device | None = None
    ) -> Trainee:
        """Load a policy that is only read, computing exactly as a trained one does."""
        # Always read in fp32: masters must hold the policy's weights, not their bf16 rounding.
        model = load_model(policy, torch.float32, device)
        check_kernel(precision.attention, default_device())  # where it will compute, wherever it is loaded
        _without_dropout(model)
        check_architecture(model)
        if precision.liger:
            apply_liger(model)
            check_architecture(model)
        if precision.nf4:
            quantize_nf4(model, precision.autocast or precision.weights)
        if precision.compiled:
            compile_layers(model)
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
        batch = pack(items, self.model.device, self.precision.attention)
        if self.budget is not None and torch.is_grad_enabled():
            self.budget.recompute(batch.input_ids.shape[1])
        logprobs = self._logprobs(batch)
        return logprobs[torch.tensor(places, device=logprobs.device)].view(-1, sides)

    def _logprobs(self, batch: PackedBatch) -> Tensor:
        return response_logprobs(self.model, batch, self.precision.autocast, self.ends)

    @property
    def copies(self) -> list[tuple[Tensor, Tensor]]:
        """(copy, original) of weights kept in a second dtype, to be renewed after each change of the originals."""
        return [] if self.ends.matrix is None else [(self.ends.matrix, Head.of(self.model).weight.detach())]

    def _to_weights_dtype(self) -> None:
        """Round what computes in bf16 once, instead of in every micro-batch: all weights, or under autocast those of
        linear layers, which is what autocast itself would cast each time. Trained ones leave their fp32 values as masters."""
        if self.precision.autocast is not None:
            output = Head.of(self.model).weight  # fp32: tied to embeddings or not, its sums are long
            layers = [layer for layer in self.model.modules() if type(layer) is nn.Linear]
            chosen = {id(p) for layer in layers for p in layer.parameters(recurse=False) if p is not output}
            dtype = self.precision.autocast
        elif self.precision.weights != torch.float32:
            chosen = {id(p) for p in self.model.parameters() if p.is_floating_point()}
            dtype = self.precision.weights
        else:
            return
        for name, parameter in self.model.named_parameters():
            if id(parameter) in chosen:
                if parameter.requires_grad:
                    self.masters[name] = parameter.data
                parameter.data = parameter.data.to(dtype)
        self.rounded = True

    def _keep_ends(self) -> None:
        """Gradients of trained embeddings and output weights are added where the optimizer reads them; the output weights'
        copy in the dtype of products is made once a step."""
        names = {id(p): name for name, p in self.model.named_parameters()}

        def sink(weight: nn.Parameter) -> Tensor | None:
            return self.masters.get(names[id(weight)], weight) if weight.requires_grad else None

        output = Head.of(self.model).weight
        cast = self.precision.autocast
        self.ends = Ends(
            matrix=None if cast is None else output.detach().to(cast),
            output=sink(output),
            embedding=sink(self.model.get_input_embeddings().weight),  # type: ignore[arg-type],
        )

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
        if self.rounded or self.precision.nf4:  # merging into rounded weights would round the adapters away
            trained = {name: self.masters.get(name, parameter.data) for name, parameter in self.parameters.items()}
            self.model = self.adapted = self.budget = None  # type: ignore[assignment]
            self.ends = Ends()
            give_back_memory()  # the rounded model goes before the whole one comes
            self.model = load_model(policy, torch.float32)
            adapted = _adapt(self.model, section, seed)
            for name, parameter in self.parameters.items():
                parameter.data = trained[name]
        assert adapted is not None
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        adapted.save_pretrained(str(partial))
        # an engine that serves adapters must know what this one goes on top of
        write_json(partial / "base.json", {"policy": policy.fingerprint})
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
