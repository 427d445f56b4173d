"""A SkyPilot task that runs a recipe on machines of any cloud.

Facts used, from SkyPilot's documentation of its YAML, of multi-node jobs and of volumes: `run` is executed on every machine,
with SKYPILOT_NODE_RANK; `~/sky_templates/ray/start_cluster` makes a Ray cluster of the task's machines, whose head listens on
port 6379; `workdir` is copied to the machines, and `setup` and `run` are executed in it; a volume outlives the machines; a
null secret is taken from the caller (`--secret NAME`); `job_recovery` holds for managed jobs (`sky jobs launch`).
"""

from __future__ import annotations

from typing import Any

import yaml

from nashtune.launching.kuberay import MOUNT, _Dumper
from nashtune.launching.place import Place

RAY = "127.0.0.1:6379"
RESTARTS = 3
HEADER = """\
# Run with:   sky jobs launch {file}{secrets}      (or: sky launch, without recovery)
# The volume {volume!r} must exist (sky volumes apply){shared}: the run folder lies there, so that
# machines found anew after a preemption go on where those before stopped.
"""


def skypilot_task(
    place: Place,
    *,
    gpu: str | None,
    volume: str,
    infra: str | None,
    spot: bool,
    cpus: int | None,
    setup: tuple[str, ...],
    file: str,
) -> str:
    """The task. ``gpu``: SkyPilot's name of the accelerator, where the machines have some."""
    recipe = str(place.recipe_file)
    resources: dict[str, Any] = {}
    if infra is not None:
        resources["infra"] = infra
    if gpu is not None:
        resources["accelerators"] = f"{gpu}:{place.gpus_per_node}"
    if cpus is not None:
        resources["cpus"] = f"{cpus}+"
    if spot:
        resources["use_spot"] = True
    resources["job_recovery"] = {"max_restarts_on_errors": RESTARTS}
    launcher = "ray" if place.nodes > 1 else "local"
    run = place.command(recipe, launcher) + f" folder={MOUNT}/runs"
    if launcher == "ray":
        run = (
            "~/sky_templates/ray/start_cluster\n"
            f'if [ "$SKYPILOT_NODE_RANK" = 0 ]; then\n  export RAY_ADDRESS={RAY}\n  {run}\nfi\n'
        )
    task: dict[str, Any] = {"name": place.name, "num_nodes": place.nodes, "workdir": ".", "resources": resources}
    task["envs"] = {"HF_HOME": f"{MOUNT}/hub"} | {name: value for name, value in place.env if value is not None}
    asked = [name for name, value in place.env if value is None]
    if asked:
        task["secrets"] = dict.fromkeys(asked)
    task["volumes"] = {MOUNT: volume}
    task["setup"] = "\n".join(["set -e", *setup]) + "\n"
    task["run"] = run if run.endswith("\n") else f"{run}\n"
    header = HEADER.format(
        file=file,
        volume=volume,
        secrets="".join(f" --secret {name}" for name in asked),
        shared=" and be mountable by all machines at once" if place.nodes > 1 else "",
    )
    return header + yaml.dump(task, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
