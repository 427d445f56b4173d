"""The recipe's objective: a section for each row of the objective table, its settings being that row's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from pydantic import Field, create_model

from nashtune.objectives import OBJECTIVES, Setting
from nashtune.objectives import Objective as Row
from nashtune.recipe.base import Section

DEFAULT_OBJECTIVE = "dno-prct"


class ObjectiveSection(Section):
    """What training minimises: a row of the objective table (`nashtune objectives`) and its settings."""

    name: str
    """Name of the objective."""

    @property
    def row(self) -> Row:
        """The objective's formula, loss and references."""
        return OBJECTIVES[self.name]

    @property
    def settings(self) -> dict[str, float]:
        """All settings of the objective by name."""
        return self.model_dump(exclude={"name"})

    def __reduce__(self) -> Any:
        """Pickled by name: its class is made from the table's row and has no name that could be imported."""
        return _again, (self.name, self.settings)


def _section(name: str, row: Row) -> type[ObjectiveSection]:
    fields: dict[str, Any] = {"name": (Literal[name], Field(default=name, description=row.formula))}
    fields |= {key: (type(setting.default), _field(setting)) for key, setting in row.settings.items()}
    title = "".join(word.capitalize() for word in name.split("-"))
    # There is no source to read docstrings from: pydantic would look for it through all modules, half of the start-up's time.
    plain = {"use_attribute_docstrings": False}
    return create_model(
        f"{title}Objective", __base__=ObjectiveSection, __doc__=row.formula, __cls_kwargs__=plain, **fields
    )


def _field(setting: Setting) -> Any:
    """Bounds by numbers are the field's; those by another setting are ``Objective.problem``'s."""
    return Field(
        default=setting.default,
        gt=setting.above,
        ge=setting.least,
        le=None if isinstance(setting.most, str) else setting.most,
        allow_inf_nan=False if isinstance(setting.default, float) else None,
        description=setting.meaning,
    )


SECTIONS: dict[str, type[ObjectiveSection]] = {name: _section(name, row) for name, row in OBJECTIVES.items()}


def objective_section(name: str = DEFAULT_OBJECTIVE, **settings: float) -> ObjectiveSection:
    """An objective by name, from Python. Raises KeyError for an unknown name, pydantic's ValidationError for a bad setting."""
    return SECTIONS[name](name=name, **settings)


def _again(name: str, settings: dict[str, float]) -> ObjectiveSection:
    return objective_section(name, **settings)


if TYPE_CHECKING:
    Objective = ObjectiveSection
else:
    Objective = Annotated[Union[tuple(SECTIONS.values())], Field(discriminator="name")]  # noqa: UP007
