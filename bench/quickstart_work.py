"""The work that the CPU tables measure: the quickstart's model and prompts."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

QUICKSTART = Path(__file__).parent.parent / "recipes" / "quickstart.yaml"


def quickstart_model() -> str:
    """The folder of the quickstart's policy."""
    from nashtune.model.loading import find_policy
    from nashtune.recipe import load_recipe

    return str(find_policy(load_recipe(QUICKSTART).policy).folder)


def quickstart_prompts(count: int) -> list[Any]:
    """Prompts of the quickstart, of all its instructions."""
    from nashtune.prompt_sets import PROMPT_SETS

    stride = 11  # a step through topics and instructions; 12 would give one instruction only
    return [item.prompt for item in islice(PROMPT_SETS["constraints"](0), 0, stride * count, stride)]


def rendered(model: str, prompts: list[Any]) -> list[list[int]]:
    """Token ids of chat prompts."""
    from transformers import AutoTokenizer

    from nashtune.model.loading import render

    tokenizer = AutoTokenizer.from_pretrained(model)
    return [render(tokenizer, prompt.messages) for prompt in prompts]
