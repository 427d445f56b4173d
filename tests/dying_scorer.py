"""A role that computes reference log-probs and dies of it once. Apart from the others: it loads torch."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

from nashtune.scale.units import Facts, Unit
from nashtune.store.files import create_once
from nashtune.training.reference_units import ReferenceScorer
from nashtune.training.trainee import Trainee


@dataclass(frozen=True, slots=True)
class DyingScorer(ReferenceScorer):
    """Computes reference log-probs; its process is killed once, as it has begun the first unit that it is given other than
    unit 0, and before it commits anything of it."""

    marks: Path = Path()

    def work(self, opened: Trainee, unit: Unit) -> Facts:
        (self.marks / f"{unit.index}-{os.getpid()}").touch()
        if unit.index and create_once(self.marks / "died", b""):
            os.kill(os.getpid(), signal.SIGKILL)
        return ReferenceScorer.work(self, opened, unit)
