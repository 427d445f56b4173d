"""A row's verifiable instructions and topic, read and checked where their kinds are defined."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from nashtune.errors import PromptError
from nashtune.judging.instructions import validate_constraint
from nashtune.prompt_values import shown, text_of
from nashtune.records import Constraint


def constraints_of(value: Any) -> tuple[Constraint, ...]:
    """A list of {kind, args} or its JSON text; arguments that are null count as not given (columnar files fill them)."""
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise PromptError(f"column 'constraints': not valid JSON: {error}") from None
    if value is None or value == "":
        return ()
    if not isinstance(value, list):
        raise PromptError(f"column 'constraints': {shown(value)}; accepted: a list of {{kind, args}}")
    found = []
    for item in value:
        if not isinstance(item, dict) or "kind" not in item or not set(item) <= {"kind", "args"}:
            raise PromptError(f"column 'constraints': {shown(item)}; accepted: {{kind, args}}")
        args = item.get("args") or {}
        if not isinstance(args, Mapping):
            raise PromptError(f"column 'constraints': args {shown(args)}; accepted: an object of named arguments")
        constraint = Constraint(str(item["kind"]), {k: v for k, v in args.items() if v is not None})
        validate_constraint(constraint)
        found.append(constraint)
    return tuple(found)


def topic_of(value: Any) -> str | None:
    """What an answer must stay on. Raises PromptError for what is no text."""
    return text_of(value, "column 'topic'") if value not in (None, "") else None
