"""Is the judge worth listening to: the health of an oracle over many judgments, and the alarms it gives cause for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

from nashtune.judging import biases
from nashtune.judging.agreement import Agreement, Drift, agreement, drift
from nashtune.judging.biases import Cycles, Favour, JudgedSet, Length, Position, Spread
from nashtune.recipe import HealthSection
from nashtune.records import Judgment, Response

CONFIDENCE = 0.95
"""Level of the intervals."""
CHANCE = 0.01
"""An uneven best share with a larger p-value than this is no alarm, however uneven."""
REASONS = 5
"""Reasons of unusable judgments kept, the most frequent first."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """A measure beyond its threshold. ``name`` is the recipe's field ``health.NAME`` that holds the threshold."""

    name: str
    value: float
    threshold: float
    message: str


@dataclass(frozen=True, slots=True)
class JudgeHealth:
    """What is known of an oracle from its judgments; None where no judgment could tell."""

    judgments: int
    """Judgments looked at."""
    usable: float | None
    """Share of them with outcome "ok"."""
    unusable_reasons: Mapping[str, int]
    """The most frequent reasons of the others."""
    position: Position | None
    """Effect of the place shown; None for oracles that show no order."""
    length: Length
    """Preference for longer answers."""
    favour: Favour
    """Preference for the student, and for the judge's own model."""
    spread: Spread
    """Histogram of scores, ties."""
    cycles: Cycles | None
    """Cyclic triples; None for oracles that score, whose verdicts are an order."""
    flipped: float | None = None
    """Share of comparisons whose winner changed with the order shown; None for oracles that show one order."""
    members: float | None = None
    """Share of comparisons on which all members of a panel name one winner; None where there is no panel."""
    audit: Agreement | None = None
    """How far a cascade repeats its audit, on the prompts that had both; None where there are none."""
    drift: Drift | None = None
    """Change on anchors since the first judgments of them, where there are such."""
    alarms: tuple[Alarm, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def examine(
    judged: Iterable[tuple[Sequence[Response], Judgment]],
    thresholds: HealthSection,
    anchors: tuple[Iterable[Judgment], Iterable[Judgment]] | Drift | None = None,
) -> JudgeHealth:
    """The health over (candidates, judgment) and its alarms. ``anchors``: the first and the present judgments of answers
    that stay the same, or what has come of comparing them. Raises ValueError where candidates are not those of their judgment."""
    reasons: Counter[str] = Counter()
    sets: list[JudgedSet] = []
    for answers, judgment in judged:
        if judgment.outcome != "ok":
            reasons[judgment.reason] += 1
        # The judge's words are not looked at, and a run's worth of them would fill the memory.
        sets.append(JudgedSet.of(answers, replace(judgment, raw="")))
    found = JudgeHealth(
        judgments=len(sets),
        usable=1 - reasons.total() / len(sets) if sets else None,
        unusable_reasons=dict(reasons.most_common(REASONS)),
        position=biases.position(sets),
        length=biases.length(sets, CONFIDENCE),
        favour=biases.favour(sets, CONFIDENCE),
        spread=biases.spread(sets),
        cycles=biases.cycles(sets),
        flipped=_mean_measure(sets, "flipped"),
        members=_mean_measure(sets, "agreement"),
        audit=_audited(sets),
        drift=drift(*anchors) if isinstance(anchors, tuple) else anchors,
    )
    return replace(found, alarms=tuple(find_alarms(found, thresholds)))


def _mean_measure(sets: Sequence[JudgedSet], name: str) -> float | None:
    """Mean over answers of a measure that the oracle gave with its judgments."""
    known = [v for s in sets for v in s.judgment.measures.get(name, ()) if v is not None]
    return fmean(known) if known else None


def _audited(sets: Sequence[JudgedSet]) -> Agreement | None:
    """A cascade's own verdicts held against those of its audit, which it keeps side by side."""
    both = [s.judgment for s in sets if {"audit", "cascade"} <= s.judgment.measures.keys()]
    if not both:
        return None
    first, second = ([replace(j, scores=j.measures[name], matrix=None) for j in both] for name in ("audit", "cascade"))
    return agreement(first, second, CONFIDENCE)


def find_alarms(health: JudgeHealth, thresholds: HealthSection) -> Iterator[Alarm]:
    """Measures beyond their thresholds, on at least ``min_sets`` judgments. Preferences and position also have to be
    more than chance. Self-preference has no alarm: that a model beats weaker ones is what one expects of it."""
    if health.judgments < thresholds.min_sets:
        return
    if health.usable is not None and health.usable < thresholds.min_usable:
        yield Alarm(
            "min_usable",
            health.usable,
            thresholds.min_usable,
            f"only {health.usable:.0%} of {health.judgments:,} judgments are usable"
            + "".join(f"; most often: {reason[:120]}" for reason in list(health.unusable_reasons)[:1]),
        )
    yield from _position_alarm(health.position, thresholds)
    yield from _length_alarm(health.length, thresholds)
    if health.flipped is not None and health.flipped > thresholds.max_flips:
        message = f"{health.flipped:.0%} of the comparisons change their winner with the order shown"
        yield Alarm("max_flips", health.flipped, thresholds.max_flips, message)
    audit = health.audit.balanced_accuracy if health.audit else None
    if audit and audit.n >= thresholds.min_sets and audit.high < thresholds.min_audit_agreement:
        message = f"the cascade repeats {audit.value:.0%} of its audit's verdicts on {audit.n:,} prompts"
        yield Alarm("min_audit_agreement", audit.value, thresholds.min_audit_agreement, message)
    equal, cycles, moved = health.spread.equal_sets, health.cycles, health.drift
    if equal is not None and health.spread.sets >= thresholds.min_sets and equal > thresholds.max_equal_sets:
        message = f"the judge tells no answer from another in {equal:.0%} of {health.spread.sets:,} sets"
        yield Alarm("max_equal_sets", equal, thresholds.max_equal_sets, message)
    if cycles and cycles.triples >= thresholds.min_sets and cycles.share > thresholds.max_cycles:
        message = (
            f"{cycles.share:.0%} of {cycles.triples:,} triples are cycles (A over B over C over A; coin tosses: 25%)"
        )
        yield Alarm("max_cycles", cycles.share, thresholds.max_cycles, message)
    yield from _drift_alarm(moved, thresholds)


def _drift_alarm(moved: Drift | None, thresholds: HealthSection) -> Iterator[Alarm]:
    if moved is None or moved.mean_change is None or moved.answers < thresholds.min_sets:
        return
    change = moved.mean_change - (moved.rejudged or 0.0)
    if change > thresholds.max_drift:
        message = f"scores of the same {moved.answers:,} answers moved by {moved.mean_change:.2f} points on average"
        beside = "" if moved.rejudged is None else f" ({moved.rejudged:.2f} by being judged again at once)"
        yield Alarm("max_drift", change, thresholds.max_drift, f"{message} since they were first judged{beside}")


def _position_alarm(position: Position | None, thresholds: HealthSection) -> Iterator[Alarm]:
    if position is None or position.p is None or position.p >= CHANCE or position.sets < thresholds.min_sets:
        return
    if position.effect > thresholds.max_position_effect:
        shares = ", ".join(f"{share:.0%}" for share in position.best_share)
        yield Alarm(
            "max_position_effect",
            position.effect,
            thresholds.max_position_effect,
            f"the best answer's place is uneven: by place shown {shares} of {position.sets:,} sets (p {position.p:.2g})",
        )


def _length_alarm(length: Length, thresholds: HealthSection) -> Iterator[Alarm]:
    """In either direction: a judge that takes the shorter answer for the better one is no better."""
    share = length.preference
    if share is None or share.n < thresholds.min_sets:
        return
    limit = thresholds.max_length_preference
    for word, value, sure in (("longer", share.value, share.low > 0.5), ("shorter", 1 - share.value, share.high < 0.5)):
        if value > limit and sure:
            message = f"the {word} answer wins {value:.0%} of the decided comparisons ({share.n:,} prompts)"
            yield Alarm("max_length_preference", value, limit, message)
