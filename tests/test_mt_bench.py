"""MT-Bench: the judge over loopback, ratings read as published, means by hand and as published."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from statistics import fmean

import pytest
from judge_server import JudgeServer
from reference_data import REFERENCE_DATA, needs_reference_data

from nashtune import recipe
from nashtune.errors import EvaluationError
from nashtune.judging.dispatch import Dispatcher
from nashtune.judging.replies import UnusableReply
from nashtune.suites.mt_bench.data import MtBench, load_mt_bench
from nashtune.suites.mt_bench.judge import (
    Game,
    Grade,
    ask_pair,
    ask_single,
    compare,
    grade,
    read_rating,
    read_verdict,
)
from nashtune.suites.mt_bench.scores import mt_bench_scores, pair_scores

SINGLE = {
    "single-v1": "Q {question} A {answer}",
    "single-math-v1": "Q {question} R {ref_answer_1} A {answer}",
    "single-v1-multi-turn": "Q {question_1} A {answer_1} Q {question_2} A {answer_2}",
    "single-math-v1-multi-turn": "R {ref_answer_1} R {ref_answer_2} Q {question_1} A {answer_1} Q {question_2} A {answer_2}",
}
PAIR = {
    "pair-v2": "Q {question} A {answer_a} B {answer_b}",
    "pair-math-v1": "Q {question} R {ref_answer_1} A {answer_a} B {answer_b}",
    "pair-v2-multi-turn": "Q {question_1} {question_2} A {answer_a_1} {answer_a_2} B {answer_b_1} {answer_b_2}",
    "pair-math-v1-multi-turn": "R {ref_answer_1} {ref_answer_2} Q {question_1} {question_2} A {answer_a_1} {answer_a_2} "
    "B {answer_b_1} {answer_b_2}",
}


def write_jsonl(file: Path, rows: list[dict]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    kinds = ["writing", "math"]
    rows = [{"question_id": n, "category": kinds[n % 2], "turns": [f"one {n}", f"two {n}"]} for n in range(6)]
    write_jsonl(tmp_path / "question.jsonl", rows)
    references = [{"question_id": n, "choices": [{"turns": [f"ref one {n}", f"ref two {n}"]}]} for n in (1, 3, 5)]
    write_jsonl(tmp_path / "reference_answer" / "gpt-4.jsonl", references)
    prompts = [
        {"name": n, "system_prompt": f"system of {n}", "prompt_template": t} for n, t in {**SINGLE, **PAIR}.items()
    ]
    write_jsonl(tmp_path / "judge_prompts.jsonl", prompts)
    return tmp_path


@pytest.fixture
def bench(folder: Path) -> MtBench:
    return load_mt_bench(str(folder))


def ask(server: JudgeServer, work):
    async def run():
        dispatcher = Dispatcher(recipe.EngineSection(price="free", base_url=server.url, model="judge"))
        try:
            return await work(dispatcher)
        finally:
            await dispatcher.aclose()

    return asyncio.run(run())


def test_each_turn_is_judged_by_its_categorys_prompt_and_no_text_acts_as_a_placeholder(bench: MtBench) -> None:
    math, writing = bench.questions[1], bench.questions[0]
    answer = ("{question}", "{ref_answer_1}")
    assert ask_single(bench.judge_prompt(writing, 1, "single"), writing, answer, 1) == "Q one 0 A {question}"
    prompt = bench.judge_prompt(math, 2, "single")
    assert prompt.system == "system of single-math-v1-multi-turn"
    assert (
        ask_single(prompt, math, answer, 2) == "R ref one 1 R ref two 1 Q one 1 A {question} Q two 1 A {ref_answer_1}"
    )
    pair = bench.judge_prompt(math, 1, "pairwise")
    assert ask_pair(pair, math, ("a", ""), ("b", ""), 1) == "Q one 1 R ref one 1 A a B b"
    assert bench.judge_prompt(writing, 2, "pairwise").name == "pair-v2-multi-turn"
    assert (math.temperature, writing.temperature) == (0.0, 0.7)


@pytest.mark.parametrize(
    ("text", "rating"),
    [("Good. Rating: [[7]]", 7), ("[[8.5]] then [[2]]", 8.5), ("Rating: [6]", 6), ("see [3], rating [[9]]", 9)],
)
def test_ratings_are_read_as_fastchat_reads_them(text: str, rating: float) -> None:
    assert read_rating(text) == rating


@pytest.mark.parametrize("text", ["", "Rating: 7", "[[ten]]", "[[-3]]"])
def test_a_reply_without_a_rating_is_unusable(text: str) -> None:
    with pytest.raises(UnusableReply, match="no \\[\\[rating\\]\\]"):
        read_rating(text)


def test_verdicts() -> None:
    assert [read_verdict(text) for text in ("[[B]]", "so [[C]]", "not [[B]] but [[A]]")] == ["B", "tie", "A"]
    with pytest.raises(UnusableReply):
        read_verdict("A is better")


def test_every_turn_is_rated_through_the_server_and_unusable_replies_are_told(bench: MtBench) -> None:
    answers = {q.id: (f"w {q.id}", "w") for q in bench.questions}
    with JudgeServer(["refusal"]) as server:
        grades = ask(server, lambda dispatcher: grade(bench, answers, dispatcher))
        assert len(server.requests) == 12
        assert {request["temperature"] for request in server.requests} == {0.0}
    assert all(g.score is None and g.reason for g in grades), "the stand-in judge knows no ratings"
    assert sum(g.reason.startswith("refusal") for g in grades) == 1
    with pytest.raises(EvaluationError, match="none of the 12 replies holds a rating"):
        mt_bench_scores(grades)


def test_ratings_come_through_the_server(bench: MtBench) -> None:
    answers = {0: ("a", "b"), 1: ("c", "d")}
    with JudgeServer(["says:Fine. Rating: [[7]]"] * 4) as server:
        grades = ask(server, lambda dispatcher: grade(bench, answers, dispatcher))
    assert [(g.question, g.turn, g.score) for g in grades] == [(0, 1, 7), (0, 2, 7), (1, 1, 7), (1, 2, 7)]


def test_a_judge_that_always_names_the_first_shown_prefers_nobody(bench: MtBench) -> None:
    first, second = ({0: (f"{name} one", f"{name} two")} for name in ("left", "right"))
    with JudgeServer(["says:[[A]]"] * 4) as server:
        games = ask(server, lambda dispatcher: compare(bench, first, second, dispatcher))
    assert [game.winners for game in games] == [("1", "2"), ("1", "2")]
    scores = pair_scores(games)
    assert (scores.wins, scores.losses, scores.ties, scores.flipped) == (0, 0, 2, 2)


def test_games_are_shown_in_both_orders(bench: MtBench) -> None:
    first, second = ({q.id: (f"{name} {q.id}", name) for q in bench.questions} for name in ("left", "right"))
    with JudgeServer() as server:
        games = ask(server, lambda dispatcher: compare(bench, first, second, dispatcher))
        asked = [request["messages"][1]["content"] for request in server.requests]
    assert len(asked) == 24
    assert "Q one 0 A left 0 B right 0" in asked
    assert "Q one 0 A right 0 B left 0" in asked
    assert all(game.winners == (None, None) and "none of [[A]]" in game.reason for game in games)


def g(question: int, turn: int, score: float | None, category: str = "math") -> Grade:
    return Grade(question, category, turn, score, "")


def test_means_by_hand() -> None:
    scores = mt_bench_scores([g(1, 1, 8.0), g(1, 2, 6.0), g(2, 1, 9.0, "stem"), g(2, 2, None, "stem")])
    assert scores.average.value == pytest.approx(23 / 3)
    assert (scores.first_turn, scores.second_turn) == (8.5, 6.0)
    assert scores.categories == {"math": 7.0, "stem": 9.0}
    assert (scores.rated, scores.unusable, scores.average_as_stored) == (3, 1, 22 / 4)
    # residual sums -4/3 and 4/3: their deviation about 0 with n - 1 is sqrt(32/9), times sqrt(2) / 3, times t of 1 degree
    assert scores.average.high - scores.average.value == pytest.approx(12.7062 * (32 / 9) ** 0.5 * 2**0.5 / 3, rel=1e-4)


def test_games_by_hand() -> None:
    winners = [("1", "1"), ("1", "2"), ("tie", "1"), ("2", "2"), ("1", None), ("tie", "tie")]
    games = [Game(n // 2, "math", 1 + n % 2, pair, ("", "")) for n, pair in enumerate(winners)]
    scores = pair_scores(games)
    assert (scores.wins, scores.losses, scores.ties, scores.unusable, scores.flipped) == (1, 1, 3, 1, 1)
    assert scores.win_rate.value == pytest.approx(fmean([0.75, 0.25, 0.5]))


def test_bad_data_name_the_file_and_line(folder: Path) -> None:
    file = folder / "question.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[2]["turns"] = ["only one"]
    write_jsonl(file, rows)
    with pytest.raises(EvaluationError, match=r"question 2: turns are \['only one'\]; accepted: two texts"):
        load_mt_bench(str(folder))
    file.write_text("{\n")
    with pytest.raises(EvaluationError, match=r"question.jsonl:1: not JSON"):
        load_mt_bench(str(folder))
    file.unlink()
    with pytest.raises(EvaluationError, match=r"none of question\.jsonl"):
        load_mt_bench(str(folder))
    with pytest.raises(EvaluationError, match="is no folder"):
        load_mt_bench(str(folder / "absent"))


@needs_reference_data
def test_published_means_follow_from_the_published_judgments() -> None:
    import pyarrow.parquet as pq

    bench = load_mt_bench(str(REFERENCE_DATA))
    questions = {question.id: question for question in bench.questions}
    grades: dict[str, list[Grade]] = {}
    for row in pq.read_table(REFERENCE_DATA / "mt_bench_gpt4_judgments.parquet").to_pylist():
        question = questions[row["question_id"]]
        assert bench.judge_prompt(question, row["turn"], "single").name == row["prompt_name"]
        try:
            score = read_rating(row["judgment"])
        except UnusableReply:
            score = None
        assert (-1 if score is None else score) == row["score"]
        grades.setdefault(row["model"], []).append(
            Grade(question.id, question.category, row["turn"], score, row["judgment"])
        )
    scores = {model: mt_bench_scores(mine) for model, mine in grades.items()}
    assert {model: s.unusable for model, s in scores.items() if s.unusable} == {"unify": 1}
    assert scores["unify"].average.value == pytest.approx((160 * 8.696875 + 1) / 159), "without its -1"
    assert {model: s.average_as_stored for model, s in scores.items()} == {
        "gpt-4-1106-preview": 9.228125,
        "unify": 8.696875,
        "mistralai/Mixtral-8x7B-Instruct-v0.1": 8.340625,
        "martian": 8.3125,
    }


@needs_reference_data
def test_published_judge_messages_are_made_again_from_their_answers() -> None:
    import re

    import pyarrow.parquet as pq

    bench = load_mt_bench(str(REFERENCE_DATA))
    questions = {question.id: question for question in bench.questions}
    checked = 0
    for row in pq.read_table(REFERENCE_DATA / "mt_bench_gpt4_judgments.parquet").to_pylist()[::9]:
        question, prompt = questions[row["question_id"]], bench.prompts[row["prompt_name"]]
        name = r"\{answer(?:_1)?\}|\{answer_2\}" if row["turn"] == 2 else r"\{answer\}"
        fixed = re.split(name, prompt.template)
        values = {"question": question.turns[0], "question_1": question.turns[0], "question_2": question.turns[1]}
        if question.reference:
            values |= {"ref_answer_1": question.reference[0], "ref_answer_2": question.reference[1]}
        pieces = [re.escape(piece.format(**values)) for piece in fixed]
        found = re.fullmatch("(.*)".join(pieces), row["user_prompt"], re.DOTALL)
        if found is None:  # other reference answers than the ones at hand
            continue
        answer = (found[1], found[2] if row["turn"] == 2 else "")
        assert ask_single(prompt, question, answer, row["turn"]) == row["user_prompt"]
        checked += 1
    assert checked > 40
