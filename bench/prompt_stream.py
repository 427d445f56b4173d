"""Prompts by the million: CPU-seconds, peak memory and disk of reading, deduplicating and splitting them on disk.

    python bench/prompt_stream.py [--prompts 1000000] [--in-memory] [--folder FOLDER] [--output FILE]

Short generated prompts (60 to 110 characters), of which one in 20 is an earlier one again, as JSONL; split for two iterations
into row groups of 1,024. Three sizes (1/16, 1/4 and all), each in a process of its own; fails where the peak memory of the
largest is 1 GB or more, or its CPU-seconds for each prompt are above 1.5 times those of the smallest. --in-memory also measures
``load_prompts`` on the smallest. CPU-seconds are of all threads; memory is VmHWM; nothing is tokenised.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORDS = [
    "garden",
    "river",
    "engine",
    "winter",
    "copper",
    "market",
    "bridge",
    "lantern",
    "harbour",
    "orchard",
    "signal",
    "ledger",
    "violin",
    "canyon",
    "meadow",
]
UNIT = 1024
MOST_GB = 1.0
MOST_GROWTH = 1.5


def write_prompts(file: Path, count: int) -> None:
    """``count`` rows, one in 20 of them with the words of an earlier one."""
    generator = random.Random(0)
    with file.open("w") as out:
        for number in range(count):
            name = generator.randrange(number) if number and number % 20 == 0 else number
            words = " ".join(random.Random(name).choices(WORDS, k=6))
            out.write(json.dumps({"prompt": f"Write two sentences about {words}, number {name}."}) + "\n")


def measure(file: Path, folder: Path, in_memory: bool) -> dict[str, object]:
    """In this process: split ``file`` into ``folder``."""
    from nashtune.prompt_stream import stream_prompts
    from nashtune.prompts import load_prompts
    from nashtune.recipe import PromptsSection

    base = _peak_gb()
    section = PromptsSection.model_validate(
        {"source": str(file), "dedupe": {"near": None}, "validation": {"count": 1000}, "streaming": not in_memory}
    )
    started = time.process_time()
    report = load_prompts(section, 2, 0).report if in_memory else stream_prompts(section, 2, 0, folder, UNIT)
    return {
        "way": "in memory" if in_memory else "streaming",
        "read": report.read,
        "exact_duplicates": report.exact_duplicates,
        "parts": report.parts,
        "cpu_seconds": round(time.process_time() - started, 2),
        "peak_gb": round(_peak_gb(), 3),
        "base_gb": round(base, 3),
    }


def _peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def run(file: Path, folder: Path, in_memory: bool) -> dict[str, object]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--measure", str(file), str(folder), *(["--in-memory"] if in_memory else [])]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=1_000_000)
    parser.add_argument("--in-memory", action="store_true")
    parser.add_argument("--folder", type=Path, help="where the files go; a temporary folder")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--measure", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(*options.measure, options.in_memory)))
        return 0
    place = Path(tempfile.mkdtemp(prefix="nashtune-prompts-", dir=options.folder))
    rows = []
    try:
        for part in (16, 4, 1):
            file = place / "prompts.jsonl"
            write_prompts(file, options.prompts // part)
            for in_memory in (False, *([True] if options.in_memory and part == 16 else [])):
                row = run(file, place / f"parts-{part}-{in_memory}", in_memory)
                row["source_gb"] = round(file.stat().st_size / 1e9, 3)
                row["microseconds_a_prompt"] = round(1e6 * float(str(row["cpu_seconds"])) / int(str(row["read"])), 1)
                print(json.dumps(row), flush=True)
                rows.append(row)
    finally:
        shutil.rmtree(place)
    streamed = [row for row in rows if row["way"] == "streaming"]
    growth = streamed[-1]["microseconds_a_prompt"] / streamed[0]["microseconds_a_prompt"]
    good = streamed[-1]["peak_gb"] < MOST_GB and growth <= MOST_GROWTH
    summary = {
        "peak_gb": streamed[-1]["peak_gb"],
        "bar_gb": MOST_GB,
        "growth": round(growth, 2),
        "bar": MOST_GROWTH,
        "ok": good,
    }
    print(json.dumps(summary))
    if options.output:
        options.output.write_text(json.dumps({"rows": rows, **summary}, indent=1) + "\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
