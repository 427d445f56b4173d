"""Optional parts of the model: 4-bit base weights, fused kernels, compiled layers. Packages are imported where a setting asks."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from nashtune.errors import ModelError


def quantize_nf4(model: PreTrainedModel, compute: torch.dtype) -> None:
    """Hold the weights of the model's linear layers, its output layer excepted, as 4-bit NormalFloat numbers in blocks of 64
    (Dettmers et al. 2023, arXiv 2305.14314); products are computed in ``compute``. Raises ModelError without bitsandbytes."""
    try:
        import bitsandbytes as bnb  # type: ignore[import-not-found]
    except ImportError:
        raise ModelError(
            "train.lora.base is 'nf4', which needs the bitsandbytes package; `pip install 'nashtune[quantized]'`, or base 'full'"
        ) from None
    output = model.get_output_embeddings()
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is nn.Linear and layer is not output:
                setattr(parent, name, _nf4(bnb, layer, compute))


def _nf4(bnb: Any, layer: nn.Linear, compute: torch.dtype) -> nn.Module:
    quantized = bnb.nn.Linear4bit(
        layer.in_features, layer.out_features, layer.bias is not None, compute_dtype=compute, quant_type="nf4"
    )
    quantized.weight = bnb.nn.Params4bit(layer.weight.detach(), requires_grad=False, quant_type="nf4")
    if layer.bias is not None:
        quantized.bias = nn.Parameter(layer.bias.detach(), requires_grad=False)
    return quantized.to(layer.weight.device)


def apply_liger(model: PreTrainedModel) -> None:
    """Fused norms and gated activations by Liger kernels, in this model alone; log-probs stay nashtune's own.

    Raises ModelError without the package, without a GPU, or for an architecture that it does not know.
    """
    if model.device.type != "cuda":
        raise ModelError(
            f"train.liger is true, but the model is on {model.device.type}; accepted: a CUDA GPU, or false"
        )
    if importlib.util.find_spec("liger_kernel") is None:
        raise ModelError(
            "train.liger is true, which needs the liger-kernel package; `pip install 'nashtune[liger]'`, or liger: false"
        )
    from liger_kernel.transformers import monkey_patch  # type: ignore[import-not-found]

    kind = getattr(model.config, "model_type", None)
    if kind not in monkey_patch.MODEL_TYPE_TO_APPLY_LIGER_FN:
        known = ", ".join(sorted(monkey_patch.MODEL_TYPE_TO_APPLY_LIGER_FN))
        raise ModelError(
            f"train.liger is true, but Liger has no kernels for {kind!r}; accepted: {known}, or liger: false"
        )
    # Liger also changes the family's module, and so every model made later, the sampler's too: only this one is to change.
    family = vars(sys.modules[type(model).__module__])
    before = dict(family)
    unwanted = dict.fromkeys(("rope", "cross_entropy", "fused_linear_cross_entropy"), False)
    monkey_patch._apply_liger_kernel_to_instance(model=model, **unwanted)
    family.update(before)


def compile_layers(model: PreTrainedModel) -> int:
    """Have torch compile the norms and MLPs of the layers, at their first use, once for all layers -> how many.

    Attention stays as it is: it goes through the segments of each micro-batch, and would be compiled for each anew. Raises
    ModelError where torch cannot compile here, or where the layers have neither.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    parts = [part for layer in layers for part in layer.children() if type(part).__name__.endswith(("Norm", "MLP"))]
    if not parts:
        raise ModelError(
            f"train.compile is true, but the layers of {type(model).__name__} have no norms or MLPs of their own; accepted: false"
        )
    try:
        torch.compile(lambda x: (x * x + 1).relu())(torch.ones(16, device=model.device))
    except Exception as error:  # the compiler's own, of many kinds
        lines = str(error).strip().splitlines()
        raise ModelError(
            f"train.compile is true, but torch cannot compile for {model.device.type} here: {lines[0] if lines else error!r}; "
            "accepted: a machine with a C++ compiler (on a GPU, Triton), or false"
        ) from error
    for part in parts:
        part.compile(dynamic=True)  # batches differ in length
    return len(parts)
