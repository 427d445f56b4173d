"""From parts to one table: every row is a ratio between two parts measured in one run, with its bar where it has one.

A family is a module with ``family(settings) -> Family``. Its parts run one after another, each in a process of its own, A B
A B, so that drift of the machine hits all of them; a row's ratio is the median of the ratios of its repeats.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any, Literal

from measure import LONGEST_PART_S, Figures, Missing, machine, not_done, run_json

SCHEMA = 1
"""Raised when the layout of the JSON results changes."""
FAILURES = ("missed", "failed")


@dataclass(frozen=True, slots=True)
class Settings:
    """What decides how much is measured, and on what."""

    quick: bool = False
    device: str = "cpu"
    tiny: bool = False
    """Sizes of a smoke test: figures mean nothing."""
    models: tuple[str, ...] = ()
    """Folders or shapes, where a family lets them be chosen."""
    threads: int | None = 1
    limit_s: float | None = None
    """Seconds after which no more is measured; the rows left say so."""


@dataclass(frozen=True, slots=True)
class Bar:
    """What a ratio must reach."""

    kind: Literal["at least", "at most"]
    value: float

    def met(self, ratio: float) -> bool:
        return ratio >= self.value if self.kind == "at least" else ratio <= self.value

    def __str__(self) -> str:
        return f"{self.kind} {self.value:g}"


@dataclass(frozen=True, slots=True)
class Row:
    """Figure ``figure`` of part ``ours`` against that of part ``theirs``."""

    name: str
    figure: str
    ours: str
    theirs: str
    peer: str
    """The peer's name and settings."""
    package: str = "nashtune"
    """The distribution whose version is the peer's, unless the part tells its own."""
    bar: Bar | None = None
    inverse: bool = False
    """The ratio is theirs / ours: how many times less ours is."""
    theirs_figure: str | None = None
    """Another figure of the peer's, where the names differ."""


@dataclass(frozen=True, slots=True)
class Family:
    """Parts by name, each called with a work folder shared by the run, and the rows made of them."""

    parts: Mapping[str, Callable[[Path], Figures]]
    rows: Sequence[Row]
    repeats: int = 1


def measure_family(
    run: Callable[[str], Figures], names: Sequence[str], repeats: int, told: Callable[[str], None]
) -> dict[str, list[Figures]]:
    """Every part's figures, one entry per repeat; a part that failed or is missing is not run again."""
    found: dict[str, list[Figures]] = {name: [] for name in names}
    for _ in range(repeats):
        for name in names:
            if found[name] and not _usable(found[name][-1]):
                continue
            figures = run(name)
            found[name].append(figures)
            told(f"{name}: {_brief(figures)}")
    return found


def _usable(figures: Figures) -> bool:
    return not {"failed", "missing"} & figures.keys()


def _brief(figures: Figures) -> str:
    return ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in figures.items())


def judge_row(family: str, row: Row, found: Mapping[str, list[Figures]]) -> dict[str, Any]:
    """A row of the result, as JSON values."""
    ours, theirs = found[row.ours], found[row.theirs]
    told = next((f["version"] for f in theirs if "version" in f), None)
    result: dict[str, Any] = {
        "family": family,
        "row": row.name,
        "figure": row.figure,
        "peer": row.peer,
        "peer_package": row.package,
        "peer_version": told or _version(row.package),
        "ours": None,
        "theirs": None,
        "ratio": None,
        "lowest": None,
        "highest": None,
        "bar": None if row.bar is None else asdict(row.bar),
        "status": "measured",
        "why": "",
    }
    for figures in (*ours, *theirs):
        for status, key in (("failed", "failed"), ("not installed", "missing")):
            if key in figures:
                return result | {"status": status, "why": str(figures[key])}
    wanted = [(ours, row.figure), (theirs, row.theirs_figure or row.figure)]
    if lacking := [name for figures, name in wanted if any(f.get(name) is None for f in figures)]:
        return result | {"status": "not measured", "why": f"no {lacking[0]} on this machine"}
    mine = [float(f[row.figure]) for f in ours]
    other = [float(f[row.theirs_figure or row.figure]) for f in theirs]
    ratios = [b / a if row.inverse else a / b for a, b in zip(mine, other, strict=True)]
    ratio = median(ratios)
    result |= {"ours": median(mine), "theirs": median(other)}
    result |= {"ratio": ratio, "lowest": min(ratios), "highest": max(ratios)}
    if row.bar is not None:
        result["status"] = "met" if row.bar.met(ratio) else "missed"
    return result


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as text, one line each."""
    lines = [("row", "ours", "peer", "ratio", "(lowest-highest)", "bar", "", "peer")]
    for row in rows:
        bar = str(Bar(**row["bar"])) if row["bar"] else "-"
        peer = f"{row['peer']} ({row['peer_package']} {row['peer_version'] or '-'})"
        if row["ratio"] is None:
            lines.append((row["row"], "-", "-", "-", "", bar, row["status"], f"{peer}: {row['why']}"))
            continue
        ours, theirs, ratio = (f"{row[key]:.4g}" for key in ("ours", "theirs", "ratio"))
        spread = f"({row['lowest']:.3g}-{row['highest']:.3g})"
        lines.append((row["row"], ours, theirs, ratio, spread, bar, row["status"], peer))
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]) - 1)]
    return "\n".join(
        "  ".join([*(cell.ljust(w) for cell, w in zip(line, widths, strict=False)), line[-1]]).rstrip()
        for line in lines
    )


def parser(description: str | None, families: Iterable[str], usual: Iterable[str]) -> argparse.ArgumentParser:
    """Options that every table takes; ``usual`` families are measured where none are named."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rows", default=",".join(usual), help=f"families, of {', '.join(families)}")
    options.add_argument("--quick", action="store_true", help="small sizes, one repeat: does each row work")
    options.add_argument("--repeats", type=int, help="times each part is measured (default: the family's own)")
    options.add_argument(
        "--output", type=Path, help="the JSON file (default: DATE-REVISION.json in the results folder)"
    )
    options.add_argument("--json", action="store_true", help="print only the JSON object")
    options.add_argument("--part", help=argparse.SUPPRESS)
    options.add_argument("--work", help=argparse.SUPPRESS)
    options.add_argument("--settings", help=argparse.SUPPRESS)
    return options


def main(script: Path, families: Mapping[str, str], options: argparse.Namespace, settings: Settings) -> None:
    """Measure the chosen families (name -> module), print the table and, last, the JSON, which is kept too; exit with 1 where a
    bar is missed."""
    if options.part:
        _measure_here(families, options)
        return
    chosen = options.rows.split(",")
    if unknown := set(chosen) - set(families):
        raise SystemExit(f"--rows: {', '.join(sorted(unknown))}; accepted: {', '.join(families)}")
    started = time.monotonic()
    rows: list[dict[str, Any]] = []
    parts: dict[str, dict[str, list[Figures]]] = {}
    with tempfile.TemporaryDirectory() as work:
        for name in chosen:
            family = _open(families[name], settings)
            shared = ["--work", work, "--settings", json.dumps(asdict(settings))]

            def run(part: str, name: str = name, shared: list[str] = shared) -> Figures:
                left = LONGEST_PART_S if settings.limit_s is None else settings.limit_s + started - time.monotonic()
                if left <= 0:
                    return {"missing": f"the run's {settings.limit_s:g} s were over"}
                command = [sys.executable, str(script.resolve()), "--part", f"{name}:{part}", *shared]
                figures = run_json(command, threads=settings.threads, gpu=settings.device != "cpu", timeout_s=left)
                stopped = settings.limit_s is not None and figures.get("failed") == not_done(left)
                return {"missing": f"stopped when the run's {settings.limit_s:g} s were over"} if stopped else figures

            def told(line: str, name: str = name) -> None:
                print(f"{name} {line}", file=sys.stderr, flush=True)

            repeats = options.repeats or (1 if settings.quick else family.repeats)
            parts[name] = measure_family(run, list(family.parts), repeats, told)
            rows += [judge_row(name, row, parts[name]) for row in family.rows]
    if not options.json:
        print(table(rows))
    result = {"schema": SCHEMA, "date": date.today().isoformat(), "settings": asdict(settings), "machine": machine()}
    result |= {"rows": rows, "parts": parts, "failing": [r["row"] for r in rows if r["status"] in FAILURES]}
    file = options.output or _result_file(script, result, settings)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    raise SystemExit(1 if result["failing"] else 0)


def _open(module: str, settings: Settings) -> Family:
    return importlib.import_module(module).family(settings)


def _measure_here(families: Mapping[str, str], options: argparse.Namespace) -> None:
    """One part in this process: its figures are the last line of output."""
    values = json.loads(options.settings)
    settings = Settings(**values | {"models": tuple(values["models"])})
    name, _, part = options.part.partition(":")
    try:
        figures = _open(families[name], settings).parts[part](Path(options.work))
    except Missing as missing:
        figures = {"missing": str(missing)}
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] == "nashtune":  # a mistake here, not a package that is not installed
            raise
        figures = {"missing": f"no package {error.name}" if error.name else str(error)}
    print("\n" + json.dumps(figures))


def _result_file(script: Path, result: Mapping[str, Any], settings: Settings) -> Path:
    """Kept results are of whole runs; those of quick ones are git-ignored."""
    revision = str(result["machine"].get("git") or "no-git")
    short = revision[:8] + ("-dirty" if revision.endswith("+dirty") else "")
    kind = "-quick" if settings.quick or settings.tiny else ""
    return script.parent / "results" / f"{result['date']}-{short}{kind}.json"
