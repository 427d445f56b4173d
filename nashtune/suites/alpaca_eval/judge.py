"""AlpacaEval 2's judge: one token, of which the log-probs say how much the model's answer is preferred."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nashtune.errors import EvaluationError
from nashtune.judging.chat import ChatRequest, Reply
from nashtune.judging.dispatch import Dispatcher
from nashtune.judging.faults import CallRefusedError
from nashtune.judging.replies import UnusableReply, content_refusal
from nashtune.records import Message, Role
from nashtune.suites.alpaca_eval.data import AlpacaSet
from nashtune.suites.alpaca_eval.metrics import TIE
from nashtune.together import together

ANNOTATOR = "weighted_alpaca_eval_gpt4_turbo"
JUDGE = "gpt-4-1106-preview"
TOP_LOGPROBS = 5
FIRST, SECOND = "m", "M"
"""The judge's names for the answer shown first and the one shown second."""
PLACEHOLDERS = ("{instruction}", "{output_1}", "{output_2}")


@dataclass(frozen=True, slots=True)
class Annotation:
    """The judge's word on one answer. ``preference`` is 1 (baseline) to 2 (model), None where the reply was unusable, with the
    reason; ``logprobs`` are those of the two names, -inf where one is not among the five most probable tokens."""

    index: int
    output: str
    preference: float | None
    switched: bool
    logprobs: Mapping[str, float]
    reason: str = ""
    model_returned: str = ""
    cost_usd: float = 0.0


def is_switched(instruction: str) -> bool:
    """Whether the model's answer is shown first: decided by the instruction alone, so alike for all models."""
    return random.Random(f"is_switched_outputs{instruction}0").choices([False, True])[0]


def render(template: str, instruction: str, first: str, second: str) -> tuple[Message, ...]:
    """The judge's messages. As upstream does it, each placeholder's first occurrence is replaced, one after the other, in the
    text so far: an instruction that holds "{output_1}" gets the answer (kept, as published figures depend on it).

    Raises EvaluationError where the template is not in ChatML form or lacks a placeholder.
    """
    if lacking := [name for name in PLACEHOLDERS if name not in template]:
        raise EvaluationError(f"the judge's prompt lacks {', '.join(lacking)}")
    text = template
    for name, value in zip(PLACEHOLDERS, (instruction, first, second), strict=True):
        text = text.replace(name, value, 1)
    messages = []
    for part in text.strip().split("<|im_start|>")[1:]:
        head, _, body = part.partition("\n")
        messages.append(Message(_role(head.strip()), body.split("<|im_end|>")[0].strip()))
    if not messages:
        raise EvaluationError("the judge's prompt has no <|im_start|>; accepted: ChatML")
    return tuple(messages)


def _role(name: str) -> Role:
    match name:
        case "system" | "user" | "assistant":
            return name
    raise EvaluationError(f"the judge's prompt has a turn of {name!r}; accepted: system, user, assistant")


def preference(reply: Reply, switched: bool) -> tuple[float, dict[str, float]]:
    """1..2 and the two names' log-probs. Raises UnusableReply where neither name is among the most probable tokens."""
    top = reply.choices[0].top_logprobs
    if not top:
        raise UnusableReply("the server sent no log-probs; AlpacaEval 2 needs a judge that gives them")
    found = {name: top[0].get(name, -math.inf) for name in (FIRST, SECOND)}
    if all(math.isinf(value) for value in found.values()):
        raise UnusableReply(f"neither {FIRST} nor {SECOND} among the most probable tokens: {sorted(top[0])}"[:300])
    first = 1 / (1 + math.exp(min(700.0, found[SECOND] - found[FIRST]))) if not math.isinf(found[FIRST]) else 0.0
    raw = 2 - first
    return (3 - raw if switched else raw), found


async def annotate(data: AlpacaSet, answers: Sequence[str], dispatcher: Dispatcher) -> list[Annotation]:
    """Judge the N answers to the set's prompts against the baseline's, through the ledger: what was bought is not bought
    again. An answer equal to the baseline's is a tie that nobody is asked about; an empty one is judged as it is."""
    if len(answers) != len(data.instructions):
        raise EvaluationError(f"{len(answers)} answers; accepted: one for each of the {len(data.instructions)} prompts")
    template = data.need_template()
    render(template, "", "", "")  # a bad template is an error before anything is paid for
    return await together(_one(data, template, i, answer, dispatcher) for i, answer in enumerate(answers))


async def _one(data: AlpacaSet, template: str, index: int, answer: str, dispatcher: Dispatcher) -> Annotation:
    instruction, reference = data.instructions[index], data.references[index]
    switched = is_switched(instruction)
    if answer == reference:
        return Annotation(index, answer, TIE, switched, {})
    shown = (answer, reference) if switched else (reference, answer)
    try:
        messages = render(template, instruction, *shown)
    except EvaluationError as error:  # the template is good, so an answer has brought turns of its own
        return Annotation(index, answer, None, switched, {}, reason=f"the answers break the judge's prompt: {error}")
    request = ChatRequest(messages, 1.0, 1, top_logprobs=TOP_LOGPROBS)
    try:
        reply = await dispatcher.call(request)
    except CallRefusedError as error:
        return Annotation(index, answer, None, switched, {}, reason=content_refusal(error))
    try:
        value, logprobs = preference(reply, switched)
    except UnusableReply as unusable:
        reason = str(unusable)
        return Annotation(index, answer, None, switched, {}, reason, reply.model_returned, reply.cost_usd)
    return Annotation(index, answer, value, switched, logprobs, "", reply.model_returned, reply.cost_usd)
