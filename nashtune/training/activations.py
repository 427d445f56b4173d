"""A budget for activations: as many layers as it takes are computed a second time in the backward pass, no more.

What a layer keeps for its backward pass is measured, not estimated, once for each model. Results do not change by a bit.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from nashtune.errors import ModelError, TrainingError
from nashtune.training.packing import pack

PROBE_TOKENS = 64


@dataclass(frozen=True, slots=True)
class ActivationBudget:
    """Bytes that the layers of one micro-batch may keep between forward and backward pass."""

    layers: tuple[GradientCheckpointingLayer, ...]
    budget: float
    kept: float
    """Bytes a token that a layer keeps."""
    recomputed: float
    """Bytes a token of a layer that is computed twice: its input."""

    @staticmethod
    def measure(model: PreTrainedModel, gigabytes: float, autocast: torch.dtype | None) -> ActivationBudget:
        """For a model in training. Raises ModelError where its layers cannot be computed twice."""
        layers = tuple(m for m in model.modules() if isinstance(m, GradientCheckpointingLayer))
        if not layers or not model.supports_gradient_checkpointing:
            raise ModelError(
                f"train.activation_gb: the layers of {type(model).__name__} cannot be recomputed; accepted: null"
            )
        model.gradient_checkpointing_enable({"use_reentrant": False})
        for layer in layers:
            layer.gradient_checkpointing = False
        small, large = (_saved_bytes(model, layers, n, autocast) for n in (PROBE_TOKENS, 2 * PROBE_TOKENS))
        residual = large[1] / (2 * PROBE_TOKENS)
        return ActivationBudget(layers, gigabytes * 1e9, (large[0] - small[0]) / PROBE_TOKENS / len(layers), residual)

    def recompute(self, tokens: int) -> int:
        """Lets the first layers, as many as it takes for a micro-batch of ``tokens``, be computed twice; says how many.

        The first ones, because they are recomputed last, when the others' activations are gone. Raises TrainingError
        where the budget is too small for all of them.
        """
        least = tokens * self.recomputed * len(self.layers)
        if least > self.budget:
            raise TrainingError(
                f"train.activation_gb is {self.budget / 1e9:g}: a micro-batch of {tokens} tokens needs {least / 1e9:.3g} GB even "
                "where every layer is recomputed; accepted: at least that, or smaller micro-batches "
                "(train.microbatch_tokens; a long pair is one by itself)"
            )
        over = tokens * self.kept * len(self.layers) - self.budget
        saves = max(self.kept - self.recomputed, 1e-9)
        count = min(len(self.layers), max(0, math.ceil(over / (tokens * saves))))
        for number, layer in enumerate(self.layers):
            layer.gradient_checkpointing = number < count
        return count


def _saved_bytes(
    model: PreTrainedModel, layers: Sequence[GradientCheckpointingLayer], tokens: int, autocast: torch.dtype | None
) -> tuple[int, int]:
    """Bytes that the layers keep for the backward pass of ``tokens`` packed ones, and bytes of the last one's output."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found: dict[int, int] = {}
    inside = False

    def enter(*_: Any) -> None:
        nonlocal inside
        inside = True

    def leave(*_: Any) -> None:
        nonlocal inside
        inside = False

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if inside and storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    half = tokens // 2
    batch = pack([([1] * half, [[1] * (tokens - half + 1)])], model.device)
    with contextlib.ExitStack() as stack:
        if autocast:
            stack.enter_context(torch.autocast(model.device.type, autocast))
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor))
        stack.enter_context(torch.enable_grad())
        for layer in layers:
            stack.callback(layer.register_forward_pre_hook(enter).remove)
            stack.callback(layer.register_forward_hook(leave).remove)
        hidden = model.get_decoder()(
            input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False, layout=batch.layout
        ).last_hidden_state
    return sum(found.values()), hidden.nbytes
