"""Made answers and the verdicts of the published code on them (bench/ifeval_agreement.py --golden)."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random

from instructed_cases import Case, Made, cases

from nashtune.errors import EvaluationError
from nashtune.suites.ifeval import resources
from nashtune.suites.ifeval.data import InstructedPrompt, Instruction
from nashtune.suites.ifeval.scores import check_answer
from nashtune.suites.ifeval.types import Types

# nltk's data come with no package of nltk's; llama-index-core has those for sentences and stop words.
if importlib.util.find_spec("nltk") and (spec := importlib.util.find_spec("llama_index")):
    import nltk

    nltk.data.path += [
        str(Path(place, "core", "_static", "nltk_cache")) for place in spec.submodule_search_locations or ()
    ]

GOLDEN = json.loads(Path(__file__).with_name("golden").joinpath("instructed.json").read_text())


def missing(types: Types, name: str) -> str:
    """Why a type cannot be checked here, "" where it can."""
    try:
        resources.require(types[name].needs)
    except EvaluationError as error:
        return str(error)
    return ""


def by_type(suite: str, makers: Mapping[str, Callable[[Random], Made]]) -> dict[str, list[tuple[Case, str]]]:
    """Each type's cases, each with the published code's digit: 0 not followed, 2 loosely, 3 strictly too, x it stops."""
    found: dict[str, list[Case]] = {}
    for case in cases(makers, GOLDEN["cases"], GOLDEN["seed"]):
        found.setdefault(case.type, []).append(case)
    return {name: list(zip(found[name], digits, strict=True)) for name, digits in GOLDEN[suite].items()}


def one(types: Types, name: str, text: str, **kwargs: object) -> tuple[bool, bool]:
    """Strict and loose."""
    prompt = InstructedPrompt("1", "?", (Instruction(name, types[name], types[name].arguments(kwargs)),))
    followed = check_answer(prompt, text)
    return followed.strict[0], followed.loose[0]
