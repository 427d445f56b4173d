"""Arena-Hard as a suite: each answer against its category's baseline, in both orders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nashtune.errors import EvaluationError
from nashtune.recipe import ArenaHardSection, EngineSection
from nashtune.records import Interval, Prompt
from nashtune.seeds import content_hash
from nashtune.suites.arena_hard.bradley_terry import Bootstrapped
from nashtune.suites.arena_hard.compare import paired, style_controlled_difference, win_rate_difference
from nashtune.suites.arena_hard.data import ArenaHard, load_arena_hard
from nashtune.suites.arena_hard.formats import Answers as ModelAnswers
from nashtune.suites.arena_hard.formats import read_answers, read_judgments, write_answers, write_judgments
from nashtune.suites.arena_hard.scores import Figure, Scores, arena_hard_scores
from nashtune.suites.arena_hard.style import Style, token_counter
from nashtune.suites.arena_hard.verdicts import Game
from nashtune.suites.suite import Answers, Decoding, Given, Row, ScoreTable, SuiteScores

if TYPE_CHECKING:
    from nashtune.judging.dispatch import Dispatcher

OURS = "policy"
"""The model's name in rows that are scored; whose answers they are is kept beside them."""
KEPT = ("uid", "category", "baseline", "judge", "verdicts", "judgments", "reason", "model_returned", "cost_usd")
Styles = dict[str, dict[str, Style]]


class ArenaHardSuite:
    """One item a question; one row a game of two orders, in the order of the items."""

    turns = 1
    reads_logprobs = False

    def __init__(self, section: ArenaHardSection) -> None:
        self.section = section
        bench = load_arena_hard(section.data, section.version, judging=section.judge_prompts)
        self.bench: ArenaHard = bench.only(*section.categories) if section.categories else bench
        self.baseline = read_answers(Path(section.baseline).expanduser()) if section.baseline else None

    @property
    def engine(self) -> EngineSection | None:
        return self.section.judge

    @property
    def calls(self) -> int:
        return 2 * len(self.bench.questions)

    def check(self) -> None:
        from nashtune.suites.arena_hard.judge import opponents

        self.bench.need_judging()
        opponents(self.bench, {question.uid for question in self.bench.questions}, self.baseline)
        if self.section.style_tokens:
            token_counter(self.section.style_tokens)

    def identity(self) -> dict[str, Any]:
        bench, judging = self.bench, self.bench.judging
        shown: list[Any] = [[asdict(question) for question in bench.questions]]
        if judging is not None:
            limits = (judging.temperature, judging.max_tokens)
            shown += [judging.template, [p.pattern for p in judging.patterns], dict(judging.systems), *limits]
        rivals = {name: dict(answers.texts) for name, answers in self._rivals().items()}
        return {"data": content_hash(shown, rivals), "questions": len(bench.questions), "baselines": sorted(rivals)}

    def _rivals(self) -> Mapping[str, ModelAnswers]:
        if self.baseline is not None:
            return {self.baseline.model: self.baseline}
        wanted = {self.bench.baseline_of(category) for category in self.bench.categories}
        return {name: self.bench.answers[name] for name in sorted(wanted) if name in self.bench.answers}

    def prompts(self, turn: int, earlier: Answers) -> list[Prompt]:
        return self.bench.prompts()

    def decoding(self, item: int) -> Decoding:
        return Decoding(self.section.temperature, self.section.top_p, self.section.max_new_tokens)

    def _named(self, answers: Answers, model: str = OURS) -> ModelAnswers:
        """Answers that are not known (others' verdicts without them) have no turns."""
        questions = zip(self.bench.questions, answers, strict=True)
        return ModelAnswers(model, {question.uid: turns[0] for question, turns in questions if turns})

    async def judge(self, answers: Answers, dispatcher: Dispatcher | None) -> list[Row]:
        from nashtune.suites.arena_hard.judge import judge

        assert dispatcher is not None
        return self._rows(await judge(self.bench, self._named(answers), dispatcher, self.baseline), answers)

    def _rows(self, games: Sequence[Game], answers: Answers) -> list[Row]:
        counted = self.section.style_tokens
        styles = self._named(answers).styles(token_counter(counted)) if counted else {}
        return [_row(game, styles.get(game.uid)) for game in games]

    # ---- files -----------------------------------------------------------------------------------------------------------

    def read_answers(self, file: Path) -> Given:
        found = read_answers(file)
        if lacking := [q.uid for q in self.bench.questions if q.uid not in found.texts]:
            raise EvaluationError(
                f"{file}: no answer to {len(lacking)} of {len(self.bench.questions)} questions, the first {lacking[0]}"
            )
        return Given(found.model, [[found.texts[question.uid]] for question in self.bench.questions])

    def read_verdicts(self, file: Path) -> tuple[str, list[Row], Answers]:
        """The answers are those of ../../model_answer/MODEL.jsonl, where upstream keeps them, if it is there."""
        one = self.bench.baseline_of(self.bench.categories[0]) if len(self.bench.categories) == 1 else None
        known = {question.uid for question in self.bench.questions}
        games = [game for game in read_judgments(file, one) if game.uid in known]
        models = {game.model for game in games}
        if len(models) != 1:
            raise EvaluationError(
                f"{file}: judgments of {len(models)} models on the {len(known)} questions; accepted: one"
            )
        model = models.pop()
        answered = file.parent.parent.parent / "model_answer" / f"{file.stem}.jsonl"
        texts = read_answers(answered).texts if answered.is_file() else {}
        answers = [[texts[q.uid]] if q.uid in texts else [] for q in self.bench.questions]
        return model, self._rows(games, answers), answers

    def export(self, folder: Path, rows: Sequence[Row], answers: Answers, generator: str) -> list[Path]:
        named, counted = self._named(answers, generator), self.section.style_tokens
        styles = named.styles(token_counter(counted)) if counted else None
        files = [folder / "model_answer" / f"{_plain(generator)}.jsonl"]
        write_answers(files[0], {q.uid: q.prompt for q in self.bench.questions}, named, styles)
        games = [self._game(row, named) for row in rows]
        for judge in dict.fromkeys(game.judge for game in games):
            files.append(folder / "model_judgment" / _plain(judge) / files[0].name)
            write_judgments(files[-1], [game for game in games if game.judge == judge])
        return files

    def _game(self, row: Row, ours: ModelAnswers) -> Game:
        """The whole game of a row, with what the judge was asked where that can be said."""
        from nashtune.suites.arena_hard.judge import ask

        game = _game(row, ours.model)
        rival = self._rivals().get(game.baseline)
        question = next(question for question in self.bench.questions if question.uid == game.uid)
        if self.bench.judging is None or rival is None or not {game.uid} <= ours.texts.keys() & rival.texts.keys():
            return game
        own, theirs = ours.texts[game.uid], rival.texts[game.uid]
        judging = self.bench.judging
        return _game(row, ours.model, (ask(judging, question, theirs, own), ask(judging, question, own, theirs)))

    # ---- figures ---------------------------------------------------------------------------------------------------------

    def _styles(self, rows: Sequence[Row]) -> Styles | None:
        if not self.section.style_tokens:
            return None
        count = token_counter(self.section.style_tokens)
        rivals = {name: rival.styles(count) for name, rival in self._rivals().items()}
        return {OURS: {row["uid"]: Style(*row["style"]) for row in rows if row["style"]}, **rivals}

    def scores(self, rows: Sequence[Row], answers: Answers, confidence: float) -> SuiteScores:
        games = [_game(row, OURS) for row in rows]
        found = arena_hard_scores(games, self._styles(rows), confidence)
        overall = found.overall
        assert overall.win_rate is not None
        metrics: dict[str, Interval | float] = {"win_rate": _percent(overall.win_rate)}
        if overall.style_controlled is not None:
            metrics["style_controlled"] = _of_boot(overall.style_controlled.win_rates[OURS], overall.win_rate.n)
        return SuiteScores(
            metrics=metrics,
            counts={
                "answers": sum(bool(turns) for turns in answers),
                "games": overall.games,
                "unusable": overall.unusable,
                "flipped": overall.flipped,
            },
            facts=_facts(found, self.section),
            tables=(_by_category(found),),
            warnings=tuple(_warnings(found, rows, answers, self.section)),
        )

    def differences(
        self, a: tuple[Sequence[Row], Answers], b: tuple[Sequence[Row], Answers], confidence: float
    ) -> Mapping[str, tuple[Interval, float]]:
        """Of both metrics, as neither is a plain mean over prompts: a decisive verdict weighs more."""
        pair = paired([_game(row, OURS) for row in a[0]], [_game(row, OURS) for row in b[0]])
        found = {"win_rate": win_rate_difference(pair, confidence)}
        styles = self._styles(a[0]), self._styles(b[0])
        if styles[0] is not None and styles[1] is not None and all(row["style"] for row in (*a[0], *b[0])):
            found["style_controlled"] = style_controlled_difference(pair, (styles[0], styles[1]), confidence)
        return found


def _row(game: Game, style: Style | None) -> Row:
    """``style`` is the model's answer's; that of the baseline is in the data."""
    row = {name: getattr(game, name) for name in KEPT}
    row |= {"verdicts": list(game.verdicts), "judgments": list(game.judgments)}
    return row | {"style": None if style is None else [style.tokens, style.headers, style.lists, style.bold]}


def _game(row: Row, model: str, shown: Any = ((), ())) -> Game:
    pairs: dict[str, Any] = {name: (row[name][0], row[name][1]) for name in ("verdicts", "judgments")}
    return Game(**{**{name: row[name] for name in KEPT}, **pairs, "model": model, "shown": shown})


def _plain(name: str) -> str:
    return name.replace("/", "__")


def _percent(interval: Interval) -> Interval:
    return Interval(100 * interval.value, 100 * interval.low, 100 * interval.high, interval.n)


def _of_boot(found: Bootstrapped, n: int) -> Interval:
    return Interval(100 * found.value, 100 * found.low, 100 * found.high, n)


def _by_category(found: Scores) -> ScoreTable:
    columns = (
        "win rate (%)",
        "low",
        "high",
        "as published (%)",
        "5th",
        "95th",
        "style-controlled (%)",
        "games",
        "unusable",
    )
    return ScoreTable("by category", columns, tuple((name, _line(one)) for name, one in found.categories.items()))


def _line(figure: Figure) -> tuple[float | None, ...]:
    controlled = figure.style_controlled
    ours, shown = figure.win_rate, figure.published
    return (
        *((100 * ours.value, 100 * ours.low, 100 * ours.high) if ours else (None,) * 3),
        *((100 * shown.value, 100 * shown.low, 100 * shown.high) if shown else (None,) * 3),
        100 * controlled.win_rates[OURS].value if controlled else None,
        float(figure.games),
        float(figure.unusable),
    )


def _facts(found: Scores, section: ArenaHardSection) -> dict[str, Any]:
    overall = found.overall
    facts: dict[str, Any] = {
        "version": section.version,
        "baselines": list(found.baselines),
        "judges": list(found.judges),
        "verdicts": dict(overall.verdicts),
        "published_win_rate": 100 * overall.published.value if overall.published else None,
    }
    if overall.style_controlled is not None:
        facts["style_tokens"] = section.style_tokens
        facts["style_coefficients"] = dict(overall.style_controlled.coefficients)
    return facts


def _warnings(found: Scores, rows: Sequence[Row], answers: Answers, section: ArenaHardSection) -> list[str]:
    said, overall = [], found.overall
    if overall.unusable:
        reason = next(row["reason"] for row in rows if row["reason"])
        said.append(f"{overall.unusable} of {overall.games} games are unusable and count nowhere, the first: {reason}")
    if empty := sum(bool(turns) and not turns[0].strip() for turns in answers):
        said.append(f"{empty} answers are empty")
    if len(found.baselines) > 1:
        said.append(
            f"overall figures are against several baselines ({', '.join(found.baselines)}); published ones are by category"
        )
    if section.style_tokens and overall.style_controlled is None:
        said.append(f"no style-controlled win rate: {overall.style_reason}")
    return said
