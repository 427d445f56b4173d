"""The ledger of paid calls: what was planned, sent and received, so that nothing is bought twice.

A call is one key (a hash of everything that decides its answer) and one row per attempt to buy it:
planned -> inflight -> done | failed. A process killed in mid-call leaves its attempt "inflight" for good: nobody can
know whether it was billed, and the next run buys the call as a further attempt.

The reply is stored as received, before any Python parses it. Model, token counts and cost are columns that SQLite itself
derives from the reply inside the same transaction, so money is accounted for even where the reply turns out useless.
An attempt with no reply that may have been billed all the same counts at its worst case (``exposure``).

Writes of calls that run side by side share one transaction, and so one wait for the disk; each waits until it is on disk.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from nashtune.errors import BudgetError, StoreError
from nashtune.seeds import canonical_json
from nashtune.store import schema
from nashtune.store.writer import Writer

T = TypeVar("T")
_Payer = tuple[str, int | None]
"""A run, or one iteration of it."""


@dataclass(frozen=True, slots=True)
class StoredReply:
    """A reply as received (``raw``, the server's JSON text), the attempt that bought it, and the dollars it counts for."""

    attempt: int
    raw: str
    spent: float


@dataclass(frozen=True, slots=True)
class Terms:
    """Who pays for an attempt, and at which prices (dollars a token). ``exposure``: its cost at worst, in dollars."""

    run: str = ""
    iteration: int = 0
    exposure: float = 0.0
    input_price: float = 0.0
    cached_price: float = 0.0
    output_price: float = 0.0


@dataclass(frozen=True, slots=True)
class Caps:
    """Hard limits in dollars, None where there is none."""

    run: float | None = None
    iteration: float | None = None


NO_CAPS = Caps()


class Ledger:
    """Paid calls in one SQLite file (WAL, synchronous=FULL); one writer thread here, SQLite's lock across processes.
    Raises StoreError where the file is damaged, not a ledger, or stays locked longer than schema.BUSY_SECONDS."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self._spent: dict[_Payer, float] = {}  # the writer's
        self._writer = Writer(self.path, undone=self._spent.clear)
        self._db = schema.connect(self.path)
        try:
            schema.prepare(self._db, self.path)
        except StoreError:
            self._db.close()
            raise

    # ---- writes: each returns a future that is done when the change is on disk ----------------------------------------

    def write(self, apply: Callable[[sqlite3.Connection], T]) -> Future[T]:
        """Have the writer apply a change, in one transaction with others that wait. It must not touch the transaction."""
        return self._writer.write(apply)

    def open_attempt(
        self, key: str, request: Mapping[str, Any], terms: Terms, caps: Caps | None = None
    ) -> Future[int | None]:
        """Plan a call and open its next attempt, to be on disk before anything is sent -> its number, or None where the
        call is done already (perhaps by another process) and must not be sent. The future holds BudgetError where the
        worst case would go over a cap: nothing is opened then."""

        def apply(db: sqlite3.Connection) -> int | None:
            self.plan_within(db, key, request)
            return self.begin_within(db, key, terms, caps or NO_CAPS)

        return self.write(apply)

    def close_attempt(
        self, key: str, attempt: int, *, raw: str | None = None, reason: str = "", unbilled: bool = False
    ) -> Future[float]:
        """Keep what came of an attempt: the reply as received (``raw``), or why there is none -> the dollars it counts for.
        ``unbilled``: it is certain that it cost nothing."""
        if raw is not None:
            return self.write(
                lambda db: self._end(db, key, attempt, "state = 'done', reply = ?", (raw,), ("inflight",))
            )
        change = "state = 'failed', reason = ?" + (", exposure = 0" if unbilled else "")
        return self.write(lambda db: self._end(db, key, attempt, change, (reason,), ("inflight", "done")))

    def plan(self, key: str, request: Mapping[str, Any]) -> None:
        """Note that a call is wanted. ``request`` describes it shortly (JSON values, no secrets); the first stays."""
        self.write(lambda db: self.plan_within(db, key, request)).result()

    def begin(self, key: str, terms: Terms | None = None, caps: Caps | None = None) -> int | None:
        """Open the next attempt of a planned call; as ``open_attempt``."""
        return self.write(lambda db: self.begin_within(db, key, terms or Terms(), caps or NO_CAPS)).result()

    def done(self, key: str, attempt: int, raw: str) -> None:
        """Keep the reply of an attempt in flight, as received."""
        self.close_attempt(key, attempt, raw=raw).result()

    def failed(self, key: str, attempt: int, reason: str, *, unbilled: bool = False) -> None:
        """End an attempt without a usable reply. A reply stored before it proved unreadable stays, with its cost."""
        self.close_attempt(key, attempt, reason=reason, unbilled=unbilled).result()

    def plan_within(self, db: sqlite3.Connection, key: str, request: Mapping[str, Any]) -> None:
        """As ``plan``, as a part of a change given to ``write``."""
        db.execute("INSERT OR IGNORE INTO calls VALUES (?, ?, ?)", (key, canonical_json(request), time.time()))

    def begin_within(self, db: sqlite3.Connection, key: str, terms: Terms, caps: Caps) -> int | None:
        """As ``begin``, as a part of a change given to ``write``; after a BudgetError nothing has changed."""
        if db.execute("SELECT 1 FROM calls WHERE key = ?", (key,)).fetchone() is None:
            raise StoreError(f"{self.path}: call {key} was begun without having been planned")
        rows = db.execute("SELECT attempt, state FROM attempts WHERE key = ?", (key,)).fetchall()
        if any(state == "done" for _, state in rows):
            return None
        payers = self._check_caps(db, terms, caps)
        attempt = 1 + max((number for number, _ in rows), default=0)
        columns = "key, attempt, state, run, iteration, started_at, exposure, input_price, cached_price, output_price"
        prices = (terms.exposure, terms.input_price, terms.cached_price, terms.output_price)
        values = (key, attempt, "inflight", terms.run, terms.iteration, time.time(), *prices)
        db.execute(f"INSERT INTO attempts ({columns}) VALUES ({', '.join('?' * len(values))})", values)
        for payer in payers:
            self._spent[payer] += terms.exposure
        return attempt

    def _check_caps(self, db: sqlite3.Connection, terms: Terms, caps: Caps) -> tuple[_Payer, _Payer]:
        payers: tuple[_Payer, _Payer] = (terms.run, None), (terms.run, terms.iteration)
        names = ("budget.usd", "budget.usd_per_iteration")
        for name, cap, payer in zip(names, (caps.run, caps.iteration), payers, strict=True):
            spent = self._spent_by(db, payer)
            if cap is not None and spent + terms.exposure > cap + 1e-9:
                raise BudgetError(
                    f"{name}: {cap:g} dollars would be exceeded: {spent:.4f} are spent or reserved and the next call may cost "
                    f"{terms.exposure:.4f}. It was not sent; raise the cap and run the same command to go on"
                )
        return payers

    def _spent_by(self, db: sqlite3.Connection, payer: _Payer) -> float:
        """Dollars spent or reserved; summed once, then kept up to date, as a sum over all calls for each call is slow."""
        if payer not in self._spent:
            where = "run = ?" if payer[1] is None else "run = ? AND iteration = ?"
            values = payer[:1] if payer[1] is None else payer
            (self._spent[payer],) = db.execute(f"SELECT total(spent) FROM attempts WHERE {where}", values).fetchone()
        return self._spent[payer]

    def _end(
        self,
        db: sqlite3.Connection,
        key: str,
        attempt: int,
        change: str,
        values: tuple[str, ...],
        states: tuple[str, ...],
    ) -> float:
        marks = ", ".join("?" * len(states))
        where = f"key = ? AND attempt = ? AND state IN ({marks})"
        row = db.execute(
            f"SELECT run, iteration, spent FROM attempts WHERE {where}", (key, attempt, *states)
        ).fetchone()
        if row is None:
            raise StoreError(f"{self.path}: attempt {attempt} of call {key} is not {' or '.join(states)}")
        run, iteration, before = row
        (after,) = db.execute(
            f"UPDATE attempts SET {change}, ended_at = ? WHERE {where} RETURNING spent",
            (*values, time.time(), key, attempt, *states),
        ).fetchone()
        for payer in ((run, None), (run, iteration)):
            if payer in self._spent:
                self._spent[payer] += after - before
        return after

    # ---- facts ---------------------------------------------------------------------------------------------------------

    def remember(self, name: str, value: str) -> Future[str]:
        """Keep the first value ever given for ``name`` -> the value kept."""

        def apply(db: sqlite3.Connection) -> str:
            db.execute("INSERT OR IGNORE INTO facts VALUES (?, ?)", (name, value))
            return db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()[0]

        return self.write(apply)

    def fact(self, name: str) -> str | None:
        row = self._read("SELECT value FROM facts WHERE name = ?", (name,))
        return row[0] if row else None

    # ---- reads -----------------------------------------------------------------------------------------------------------

    def get(self, key: str) -> StoredReply | None:
        """The first reply received for ``key``, None where there is none yet."""
        row = self._read(
            "SELECT attempt, reply, spent FROM attempts WHERE key = ? AND state = 'done' ORDER BY ended_at, attempt LIMIT 1",
            (key,),
        )
        return None if row is None else StoredReply(*row)

    def totals(self, run: str | None = None, iteration: int | None = None) -> dict[str, Any]:
        """Counts over the whole file, a run, or one of its iterations: ``calls`` and ``done`` of calls, ``failed`` and
        ``inflight`` of attempts (those whose end was never recorded), tokens of every reply received, usable or not;
        ``cost_usd`` of replies, and ``exposure_usd`` of attempts that may have been billed without one."""
        where, values = "1", []
        if run is not None:
            where, values = "run = ?", [run]
        if iteration is not None:
            where, values = f"{where} AND iteration = ?", [*values, iteration]
        calls = "(SELECT count(*) FROM calls)" if run is None and iteration is None else "count(DISTINCT key)"
        row = self._read(
            f"SELECT {calls}, count(DISTINCT CASE WHEN state = 'done' THEN key END), "
            "count(*) FILTER (WHERE state = 'failed'), count(*) FILTER (WHERE state = 'inflight'), "
            "coalesce(sum(prompt_tokens), 0), coalesce(sum(completion_tokens), 0), coalesce(sum(cost), 0.0), "
            f"coalesce(sum(exposure) FILTER (WHERE cost IS NULL), 0.0) FROM attempts WHERE {where}",
            values,
        )
        assert row is not None
        names = (
            "calls",
            "done",
            "failed",
            "inflight",
            "prompt_tokens",
            "completion_tokens",
            "cost_usd",
            "exposure_usd",
        )
        return dict(zip(names, row, strict=True))

    def check(self) -> None:
        """Raises StoreError where SQLite finds the file damaged."""
        row = self._read("PRAGMA integrity_check", ())
        if row != ("ok",):
            raise StoreError(f"{self.path}: ledger: integrity check says {row}")

    def _read(self, query: str, values: Any) -> Any:
        with self._lock, schema.errors_named(self.path):
            return self._db.execute(query, values).fetchone()

    def close(self) -> None:
        """Finish what waits to be written, and let go of the file."""
        self._writer.close()
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
