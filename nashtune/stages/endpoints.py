"""What the judge's servers can do: asked before anything is judged, kept in the run folder, held against what is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nashtune import recipe
from nashtune.errors import OracleError
from nashtune.judging.registry import parts_of
from nashtune.run import Run
from nashtune.stages.work import finish, ledger_of, payer_of
from nashtune.store.files import read_json, write_json

if TYPE_CHECKING:
    from nashtune.judging.dispatch import Payer
    from nashtune.store.ledger import Ledger

FILE = "endpoints.json"


def check_endpoints(run: Run, iteration: int, oracle: recipe.Oracle | None) -> None:
    """Probe the servers of ``oracle`` that are not known yet. Raises OracleError where one lacks what its oracle needs."""
    if oracle is not None:
        probe_servers(run.folder / FILE, oracle, lambda: ledger_of(run), lambda: payer_of(run, iteration))


def probe_servers(file: Path, oracle: recipe.Oracle, ledger: Callable[[], Ledger], payer: Callable[[], Payer]) -> None:
    """As ``check_endpoints``, with what is known kept in ``file``."""
    known: dict[str, Any] = read_json(file) if file.exists() else {}
    for part, engine in _probed(oracle):
        name = f"{engine.base_url} {engine.model}"
        if name not in known:
            known[name] = finish(_probe(engine, ledger(), payer()))
            write_json(file, known)
        if isinstance(part, recipe.CompactOracle | recipe.PairwiseOracle) and part.use == "logprobs":
            _need(known[name]["logprobs"], name, f"log-probs, which oracle {part.kind} with `use: logprobs` reads")


def _probed(oracle: recipe.Oracle) -> Iterator[tuple[recipe.Oracle, recipe.EngineSection]]:
    for part in parts_of(oracle):
        engine = getattr(part, "engine", None)
        if engine is not None and engine.probe and not engine.batch:
            yield part, engine


async def _probe(engine: recipe.EngineSection, ledger: Ledger, payer: Payer) -> dict[str, Any]:
    from nashtune.judging.dispatch import Dispatcher
    from nashtune.judging.probe import probe

    dispatcher = Dispatcher(engine, ledger, payer)
    try:
        return asdict(await probe(dispatcher))
    finally:
        await dispatcher.aclose()


def _need(there: bool, name: str, what: str) -> None:
    if not there:
        raise OracleError(f"{name}: the server gives no {what}; accepted: `use: replies`, or a server that gives them")
