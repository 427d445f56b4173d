"""A play as a table and as one JSON object."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from nashtune.errors import GameError
from nashtune.games import equilibrium
from nashtune.games.algorithms import scale_of
from nashtune.games.matrices import Array, Game
from nashtune.games.play import Play, Played

ROWS = 21
"""About as many iterations as the table shows, evenly spread, the first and the last among them."""


def shown_iterations(iterations: int) -> list[int]:
    """Policies 0 (initial) ... T that have a row."""
    return sorted({round(x) for x in np.linspace(0, iterations, min(ROWS, iterations + 1))})


def rows(played: Played) -> list[dict[str, Any]]:
    """One row per shown iteration: the policy after it, its figures, and those of the step that led to it (None at 0)."""
    bound, kl, win_rate = played.bound, played.mean("kl"), played.mean("win_rate")
    average, last = played.mean("exploitability_average"), played.mean("exploitability_last")
    return [
        {
            "iteration": t,
            "exploitability_average": float(average[t]),
            "exploitability_last": float(last[t]),
            "kl": float(kl[t - 1]) if t else None,
            "win_rate": float(win_rate[t - 1]) if t else None,
            "win_rate_bound": float(bound[t - 1]) if t and bound is not None else None,
            "distance_to_equilibria": _distance(played, [p.policies[t] for p in played.plays]),
            "policy": _policies(played.game, [p.policies[t] for p in played.plays]),
        }
        for t in shown_iterations(played.iterations)
    ]


def to_dict(played: Played) -> dict[str, Any]:
    """Everything about a play, for scripts. Policies are lists [n], or of a contextual game lists of them by prompt."""
    how, plays = played.algorithm, played.plays
    average, last = [p.average for p in plays], [p.last for p in plays]
    return {
        "game": played.game.name,
        "algorithm": how.name,
        "settings": {key: float(value) for key, value in how.settings.items()},
        "option": how.option if how.name == "dno-regularized" else None,
        "iterations": played.iterations,
        "samples": played.sampling.candidates if played.sampling else None,
        "noise": played.sampling.noise if played.sampling else None,
        "exploitability_average": float(played.mean("exploitability_average")[-1]),
        "exploitability_last": float(played.mean("exploitability_last")[-1]),
        "policy_average": _policies(played.game, average),
        "policy_last": _policies(played.game, last),
        "equilibrium": _policies(played.game, [p.equilibrium for p in plays]),
        "exploitability_equilibrium": float(
            sum(p.prompt.weight * equilibrium.exploitability(p.prompt.matrix, p.equilibrium) for p in plays)
        ),
        "distance_average": _distance(played, average),
        "distance_last": _distance(played, last),
        "regularized_equilibrium": _limits(played),
        "contraction": _contraction(played),
        "kl_last": float(played.mean("kl")[-1]),
        "cycles": played.cycles,
        "unattained": sum(p.unattained for p in plays),
        "rows": rows(played),
    }


def _policies(game: Game, policies: Sequence[Array]) -> Any:
    listed = [[float(v) for v in policy] for policy in policies]
    return listed if game.contextual else listed[0]


def _distance(played: Played, policies: Sequence[Array]) -> float:
    pairs = zip(played.plays, policies, strict=True)
    return float(
        sum(p.prompt.weight * equilibrium.distance_to_equilibria(p.prompt.matrix, policy) for p, policy in pairs)
    )


def _limit(played: Played, play: Play) -> Array | None:
    how, s, prompt = played.algorithm, played.algorithm.settings, play.prompt
    if how.name == "dno-regularized" and how.closed and how.option == "II" and s["tau"]:
        return equilibrium.option_two_limit(prompt.matrix, s["tau"], s["eta"], prompt.initial)[0]
    tau = how.limit_temperature
    return None if tau is None else equilibrium.regularized_equilibrium(prompt.matrix, tau, prompt.initial)


def _limits(played: Played) -> Any:
    """The fixed point of the regularised algorithms, known without playing; None for the others, and where tau is so small
    that rounding hides it."""
    try:
        limits = [limit for p in played.plays if (limit := _limit(played, p)) is not None]
    except GameError:
        return None
    return _policies(played.game, limits) if limits else None


def _contraction(played: Played) -> float | None:
    """The slowest prompt's factor; None for algorithms without the update it is known for, and as in _limits."""
    how, s = played.algorithm, played.algorithm.settings
    if how.name not in ("dno-regularized", "inpo") or not how.closed or not s["tau"]:
        return None
    prompts = [p.prompt for p in played.plays]
    try:
        return max(equilibrium.contraction(p.matrix, s["tau"], s["eta"], p.initial, how.option) for p in prompts)
    except GameError:
        return None


def print_play(played: Played) -> None:
    """The table of iterations, then the policies and what they mean."""
    how, found = played.algorithm, to_dict(played)
    settings = ", ".join(f"{key} {value:g}" for key, value in found["settings"].items())
    oracle = f"{found['samples']} samples, noise {found['noise']:g}" if played.sampling else "exact"
    option = f" option {how.option}" if found["option"] else ""
    table = Table(title=f"{how.name}{option} on {played.game.name} ({settings}; {oracle})")
    names = ("iteration", "expl. average", "expl. last", "KL step", "win rate", "bound (eq. 9)", "from equilibrium")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for row in found["rows"]:
        iteration, *values = (value for key, value in row.items() if key != "policy")
        table.add_row(str(iteration), *("-" if v is None else f"{max(v, 0.0):.3g}" for v in values))
    console = Console()
    console = Console(width=max(console.width, 110)) if not console.is_terminal else console
    console.print(table)
    for name, key in (("equilibrium", "equilibrium"), ("average", "policy_average"), ("last", "policy_last")):
        for x, policy in enumerate(found[key] if played.game.contextual else [found[key]]):
            label = f"{name} {x}" if played.game.contextual else name
            console.print(f"{label:<12} " + " ".join(f"{v:.4f}" for v in policy), highlight=False)
    console.print("\n".join(remarks(found)), highlight=False)


def remarks(found: dict[str, Any]) -> list[str]:
    """Sentences on what the figures mean."""
    said = [] if found["cycles"] is None else [f"the last iterate {'cycles' if found['cycles'] else 'does not cycle'}"]
    if found["contraction"] is not None:
        key = scale_of(found["algorithm"])
        means = "converges" if found["contraction"] < 1 else f"cycles; a larger {key} converges"
        said.append(
            f"near its fixed point the error changes by a factor {found['contraction']:.6g} an iteration: it {means}"
        )
    if found["unattained"]:
        said.append(f"in {found['unattained']} iterations the loss has no minimiser, so 60 Newton steps decided")
    return said
