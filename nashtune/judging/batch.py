"""Paid calls by the batch API: at about half the price, within a day, and like all paid calls never bought twice.

Calls gather until none has come for a moment, then travel together. A batch and an attempt of each of its calls are in
the ledger before anything is sent, and the batch carries a tag made of those attempts. So a process that was killed, at
whatever point, is followed by one that finds its batch on the server and takes up its replies.
"""

from __future__ import annotations

import asyncio
import dataclasses
from dataclasses import dataclass, field
from typing import Any

from nashtune.errors import OracleError
from nashtune.judging.batch_server import OVER, BatchServer, Line, NotSubmittedError, read_line, request_line
from nashtune.judging.chat import ChatRequest, Reply, summary
from nashtune.judging.dispatch import Dispatcher, Payer
from nashtune.judging.faults import CallRefusedError, TransientFault, backoff
from nashtune.judging.prices import find_price
from nashtune.recipe import EngineSection
from nashtune.store import batches
from nashtune.store.batches import Row
from nashtune.store.ledger import Ledger

QUIET_S = 5.0
"""A batch leaves when no call has come for so long, or for engine.batch_poll_s where that is shorter."""
MOST_BYTES = 100_000_000  # of an input file
LIVE: set[tuple[str, str]] = set()
"""Batches (ledger, tag) that this process works on: another dispatcher of the same run must not take them for lost."""


@dataclass(slots=True, eq=False)
class _Wanted:
    """A call on its way. ``heard`` is None where the ledger has a reply to look at, else why there is none."""

    key: str
    request: ChatRequest
    limit_field: str
    line: bytes
    heard: asyncio.Future[Exception | None]


@dataclass(slots=True)
class _Desk:
    """What belongs to the event loop that made it. ``waiting`` gathers for the next batch, ``short`` waits for money that
    batches under way may leave of theirs, ``riding`` is in a batch (of a process before this one: without a request)."""

    server: BatchServer
    adoption: asyncio.Task[None] | None = None
    waiting: dict[str, _Wanted] = field(default_factory=dict)
    bytes: int = 0
    timer: asyncio.TimerHandle | None = None
    short: list[_Wanted] = field(default_factory=list)
    riding: dict[str, _Wanted | asyncio.Future[Exception | None]] = field(default_factory=dict)
    under_way: int = 0
    tasks: set[asyncio.Task[None]] = field(default_factory=set)


class BatchDispatcher(Dispatcher):
    """A Dispatcher that buys replies in batches of up to ``engine.batch_size`` calls, looked at every
    ``engine.batch_poll_s`` seconds. A call that its batch did not answer goes into a later one, ``engine.max_attempts``
    batches in all. ``strays`` counts result lines that belonged to no call. Raises OracleError without a ledger.
    """

    def __init__(
        self, engine: EngineSection, ledger: Ledger | None = None, payer: Payer | None = None, **for_tests: Any
    ) -> None:
        super().__init__(engine, ledger, payer, **for_tests)
        if ledger is None:
            raise OracleError("engine.batch is true, but there is no ledger that could tell which batch is whose")
        self.price = find_price(engine, batch=True)
        self.strays = 0
        self._book = ledger
        self._desks: dict[asyncio.AbstractEventLoop, _Desk] = {}

    async def aclose(self) -> None:
        """End all work of the running loop. Batches under way go on at the server; the next dispatcher takes them up."""
        if desk := self._desks.pop(asyncio.get_running_loop(), None):
            if desk.timer:
                desk.timer.cancel()
            left = [*desk.waiting.values(), *desk.short, *desk.riding.values()]
            desk.waiting, desk.short = {}, []
            for task in (tasks := list(desk.tasks)):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for wanted in left:
                _tell(wanted, OracleError(f"{self._url}: closed before the call was answered"))
        await super().aclose()

    async def _buy(self, state: Any, ledger: Ledger | None, key: str, request: ChatRequest) -> Reply:
        """As Dispatcher's, but each attempt is a place in a batch. ``ledger`` is always there."""
        desk = self._desk(state.client)
        if desk.adoption is None:
            desk.adoption = self._start(desk, self._adopt(desk))
        await asyncio.shield(desk.adoption)
        if (found := desk.riding.get(key)) is not None:  # asked by a process before this one
            said = await asyncio.shield(found.heard if isinstance(found, _Wanted) else found)
            if said is not None and not isinstance(said, TransientFault):
                raise said
            if said is None and (reply := self._stored(self._book, key)) is not None:
                return dataclasses.replace(reply, from_ledger=False)
        last: Exception = TransientFault("the reply is unreadable")
        for _ in range(self.engine.max_attempts):
            said = await self._want(desk, key, request)
            if said is None and (reply := self._stored(self._book, key)) is not None:
                return dataclasses.replace(reply, from_ledger=False)
            if said is not None and not isinstance(said, TransientFault):
                raise said
            last = said or last
        raise OracleError(
            f"{self._url}: model {self.engine.model!r} did not answer in {self.engine.max_attempts} batches "
            f"(engine.max_attempts); the last one: {last}"
        )

    # ---- gathering -------------------------------------------------------------------------------------------------------

    def _desk(self, client: Any) -> _Desk:
        loop = asyncio.get_running_loop()
        if loop not in self._desks:
            self._desks = {known: desk for known, desk in self._desks.items() if not known.is_closed()}

            async def pause(tries: int, least_s: float) -> None:
                await self._sleep(least_s + backoff(tries, self._rng))

            server = BatchServer(
                client,
                lambda seconds: self._faults_named(seconds, ""),
                pause,
                where=f"{self._url}: model {self.engine.model!r}",
                tries=self.engine.max_attempts,
                timeout_s=self.engine.timeout_s,
            )
            self._desks[loop] = _Desk(server)
        return self._desks[loop]

    def _start(self, desk: _Desk, work: Any) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        desk.tasks.add(task)  # the loop itself holds tasks weakly
        task.add_done_callback(desk.tasks.discard)
        return task

    async def _want(self, desk: _Desk, key: str, request: ChatRequest) -> Exception | None:
        field_ = self._limit_field
        line = request_line(key, {"model": self.engine.model, **request.body(field_)})
        heard: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self._gather(desk, _Wanted(key, request, field_, line, heard))
        return await heard

    def _gather(self, desk: _Desk, wanted: _Wanted) -> None:
        """Put a call into the next batch, which leaves at once when it is full."""
        if desk.bytes + len(wanted.line) > MOST_BYTES:
            self._leave(desk)
        desk.waiting[wanted.key] = wanted
        desk.bytes += len(wanted.line)
        if len(desk.waiting) >= self.engine.batch_size:
            self._leave(desk)
            return
        if desk.timer:
            desk.timer.cancel()
        quiet = min(QUIET_S, self.engine.batch_poll_s)
        desk.timer = asyncio.get_running_loop().call_later(quiet, self._leave, desk)

    def _leave(self, desk: _Desk) -> None:
        if desk.timer:
            desk.timer.cancel()
            desk.timer = None
        calls, desk.waiting, desk.bytes = desk.waiting, {}, 0
        calls = {key: wanted for key, wanted in calls.items() if not wanted.heard.done()}  # less those given up
        if calls:
            self._start(desk, self._send(desk, calls))

    # ---- a batch's life --------------------------------------------------------------------------------------------------

    async def _send(self, desk: _Desk, calls: dict[str, _Wanted]) -> None:
        """Reserve the money for as many calls as it covers, and take those through a batch."""
        others = desk.under_way
        asked = {
            key: (summary(self._url, self.engine.model, w.request), self.terms(w.request)) for key, w in calls.items()
        }
        try:
            planned = await asyncio.wrap_future(batches.plan_batch(self._book, asked, self.payer.caps))
        except Exception as error:  # noqa: BLE001 - nothing is swallowed: every call of the batch raises it
            for wanted in calls.values():
                _tell(wanted, error)
            return
        for key in planned.done:
            _tell(calls[key], None)
        row = planned.row
        if row is not None:
            self._take_on(desk, row)
            desk.riding.update({key: calls[key] for key in row.attempts})
        for key, error in planned.refused.items():
            if desk.under_way:
                desk.short.append(calls[key])
            elif others:  # a batch ended in the meantime, and may have left something
                self._gather(desk, calls[key])
            else:
                _tell(calls[key], error)
        if row is not None:
            await self._carry(desk, row, b"".join(calls[key].line for key in row.attempts))

    def _take_on(self, desk: _Desk, row: Row) -> None:
        desk.under_way += 1
        LIVE.add((str(self._book.path.resolve()), row.tag))

    async def _carry(self, desk: _Desk, row: Row, data: bytes | None) -> None:
        """Take a batch from where it is to its end: ``data`` are its lines, None where the server has it already."""
        keys = tuple(row.attempts)
        try:
            if data is not None:
                row = await self._submit(desk.server, row, data)
            await self._wait_and_harvest(desk, row, adopted=data is None)
        except Exception as error:  # noqa: BLE001 - nothing is swallowed: every call of the batch raises it
            desk.adoption = None  # a batch may be left behind: later calls must take it up before they buy
            self._tell_rest(desk, keys, error)
        finally:
            LIVE.discard((str(self._book.path.resolve()), row.tag))
            desk.under_way -= 1
            short, desk.short = desk.short, []
            for wanted in short:
                self._gather(desk, wanted)

    async def _submit(self, server: BatchServer, row: Row, data: bytes) -> Row:
        try:
            server_id = await server.submit(data, row.tag, self.payer.run)
        except NotSubmittedError as error:
            await self._close_rest(row, str(error), unbilled=True)
            await asyncio.wrap_future(batches.ended(self._book, row.tag))
            raise
        await asyncio.wrap_future(batches.submitted(self._book, row, server_id))
        return dataclasses.replace(row, id=server_id)

    async def _wait_and_harvest(self, desk: _Desk, row: Row, *, adopted: bool) -> None:
        """Raises OracleError where the server found the batch invalid, unless it is an earlier process's: what was wrong
        may have been put right since, so its calls are tried anew."""
        assert row.id is not None
        server, heard = desk.server, dict[str, Exception | None]()
        error: Exception = TransientFault(f"batch {row.id} is not known to the server any more")
        unbilled = False
        if (batch := await self._over(server, row.id, at_once=adopted)) is not None:
            files = [await server.text(name) for name in (batch.output_file_id, batch.error_file_id) if name]
            heard, unreadable = await self._harvest(desk, row, [text for file in files for text in file.split("\n")])
            error = TransientFault(f"batch {row.id} {batch.status} without an answer to this call")
            unbilled = batch.status != "completed" and not unreadable
            if batch.status == "failed" and batch.errors and batch.errors.data:
                said = self._endpoint.redact(str(batch.errors.data[0].message or batch.errors.data[0].code))
                where = f"{self._url}: model {self.engine.model!r}: batch {row.id} failed: {said}"
                error = TransientFault(where) if adopted else OracleError(where)
        await self._close_rest(row, str(error), unbilled=unbilled)
        await asyncio.wrap_future(batches.ended(self._book, row.tag))
        for key, said in heard.items():  # only now: the last caller to hear may close the dispatcher
            self._tell_rest(desk, (key,), said)
        if isinstance(error, OracleError):
            raise error
        self._tell_rest(desk, tuple(row.attempts), error)

    async def _over(self, server: BatchServer, server_id: str, *, at_once: bool) -> Any:
        """The batch once it is over, None where the server no longer knows it."""
        while True:
            if not at_once:
                await self._sleep(self.engine.batch_poll_s)
            at_once = False
            try:
                batch = await server.look(server_id)
            except CallRefusedError as error:
                if error.status == 404:
                    return None
                raise OracleError(str(error)) from None
            if batch.status in OVER:
                return batch

    async def _harvest(self, desk: _Desk, row: Row, texts: list[str]) -> tuple[dict[str, Exception | None], int]:
        """Commit what result lines say, the first of each call -> what to tell each call, the number of unreadable lines."""
        lines = [line for text in texts if text.strip() and (line := read_line(text)) is not None]
        first: dict[str, Line] = {}
        for line in lines:
            first.setdefault(line.key, line)
        ours = {key: line for key, line in first.items() if key in row.attempts}
        self.strays += len(lines) - len(ours)
        said = await asyncio.gather(*(self._settle(desk, row, line) for line in ours.values()))
        return dict(zip(ours, said, strict=True)), sum(bool(text.strip()) for text in texts) - len(lines)

    async def _settle(self, desk: _Desk, row: Row, line: Line) -> Exception | None:
        wanted, attempt = desk.riding.get(line.key), row.attempts.pop(line.key)
        said: Exception | None = None
        if line.status == 200:
            close = self._book.close_attempt(line.key, attempt, raw=self._endpoint.redact(line.body))
        elif line.status:
            limit_field = wanted.limit_field if isinstance(wanted, _Wanted) else "max_tokens"
            said = self._status_error(line.status, line.message, limit_field)
            close = self._book.close_attempt(line.key, attempt, reason=str(said), unbilled=True)
        else:
            said = TransientFault(self._endpoint.redact(line.message))
            close = self._book.close_attempt(line.key, attempt, reason=str(said), unbilled=True)
        await asyncio.wrap_future(close)
        return said

    async def _close_rest(self, row: Row, reason: str, *, unbilled: bool) -> None:
        closes = [
            asyncio.wrap_future(self._book.close_attempt(key, attempt, reason=reason, unbilled=unbilled))
            for key, attempt in row.attempts.items()
        ]
        await asyncio.gather(*closes)

    def _tell_rest(self, desk: _Desk, keys: tuple[str, ...], said: Exception | None) -> None:
        for key in keys:
            if (wanted := desk.riding.pop(key, None)) is not None:
                _tell(wanted, said)

    # ---- what earlier processes left -------------------------------------------------------------------------------------

    async def _adopt(self, desk: _Desk) -> None:
        """Take up this run's batches that have not ended. One planned, but unknown to the server, was never submitted."""
        rows = await asyncio.wrap_future(batches.unfinished(self._book, self.payer.run, self._url, self.engine.model))
        loop = asyncio.get_running_loop()
        for row in rows:
            if (str(self._book.path.resolve()), row.tag) in LIVE:
                continue
            if row.id is None and row.attempts:
                found = await desk.server.find(row.tag)
                if found is None:
                    await self._close_rest(row, "never submitted", unbilled=True)
                    row.attempts.clear()
                else:
                    await asyncio.wrap_future(batches.submitted(self._book, row, found))
                    row = dataclasses.replace(row, id=found)
            if not row.attempts:
                await asyncio.wrap_future(batches.ended(self._book, row.tag))
                continue
            self._take_on(desk, row)
            desk.riding.update({key: loop.create_future() for key in row.attempts})
            self._start(desk, self._carry(desk, row, None))


def _tell(wanted: _Wanted | asyncio.Future[Exception | None], said: Exception | None) -> None:
    heard = wanted.heard if isinstance(wanted, _Wanted) else wanted
    if not heard.done():  # as those are whose caller was cancelled
        heard.set_result(said)
