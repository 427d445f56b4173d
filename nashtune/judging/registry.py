"""Oracles by name, as a recipe picks them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from nashtune import recipe
from nashtune.judging.oracle import Oracle
from nashtune.judging.rules import RulesOracle
from nashtune.judging.scripted import ScriptedOracle

if TYPE_CHECKING:
    from nashtune.judging.chat import Chat
    from nashtune.judging.dispatch import Dispatcher, Payer
    from nashtune.judging.hosted import HostedChat
    from nashtune.records import Policy
    from nashtune.store.ledger import Ledger


@dataclass(frozen=True, slots=True)
class Resources:
    """What oracles may need of a run, made only when one asks: the ledger and who pays, the policy whose answers are judged."""

    ledger: Callable[[], Ledger | None]
    payer: Callable[[], Payer | None]
    policy: Callable[[], Policy]
    hosted: dict[str, HostedChat] = field(default_factory=dict, compare=False)
    """Models hosted for the oracles that were opened with these resources; oracles that name the same one share it."""

    def chat(self, section: recipe.Asking) -> Chat:
        """Who answers an oracle's calls."""
        if section.engine is not None:
            return self.dispatcher(section.engine)
        from nashtune.judging.hosted import Host, HostedChat

        assert section.hosted is not None
        key = section.hosted.model_dump_json()
        if key not in self.hosted:
            self.hosted[key] = HostedChat(Host(section.hosted))
        return self.hosted[key]

    def dispatcher(self, engine: recipe.EngineSection) -> Dispatcher:
        if engine.batch:
            from nashtune.judging.batch import BatchDispatcher

            return BatchDispatcher(engine, self.ledger(), self.payer())
        from nashtune.judging.dispatch import Dispatcher

        return Dispatcher(engine, self.ledger(), self.payer())


def open_oracle(section: recipe.Oracle, resources: Resources) -> Oracle:
    """The oracle a recipe describes. Raises OracleError where it cannot work (no key, no price, an unfit model)."""
    match section:
        case recipe.RulesOracle():
            return RulesOracle(section)
        case recipe.RubricOracle():
            from nashtune.judging.rubric import RubricOracle

            return RubricOracle(section, resources.chat(section))
        case recipe.CompactOracle():
            from nashtune.judging.compact import CompactOracle

            return CompactOracle(section, resources.chat(section))
        case recipe.PairwiseOracle():
            from nashtune.judging.pairwise import PairwiseOracle

            return PairwiseOracle(section, resources.chat(section))
        case recipe.SelfOracle():
            from nashtune.judging.self_oracle import SelfOracle

            return SelfOracle(section, resources.policy())
        case recipe.PeopleOracle():
            from nashtune.judging.people import PeopleOracle

            return PeopleOracle(section)
        case recipe.PanelOracle():
            from nashtune.judging.panel import PanelOracle

            members = [open_oracle(member.oracle, resources) for member in section.members]
            return PanelOracle(members, [member.weight for member in section.members], section.quorum)
        case recipe.CascadeOracle():
            return _open_cascade(section, resources)
        case recipe.RewardModelOracle():
            from nashtune.judging.reward_model import RewardModelOracle

            return RewardModelOracle(section)
        case recipe.PreferenceModelOracle():
            from nashtune.judging.preference_model import PreferenceModelOracle

            return PreferenceModelOracle(section)
        case recipe.ScriptedOracle():
            return ScriptedOracle(section)


def _open_cascade(section: recipe.CascadeOracle, resources: Resources) -> Oracle:
    from nashtune.judging.cascade import CascadeOracle

    check_gates(section)
    cheap, strong = open_oracle(section.cheap, resources), open_oracle(section.strong, resources)
    auditor = section.audit_oracle
    audit = None if section.audit == 0 else strong if auditor is None else open_oracle(auditor, resources)
    return CascadeOracle(section, cheap, strong, audit)


def check_gates(section: recipe.Oracle) -> None:
    """Raises OracleError where the fitted first stage of a cascade is not there, or below the accuracy asked of it."""
    for cascade in parts_of(section):
        if not isinstance(cascade, recipe.CascadeOracle) or cascade.min_accuracy is None:
            continue
        for part in parts_of(cascade.cheap):
            if isinstance(part, recipe.PreferenceModelOracle):
                from nashtune.judging.preference_model import check_gate

                check_gate(Path(part.folder), cascade.min_accuracy)


def parts_of(section: recipe.Oracle) -> Iterator[recipe.Oracle]:
    """An oracle and those inside it."""
    yield section
    inside: list[recipe.Oracle | None] = []
    if isinstance(section, recipe.PanelOracle):
        inside = [member.oracle for member in section.members]
    elif isinstance(section, recipe.CascadeOracle):
        inside = [section.cheap, section.strong, section.audit_oracle]
    for part in inside:
        if part is not None:
            yield from parts_of(part)


def hosted_in(section: recipe.Oracle | None) -> list[recipe.HostedSection]:
    """The models that an oracle has nashtune host, each once."""
    parts = [] if section is None else parts_of(section)
    found = [part.hosted for part in parts if isinstance(part, recipe.Asking) and part.hosted is not None]
    return list({host.model_dump_json(): host for host in found}.values())


def judges_in_batches(section: recipe.Oracle) -> bool:
    """Whether some of its calls wait to be sent together: the more judgments are wanted at once, the fewer batches."""
    engines = (part.engine for part in parts_of(section) if isinstance(part, recipe.Asking))
    return any(engine is not None and engine.batch for engine in engines)


def wants_all_at_once(section: recipe.Oracle) -> bool:
    """Whether judgments are better all wanted together than a few units at a time: batches, and people, who wait for none."""
    return judges_in_batches(section) or any(isinstance(part, recipe.PeopleOracle) for part in parts_of(section))


def oracle_needs(section: recipe.Oracle) -> frozenset[str]:
    """Policies under which the oracle wants to know the candidates' log-probs, without opening it."""
    fluency = any(isinstance(p, recipe.RulesOracle) and p.guard.min_fluency is not None for p in parts_of(section))
    return frozenset({"0"} if fluency else ())
