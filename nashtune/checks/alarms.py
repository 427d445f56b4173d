"""When a judge's figures on a pairwise set are cause for alarm, by a recipe's health thresholds."""

from __future__ import annotations

from collections.abc import Iterator

from nashtune.judging.health import Alarm
from nashtune.judging.judge_quality import Quality
from nashtune.recipe import HealthSection


def quality_alarms(found: Quality, thresholds: HealthSection) -> Iterator[Alarm]:
    """Measures beyond their thresholds, on at least ``min_sets`` prompts; preferences also have to be more than chance."""
    if found.prompts < thresholds.min_sets:
        return
    counted = found.counted
    asked = counted.right + counted.wrong + counted.tie + counted.none
    usable = 1 - counted.none / asked if asked else 1.0
    if usable < thresholds.min_usable:
        message = f"{found.name}: only {usable:.0%} of {asked:,} verdicts are usable"
        yield Alarm("min_usable", usable, thresholds.min_usable, message)
    consistency = found.orders.consistency if found.orders else None
    if consistency and 1 - consistency.value > thresholds.max_flips:
        message = (
            f"{found.name}: {1 - consistency.value:.0%} of the comparisons change their verdict with the order shown"
        )
        yield Alarm("max_flips", 1 - consistency.value, thresholds.max_flips, message)
    first = found.place.first_shown if found.place and found.orders else None
    if first and not first.low <= 0.5 <= first.high and abs(first.value - 0.5) > thresholds.max_position_effect:
        message = f"{found.name}: the answer shown first wins {first.value:.0%} of the decided verdicts (even: 50%)"
        yield Alarm("max_position_effect", abs(first.value - 0.5), thresholds.max_position_effect, message)
    longer = found.length.longer_preferred
    limit = thresholds.max_length_preference
    if longer is None:
        return
    for word, value, sure in (
        ("longer", longer.value, longer.low > 0.5),
        ("shorter", 1 - longer.value, longer.high < 0.5),
    ):
        if value > limit and sure:
            message = f"{found.name}: the {word} answer wins {value:.0%} of the decided verdicts ({longer.n:,} prompts)"
            yield Alarm("max_length_preference", value, limit, message)
