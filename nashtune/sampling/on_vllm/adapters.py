"""LoRA adapters as a vLLM engine serves them: one adapter, or several that were trained one after the other as one."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nashtune.errors import SamplingError
from nashtune.store.files import write_json

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Values of vLLM's max_lora_rank."""


def served_rank(rank: int) -> int:
    """The least rank that vLLM can be told to serve and that holds ``rank``. Raises SamplingError above the largest."""
    for accepted in RANKS:
        if rank <= accepted:
            return accepted
    raise SamplingError(
        f"sampling.vllm.adapters is 'served' but the adapters have rank {rank} together; accepted: up to {RANKS[-1]}, so "
        "fewer iterations, a lower train.lora.rank, train.start 'initial', or sampling.vllm.adapters 'merged'"
    )


def base_of(folder: Path) -> str | None:
    """Fingerprint of the policy that an adapter was trained from; None where there is no adapter that says so."""
    file = folder / "base.json"
    return json.loads(file.read_text(encoding="utf-8"))["policy"] if file.is_file() else None


def rank_of(folders: Sequence[Path]) -> int:
    return sum(_config(folder)["r"] for folder in folders)


def compose(folders: Sequence[Path], target: Path) -> Path:
    """Write the sum of adapters as one adapter, exactly: sum_i s_i B_i A_i = [s_1 B_1, s_2 B_2, ...] [A_1; A_2; ...], whose
    rank is the sum of theirs. Raises SamplingError where they adapt different modules or are not plain LoRA."""
    from safetensors.torch import load_file, save_file
    from torch import cat

    configs = [_config(folder) for folder in folders]
    weights = [load_file(folder / "adapter_model.safetensors") for folder in folders]
    names = set(weights[0])
    for folder, config, own in zip(folders, configs, weights, strict=True):
        if set(own) != names or any(".lora_A." not in name and ".lora_B." not in name for name in own):
            raise SamplingError(
                f"{folder}: adapts other modules than the adapters before it; accepted: one set for all"
            )
        if config.get("use_dora") or config.get("rank_pattern") or config.get("alpha_pattern"):
            raise SamplingError(f"{folder}: not a plain LoRA adapter, so it cannot be served on top of others")
    scales = [config["lora_alpha"] / _divisor(config) for config in configs]
    whole = {
        name: cat([own[name] for own in weights], dim=0)
        if ".lora_A." in name
        else cat([scale * own[name] for scale, own in zip(scales, weights, strict=True)], dim=1)
        for name in sorted(names)
    }
    rank = sum(config["r"] for config in configs)
    target.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in whole.items()}, target / "adapter_model.safetensors")
    write_json(target / "adapter_config.json", {**configs[-1], "r": rank, "lora_alpha": rank, "use_rslora": False})
    return target


def _divisor(config: dict[str, Any]) -> float:
    return math.sqrt(config["r"]) if config.get("use_rslora") else config["r"]


def _config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
