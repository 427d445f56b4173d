"""Asking MT-Bench's judge, and reading its verdicts as FastChat does."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from nashtune.judging.chat import ChatRequest
from nashtune.judging.dispatch import Dispatcher
from nashtune.judging.faults import CallRefusedError
from nashtune.judging.replies import UnusableReply, content_refusal
from nashtune.records import Message
from nashtune.suites.mt_bench.data import JudgePrompt, MtBench, Question, Turns
from nashtune.together import together

MAX_TOKENS = 2048
RATING = (re.compile(r"\[\[(\d+\.?\d*)\]\]"), re.compile(r"\[(\d+\.?\d*)\]"))
"""The rating as the judge is told to write it, and as it may have written it."""
Verdict = Literal["A", "B", "tie"]
VERDICTS: Mapping[str, Verdict] = {"[[A]]": "A", "[[B]]": "B", "[[C]]": "tie"}


@dataclass(frozen=True, slots=True)
class Grade:
    """The judge's rating (1 to 10) of one turn, None where the reply was unusable, with the reason."""

    question: int
    category: str
    turn: int
    score: float | None
    judgment: str
    reason: str = ""
    model_returned: str = ""
    cost_usd: float = 0.0


@dataclass(frozen=True, slots=True)
class Game:
    """Two models on one turn, shown in both orders. ``winners`` are "1", "2" or "tie", None where that order's reply was
    unusable."""

    question: int
    category: str
    turn: int
    winners: tuple[str | None, str | None]
    judgments: tuple[str, str]
    reason: str = ""
    cost_usd: float = 0.0


def read_rating(judgment: str) -> float:
    """The first rating in double brackets, else the first in single ones. Raises UnusableReply where there is none."""
    for pattern in RATING:
        if found := pattern.search(judgment):
            return float(found[1])
    raise UnusableReply(f"no [[rating]] in the judge's {len(judgment)} characters")


def read_verdict(judgment: str) -> Verdict:
    """A before B before tie, as FastChat looks for them. Raises UnusableReply where there is none."""
    for mark, verdict in VERDICTS.items():
        if mark in judgment:
            return verdict
    raise UnusableReply(f"none of {', '.join(VERDICTS)} in the judge's {len(judgment)} characters")


def ask_single(prompt: JudgePrompt, question: Question, answer: Turns, turn: int) -> str:
    """The judge's user message. Texts are filled in at once, so that none can act as a placeholder."""
    if turn == 1:
        return prompt.template.format(question=question.turns[0], answer=answer[0], **_reference(question, turn))
    return prompt.template.format(
        question_1=question.turns[0],
        question_2=question.turns[1],
        answer_1=answer[0],
        answer_2=answer[1],
        **_reference(question, turn),
    )


def ask_pair(prompt: JudgePrompt, question: Question, a: Turns, b: Turns, turn: int) -> str:
    """The same for two answers."""
    reference = _reference(question, turn)
    if turn == 1:
        return prompt.template.format(question=question.turns[0], answer_a=a[0], answer_b=b[0], **reference)
    return prompt.template.format(
        question_1=question.turns[0],
        question_2=question.turns[1],
        answer_a_1=a[0],
        answer_a_2=a[1],
        answer_b_1=b[0],
        answer_b_2=b[1],
        **reference,
    )


def _reference(question: Question, turn: int) -> dict[str, str]:
    if question.reference is None:
        return {}
    return {f"ref_answer_{n}": question.reference[n - 1] for n in range(1, turn + 1)}


async def grade(bench: MtBench, answers: Mapping[int, Turns], dispatcher: Dispatcher) -> list[Grade]:
    """Rate both turns of every answered question, through the ledger."""
    return await together(
        _grade(bench, question, answers[question.id], turn, dispatcher)
        for question in bench.questions
        for turn in (1, 2)
        if question.id in answers
    )


async def _grade(bench: MtBench, question: Question, answer: Turns, turn: int, dispatcher: Dispatcher) -> Grade:
    prompt = bench.judge_prompt(question, turn, "single")
    said = await _ask(prompt, ask_single(prompt, question, answer, turn), dispatcher)
    score, reason = None, said.reason
    if not reason:
        try:
            score = read_rating(said.text)
        except UnusableReply as unusable:
            reason = str(unusable)
    return Grade(question.id, question.category, turn, score, said.text, reason, said.model, said.cost_usd)


async def compare(
    bench: MtBench, first: Mapping[int, Turns], second: Mapping[int, Turns], dispatcher: Dispatcher
) -> list[Game]:
    """Two models' answers to every question that both answered, each turn in both orders, through the ledger."""
    return await together(
        _game(bench, question, first[question.id], second[question.id], turn, dispatcher)
        for question in bench.questions
        for turn in (1, 2)
        if question.id in first and question.id in second
    )


async def _game(bench: MtBench, question: Question, a: Turns, b: Turns, turn: int, dispatcher: Dispatcher) -> Game:
    prompt = bench.judge_prompt(question, turn, "pairwise")
    said = await together(
        _ask(prompt, ask_pair(prompt, question, *pair, turn), dispatcher) for pair in ((a, b), (b, a))
    )
    names: Sequence[Mapping[str, str]] = ({"A": "1", "B": "2"}, {"A": "2", "B": "1"})
    winners: list[str | None] = []
    reasons = [reply.reason for reply in said if reply.reason]
    for reply, name in zip(said, names, strict=True):
        try:
            verdict = read_verdict(reply.text) if not reply.reason else None
        except UnusableReply as unusable:
            verdict = None
            reasons.append(str(unusable))
        winners.append(None if verdict is None else name.get(verdict, verdict))
    return Game(
        question.id,
        question.category,
        turn,
        (winners[0], winners[1]),
        (said[0].text, said[1].text),
        "; ".join(reasons),
        sum(reply.cost_usd for reply in said),
    )


@dataclass(frozen=True, slots=True)
class _Said:
    text: str
    reason: str
    model: str = ""
    cost_usd: float = 0.0


async def _ask(prompt: JudgePrompt, text: str, dispatcher: Dispatcher) -> _Said:
    request = ChatRequest((Message("system", prompt.system), Message("user", text)), 0.0, MAX_TOKENS)
    try:
        reply = await dispatcher.call(request)
    except CallRefusedError as error:
        return _Said("", content_refusal(error))
    choice = reply.choices[0]
    refused = choice.refusal or (choice.finish_reason if choice.finish_reason == "content_filter" else "")
    return _Said(choice.text, f"refusal: {refused}"[:300] if refused else "", reply.model_returned, reply.cost_usd)
