"""What the Ray engine costs: units a second through plain actors, the driver's memory, and how sampling grows with workers.

    python bench/ray_bars.py [--json] [--units 50000] [--sampling]

Scheduling: units that do nothing, on two actors, so that all that is counted is the engine's own (claims are written as ever).
Memory: the driver's highest resident memory over --units of them, in a process of its own, and its growth since 1,000.
--sampling, for a quiet machine with two cores: tokens a second of two workers over those of one, one thread each, either engine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bars import Row, arguments, finish
from measure import peak_gb
from ray_nodes import quiet

HERE = Path(__file__).parent
BATCH = 1000
SHAPE, PROMPTS, PER_UNIT, TOKENS = "30M", 48, 2, 48


@dataclass(frozen=True, slots=True)
class Nothing:
    """A role that does nothing."""

    def key(self) -> str:
        return "nothing"

    def open(self) -> None: ...

    def work(self, opened: None, unit: Any) -> dict[str, float]:
        return {"prompts": 1}


def schedule(units: int) -> Row:
    """Units that do nothing through two actors."""
    from cluster_roles import units_in

    from nashtune.recipe import RaySection
    from nashtune.scale.ray_cluster import RayEngine

    settings = RaySection(max_actors=2, runtime_env={"env_vars": {"PYTHONPATH": os.environ["PYTHONPATH"]}})
    with tempfile.TemporaryDirectory() as folder, closing(RayEngine(settings)) as engine:
        work = units_in(Path(folder), BATCH)
        for _ in engine.run(Nothing(), work):  # the actors are up
            pass
        first, started, cpu, done = peak_gb(), time.perf_counter(), time.process_time(), 0
        for _ in engine.run(Nothing(), units_in(Path(folder), units)):
            done += 1
        seconds = time.perf_counter() - started
    return {
        "units": done,
        "units_per_s": done / seconds,
        "driver_cpu_ms_per_unit": 1000 * (time.process_time() - cpu) / done,
        "driver_mb": 1000 * peak_gb(),
        "driver_mb_grown": 1000 * (peak_gb() - first),
    }


def sampling() -> Row:
    """Tokens a second of one and of two workers, of either engine; each has loaded its model before the clock starts."""
    from random_models import model_folder

    from nashtune.recipe import RaySection
    from nashtune.scale.local import LocalEngine
    from nashtune.scale.ray_cluster import RayEngine

    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
    preload, found = "nashtune.sampling.native", Row()
    with tempfile.TemporaryDirectory() as folder:
        model = model_folder(SHAPE, Path(folder))
        for name in ("local", "ray"):
            for workers in (1, 2, 1, 2):
                single = [{"OMP_NUM_THREADS": "1"}] * workers
                local = LocalEngine(workers, preload, single) if name == "local" else None
                with closing(local or RayEngine(RaySection(max_actors=workers), preload)) as engine:
                    found.setdefault(f"{name}_{workers}", []).append(_tokens_per_s(engine, Path(folder), model))
    for name in ("local", "ray"):
        ratios = [two / one for one, two in zip(found[f"{name}_1"], found[f"{name}_2"], strict=True)]
        found[f"{name}_2_over_1"] = sum(ratios) / len(ratios)
    return found


def _tokens_per_s(engine: Any, folder: Path, model: Path) -> float:
    import shutil

    from nashtune.model.loading import find_policy
    from nashtune.recipe import PolicySection, SamplingSection
    from nashtune.records import Message, Prompt
    from nashtune.sampling.role import Sampler
    from nashtune.scale.units import Unit
    from nashtune.store import tables

    shutil.rmtree(folder / "stage", ignore_errors=True)
    prompts = [Prompt(f"p{n:04d}", (Message("user", f"Question {n}"),)) for n in range(PROMPTS)]
    units = []
    for start in range(0, PROMPTS, PER_UNIT):
        source = folder / "prompts" / f"{start}.parquet"
        source.parent.mkdir(exist_ok=True)
        source.write_bytes(tables.encode(Prompt, prompts[start : start + PER_UNIT]))
        units.append(Unit(0, source, folder / "stage" / f"{start:06d}-k.parquet"))
    settings = SamplingSection(k=4, max_new_tokens=TOKENS, slots=8, dtype="float32")
    role = Sampler(find_policy(PolicySection(model=str(model))), settings, 4, 1, "bench")
    ends, tokens = [], []
    for _, facts in engine.run(role, units):
        ends.append(time.perf_counter())
        tokens.append(facts["tokens"])
    warm = 4  # by then every worker has loaded its model and ended a unit
    return sum(tokens[warm:-2]) / (ends[-3] - ends[warm - 1])


def part(name: str, units: int) -> Row:
    """A part in a process of its own."""
    path = os.pathsep.join([str(HERE), str(HERE.parent / "tests"), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, __file__, "--part", name, "--units", str(units)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env={**quiet(), "PYTHONPATH": path})
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--units", type=int, default=50_000)
    parser.add_argument("--sampling", action="store_true", help="measure one worker and two; for a quiet machine")
    options = parser.parse_args()
    if options.part:
        print(json.dumps(schedule(options.units) if options.part == "schedule" else sampling()))
        return
    found: Row = {"schedule": part("schedule", options.units)}
    rate, memory = found["schedule"]["units_per_s"], found["schedule"]["driver_mb"]
    bars = {
        "units a second": (rate, lambda n: n >= 200, "200 or more"),
        f"driver's memory at {options.units} units, MB": (memory, lambda n: n < 500, "below 500"),
    }
    if options.sampling:
        found["sampling"] = part("sampling", options.units)
        for name in ("local", "ray"):
            ratio = found["sampling"][f"{name}_2_over_1"]
            bars[f"sampling with 2 workers over 1, {name}"] = (ratio, lambda n: n >= 1.8, "1.8 or more")
    finish(found, bars, options.json)


if __name__ == "__main__":
    main()
