"""A module run in several processes on each machine of a Slurm allocation: srun starts one torchrun a machine, and these meet
at the first machine.

    srun --nodes N --ntasks N [PREFIX] python -m nashtune.scale.slurm LEAST:N PROCESSES HOST:PORT ID MODULE ARGUMENTS

is what ``Srun`` runs, and what may be run by hand.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from nashtune.errors import TrainingError
from nashtune.scale.started import Started, tied
from nashtune.scale.torchrun import ENVIRONMENT, RESTARTS, run_torchrun

PORTS = range(20000, 32000)
"""Ports the torchruns meet at: below those that Linux gives to outgoing connections (32768 and up)."""
LAST_CALL_S = 30
"""How long torchruns that are enough wait for more to come (where fewer machines than asked for may train)."""


class Srun(Started):
    """The processes on the machines of the allocation that this process is in."""

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        *,
        nodes: int,
        least: int,
        processes: int,
        prefix: Sequence[str],
        log: Path,
        attempt: int = 0,
    ):
        """``attempt``: counted from 0, so that none meets what the one before left at a port."""
        job = allocation(nodes)
        port = PORTS[(int(job) * 7 + attempt) % len(PORTS)]
        command = ["srun", f"--nodes={nodes}" if least == nodes else f"--nodes={least}-{nodes}"]
        command += [f"--ntasks={nodes}"] if least == nodes else []
        command += ["--ntasks-per-node=1", "--export=ALL", "--label"]
        if cores := os.environ.get("SLURM_CPUS_PER_TASK"):
            command.append(f"--cpus-per-task={cores}")  # srun no longer takes it from sbatch by itself (Slurm 22.05)
        # With fewer machines than asked for, those left go on; else all end together, and all are started again.
        command += ["--kill-on-bad-exit=1"] if least == nodes else ["--kill-on-bad-exit=0", "--no-kill"]
        command += [*prefix, "python" if prefix else sys.executable, "-m", "nashtune.scale.slurm"]
        command += [f"{least}:{nodes}", str(processes), f"{first_host()}:{port}", f"nashtune-{job}-{attempt}"]
        super().__init__(tied([*command, module, *arguments]), log, ENVIRONMENT)


def allocation(nodes: int) -> str:
    """The Slurm job that this process is in. Raises TrainingError where it is in none, or in one of fewer machines."""
    job, held = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_JOB_NUM_NODES", "1")
    if job is None:
        raise TrainingError(
            "scale.launcher is 'slurm' but $SLURM_JOB_ID is not set, so this is no Slurm allocation; accepted: a run started by "
            "the script that `nashtune slurm RECIPE` writes, or inside salloc; or launcher 'local' or 'ray'"
        )
    if int(held) < nodes:
        raise TrainingError(
            f"scale.train_nodes is {nodes} but Slurm job {job} has {held} machines; accepted: at most {held}"
        )
    return job


def first_host() -> str:
    """The name of the allocation's first machine. Raises TrainingError where Slurm does not say it."""
    machines = os.environ.get("SLURM_JOB_NODELIST", "")
    try:
        told = subprocess.run(
            ["scontrol", "show", "hostnames", machines], capture_output=True, text=True, check=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise TrainingError(f"scontrol show hostnames {machines!r} failed ({error}); it names the machines") from error
    if not (names := told.stdout.split()):
        raise TrainingError(f"scontrol show hostnames {machines!r} named no machine")
    return names[0]


def main(arguments: Sequence[str]) -> None:
    """One machine's torchrun."""
    nodes, processes, endpoint, identity, *module = arguments
    first = os.environ.get("SLURM_NODEID", "0") == "0"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, str(max(1, cores // int(processes))))
    os.environ.update(ENVIRONMENT)
    options = ["--nnodes", nodes, "--nproc-per-node", processes, "--max-restarts", str(RESTARTS)]
    options += ["--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint, "--rdzv-id", identity]
    options += ["--rdzv-conf", f"is_host={int(first)},last_call_timeout={LAST_CALL_S}", "--monitor-interval", "0.5"]
    if name := os.environ.get("SLURMD_NODENAME"):
        options += ["--local-addr", name]
    run_torchrun([*options, "-m", *module], parent=os.getppid())


if __name__ == "__main__":
    main(sys.argv[1:])
