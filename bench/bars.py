"""What every benchmark shares: measuring parts in processes of their own, bars, and the JSON line at the end."""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def arguments(description: str | None) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks take."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print only the JSON object")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    return parser


def measure(script: str, part: str, *options: str) -> Row:
    """Run ``script --part PART`` with one thread in a process of its own; its last line is JSON."""
    variables = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, str(Path(script).resolve()), "--part", part, *options]
    done = subprocess.run(command, env=variables, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{part} failed with exit code {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


class Meter:
    """CPU and wall seconds of a block; peak memory of the process so far."""

    def __enter__(self) -> Meter:
        self._cpu, self._wall = time.process_time(), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.cpu, self.wall = time.process_time() - self._cpu, time.perf_counter() - self._wall

    def row(self, tokens: int) -> Row:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        return {
            "tokens": tokens,
            "cpu_seconds": round(self.cpu, 2),
            "tokens_per_cpu_second": round(tokens / self.cpu, 1),
            "peak_gb": round(peak, 2),
        }


def finish(result: Row, bars: dict[str, tuple[float, Callable[[float], bool], str]], as_json: bool) -> None:
    """Print the bars and the result; exit with 1 where a bar is missed. A bar is (measured, test, what is expected)."""
    result["bars"] = {
        name: {"measured": round(value, 3), "expected": expected, "met": bool(test(value))}
        for name, (value, test, expected) in bars.items()
    }
    missed = [name for name, bar in result["bars"].items() if not bar["met"]]
    if not as_json:
        for name, bar in result["bars"].items():
            print(f"{'missed' if name in missed else 'met   '}  {name}: {bar['measured']} (expected {bar['expected']})")
    print(json.dumps(result))
    raise SystemExit(1 if missed else 0)
