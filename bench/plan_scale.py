"""`nashtune plan --nodes 1` for the quickstart with 1 and 2 workers, from one calibration with one worker, against real runs.

    OMP_NUM_THREADS=1 python bench/plan_scale.py [--json] [KEY=VALUE ...]

One thread a worker, so that the calibration says of each worker what it would of one alone; starting is rehearsed with one and
with two. Settings are laid over recipes/quickstart.yaml, for plans and runs alike (as iterations=1 prompts.per_iteration=24).
Seconds are wall seconds of the command `nashtune run`, in a process of its own: nothing else should run; the load average at
each start is in the result. What a run spends outside the planned stages stands beside the plan's start.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

from bars import Row, arguments, finish
from plan_time import QUICKSTART, reuse_model, run_alone

from nashtune.recipe import Recipe


def predicted(overrides: list[str], folder: Path) -> tuple[dict[int, dict[str, float]], float]:
    """Seconds by stage for 1 and 2 workers, and those of the calibration."""
    from nashtune.planning.calibration import calibrate, started
    from nashtune.planning.cluster import Cluster
    from nashtune.planning.lengths import local_lengths, local_policy
    from nashtune.planning.scale_plan import make_scale_plan
    from nashtune.planning.start import start_of
    from nashtune.planning.work import read_work
    from nashtune.recipe import load_recipe

    def recipe(workers: int) -> Recipe:
        return load_recipe(QUICKSTART, [*overrides, f"folder={folder}", f"scale.workers={workers}"])

    began = time.perf_counter()
    one = recipe(1)
    times = calibrate(one, read_work(one, folder / one.name, local_lengths(one, local_policy(one))))
    seconds = time.perf_counter() - began
    both = {1: times, 2: started(times, start_of(recipe(2)))}
    plans = {n: make_scale_plan(recipe(n), Cluster(nodes=1), times=both[n]) for n in (1, 2)}
    found = {n: {f"{row.iteration} {row.stage}": 3600 * row.hours for row in plan.rows} for n, plan in plans.items()}
    return found, seconds


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_args()
    if os.environ.get("OMP_NUM_THREADS") != "1":
        parser.error("OMP_NUM_THREADS=1 has to be set: a worker is planned as one thread")
    load = [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        reuse_model(folder / "cache")
        plans, calibrating = predicted(options.settings, folder / "calibrated")
        runs = {}
        for workers, plan in plans.items():
            load.append(os.getloadavg()[0])
            settings = [*options.settings, f"scale.workers={workers}"]
            runs[workers], _ = run_alone(settings, folder / str(workers), list(plan))
    rows: dict[str, Row] = {}
    bars = {}
    for workers, plan in plans.items():
        for key, seconds in plan.items():
            shown = {"predicted": round(seconds, 1), "taken": round(runs[workers][key], 1)}
            rows[f"{workers} workers, {key}"] = shown
            if not options.json:
                print(
                    f"{workers} workers  {key:<24} predicted {shown['predicted']:>7} s, taken {shown['taken']:>7} s",
                    file=sys.stderr,
                )
        ratio = sum(plan.values()) / sum(runs[workers].values())
        bars[f"predicted over taken, {workers} workers"] = (ratio, lambda x: 0.75 <= x <= 1.25, "0.75 to 1.25")

    def sampling(of: dict[int, dict[str, float]]) -> float:
        sums = {n: sum(s for key, s in of[n].items() if "sample" in key or "pool" in key) for n in (1, 2)}
        return sums[1] / sums[2]

    gain = sampling(plans) / sampling(runs)
    bars["gain of the second worker in sampling, predicted over taken"] = (
        gain,
        lambda x: 0.75 <= x <= 1.25,
        "0.75 to 1.25",
    )
    result = {
        "settings": options.settings,
        "stages": rows,
        "sums": {n: [round(sum(plans[n].values()), 1), round(sum(runs[n].values()), 1)] for n in plans},
        "second worker, predicted and taken": [round(sampling(plans), 2), round(sampling(runs), 2)],
        "calibration_seconds": round(calibrating, 1),
        "load_average": load,
    }
    finish(result, bars, options.json)


if __name__ == "__main__":
    main()
