"""MT-Bench as a suite: ratings, or games against a baseline's answers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from nashtune.errors import EvaluationError
from nashtune.recipe import EngineSection, MtBenchSection
from nashtune.records import Interval, Message, Prompt
from nashtune.seeds import content_hash
from nashtune.store.files import write_atomic
from nashtune.suites.json_lines import read_json_lines
from nashtune.suites.mt_bench.data import Question, Turns, load_mt_bench, two_turns
from nashtune.suites.suite import Answers, Decoding, Given, Row, ScoreTable, SuiteScores

if TYPE_CHECKING:
    from nashtune.judging.dispatch import Dispatcher
    from nashtune.suites.mt_bench.judge import Game

MODEL_ANSWER = "model_answer.jsonl"


class MtBenchSuite:
    """One item a question, of two turns; one row a verdict on a turn."""

    turns = 2
    reads_logprobs = False

    def __init__(self, section: MtBenchSection) -> None:
        self.section = section
        self.bench = load_mt_bench(section.data, section.references)
        self.baseline = self._read(Path(section.baseline).expanduser())[1] if section.baseline else {}

    @property
    def engine(self) -> EngineSection | None:
        return self.section.judge

    @property
    def calls(self) -> int:
        return len(self.bench.questions) * (4 if self.section.mode == "pairwise" else 2)

    def check(self) -> None:
        for question in self.bench.questions:
            for turn in (1, 2):
                self.bench.judge_prompt(question, turn, self.section.mode)

    def identity(self) -> dict[str, Any]:
        bench = self.bench
        questions = [asdict(question) for question in bench.questions]
        prompts = {name: asdict(prompt) for name, prompt in bench.prompts.items()}
        shown = [questions, prompts, {str(number): turns for number, turns in self.baseline.items()}]
        return {"data": content_hash(shown), "questions": len(questions)}

    def prompts(self, turn: int, earlier: Answers) -> list[Prompt]:
        found = []
        for question, turns in zip(self.bench.questions, earlier, strict=True) if turn > 1 else self._first():
            messages = []
            for asked, answer in zip(question.turns, turns, strict=False):
                messages += [Message("user", asked), Message("assistant", answer)]
            messages.append(Message("user", question.turns[turn - 1]))
            found.append(Prompt.make(messages, source=f"mt_bench:{question.id}"))
        return found

    def _first(self) -> Iterable[tuple[Question, Sequence[str]]]:
        return ((question, ()) for question in self.bench.questions)

    def decoding(self, item: int) -> Decoding:
        own = self.section.temperature
        temperature = self.bench.questions[item].temperature if own is None else own
        return Decoding(temperature, self.section.top_p, self.section.max_new_tokens)

    def _turns(self, answers: Answers) -> dict[int, Turns]:
        return {q.id: (turns[0], turns[1]) for q, turns in zip(self.bench.questions, answers, strict=True)}

    async def judge(self, answers: Answers, dispatcher: Dispatcher | None) -> list[Row]:
        from nashtune.suites.mt_bench.judge import compare, grade

        assert dispatcher is not None
        ours = self._turns(answers)
        if self.section.mode == "pairwise":
            return [asdict(game) for game in await compare(self.bench, ours, self.baseline, dispatcher)]
        return [asdict(grade_) for grade_ in await grade(self.bench, ours, dispatcher)]

    def read_answers(self, file: Path) -> Given:
        name, found = self._read(file)
        return Given(name, [found[question.id] for question in self.bench.questions])

    def _read(self, file: Path) -> tuple[str, dict[int, Turns]]:
        """A model_answer file. Raises EvaluationError where it lacks a question."""
        answers: dict[int, Turns] = {}
        names: set[str] = set()
        for number, line in enumerate(read_json_lines(file), 1):
            try:
                answers[line["question_id"]] = two_turns(line["choices"][0]["turns"], f"{file}:{number}")
            except (KeyError, IndexError, TypeError):
                raise EvaluationError(
                    f"{file}:{number}: no question_id or choices; accepted: FastChat's model_answer format"
                ) from None
            names.add(str(line.get("model_id") or file.stem))
        if lacking := [q.id for q in self.bench.questions if q.id not in answers]:
            raise EvaluationError(
                f"{file}: no answer to {len(lacking)} of {len(self.bench.questions)} questions, the first {lacking[0]}"
            )
        return " and ".join(sorted(names)), answers

    def export(self, folder: Path, rows: Sequence[Row], answers: Answers, generator: str) -> list[Path]:
        lines = [
            json.dumps(
                {"question_id": q.id, "model_id": generator, "choices": [{"index": 0, "turns": list(turns)}]},
                ensure_ascii=False,
            )
            for q, turns in zip(self.bench.questions, answers, strict=True)
        ]
        write_atomic(folder / MODEL_ANSWER, "\n".join(lines) + "\n")
        return [folder / MODEL_ANSWER]

    # ---- figures -------------------------------------------------------------------------------------------------------

    def scores(self, rows: Sequence[Row], answers: Answers, confidence: float) -> SuiteScores:
        return (self._games if self.section.mode == "pairwise" else self._ratings)(rows, answers, confidence)

    def _ratings(self, rows: Sequence[Row], answers: Answers, confidence: float) -> SuiteScores:
        from nashtune.suites.mt_bench.judge import Grade
        from nashtune.suites.mt_bench.scores import mt_bench_scores

        found = mt_bench_scores([Grade(**row) for row in rows], confidence)
        turns = {"first_turn": found.first_turn, "second_turn": found.second_turn}
        values: dict[int, list[float]] = {}
        for row in rows:
            if row["score"] is not None:
                values.setdefault(row["question"], []).append(row["score"])
        return SuiteScores(
            metrics={"": found.average, **{name: value for name, value in turns.items() if value is not None}},
            items={"": {str(number): fmean(scores) for number, scores in values.items()}},
            counts={"questions": len(answers), "verdicts": found.rated, "unusable": found.unusable},
            facts={"average_as_stored": found.average_as_stored},
            tables=(ScoreTable("by category", ("rating",), tuple((n, (v,)) for n, v in found.categories.items())),),
            warnings=tuple(_warnings(rows, answers)),
        )

    def _games(self, rows: Sequence[Row], answers: Answers, confidence: float) -> SuiteScores:
        from nashtune.suites.mt_bench.scores import pair_scores, won

        games = [_game(row) for row in rows]
        found = pair_scores(games, confidence)
        values: dict[int, list[float]] = {}
        for game in games:
            if None not in game.winners:
                values.setdefault(game.question, []).append(100 * won(game))
        by_category: dict[str, list[float]] = {}
        for question in self.bench.questions:
            by_category.setdefault(question.category, []).extend(values.get(question.id, ()))
        rate = found.win_rate
        shown = tuple((name, (fmean(wins) if wins else None,)) for name, wins in by_category.items())
        return SuiteScores(
            metrics={"win_rate": Interval(100 * rate.value, 100 * rate.low, 100 * rate.high, rate.n)},
            items={"win_rate": {str(number): fmean(wins) for number, wins in values.items()}},
            counts={
                "questions": len(answers),
                "verdicts": len(rows) - found.unusable,
                "unusable": found.unusable,
                "wins": found.wins,
                "losses": found.losses,
                "ties": found.ties,
                "flipped": found.flipped,
            },
            tables=(ScoreTable("by category", ("win rate (%)",), shown),),
            warnings=tuple(_warnings(rows, answers)),
        )


def _game(row: Row) -> Game:
    from nashtune.suites.mt_bench.judge import Game

    read: dict[str, Any] = row | {"winners": tuple(row["winners"]), "judgments": tuple(row["judgments"])}
    return Game(**read)


def _warnings(rows: Sequence[Mapping[str, Any]], answers: Answers) -> list[str]:
    found = []
    if unusable := [row for row in rows if row["reason"]]:
        found.append(
            f"{len(unusable)} of {len(rows)} verdicts are unusable and count nowhere, the first: {unusable[0]['reason']}"
        )
    if empty := sum(not text.strip() for turns in answers for text in turns):
        found.append(f"{empty} answers are empty")
    return found
