"""What every part of a recipe is made of, and which of its fields decide results."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue

NEUTRAL: dict[str, JsonValue] = {"neutral": True}
Rate = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A part of the recipe: frozen, and unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def identity(section: Section) -> dict[str, Any]:
    """A section without neutral fields, those of sections inside it included: what decides results."""
    return {
        info.alias or name: _identity(getattr(section, name))
        for name, info in type(section).model_fields.items()
        if not (isinstance(info.json_schema_extra, dict) and info.json_schema_extra.get("neutral"))
    }


def _identity(value: Any) -> Any:
    if isinstance(value, Section):
        return identity(value)
    return [_identity(item) for item in value] if isinstance(value, tuple | list) else value
