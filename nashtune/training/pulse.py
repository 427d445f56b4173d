"""Signs of life of training ranks: each leaves one in a small file again and again, and the run that watches them names the
rank that hangs.

Ranks wait for each other in every layer, so one that hangs stops them all, and what the others say when their patience ends
names nobody. A sign of life tells how far a rank has come, and whether its main thread waits for other ranks.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from nashtune.errors import TrainingError

WAITING = os.path.join("torch", "distributed")
"""A main thread somewhere below this folder of torch waits for other ranks (or is about to)."""
SILENT = 6
"""Signs of life that a rank may leave out before it counts as stopped."""

START_S = 1800.0
"""Least time for the first sign of life: machines may have to be found, and libraries loaded from a shared disk."""


def interval(timeout_s: float) -> float:
    """Seconds between signs of life."""
    return min(10.0, max(0.1, timeout_s / 30))


class Pulse:
    """One rank's signs of life, from ``start`` on."""

    def __init__(self) -> None:
        self._beats, self._at = 0, "start"

    def beat(self, at: str) -> None:
        """The rank got further: it is now ``at``."""
        self._beats += 1
        self._at = at

    def start(self, folder: Path, rank: int, size: int, every_s: float) -> None:
        """Leave signs of life in ``folder`` from now on. For the main thread."""
        main = threading.get_ident()
        file = folder / f"pulse-{rank}.json"
        partial = file.with_suffix(f".{os.getpid()}.partial")
        who = {"rank": rank, "size": size, "host": socket.gethostname(), "pid": os.getpid()}

        def leave_signs() -> None:
            while True:
                frame = sys._current_frames().get(main)
                waits, where = _place(frame)
                sign = {
                    **who,
                    "sign": time.time_ns(),
                    "beats": self._beats,
                    "at": self._at,
                    "waits": waits,
                    "where": where,
                }
                try:
                    partial.write_text(json.dumps(sign), encoding="utf-8")
                    partial.replace(file)
                except OSError:  # a full or absent disk: training itself will say so
                    pass
                time.sleep(every_s)

        threading.Thread(target=leave_signs, daemon=True, name="pulse").start()


def _place(frame: FrameType | None) -> tuple[bool, str]:
    """Whether a thread waits for other ranks, and where in nashtune it is."""
    waits, innermost = False, ""
    while frame is not None:
        file = frame.f_code.co_filename
        waits = waits or WAITING in file
        if not innermost:
            innermost = f"{os.path.basename(file)}:{frame.f_lineno} in {frame.f_code.co_name}"
        if f"{os.sep}nashtune{os.sep}" in file:
            ours = f"{os.path.basename(file)}:{frame.f_lineno} in {frame.f_code.co_name}"
            return waits, ours if ours == innermost else f"{ours}, {innermost}"
        frame = frame.f_back
    return waits, innermost


@dataclass(slots=True)
class _Heard:
    sign: dict[str, Any]
    heard_s: float
    """When the last sign of life came, by this process's clock."""
    moved_s: float
    """When the rank last got further."""


class Watch:
    """What is heard of the ranks in ``folder``; ``look`` raises where none of them has got further for ``timeout_s``."""

    def __init__(self, folder: Path, timeout_s: float):
        self._folder, self._timeout_s, self._every_s = folder, timeout_s, interval(timeout_s)
        self._heard: dict[int, _Heard] = {}
        self._begun = self._looked = time.monotonic()

    def look(self) -> None:
        """Raises TrainingError naming the rank that hangs."""
        now = time.monotonic()
        if now - self._looked < self._every_s:
            return
        late, self._looked = now - self._looked, now
        for file in self._folder.glob("pulse-*.json"):
            self._hear(file, now)
        if late > SILENT * self._every_s:  # this process itself was stopped: what it did not hear says nothing
            self._begun = now
            for heard in self._heard.values():
                heard.heard_s = heard.moved_s = now
        still = now - max((heard.moved_s for heard in self._heard.values()), default=self._begun)
        if still > (self._timeout_s if self._heard else max(self._timeout_s, START_S)):
            raise TrainingError(self._who_hangs(now, still))

    def _hear(self, file: Path, now: float) -> None:
        try:
            sign = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # replaced while it was read, over a network file system
            return
        known = self._heard.get(sign["rank"])
        if known is None or known.sign["pid"] != sign["pid"] or known.sign["host"] != sign["host"]:
            self._heard[sign["rank"]] = _Heard(sign, now, now)
            if sign["rank"] == 0:  # a world of another size: its higher ranks are yet to be heard
                self._heard = {rank: heard for rank, heard in self._heard.items() if rank < sign["size"]}
        elif sign["sign"] != known.sign["sign"]:
            moved = now if sign["beats"] != known.sign["beats"] else known.moved_s
            self._heard[sign["rank"]] = _Heard(sign, now, moved)

    def _who_hangs(self, now: float, still: float) -> str:
        ranks = [self._heard[rank] for rank in sorted(self._heard)]
        accepted = f"accepted: some progress within scale.train_timeout_s ({self._timeout_s:g} s)"
        if not ranks:
            return (
                f"no training process has begun within {still:.0f} s; accepted: {START_S:g} s or scale.train_timeout_s"
            )
        size = ranks[0].sign["size"]
        silent = [heard for heard in ranks if now - heard.heard_s > SILENT * self._every_s]
        unheard = sorted(set(range(size)) - set(self._heard))
        busy = [heard for heard in ranks if not heard.sign["waits"]]
        if silent or unheard:
            names = [f"{_name(heard)} gives no sign of life; it was at {heard.sign['at']}" for heard in silent]
            names += [f"rank {rank} never gave a sign of life" for rank in unheard]
        elif busy and len(busy) < len(ranks):
            names = [f"{_name(h)} does not get further; it is at {h.sign['at']} ({h.sign['where']})" for h in busy]
        else:
            names = [f"{_name(h)} is at {h.sign['at']} ({h.sign['where']})" for h in ranks]
        return (
            f"training has stood still for {still:.0f} s: {'; '.join(names)}. The {size} processes wait for each other; "
            f"{accepted}. They were stopped; the same command goes on from the last checkpoint"
        )


def _name(heard: _Heard) -> str:
    return f"rank {heard.sign['rank']} (host {heard.sign['host']}, process {heard.sign['pid']})"
