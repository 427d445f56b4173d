"""The rubric without its justifications: a tenth of the output tokens, and several replies or log-probs to make up for it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nashtune import recipe
from nashtune.errors import OracleError
from nashtune.judging.chat import Chat, ChatRequest, Choice, Reply
from nashtune.judging.faults import CallRefusedError
from nashtune.judging.replies import UnusableReply, content_refusal, only_object, usage_of, whole_score
from nashtune.judging.showing import GRADING, RUBRIC, TOP_SCORE, fill, material, presentation_order
from nashtune.records import Judgment, Message, Prompt, Response
from nashtune.seeds import seed_for
from nashtune.together import together

TEMPLATE = (
    GRADING
    + """\
and nothing else: the {count} scores (whole numbers, 0 to 6) in the order of the answers, without any explanation:

{example}
"""
)
DIGIT = re.compile(r"[0-6]")
TOP_LOGPROBS = 20
SCORES_KEY = re.compile("scores")


@dataclass(frozen=True, slots=True)
class Showing:
    """One presentation of the candidates, and the scores it got [K] in the candidates' own order, reply by reply."""

    order: tuple[int, ...]
    scores: tuple[tuple[float, ...], ...]
    replies: tuple[Reply, ...]
    problem: str


class CompactOracle:
    """Mean scores of 0 to 6 from ``orders`` presentations of the candidates, ``replies`` each, or from the log-probs of one
    greedy reply each. A judgment is unusable where less than half of its replies can be used."""

    name = "compact"
    needs_logprobs: frozenset[str] = frozenset()

    def __init__(self, section: recipe.CompactOracle, dispatcher: Chat) -> None:
        self._section = section
        self._dispatcher = dispatcher

    async def judge(self, prompt: Prompt, candidates: Sequence[Response], seed: int) -> Judgment:
        if not candidates:
            raise OracleError(f"prompt {prompt.id}: no candidates to judge; accepted: one or more")
        seeds = [seed if n == 0 else seed_for("compact order", seed, n) for n in range(self._section.orders)]
        shown = await together(self._show(prompt, candidates, s) for s in seeds)
        scores = [row for showing in shown for row in showing.scores]
        wanted = len(shown) * (1 if self._section.use == "logprobs" else self._section.replies)
        problem = "" if 2 * len(scores) >= wanted and scores else next(s.problem for s in shown if s.problem)
        replies = [reply for showing in shown for reply in showing.replies]
        return Judgment(
            prompt_id=prompt.id,
            response_ids=tuple(c.id for c in candidates),
            oracle=self.name,
            outcome="unusable" if problem else "ok",
            reason=problem,
            scores=None if problem else tuple(math.fsum(column) / len(scores) for column in zip(*scores, strict=True)),
            order=shown[0].order,
            raw="\n".join(choice.text for reply in replies for choice in reply.choices),
            model_requested=self._section.asked.model,
            model_returned=replies[-1].model_returned if replies else "",
            usage=usage_of(replies),
        )

    async def aclose(self) -> None:
        await self._dispatcher.aclose()

    async def _show(self, prompt: Prompt, candidates: Sequence[Response], seed: int) -> Showing:
        order = presentation_order(len(candidates), seed)
        message = Message("user", render(prompt, [candidates[i].text for i in order], seed))
        try:
            replies = await self._ask(message)
        except CallRefusedError as error:
            return Showing(order, (), (), content_refusal(error))
        scores, problem = [], ""
        for choice in (choice for reply in replies for choice in reply.choices):
            try:
                given = read_scores(choice, len(candidates), self._section.use == "logprobs")
                scores.append(tuple(given[order.index(i)] for i in range(len(candidates))))
            except UnusableReply as unusable:
                problem = str(unusable)
        return Showing(order, tuple(scores), tuple(replies), problem)

    async def _ask(self, message: Message) -> list[Reply]:
        section = self._section
        if section.use == "logprobs":
            request = ChatRequest((message,), 0.0, section.max_tokens, top_logprobs=TOP_LOGPROBS)
            return [await self._dispatcher.call(request)]
        return await several_replies(
            self._dispatcher, (message,), section.temperature, section.max_tokens, section.replies
        )


async def several_replies(
    dispatcher: Chat, messages: tuple[Message, ...], temperature: float | None, max_tokens: int, count: int
) -> list[Reply]:
    """``count`` replies to one request: by n in one call, which bills the prompt once, where the server gives that many,
    the rest by calls of their own."""
    first = await dispatcher.call(ChatRequest(messages, temperature, max_tokens, n=count))
    rest = range(len(first.choices), count)
    more = (dispatcher.call(ChatRequest(messages, temperature, max_tokens, replicate=i)) for i in rest)
    return [first, *await together(more)]


def render(prompt: Prompt, answers: Sequence[str], seed: int) -> str:
    """The judge's message for ``answers`` in the order shown."""
    example = json.dumps({"scores": ["<0 to 6>"] * len(answers)}).replace('"<0 to 6>"', "<0 to 6>")
    return fill(
        TEMPLATE, material(prompt, answers, seed) | {"rubric": RUBRIC, "count": str(len(answers)), "example": example}
    )


def read_scores(choice: Choice, count: int, use_logprobs: bool) -> tuple[float, ...]:
    """The scores of the ``count`` answers in the order shown; with log-probs, their expectation. Raises UnusableReply."""
    found = only_object(choice, SCORES_KEY)
    scores = found.get("scores")
    if set(found) != {"scores"} or not isinstance(scores, list) or len(scores) != count:
        raise UnusableReply(f"not the one key scores with {count} numbers")
    plain = tuple(whole_score(value, f"score {n}", TOP_SCORE) for n, value in enumerate(scores, 1))
    if not use_logprobs:
        return tuple(map(float, plain))
    if not choice.top_logprobs:
        raise UnusableReply("the server sent no log-probs; accepted: oracle.use: replies, or a server that gives them")
    return expected_scores(choice, plain)


def expected_scores(choice: Choice, plain: Sequence[int]) -> tuple[float, ...]:
    """Sum of s * P(s) at the place of each score, P over the scores among the most probable tokens there.

    The places are the reply's digits, in order, as nothing else in it holds any. Raises UnusableReply where they are not.
    """
    places: list[Mapping[str, float]] = []
    for token, top in zip(choice.tokens, choice.top_logprobs, strict=True):
        digits = DIGIT.findall(token)
        if len(digits) > 1:
            raise UnusableReply(f"the token {token!r} holds several scores, so its log-prob is not one score's")
        if digits:
            places.append(_by_score(token, digits[0], top))
    if len(places) != len(plain):
        raise UnusableReply(f"log-probs of {len(places)} digits for {len(plain)} scores")
    return tuple(math.fsum(int(s) * p for s, p in place.items()) / math.fsum(place.values()) for place in places)


def _by_score(token: str, digit: str, top: Mapping[str, float]) -> dict[str, float]:
    """P of each score among tokens that differ from ``token`` in the digit (or its white space) alone."""
    found = {digit: 0.0}
    for other, logprob in top.items():
        match = DIGIT.search(other)
        if match and other.replace(match[0], "#").strip() == token.replace(digit, "#").strip():
            found[match[0]] = found.get(match[0], 0.0) + math.exp(logprob)
    return found if math.fsum(found.values()) > 0 else {digit: 1.0}
