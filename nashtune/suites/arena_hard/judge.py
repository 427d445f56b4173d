"""Asking Arena-Hard's judge: a model's answers against the baseline's, each prompt in both orders."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from nashtune.errors import EvaluationError
from nashtune.judging.chat import ChatRequest
from nashtune.judging.dispatch import Dispatcher
from nashtune.judging.faults import CallRefusedError
from nashtune.judging.replies import UnusableReply, content_refusal
from nashtune.records import Message
from nashtune.suites.arena_hard.data import ArenaHard, Question
from nashtune.suites.arena_hard.formats import Answers
from nashtune.suites.arena_hard.settings import JudgeSettings
from nashtune.suites.arena_hard.verdicts import Game, read_verdict
from nashtune.together import together

Messages = tuple[Message, ...]


def ask(judging: JudgeSettings, question: Question, a: str, b: str) -> Messages:
    """The judge's messages. All texts are filled in at once, so that none can act as a placeholder.

    Raises EvaluationError where the category has no judge prompt.
    """
    system = judging.systems.get(question.category)
    if system is None:
        raise EvaluationError(
            f"arena_hard: no judge prompt for {question.category!r}; there are those of {', '.join(judging.systems)}"
        )
    user = judging.template.format(QUESTION=question.prompt, ANSWER_A=a, ANSWER_B=b)
    return Message("system", system), Message("user", user)


async def judge(
    bench: ArenaHard, answers: Answers, dispatcher: Dispatcher, baseline: Answers | None = None
) -> list[Game]:
    """Both orders of every question that the model answered, through the ledger. ``baseline`` None is the published one of each
    question's category; where that has no answer the whole is refused before anything is bought.

    A reply that reached the limit of tokens is read like any other, as upstream does. Raises EvaluationError.
    """
    judging = bench.need_judging()
    asked = opponents(bench, answers.texts.keys(), baseline)
    if not asked:
        raise EvaluationError(f"arena_hard: {answers.model} answered none of the {len(bench.questions)} questions")
    return await together(_game(judging, question, answers, rival, dispatcher) for question, rival in asked)


def opponents(bench: ArenaHard, answered: Collection[str], baseline: Answers | None) -> list[tuple[Question, Answers]]:
    """The questions among ``answered``, each with whom it is judged against. Raises EvaluationError where that one has no answer
    to it."""
    found = []
    for question in bench.questions:
        if question.uid in answered:
            rival = baseline or _published(bench, question.category)
            if question.uid not in rival.texts:
                raise EvaluationError(
                    f"arena_hard: {rival.model} has no answer to {question.uid} ({question.category})"
                )
            found.append((question, rival))
    return found


def _published(bench: ArenaHard, category: str) -> Answers:
    name = bench.baseline_of(category)
    if name not in bench.answers:
        raise EvaluationError(
            f"arena_hard: no answers of {name}, the baseline of {category}, in the data; there are those of "
            f"{', '.join(bench.answers) or 'nobody'}. Judge other categories, or give another baseline's answers"
        )
    return bench.answers[name]


async def _game(
    judging: JudgeSettings, question: Question, ours: Answers, theirs: Answers, dispatcher: Dispatcher
) -> Game:
    own, rival = ours.texts[question.uid], theirs.texts[question.uid]
    first, second = ask(judging, question, rival, own), ask(judging, question, own, rival)
    one, two = await together(_ask(judging, messages, dispatcher) for messages in (first, second))
    return Game(
        uid=question.uid,
        category=question.category,
        model=ours.model,
        baseline=theirs.model,
        judge=dispatcher.engine.model,
        verdicts=(one.verdict, two.verdict),
        judgments=(one.text, two.text),
        reason="; ".join(filter(None, (one.reason, two.reason))),
        shown=(first, second),
        model_returned=one.model or two.model,
        cost_usd=one.cost_usd + two.cost_usd,
    )


@dataclass(frozen=True, slots=True)
class _Said:
    text: str
    verdict: str | None
    reason: str = ""
    model: str = ""
    cost_usd: float = 0.0


async def _ask(judging: JudgeSettings, messages: Messages, dispatcher: Dispatcher) -> _Said:
    try:
        reply = await dispatcher.call(ChatRequest(messages, judging.temperature, judging.max_tokens))
    except CallRefusedError as error:
        return _Said("", None, content_refusal(error))
    choice, paid = reply.choices[0], (reply.model_returned, reply.cost_usd)
    refused = choice.refusal or (choice.finish_reason if choice.finish_reason == "content_filter" else "")
    if refused:
        return _Said(choice.text, None, f"refusal: {refused}"[:300], *paid)
    try:
        return _Said(choice.text, read_verdict(choice.text, judging.patterns), "", *paid)
    except UnusableReply as unusable:
        return _Said(choice.text, None, str(unusable), *paid)
