"""A chat completion: what is asked, what came back, and what makes two calls the same call."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from nashtune.judging.faults import TransientFault
from nashtune.records import Message
from nashtune.seeds import content_hash

LONE_SURROGATE = re.compile("[\ud800-\udfff]")
TOKENS_PER_MESSAGE = 16  # roles and separators of a chat template


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One chat completion. Every field decides the answer and so is part of the call's key.

    ``replicate`` tells apart calls that are alike on purpose (several votes of one judge); it is not sent.
    ``temperature`` None leaves the choice to the server (reasoning models take no other). ``top_logprobs`` asks for the
    log-probs of that many most probable tokens at each place.
    """

    messages: tuple[Message, ...]
    temperature: float | None
    max_tokens: int
    top_p: float = 1.0
    n: int = 1
    seed: int | None = None
    response_format: Mapping[str, Any] | None = None
    top_logprobs: int | None = None
    replicate: int = 0

    def body(self, limit_field: str = "max_tokens") -> dict[str, Any]:
        """The JSON to send, less the model. Protocol defaults are left out, as not every server knows every field."""
        body: dict[str, Any] = {
            "messages": [{"role": m.role, "content": m.content} for m in self.messages],
            limit_field: self.max_tokens,
        }
        optional = {"temperature": (self.temperature, None), "top_p": (self.top_p, 1.0), "n": (self.n, 1)}
        optional |= {"seed": (self.seed, None), "response_format": (self.response_format, None)}
        body |= {name: value for name, (value, default) in optional.items() if value != default}
        return body if self.top_logprobs is None else body | {"logprobs": True, "top_logprobs": self.top_logprobs}

    @property
    def prompt_bytes(self) -> int:
        return sum(len(m.content.encode()) + TOKENS_PER_MESSAGE for m in self.messages)


@dataclass(frozen=True, slots=True)
class Choice:
    """One of a reply's n answers. ``finish_reason`` is the server's word ("stop", "length", "content_filter", ...)."""

    text: str
    finish_reason: str
    refusal: str = ""
    tokens: tuple[str, ...] = ()
    """The reply's tokens, where log-probs were asked for and given."""
    top_logprobs: tuple[Mapping[str, float], ...] = ()
    """At each token: most probable token -> its log-prob in nats."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A parsed reply. ``choices`` has at least one entry, and fewer than n where the server ignores n."""

    choices: tuple[Choice, ...]
    model_returned: str
    prompt_tokens: int
    completion_tokens: int
    from_ledger: bool
    cached_tokens: int = 0
    """Of the prompt tokens, those the server had in its prefix cache."""
    cost_usd: float = 0.0

    @property
    def text(self) -> str:
        return self.choices[0].text

    @property
    def finish_reason(self) -> str:
        return self.choices[0].finish_reason


class Chat(Protocol):
    """Who answers calls: a server's dispatcher, or a model that nashtune hosts."""

    def stored(self, request: ChatRequest) -> Reply | None:
        """The reply that is there already, None where it has to be asked for."""
        ...

    async def call(self, request: ChatRequest) -> Reply:
        """Raises CallRefusedError for a request that is not answered however often it is sent."""
        ...

    async def aclose(self) -> None: ...


def call_key(url: str, model: str, request: ChatRequest) -> str:
    """SHA-256 of everything that decides the answer."""
    return content_hash("chat.completions", url, model, dataclasses.asdict(request), length=64)


def summary(url: str, model: str, request: ChatRequest) -> dict[str, Any]:
    """What the ledger keeps of a request: all but the texts."""
    body = request.body() | {"base_url": url, "model": model, "replicate": request.replicate}
    body["messages"] = [{"role": m.role, "characters": len(m.content)} for m in request.messages]
    return body


def parse_reply(raw: str, *, from_ledger: bool) -> Reply:
    """Read the body of a chat completion; a body that is none is a transient fault (proxies answer 200 with pages)."""
    try:
        body = json.loads(raw)
        choices = tuple(_choice(c) for c in body["choices"])
        usage = _object(body.get("usage"))
        prompt, completion = (_count(usage.get(name)) for name in ("prompt_tokens", "completion_tokens"))
        cached = min(prompt, _count(_object(usage.get("prompt_tokens_details")).get("cached_tokens")))
        model = well_formed(str(body.get("model") or ""))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise TransientFault(f"the reply is not a chat completion: {raw[:200]!r}") from None
    if not choices:
        raise TransientFault(f"the reply has no choices: {raw[:200]!r}")
    return Reply(choices, model, prompt, completion, from_ledger=from_ledger, cached_tokens=cached)


def well_formed(text: str) -> str:
    """``text`` with U+FFFD for each half of a surrogate pair: JSON can spell one (servers cut replies inside an emoji), but no
    file, database or request can hold it."""
    return LONE_SURROGATE.sub("\ufffd", text)


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _count(value: Any) -> int:
    """A number of tokens; 0 where the server's word is none."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _choice(choice: Any) -> Choice:
    message = choice["message"]
    text, refusal, finish = message.get("content"), message.get("refusal"), choice.get("finish_reason")
    if not isinstance(text or "", str) or not isinstance(refusal or "", str):
        raise TypeError("content and refusal are strings or null")
    places = (choice.get("logprobs") or {}).get("content") or ()
    tokens = tuple(well_formed(str(place["token"])) for place in places)
    top = tuple(
        {well_formed(str(t["token"])): float(t["logprob"]) for t in place.get("top_logprobs") or ()} for place in places
    )
    return Choice(well_formed(text or ""), well_formed(str(finish or "")), well_formed(refusal or ""), tokens, top)
