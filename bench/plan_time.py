"""The seconds that `nashtune plan --calibrate` predicts for the quickstart, against those its stages then take.

    python bench/plan_time.py [--json] [KEY=VALUE ...]

Settings are laid over recipes/quickstart.yaml (as iterations=1 prompts.per_iteration=24 scale.workers=1), for plan and run
alike. The machine should do nothing else: seconds are wall seconds, those of the whole command `nashtune run` in a process of
its own; what it spends outside the planned stages stands beside the plan's start. The calibration is made afresh, in a cache of
its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from bars import Row, arguments, finish

START = "0 start"
QUICKSTART = Path(__file__).parent.parent / "recipes" / "quickstart.yaml"


def predicted_and_taken(overrides: list[str], folder: Path) -> tuple[dict[str, Row], list[str], float]:
    """Seconds by iteration and stage, both ways, what the prediction rests on, and seconds of the calibration."""
    from nashtune.planning.plan import make_plan
    from nashtune.recipe import load_recipe

    recipe = load_recipe(QUICKSTART, [*overrides, f"folder={folder}"])
    started = time.perf_counter()
    plan = make_plan(recipe, calibrated=True)
    calibrating = time.perf_counter() - started
    keys = [f"{row.iteration} {row.stage}" for row in plan.rows]
    taken, facts = run_alone(overrides, folder, keys)
    rows: dict[str, Row] = {}
    for key, row in zip(keys, plan.rows, strict=True):
        rows[key] = {
            "predicted": round(row.seconds or 0.0, 1),
            "taken": round(taken[key], 1),
            "predicted tokens or pairs": round(row.items if row.stage == "train" else row.tokens),
            "real tokens or pairs": facts[key].get("pairs_trained", facts[key].get("tokens", 0)),
        }
    return rows, list(plan.assumptions), calibrating


def run_alone(overrides: list[str], folder: Path, keys: list[str]) -> tuple[dict[str, float], dict[str, Row]]:
    """`nashtune run` of the quickstart in ``folder`` -> wall seconds and facts of its stages (keys: "T NAME"), those outside
    all of them at START."""
    from nashtune.planning.measured import reference_seconds
    from nashtune.recipe import load_recipe
    from nashtune.run import Run

    settings = [*overrides, f"folder={folder}"]
    started = time.perf_counter()
    command = [sys.executable, "-m", "nashtune.cli", "run", str(QUICKSTART), *settings]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    wall = time.perf_counter() - started
    run = Run.read(folder / load_recipe(QUICKSTART, settings).name)
    seconds, facts = {}, {START: {}}
    for key in keys:
        if key != START:
            t, name = key.split()
            record = run.stage(int(t), name).record()
            seconds[key], facts[key] = record["seconds"], record["facts"]
            if name == "train":
                seconds[key] += reference_seconds(run, int(t))
    return {START: wall - sum(seconds.values()), **seconds}, facts


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        reuse_model(Path(name) / "cache")
        rows, assumptions, calibrating = predicted_and_taken(options.settings, Path(name))
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for key, row in rows.items():
        for group in (f"iteration {key.split()[0]}", "whole run"):
            sums[group][0] += row["predicted"]
            sums[group][1] += row["taken"]
    if not options.json:
        for key, row in rows.items():
            print(f"{key:<24} predicted {row['predicted']:>7} s, taken {row['taken']:>7} s", file=sys.stderr)
        for group, (predicted, taken) in sums.items():
            print(f"{group:<24} predicted {predicted:>7.1f} s, taken {taken:>7.1f} s", file=sys.stderr)
    predicted, taken = sums["whole run"]
    bars = {"predicted over taken, whole run": (predicted / taken, lambda x: 0.75 <= x <= 1.25, "0.75 to 1.25")}
    shown = {group: {"predicted": round(p, 1), "taken": round(t, 1)} for group, (p, t) in sums.items()}
    result = {"settings": options.settings, "stages": rows, "sums": shown, "assumptions": assumptions}
    finish(result | {"calibration_seconds": round(calibrating, 1)}, bars, options.json)


def reuse_model(cache: Path) -> None:
    """A cache folder without calibrations, but with the models converted before."""
    from nashtune.model.loading import cache_folder

    cache.mkdir(parents=True)
    known = cache_folder() / "gguf"
    if known.is_dir():
        (cache / "gguf").symlink_to(known)
    os.environ["NASHTUNE_CACHE"] = str(cache)


if __name__ == "__main__":
    main()
