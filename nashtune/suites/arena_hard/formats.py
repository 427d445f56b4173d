"""Upstream's own files, read and written: model_answer/MODEL.jsonl and model_judgment/JUDGE/MODEL.jsonl."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nashtune.errors import EvaluationError
from nashtune.records import Message
from nashtune.store.files import write_atomic
from nashtune.suites.arena_hard.style import CountTokens, Style, published_style, style_of
from nashtune.suites.arena_hard.verdicts import Game, known_verdict
from nashtune.suites.json_lines import read_json_lines


@dataclass(frozen=True, slots=True)
class Answers:
    """One model's answers by question, and the style of those that a file gives it for."""

    model: str
    texts: Mapping[str, str]
    published: Mapping[str, Style] = field(default_factory=dict)

    def styles(self, count_tokens: CountTokens) -> dict[str, Style]:
        """Every answer's style, counted here: published counts are of one encoding and never mixed with others."""
        return {uid: style_of(text, count_tokens) for uid, text in self.texts.items()}


def text_field(row: Mapping[str, Any], name: str, where: str) -> str:
    """Raises EvaluationError where it is no text."""
    value = row.get(name)
    if not isinstance(value, str):
        raise EvaluationError(f"{where}: {name} is {value!r:.80}; accepted: text")
    return value


# ---- answers -------------------------------------------------------------------------------------------------------------


def read_answers(file: Path, model: str | None = None) -> Answers:
    """The text of each last message, and ``metadata`` where all answers have it. ``model`` None is the file's name.

    Raises EvaluationError naming the entry that has no answer, or repeats a question.
    """
    texts: dict[str, str] = {}
    styles: dict[str, Style] = {}
    for number, row in enumerate(read_json_lines(file)):
        where = f"{file}: entry {number}"
        uid = text_field(row, "uid", where)
        if uid in texts:
            raise EvaluationError(f"{where}: question {uid!r} again")
        texts[uid] = _answer(row, where)
        if isinstance(metadata := row.get("metadata"), dict):
            styles[uid] = published_style(metadata, where)
    return Answers(model or file.stem, texts, styles if len(styles) == len(texts) else {})


def _answer(row: Mapping[str, Any], where: str) -> str:
    match row.get("messages"):
        case [*_, {"content": {"answer": str(text)}}] | [*_, {"content": str(text)}]:
            return text
    raise EvaluationError(f"{where}: messages: the last one holds no answer")


def write_answers(
    file: Path, prompts: Mapping[str, str], answers: Answers, styles: Mapping[str, Style] | None = None
) -> None:
    """As upstream takes them; ``prompts`` by question. Style is written as its ``metadata``, kinds not told apart."""
    rows = []
    for uid, text in answers.texts.items():
        messages = [{"role": "user", "content": prompts[uid]}, {"role": "assistant", "content": {"answer": text}}]
        row: dict[str, Any] = {"uid": uid, "ans_id": uid, "model": answers.model, "messages": messages}
        if styles:
            s = styles[uid]
            counts = {"header_count": {"h": s.headers}, "list_count": {"all": s.lists}, "bold_count": {"all": s.bold}}
            row["metadata"] = {"token_len": s.tokens} | counts
        rows.append(row)
    _write_lines(file, rows)


# ---- judgments -----------------------------------------------------------------------------------------------------------


def read_judgments(file: Path, baseline: str | None = None) -> list[Game]:
    """Games as upstream or ``write_judgments`` stored them; ``baseline`` is the opponent where a row names none.

    A stored verdict is taken as it is; null, or one that is none of the ten, makes the game unusable, with the reason.
    Raises EvaluationError naming the entry that is no judgment of two games.
    """
    return [
        _read_game(row, baseline, file, f"{file}: entry {number}") for number, row in enumerate(read_json_lines(file))
    ]


def _read_game(row: Mapping[str, Any], baseline: str | None, file: Path, where: str) -> Game:
    uid = row.get("uid", row.get("question_id"))
    games = row.get("games")
    if not isinstance(uid, str) or not isinstance(games, list) or len(games) != 2:
        raise EvaluationError(f"{where}: uid {uid!r:.40}, games {games!r:.40}; accepted: a text and two games")
    against = row.get("baseline", baseline)
    if not isinstance(against, str):
        raise EvaluationError(f"{where}: no baseline; name the model that {file.stem} was judged against")
    verdicts, reasons = zip(*(_stored_verdict(game) for game in games), strict=True)
    return Game(
        uid=uid,
        category=str(row.get("category", "arena-hard-v0.1")),
        model=text_field(row, "model", where),
        baseline=against,
        judge=str(row.get("judge", file.parent.name)),
        verdicts=(verdicts[0], verdicts[1]),
        judgments=(_said(games[0]), _said(games[1])),
        reason="; ".join(filter(None, reasons)),
        shown=(_shown(games[0]), _shown(games[1])),
    )


def _stored_verdict(game: Any) -> tuple[str | None, str]:
    score = game.get("score") if isinstance(game, dict) else None
    if score is None:
        return None, "stored without a verdict"
    return (score, "") if known_verdict(score) else (None, f"stored verdict {score!r:.40}")


def _said(game: Any) -> str:
    judgment = game.get("judgment") if isinstance(game, dict) else None
    return str(judgment.get("answer", "") if isinstance(judgment, dict) else judgment or "")


def _shown(game: Any) -> tuple[Message, ...]:
    prompt = game.get("prompt") if isinstance(game, dict) else None
    return tuple(Message(one["role"], one["content"]) for one in prompt or ())


def write_judgments(file: Path, games: Sequence[Game]) -> None:
    """As upstream writes them; an unusable reply has the score null, which upstream counts and leaves out."""
    _write_lines(file, [_row(game) for game in games])


def _row(game: Game) -> dict[str, Any]:
    played = zip(game.verdicts, game.judgments, game.shown, strict=True)
    return {
        "uid": game.uid,
        "category": game.category,
        "judge": game.judge,
        "model": game.model,
        "baseline": game.baseline,
        "games": [
            {
                "score": verdict,
                "judgment": {"answer": text},
                "prompt": [{"role": message.role, "content": message.content} for message in shown],
            }
            for verdict, text, shown in played
        ],
    }


def _write_lines(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    write_atomic(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
