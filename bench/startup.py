"""How long the command line takes to answer: `nashtune --help` and `nashtune status`, in a process of its own each time.

    python bench/startup.py [--json]

The figure is the median over several runs of the child's CPU seconds (user and system), which other work on the machine hardly
moves; the fastest wall time is printed beside it. The run whose status is asked for has a finished iteration.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from bars import Row, arguments, finish

RUNS = 9
HEAVY = ("torch", "transformers", "datasets", "openai", "scipy")


def a_run(folder: Path) -> Path:
    """A run folder whose iteration 0 is validated, made without a model."""
    from nashtune.recipe import parse_recipe
    from nashtune.run import Run
    from nashtune.stages.validation import validate

    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"Question {n}, what is it?"}) + "\n" for n in range(40)))
    raw = {"name": "startup", "folder": str(folder), "iterations": 1, "policy": {"model": "none needed"}}
    raw |= {"prompts": {"source": str(prompts), "per_iteration": 20, "validation": {"count": 10}}}
    raw |= {"sampling": {"engine": "scripted"}, "teacher": {"kind": "scripted"}, "oracle": {"kind": "scripted"}}
    with Run.open(parse_recipe(raw)) as run:
        validate(run, 0)
        return run.folder


def start(command: list[str]) -> Row:
    """CPU (median) and wall (least) seconds of a command."""
    cpu: list[float] = []
    wall: list[float] = []
    for _ in range(RUNS):
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        wall.append(time.perf_counter() - began)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    return {"cpu_seconds": round(median(cpu), 3), "least_wall_seconds": round(min(wall), 3)}


def heavy_modules(*words: str) -> list[str]:
    """Which of the slow libraries a command loads."""
    code = (
        "import sys\nfrom nashtune.cli import app\ntry:\n    app(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        f"print(*[name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    return done.stderr.split()


def main() -> None:
    options = arguments(__doc__).parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        status = ["status", str(a_run(Path(folder)))]
        rows = {name: start([sys.executable, "-m", "nashtune.cli", *words]) for name, words in
                (("help", ["--help"]), ("status", status))}  # fmt: skip
        loaded = {"help": heavy_modules("--help"), "status": heavy_modules(*status)}
    if not options.json:
        for name, row in rows.items():
            print(
                f"{name:<7} {row['cpu_seconds']:.3f} s of CPU, at best {row['least_wall_seconds']:.3f} s of wall time"
            )
    bars = {
        "help, CPU seconds": (rows["help"]["cpu_seconds"], lambda x: x <= 0.3, "at most 0.3"),
        "status, CPU seconds": (rows["status"]["cpu_seconds"], lambda x: x <= 0.5, "at most 0.5"),
        "slow libraries loaded": (float(sum(map(len, loaded.values()))), lambda x: x == 0, "0"),
    }
    finish({"commands": rows, "loaded": loaded}, bars, options.json)


if __name__ == "__main__":
    main()
