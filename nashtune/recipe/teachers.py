"""Who answers besides the policy: the teachers a recipe may name by `kind`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from nashtune.recipe.base import Section
from nashtune.recipe.engine import EngineSection


class NoTeacher(Section):
    """No teacher: only student-against-student pairs."""

    kind: Literal["none"] = "none"


class ColumnTeacher(Section):
    """The teacher's answers are in the prompt data (prompts.teacher_column)."""

    kind: Literal["column"]


class BestOfN(Section):
    """The best, by the oracle, of N answers of the initial policy."""

    kind: Literal["best_of_n"]
    n: int = Field(default=8, ge=2)
    """Answers sampled from the initial policy per prompt."""


class RemoteTeacher(Section):
    """A stronger model behind an OpenAI-compatible server."""

    kind: Literal["remote"]
    engine: EngineSection
    """Where the teacher answers."""
    temperature: float = Field(default=0.0, ge=0)
    """Sampling temperature of the teacher."""
    max_new_tokens: int = Field(default=1024, ge=1)
    """Longest teacher answer (tokens)."""


class ScriptedTeacher(Section):
    """Deterministic made-up answers, for tests and dry runs."""

    kind: Literal["scripted"]


Teacher = Annotated[NoTeacher | ColumnTeacher | BestOfN | RemoteTeacher | ScriptedTeacher, Field(discriminator="kind")]
