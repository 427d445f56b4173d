"""The paper's judge: one call shows all candidates side by side, 6-point rubric, JSON answer.

What a candidate wrote is data. The template is filled in one pass, so braces in an answer stay braces; every quoted
text stands between lines that carry a mark nobody could have known when the text was written; and a reply is believed
only where it is one JSON object with one whole score from 0 to 6 for every candidate.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from nashtune import recipe
from nashtune.errors import OracleError
from nashtune.judging.chat import Chat, ChatRequest, Choice, Reply
from nashtune.judging.faults import CallRefusedError
from nashtune.judging.replies import SHOWN_VALUE, UnusableReply, content_refusal, only_object, usage_of, whole_score
from nashtune.judging.showing import GRADING, RUBRIC, TOP_SCORE, fill, material, presentation_order
from nashtune.records import Judgment, Message, Prompt, Response

TEMPLATE = (
    GRADING
    + """\
and nothing else. For each answer n from 1 to {count} it has the two keys "id<n>_justification" (one or two sentences:
which statements of the rubric hold, which is the first that does not) and then "id<n>_score" (a whole number, 0 to 6):

{example}
"""
)
REPAIR = """\
That reply cannot be used: {problem}. Give your grades again, as one JSON object and nothing else, with the keys {keys}.
Each score is a whole number from 0 to 6. Keep each justification to one short sentence.
"""
ANSWER_KEY = re.compile(r"id(\d+)_(score|justification)")
FORMAT_REFUSED = re.compile(r"response_format|json_schema|json_object|structured|grammar|guided", re.IGNORECASE)


class RubricOracle:
    """Scores of 0 to 6 from a chat model. Calls go through ``dispatcher``, and so those to a server are bought once.

    A reply that cannot be used is shown to the judge with the problem named, ``repair_attempts`` times; after that
    the judgment is "unusable" with its reason, raw reply and usage. So is a prompt that the server refuses for its
    content or length. Raises OracleError where the server cannot be used at all.
    """

    name = "rubric"
    needs_logprobs: frozenset[str] = frozenset()

    def __init__(self, section: recipe.RubricOracle, dispatcher: Chat) -> None:
        self._section = section
        self._dispatcher = dispatcher
        self._first_format = 0  # of response_formats(); moves on when the server refuses one

    async def judge(self, prompt: Prompt, candidates: Sequence[Response], seed: int) -> Judgment:
        if not candidates:
            raise OracleError(f"prompt {prompt.id}: no candidates to judge; accepted: one or more")
        order = presentation_order(len(candidates), seed)
        messages = (Message("user", render(prompt, [candidates[i].text for i in order], seed)),)
        replies: list[Reply] = []
        shown: Sequence[int] = ()
        problem = ""
        for _ in range(1 + self._section.repair_attempts):
            try:
                reply = await self._ask(messages, len(candidates))
            except CallRefusedError as error:
                problem = content_refusal(error)
                break
            replies.append(reply)
            try:
                shown, problem = read_scores(reply.choices[0], len(candidates)), ""
                break
            except UnusableReply as unusable:
                problem = str(unusable)
                messages = (*messages[:1], *repair(reply, problem, len(candidates)))
        return Judgment(
            prompt_id=prompt.id,
            response_ids=tuple(c.id for c in candidates),
            oracle=self.name,
            outcome="unusable" if problem else "ok",
            reason=problem,
            scores=None if problem else tuple(float(shown[order.index(i)]) for i in range(len(candidates))),
            order=order,
            raw=_text(replies[-1].choices[0]) if replies else "",
            model_requested=self._section.asked.model,
            model_returned=replies[-1].model_returned if replies else "",
            usage=usage_of(replies),
        )

    async def aclose(self) -> None:
        await self._dispatcher.aclose()

    async def _ask(self, messages: tuple[Message, ...], count: int) -> Reply:
        """Ask in the strictest response format that the server takes, unless the reply was bought before in any."""
        section = self._section
        requests = [
            ChatRequest(messages, section.temperature, section.max_tokens, response_format=response_format)
            for response_format in response_formats(count)
        ]
        for request in requests:
            if (reply := self._dispatcher.stored(request)) is not None:
                return reply
        for level in range(self._first_format, len(requests) - 1):
            try:
                return await self._dispatcher.call(requests[level])
            except CallRefusedError as error:
                if error.status not in (400, 422) or not FORMAT_REFUSED.search(error.server_message):
                    raise
                self._first_format = max(self._first_format, level + 1)
        return await self._dispatcher.call(requests[-1])


def render(prompt: Prompt, answers: Sequence[str], seed: int) -> str:
    """The judge's message for ``answers`` in the order shown."""
    example = json.dumps(_per_answer(len(answers), "...", "<0 to 6>"), indent=1).replace('"<0 to 6>"', "<0 to 6>")
    values = {"rubric": RUBRIC, "count": str(len(answers)), "example": example}
    return fill(TEMPLATE, material(prompt, answers, seed) | values)


def repair(reply: Reply, problem: str, count: int) -> tuple[Message, Message]:
    """The bad reply and what is wrong with it, as the next two turns."""
    keys = ", ".join(_per_answer(count, "", 0))
    text = fill(REPAIR, {"problem": problem, "keys": keys})
    return Message("assistant", _text(reply.choices[0]) or "(empty reply)"), Message("user", text)


def response_formats(count: int) -> tuple[Mapping[str, Any] | None, ...]:
    """What to ask of the server's decoder, the strictest first."""
    score = {"type": "integer", "enum": list(range(TOP_SCORE + 1))}
    properties = _per_answer(count, {"type": "string"}, score)
    schema = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    strict = {"type": "json_schema", "json_schema": {"name": "grades", "strict": True, "schema": schema}}
    return strict, {"type": "json_object"}, None


def read_scores(choice: Choice, count: int) -> tuple[int, ...]:
    """The scores of the ``count`` answers in the order shown. Raises UnusableReply."""
    grades = only_object(choice, ANSWER_KEY)
    accepted = {str(n) for n in range(1, count + 1)}
    numbers = [match[1] for key in grades if (match := ANSWER_KEY.fullmatch(key))]
    if extra := next((n for n in numbers if n not in accepted), ""):
        raise UnusableReply(f"id{extra[:SHOWN_VALUE]} is no answer; there are {count}")
    return tuple(_score(grades, f"id{n}_score") for n in range(1, count + 1))


def _score(grades: Mapping[str, Any], key: str) -> int:
    if key not in grades:
        raise UnusableReply(f"missing {key}")
    return whole_score(grades[key], key, TOP_SCORE)


def _per_answer(count: int, justification: Any, score: Any) -> dict[str, Any]:
    """id1_justification, id1_score, id2_justification, ..."""
    pairs = {"justification": justification, "score": score}
    return {f"id{n}_{name}": value for n in range(1, count + 1) for name, value in pairs.items()}


def _text(choice: Choice) -> str:
    return choice.text or choice.refusal
