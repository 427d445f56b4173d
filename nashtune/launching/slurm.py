"""A Slurm batch script: the first machine runs the driver, which starts training on all machines by srun.

Facts used, from Slurm's manual pages of sbatch, srun and scontrol: `--signal=B:USR1@S` sends the signal S seconds before the
time limit to the batch shell alone, and at preemption where the cluster has PreemptParameters=send_user_signal;
`--requeue` lets a preempted job, or one whose machine failed, run again; `scontrol requeue` puts a running job back into the
queue; `--open-mode=append` keeps the log of earlier runs.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path

from nashtune.launching.place import Place

SCRIPT = """\
#!/usr/bin/env bash
{head}
# Submit with:  sbatch {script}
# The same script goes on where the run stopped: put back into the queue by itself {warning} s before the time limit and at
# preemption, or submitted again by hand.
set -euo pipefail
cd {folder}

{environment}
echo "nashtune: job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, start ${{SLURM_RESTART_COUNT:-0}}"

driver=
stop() {{ # tell the driver to end; it ends what it started, and all that is committed stays
  if [[ -n $driver ]]; then
    kill -INT "$driver" 2>/dev/null || true
    wait "$driver" || true
  fi
}}
requeue() {{
  trap '' USR1 TERM
  stop
  echo "nashtune: back into the queue"
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
}}
end() {{ # cancelled, or preempted without a warning: Slurm itself puts a preempted job back into the queue
  trap '' USR1 TERM
  stop
  exit 143
}}
trap requeue USR1
trap end TERM

set -m # job control: without it a shell starts what is in the background with SIGINT ignored
{command} &
driver=$!
wait "$driver"
"""


@dataclass(frozen=True, slots=True)
class SlurmOptions:
    """What the queue is asked for; None leaves it to the cluster."""

    time: str | None
    partition: str | None
    account: str | None
    cpus_per_node: int | None
    memory: str | None
    warning_s: int
    """Seconds before the time limit at which the run is stopped and put back into the queue."""
    container: str
    """Words put before every command, as "apptainer exec --nv IMAGE"; "" is none."""
    setup: tuple[str, ...]
    """Lines of shell before the run, as "module load cuda" or "source venv/bin/activate"."""


def slurm_script(place: Place, options: SlurmOptions, script: Path) -> str:
    """The text of ``script``, whose logs go into the folder beside it."""
    lines = {
        "job-name": place.name,
        "nodes": place.nodes,
        "ntasks-per-node": 1,
        "gpus-per-node": place.gpus_per_node or None,
        "cpus-per-task": options.cpus_per_node,
        "mem": options.memory,
        "time": options.time,
        "partition": options.partition,
        "account": options.account,
        "output": _directive(script.absolute().parent / "logs" / "%x-%j.log"),
        "open-mode": "append",
        "signal": f"B:USR1@{options.warning_s}",
    }
    head = [f"#SBATCH --{key}={value}" for key, value in lines.items() if value is not None] + ["#SBATCH --requeue"]
    recipe = place.recipe.scale
    if recipe.min_train_nodes is not None:
        head.append("#SBATCH --no-kill")
    container = shlex.split(options.container)
    prefix = [f"scale.rank_prefix={json.dumps(container)}"] if container else []
    command = f"{shlex.join(container)} " if container else ""
    command += place.command(str(place.recipe_file.absolute()), "slurm")
    if prefix:
        command += f" {shlex.join(prefix)}"
    return SCRIPT.format(
        head="\n".join(head),
        script=shlex.quote(script.name),
        warning=options.warning_s,
        folder=shlex.quote(str(Path.cwd())),
        environment="".join(f"{line}\n" for line in _environment(place, options)),
        command=command,
    )


def _directive(path: Path) -> str:
    """A path as sbatch reads it in a directive."""
    return f'"{path}"' if " " in str(path) else str(path)


def _environment(place: Place, options: SlurmOptions) -> list[str]:
    lines = ["# What the run sees: sbatch hands on the environment it was called in; these are set whatever it was."]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in place.env if value is not None]
    lines += [f': "${{{name}:?is not set where sbatch was called}}"' for name, value in place.env if value is None]
    lines += ["export TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1"]
    return [*lines, *options.setup]
