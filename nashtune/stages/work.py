"""What every stage shares: the run's engine, its policies, and the running of units with resume, clock and progress."""

from __future__ import annotations

import asyncio
import math
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

from nashtune.errors import StoreError
from nashtune.progress import Advance, progress
from nashtune.recipe import Oracle, SamplingSection, ScaleSection, SelfOracle, identity
from nashtune.records import Policy
from nashtune.run import Run
from nashtune.scale.claims import close_stage, open_stage
from nashtune.scale.home import Home
from nashtune.scale.local import LocalEngine
from nashtune.scale.units import Role, Unit, WorkEngine
from nashtune.stage import Stage
from nashtune.stages.candidates import PromptPart, Units
from nashtune.store.objects import absent, on_store
from nashtune.summaries import AVERAGE, called

if TYPE_CHECKING:
    from nashtune.judging.dispatch import Payer
    from nashtune.judging.registry import Resources
    from nashtune.store.ledger import Ledger


T = TypeVar("T")
HEAD_START = "head start"
"""Where what was done early for training is left."""
PRELOADED = {"native": "nashtune.sampling.native", "vllm": "nashtune.sampling.on_vllm.engine"}
"""What worker processes import as they start."""


def stage_units(stage: Stage, inputs: Sequence[Any]) -> Units:
    """Where a stage with these inputs commits its units; those that another run has made already lie there."""
    stage.borrow(inputs)
    return Units(stage.units, stage.key(inputs))


def engine_of(run: Run) -> WorkEngine:
    """The run's engine, made at first use and closed with the run."""
    sampling, scale = run.recipe.sampling, run.recipe.scale
    return run.resource("engine", lambda: run.hold(closing(new_engine(sampling, scale, home_of(run)))))


def home_of(run: Run) -> Home | None:
    """Where the run lies, for workers of other machines; None where there are none."""
    if run.recipe.scale.engine != "ray":
        return None
    store = None if run.recipe.scale.store is None else run.store_folder()
    return Home(run.folder.absolute(), run.id, store if store is not None and on_store(store) else None)


def new_engine(sampling: SamplingSection, scale: ScaleSection, home: Home | None = None) -> WorkEngine:
    """An engine with the workers that the recipe asks for, not started yet; ``home``: where the run lies that it is for."""
    workers = scale.workers
    if scale.engine == "ray":
        from nashtune.scale.ray_cluster import RayEngine

        gpus = {"vllm": sampling.vllm.tensor_parallel, "native": 1, "scripted": 0}[sampling.engine]
        return RayEngine(scale.ray, PRELOADED.get(sampling.engine), gpus, home)
    if sampling.engine == "vllm" and workers > 1:  # each vLLM takes all of its devices
        from nashtune.sampling.on_vllm.place import worker_environments

        return LocalEngine(workers, PRELOADED["vllm"], worker_environments(sampling.vllm, workers))
    return LocalEngine(workers, PRELOADED["native"] if sampling.engine == "native" else None)


def warm_up(run: Run) -> None:
    """Where something is left to do, test the object store, and let the sampling processes start while the prompts are read.
    Raises StoreError for a store that cannot be used."""
    if not run.finished(run.recipe.iterations):
        if run.recipe.scale.store is not None:
            run.store_folder()
        if run.recipe.sampling.engine == "vllm":
            from nashtune.sampling.on_vllm.place import check_installed

            check_installed(run.recipe.sampling)
        for oracle in run.recipe.oracles:
            check_hosted(run, oracle)
        engine_of(run).start()


def check_hosted(run: Run, oracle: Oracle) -> None:
    """Find the models that an oracle has hosted, and vLLM where it runs them. Raises OracleError, SamplingError."""
    from nashtune.judging.registry import hosted_in

    hosts = hosted_in(oracle)
    if hosts:
        hosted_weights(run, oracle)
    if any(host.engine == "vllm" for host in hosts):
        from nashtune.sampling.on_vllm.place import check_installed

        for host in hosts:
            check_installed(host)


def policy_of(run: Run, iteration: int) -> Policy:
    """Policy pi_t of the run: 0 is the recipe's model, t > 0 what iteration t trained, AVERAGE the mean of those. Raises
    StoreError where its weights were removed."""
    if iteration == 0:
        from nashtune.model.loading import find_policy

        return run.resource("initial policy", lambda: find_policy(run.recipe.policy))
    average = iteration == AVERAGE
    record = run.stage(iteration, "weights" if average else "train").record()
    folder, name = run.iteration_folder(iteration) / "policy", "average" if average else str(iteration)
    if not folder.is_dir():
        folder = _kept_as_best(run, iteration)
    return Policy(folder, record["output"], f"{run.recipe.name}-{name}", run.recipe.policy.trust_remote_code)


def judging_policy(run: Run, iteration: int) -> Policy:
    """The policy that judges itself in an iteration, pi_t-1; the average is judged as the last iteration was."""
    last = run.recipe.iterations if iteration == AVERAGE else iteration
    return policy_of(run, max(0, last - 1))


def _kept_as_best(run: Run, iteration: int) -> Path:
    """Where the weights of a finished iteration still are once its own folder was removed (a lab with ``keep: best``)."""
    holds = run.held_in_best()
    if holds != iteration:
        kept = "" if holds is None else f"; of this run, best/ holds {called(holds)}"
        raise StoreError(f"{run.iteration_folder(iteration) / 'policy'}: missing, its weights were removed{kept}")
    return run.folder / "best"


def ledger_of(run: Run) -> Ledger:
    """The run's ledger of paid calls: its own, or the recipe's, shared with other runs."""
    from nashtune.store.ledger import Ledger

    file = run.ledger_file
    file.parent.mkdir(parents=True, exist_ok=True)
    return run.resource("ledger", lambda: run.hold(Ledger(file)))


def payer_of(run: Run, iteration: int) -> Payer:
    """Who pays for an iteration's calls, and the recipe's caps."""
    from nashtune.judging.dispatch import Payer
    from nashtune.store.ledger import Caps

    return Payer(run.id, iteration, Caps(run.recipe.budget.usd, run.recipe.budget.usd_per_iteration))


def resources_of(run: Run, iteration: int) -> Resources:
    """What an oracle that judges in ``iteration`` may use."""
    from nashtune.judging.registry import Resources

    return Resources(
        ledger=lambda: ledger_of(run),
        payer=lambda: payer_of(run, iteration),
        policy=lambda: judging_policy(run, iteration),
    )


def oracle_identity(run: Run, section: Oracle, iteration: int) -> Any:
    """What decides the verdicts of an oracle that judges in ``iteration``: its settings, and the weights of the policy where
    that judges, and of the models that are hosted for it."""
    from nashtune.judging.registry import hosted_in, parts_of

    weights = []
    if any(isinstance(part, SelfOracle) for part in parts_of(section)):
        weights.append(judging_policy(run, iteration).fingerprint)
    if hosted_in(section):
        weights += hosted_weights(run, section)
    return [identity(section), *weights] if weights else identity(section)


def hosted_weights(run: Run, section: Oracle) -> tuple[str, ...]:
    """Fingerprints of the models that an oracle has hosted."""
    from nashtune.judging.hosted import find_hosted
    from nashtune.judging.registry import hosted_in

    return tuple(
        run.resource(f"hosted {host.model} {host.revision}", lambda host=host: find_hosted(host)).fingerprint
        for host in hosted_in(section)
    )


def make_room(run: Run, section: Oracle | None) -> None:
    """Before this process hosts a judge's models: the sampler gives its memory back."""
    from nashtune.judging.registry import hosted_in

    if hosted_in(section):
        engine_of(run).release()


def initial_fingerprint(run: Run) -> str:
    """What the initial policy is; scripted engines need none."""
    return "scripted" if run.recipe.sampling.engine == "scripted" else policy_of(run, 0).fingerprint


def run_units(
    run: Run,
    title: str,
    stage: Stage,
    role: Role,
    part: PromptPart,
    units: Units,
    beside: Units | None = None,
    watch: Callable[[], str] = str,
    workers: WorkEngine | None = None,
) -> dict[str, float]:
    """Do a stage's units on the run's engine, or on other ``workers``; ``beside`` gives each unit the object of another
    stage as second input. ``watch`` is called after each unit; it returns a note for the progress line, and what it raises ends
    the stage. Returns, for the stage's facts, how many units were lost with a worker and done again, the seconds before the
    first unit began, in which workers start and load, where this call did any that tells its own, and the seconds of engines
    where the role tells them."""
    work = [
        Unit(index, part.file, units.file(index), beside.file(index) if beside else None, stage.folder)
        for index in range(part.units)
    ]
    usual = part.prompts / max(1, part.units)
    open_stage(stage.folder, part.units, stage.names())
    run.take(HEAD_START)  # a model that nobody came for; another is about to be loaded
    with stage.clock() as tick, unit_progress(title, work, part) as advance:
        tokens, began = 0.0, None
        engines: list[float] = []
        for _, facts in (workers or engine_of(run)).run(role, work):
            tokens += facts.get("tokens", 0)
            engines += [facts["engine_seconds"]] if "engine_seconds" in facts else []
            if began is None and "seconds" in facts:
                began = max(0.0, tick.elapsed - facts["seconds"])
            tick()
            rate = f"{tokens / max(tick.elapsed, 1e-9):.0f} tokens/s" if tokens else ""
            advance(int(facts.get("prompts", usual)), ", ".join(filter(None, (rate, watch()))))
    told = {} if began is None else {"start_seconds": round(began, 3)}
    told |= {"engine_seconds": math.fsum(engines)} if engines else {}
    return {"units_redone": close_stage(stage.folder)} | told


@contextmanager
def unit_progress(title: str, work: Sequence[Unit], part: PromptPart) -> Iterator[Advance]:
    """Progress over the prompts of units that are still to do."""
    left = sum(absent([unit.target for unit in work]))
    total = part.prompts if left == len(work) else round(part.prompts * left / max(1, len(work)))
    if not left:
        yield lambda count, note="": None
        return
    with progress(title, total, "prompts") as advance:
        yield advance


def finish(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end; in a thread of its own where this one has an event loop running, as notebooks do."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        with closing(work), ExitStack() as stack:  # a coroutine that was never started would complain
            with _ctrl_c_held():
                runner = stack.enter_context(asyncio.Runner())
            return runner.run(work)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


@contextmanager
def _ctrl_c_held() -> Iterator[None]:
    """Ctrl-C waits until the block's end: half an event loop cannot be cleaned up, and complains about it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[FrameType | None] = []
    handler = signal.signal(signal.SIGINT, lambda number, frame: held.append(frame))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if held and callable(handler):
            handler(signal.SIGINT, held[0])


def once(stage: Stage, inputs: tuple[Any, ...], make: Callable[[], dict[str, Any]]) -> None:
    """Run ``make`` and record the stage with the facts it returns, unless it is done already."""
    if not stage.done(*inputs):
        facts = make()
        stage.finish(inputs, facts)
