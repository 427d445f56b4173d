"""What every engine offers: completions for requests, each with its own random stream."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from nashtune.records import Finish, Message


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to sample. ``temperature`` 0 is greedy; ``top_k`` 0 and ``top_p`` 1 keep the whole vocabulary."""

    temperature: float = 0.7
    top_p: float = 0.95
    top_k: int = 0
    max_new_tokens: int = 512
    stop_token_ids: tuple[int, ...] = ()
    top_logprobs: int = 0
    """Most probable tokens told at each place, with their log-probs; 0 tells none. vLLM only."""


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt and one seed per wanted answer (K = len(seeds)).

    ``token_ids`` is the rendered prompt (empty for engines that take messages, as remote ones do).
    """

    prompt_id: str
    messages: tuple[Message, ...]
    token_ids: tuple[int, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Completion:
    """Answer number ``k`` to a request. ``logprob`` is the sum over ``token_ids`` of log p under the untempered policy
    (nats), None where the engine cannot tell; ``token_ids`` include a sampled end token. ``top_logprobs``, where asked for: at
    each token the most probable ones and the sampled one, with their log-probs."""

    prompt_id: str
    k: int
    text: str
    token_ids: tuple[int, ...]
    finish: Finish
    logprob: float | None = None
    top_logprobs: tuple[Mapping[int, float], ...] = ()


class Engine(Protocol):
    """A source of completions. Results for a request depend on the request and params alone (beyond rounding)."""

    def generate(self, requests: Sequence[Request], params: SamplingParams) -> Iterator[Completion]:
        """Yield every completion of every request, in any order."""
        ...

    def close(self) -> None: ...
