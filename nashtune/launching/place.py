"""What every file that starts a run elsewhere is made from: a recipe, and the machines asked for."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nashtune.errors import RecipeError
from nashtune.recipe import Recipe, load_recipe
from nashtune.recipe.loading import SECRET_NAME

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True)
class Place:
    """A run of ``recipe_file`` on ``nodes`` machines with ``gpus_per_node`` GPUs each (0: CPUs only)."""

    recipe: Recipe
    recipe_file: Path
    overrides: tuple[str, ...]
    nodes: int
    gpus_per_node: int
    env: tuple[tuple[str, str | None], ...]
    """Environment variables of the run; None takes the value that the variable has where the file is used."""

    @staticmethod
    def of(
        recipe_file: Path, overrides: Sequence[str], nodes: int, gpus_per_node: int, env: Sequence[str], launcher: str
    ) -> Place:
        """``env`` as NAME or NAME=VALUE. Raises RecipeError for what the recipe, the launcher or an option cannot be."""
        place = Place(
            load_recipe(recipe_file, overrides), recipe_file, tuple(overrides), nodes, gpus_per_node, _env(env)
        )
        load_recipe(recipe_file, [*overrides, *place.scale(launcher)])  # what the run would refuse is refused now
        return place

    @property
    def name(self) -> str:
        """The run's name as Kubernetes and SkyPilot take one: lower-case letters, digits and hyphens."""
        name = re.sub(r"[^a-z0-9]+", "-", self.recipe.name.lower()).strip("-")
        return f"nashtune-{name}"[:40].strip("-")

    def scale(self, launcher: str) -> list[str]:
        """The settings that put the recipe onto these machines; the run's results stay what they are."""
        values: dict[str, object] = {"launcher": launcher, "train_nodes": self.nodes}
        if self.gpus_per_node:
            values["train_processes"] = self.gpus_per_node
            if not any(override.startswith("scale.workers=") for override in self.overrides):
                values["workers"] = self.gpus_per_node
        return [f"scale.{key}={value}" for key, value in values.items()]

    def command(self, recipe: str, launcher: str) -> str:
        """The shell command of the run, which also goes on with it."""
        return shlex.join(["nashtune", "run", recipe, *self.overrides, *self.scale(launcher)])

    def refuse_local_files(self, mounted: str) -> None:
        """Raises RecipeError where the recipe reads a file of this machine that is not below ``mounted`` there."""
        prompts = self.recipe.prompts
        named = {"policy.model": self.recipe.policy.model, "prompts.source": prompts.source}
        named["prompts.validation.source"] = prompts.validation.source or ""
        for field, value in named.items():
            if value and not value.startswith(mounted) and Path(value).expanduser().exists():
                raise RecipeError(
                    f"{self.recipe_file}: {field} is {value!r}, a file of this machine; accepted: a name that the cluster's "
                    f"machines know too, as a hub name or a path below {mounted}"
                )

    def recipe_text(self, folder: str) -> str:
        """The recipe with overrides applied and its runs under ``folder``, for places where its file is not."""
        values: dict[str, Any] = self.recipe.written() | {"folder": folder}
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _env(given: Sequence[str]) -> tuple[tuple[str, str | None], ...]:
    found: list[tuple[str, str | None]] = []
    for text in given:
        name, sign, value = text.partition("=")
        if not NAME.fullmatch(name):
            raise RecipeError(f"--env {name!r}: accepted: NAME or NAME=VALUE, a NAME of letters, digits and _")
        if sign and SECRET_NAME.search(name):
            raise RecipeError(
                f"--env {name}=[hidden]: a secret would stand in the file; accepted: --env {name}, which is taken from the "
                "environment (Slurm), a secret of the cluster (KubeRay) or `sky ... --secret` (SkyPilot)"
            )
        found.append((name, value if sign else None))
    return tuple(found)
