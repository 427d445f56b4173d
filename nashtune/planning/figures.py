"""A number that a plan rests on, and where it comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Origin = Literal["measured", "recipe", "given", "published", "assumed", "derived"]


@dataclass(frozen=True, slots=True)
class Figure:
    """``origin``: measured on this machine or by this project; written in the recipe; given on the command line; published
    by others; assumed; or derived from other figures by a rule. ``source`` says where exactly."""

    name: str
    value: float
    unit: str
    origin: Origin
    source: str

    def __str__(self) -> str:
        return f"{self.name}: {self.value:,.4g} {self.unit} - {self.origin}: {self.source}"
