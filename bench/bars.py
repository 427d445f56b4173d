"""What the benchmarks with absolute bars share: options, bars, and the JSON line at the end. Ratios are in table.py."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

Row = dict[str, Any]


def arguments(description: str | None) -> argparse.ArgumentParser:
    """A parser with the options that these benchmarks take."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print only the JSON object")
    parser.add_argument("--part", help=argparse.SUPPRESS)  # what a process that the benchmark starts itself is to do
    return parser


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
