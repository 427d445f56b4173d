"""A module run in several processes of this machine by torchrun, which starts them all again when one dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from nashtune.scale.lifetime import leave_with

RESTARTS = 3
"""How often the processes are started again after one of them died."""
GRACE_S = 40
"""torchrun gives its processes 30 s to end before it kills them."""
POLL_S = 0.1


class Torchrun:
    """The processes, from the beginning of a ``with`` block until its end at the latest. They end with this process, too,
    however it ends."""

    def __init__(self, module: str, arguments: Sequence[str], *, processes: int, threads: int, log: Path):
        self.log = log
        self._command = [sys.executable, "-m", "nashtune.scale.torchrun", str(os.getpid())]
        self._command += ["--standalone", "--local-addr", "127.0.0.1", "--nnodes", "1"]
        self._command += ["--nproc-per-node", str(processes), "--max-restarts", str(RESTARTS)]
        self._command += ["--monitor-interval", str(POLL_S), "-m", module, *arguments]
        self._environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            "TOKENIZERS_PARALLELISM": "false",
            # The store that ranks meet at would otherwise outlive them in torchrun, with what the dead left in it, on which
            # restarted ranks hang.
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        }
        if sys.platform.startswith(
            "linux"
        ):  # gloo would look this machine's name up, which may lead elsewhere or nowhere
            self._environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Torchrun:
        with self.log.open("wb") as stream:
            # A session of its own: this process decides what Ctrl-C means.
            self._process = subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self

    def watch(self, look: Callable[[], None]) -> int:
        """Call ``look`` again and again until the processes have ended, and once more; returns torchrun's exit code."""
        assert self._process is not None
        while (code := self._process.poll()) is None:
            look()
            time.sleep(POLL_S)
        look()
        return code

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()  # the ranks see that and leave
                self._process.wait()


def main() -> None:
    """torchrun itself, which stops its processes when the process whose id comes first is gone."""
    from torch.distributed.run import main as torchrun

    leave_with(int(sys.argv[1]), lambda: os.kill(os.getpid(), signal.SIGTERM))
    torchrun(sys.argv[2:])


if __name__ == "__main__":
    main()
