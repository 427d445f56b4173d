"""Batches of calls in the ledger: planned with their attempts in one transaction, so that none is ever half there."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from nashtune.errors import BudgetError
from nashtune.seeds import canonical_json, content_hash
from nashtune.store.ledger import Caps, Ledger, Terms


@dataclass(frozen=True, slots=True)
class Row:
    """A batch that has not ended. ``id`` is the server's, None before it is known; ``attempts``: call key -> attempt, those
    alone that are still in flight."""

    tag: str
    id: str | None
    attempts: dict[str, int]


@dataclass(slots=True)
class Planned:
    """What came of planning calls: the batch that now holds an attempt of each (None where no call could be opened), the
    calls that turned out to be done, and those that do not fit into the budget."""

    row: Row | None = None
    done: list[str] = field(default_factory=list)
    refused: dict[str, BudgetError] = field(default_factory=dict)


def plan_batch(ledger: Ledger, calls: Mapping[str, tuple[Mapping[str, Any], Terms]], caps: Caps) -> Future[Planned]:
    """Plan calls (key -> what is asked, at which terms), open the next attempt of each and note the batch of them all."""

    def apply(db: sqlite3.Connection) -> Planned:
        planned, attempts = Planned(), {}
        for key, (request, terms) in calls.items():
            ledger.plan_within(db, key, request)
            try:
                attempt = ledger.begin_within(db, key, terms, caps)
            except BudgetError as error:
                planned.refused[key] = error
                continue
            if attempt is None:
                planned.done.append(key)
            else:
                attempts[key] = attempt
        if attempts:
            tag = content_hash("batch", sorted(f"{key}:{n}" for key, n in attempts.items()), length=32)
            values = (tag, None, "planned", canonical_json(attempts), time.time())
            db.execute("INSERT INTO batches (tag, id, state, attempts, planned_at) VALUES (?, ?, ?, ?, ?)", values)
            planned.row = Row(tag, None, attempts)
        return planned

    return ledger.write(apply)


def submitted(ledger: Ledger, row: Row, server_id: str) -> Future[None]:
    """Keep the server's id of a batch, and that its attempts travel in it."""

    def apply(db: sqlite3.Connection) -> None:
        db.execute("UPDATE batches SET id = ?, state = 'submitted' WHERE tag = ?", (server_id, row.tag))
        rows = [(server_id, key, attempt) for key, attempt in row.attempts.items()]
        db.executemany("UPDATE attempts SET batch = ? WHERE key = ? AND attempt = ?", rows)

    return ledger.write(apply)


def ended(ledger: Ledger, tag: str) -> Future[None]:
    """Note that nothing more is to come of a batch."""

    def apply(db: sqlite3.Connection) -> None:
        db.execute("UPDATE batches SET state = 'ended' WHERE tag = ?", (tag,))

    return ledger.write(apply)


def unfinished(ledger: Ledger, run: str, base_url: str, model: str) -> Future[list[Row]]:
    """Batches of a run at one server and model that have not ended, the oldest first; none of another judge's."""

    def apply(db: sqlite3.Connection) -> list[Row]:
        found: list[Row] = []
        query = "SELECT tag, id, attempts FROM batches WHERE state != 'ended' ORDER BY planned_at"
        for tag, server_id, text in db.execute(query).fetchall():
            attempts: dict[str, int] = json.loads(text)
            payer, request = db.execute(
                "SELECT a.run, c.request FROM attempts a JOIN calls c USING (key) WHERE a.key = ? AND a.attempt = ?",
                next(iter(attempts.items())),
            ).fetchone()
            asked = json.loads(request)
            if (payer, asked["base_url"], asked["model"]) == (run, base_url, model):
                open_ones = {key: n for key, n in attempts.items() if _in_flight(db, key, n)}
                found.append(Row(tag, server_id, open_ones))
        return found

    return ledger.write(apply)


def _in_flight(db: sqlite3.Connection, key: str, attempt: int) -> bool:
    row = db.execute("SELECT state FROM attempts WHERE key = ? AND attempt = ?", (key, attempt)).fetchone()
    return row == ("inflight",)
