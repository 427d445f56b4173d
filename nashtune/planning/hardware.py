"""GPU types: what their makers say of them, and rates that others have published."""

from __future__ import annotations

from dataclasses import dataclass

from nashtune.errors import PlanError
from nashtune.planning.figures import Figure, Origin

REFERENCE = "A100-80GB"
"""The type that others are scaled from, where nobody has published their rate."""


@dataclass(frozen=True, slots=True)
class Rate:
    """Tokens a second of one GPU with a dense model of ``parameters`` weights in bf16."""

    tokens: float
    parameters: float
    source: str


@dataclass(frozen=True, slots=True)
class Gpu:
    """Memory (GB), dense bf16 FLOP/s and memory bandwidth (bytes/s) by the data sheet; dollars an hour."""

    name: str
    memory_gb: float
    flops: float
    bandwidth: float
    usd_per_hour: float
    sampling: Rate | None = None
    training: Rate | None = None


VLLM_A100 = Rate(
    3_363, 7.6e9, "vLLM, R1-Distill-Qwen-7B (7.6B weights), one A100-80GB, morphllm.com/vllm-benchmarks (April 2026)"
)
VLLM_H100 = Rate(
    2 * 3_363,
    7.6e9,
    "twice the A100's, as Lambda's vllm-benchmark (LambdaLabsML/vllm-benchmark) found of 7B to 405B models",
)
FSDP_A100 = Rate(3_700, 6.7e9, "FSDP, Llama-2-7B (6.7B weights), 128 A100, research.ibm.com/blog/pytorch-fsdp (2024)")
FSDP_H100 = Rate(
    5_605,
    8.0e9,
    "FSDP without compile, Llama-3.1-8B, 128 H100, pytorch/torchtitan benchmarks/llama3_h100_202412 (2024)",
)

GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("A10-24GB", 24, 125e12, 0.60e12, 0.8),
        Gpu("A100-40GB", 40, 312e12, 1.555e12, 1.5),
        Gpu("A100-80GB", 80, 312e12, 2.039e12, 2.0, VLLM_A100, FSDP_A100),
        Gpu("B200-180GB", 180, 2250e12, 8.0e12, 6.0),
        Gpu("H100-80GB", 80, 989e12, 3.35e12, 3.0, VLLM_H100, FSDP_H100),
        Gpu("H200-141GB", 141, 989e12, 4.8e12, 3.5),
        Gpu("L4-24GB", 24, 121e12, 0.30e12, 0.7),
        Gpu("L40S-48GB", 48, 362e12, 0.864e12, 1.2),
    )
}


def find_gpu(name: str) -> Gpu:
    """A type by its name, in any case, memory left out where one type only is left. Raises PlanError for any other."""
    wanted = name.upper()
    found = [gpu for known, gpu in GPUS.items() if known.upper() == wanted]
    found = found or [gpu for known, gpu in GPUS.items() if known.upper().split("-")[0] == wanted]
    if len(found) != 1:
        raise PlanError(f"--gpu {name!r}; accepted: {', '.join(GPUS)}")
    return found[0]


def sampling_rate(gpu: Gpu, parameters: float, given: float | None) -> Figure:
    """Answer tokens a second of one GPU."""
    return _rate("sampling", gpu, parameters, given)


def training_rate(gpu: Gpu, parameters: float, given: float | None) -> Figure:
    """Tokens of pairs a second of one GPU."""
    return _rate("training", gpu, parameters, given)


def price(gpu: Gpu, given: float | None) -> Figure:
    """Dollars for an hour of one GPU."""
    if given is not None:
        return Figure("a GPU", given, "USD/hour", "given", "--price")
    why = f"a usual on-demand price of {gpu.name}; --price replaces it"
    return Figure("a GPU", gpu.usd_per_hour, "USD/hour", "assumed", why)


def _rate(stage: str, gpu: Gpu, parameters: float, given: float | None) -> Figure:
    """A published rate times (its model's weights / this model's), as a token's FLOPs go with the weights; a type without one
    takes the reference type's, scaled by what the stage is bound by: sampling reads memory, training multiplies matrices."""
    name, unit = f"{stage} on one {gpu.name}", "tokens/s"
    if given is not None:
        return Figure(name, given, unit, "given", f"--{stage}-rate")
    known: Rate | None = getattr(gpu, stage)
    factor, origin, how = 1.0, "published", ""
    if known is None:
        other = GPUS[REFERENCE]
        known = getattr(other, stage)
        bound = "bandwidth" if stage == "sampling" else "flops"
        factor = getattr(gpu, bound) / getattr(other, bound)
        origin = "derived"
        how = f", times {factor:.2f} ({'memory bandwidth' if stage == 'sampling' else 'bf16 FLOP/s'} against {REFERENCE}'s)"
    assert known is not None
    size = known.parameters / parameters
    scaled: Origin = "published" if origin == "published" and abs(size - 1) < 0.02 else "derived"
    if abs(size - 1) >= 0.02:
        how += (
            f", times {size:.3g} (FLOPs of a token: {known.parameters / 1e9:g}B weights against {parameters / 1e9:g}B)"
        )
    return Figure(name, known.tokens * factor * size, unit, scaled, f"{known.tokens:,.0f}: {known.source}{how}")
