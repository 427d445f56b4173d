"""The payoff matrix of a run's policies, from every held-out judgment that its iterations committed."""

from __future__ import annotations

from collections.abc import Iterator

from nashtune.evaluate.payoffs import TEACHER, Judged, payoffs, tally
from nashtune.records import Judgment, Payoffs, Response
from nashtune.run import Run
from nashtune.seeds import seed_for
from nashtune.store import tables
from nashtune.summaries import AVERAGE


def payoffs_of(run: Run, iteration: int, best: int | None) -> Payoffs | None:
    """The game of pi_0 ... pi_t (for the average: all of them and itself), None where pi_t is alone. Cells of policies that no
    set held together are unknown (``validate.payoffs`` puts all together)."""
    last = run.recipe.iterations if iteration == AVERAGE else iteration
    policies = [*range(last + 1), *([AVERAGE] if iteration == AVERAGE else [])]
    if len(policies) < 2:
        return None
    tallied = tally(_judged(run, policies), len(policies))
    seed = seed_for(run.recipe.seed, "payoffs", iteration)
    return payoffs(tallied, policies, best, run.recipe.validate_.confidence, seed)


def _judged(run: Run, policies: list[int]) -> Iterator[Judged]:
    """Every held-out judgment, with whose each candidate is; by response ids, so that it does not matter which policies an
    iteration's sets held."""
    players: dict[str, int] = {}
    for place, policy in enumerate(policies):
        for response in tables.stream(Response, run.stage(policy, "validate-sample").committed()):
            players[response.id] = place
    if (teacher := run.stage(0, "validate-teacher")).file.exists():
        for response in tables.stream(Response, teacher.committed()):
            players[response.id] = TEACHER
    for policy in policies:
        for judgment in tables.stream(Judgment, run.stage(policy, "validate-judge").committed()):
            yield judgment, [players.get(response) for response in judgment.response_ids]
