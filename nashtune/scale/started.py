"""A command of this machine that does not outlive the process that started it, with its output in a file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from nashtune.scale.lifetime import leave_with

GRACE_S = 40
"""torchrun gives its processes 30 s to end before it kills them, as srun does by default."""
POLL_S = 0.1


class Started:
    """The command, from the beginning of a ``with`` block until its end at the latest. ``environment`` is added to this
    process's own."""

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None):
        self.log = log
        self._command, self._environment = list(command), {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Started:
        with self.log.open("ab") as stream:
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
        """Call ``look`` again and again until the command has ended, and once more; returns its exit code."""
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
                self._process.kill()  # what it started sees that and leaves
                self._process.wait()


def tied(command: Sequence[str]) -> list[str]:
    """``command`` as one that is told to end (SIGTERM) when this process is gone, however it ended."""
    return [sys.executable, "-m", "nashtune.scale.started", str(os.getpid()), *command]


def main() -> None:
    """Run the command after the first argument, which is the process id to live as long as."""
    command = subprocess.Popen(sys.argv[2:])
    told = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: told.set())
    leave_with(int(sys.argv[1]), told.set)

    def end() -> None:
        told.wait()
        command.terminate()
        time.sleep(GRACE_S - 5)
        command.kill()

    threading.Thread(target=end, daemon=True).start()
    sys.exit(command.wait())


if __name__ == "__main__":
    main()
