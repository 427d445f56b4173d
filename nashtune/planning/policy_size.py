"""How many weights the policy has: as given, counted in its files, or read from its name."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from nashtune.errors import PlanError
from nashtune.planning.cluster import Cluster
from nashtune.planning.figures import Figure
from nashtune.planning.lengths import count_parameters
from nashtune.recipe import Recipe

SIZE = re.compile(r"(?<![\d.])(\d+(?:\.\d+)?)\s?([bBmM])(?![a-zA-Z])")


@dataclass(frozen=True, slots=True)
class Size:
    """Weights of the policy, and who says so."""

    parameters: float
    figure: Figure


def policy_size(recipe: Recipe, cluster: Cluster, folder: Path | None) -> Size:
    """Weights of the policy: as given, counted in its files, or read from its name. Raises PlanError for none of these."""
    name = "weights of the policy"
    if cluster.parameters is not None:
        return Size(cluster.parameters * 1e9, Figure(name, cluster.parameters, "billions", "given", "--parameters"))
    if folder is not None and (found := count_parameters(folder)):
        return Size(found, Figure(name, found / 1e9, "billions", "measured", "counted in the model's files"))
    if (named := size_in(recipe.policy.model)) is not None:
        return Size(named, Figure(name, named / 1e9, "billions", "recipe", f"the name {recipe.policy.model}"))
    raise PlanError(
        f"policy.model {recipe.policy.model!r} is not on this machine and its name tells no size; accepted: --parameters "
        "BILLIONS"
    )


def size_in(name: str) -> float | None:
    """Weights of a model as its name tells them ("Mistral-7B-Instruct", "smol-135M"); None where it does not."""
    match = SIZE.search(name.split("/")[-1])
    return float(match[1]) * (1e9 if match[2] in "bB" else 1e6) if match else None
