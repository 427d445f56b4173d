"""What this machine offers a run."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import psutil

from nashtune.environment import describe_environment, package_version
from nashtune.errors import SamplingError
from nashtune.recipe import VllmSection
from nashtune.sampling.on_vllm.place import VARIABLE, interpreter, version_in

ENGINES = {"native": "torch", "remote": "openai"}
EXTRAS = {
    "hub data sets": "datasets",
    "GGUF files": "gguf",
    "LoRA": "peft",
    "8-bit moments, QLoRA": "bitsandbytes",
    "Liger kernels": "liger_kernel",
    "IFEval and IFBench": "nltk",
    "lm-evaluation-harness": "lm_eval",
}


def examine() -> dict[str, Any]:
    """Devices, memory, engines, optional parts and caches, as names and values."""
    import torch

    from nashtune.model.loading import bf16_is_fast, cache_folder, default_device

    memory = psutil.virtual_memory()
    found = describe_environment()
    return {
        "machine": {
            "processor": found["cpu"]["model"],
            "cores": os.cpu_count(),
            "memory": f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GB free",
            "disk here": f"{shutil.disk_usage(Path.cwd()).free / 2**30:.0f} GB free",
        },
        "torch": {
            "version": torch.__version__,
            "device": str(default_device()),
            "GPUs": ", ".join(found["gpus"]) or "none",
            "threads": torch.get_num_threads(),
            "bfloat16": "fast: sampling and training use it" if bf16_is_fast() else "slow: float32 is used",
        },
        "engines": {name: _installed(module) for name, module in ENGINES.items()} | {"vllm": _vllm()},
        "optional": {name: _installed(module) for name, module in EXTRAS.items()},
        "caches": {"converted models": _cache(cache_folder()), "hub": _cache(_hub_cache())},
        "keys": {name: "set" if os.environ.get(name) else "not set" for name in ("OPENAI_API_KEY", "HF_TOKEN")},
    }


def _installed(module: str) -> str:
    if importlib.util.find_spec(module) is None:
        return "not installed"
    return package_version(module) or "installed"


def _vllm() -> str:
    """The version of vLLM that the interpreter named by the environment has, or this one."""
    try:
        python = interpreter(VllmSection())
        found = version_in(python)
    except SamplingError as error:  # a wrong interpreter is told, and the rest of the machine still examined
        return str(error)
    where = "in this environment" if str(python) == sys.executable else f"by {python}"
    if found is None:
        return f"not installed {where}; ${VARIABLE} names the interpreter of an environment that has it"
    return f"{found} {where}"


def _cache(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder} (empty)"
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file() and not f.is_symlink())
    return f"{folder} ({size / 2**30:.1f} GB)"


def _hub_cache() -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)
