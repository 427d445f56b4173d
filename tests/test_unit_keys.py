"""The name of a committed unit says what it was made from: the prompts and every setting that decides its rows, no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_chat import write_prompts

from nashtune.recipe import parse_recipe
from nashtune.run import Run
from nashtune.stages.judging import judge
from nashtune.stages.teacher import sample


def recipe(folder: Path) -> dict[str, Any]:
    return {
        "name": "keys",
        "folder": str(folder / "runs"),
        "iterations": 1,
        "policy": {"model": "none"},
        "prompts": {"source": str(write_prompts(folder / "prompts.jsonl", 20)), "validation": {"count": 4}},
        "sampling": {"engine": "scripted", "k": 3, "unit_prompts": 8},
        "oracle": {"kind": "scripted"},
    }


def names(folder: Path, change: dict[str, Any]) -> dict[str, list[str]]:
    """Names of the units that one iteration commits."""
    raw = recipe(folder)
    for section, values in change.items():
        raw[section] = raw.get(section, {}) | values if isinstance(values, dict) else values
    with Run.open(parse_recipe(raw | {"folder": str(folder / "runs" / str(change))})) as run:
        judge(run, sample(run, 1))
        return {name: [f.name for f in run.stage(1, name).committed()] for name in ("sample", "judge")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys")


@pytest.fixture(scope="module")
def before(folder: Path) -> dict[str, list[str]]:
    return names(folder, {})


@pytest.mark.parametrize(
    ("change", "decides"),
    [
        ({"seed": 5}, {"sample", "judge"}),
        ({"sampling": {"temperature": 0.9}}, {"sample", "judge"}),
        ({"sampling": {"k": 4}}, {"sample", "judge"}),
        ({"sampling": {"defects": {"truncated": False}}}, {"sample", "judge"}),
        ({"sampling": {"unit_prompts": 4}}, {"sample", "judge"}),
        ({"prompts": {"system": "Be brief."}}, {"sample", "judge"}),
        ({"oracle": {"prefer": "longer"}}, {"judge"}),
        ({"scale": {"overlap": False}}, set()),
        ({"oracle": {"concurrency": 2}}, set()),
        ({"health": {"min_sets": 3}}, set()),
        ({"budget": {"usd": 1}}, set()),
    ],
    ids=lambda value: str(sorted(value)) if isinstance(value, set) else str(value),
)
def test_unit_names_carry_all_that_decides_their_rows(
    folder: Path, before: dict[str, list[str]], change: dict[str, Any], decides: set[str]
) -> None:
    after = names(folder, change)
    assert {stage for stage in before if not set(before[stage]) & set(after[stage])} == decides
    assert {stage for stage in before if before[stage] != after[stage]} == decides
