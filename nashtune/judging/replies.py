"""Reading a judge's replies: one JSON object or nothing, whole scores or nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from nashtune.judging.chat import Choice, Reply
from nashtune.judging.faults import CallRefusedError
from nashtune.records import Usage

JSON_START = re.compile(r'\{\s*"')
SHOWN_VALUE = 12
"""Longest value of a reply that is repeated in an error message (characters)."""
SHOWN_KEY = 30
"""Longest key of a reply that is repeated in an error message (characters)."""
CONTENT_REFUSED = re.compile(
    r"context.?length|context.?window|too long|too many tokens|content.?(filter|policy)", re.IGNORECASE
)


class UnusableReply(Exception):
    """A reply without one score for every candidate; says why."""


def content_refusal(error: CallRefusedError) -> str:
    """The reason for an unusable judgment, where the server refused this prompt for its content or length; raises ``error``
    again where it would refuse any."""
    if not CONTENT_REFUSED.search(error.server_message):
        raise error
    return f"refused by the server: {error.server_message}"


def only_object(choice: Choice, grade_key: re.Pattern[str]) -> dict[str, Any]:
    """The one JSON object in a reply that may have prose or code fences around it. Raises UnusableReply.

    Where an object begins but does not parse, nothing after it is tried: an answer quoted inside the broken object
    could hold a complete set of grades of its own. Nor is an object believed that is followed by more grades (keys that
    ``grade_key`` matches), or has some inside: then a quotation without escapes has closed, or opened, an object in the
    judge's name. A reply that was cut off is not believed at all: a careless quotation may have closed it there.
    """
    if choice.refusal or choice.finish_reason == "content_filter":
        raise UnusableReply(f"refusal: {choice.refusal or choice.finish_reason}"[:300])
    if choice.finish_reason == "length":
        raise UnusableReply("truncated: the reply reached oracle.max_tokens")
    decoder = json.JSONDecoder(object_pairs_hook=lambda pairs: _checked(pairs, grade_key))
    found: list[dict[str, Any]] = []
    text = choice.text
    start, end = JSON_START.search(text), 0
    while start:
        try:
            value, end = decoder.raw_decode(text, start.start())
        except (ValueError, RecursionError):
            raise UnusableReply("not valid JSON") from None
        found.append(value)
        start = JSON_START.search(text, end)
    if not found:
        raise UnusableReply("no JSON object in the reply")
    if len(found) > 1:
        raise UnusableReply(f"{len(found)} JSON objects in the reply, not one")
    if grade_key.search(text, end):
        raise UnusableReply("grades after the end of the JSON object")
    return found[0]


def _checked(pairs: list[tuple[str, Any]], grade_key: re.Pattern[str]) -> dict[str, Any]:
    """An object of the reply. Raises UnusableReply where a key is given twice or an object inside it holds grades."""
    object_ = dict(pairs)
    if len(object_) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(n for n in names if names.count(n) > 1)
        named = grade_key.fullmatch(twice) and len(twice) <= SHOWN_KEY
        raise UnusableReply(f"{twice if named else 'a key'} is given more than once")
    if any(_holds_grades(value, grade_key) for value in object_.values()):
        raise UnusableReply("grades inside another value of the JSON object")
    return object_


def _holds_grades(value: Any, grade_key: re.Pattern[str]) -> bool:
    """Whether a value of an object is an object with answer keys, or a list that holds one."""
    if isinstance(value, dict):
        return any(grade_key.fullmatch(key) for key in value)  # objects further inside were looked at in their turn
    return isinstance(value, list) and any(_holds_grades(inner, grade_key) for inner in value)


def whole_score(value: Any, name: str, top: int) -> int:
    """A whole number from 0 to ``top``. Raises UnusableReply."""
    whole = isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1
    if not whole:
        raise UnusableReply(f"{name} is {shown(value)}, not a whole number")
    if not 0 <= value <= top:
        raise UnusableReply(f"{name} is {shown(value)}, out of range 0 to {top}")
    return int(value)


def shown(value: Any) -> str:
    """A value in an error message. The message goes back to the judge as ours, so a long one, which could be a
    sentence of a candidate's, is not repeated."""
    text = json.dumps(value)
    return text if len(text) <= SHOWN_VALUE else f"a value of {len(text)} characters"


def usage_of(replies: Sequence[Reply]) -> Usage:
    """Tokens and dollars of a judgment's replies."""
    return Usage(
        prompt_tokens=sum(r.prompt_tokens for r in replies),
        completion_tokens=sum(r.completion_tokens for r in replies),
        cost_usd=sum(r.cost_usd for r in replies),
        calls=len(replies),
    )
