"""What a run gives away: ``best/``, an ordinary transformers folder with a model card, and which policy that is.

RUN/export.json says it: ``average`` the recipe's word, ``iteration`` a number or AVERAGE, ``policy`` its fingerprint, ``rows``
how many iterations were validated when its card was written.
"""

from __future__ import annotations

import shutil
from datetime import date
from pathlib import Path

from nashtune.records import IterationSummary
from nashtune.report.card import CardInput, model_card
from nashtune.run import Run
from nashtune.stages.work import policy_of
from nashtune.store.files import read_json, write_json
from nashtune.summaries import AVERAGE


def export(run: Run) -> None:
    """Put the chosen policy, of what is validated so far, into ``best/``, unless it lies there."""
    chosen = chosen_iteration(run)
    if chosen is None or run.recipe.sampling.engine == "scripted":
        return
    if not (run.folder / "export.json").exists() and (run.folder / "best").exists() and _as_ever(run, chosen):
        return  # a run of a version that kept no record
    made = "initial" if chosen == 0 else policy_of(run, chosen).fingerprint
    known = {"average": run.recipe.average, "iteration": chosen, "policy": made, "rows": len(run.summaries())}
    file, target = run.folder / "export.json", run.folder / "best"
    if not target.exists() or not file.exists() or read_json(file) != known:
        _copy(policy_of(run, chosen).folder, target, _card(run, chosen))
        write_json(file, known)


def chosen_iteration(run: Run) -> int | None:
    """The policy that ``average`` means among those validated so far; the average, only once it is made: until then, the best."""
    if run.recipe.average == "weights" and run.averaged() is not None:
        return AVERAGE
    if run.recipe.average == "last":
        return max((summary.iteration for summary in run.summaries()), default=None)
    best = run.best()
    return best.iteration if best else None


def exported_row(run: Run) -> IterationSummary | None:
    """The row of that policy."""
    chosen = chosen_iteration(run)
    if chosen == AVERAGE:
        return run.averaged()
    return next((summary for summary in run.summaries() if summary.iteration == chosen), None)


def _as_ever(run: Run, chosen: int) -> bool:
    return run.recipe.average == "best" and run.finished(run.recipe.iterations) and chosen >= 0


def _card(run: Run, chosen: int) -> str:
    recipe, average = run.recipe, run.averaged()
    rows = [*run.summaries(), *([average] if average else [])]
    return model_card(CardInput(recipe.name, date.today().isoformat(), recipe.resolved(), rows, chosen))


def _copy(source: Path, target: Path, card: str) -> None:
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    for file in source.iterdir():
        if file.is_file() and file.name != "README.md":
            try:
                (partial / file.name).hardlink_to(file.resolve())
            except OSError:  # another file system
                shutil.copy2(file, partial / file.name)
    (partial / "README.md").write_text(card, encoding="utf-8")
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
