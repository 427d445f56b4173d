"""Oracles by name, as a recipe picks them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from nashtune.judging.oracle import Oracle
from nashtune.judging.rules import RulesOracle
from nashtune.judging.scripted import ScriptedOracle
from nashtune.recipe import Oracle as OracleSection
from nashtune.recipe import RubricOracle as RubricSection
from nashtune.recipe import RulesOracle as RulesSection

if TYPE_CHECKING:
    from nashtune.store.ledger import Ledger


def open_oracle(section: OracleSection, ledger: Callable[[], Ledger]) -> Oracle:
    """The oracle a recipe describes; paid ones open the ``ledger`` and account for their calls in it."""
    if isinstance(section, RulesSection):
        return RulesOracle(section)
    if isinstance(section, RubricSection):
        from nashtune.judging.dispatch import Dispatcher
        from nashtune.judging.rubric import RubricOracle

        return RubricOracle(section, Dispatcher(section.engine, ledger()))
    return ScriptedOracle(section)


def oracle_needs(section: OracleSection) -> frozenset[str]:
    """Policies under which the oracle wants to know the candidates' log-probs, without opening it."""
    fluency = isinstance(section, RulesSection) and section.guard.min_fluency is not None
    return frozenset({"0"} if fluency else ())
