"""A kind of instruction: a check of a text whose annotations are the schema of its arguments."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from nashtune.errors import PromptError


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of instruction: its name, one line about it, its check and the schema of its arguments."""

    name: str
    summary: str
    check: Callable[..., bool]
    schema: type[BaseModel]
    bounds: bool

    @property
    def accepted(self) -> str:
        """The arguments it takes, as one line for error messages."""
        schema = self.schema.model_json_schema()
        required, fields = schema.get("required", []), schema.get("properties", {})
        text = "; ".join(f"{name} ({_type_line(spec, name in required)})" for name, spec in fields.items())
        return (text or "no arguments") + ("; at_least or at_most is needed" if self.bounds else "")

    def arguments(self, received: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments, validated. Raises PromptError naming the kind, what was received and what is accepted."""
        told = f"constraint {self.name!r} with arguments {dict(received)!r}"
        try:
            args = self.schema.model_validate(dict(received)).model_dump()
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(p) for p in first["loc"])
            raise PromptError(f"{told}: {where}: {first['msg']}; accepted: {self.accepted}") from None
        low, high = args.get("at_least"), args.get("at_most")
        if self.bounds and low is None and high is None:
            raise PromptError(f"{told}: no bound is given; accepted: {self.accepted}")
        if low is not None and high is not None and low > high:
            raise PromptError(f"{told}: at_least is above at_most; accepted: {self.accepted}")
        return args


def make_kind(name: str, check: Callable[..., bool], bounds: bool = False) -> Kind:
    """The kind that ``check(text, **args)`` defines; with ``bounds``, at_least or at_most must be given."""
    hints = typing.get_type_hints(check, include_extras=True)
    fields: dict[str, Any] = {
        arg: (hints[arg], ... if p.default is p.empty else p.default)
        for arg, p in list(inspect.signature(check).parameters.items())[1:]
    }
    schema = create_model(name, __config__=ConfigDict(extra="forbid", strict=True), **fields)
    return Kind(name, (check.__doc__ or "").partition("\n")[0], check, schema, bounds)


def _type_line(spec: dict[str, Any], required: bool) -> str:
    spec = spec.get("anyOf", [spec])[0]
    parts = ["one of " + ", ".join(map(repr, spec["enum"])) if "enum" in spec else str(spec["type"])]
    parts += [f"{word} {spec[word]}" for word in ("minimum", "minLength", "minItems") if word in spec]
    return ", ".join(parts) + ("" if required else ", optional")
