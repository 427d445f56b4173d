"""From the words of ``nashtune games`` to a game, an algorithm and a play."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nashtune.errors import GameError
from nashtune.games.algorithms import Sampling, algorithm
from nashtune.games.matrices import Game, builtin_game, read_game
from nashtune.games.play import play

__all__ = ["algorithm", "game", "play", "sampling", "settings"]


def game(matrix: Path | None, name: str | None, prompts: int | None, seed: int) -> Game:
    """The file's game, or the built-in one; "rps" where neither is named. Raises GameError."""
    if matrix is None:
        return builtin_game("rps" if name is None else name, seed, prompts)
    if name is not None:
        raise GameError(f"--matrix {matrix} and --game {name}; accepted: one of the two")
    if prompts is not None:
        raise GameError(
            f"--prompts {prompts} with --matrix; accepted: with --game alone (a file lists its own prompts)"
        )
    return read_game(matrix)


def settings(changes: Sequence[str]) -> dict[str, float]:
    """Numbers from KEY=VALUE; true and false are 1 and 0. Raises GameError."""
    found: dict[str, float] = {}
    for change in changes:
        key, equals, text = change.partition("=")
        try:
            value = {"true": 1.0, "false": 0.0}[text] if text in ("true", "false") else float(text)
        except ValueError:
            value = None
        if not key or not equals or value is None or key in found:
            raise GameError(f"--set {change!r}; accepted: KEY=VALUE, a number or true or false, each key once")
        found[key] = value
    return found


def sampling(candidates: int | None, noise: float | None, steps: int | None) -> Sampling | None:
    """Sampled play where ``candidates`` are given. Raises GameError for its settings without it."""
    if candidates is None:
        for name, value in (("noise", noise), ("steps", steps)):
            if value is not None:
                raise GameError(f"--{name} {value:g} without --samples; accepted: with --samples alone")
        return None
    default = Sampling(candidates)
    return Sampling(candidates, default.noise if noise is None else noise, default.steps if steps is None else steps)
