"""What a run was made with: package versions, git revision, hardware. No torch import: versions come from metadata."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

PACKAGES = (
    "nashtune",
    "torch",
    "transformers",
    "tokenizers",
    "peft",
    "datasets",
    "gguf",
    "openai",
    "pyarrow",
    "pydantic",
    "numpy",
    "ray",
)


def describe_environment() -> dict[str, Any]:
    """Versions, revision and hardware as JSON values. Names no user, host or path."""
    return {
        "python": sys.version.split()[0],
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "packages": {name: found for name in PACKAGES if (found := package_version(name))},
        "git": git_revision(Path(__file__).parent),
        "cpu": {
            "model": cpu_model(),
            "cores": os.cpu_count(),
            "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        },
        "gpus": gpus(),
    }


def package_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def git_revision(folder: Path) -> str | None:
    """The checkout's commit, with ``+dirty`` where tracked files differ; None outside a checkout."""
    if not shutil.which("git"):
        return None
    head = subprocess.run(["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if head.returncode:
        return None
    status = ["git", "-C", str(folder), "status", "--porcelain", "--untracked-files=no"]
    dirty = subprocess.run(status, capture_output=True, text=True, check=False).stdout.strip()
    return head.stdout.strip() + ("+dirty" if dirty else "")


def cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def gpus() -> list[str]:
    """Names and memory of the GPUs that nvidia-smi lists."""
    if not shutil.which("nvidia-smi"):
        return []
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    found = subprocess.run(query, capture_output=True, text=True, check=False)
    return [line.strip() for line in found.stdout.splitlines()] if found.returncode == 0 else []
