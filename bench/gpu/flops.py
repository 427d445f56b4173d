"""Model FLOP utilisation: multiplications that the weights need, over what the device could do."""

from __future__ import annotations

from pathlib import Path

from measure import Figures, Missing, on_cuda
from random_models import multiplied_parameters

# Dense bfloat16 FLOP/s of the tensor cores, by NVIDIA's data sheets (without sparsity). The first name found decides.
PEAKS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
}
FORWARD, FORWARD_AND_BACKWARD = 2, 6
"""FLOP per weight and token."""


def device_name() -> str | None:
    import torch

    return torch.cuda.get_device_name() if on_cuda() else None


def peak_flops(name: str | None) -> float | None:
    """The device's peak; None where the table does not have it."""
    return next((peak for known, peak in PEAKS.items() if name and known in name), None)


def with_utilisation(figures: Figures, folder: Path, per_weight: int, tokens: int) -> Figures:
    """Adds the FLOP/s reached by ``tokens`` tokens in the figures' seconds, and the device's peak."""
    if "seconds" not in figures:
        return figures
    name = device_name()
    reached = per_weight * multiplied_parameters(folder) * tokens / figures["seconds"]
    return figures | {"flops": reached, "peak_flops": peak_flops(name), "device": name or "cpu"}


def check_fits(folder: Path, bytes_per_weight: float) -> None:
    """Raises Missing where weights, gradients and moments alone would not fit the device."""
    import torch

    if not on_cuda():
        return
    needed = bytes_per_weight * multiplied_parameters(folder) / 1e9
    there = torch.cuda.get_device_properties(0).total_memory / 1e9
    if needed > there:
        raise Missing(f"needs {needed:.0f} GB for weights, gradients and moments; the device has {there:.0f} GB")
