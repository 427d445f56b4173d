"""The tables of a ledger's SQLite file, and opening such a file."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nashtune.errors import StoreError

APPLICATION_ID = 0x6E617368  # "nash", in the file's header: tells a ledger from any other SQLite file
SCHEMA_VERSION = 2
BUSY_SECONDS = 60.0

# Token counts that no honest server sends (none, text, below zero, a prompt of 0) count as unknown, and the attempt then at its
# worst case: a budget must not grow by a reply.
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
    run TEXT NOT NULL,          -- who pays
    iteration INTEGER NOT NULL,
    batch TEXT,                 -- id of the batch it travelled in
    started_at REAL NOT NULL,
    ended_at REAL,
    reason TEXT,                -- why it failed
    exposure REAL NOT NULL,     -- dollars it may cost at worst while no reply says what it did cost
    input_price REAL NOT NULL,  -- dollars a token
    cached_price REAL NOT NULL,
    output_price REAL NOT NULL,
    model TEXT AS (CASE WHEN json_valid(reply) THEN json_extract(reply, '$.model') END) STORED,
    prompt_tokens INTEGER AS (CASE WHEN json_valid(reply) AND json_type(reply, '$.usage.prompt_tokens') = 'integer'
        AND json_extract(reply, '$.usage.prompt_tokens') > 0 THEN json_extract(reply, '$.usage.prompt_tokens') END) STORED,
    cached_tokens INTEGER AS (CASE WHEN json_valid(reply)
        AND json_type(reply, '$.usage.prompt_tokens_details.cached_tokens') = 'integer'
        AND json_extract(reply, '$.usage.prompt_tokens_details.cached_tokens') BETWEEN 0 AND prompt_tokens
        THEN json_extract(reply, '$.usage.prompt_tokens_details.cached_tokens') END) STORED,
    completion_tokens INTEGER AS (CASE WHEN json_valid(reply) AND json_type(reply, '$.usage.completion_tokens') = 'integer'
        AND json_extract(reply, '$.usage.completion_tokens') >= 0
        THEN json_extract(reply, '$.usage.completion_tokens') END) STORED,
    cost REAL AS ((prompt_tokens - coalesce(cached_tokens, 0)) * input_price + coalesce(cached_tokens, 0) * cached_price
        + completion_tokens * output_price) STORED,
    spent REAL AS (coalesce(cost, exposure)) STORED,
    reply TEXT,                 -- body as received
    PRIMARY KEY (key, attempt)
);
CREATE INDEX attempts_by_payer ON attempts (run, iteration, state, spent);
CREATE TABLE facts (
    name TEXT PRIMARY KEY,      -- what is known of an endpoint: the model it returned first, what it can do
    value TEXT NOT NULL
);
CREATE TABLE batches (
    tag TEXT PRIMARY KEY,       -- hash of the attempts in it, carried in the batch's metadata
    id TEXT,                    -- the server's, once known
    state TEXT NOT NULL CHECK (state IN ('planned', 'submitted', 'ended')),
    attempts TEXT NOT NULL,     -- JSON: call key -> attempt
    planned_at REAL NOT NULL
);
"""


@contextmanager
def errors_named(path: Path) -> Iterator[None]:
    """SQLite's errors inside as StoreError."""
    try:
        yield
    except sqlite3.Error as error:
        raise StoreError(f"{path}: ledger: {error}") from error


def connect(path: Path) -> sqlite3.Connection:
    """A connection without transactions of its own. Raises StoreError where the file cannot be opened."""
    try:
        return sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    except sqlite3.Error as error:
        raise StoreError(f"{path}: cannot open the ledger: {error}") from error


def prepare(db: sqlite3.Connection, path: Path) -> None:
    """Create the tables in an empty file. Raises StoreError where the file is damaged, locked, or not a ledger."""
    with errors_named(path):
        db.execute("BEGIN IMMEDIATE")
        try:
            _create_or_check(db, path)
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")


def _create_or_check(db: sqlite3.Connection, path: Path) -> None:
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
            f"{path}: not a ledger of this version: application id {application}, schema {version}; "
            f"accepted: {APPLICATION_ID}, {SCHEMA_VERSION}"
        )
