"""The tables of docs/planning-at-scale.md: hours, dollars and waste of shipped recipes on several clusters, as Markdown.

    python bench/plan_table.py [--trials N] [--assumptions]

Each row is what `nashtune plan RECIPE OPTIONS` says; nothing is measured here. --assumptions adds what they rest on.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RECIPES = Path(__file__).parent.parent / "recipes"
PAPER: dict[str, Any] = {
    "nodes": 10,
    "gpus": 8,
    "gpu": "A100-80GB",
    "train_gpus": 16,
    "judge_tpm": 1e7,
    "prompts": 600_000,
}
LARGE: dict[str, Any] = {"nodes": 64, "gpus": 8, "gpu": "H100-80GB", "prompts": 100_000_000}
CHEAP = ("oracle.engine.model=gpt-4o-mini", "teacher.engine.model=gpt-4o-mini")
API = ("oracle.hosted=null", "oracle.engine.model=gpt-4o-mini", "oracle.engine.concurrency=4096")
SMALL = ("oracle.hosted.model=meta-llama/Llama-3.1-8B-Instruct", "oracle.hosted.vllm.tensor_parallel=1")


@dataclass(frozen=True)
class Case:
    title: str
    recipe: str
    options: dict[str, Any]
    settings: Sequence[str] = field(default=())


CASES = (
    Case("the paper's machines: 80 A100, 16 of them train; GPT-4-Turbo at 10M TPM", "paper-600k", PAPER),
    Case("the same, a barrier after each stage", "paper-600k", PAPER, ["scale.overlap=false"]),
    Case("the same, barriers, GPUs kept while the judge works", "paper-600k",
         PAPER | {"keep_gpus": True}, ["scale.overlap=false"]),
    Case("the same, 1M TPM", "paper-600k", PAPER | {"judge_tpm": 1e6}),
    Case("the same, 1M TPM, GPUs kept", "paper-600k", PAPER | {"judge_tpm": 1e6, "keep_gpus": True}),
    Case("the same, 64 GPUs train", "paper-600k", PAPER | {"train_gpus": 64}),
    Case("the same, spot nodes: one lost every 12 h", "paper-600k", PAPER | {"mtbf": 12}),
    Case("the same, spot, units of 5,000 prompts", "paper-600k", PAPER | {"mtbf": 12}, ["sampling.unit_prompts=5000"]),
    Case("the same, gpt-4o-mini judges and teaches", "paper-600k", PAPER, CHEAP),
    Case("8 H100, all of them train", "paper-600k", PAPER | {"nodes": 1, "gpu": "H100-80GB", "train_gpus": 8}),
    Case("512 H100, and 512 that host the 70B judge", "scale-100m", LARGE),
    Case("the same, an 8B judge on 128", "scale-100m", LARGE, SMALL),
    Case("the same, an 8B judge in turn with the sampler", "scale-100m", LARGE, (*SMALL, "oracle.hosted.actors=null")),
    Case("the same, spot nodes: one lost every 12 h, the 8B judge on 128", "scale-100m", LARGE | {"mtbf": 12}, SMALL),
    Case("no GPUs for the judge: gpt-4o-mini at 10M TPM", "scale-100m", LARGE | {"judge_tpm": 1e7}, API),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--assumptions", action="store_true")
    options = parser.parse_args()
    told: dict[str, None] = {}
    last = ""
    for case in CASES:
        if case.recipe != last:
            print(f"\n{case.recipe}.yaml, {case.options['prompts']:,} prompts\n")
            print("| machines | hours | GPU-hours | wasted | units redone | GPUs $ | judge and teacher $ |")
            print("| --- | --: | --: | --: | --: | --: | --: |")
            last = case.recipe
        print(row(case, options.trials, told), flush=True)
    if options.assumptions:
        print("\n" + "\n".join(f"- {line}" for line in told))


def row(case: Case, trials: int, told: dict[str, None]) -> str:
    """One line of the table; ``told`` collects what it rests on."""
    from nashtune.planning.cluster import Cluster
    from nashtune.planning.scale_plan import make_scale_plan
    from nashtune.recipe import load_recipe

    recipe = load_recipe(RECIPES / f"{case.recipe}.yaml", list(case.settings))
    plan = make_scale_plan(recipe, Cluster(**case.options, trials=trials))
    told.update(dict.fromkeys([*plan.notes, *map(str, plan.assumptions)]))
    total = plan.total
    return (
        f"| {case.title} | {total.hours:,.1f} | {total.gpu_hours:,.0f} | {100 * total.wasted:.1f} % | {total.redone_units:,.1f} "
        f"| {total.gpu_usd:,.0f} | {total.api_usd:,.0f} |"
    )


if __name__ == "__main__":
    main()
