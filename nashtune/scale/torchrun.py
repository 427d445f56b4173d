"""A module run in several processes of this machine by torchrun, which starts them all again when one dies."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from nashtune.scale.lifetime import leave_with
from nashtune.scale.started import POLL_S, Started

RESTARTS = 3
"""How often the processes are started again after one of them died."""
ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",
    # The store that ranks meet at would otherwise outlive them in torchrun, with what the dead left in it, on which
    # restarted ranks hang.
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
}
"""What every torchrun is told."""


class Torchrun(Started):
    """The processes on this machine."""

    def __init__(self, module: str, arguments: Sequence[str], *, processes: int, threads: int, log: Path):
        command = [sys.executable, "-m", "nashtune.scale.torchrun", str(os.getpid())]
        command += ["--standalone", "--local-addr", "127.0.0.1", "--nnodes", "1"]
        command += ["--nproc-per-node", str(processes), "--max-restarts", str(RESTARTS)]
        command += ["--monitor-interval", str(POLL_S), "-m", module, *arguments]
        environment = {**ENVIRONMENT, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        if sys.platform.startswith("linux") and "GLOO_SOCKET_IFNAME" not in os.environ:
            environment["GLOO_SOCKET_IFNAME"] = "lo"  # it would look this machine's name up, which may lead nowhere
        super().__init__(command, log, environment)


def run_torchrun(arguments: Sequence[str], *, parent: int) -> None:
    """torchrun itself, in this process, which stops its processes when ``parent`` is gone."""
    from torch.distributed.run import main as torchrun

    leave_with(parent, lambda: os.kill(os.getpid(), signal.SIGTERM))
    torchrun(list(arguments))


if __name__ == "__main__":
    run_torchrun(sys.argv[2:], parent=int(sys.argv[1]))
