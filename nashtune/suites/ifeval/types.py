"""The types of instructions a benchmark has: each a check of an answer, the schema of its kwargs and what it needs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from nashtune.judging.instruction_kinds import Kind, make_kind


def _whole(value: Any) -> Any:
    """Some published files write whole numbers as 4.0."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"not a regular expression, as which the reference reads it: {error}") from None
    return pattern


Whole = Annotated[int, BeforeValidator(_whole), Field(ge=0)]
Positive = Annotated[int, BeforeValidator(_whole), Field(ge=1)]
Text = Annotated[str, Field(min_length=1)]
Pattern = Annotated[str, Field(min_length=1), AfterValidator(_compiles)]
"""The references search keywords as regular expressions, unescaped."""


@dataclass(frozen=True, slots=True)
class InstructionType:
    """One type: ``kind`` holds its check and the schema of its kwargs, ``needs`` names entries of resources.RESOURCES."""

    kind: Kind
    needs: tuple[str, ...]

    def arguments(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The kwargs without nulls (the hub's rows have every type's), validated. Raises PromptError."""
        return self.kind.arguments({name: value for name, value in kwargs.items() if value is not None})

    def follows(self, text: str, args: Mapping[str, Any]) -> bool:
        """Whether the text follows the instruction; blank text follows none."""
        return bool(text.strip()) and self.kind.check(text, **args)


class Types(dict[str, InstructionType]):
    """The types of a benchmark by their ids."""

    def add(self, name: str, *needs: str) -> Callable[[Callable[..., bool]], Callable[..., bool]]:
        """Register ``check(text, **kwargs) -> bool`` as the type ``name``."""

        def register(check: Callable[..., bool]) -> Callable[..., bool]:
            self[name] = InstructionType(make_kind(name, check), needs)
            return check

        return register
