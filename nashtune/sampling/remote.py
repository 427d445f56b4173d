"""Answers from a served model over the OpenAI protocol: teachers, and policies that run elsewhere."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Generator, Sequence
from typing import TypeAlias

from nashtune.errors import OracleError, SamplingError
from nashtune.judging.chat import ChatRequest
from nashtune.judging.dispatch import Dispatcher, Payer
from nashtune.recipe import EngineSection
from nashtune.records import Finish
from nashtune.sampling.engine import Completion, Request, SamplingParams
from nashtune.store.ledger import Ledger

SEED_RANGE = 2**31  # what every server takes; some hold a seed in 32 bits
Results: TypeAlias = "queue.SimpleQueue[Completion | BaseException | None]"  # None: all done
FINISHES: dict[str, Finish] = {"stop": "stop", "length": "length"}


class RemoteEngine:
    """One chat completion per prompt and seed, ``engine.concurrency`` at a time, in the order in which they finish.

    The server renders and tokenises, so a completion carries no token ids and no log-prob. Raises SamplingError where
    the server refuses, stays silent, or is asked for what the protocol does not have (top_k, stop token ids).
    """

    def __init__(self, engine: EngineSection, ledger: Ledger | None = None, payer: Payer | None = None) -> None:
        self._engine = engine
        try:
            self._dispatcher = Dispatcher(engine, ledger, payer)
        except OracleError as error:
            raise SamplingError(str(error)) from error

    def generate(self, requests: Sequence[Request], params: SamplingParams) -> Generator[Completion, None, None]:
        if params.top_k:
            raise SamplingError(f"top_k is {params.top_k}; a remote engine accepts 0 only (not in the OpenAI protocol)")
        if params.stop_token_ids:
            raise SamplingError(
                f"stop_token_ids are {params.stop_token_ids}; a remote engine accepts none (no token ids)"
            )
        return self._stream(requests, params)

    def close(self) -> None: ...

    def _stream(self, requests: Sequence[Request], params: SamplingParams) -> Generator[Completion, None, None]:
        """Run the event loop in a thread of its own: requests go on while the caller works on what it has got, and the
        caller may itself be inside another event loop."""
        results: Results = queue.SimpleQueue()
        loop = asyncio.new_event_loop()
        work = loop.create_task(self._answer_all(requests, params, results))
        thread = threading.Thread(target=_run, args=(loop, work, results), name="remote-engine", daemon=True)
        thread.start()
        try:
            while (result := results.get()) is not None:
                if isinstance(result, OracleError):
                    raise SamplingError(str(result)) from result
                if isinstance(result, BaseException):
                    raise result
                yield result
        finally:  # also where the caller stops early: what is in flight then stays so in the ledger
            loop.call_soon_threadsafe(work.cancel)
            thread.join()
            loop.close()

    async def _answer_all(self, requests: Sequence[Request], params: SamplingParams, results: Results) -> None:
        jobs = ((request, k, seed) for request in requests for k, seed in enumerate(request.seeds))

        async def worker() -> None:
            for request, k, seed in jobs:  # shared by all workers: each job goes to the first that is free
                results.put(await self._answer(request, k, seed, params))

        workers = [asyncio.create_task(worker()) for _ in range(self._engine.concurrency)]
        try:
            await asyncio.gather(*workers)
        finally:
            for task in workers:
                task.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
            await self._dispatcher.aclose()

    async def _answer(self, request: Request, k: int, seed: int, params: SamplingParams) -> Completion:
        reply = await self._dispatcher.call(
            ChatRequest(
                messages=request.messages,
                temperature=params.temperature,
                top_p=params.top_p,
                max_tokens=params.max_new_tokens,
                seed=seed % SEED_RANGE,
            )
        )
        choice = reply.choices[0]
        finish = FINISHES.get(choice.finish_reason, "unknown")
        return Completion(request.prompt_id, k, choice.text or choice.refusal, (), finish)


def _run(loop: asyncio.AbstractEventLoop, work: asyncio.Task[None], results: Results) -> None:
    try:
        loop.run_until_complete(work)
        results.put(None)
    except BaseException as error:  # noqa: BLE001 - nothing is swallowed: the caller's thread raises it again
        results.put(error)
