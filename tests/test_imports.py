"""Imports run one way, and nothing that starts up fast loads torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "nashtune"

# Each layer may import itself only where it is one file or one package, and whatever stands above it.
LAYERS = [
    ["errors", "seeds", "progress", "environment", "together", "prompt_overlap"],
    ["records", "objectives"],
    ["recipe"],
    [
        "store",
        "model",
        "summaries",
        "evaluated",
        "stage",
        "prompt_sources",
        "prompt_values",
        "prompt_sets",
        "prompt_dedupe",
    ],
    ["run", "scale", "starter"],
    ["prompts", "sampling", "judging", "pairs", "training", "evaluate", "report", "games"],
    ["suites", "prompt_spill", "dynamics"],
    ["prompt_stream"],
    ["stages", "show", "catalog", "contamination", "show_evaluations"],
    ["loop", "chat", "doctor", "planning", "evaluating", "comparing", "checks", "launching"],
    ["lab"],
    ["commands"],
    ["cli"],
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
# Which parts of a lower layer a part may use within its own layer, with the reason.
ALLOWED = {
    ("prompt_sets", "judging"): "a built-in prompt names instructions that the rules oracle checks",
    ("prompts", "judging"): "a row's constraints are validated where they are defined",
    ("prompt_sources", "judging"): "a row's constraints are validated where they are defined",
    ("show", "show_evaluations"): "a run's status shows its evaluations",
    ("stage", "store"): "a stage keeps records and units",
    ("evaluated", "summaries"): "the averaged policy's place",
    ("evaluated", "store"): "figures are read as they were written",
    ("model", "store"): "a GGUF file is converted by one process at a time",
    ("sampling", "judging"): "the remote engine sends its calls through the dispatcher of paid calls",
    ("judging", "sampling"): "a hosted judge is a model behind a sampling engine",
    ("judging", "training"): "a preference model reads hidden states in the packed layout of training",
    ("loop", "planning"): "a run that will go over its budget, or cannot reach its judge, is refused before it begins",
    ("sampling", "scale"): "the sampler is a work-unit role",
    ("prompts", "prompt_sets"): "built-in sources",
    ("evaluate", "games"): "the policies of a run play a matrix game: its equilibrium",
    ("games", "report"): "games are drawn as the report's charts are",
    ("judging", "evaluate"): "a judge's biases have intervals clustered by prompt, as the contest's win rates do",
}


def imports(file: Path) -> set[str]:
    """Parts of nashtune that a file imports anywhere, TYPE_CHECKING blocks left out."""
    found = set()
    tree = ast.parse(file.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.ImportFrom)
            and node.module
            and node.module.startswith("nashtune")
            and id(node) not in typing_only
        ):
            found |= {node.module.split(".")[1]} if "." in node.module else {a.name for a in node.names}
    return found


def part_of(file: Path) -> str:
    inside = file.relative_to(ROOT).parts
    return inside[0].removesuffix(".py")


FILES = sorted(f for f in ROOT.rglob("*.py") if f != ROOT / "__init__.py")


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_imports_run_one_way(file: Path) -> None:
    part = part_of(file)
    assert part in LEVEL, f"{part} has no place in LAYERS"
    for other in imports(file) - {part}:
        ok = LEVEL[other] < LEVEL[part] or (part, other) in ALLOWED
        assert ok, f"{file.relative_to(ROOT)} imports {other}, which is not above it"


FAST = [
    "cli",
    "recipe",
    "run",
    "records",
    "objectives",
    "pairs",
    "prompts",
    "show",
    "catalog",
    "judging.rules",
    "judging.rubric",
    "judging.registry",
    "judging.reward_model",
    "judging.preference_model",
    "judging.comparisons",
    "judging.health",
    "judging.judge_quality",
    "checks.command",
    "commands.launching",
    "checks.tables",
    "stages.health",
    "evaluate.winrate",
    "evaluate.payoffs",
    "stages.export",
    "report.html",
    "planning.plan",
    "planning.scale_plan",
    "planning.show_scale",
    "games.play",
    "games.show",
    "games.plot",
]


@pytest.mark.parametrize("module", FAST)
def test_torch_is_loaded_only_where_tensors_are_touched(module: str) -> None:
    code = f"import sys, nashtune.{module}; print(sorted({{'torch', 'transformers', 'datasets'}} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert loaded == "[]"
