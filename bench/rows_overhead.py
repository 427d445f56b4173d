"""Share of a decode step spent outside torch's operators: Python, and what dispatches the operators.

Wall time of a profiled run, less the operators' own time in it; the profiler's cost counts as overhead, so the shares are
upper bounds. Work for each step must not grow with the rows decoded together: the last row compares 96 rows with 24.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import sampling_parts
from harness import Family, Row, Settings
from measure import Figures
from random_models import model_folder
from sampling_parts import SamplingJob


def family(settings: Settings) -> Family:
    """native and generate at 24 and 96 rows."""
    shape, new_tokens = ("30M", 8) if settings.quick else ("135M", 16)

    def job(work: Path, rows: int) -> SamplingJob:
        asked = [[(7 * n + 13 * i) % 250 for i in range(40)] for n in range(rows // 6)]
        return SamplingJob(str(model_folder(shape, work)), asked, 6, new_tokens, rows, ends=False)

    def native(rows: int) -> Callable[[Path], Figures]:
        def run(work: Path) -> Figures:
            engine, requests, params = sampling_parts.open_native_job(job(work, rows))
            return profiled(lambda: list(engine.generate(requests, params)), new_tokens)

        return run

    def generate(rows: int) -> Callable[[Path], Figures]:
        def run(work: Path) -> Figures:
            asked = job(work, rows)
            answer = sampling_parts.open_generate(asked)
            return profiled(lambda: answer(asked.prompts), new_tokens)

        return run

    parts = {f"native-{rows}": native(rows) for rows in (24, 96)} | {"generate-96": generate(96)}
    peer = f"generate, {shape} random weights, 96 rows"
    return Family(
        parts,
        [
            Row("overhead: share of time", "overhead_share", "native-96", "generate-96", peer, "transformers"),
            Row("overhead: ms a step", "overhead_ms_per_step", "native-96", "generate-96", peer, "transformers"),
            Row("overhead: ms a step, 96 rows", "overhead_ms_per_step", "native-96", "native-24", "itself at 24 rows"),
        ],
        repeats=2,
    )


def profiled(work: Callable[[], Any], steps: int) -> Figures:
    """Time in operators and outside of them, prefill included."""
    import time

    from torch.profiler import ProfilerActivity, profile

    work()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        started = time.perf_counter()
        work()
        wall = time.perf_counter() - started
    inside = sum(event.self_cpu_time_total for event in profiler.key_averages()) / 1e6
    outside = max(0.0, wall - inside)
    return {
        "seconds": wall,
        "operator_seconds": inside,
        "overhead_share": outside / wall,
        "overhead_ms_per_step": 1000 * outside / steps,
    }
