"""A trainee spread over the ranks of a world by FSDP2: each holds a part of every parameter, gradient and moment.

Weights, gradients and moments are kept in fp32 parts. A layer's whole weights exist while it computes, in the precision's
dtype: for ``bfloat16`` FSDP2 casts them as it gathers them, which is what fp32 masters beside bf16 weights do in one
process.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from nashtune.errors import ModelError, TrainingError
from nashtune.model.attention import check_kernel
from nashtune.recipe import TrainSection
from nashtune.records import Policy
from nashtune.training.logprobs import response_logprobs
from nashtune.training.packing import PackedBatch
from nashtune.training.trainee import Precision, Trainee
from nashtune.training.world import World

CPU = torch.device("cpu")


class _LogProbs(nn.Module):
    """The whole computation of log-probs as one module: as its forward pass begins, FSDP2 gathers what belongs to no layer,
    the embeddings and the output matrix, which log-probs are computed from chunk by chunk outside the model's own forward."""

    def __init__(self, model: PreTrainedModel, autocast: torch.dtype | None):
        super().__init__()
        self.model, self.autocast = model, autocast

    def forward(self, batch: PackedBatch) -> Tensor:
        return response_logprobs(self.model, batch, self.autocast)


@dataclass(slots=True, kw_only=True)
class ShardedTrainee(Trainee):
    """A trainee of which this rank holds a part. Forward and backward passes, and ``save``, are for all ranks together."""

    world: World
    root: nn.Module
    parts: dict[str, nn.Parameter] = field(default_factory=dict)
    """Trained parameters, kept here because the model shows gathered ones in between."""

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        return self.parts

    def _logprobs(self, batch: PackedBatch) -> Tensor:
        logprobs = self.root(batch)
        if not torch.is_grad_enabled():  # no backward pass will: what is gathered now would be stale after a step
            cast(FSDPModule, self.root).reshard()
        return logprobs

    def save(self, policy: Policy, section: TrainSection, output: Path, seed: int) -> None:
        """Write the trained policy as one process does, parameter by parameter gathered into a whole model that rank 0
        alone has."""
        whole: dict[str, nn.Parameter] = {}
        trainee: Trainee | None = None
        if self.world.first:
            trainee = Trainee.load(policy, section, _whole(self.precision), seed, CPU)
            whole = trainee.parameters
        for name, part in self.parts.items():
            self.world.pulse.beat(f"writing the policy, {name}")
            gathered = cast(DTensor, part.detach()).full_tensor()
            if trainee is not None:
                whole[name].data.copy_(gathered)
        if trainee is not None:
            trainee.save(policy, section, output, seed)


def load_sharded(
    policy: Policy, section: TrainSection, precision: Precision, seed: int, world: World
) -> ShardedTrainee:
    """As ``Trainee.load``, spread over the ranks. For all ranks. Raises ModelError."""
    return _spread(lambda: Trainee.load(policy, section, _whole(precision), seed, CPU), precision, world)


def load_fixed_sharded(policy: Policy, precision: Precision, world: World) -> ShardedTrainee:
    """As ``Trainee.load_fixed``, spread over the ranks. For all ranks. Raises ModelError."""
    return _spread(lambda: Trainee.load_fixed(policy, _whole(precision), device=CPU), precision, world)


def _whole(precision: Precision) -> Precision:
    """As models are read and written, on the CPU: parts hold the policy's weights, not their rounding."""
    return replace(precision, weights=torch.float32, autocast=None, attention="auto")


def _spread(load: Callable[[], Trainee], precision: Precision, world: World) -> ShardedTrainee:
    check_kernel(precision.attention, world.device)
    mesh = init_device_mesh(world.device.type, (world.size,))
    # Matrix products alone are in another dtype under autocast; gradients are summed in fp32 whatever the weights' dtype.
    low = None if precision.weights == torch.float32 else precision.weights
    mixed = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32, cast_forward_inputs=False)

    def part() -> ShardedTrainee:  # one rank after the other holds a whole model, on the CPU
        trainee = load()
        root = _LogProbs(trainee.model, precision.autocast)
        for layer in layers(trainee.model):
            fully_shard(layer, mesh=mesh, mp_policy=mixed)
        fully_shard(root, mesh=mesh, mp_policy=mixed)
        return ShardedTrainee(
            trainee.model, precision, adapted=trainee.adapted, world=world, root=root, parts=trainee.parameters
        )

    sharded = world.in_turn(part)
    whole = [name for name, parameter in sharded.model.named_parameters() if not isinstance(parameter, DTensor)]
    if whole or mesh.size() != world.size:
        raise TrainingError(
            f"{type(sharded.model).__name__}: {len(whole)} parameters are not shared by the {world.size} processes "
            f"({', '.join(whole[:3])}); set scale.train_processes: 1"
        )
    return sharded


def layers(model: PreTrainedModel) -> list[nn.Module]:
    """The blocks whose weights are gathered one after the other: those that transformers never splits. Raises ModelError
    where a model names none."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    found = [module for module in model.modules() if type(module).__name__ in names]
    if not found:
        raise ModelError(
            f"{type(model).__name__} does not say what its layers are (_no_split_modules {sorted(names)}), so its weights "
            "cannot be spread; set scale.train_processes: 1"
        )
    return found
