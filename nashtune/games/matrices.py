"""Preference matrices: from files, and built in by name.

P[i, j] is the probability that action i beats action j. A game has one matrix per prompt; a prompt's actions are its own.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nashtune.errors import GameError
from nashtune.seeds import seed_for

Array = NDArray[np.float64]

TOLERANCE = 1e-6
"""How far P[i, j] + P[j, i] may be from 1, for entries written with few digits."""


@dataclass(frozen=True, slots=True)
class PromptGame:
    """One prompt: its preference matrix [n, n], its weight (relative to the other prompts'), and the initial policy [n]."""

    matrix: Array
    weight: float
    initial: Array


@dataclass(frozen=True, slots=True)
class Game:
    """Prompts with weights that sum to 1. ``contextual``: given as a list of prompts, so policies are lists of policies."""

    name: str
    prompts: tuple[PromptGame, ...]
    contextual: bool = False


# ---- from files and numbers --------------------------------------------------------------------------------------------


def preference_matrix(rows: Any, where: str) -> Array:
    """``rows`` as a matrix [n, n], n at least 2, made exactly antisymmetric around 1/2 where rounding left it within
    TOLERANCE. Raises GameError naming ``where`` and the entry."""
    if not isinstance(rows, (list, tuple, np.ndarray)) or len(rows) < 2:
        raise GameError(f"{where}: {_shown(rows)}; accepted: a list of at least 2 rows of numbers, a square matrix")
    for i, row in enumerate(rows):
        if not isinstance(row, (list, tuple, np.ndarray)) or len(row) != len(rows):
            size = f"{len(row)} entries" if isinstance(row, (list, tuple, np.ndarray)) else _shown(row)
            raise GameError(f"{where}: row {i} has {size}; accepted: {len(rows)} numbers, as many as there are rows")
        for j, value in enumerate(row):
            if not _is_number(value) or not 0 <= value <= 1:
                raise GameError(f"{where}: entry [{i}][{j}] is {_shown(value)}; accepted: a number from 0 to 1")
    matrix = np.array(rows, dtype=np.float64)
    for i in range(len(matrix)):
        if abs(matrix[i, i] - 0.5) > TOLERANCE:
            raise GameError(f"{where}: entry [{i}][{i}] is {matrix[i, i]:g}; accepted: 0.5 on the diagonal")
        for j in range(i):
            if abs(matrix[i, j] + matrix[j, i] - 1) > TOLERANCE:
                both = f"[{j}][{i}] + [{i}][{j}] = {matrix[j, i]:g} + {matrix[i, j]:g}"
                raise GameError(f"{where}: entries {both}; accepted: P(i beats j) + P(j beats i) = 1")
    return (matrix + 1 - matrix.T) / 2


def game_of(data: Any, where: str) -> Game:
    """A game from parsed JSON: a matrix; {"matrix", "initial"}; or {"prompts": [{"matrix", "weight", "initial"}, ...]}.

    ``weight`` (default 1) is relative to the other prompts'; ``initial`` is pi_1, uniform if not given. Raises GameError.
    """
    if not isinstance(data, Mapping):
        return Game(where, (PromptGame(m := preference_matrix(data, where), 1.0, _uniform(len(m))),))
    if "prompts" not in data:
        _only(data, {"matrix", "initial"}, where)
        return Game(where, (_prompt(data, where),))
    _only(data, {"prompts"}, where)
    if not isinstance(data["prompts"], list) or not data["prompts"]:
        raise GameError(f"{where}: prompts is {_shown(data['prompts'])}; accepted: a list of at least one prompt")
    prompts = []
    for i, row in enumerate(data["prompts"]):
        place = f"{where}: prompts[{i}]"
        if not isinstance(row, Mapping):
            raise GameError(f'{place} is {_shown(row)}; accepted: an object {{"matrix": ..., "weight": ...}}')
        _only(row, {"matrix", "weight", "initial"}, place)
        prompts.append(_prompt(row, place))
    return contextual(where, prompts)


def contextual(name: str, prompts: Sequence[PromptGame]) -> Game:
    """A game of several prompts; weights are divided by their sum."""
    total = sum(p.weight for p in prompts)
    return Game(name, tuple(PromptGame(p.matrix, p.weight / total, p.initial) for p in prompts), contextual=True)


def read_game(file: Path) -> Game:
    """The game of a JSON file. Raises GameError where the file cannot be read or is not a game."""
    try:
        data = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise GameError(f"{file}: cannot be read as JSON: {error}") from None
    return game_of(data, str(file))


def _prompt(row: Mapping[str, Any], where: str) -> PromptGame:
    if "matrix" not in row:
        raise GameError(f"{where}: matrix is missing; accepted: a square list of lists of P(i beats j)")
    matrix = preference_matrix(row["matrix"], f"{where}: matrix")
    weight = row.get("weight", 1.0)
    if not _is_number(weight) or not 0 < weight < math.inf:
        raise GameError(f"{where}: weight is {_shown(weight)}; accepted: a number above 0")
    return PromptGame(
        matrix,
        float(weight),
        _initial(row["initial"], len(matrix), where) if "initial" in row else _uniform(len(matrix)),
    )


def _initial(values: Any, n: int, where: str) -> Array:
    good = isinstance(values, list) and len(values) == n and all(_is_number(v) and 0 < v < 1 for v in values)
    if not good or abs(sum(values) - 1) > TOLERANCE:
        raise GameError(f"{where}: initial is {_shown(values)}; accepted: {n} probabilities above 0 that sum to 1")
    return np.array(values, dtype=np.float64) / sum(values)


def _uniform(n: int) -> Array:
    return np.full(n, 1 / n)


def _only(row: Mapping[str, Any], accepted: set[str], where: str) -> None:
    if unknown := sorted(set(row) - accepted):
        raise GameError(f"{where}: unknown key {unknown[0]!r}; accepted: {', '.join(sorted(accepted))}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool) and math.isfinite(value)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


# ---- built in ----------------------------------------------------------------------------------------------------------


def _upper(n: int, win: Callable[[int, int], float]) -> Array:
    """The matrix with P[i, j] = win(i, j) above the diagonal, asked for row by row."""
    matrix = np.full((n, n), 0.5)
    for i in range(n):
        for j in range(i + 1, n):
            matrix[i, j] = win(i, j)
            matrix[j, i] = 1 - matrix[i, j]
    return matrix


def rock_paper_scissors(rock_scissors: float, scissors_paper: float, paper_rock: float) -> Array:
    """Actions rock, paper, scissors; each argument is how far above 1/2 the first beats the second (0 to 1/2). The
    equilibrium plays each action in proportion to the margin between the other two."""
    matrix = np.full((3, 3), 0.5)
    for winner, loser, margin in ((0, 2, rock_scissors), (2, 1, scissors_paper), (1, 0, paper_rock)):
        matrix[winner, loser], matrix[loser, winner] = 0.5 + margin, 0.5 - margin
    return matrix


def _rps(_: int, rng: np.random.Generator) -> Array:
    return rock_paper_scissors(*rng.uniform(0.1, 0.5, 3))


def _cyclic(n: int, rng: np.random.Generator) -> Array:
    """On a ring, each beats those up to half-way ahead by 0.1 to 0.5; with even n the opposite one is a tie."""

    def win(i: int, j: int) -> float:
        margin = rng.uniform(0.1, 0.5)
        return 0.5 + (margin if 2 * (j - i) < n else -margin if 2 * (j - i) > n else 0.0)

    return _upper(n, win)


def _random_intransitive(n: int, rng: np.random.Generator) -> Array:
    """Independent uniform preferences, drawn again until every action is beaten by another (no Condorcet winner)."""
    while True:
        matrix = _upper(n, lambda i, j: rng.uniform())
        if ((matrix < 0.5).any(axis=1)).all():
            return matrix


def _condorcet(n: int, rng: np.random.Generator) -> Array:
    """Action 0 beats every other with 0.55 to 0.95; the rest are uniform, so that cycles below the winner are common."""
    return _upper(n, lambda i, j: rng.uniform(0.55, 0.95) if i == 0 else rng.uniform())


def _ties(n: int, rng: np.random.Generator) -> Array:
    """Each verdict is a sure win, a sure loss or a tie, a third each; equilibria are often many."""
    return _upper(n, lambda i, j: float(rng.integers(3)) / 2)


GAMES: dict[str, tuple[Callable[[int, np.random.Generator], Array], int]] = {
    "rps": (_rps, 3),
    "cyclic": (_cyclic, 5),
    "random-intransitive": (_random_intransitive, 10),
    "condorcet": (_condorcet, 5),
    "ties": (_ties, 6),
}
"""Name -> (maker, actions where the name gives none)."""


def builtin_game(name: str, seed: int = 0, prompts: int | None = None) -> Game:
    """A game by name, as "rps" or "cyclic-7" (7 actions); ``prompts`` makes it contextual, with as many matrices of
    equal weight. Raises GameError for an unknown name or a number of actions that the game cannot have."""
    found = re.fullmatch(r"(.+?)(?:-(\d+))?", name)
    kind, number = (found[1], found[2]) if found else (name, None)
    if kind not in GAMES:
        raise GameError(f"game {name!r}; accepted: {', '.join(GAMES)}, or with a number of actions as cyclic-7")
    maker, actions = GAMES[kind]
    actions = int(number) if number else actions
    if (kind == "rps" and actions != 3) or not 3 <= actions <= 200:
        raise GameError(f"game {name!r}: {actions} actions; accepted: {'3' if kind == 'rps' else '3 to 200'}")
    made = [
        PromptGame(
            maker(actions, np.random.default_rng(seed_for("game", kind, actions, seed, x))), 1.0, _uniform(actions)
        )
        for x in range(prompts or 1)
    ]
    return Game(name, tuple(made)) if prompts is None else contextual(name, made)
