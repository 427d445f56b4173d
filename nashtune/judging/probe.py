"""What an endpoint can do, found out with a handful of tiny calls and remembered in the ledger."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from nashtune.judging.chat import ChatRequest, Reply
from nashtune.judging.dispatch import Dispatcher
from nashtune.judging.faults import CallRefusedError
from nashtune.records import Message
from nashtune.together import together

ASK = (Message("user", "Write a random word of ten letters, and nothing else."),)
ASK_JSON = (Message("user", 'Reply with the JSON object {"ok": 1} and nothing else.'),)
SCHEMA = {
    "type": "json_schema",
    "json_schema": {
        "name": "probe",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {"ok": {"type": "integer"}},
            "required": ["ok"],
            "additionalProperties": False,
        },
    },
}
REPLY_TOKENS = 32


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What the probe's calls came back with. ``tokens`` and ``cost_usd`` are what they took."""

    json_schema: bool
    json_object: bool
    logprobs: bool
    """Log-probs of the most probable tokens."""
    n: bool
    """Several replies to one call, that differ."""
    seed: bool
    """The same seed gave the same text twice."""
    usage: bool
    """Replies say how many tokens they took; without that, cost is counted at its worst case."""
    model_returned: str
    tokens: int
    cost_usd: float


async def probe(dispatcher: Dispatcher) -> Capabilities:
    """Six tiny calls, through the ledger and so made once for a run (or a shared ledger). Raises OracleError where the server
    does not answer at all."""
    plain = await dispatcher.call(ChatRequest(ASK, None, REPLY_TOKENS))

    async def works(request: ChatRequest, seen: Callable[[Reply], bool]) -> tuple[bool, Reply | None]:
        try:
            reply = await dispatcher.call(request)
        except CallRefusedError as error:
            if error.status in (401, 403, 404):
                raise
            return False, None
        return seen(reply), reply

    tried: list[Coroutine[Any, Any, tuple[bool, Reply | None]]] = [
        works(ChatRequest(ASK_JSON, None, REPLY_TOKENS, response_format=SCHEMA), _is_ok_object),
        works(ChatRequest(ASK_JSON, None, REPLY_TOKENS, response_format={"type": "json_object"}), _is_ok_object),
        works(ChatRequest(ASK, None, REPLY_TOKENS, top_logprobs=5), lambda r: any(r.choices[0].top_logprobs)),
        works(ChatRequest(ASK, 1.0, REPLY_TOKENS, n=3), lambda r: len({c.text for c in r.choices}) > 1),
        works(ChatRequest(ASK, 1.0, REPLY_TOKENS, seed=7), lambda r: bool(r.text)),
        works(ChatRequest(ASK, 1.0, REPLY_TOKENS, seed=7, replicate=1), lambda r: bool(r.text)),
    ]
    (schema, a), (object_, b), (logprobs, c), (several, d), (_, first), (_, second) = await together(tried)
    replies = [reply for reply in (plain, a, b, c, d, first, second) if reply is not None]
    return Capabilities(
        json_schema=schema,
        json_object=object_,
        logprobs=logprobs,
        n=several,
        seed=first is not None and second is not None and first.text == second.text,
        usage=plain.prompt_tokens > 0 and plain.completion_tokens > 0,
        model_returned=plain.model_returned,
        tokens=sum(r.prompt_tokens + r.completion_tokens for r in replies),
        cost_usd=sum(r.cost_usd for r in replies),
    )


def _is_ok_object(reply: Reply) -> bool:
    try:
        return isinstance(json.loads(reply.text), dict)
    except ValueError:
        return False
