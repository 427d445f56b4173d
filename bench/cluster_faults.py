"""Two mistakes that a cluster would make by itself if it could, to see that they are found: a seed that depends on the process,
and ranks that all take the same part of a batch."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def seeds_by_process() -> None:
    """Ray's worker_process_setup_hook: answers are drawn with the process's own seeds."""
    from nashtune.sampling import role
    from nashtune.seeds import seed_for

    def seeded(*parts: object) -> int:
        return seed_for(os.getpid(), *parts)

    role.seed_for = seeded  # type: ignore[assignment]


def first_half(self: Any, items: Sequence[Any]) -> Sequence[Any]:
    """In place of World.share, where ranks share a batch (of the reference log-probs each must do its own)."""
    if not sys._getframe(1).f_globals["__name__"].endswith("training.steps"):
        return items[self.rank :: self.size]
    return items[: (len(items) + self.size - 1) // self.size]


if __name__ == "__main__":  # in place of nashtune.training.rank
    from nashtune.training.rank import main
    from nashtune.training.world import World

    World.share = first_half  # type: ignore[assignment]
    main(Path(sys.argv[1]))
