"""From figures per candidate to the matrix of a judgment."""

from __future__ import annotations

import math
from collections.abc import Sequence

Matrix = tuple[tuple[float | None, ...], ...]


def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x)), without overflow; sigmoid(x) + sigmoid(-x) = 1 up to one rounding."""
    if x >= 0:
        return 1 / (1 + math.exp(-x))
    small = math.exp(x)
    return small / (1 + small)


def bradley_terry(rewards: Sequence[float | None]) -> Matrix:
    """P(i beats j) = sigmoid(s_i - s_j) of K rewards [K] -> [K][K]; None wherever one of the two is unknown."""
    return tuple(tuple(None if a is None or b is None else sigmoid(a - b) for b in rewards) for a in rewards)
