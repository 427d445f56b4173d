"""Who starts the processes that train, and on how many machines. Part of the section ``scale``; no setting of it changes a
result beyond floating-point rounding."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from nashtune.recipe.base import NEUTRAL, Section


class LaunchSection(Section):
    """How training is started."""

    launcher: Literal["local", "slurm", "ray"] = Field(default="local", json_schema_extra=NEUTRAL)
    """Who starts the training processes. local: torchrun on this machine (one process needs nobody); slurm: srun, inside the
    allocation that the run is in, and torchrun on each of its machines (`nashtune slurm` writes the batch script); ray: Ray
    Train, on the cluster that $RAY_ADDRESS names, else on a cluster of this machine (needs `nashtune[ray]`). With slurm and
    ray all machines need the run folder under the same path."""
    train_nodes: int = Field(default=1, ge=1, json_schema_extra=NEUTRAL)
    """Machines that train together, each with train_processes processes; more than 1 needs the launcher slurm or ray. May
    change from one attempt to the next."""
    min_train_nodes: int | None = Field(default=None, ge=1, json_schema_extra=NEUTRAL)
    """Fewest machines that training goes on with when some of train_nodes are lost (slurm and ray); null needs all of them."""
    train_timeout_s: float = Field(default=1800, ge=1, json_schema_extra=NEUTRAL)
    """Seconds in which no training process gets any further (one loads or writes a whole model, say) before training is
    stopped with an error that names the process that hangs."""
    rank_prefix: tuple[str, ...] = Field(default=(), json_schema_extra=NEUTRAL)
    """Words put before the command that srun runs on each machine, as [apptainer, exec, --nv, IMAGE] (launcher slurm)."""
