"""The one thread that writes to a ledger. Changes that wait share a transaction, and so one wait for the disk."""

from __future__ import annotations

import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from nashtune.errors import StoreError
from nashtune.store import schema

WRITES_TOGETHER = 256

T = TypeVar("T")


class _Write:
    """An operation waiting for the writer, and the future of its result."""

    __slots__ = ("apply", "future", "outcome")

    def __init__(self, apply: Callable[[sqlite3.Connection], Any]):
        self.apply = apply
        self.future: Future[Any] = Future()
        self.future.set_running_or_notify_cancel()  # a caller that gives up must not stop the writer at set_result
        self.outcome: Any = None


class Writer:
    """Applies changes to the file at ``path``, at most WRITES_TOGETHER in one transaction, in a thread that starts with
    the first. ``undone`` is called in that thread whenever something it applied was rolled back."""

    def __init__(self, path: Path, undone: Callable[[], None]) -> None:
        self._path, self._undone = path, undone
        self._lock = threading.Lock()
        self._queue: queue.SimpleQueue[_Write | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = False

    def write(self, apply: Callable[[sqlite3.Connection], T]) -> Future[T]:
        """A future that is done when the change is on disk. It must not touch the transaction. What ``apply`` raises undoes
        that change alone and becomes the future's, but for SQLite's own faults (a full disk, a damaged file): those fail all
        that waited together, as a StoreError. Raises StoreError where the writer is closed."""
        if self._closed:
            raise StoreError(f"{self._path}: the ledger is closed")
        write = _Write(apply)
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="ledger", daemon=True)
                self._thread.start()
        self._queue.put(write)
        return write.future

    def close(self) -> None:
        """Finish what waits to be written."""
        if self._closed:
            return
        self._closed = True
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()

    def _serve(self) -> None:
        try:
            db = self._connect()
        except StoreError as error:  # the file was there a moment ago; whoever writes hears of it
            while (write := self._queue.get()) is not None:
                write.future.set_exception(error)
            return
        last = False
        while not last:
            writes = [self._queue.get()]
            while len(writes) < WRITES_TOGETHER:
                try:
                    writes.append(self._queue.get_nowait())
                except queue.Empty:
                    break
            last = None in writes
            self._commit(db, [w for w in writes if w is not None])
        db.close()

    def _connect(self) -> sqlite3.Connection:
        db = schema.connect(self._path)
        with schema.errors_named(self._path):
            db.execute("PRAGMA synchronous = FULL")
        return db

    def _commit(self, db: sqlite3.Connection, writes: list[_Write]) -> None:
        """Apply ``writes`` in one transaction; one that fails is undone alone."""
        failed: dict[int, BaseException] = {}
        try:
            db.execute("BEGIN IMMEDIATE")
            for number, write in enumerate(writes):
                db.execute("SAVEPOINT one")
                try:
                    write.outcome = write.apply(db)
                except Exception as error:  # whoever waits for the write raises it
                    if isinstance(error, sqlite3.Error) and not isinstance(error, sqlite3.IntegrityError):
                        raise
                    db.execute("ROLLBACK TO one")
                    self._undone()
                    failed[number] = error
                db.execute("RELEASE one")
            db.execute("COMMIT")
        except sqlite3.Error as error:
            with suppress(sqlite3.Error):
                if db.in_transaction:  # SQLite rolls back by itself on some errors (a full disk)
                    db.execute("ROLLBACK")
            self._undone()
            whole = StoreError(f"{self._path}: ledger: {error}")
            failed = dict.fromkeys(range(len(writes)), whole)
        for number, write in enumerate(writes):
            if number in failed:
                write.future.set_exception(failed[number])
            else:
                write.future.set_result(write.outcome)
