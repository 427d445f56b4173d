"""A few prompts sampled and judged for real, so that the estimate rests on what the engines do."""

from __future__ import annotations

import json
import sqlite3
import tempfile
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nashtune.errors import PromptError
from nashtune.planning.budget import spending
from nashtune.planning.measured import Measured, measure
from nashtune.planning.work import Work
from nashtune.recipe import EngineSection, Recipe, RemoteTeacher, parse_recipe
from nashtune.records import Prompt
from nashtune.run import Run
from nashtune.stages.judging import judge
from nashtune.stages.teacher import sample
from nashtune.store import tables
from nashtune.store.files import write_atomic, write_json


@dataclass(frozen=True, slots=True)
class Probe:
    """What the probe did: ``cost_usd`` newly spent, seconds per prompt (loading of models included), and for each served
    model the usage fields of its replies."""

    prompts: int
    cost_usd: float
    seconds_per_prompt: float
    usage_fields: dict[str, list[str]]
    measured: Measured

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def probe(recipe: Recipe, folder: Path, work: Work, count: int = 4) -> Probe:
    """Sample and judge the first ``count`` prompts of iteration 1 in a run folder that is thrown away.

    Prompts, seeds and policy are the run's own, and paid calls are booked on it in its ledger and under its caps, so that
    the run later finds them there; they are sent at once also where the run would use batches. Raises PromptError where no
    prompt can be read, and what sampling and judging raise.
    """
    if not work.first:
        raise PromptError(
            f"--probe {count}: prompts.source: {recipe.prompts.source!r} cannot be read on this machine; "
            "accepted: a source that can be read, or no probe"
        )
    chosen = work.first[:count]
    before = spending(recipe, folder)
    with tempfile.TemporaryDirectory(prefix="nashtune-probe-") as place:
        scratch = Path(place) / recipe.name
        write_atomic(
            scratch / "prompts" / "part-1.parquet",
            tables.encode(Prompt, chosen, row_group=recipe.sampling.unit_prompts),
        )
        write_json(scratch / "prompts" / "report.json", {})
        if paid_engines(recipe):
            write_atomic(scratch / "id", Run(folder, recipe).id)
        ledger = Run(folder, recipe).ledger_file.absolute()
        with Run.open(_scratch_recipe(recipe, place, ledger), scratch) as run:
            judge(run, sample(run, 1))
            seconds = sum(run.stage(1, name).seconds() for name in ("sample", "teacher", "teacher-pool", "judge"))
            found = measure(run, f"probe of {len(chosen)} prompts")
    after = spending(recipe, folder)
    cost = sum(after.by_iteration.values()) - sum(before.by_iteration.values())
    fields = _usage_fields(ledger, folder) if paid_engines(recipe) else {}
    return Probe(len(chosen), cost, seconds / len(chosen), fields, found)


def _scratch_recipe(recipe: Recipe, folder: str, ledger: Path) -> Recipe:
    """The recipe with nothing changed that decides an answer: calls go at once rather than in batches, which take a day."""
    raw = _at_once(recipe.written())
    health = raw.get("health", {}) | {"stop_on_alarm": False}
    scale = raw.get("scale", {}) | {"store": None}
    return parse_recipe(raw | {"folder": folder, "ledger": str(ledger), "health": health, "scale": scale})


def _at_once(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: False if k == "batch" else _at_once(v) for k, v in value.items()}
    return [_at_once(item) for item in value] if isinstance(value, list) else value


def paid_engines(recipe: Recipe) -> list[EngineSection]:
    """The served models of a recipe: the judge's first, then the teacher's; those that are free of charge included."""
    from nashtune.judging.registry import parts_of

    parts = (part for oracle in recipe.oracles for part in parts_of(oracle))
    found = [engine for part in parts if (engine := getattr(part, "engine", None)) is not None]
    return [*found, recipe.teacher.engine] if isinstance(recipe.teacher, RemoteTeacher) else found


def _usage_fields(ledger: Path, folder: Path) -> dict[str, list[str]]:
    """For each model, the names of the usage figures in the replies to this run."""
    query = (
        "SELECT calls.request, attempts.reply FROM attempts JOIN calls USING (key) "
        "WHERE attempts.run = ? AND attempts.state = 'done' ORDER BY attempts.started_at DESC LIMIT 200"
    )
    found: dict[str, set[str]] = {}
    with closing(sqlite3.connect(ledger)) as db:
        for request, reply in db.execute(query, ((folder / "id").read_text(encoding="utf-8"),)):
            try:
                usage = json.loads(reply).get("usage") or {}
            except (ValueError, AttributeError):  # a reply that was no completion
                continue
            found.setdefault(json.loads(request)["model"], set()).update(usage)
    return {model: sorted(fields) for model, fields in sorted(found.items())}
