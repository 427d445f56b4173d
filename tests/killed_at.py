"""``python killed_at.py RUN PATTERN ARGUMENT...``: nashtune's command line, which kills itself (SIGKILL) at the first file
operation in RUN after something that matches PATTERN has appeared there. No clock and no second process decide the moment."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

OPERATIONS = {"open", "os.rename", "os.link", "os.mkdir", "os.remove", "os.rmdir", "os.listdir", "os.scandir"}


def watch(run: Path, pattern: str) -> None:
    seen, inside, looking = set(run.glob(pattern)), os.fspath(run), False

    def on_event(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal looking
        if event not in OPERATIONS or looking or not any(inside in os.fspath(a) for a in arguments[:2] if _is_path(a)):
            return
        looking = True  # looking is a file operation too
        if set(run.glob(pattern)) - seen:
            os.kill(os.getpid(), signal.SIGKILL)
        looking = False

    sys.addaudithook(on_event)


def _is_path(value: Any) -> bool:
    return isinstance(value, str | os.PathLike)


if __name__ == "__main__":
    watch(Path(sys.argv[1]), sys.argv[2])
    sys.argv[1:] = sys.argv[3:]
    from nashtune.cli import app

    app()
