"""Where vLLM runs: which interpreter, which devices, which cores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from nashtune.environment import gpus
from nashtune.errors import SamplingError
from nashtune.recipe import HostedSection, SamplingSection, VllmProcessSection
from nashtune.sampling.on_vllm.process import CHILD, environment_of, missing

VARIABLE = "NASHTUNE_VLLM_PYTHON"
CORES = "NASHTUNE_VLLM_CORES"
DEVICES = "CUDA_VISIBLE_DEVICES"


def interpreter(section: VllmProcessSection) -> Path:
    """The Python that has vLLM: the recipe's, else $NASHTUNE_VLLM_PYTHON, else this one. Raises SamplingError for a file that
    cannot be run."""
    named = section.python or os.environ.get(VARIABLE)
    python = Path(named or sys.executable).expanduser()
    if not os.access(python, os.X_OK) or python.is_dir():
        source = f"{section.place}.python" if section.python else f"${VARIABLE}"
        raise SamplingError(f"{source}: {python} is not a program; accepted: a Python interpreter, as ENV/bin/python")
    return python.absolute()  # not resolved: an environment's python is a link, and the link is what makes it one


def version_in(python: Path) -> str | None:
    """The version of vLLM that an interpreter has; None where it has none."""
    code = f"import json, runpy; print(json.dumps(runpy.run_path({str(CHILD)!r})['greeting']()))"
    command = [str(python), "-c", code]
    found = subprocess.run(command, capture_output=True, text=True, check=False, env=environment_of(python))
    if found.returncode:
        raise SamplingError(f"sampling.vllm.python: {python} is no working Python: {found.stderr.strip()[-500:]}")
    hello = json.loads(found.stdout)
    return (hello["vllm"] or "installed") if hello["found"] else None


def check_installed(user: SamplingSection | HostedSection) -> None:
    """Raise SamplingError, before anything is computed, where the engine of a sampler or judge is vLLM and there is none."""
    if user.engine == "vllm":
        python = interpreter(user.vllm)
        if version_in(python) is None:
            raise SamplingError(missing(python, user.vllm.place))


def worker_environments(section: VllmProcessSection, workers: int, taken: int = 0) -> list[dict[str, str]]:
    """Variables of each of several engines' processes, so that none takes another's devices or cores: the GPUs visible here
    in groups of ``tensor_parallel``, the first ``taken`` left to others, and ``cpu_cores`` in equal parts. Raises SamplingError
    where there are too few GPUs."""
    found: list[dict[str, str]] = [{} for _ in range(workers)]
    if everything := visible_devices(os.environ, len(gpus())):
        devices = everything[taken:]
        wanted = workers * section.tensor_parallel
        if len(devices) < wanted:
            raise SamplingError(
                f"{section.workers} {workers} x {section.place}.tensor_parallel {section.tensor_parallel} need {wanted} GPUs; "
                f"visible here: {len(everything)}" + (f", of which the sampler has {taken}" if taken else "")
            )
        for variables, group in zip(found, _parts(devices[:wanted], workers), strict=True):
            variables[DEVICES] = ",".join(group)
    if section.cpu_cores:
        for variables, share in zip(found, _parts(section.cpu_cores, workers), strict=True):
            variables[CORES] = ",".join(map(str, share))
    return found


def visible_devices(environment: Mapping[str, str], installed: int) -> list[str]:
    """Names of the GPUs that programs started from here may use."""
    if DEVICES in environment:
        return [name.strip() for name in environment[DEVICES].split(",") if name.strip() not in ("", "-1")]
    return [str(number) for number in range(installed)]


def _parts(things: Sequence, count: int) -> list[list]:
    size = len(things) // count
    return [list(things[i * size : (i + 1) * size]) for i in range(count)]


def child_variables(section: VllmProcessSection) -> dict[str, str]:
    """Variables of the vLLM process itself: memory and cores where it runs on CPUs (a GPU build does not read them)."""
    found = {"VLLM_CPU_KVCACHE_SPACE": str(section.cpu_kv_cache_gb)}
    cores = os.environ.get(CORES) or ",".join(map(str, section.cpu_cores or ()))
    if cores:
        numbers = cores.split(",")
        groups = _parts(numbers, section.tensor_parallel)
        found |= {CORES: cores, "OMP_NUM_THREADS": str(len(groups[0])), "MKL_NUM_THREADS": str(len(groups[0]))}
        found["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(",".join(group) for group in groups)
    return found
