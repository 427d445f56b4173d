"""A policy evaluated by a suite: answers, verdicts, figures; each step committed, the record last."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nashtune.errors import DriftError, EvaluationError
from nashtune.evaluated import Scores, place_of, read_rows
from nashtune.progress import progress
from nashtune.recipe import EngineSection, SuiteSection, identity
from nashtune.records import Interval
from nashtune.seeds import content_hash
from nashtune.stages.subject import Subject
from nashtune.stages.suite_answers import suite_answers
from nashtune.stages.work import finish
from nashtune.store.files import read_json, write_atomic, write_json
from nashtune.suites.registry import open_suite
from nashtune.suites.suite import Answers, ComparesWithInitial, Row, Runner, Suite, SuiteScores

if TYPE_CHECKING:
    from nashtune.judging.dispatch import Dispatcher

POLL_SECONDS = 2.0
FINGERPRINTED = ("data", "baseline", "references", "judge_prompts", "include_path")
"""Settings that name files or data sets: it is their contents that count, which the suite's identity holds."""

SHOWN = ("difficulty", "regression_errors")
"""Settings that only decide what is computed from the verdicts."""


def evaluate(subject: Subject, section: SuiteSection) -> Scores:
    """The figures of ``subject`` by a suite; what is done already is not done again, and a finished evaluation does nothing.

    Raises DriftError where it began with other settings, data or weights, EvaluationError where data or answers are bad
    or no verdict is usable, OracleError and BudgetError as judging does.
    """
    suite = open_suite(section)
    folder = subject.folder / section.called / subject.place
    given = None if subject.answers is None else suite.read_answers(subject.answers)
    made_from = _identity(subject, section, suite, None if given is None else given.answers)
    _refuse_drift(folder, made_from)
    initial = _initial(subject, suite, folder)
    shown = {"confidence": subject.confidence, **_shown(section), **({} if initial is None else {"initial": True})}
    if (found := _finished(folder, shown)) is not None:
        return found
    suite.check()
    verdicts = folder / "verdicts.jsonl"
    if suite.engine is not None and not verdicts.exists():
        _check_judge(subject, section, suite, suite.engine)
    write_json(folder / "identity.json", made_from)
    answers = given.answers if given else suite_answers(subject, suite, folder)
    if not verdicts.exists():
        rows = _judge(subject, section, suite, answers, folder)
        write_atomic(verdicts, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))
    rows = read_rows(verdicts)
    scores = suite.scores(rows, answers, subject.confidence)
    if initial is not None and isinstance(suite, ComparesWithInitial):
        scores = suite.with_initial(scores, initial, rows)
    generator = given.generator if given else subject.generator
    suite.export(folder, rows, answers, generator)
    write_json(folder / "items.json", {_full(section, end): dict(of) for end, of in scores.items.items()})
    record = {
        **scores_record(section, scores),
        "iteration": subject.iteration if subject.run else None,
        "generator": generator,
        "policy": subject.fingerprint if given is None else None,
        "cost_usd": math.fsum(row.get("cost_usd") or 0.0 for row in rows) if suite.engine else None,
        "shown": shown,
        "settings": section.model_dump(mode="json"),
        "made_from": made_from,
    }
    write_json(folder / "scores.json", record)
    return record


def _identity(subject: Subject, section: SuiteSection, suite: Suite, given: Answers | None) -> dict[str, Any]:
    """What decides the figures: the suite's settings and data, and whose answers."""
    own = subject.sampling
    sampler = [own.engine, own.dtype, list(own.stop_tokens), subject.seed]
    policy = {"policy": subject.fingerprint, "sampler": sampler} if given is None else {"answers": content_hash(given)}
    settings = {name: value for name, value in identity(section).items() if name not in FINGERPRINTED}
    return json.loads(json.dumps({"settings": settings, "suite": suite.identity(), **policy}))


def _shown(section: SuiteSection) -> dict[str, Any]:
    return {name: getattr(section, name) for name in SHOWN if hasattr(section, name)}


def _initial(subject: Subject, suite: Suite, folder: Path) -> list[Row] | None:
    """The initial policy's verdicts, where a later one of its run is compared with them."""
    file = folder.parent / place_of(0) / "verdicts.jsonl"
    later = subject.run is not None and subject.iteration != 0 and isinstance(suite, ComparesWithInitial)
    return read_rows(file) if later and file.exists() else None


def _refuse_drift(folder: Path, now: Mapping[str, Any]) -> None:
    """Raises DriftError where the evaluation began from something else."""
    file = folder / "identity.json"
    if file.exists() and (before := read_json(file)) != now:
        flat_before, flat_now = _flat(before), _flat(now)
        keys = sorted(key for key in flat_before | flat_now if flat_before.get(key) != flat_now.get(key))
        detail = "; ".join(f"{key}: {flat_before.get(key)!r} -> {flat_now.get(key)!r}" for key in keys)
        raise DriftError(
            f"{folder}: this evaluation began with other settings ({detail}). Figures would mix two. Accepted: the old values, "
            "another `name` for the evaluation; for a model, another folder (--out) too"
        )


def _flat(values: Mapping[str, Any], head: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{head}{key}.") if isinstance(value, Mapping) else {f"{head}{key}": value}
    return found


def _finished(folder: Path, shown: Mapping[str, Any]) -> Scores | None:
    file = folder / "scores.json"
    record = read_json(file) if file.exists() else None
    return record if record is not None and record["shown"] == shown else None


# ---- judging -------------------------------------------------------------------------------------------------------------


def _judge(subject: Subject, section: SuiteSection, suite: Suite, answers: Answers, folder: Path) -> list[Row]:
    if suite.turns == 0:
        policy = subject.policy()
        if not isinstance(suite, Runner) or policy is None:
            raise EvaluationError(
                f"{section.called}: this suite runs the policy itself; accepted: a model, no file of answers"
            )
        subject.engine().release()
        return suite.run(policy.folder, folder / "work")
    if suite.engine is None:
        return finish(suite.judge(answers, None))
    return finish(_paid(subject, suite, suite.engine, answers, f"{subject.title}: {section.called} verdicts"))


async def _paid(subject: Subject, suite: Suite, engine: EngineSection, answers: Answers, title: str) -> list[Row]:
    dispatcher = _dispatcher(subject, engine)
    try:
        shown = asyncio.create_task(_progress(subject, suite.calls, title))
        try:
            rows = await suite.judge(answers, dispatcher)
            # a reply out of the ledger and one just bought cost the same, to the byte
            return [row | {"cost_usd": float(row["cost_usd"])} if "cost_usd" in row else row for row in rows]
        finally:
            shown.cancel()
            await asyncio.gather(shown, return_exceptions=True)
    finally:
        await dispatcher.aclose()


async def _progress(subject: Subject, calls: int, title: str) -> None:
    """Replies as the ledger has them; other processes that share it, and calls bought before, are not told apart."""
    ledger, payer = subject.ledger(), subject.payer()
    seen = first = ledger.totals(payer.run, payer.iteration)["done"]
    with progress(title, calls, "replies at most") as advance:
        while True:
            await asyncio.sleep(POLL_SECONDS)
            done = ledger.totals(payer.run, payer.iteration)["done"]
            advance(min(done - seen, calls - (seen - first)), "")
            seen = done


def _dispatcher(subject: Subject, engine: EngineSection) -> Dispatcher:
    if engine.batch:
        from nashtune.judging.batch import BatchDispatcher

        return BatchDispatcher(engine, subject.ledger(), subject.payer())
    from nashtune.judging.dispatch import Dispatcher

    return Dispatcher(engine, subject.ledger(), subject.payer())


def _check_judge(subject: Subject, section: SuiteSection, suite: Suite, engine: EngineSection) -> None:
    """Before anything is sampled: key and price, and log-probs where the suite reads them. Raises OracleError."""
    check_engine(engine)
    if not suite.reads_logprobs or not engine.probe or engine.batch:
        return
    file = (subject.run.folder if subject.run else subject.folder) / "endpoints.json"
    known: dict[str, Any] = read_json(file) if file.exists() else {}
    name = f"{engine.base_url} {engine.model}"
    if name not in known:
        known[name] = finish(_probe(subject, engine))
        write_json(file, known)
    if not known[name]["logprobs"]:
        raise EvaluationError(
            f"{name}: the server gives no log-probs, which {section.called} reads; accepted: a judge that gives them"
        )


async def _probe(subject: Subject, engine: EngineSection) -> dict[str, Any]:
    from nashtune.judging.probe import probe

    dispatcher = _dispatcher(subject, engine)
    try:
        return asdict(await probe(dispatcher))
    finally:
        await dispatcher.aclose()


def check_engine(engine: EngineSection) -> None:
    """Raises OracleError where a judge's key or price is not known."""
    from nashtune.judging.endpoint import Endpoint
    from nashtune.judging.prices import find_price

    Endpoint(engine)
    find_price(engine)


# ---- records -------------------------------------------------------------------------------------------------------------


def scores_record(section: SuiteSection, scores: SuiteScores) -> Scores:
    """The part of a scores.json that a suite decides, names in full."""
    return {
        "name": section.called,
        "suite": section.suite_name,
        "metrics": {
            _full(section, end): _interval(value) | {"unit": section.unit(end)} for end, value in scores.metrics.items()
        },
        "counts": dict(scores.counts),
        "facts": _finite(dict(scores.facts)),
        "tables": _finite([asdict(table) for table in scores.tables]),
        "warnings": list(scores.warnings),
        "unfit": {_full(section, end): reason for end, reason in scores.unfit.items()},
    }


def _full(section: SuiteSection, end: str) -> str:
    return f"{section.called}_{end}" if end else section.called


def _interval(value: Interval | float) -> dict[str, Any]:
    found = asdict(value) if isinstance(value, Interval) else {"value": value, "low": None, "high": None, "n": None}
    return _finite(found)


def _finite(value: Any) -> Any:
    """As JSON can hold it: a number that is none becomes null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, Sequence) and not isinstance(value, str) else value
