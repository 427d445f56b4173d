"""A judge that nashtune hosts: a chat model behind an engine of this project, asked a batch at a time.

The oracles ask it as they ask a server, one call after the other; what is wanted at once is computed at once. A reply depends
on its request and the weights alone (beyond rounding): every reply has a seed made of the request, never of its batch.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn

from nashtune.errors import ModelError, NashtuneError, OracleError, SamplingError
from nashtune.judging.chat import ChatRequest, Choice, Reply
from nashtune.judging.faults import CallRefusedError
from nashtune.recipe import HostedSection, PolicySection
from nashtune.records import Message, Policy
from nashtune.sampling.engine import Completion, Engine, Request, SamplingParams
from nashtune.seeds import content_hash, seed_for

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

QUIET_TURNS = 32
"""Turns of the event loop without a new call, after which those that wait are one batch. A call is a few turns away from the
reply that it waits for, or from the unit it is of; nothing but the size of batches rests on this number."""
Answer = Reply | CallRefusedError


@dataclass(frozen=True, slots=True)
class _Loaded:
    policy: Policy
    tokenizer: PreTrainedTokenizerBase
    engine: Engine
    ends: tuple[int, ...]
    context: int
    special: tuple[str, ...]
    """Texts of the tokens that end a turn or begin one."""


@dataclass(slots=True)
class Work:
    """What a host has done: generated batches, the replies in them, and their seconds (loading not counted)."""

    batches: int = 0
    replies: int = 0
    tokens: int = 0
    seconds: float = 0.0


class Host:
    """One model, loaded at the first batch and kept until ``close``; one batch at a time, whoever asks.

    Raises OracleError where the model cannot be loaded, SamplingError where its engine fails.
    """

    def __init__(self, section: HostedSection) -> None:
        self.section = section
        self.work = Work()
        self._loaded: _Loaded | None = None
        self._lock = threading.Lock()
        self._abandoned = False

    def load(self) -> None:
        """Load the model now."""
        with self._lock:
            self._ready()

    def answer(self, requests: Sequence[ChatRequest]) -> list[Answer]:
        """A reply to each request, or why there is none (it does not fit into the model's context)."""
        with self._lock:
            self._abandoned = False
            loaded = self._ready()
            started = time.perf_counter()
            try:
                found = self._answer(loaded, requests)
            except SamplingError:  # what is left of an engine that failed is unknown
                loaded.engine.close()
                self._loaded = None
                raise
            self.work.batches += 1
            self.work.replies += sum(len(one.choices) for one in found if isinstance(one, Reply))
            self.work.seconds += time.perf_counter() - started
        return found

    def abandon(self) -> None:
        """Nobody waits for the batch under way: the native engine ends it with its next token."""
        self._abandoned = True

    def _look(self, _: int = 0) -> None:
        if self._abandoned:
            raise OracleError("the judge was interrupted")

    def close(self) -> None:
        """Let go of the model's memory; a later batch loads it again."""
        with self._lock:
            if self._loaded is not None:
                self._loaded.engine.close()
            self._loaded = None

    def _ready(self) -> _Loaded:
        if self._loaded is None:
            self._loaded = load(self.section)
            if hasattr(self._loaded.engine, "on_tokens"):
                self._loaded.engine.on_tokens = self._look  # type: ignore[attr-defined]
        return self._loaded

    def _answer(self, loaded: _Loaded, requests: Sequence[ChatRequest]) -> list[Answer]:
        found: dict[int, Answer] = {}
        batches: dict[SamplingParams, list[Request]] = {}
        model = f"{loaded.policy.name}@{loaded.policy.fingerprint}"
        for place, request in enumerate(requests):
            asked = _as_request(loaded, str(place), request)
            needed = len(asked.token_ids) + request.max_tokens
            if needed > loaded.context:
                found[place] = self._too_long(len(asked.token_ids), request.max_tokens, loaded.context)
            else:
                batches.setdefault(_params(request, loaded.ends), []).append(asked)
        for params, batch in batches.items():
            lengths = {one.prompt_id: len(one.token_ids) for one in batch}
            for place, choices, tokens in self._generate(loaded, batch, params):
                self.work.tokens += tokens
                found[int(place)] = Reply(choices, model, lengths[place], tokens, from_ledger=False)
        return [found[place] for place in range(len(requests))]

    def _generate(
        self, loaded: _Loaded, batch: Sequence[Request], params: SamplingParams
    ) -> Iterator[tuple[str, tuple[Choice, ...], int]]:
        """Of each request: its name, its choices, and their tokens together."""
        done: dict[str, dict[int, Completion]] = {}
        for completion in loaded.engine.generate(batch, params):
            self._look()
            done.setdefault(completion.prompt_id, {})[completion.k] = completion
        for name, by_k in done.items():
            rows = [by_k[k] for k in range(len(by_k))]
            yield name, tuple(_choice(loaded, row) for row in rows), sum(len(row.token_ids) for row in rows)

    def _too_long(self, prompt: int, reply: int, context: int) -> CallRefusedError:
        """As a server would refuse it, so that the judgment is unusable and says why."""
        said = f"context length: {prompt} prompt tokens and a reply of {reply} exceed {context}"
        return CallRefusedError(f"oracle.hosted.model {self.section.model!r}: {said}", 400, said)


class HostedChat:
    """Takes calls as a server's dispatcher does, and has those that wait at the same time answered together."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._desks: dict[asyncio.AbstractEventLoop, _Desk] = {}

    def stored(self, request: ChatRequest) -> Reply | None:
        """Nothing: what was judged before is in the committed units."""
        return None

    async def call(self, request: ChatRequest) -> Reply:
        """The reply to ``request``. Raises CallRefusedError for one that does not fit into the model's context, or asks for a
        response format (oracles then ask again without)."""
        if request.response_format is not None:
            said = "response_format is not supported by a hosted judge"
            raise CallRefusedError(f"oracle.hosted.model {self.host.section.model!r}: {said}", 400, said)
        loop = asyncio.get_running_loop()
        if loop not in self._desks:
            self._desks = {known: desk for known, desk in self._desks.items() if not known.is_closed()}
            self._desks[loop] = _Desk()
        desk = self._desks[loop]
        future: asyncio.Future[Reply] = loop.create_future()
        desk.waiting.append((request, future))
        if desk.server is None or desk.server.done():
            desk.server = loop.create_task(self._serve(desk))
        return await future

    async def aclose(self) -> None:
        """Let go of the model; a later call loads it again."""
        self.host.close()

    async def _serve(self, desk: _Desk) -> None:
        """Answer batch after batch, until nobody waits."""
        while desk.waiting:
            await _quiet(lambda: len(desk.waiting))
            batch, desk.waiting = desk.waiting, []
            try:
                answers = await asyncio.to_thread(self.host.answer, [request for request, _ in batch])
            except asyncio.CancelledError:
                self.host.abandon()
                for _, future in batch:
                    future.cancel()
                raise
            except Exception as error:  # noqa: BLE001 - told to everyone who waits
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), answer in zip(batch, answers, strict=True):
                if future.done():  # nobody waits for it any more
                    continue
                if isinstance(answer, CallRefusedError):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)


@dataclass(slots=True)
class _Desk:
    """Calls of one event loop that wait, and the task that answers them."""

    waiting: list[tuple[ChatRequest, asyncio.Future[Reply]]] = field(default_factory=list)
    server: asyncio.Task[None] | None = None


async def _quiet(count: Callable[[], int]) -> None:
    """Wait until nobody new has come for some turns of the event loop."""
    seen, turns = count(), 0
    while turns < QUIET_TURNS:
        await asyncio.sleep(0)
        turns = turns + 1 if count() == seen else 0
        seen = count()


def load(section: HostedSection) -> _Loaded:
    """Raises OracleError naming the field and what is accepted."""
    from nashtune.model.loading import end_token_ids, load_tokenizer, pick_dtype

    try:
        policy = find_hosted(section)
        tokenizer = load_tokenizer(policy)
        ends = end_token_ids(policy, tokenizer)
        context = _context(section, policy)
        dtype = pick_dtype(section.dtype)
        if section.engine == "native":
            from nashtune.sampling.native import open_native

            engine: Engine = open_native(policy, dtype, section.slots)
        else:
            from nashtune.sampling.on_vllm.engine import Setup, VllmEngine
            from nashtune.sampling.on_vllm.target import Target

            target = Target(policy, policy, context=context)
            vllm = VllmEngine(Setup.of(section.vllm, dtype, target))
            try:
                vllm.serve(target, tokenizer)
            except BaseException:
                vllm.close()
                raise
            engine = vllm
    except ModelError as error:
        _refuse(error)
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return _Loaded(policy, tokenizer, engine, ends, context, tuple(sorted(special, key=len, reverse=True)))


def find_hosted(section: HostedSection) -> Policy:
    """Where a hosted judge's weights are, and their fingerprint. Raises OracleError where they cannot be found."""
    from nashtune.model.loading import find_policy

    source = PolicySection(model=section.model, revision=section.revision, trust_remote_code=section.trust_remote_code)
    try:
        return find_policy(source)
    except ModelError as error:
        _refuse(error)


def _refuse(error: NashtuneError) -> NoReturn:
    raise OracleError(str(error).replace("policy.model", "oracle.hosted.model")) from None


def _context(section: HostedSection, policy: Policy) -> int:
    """Most tokens of a call and its reply."""
    from transformers import AutoConfig

    from nashtune.sampling.support import context_limit

    config = AutoConfig.from_pretrained(policy.folder, trust_remote_code=policy.trust_remote_code)
    limit, asked = context_limit(config.get_text_config()), section.vllm.max_model_len
    if limit is None and asked is None:
        if section.engine == "native":
            return 1 << 31
        raise OracleError(
            f"oracle.hosted.vllm.max_model_len is null and {section.model!r} names no context; accepted: a number"
        )
    if asked is not None and limit is not None and asked > limit:
        raise OracleError(
            f"oracle.hosted.vllm.max_model_len is {asked}; accepted: at most {limit}, the context of {section.model!r}"
        )
    return min(number for number in (limit, asked) if number is not None)


def _params(request: ChatRequest, ends: tuple[int, ...]) -> SamplingParams:
    if request.temperature is None:
        raise OracleError("temperature null leaves it to a server, but the judge is hosted; accepted: a number")
    top = request.top_logprobs or 0
    return SamplingParams(request.temperature, request.top_p, 0, request.max_tokens, ends, top)


def _as_request(loaded: _Loaded, name: str, request: ChatRequest) -> Request:
    """Rendered by the model's own chat template; one seed for each reply, made of all that decides it."""
    from nashtune.model.loading import render

    messages = [Message(m.role, disarmed(m.content, loaded.special)) for m in request.messages]
    key = content_hash("hosted judge", dataclasses.asdict(request))
    seeds = tuple(seed_for("hosted judge", key, n) for n in range(request.n))
    return Request(name, request.messages, tuple(render(loaded.tokenizer, messages)), seeds)


def disarmed(text: str, special: Sequence[str]) -> str:
    """``text`` in which no special token of the judge's tokenizer is written out: a candidate could otherwise end the judge's
    turn and begin one in its name. A space after the first character leaves it readable."""
    for token in special:
        if len(token) > 1 and token in text:
            text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


def _choice(loaded: _Loaded, row: Completion) -> Choice:
    ended = bool(row.token_ids) and row.token_ids[-1] in loaded.ends
    shown = row.token_ids[:-1] if ended else row.token_ids
    if not row.top_logprobs:
        return Choice(row.text, row.finish)
    tokens = tuple(_text(loaded, token) for token in shown)
    top = tuple(_by_text(loaded, place) for place in row.top_logprobs[: len(shown)])
    return Choice(row.text, row.finish, tokens=tokens, top_logprobs=top)


def _text(loaded: _Loaded, token: int) -> str:
    return str(loaded.tokenizer.decode([token]))


def _by_text(loaded: _Loaded, place: Mapping[int, float]) -> dict[str, float]:
    """Log-probs by the tokens' texts; tokens of one text share theirs."""
    found: dict[str, float] = {}
    for token, logprob in place.items():
        text = _text(loaded, token)
        mass = math.exp(found.get(text, -math.inf)) + math.exp(logprob)
        found[text] = math.log(mass) if mass > 0 else -math.inf
    return found
