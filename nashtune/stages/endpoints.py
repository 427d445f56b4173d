"""What the judge's servers can do: asked before anything is judged, kept in the run folder, held against what is needed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from nashtune import recipe
from nashtune.errors import OracleError
from nashtune.judging.registry import parts_of
from nashtune.run import Run
from nashtune.stages.work import finish, ledger_of, payer_of
from nashtune.store.files import read_json, write_json

FILE = "endpoints.json"


def check_endpoints(run: Run, iteration: int, oracle: recipe.Oracle | None) -> None:
    """Probe the servers of ``oracle`` that are not known yet. Raises OracleError where one lacks what its oracle needs."""
    if oracle is None:
        return
    file = run.folder / FILE
    known: dict[str, Any] = read_json(file) if file.exists() else {}
    for part, engine in _probed(oracle):
        name = f"{engine.base_url} {engine.model}"
        if name not in known:
            known[name] = finish(_probe(run, iteration, engine))
            write_json(file, known)
        if isinstance(part, recipe.CompactOracle | recipe.PairwiseOracle) and part.use == "logprobs":
            _need(known[name]["logprobs"], name, f"log-probs, which oracle {part.kind} with `use: logprobs` reads")


def _probed(oracle: recipe.Oracle) -> Iterator[tuple[recipe.Oracle, recipe.EngineSection]]:
    for part in parts_of(oracle):
        engine = getattr(part, "engine", None)
        if engine is not None and engine.probe and not engine.batch:
            yield part, engine


async def _probe(run: Run, iteration: int, engine: recipe.EngineSection) -> dict[str, Any]:
    from nashtune.judging.dispatch import Dispatcher
    from nashtune.judging.probe import probe

    dispatcher = Dispatcher(engine, ledger_of(run), payer_of(run, iteration))
    try:
        return asdict(await probe(dispatcher))
    finally:
        await dispatcher.aclose()


def _need(there: bool, name: str, what: str) -> None:
    if not there:
        raise OracleError(f"{name}: the server gives no {what}; accepted: `use: replies`, or a server that gives them")
