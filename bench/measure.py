"""Measuring: CPU seconds and peak memory of a block, parts in processes of their own, the machine. Standard library only,
so that it also serves environments that hold a peer alone."""

from __future__ import annotations

import json
import os
import platform
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

Figures = dict[str, Any]
LONGEST_PART_S = 3600


class Missing(Exception):
    """What a part needs is not on this machine; the row says so and is not a failure."""


def on_cuda() -> bool:
    """Whether this process has loaded torch and torch sees a GPU."""
    torch = sys.modules.get("torch")
    return torch is not None and torch.cuda.is_available()


def _cpu_seconds() -> float:
    """Of this process, all threads, and of its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def peak_gb() -> float:
    """Highest memory so far, GB (1e9 bytes): the GPU's as torch allocated it where there is one, else this process's own
    resident memory (VmHWM; ru_maxrss would start at the parent's)."""
    if on_cuda():
        return sys.modules["torch"].cuda.max_memory_allocated() / 1e9
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


class Meter:
    """Wall and CPU seconds of a block."""

    def __enter__(self) -> Meter:
        self._settle()
        self._cpu, self._wall = _cpu_seconds(), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self._settle()
        self.cpu, self.wall = _cpu_seconds() - self._cpu, time.perf_counter() - self._wall

    @staticmethod
    def _settle() -> None:
        if on_cuda():
            sys.modules["torch"].cuda.synchronize()

    def figures(self, tokens: int | None = None) -> Figures:
        """Seconds, peak memory and, of ``tokens``, the rates."""
        found: Figures = {"seconds": self.wall, "cpu_seconds": self.cpu, "peak_gb": peak_gb()}
        if tokens is not None:
            rates = {"tokens_per_second": tokens / self.wall, "tokens_per_cpu_second": tokens / max(self.cpu, 1e-9)}
            found |= {"tokens": tokens, **rates}
        return found


def run_json(
    command: list[str], *, threads: int | None, stdin: str = "", gpu: bool = False, timeout_s: float | None = None
) -> Figures:
    """Run a command whose last line of output is JSON; with ``threads`` threads, where given, and no GPU unless ``gpu``.
    After ``timeout_s`` it is stopped with all that it started.

    A failure is returned as ``{"failed": reason}``, so that one peer's cannot end the others' measuring.
    """
    variables = dict(os.environ) | {"TOKENIZERS_PARALLELISM": "false"}
    if threads is not None:
        variables |= {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    if not gpu:
        variables["CUDA_VISIBLE_DEVICES"] = ""
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    group = None if timeout_s is None else 0  # one of its own, to be ended whole
    with subprocess.Popen(command, env=variables, text=True, process_group=group, **pipes) as process:
        try:
            out, err = process.communicate(stdin, timeout_s)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL) if group == 0 else process.kill()
            if isinstance(error, subprocess.TimeoutExpired):
                return {"failed": not_done(error.timeout)}
            raise
    try:
        return json.loads(out.splitlines()[-1])
    except (IndexError, ValueError):
        words = err.strip().splitlines()
        return {"failed": f"exit code {process.returncode}: {words[-1][:300] if words else 'no output'}"}


def not_done(timeout_s: float) -> str:
    """Why a part that was stopped for its time failed."""
    return f"not done in {timeout_s:.0f} s"


def cpu_flags() -> list[str]:
    """Instructions of this CPU that decide the speed of matrix products."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16")
    return [flag for flag in wanted if flag in flags]


def bf16_is_fast() -> bool:
    """Whether this machine multiplies bfloat16 matrices natively."""
    return on_cuda() or bool({"avx512_bf16", "amx_bf16"} & set(cpu_flags()))


def machine() -> dict[str, Any]:
    """Hardware and versions; names no host, user or path."""
    try:
        from nashtune.environment import describe_environment

        found = describe_environment()
    except ImportError as error:  # a copy of the tree beside a bare torch
        found = {"python": sys.version.split()[0], "platform": platform.machine(), "missing": error.name}
    found.setdefault("cpu", {})["flags"] = cpu_flags()
    return found
