"""The judge's five degrees, and the pair of games that a model and its baseline play on one prompt."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nashtune.judging.replies import UnusableReply
from nashtune.records import Message

PATTERNS = (re.compile(r"\[\[([AB<>=]+)\]\]"), re.compile(r"\[([AB<>=]+)\]"))
"""The verdict as the judge is told to write it, and as it may have written it (config/arena-hard-v*.yaml)."""
DECISIVE = 3
"""How often a verdict of "significantly better" counts."""
SCORES: Mapping[str, float] = {
    **dict.fromkeys(("A>>B", "A>B", "B<A", "B<<A"), 1.0),
    **dict.fromkeys(("A=B", "B=A"), 0.5),
    **dict.fromkeys(("B>>A", "B>A", "A<B", "A<<B"), 0.0),
}
"""Of the answer shown as A."""


@dataclass(frozen=True, slots=True)
class Game:
    """One prompt in both orders: first the baseline as A and the model as B, then the other way round. A verdict is None where
    that order's reply was unusable, with the reason."""

    uid: str
    category: str
    model: str
    baseline: str
    judge: str
    verdicts: tuple[str | None, str | None]
    judgments: tuple[str, str]
    reason: str = ""
    shown: tuple[tuple[Message, ...], tuple[Message, ...]] = ((), ())
    """What the judge was asked, in both orders."""
    model_returned: str = ""
    cost_usd: float = 0.0

    @property
    def usable(self) -> bool:
        return None not in self.verdicts

    def scores(self) -> tuple[float | None, float | None]:
        """The model's score in each order, 1 for a win, None where unusable."""
        first, second = self.verdicts
        return None if first is None else 1 - SCORES[first], None if second is None else SCORES[second]


def known_verdict(verdict: object) -> bool:
    return isinstance(verdict, str) and verdict in SCORES


def is_decisive(verdict: str) -> bool:
    return ">>" in verdict or "<<" in verdict


def read_verdict(judgment: str, patterns: Sequence[re.Pattern[str]] = PATTERNS) -> str:
    """The last match of the first pattern that matches at all, in the upper-cased text, as upstream reads it.

    Raises UnusableReply where there is none, or where it is none of the ten ways to write a verdict ("[[A]]").
    """
    for pattern in patterns:
        if found := [match for match in pattern.findall(judgment.upper()) if match]:
            if not known_verdict(found[-1]):
                raise UnusableReply(f"the last verdict is {found[-1]!r:.20}; accepted: {', '.join(SCORES)}")
            return found[-1]
    raise UnusableReply(f"no [[verdict]] in the judge's {len(judgment)} characters")
