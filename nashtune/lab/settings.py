"""A lab file: which recipe, which methods, which seeds; and the recipe of each run that follows from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, ValidationError, model_validator

from nashtune.errors import RecipeError
from nashtune.recipe import METHODS, Recipe, Section, parse_recipe
from nashtune.recipe.loading import read_yaml
from nashtune.recipe.methods import over

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]+$")]

ALIKE = ("policy", "prompts", "iterations", "validate", "validation_oracle")
"""What every method of a lab has in common, or the contests would not be the same."""
OWN = ("name", "folder", "seed", "ledger", "shared")
"""Settings of a recipe that the lab decides."""


class Lab(Section):
    """A comparison of methods: one initial policy, the same prompts, samples and judgments shared where they coincide."""

    name: Name
    """Name of the lab: its folder under `folder`."""
    folder: str = "labs"
    """Where lab folders live."""
    base: str | dict[str, Any]
    """The recipe that all methods start from: a file (beside this one, or from here), or the settings themselves."""
    over: dict[str, Any] = Field(default_factory=dict)
    """Settings laid over the base for all methods, under each method's preset and own settings."""
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    """Each method is run once with each seed (recipe.seed)."""
    baseline: str
    """The method that the others are compared with, prompt by prompt."""
    methods: dict[Name, dict[str, Any]] = Field(min_length=1)
    """By the name each goes by in the table: settings laid over the base. `method` names a preset (`nashtune methods`), which
    lies between the two."""
    keep: Literal["all", "best"] = "all"
    """Which policies stay on disk once a run is finished: all of them, or the best of each run."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    """Level of the intervals."""

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if self.baseline not in self.methods:
            raise ValueError(f"baseline {self.baseline!r} is none of the methods; accepted: {', '.join(self.methods)}")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds {list(self.seeds)} repeat; accepted: different ones")
        return self

    @property
    def place(self) -> Path:
        """The lab's folder."""
        return Path(self.folder).expanduser() / self.name


def load_lab(path: str | Path) -> tuple[Lab, dict[tuple[int, str], Recipe]]:
    """Read a lab file -> the lab, and the recipe of each (seed, method), seed by seed.

    Raises RecipeError naming file, field, value and what is accepted, for the lab, for each method's recipe, and where
    methods differ in what they must have in common.
    """
    path = Path(path)
    raw = read_yaml(path, "lab")
    try:
        lab = Lab.model_validate(raw)
    except ValidationError as error:
        lines = (
            f"{'.'.join(map(str, e['loc'])) or 'lab'}: {e['msg']} (received {e['input']!r})" for e in error.errors()
        )
        raise RecipeError("\n".join(f"{path}: {line}" for line in lines)) from None
    base = over(_base(lab, path), lab.over)
    recipes = {
        (seed, method): parse_recipe(_settings(lab, base, method, seed), f"{path}: methods.{method}")
        for seed in lab.seeds
        for method in lab.methods
    }
    _check_alike(lab, recipes, path)
    return lab, recipes


def _base(lab: Lab, path: Path) -> dict[str, Any]:
    if isinstance(lab.base, dict):
        return lab.base
    places = [path.parent / lab.base, Path(lab.base).expanduser()]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise RecipeError(f"{path}: base {lab.base!r}: no such recipe file; looked at {', '.join(map(str, places))}")
    return read_yaml(file, "recipe")


def _settings(lab: Lab, base: Mapping[str, Any], method: str, seed: int) -> dict[str, Any]:
    """One run's recipe as written: the base, over it the method's preset, over that the lab's own settings."""
    own = lab.methods[method]
    preset = METHODS.get(own["method"]) if isinstance(own.get("method"), str) else None
    written = over(over(base, preset.settings), own) if preset else over(base, own)
    for where, settings in ((f"methods.{method}", own), ("over", lab.over)):
        if taken := [key for key in OWN if key in settings]:
            raise RecipeError(f"{where}: {', '.join(taken)} cannot be set here; accepted: what the lab does not decide")
    return written | {
        "name": method,
        "seed": seed,
        "folder": str(lab.place / f"seed-{seed}"),
        "ledger": str(lab.place / "ledger.sqlite"),
        "shared": str(lab.place / "shared"),
    }


def _check_alike(lab: Lab, recipes: Mapping[tuple[int, str], Recipe], path: Path) -> None:
    seed = lab.seeds[0]
    base = _common(recipes[seed, lab.baseline])
    teachers = {m: t for m in lab.methods if (t := recipes[seed, m].teacher).kind != "none"}
    if odd := next((m for m, t in teachers.items() if t != next(iter(teachers.values()))), None):
        raise RecipeError(
            f"{path}: methods.{odd}: teacher is {teachers[odd].model_dump()!r}, but another in {next(iter(teachers))}; accepted: "
            "one teacher for all methods, or kind none"
        )
    for method in lab.methods:
        mine = _common(recipes[seed, method])
        for key in ALIKE:
            if mine[key] != base[key]:
                raise RecipeError(
                    f"{path}: methods.{method}: {key} is {mine[key]!r}, but {base[key]!r} in {lab.baseline}; accepted: the same "
                    "for all methods, or their contests would not be the same (validate.oracle lets a method judge itself "
                    "in training alone)"
                )


def _common(recipe: Recipe) -> dict[str, Any]:
    values = recipe.identity()
    validate = {key: value for key, value in values["validate"].items() if key != "oracle"}
    return values | {"validate": validate, "validation_oracle": recipe.validation_oracle.model_dump(mode="json")}
