"""A training job's ranks under Ray Train: ``python -m nashtune.training.ray_ranks FOLDER`` (needs ``nashtune[ray]``).

Ray places the ranks on its machines, brings them together and starts all again when one dies; everything else is as under
torchrun: the job, the steps taken, refusals and signs of life are files in the job's folder, which all machines share.
"""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

from nashtune.errors import TrainingError
from nashtune.scale.torchrun import ENVIRONMENT, RESTARTS
from nashtune.store.files import write_atomic
from nashtune.training.launch import FAILURE, JOB, Order


def main(folder: Path) -> None:
    """Train the job in ``folder`` on the Ray cluster of scale.ray.address, of $RAY_ADDRESS, or on one of this machine."""
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # at which Ray Train ends the ranks
    order: Order = pickle.loads((folder / JOB).read_bytes())
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer
    except ImportError as error:
        missing = TrainingError(
            f"scale.launcher is 'ray' but {error.name} is not installed; pip install 'nashtune[ray]'"
        )
        write_atomic(folder / FAILURE, pickle.dumps(missing))
        sys.exit(1)
    from nashtune.training.world import BACKENDS, GRACE

    # Ranks import nashtune as this process does, wherever the cluster's processes were started.
    paths = os.pathsep.join(path for path in (*sys.path, os.environ.get("PYTHONPATH", "")) if path)
    address = order.scale.ray.address  # null: the cluster that $RAY_ADDRESS names, else one of this machine
    ray.init(address=address, runtime_env={"env_vars": {**ENVIRONMENT, "PYTHONPATH": paths}})
    scale, gpus = order.scale, ray.cluster_resources().get("GPU", 0) > 0
    least = (scale.min_train_nodes or scale.train_nodes) * scale.train_processes
    trainer = TorchTrainer(
        rank,
        train_loop_config={"folder": str(folder)},
        torch_config=TorchConfig(
            backend=BACKENDS if gpus else "gloo", timeout_s=int(scale.train_timeout_s + GRACE.total_seconds())
        ),
        scaling_config=ScalingConfig(
            num_workers=scale.ranks if least == scale.ranks else (least, scale.ranks),
            use_gpu=gpus,
            resources_per_worker={"CPU": 1, "GPU": 1} if gpus else {"CPU": order.threads},
        ),
        run_config=RunConfig(
            name="ranks", storage_path=str(folder / "ray"), failure_config=FailureConfig(max_failures=RESTARTS)
        ),
    )
    trainer.fit()
    shutil.rmtree(folder / "ray", ignore_errors=True)


def rank(config: dict[str, Any]) -> None:
    """What Ray runs in each rank."""
    from nashtune.training.rank import work

    work(Path(config["folder"]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
