"""The machines that a plan is made for: what the command line gives, checked."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from nashtune.errors import PlanError
from nashtune.planning.figures import Figure
from nashtune.planning.hardware import Gpu, find_gpu

MTBF_HOURS = 6_300.0
"""Hours between unexpected failures of an 8-GPU node."""
MTBF_SOURCE = (
    "419 unexpected interruptions in 54 days on 16,384 H100 in nodes of 8 (The Llama 3 Herd of Models, 2407.21783)"
)
REPLACE_MINUTES = 10.0
BOOT_MINUTES = 2.0
MOST_TRIALS = 1_000


@dataclass(frozen=True, slots=True)
class Cluster:
    """``nodes`` machines with ``gpus`` GPUs of the type ``gpu`` each; without a type they are machines like this one, with as
    many workers as the recipe's scale.workers. None leaves a figure to the recipe, the tables or the assumptions.

    Raises PlanError for values out of range, and for options that would not be read.
    """

    nodes: int = 1
    gpus: int | None = None
    gpu: str | None = None
    train_gpus: int | None = None
    """GPUs that train; all of them by default."""
    price: float | None = None
    """USD/GPU-hour."""
    mtbf: float | None = None
    """Hours between failures of one node; inf: none fails."""
    replace_minutes: float = REPLACE_MINUTES
    """Until a lost node's successor is there."""
    boot_minutes: float | None = None
    """Until a node asked for is up. None: BOOT_MINUTES with GPUs; machines like this one are up."""
    keep_gpus: bool = False
    """Pay for the GPUs while only a judge or teacher works."""
    prompts: int | None = None
    """Of the whole run, in equal parts for its iterations."""
    parameters: float | None = None
    """Billions of weights of the policy."""
    sampling_rate: float | None = None
    """Tokens/s per GPU."""
    training_rate: float | None = None
    """Tokens/s per GPU."""
    judge_tpm: float | None = None
    """Tokens a minute that each served model takes."""
    judge_rpm: float | None = None
    """Requests a minute that each served model takes."""
    judge_gpus: int | None = None
    """GPUs of the same type that serve the judge, beside those of the nodes."""
    judge_parameters: float | None = None
    """Billions of weights of the judge on them."""
    trials: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in ("gpu", "keep_gpus", "seed") or value is None:
                continue
            none = value == 0 and field.name == "boot_minutes"  # nodes that are up already
            if math.isnan(value) or (value <= 0 and not none) or (math.isinf(value) and field.name != "mtbf"):
                raise PlanError(f"{_option(field.name)} {value:g}; accepted: a number above 0")
        if self.trials > MOST_TRIALS:
            raise PlanError(f"--trials {self.trials}; accepted: 1 to {MOST_TRIALS}")
        if self.gpu is None:
            self._refuse_without_gpu()
            return
        self.hardware()
        if self.gpus is None:
            raise PlanError(f"--gpu {self.gpu} without --gpus; accepted: the number of GPUs in each node")
        if self.train_gpus is not None and self.train_gpus > self.total_gpus:
            raise PlanError(
                f"--train-gpus {self.train_gpus}; accepted: at most the {self.total_gpus} GPUs of all nodes"
            )
        if self.judge_gpus is not None and (self.judge_tpm is not None or self.judge_rpm is not None):
            raise PlanError(
                "--judge-gpus: a judge of your own has no --judge-tpm or --judge-rpm; accepted: one or the other"
            )

    def _refuse_without_gpu(self) -> None:
        for name in ("gpus", "train_gpus", "price", "parameters", "sampling_rate", "training_rate", "judge_gpus"):
            if getattr(self, name) is not None:
                raise PlanError(
                    f"{_option(name)} without --gpu; accepted: --gpu TYPE beside it (without a type the nodes are machines like "
                    "this one, with the rates measured here)"
                )
        if self.judge_parameters is not None or self.keep_gpus:
            raise PlanError("--judge-parameters and --keep-gpus are about GPUs; accepted: --gpu TYPE beside them")

    def hardware(self) -> Gpu | None:
        return None if self.gpu is None else find_gpu(self.gpu)

    @property
    def total_gpus(self) -> int:
        return self.nodes * (self.gpus or 0)

    def mtbf_figure(self) -> Figure:
        """Hours between failures of one node. Machines like this one do not fail unless told to."""
        name = "time between failures of a node"
        if self.mtbf is not None:
            return Figure(name, self.mtbf, "hours", "given", "--mtbf")
        if self.gpu is None:
            return Figure(name, math.inf, "hours", "assumed", "machines like this one do not fail; --mtbf lets them")
        return Figure(name, MTBF_HOURS, "hours", "published", MTBF_SOURCE)

    def boot_figure(self) -> Figure:
        """Minutes until a node that is asked for is up."""
        name, unit = "booting a node", "minutes"
        if self.boot_minutes is not None:
            return Figure(name, self.boot_minutes, unit, "given", "--boot-minutes")
        if self.gpu is None:
            return Figure(
                name, 0.0, unit, "assumed", "machines like this one are up; --boot-minutes has them asked for"
            )
        how = (
            "at the run's beginning and after nodes were given back, longer waits for a queue left out; --boot-minutes"
        )
        return Figure(name, BOOT_MINUTES, unit, "assumed", how)


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
