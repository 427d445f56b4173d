"""Linear layers with weights kept in the order that oneDNN's matrix products read, for inference on a CPU.

A plain linear layer has its weights re-ordered at every call, which a few dozen rows do not repay; and in fp32 PyTorch calls
MKL, which takes no AVX-512 on processors of other makers. bf16 results are the same bit for bit, fp32 ones to rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nashtune.errors import ModelError

ROWS = 64  # rows for which the order is chosen
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}  # of the greatest output


class PrepackedLinear(nn.Module):
    """Takes the place of an ``nn.Linear`` for inference. Holds its weights once, in oneDNN's own order."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self._packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), ROWS)

    @property
    def weight(self) -> Tensor:
        """The plain weights [out, in], unpacked anew at every call."""
        return self._packed.to_dense()

    def forward(self, rows: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(rows, self._packed, self.bias, "none", [], "")


def can_prepack(model: Any) -> bool:
    """Whether this machine's PyTorch has the products for the model's dtype."""
    if model.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if not all(hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise")):
        return False
    return model.dtype == torch.float32 or (
        model.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


@torch.inference_mode()
def prepack_linears(model: Any) -> int:
    """Replace the plain linear layers of a model that will only be run, where ``can_prepack`` -> how many.

    Weights shared with another module (a head tied to the embedding) stay there as well, a second copy. Raises ModelError
    where a product comes out otherwise than before.
    """
    if not can_prepack(model):
        return 0
    found = [(name, module) for name, module in model.named_modules() if type(module) is nn.Linear]
    for name, linear in found:
        if linear.weight.dtype != model.dtype:
            continue
        packed = PrepackedLinear(linear).eval()
        probe = torch.linspace(-1, 1, 3 * linear.in_features, dtype=model.dtype).view(3, 1, -1)
        expected = linear(probe)
        error = (packed(probe) - expected).abs().max() / expected.abs().max().clamp_min(1e-30)
        if error > TOLERANCE[model.dtype]:
            raise ModelError(
                f"{type(model).__name__}: products of {name} with prepacked weights differ by {error:.2g} of their greatest "
                f"value; accepted: up to {TOLERANCE[model.dtype]}"
            )
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, packed)
    return len(found)
