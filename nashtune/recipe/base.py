"""What every part of a recipe is made of, and which of its fields decide results."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue
from pydantic.fields import FieldInfo

NEUTRAL: dict[str, JsonValue] = {"neutral": True}
"""Marks a field that changes no result: its value may change under a run."""
ADDED: dict[str, JsonValue] = {"added": True}
"""Marks a field that came after the first release: left at its default it does not count, so that runs begun before it go on."""
Rate = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A part of the recipe: frozen; unknown keys and numbers that are not finite are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


def identity(section: Section) -> dict[str, Any]:
    """A section without neutral fields, those of sections inside it included: what decides results."""
    return {
        info.alias or name: _identity(getattr(section, name))
        for name, info in type(section).model_fields.items()
        if _counts(info, getattr(section, name))
    }


def uncounted(section: Section) -> dict[str, Any]:
    """What ``identity`` leaves out, as pydantic's ``model_dump(exclude=...)`` takes it."""
    left_out: dict[str, Any] = {}
    for name, info in type(section).model_fields.items():
        value = getattr(section, name)
        if not _counts(info, value):
            left_out[name] = True
        elif isinstance(value, Section) and (inner := uncounted(value)):
            left_out[name] = inner
    return left_out


def _counts(info: FieldInfo, value: Any) -> bool:
    marks = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
    if marks.get("added"):
        return _identity(value) != _identity(info.get_default(call_default_factory=True))
    return not marks.get("neutral")


def _identity(value: Any) -> Any:
    if isinstance(value, Section):
        return identity(value)
    return [_identity(item) for item in value] if isinstance(value, tuple | list) else value
