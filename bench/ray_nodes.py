"""A Ray cluster simulated on this machine: a process of its own that is told on its standard input to lose and to add nodes.

    with Nodes(2) as nodes: ... nodes.address; nodes.remove(RAYLET PID); nodes.add()

The head holds no actors; every other node offers one core and one ``sampler``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import psutil

MEMORY = 80 * 2**20
QUICK_TO_BELIEVE_A_DEATH = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": 5,
}


class Nodes:
    """The cluster, from the beginning of a ``with`` block to its end."""

    def __init__(self, count: int, before: Sequence[str] = ()):
        """``before``: a command that runs the cluster's process, as one that gives it a file system of its own."""
        command = [*before, sys.executable, str(Path(__file__)), str(count)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=quiet())
        self.address: str = ""

    def __enter__(self) -> Self:
        self.address = self._said()["address"]
        return self

    def remove(self, raylet: int) -> None:
        """Lose the node whose raylet has that process id, at once and without a word."""
        self._tell({"remove": raylet})

    def add(self) -> None:
        """One more node."""
        self._tell({"add": 1})

    def _tell(self, order: dict[str, int]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        self._said()

    def _said(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        while line and not line.startswith("{"):
            line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the cluster's process ended with code {self._process.wait()}")
        return json.loads(line)

    def __exit__(self, *_: object) -> None:
        below = psutil.Process(self._process.pid).children(recursive=True)
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        for left in psutil.wait_procs(below, timeout=20)[1]:
            left.kill()


def quiet() -> dict[str, str]:
    """The environment with Ray's reports to the outside off."""
    return {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_memory_usage_threshold": "0.99"}


def serve(count: int) -> None:
    from ray.cluster_utils import Cluster

    from nashtune.scale.lifetime import leave_with

    cluster: list[Cluster] = []

    def leave() -> None:
        for one in cluster:
            one.shutdown()
        os._exit(1)

    leave_with(os.getppid(), leave)
    plain = {"object_store_memory": MEMORY, "include_dashboard": False}
    head = {**plain, "num_cpus": 0, "_system_config": QUICK_TO_BELIEVE_A_DEATH}
    cluster.append(Cluster(initialize_head=True, head_node_args=head))
    nodes = cluster[0]
    for _ in range(count):
        nodes.add_node(num_cpus=1, resources={"sampler": 1}, **plain)
    print(json.dumps({"address": nodes.address}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        if "add" in order:
            nodes.add_node(num_cpus=1, resources={"sampler": 1}, **plain)
        else:
            nodes.remove_node(with_raylet(nodes, order["remove"]), allow_graceful=False)
        print(json.dumps({}), flush=True)
    nodes.shutdown()


def with_raylet(nodes: Any, raylet: int) -> Any:
    for node in nodes.worker_nodes:
        if any(info.process.pid == raylet for info in node.all_processes["raylet"]):
            return node
    raise SystemExit(f"no node has the raylet {raylet}")


if __name__ == "__main__":
    serve(int(sys.argv[1]))
