"""Time and memory of everything but the model's own work, from 100 to 10,000 prompts.

    python bench/growth.py [--json]

A scripted engine and oracle stand in for model and judge; prompts are read, split, sampled, judged and turned into pairs, each
size in a process of its own. Both figures should stay flat: time per prompt, and peak memory beyond what the smallest run needs.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from bars import Meter, Row, arguments, finish, measure

SIZES = (100, 1_000, 10_000)
K = 5


def grow(prompts: int) -> Row:
    from nashtune.recipe import parse_recipe
    from nashtune.run import Run
    from nashtune.stages.judging import judge
    from nashtune.stages.pairing import make_pairs
    from nashtune.stages.teacher import sample

    words = [f"word{n}" for n in range(997)]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "prompts.jsonl"
        with file.open("w") as stream:
            for n in range(prompts + 1):
                text = " ".join(words[(n * step + step) % 997] for step in range(3, 33))
                stream.write(json.dumps({"prompt": f"Question {n}: {text}?"}) + "\n")
        recipe = parse_recipe(
            {
                "name": "growth",
                "folder": folder,
                "iterations": 1,
                "policy": {"model": "none needed"},
                "prompts": {"source": str(file), "per_iteration": prompts, "validation": {"count": 1}},
                "sampling": {"engine": "scripted", "k": K, "max_new_tokens": 200, "unit_prompts": 50},
                "teacher": {"kind": "scripted"},
                "oracle": {"kind": "scripted"},
                "pairs": {"max_per_prompt": 2},
            }
        )
        with Meter() as meter, Run.open(recipe) as run:
            pairs = make_pairs(run, judge(run, sample(run, 1)))
    row = meter.row(prompts * K)
    return row | {"prompts": prompts, "pairs": len(pairs), "ms_per_prompt": round(1000 * meter.cpu / prompts, 3)}


def main() -> None:
    parser = arguments(__doc__)
    options = parser.parse_args()
    if options.part:
        print(json.dumps(grow(int(options.part))))
        return
    rows = {size: measure(__file__, str(size)) for size in SIZES}
    if not options.json:
        for size, row in rows.items():
            print(
                f"{size:>7} prompts: {row['ms_per_prompt']} ms of CPU each, {row['peak_gb']} GB, {row['pairs']} pairs"
            )
    small, middle, large = (rows[size] for size in SIZES)
    bars = {
        "time per prompt, 10,000 against 1,000": (
            large["ms_per_prompt"] / middle["ms_per_prompt"],
            lambda x: x <= 1.25,
            "at most 1.25",
        ),
        "memory, GB more at 10,000 than at 100": (
            large["peak_gb"] - small["peak_gb"],
            lambda x: x <= 0.1,
            "at most 0.1",
        ),
    }
    finish({"sizes": rows}, bars, options.json)


if __name__ == "__main__":
    main()
