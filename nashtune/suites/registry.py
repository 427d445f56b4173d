"""The suites by name, as a recipe's ``evaluate`` picks them; this file and ``recipe/evaluation.py`` list them all."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nashtune.errors import EvaluationError
from nashtune.recipe.evaluation import SuiteSection
from nashtune.suites.suite import Suite


@dataclass(frozen=True, slots=True)
class Listed:
    """Where a suite's class is, imported when it is opened; what it is and needs, for `nashtune suites`."""

    module: str
    cls: str
    summary: str
    needs: str
    source: str


SUITES: Mapping[str, Listed] = {
    "alpaca_eval": Listed(
        "nashtune.suites.alpaca_eval.suite",
        "AlpacaEval2",
        "805 instructions, compared with GPT-4 Turbo's answers; win rate, raw and length-controlled",
        "a judge that gives log-probs; scikit-learn for length control (nashtune[eval]); data from the hub or a folder",
        "arXiv 2404.04475",
    ),
    "mt_bench": Listed(
        "nashtune.suites.mt_bench.suite",
        "MtBenchSuite",
        "80 questions of two turns, rated 1 to 10, or games against a baseline's answers",
        "a judge; FastChat's data folder",
        "arXiv 2306.05685",
    ),
    "arena_hard": Listed(
        "nashtune.suites.arena_hard.suite",
        "ArenaHardSuite",
        "500 (v0.1) or 750 (v2.0) prompts against a baseline in both orders, on five degrees; raw and style-controlled",
        "a judge; upstream's data folder or the hub's and the judge's prompts; bpe-openai for published lengths (nashtune[eval])",
        "arXiv 2406.11939",
    ),
    "ifeval": Listed(
        "nashtune.suites.ifeval.suite",
        "InstructionSuite",
        "541 prompts with instructions that a program checks, of 25 types; strict and loose, by prompt and by instruction",
        "nltk with its punkt_tab data (nashtune[eval]); data from the hub or a folder",
        "arXiv 2311.07911",
    ),
    "ifbench": Listed(
        "nashtune.suites.ifeval.suite",
        "InstructionSuite",
        "300 prompts with instructions of 58 further types",
        "nltk with punkt_tab, stopwords and averaged_perceptron_tagger_eng, emoji, syllapy (nashtune[eval]); data likewise",
        "arXiv 2507.02833",
    ),
    "harness": Listed(
        "nashtune.suites.harness.suite",
        "HarnessSuite",
        "tasks of lm-evaluation-harness, by default the Open LLM leaderboard's six; regressions against the initial policy",
        "lm-evaluation-harness (nashtune[lm-eval]) here or in an environment of its own",
        "arXiv 2404.03715",
    ),
}


def suite_class(name: str) -> type[Any]:
    """Raises EvaluationError for an unknown name."""
    if name not in SUITES:
        raise EvaluationError(f"suite {name!r}; accepted: {', '.join(SUITES)}")
    return getattr(importlib.import_module(SUITES[name].module), SUITES[name].cls)


def open_suite(section: SuiteSection) -> Suite:
    """The suite with its data read. Raises EvaluationError where those are not there or bad."""
    return suite_class(section.suite_name)(section)
