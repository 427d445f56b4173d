"""What every stage shares: the run's engine, its policies, and the running of units with resume, clock and progress."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

from nashtune.progress import Advance, progress
from nashtune.records import Policy
from nashtune.run import Run, Stage
from nashtune.scale.local import LocalEngine, Role, Unit
from nashtune.stages.candidates import PromptPart, Units

if TYPE_CHECKING:
    from nashtune.store.ledger import Ledger


def stage_units(stage: Stage, inputs: Sequence[Any]) -> Units:
    """Where a stage with these inputs commits its units."""
    return Units(stage.folder, stage.key(inputs))


def engine_of(run: Run) -> LocalEngine:
    """The run's engine, made at first use and closed with the run."""
    return run.resource("engine", lambda: run.hold(closing(LocalEngine(run.recipe.scale.workers))))


def policy_of(run: Run, iteration: int) -> Policy:
    """Policy pi_t of the run: 0 is the recipe's model, t > 0 what iteration t trained."""
    if iteration == 0:
        from nashtune.model.loading import find_policy

        return run.resource("initial policy", lambda: find_policy(run.recipe.policy))
    stage = run.stage(iteration, "train")
    record = stage.record()
    folder = run.iteration_folder(iteration) / "policy"
    return Policy(folder, record["output"], f"{run.recipe.name}-{iteration}", run.recipe.policy.trust_remote_code)


def ledger_of(run: Run) -> Ledger:
    """The run's ledger of paid calls."""
    from nashtune.store.ledger import Ledger

    return run.resource("ledger", lambda: run.hold(Ledger(run.folder / "ledger.sqlite")))


def initial_fingerprint(run: Run) -> str:
    """What the initial policy is; scripted engines need none."""
    return "scripted" if run.recipe.sampling.engine == "scripted" else policy_of(run, 0).fingerprint


def run_units(
    run: Run, title: str, stage: Stage, role: Role, part: PromptPart, units: Units, beside: Units | None = None
) -> None:
    """Do a stage's units on the run's engine; ``beside`` gives each unit the object of another stage as second input."""
    work = [
        Unit(index, part.file, units.file(index), beside.file(index) if beside else None) for index in range(part.units)
    ]
    with stage.clock() as tick, unit_progress(title, work, part) as advance:
        tokens = 0.0
        for _, facts in engine_of(run).run(role, work):
            tokens += facts.get("tokens", 0)
            tick()
            advance(int(facts["prompts"]), f"{tokens / max(tick.elapsed, 1e-9):.0f} tokens/s" if tokens else "")


@contextmanager
def unit_progress(title: str, work: Sequence[Unit], part: PromptPart) -> Iterator[Advance]:
    """Progress over the prompts of units that are still to do."""
    left = sum(not unit.target.exists() for unit in work)
    total = part.prompts if left == len(work) else round(part.prompts * left / max(1, len(work)))
    if not left:
        yield lambda count, note="": None
        return
    with progress(title, total, "prompts") as advance:
        yield advance


def once(stage: Stage, inputs: tuple[Any, ...], make: Callable[[], dict[str, Any]]) -> None:
    """Run ``make`` and record the stage with the facts it returns, unless it is done already."""
    if not stage.done(*inputs):
        facts = make()
        stage.finish(inputs, facts)
