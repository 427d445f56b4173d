"""The ledger of paid calls: what was planned, sent and received, so that nothing is bought twice.

A call is one key (a hash of everything that decides its answer) and one row per attempt to buy it:
planned -> inflight -> done | failed, each step a transaction of its own. A process killed in mid-call leaves its
attempt "inflight" for good: nobody can know whether it was billed, and the next run buys the call as a further attempt.

The reply is stored as received, before any Python parses it. Model and token counts are columns that SQLite itself
derives from the reply inside the same transaction, so money is accounted for even where the reply turns out useless.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from nashtune.errors import StoreError
from nashtune.seeds import canonical_json

APPLICATION_ID = 0x6E617368  # "nash", in the file's header: tells a ledger from any other SQLite file
SCHEMA_VERSION = 1
BUSY_SECONDS = 60.0

# The derived columns stand before `reply`: SQLite then sums them without walking through the long replies.
SCHEMA = """
CREATE TABLE calls (
    key TEXT PRIMARY KEY,
    request TEXT NOT NULL,      -- canonical JSON: what was asked of whom, without message texts and secrets
    planned_at REAL NOT NULL    -- Unix seconds
);
CREATE TABLE attempts (
    key TEXT NOT NULL REFERENCES calls (key),
    attempt INTEGER NOT NULL,   -- 1, 2, ...
    state TEXT NOT NULL CHECK (state IN ('inflight', 'done', 'failed')),
    started_at REAL NOT NULL,
    ended_at REAL,
    reason TEXT,                -- why it failed
    model TEXT AS (CASE WHEN json_valid(reply) THEN json_extract(reply, '$.model') END) STORED,
    prompt_tokens INTEGER AS (CASE WHEN json_valid(reply) THEN json_extract(reply, '$.usage.prompt_tokens') END) STORED,
    completion_tokens INTEGER
        AS (CASE WHEN json_valid(reply) THEN json_extract(reply, '$.usage.completion_tokens') END) STORED,
    reply TEXT,                 -- body as received
    PRIMARY KEY (key, attempt)
);
"""


@dataclass(frozen=True, slots=True)
class StoredReply:
    """A reply as received (``raw``, the server's JSON text) and the attempt that bought it."""

    attempt: int
    raw: str


class Ledger:
    """Paid calls in one SQLite file (WAL, synchronous=FULL); one writer at a time, by a lock here and SQLite's across
    processes. Raises StoreError where the file is damaged, not a ledger, or stays locked longer than BUSY_SECONDS."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        try:
            self._db = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        except sqlite3.Error as error:
            raise StoreError(f"{self.path}: cannot open the ledger: {error}") from error
        try:
            self._prepare()
        except StoreError:
            self._db.close()
            raise

    def _prepare(self) -> None:
        with self._transaction() as db:
            (application,) = db.execute("PRAGMA application_id").fetchone()
            (version,) = db.execute("PRAGMA user_version").fetchone()
            (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if (application, version, tables) == (0, 0, 0):
                for statement in SCHEMA.split(";\n"):
                    db.execute(statement)
                db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            elif (application, version) != (APPLICATION_ID, SCHEMA_VERSION):
                raise StoreError(
                    f"{self.path}: not a ledger of this version: application id {application}, schema {version}; "
                    f"accepted: {APPLICATION_ID}, {SCHEMA_VERSION}"
                )
        with self._errors_named():
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")

    def plan(self, key: str, request: Mapping[str, Any]) -> None:
        """Note that a call is wanted. ``request`` describes it shortly (JSON values, no secrets); the first stays."""
        with self._transaction() as db:
            db.execute("INSERT OR IGNORE INTO calls VALUES (?, ?, ?)", (key, canonical_json(request), time.time()))

    def begin(self, key: str) -> int | None:
        """Open the next attempt of a planned call, to be committed before anything is sent.

        Returns its number, or None where the call is done already (perhaps by another process) and must not be sent.
        """
        with self._transaction() as db:
            if db.execute("SELECT 1 FROM calls WHERE key = ?", (key,)).fetchone() is None:
                raise StoreError(f"{self.path}: call {key} was begun without having been planned")
            rows = db.execute("SELECT attempt, state FROM attempts WHERE key = ?", (key,)).fetchall()
            if any(state == "done" for _, state in rows):
                return None
            attempt = 1 + max((number for number, _ in rows), default=0)
            db.execute(
                "INSERT INTO attempts (key, attempt, state, started_at) VALUES (?, ?, 'inflight', ?)",
                (key, attempt, time.time()),
            )
            return attempt

    def done(self, key: str, attempt: int, raw: str) -> None:
        """Keep the reply of an attempt in flight, as received."""
        self._end(key, attempt, "state = 'done', reply = ?", raw, ("inflight",))

    def failed(self, key: str, attempt: int, reason: str) -> None:
        """End an attempt without a usable reply. A reply stored before it proved unreadable stays, with its cost."""
        self._end(key, attempt, "state = 'failed', reason = ?", reason, ("inflight", "done"))

    def _end(self, key: str, attempt: int, change: str, text: str, states: tuple[str, ...]) -> None:
        marks = ", ".join("?" * len(states))
        with self._transaction() as db:
            cursor = db.execute(
                f"UPDATE attempts SET {change}, ended_at = ? WHERE key = ? AND attempt = ? AND state IN ({marks})",
                (text, time.time(), key, attempt, *states),
            )
            if cursor.rowcount != 1:
                raise StoreError(f"{self.path}: attempt {attempt} of call {key} is not {' or '.join(states)}")

    def get(self, key: str) -> StoredReply | None:
        """The first reply received for ``key``, None where there is none yet."""
        with self._lock, self._errors_named():
            row = self._db.execute(
                "SELECT attempt, reply FROM attempts WHERE key = ? AND state = 'done' ORDER BY ended_at, attempt LIMIT 1",
                (key,),
            ).fetchone()
        return None if row is None else StoredReply(*row)

    def totals(self) -> dict[str, int]:
        """Counts over the whole file: ``calls`` and ``done`` of calls, ``failed`` and ``inflight`` of attempts (those
        whose end was never recorded), tokens of every reply received, usable or not."""
        with self._lock, self._errors_named():
            row = self._db.execute(
                "SELECT (SELECT count(*) FROM calls), count(DISTINCT CASE WHEN state = 'done' THEN key END), "
                "count(*) FILTER (WHERE state = 'failed'), count(*) FILTER (WHERE state = 'inflight'), "
                "coalesce(sum(prompt_tokens), 0), coalesce(sum(completion_tokens), 0) FROM attempts"
            ).fetchone()
        names = ("calls", "done", "failed", "inflight", "prompt_tokens", "completion_tokens")
        return {name: int(value) for name, value in zip(names, row, strict=True)}

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._errors_named():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # SQLite rolls back by itself on some errors (a full disk)
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _errors_named(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StoreError(f"{self.path}: ledger: {error}") from error
