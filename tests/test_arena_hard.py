"""Arena-Hard: verdicts as upstream reads them, the judge over loopback, figures by hand and against scikit-learn."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path

import numpy as np
import pytest
from arena_hard_folder import CONFIG, OTHER, clone_folder, write_jsonl
from judge_server import JudgeServer
from reference_data import REFERENCE_DATA, needs_reference_data

from nashtune import recipe
from nashtune.errors import EvaluationError
from nashtune.evaluate.winrate import win_rate
from nashtune.judging.dispatch import Dispatcher
from nashtune.judging.replies import UnusableReply
from nashtune.store.ledger import Ledger
from nashtune.suites.arena_hard.battles import battles_of
from nashtune.suites.arena_hard.data import ArenaHard, load_arena_hard
from nashtune.suites.arena_hard.formats import Answers, read_answers, read_judgments, write_answers, write_judgments
from nashtune.suites.arena_hard.judge import ask, judge
from nashtune.suites.arena_hard.scores import DEGREES, arena_hard_scores, published_win_rate
from nashtune.suites.arena_hard.style import Style
from nashtune.suites.arena_hard.verdicts import SCORES, Game, read_verdict


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    return clone_folder(tmp_path / "clone")


@pytest.fixture
def bench(clone: Path) -> ArenaHard:
    return load_arena_hard(str(clone))


def answers_to(bench: ArenaHard, model: str = "ours") -> Answers:
    return Answers(model, {q.uid: f"{model} {q.uid}" for q in bench.questions})


def played(
    server: JudgeServer, bench: ArenaHard, ledger: Ledger | None = None, baseline: Answers | None = None
) -> list[Game]:
    """One request at a time, so that a script's replies come in the games' order."""
    engine = recipe.EngineSection(price="free", base_url=server.url, model="judge", concurrency=1)

    async def run() -> list[Game]:
        dispatcher = Dispatcher(engine, ledger)
        try:
            return await judge(bench, answers_to(bench), dispatcher, baseline)
        finally:
            await dispatcher.aclose()

    return asyncio.run(run())


def game(uid: str, first: str | None, second: str | None, category: str = "hard_prompt", model: str = "ours") -> Game:
    return Game(uid, category, model, "base", "judge", (first, second), ("", ""), "" if first and second else "none")


# ---- verdicts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "verdict"),
    [(f"So: [[{label}]].", label) for label in SCORES]
    + [(f"So: [{label}].", label) for label in SCORES]
    + [
        ("My final verdict is tie: [[a=b]]", "A=B"),
        ("first [[A>B]], no: [[B>>A]]", "B>>A"),
        ("[[A>B]] and then [B>A]", "A>B"),
        ("see [1] and [[2]], [A>>B]", "A>>B"),
        ("[B>A] [A>B]", "A>B"),
    ],
)
def test_the_last_verdict_counts_in_double_brackets_before_single_ones(text: str, verdict: str) -> None:
    assert read_verdict(text) == verdict


@pytest.mark.parametrize("text", ["", "A is better", "[[C]]", "[[A]]", "[[A>B]] [[A>>>B]]", "A>B", "[[ A>B ]]", "[[]]"])
def test_a_reply_without_a_known_verdict_is_unusable(text: str) -> None:
    with pytest.raises(UnusableReply, match="verdict"):
        read_verdict(text)


def test_the_model_is_b_in_the_first_game_and_a_in_the_second() -> None:
    assert game("u", "A>>B", "A>>B").scores() == (0.0, 1.0)
    assert game("u", "B>A", "A=B").scores() == (1.0, 0.5)
    assert game("u", None, "B>>A").scores() == (None, 0.0)
    assert sorted(SCORES.values()) == [0.0] * 4 + [0.5] * 2 + [1.0] * 4


# ---- the judge -----------------------------------------------------------------------------------------------------------


def test_each_prompt_is_judged_in_both_orders_by_its_categorys_prompt_and_baseline(bench: ArenaHard) -> None:
    with JudgeServer(["says:[[A>>B]]"] * 12) as server:
        games = played(server, bench)
        asked = [[m["content"] for m in request["messages"]] for request in server.requests]
        assert {(r["temperature"], r["max_tokens"]) for r in server.requests} == {(0.0, 16000)}
    assert len(asked) == 12
    hard, creative = (next(q for q in bench.questions if q.category == c) for c in ("hard_prompt", "creative_writing"))
    for question, system, rival in (
        (hard, "careful", "o3-mini-2025-01-31"),
        (creative, "free", "gemini-2.0-flash-001"),
    ):
        ours, theirs = f"ours {question.uid}", f"{rival} {question.uid}"
        assert [f"{system} judge", f"Q {question.prompt}\nA {theirs}\nB {ours}"] in asked
        assert [f"{system} judge", f"Q {question.prompt}\nA {ours}\nB {theirs}"] in asked
    assert {g.verdicts for g in games} == {("A>>B", "A>>B")}
    scores = arena_hard_scores(games)
    assert scores.overall.win_rate is not None
    assert (scores.overall.win_rate.value, scores.overall.flipped) == (0.5, 6), "the first shown always wins"
    assert scores.baselines == ("gemini-2.0-flash-001", "o3-mini-2025-01-31")


def test_no_text_acts_as_a_placeholder(bench: ArenaHard) -> None:
    _, user = ask(bench.need_judging(), bench.questions[0], "{ANSWER_B}", "{0} {QUESTION}")
    assert user.content == f"Q {bench.questions[0].prompt}\nA {{ANSWER_B}}\nB {{0}} {{QUESTION}}"


def test_unusable_replies_are_told_and_count_neither_as_ties_nor_as_losses(bench: ArenaHard) -> None:
    script = ["says:[[B>A]]", "says:[[A>B]]", "refusal", "says:[[A>B]]", "says:nothing", "says:[[A]]"]
    with JudgeServer(script + ["400:prompt too long"] * 2 + ["says:[[B>A]]", "says:[[A>B]]"] * 2) as server:
        games = played(server, bench)
    assert [g.usable for g in games] == [True, False, False, False, True, True]
    assert games[1].verdicts == (None, "A>B")
    assert games[1].reason.startswith("refusal")
    assert "no [[verdict]]" in games[2].reason
    assert "last verdict is 'A'" in games[2].reason
    assert "refused by the server: prompt too long" in games[3].reason
    scores = arena_hard_scores(games)
    assert scores.overall.win_rate is not None
    assert (scores.overall.win_rate.value, scores.overall.games, scores.overall.unusable) == (1.0, 6, 3)
    with JudgeServer() as server, pytest.raises(EvaluationError, match="none of the 6 games has usable verdicts"):
        arena_hard_scores(played(server, bench))


def test_what_was_judged_is_not_bought_again(bench: ArenaHard, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    with JudgeServer(["says:[[A=B]]"] * 5 + ["401"]) as server:
        with pytest.raises(Exception, match=r"401|Incorrect API key"):
            played(server, bench, ledger)
        bought = server.billed
        assert bought == 5
        server.script.extend(["says:[[A=B]]"] * 20)
        games = played(server, bench, ledger)
        assert server.billed == 12
        assert played(server, bench, ledger) == games
        assert server.billed == 12
        played(server, bench, ledger, baseline=answers_to(bench, "other"))
        assert server.billed == 24, "another baseline is another question"
    ledger.close()


def test_what_cannot_be_judged_is_refused_before_anything_is_bought(bench: ArenaHard, clone: Path) -> None:
    (clone / "data/arena-hard-v2.0/model_answer/gemini-2.0-flash-001.jsonl").unlink()
    lacking = load_arena_hard(str(clone))
    bare = load_arena_hard(str(clone))
    object.__setattr__(bare, "judging", None)
    with JudgeServer(["says:[[A=B]]"] * 8) as server:
        with pytest.raises(EvaluationError, match=r"no answers of gemini-2\.0-flash-001, the baseline of creative"):
            played(server, lacking)
        with pytest.raises(EvaluationError, match=r"needs the judge's prompts: arena_hard_judge\.json"):
            played(server, bare)
        with pytest.raises(EvaluationError, match="other has no answer to u1"):
            played(server, bench, baseline=Answers("other", {"u0": "x"}))
        assert not server.requests
        assert len(played(server, lacking.only("hard_prompt"))) == 4
    with pytest.raises(EvaluationError, match="no category 'math'; accepted: hard_prompt, creative_writing"):
        bench.only("math")


# ---- figures -------------------------------------------------------------------------------------------------------------


def test_figures_by_hand() -> None:
    games = [
        game("a", "B>>A", "A>B"),  # won by much and by little: 3 + 1 wins
        game("b", "A=B", "B>A"),  # a tie and a loss
        game("c", "A>B", "A>B", "creative_writing"),  # the first shown won twice
        game("d", None, "A>>B", "creative_writing"),
    ]
    scores = arena_hard_scores(games)
    overall = scores.overall
    assert overall.win_rate is not None
    assert overall.win_rate.value == pytest.approx((4 + 0.5 + 1) / 8)
    assert overall.win_rate.n == 3
    assert [overall.verdicts[name] for name in DEGREES] == [0, 2, 1, 2, 1]
    assert (overall.flipped, overall.games, overall.unusable) == (1, 4, 1)
    assert scores.categories["hard_prompt"].win_rate == arena_hard_scores(games[:2]).overall.win_rate
    creative = scores.categories["creative_writing"]
    assert creative.win_rate is not None
    assert (creative.win_rate.value, creative.unusable) == (0.5, 1)
    assert arena_hard_scores(games, weight=1).overall.win_rate.value == pytest.approx((2 + 0.5 + 1) / 6)  # type: ignore[union-attr]
    with pytest.raises(EvaluationError, match="games of 2 models"):
        arena_hard_scores([*games, game("a", "A=B", "A=B", model="theirs")])


def test_the_interval_is_clustered_by_prompt() -> None:
    rng = np.random.default_rng(0)
    labels = ["A>B", "A=B", "B>A"]
    games = [game(str(i), *rng.choice(labels, 2)) for i in range(60)]
    interval = arena_hard_scores(games).overall.win_rate
    expected = win_rate([sum(g.scores()) / 2 for g in games], 0.95)  # type: ignore[arg-type]
    assert interval is not None
    assert (interval.value, interval.low, interval.high) == pytest.approx((expected.value, expected.low, expected.high))
    twice = arena_hard_scores([*games, *games]).overall.win_rate  # two judges that always agree know no more than one
    assert twice is not None
    assert twice.low == pytest.approx(interval.low)
    drawn = list(battles_of([*games, *games]).drawn("prompts", 200, 0))
    spread = np.std([battles_of([*games, *games]).mean(w) for w in drawn])
    assert 3.9 * spread == pytest.approx(interval.high - interval.low, rel=0.2)


def test_the_published_interval_draws_verdicts_by_themselves() -> None:
    games = [game(str(i), "B>A", "A>B") for i in range(120)] + [game(str(i), "A>>B", "B>>A") for i in range(120, 160)]
    battles = battles_of(games)
    assert battles.mean() == 0.5
    assert battles.weight.sum() == 480
    shown = published_win_rate(battles, rounds=400)
    assert shown.value == pytest.approx(0.5, abs=0.005)
    assert shown.high - shown.low == pytest.approx(2 * 1.645 * math.sqrt(0.25 / 480), rel=0.15)


def test_an_unusable_order_loses_its_game_in_v2_and_itself_in_v01() -> None:
    games = [game("a", None, "A>B"), game("b", "A>B", "B>A")]
    assert battles_of(games).score.tolist() == [0, 0]
    assert battles_of(games, whole=False).score.tolist() == [1, 0, 0]


# ---- files ---------------------------------------------------------------------------------------------------------------


def test_a_clone_its_data_alone_and_the_table_say_the_same(clone: Path, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    bench = load_arena_hard(str(clone))
    assert load_arena_hard(str(clone / "data" / "arena-hard-v2.0")) == bench
    settings = bench.need_judging()
    assert (settings.judge, settings.temperature, settings.max_tokens) == ("some-judge", 0.0, 16000)
    table = tmp_path / "table"
    table.mkdir()
    rows = [
        {"version": "v2.0", "uid": q.uid, "category": q.category, "subcategory": q.subcategory, "prompt": q.prompt}
        | {"answer_o3_mini": f"o3-mini-2025-01-31 {q.uid}", "answer_gpt_4_0314": None}
        for q in bench.questions
    ]
    pq.write_table(pa.Table.from_pylist(rows), table / "arena_hard_prompts.parquet")
    systems = {
        name: {"baseline": settings.baselines[name], "system_prompt": text} for name, text in settings.systems.items()
    }
    whole = {"settings": systems, "v20": CONFIG}
    (table / "arena_hard_judge.json").write_text(json.dumps(whole))
    other = load_arena_hard(str(table))
    assert (other.questions, other.judging) == (bench.questions, bench.judging)
    assert list(other.answers) == ["o3-mini-2025-01-31"]
    apart = load_arena_hard(str(clone / "data" / "arena-hard-v2.0"), judging=str(table))
    assert apart.judging == bench.judging
    with pytest.raises(EvaluationError, match="no answers of 'nobody'; it has those of o3-mini"):
        load_arena_hard(str(table), models=("nobody",))
    with pytest.raises(EvaluationError, match=r"no rows of version 'v0\.1'"):
        load_arena_hard(str(table), "v0.1")
    with pytest.raises(EvaluationError, match=r"judge settings: '.*'; accepted: arena_hard_judge\.json, a folder"):
        load_arena_hard(str(clone), "v0.1", judging=str(table))
    with pytest.raises(EvaluationError, match=r"'v3'; accepted: v0\.1, v2\.0"):
        load_arena_hard(str(table), "v3")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("file", "text", "told"),
    [
        (
            "config/arena-hard-v2.0.yaml",
            "prompt_template: '{QUESTION}'",
            "prompt_template lacks {ANSWER_A}, {ANSWER_B}",
        ),
        (
            "config/arena-hard-v2.0.yaml",
            "prompt_template: '{QUESTION}{ANSWER_A}{ANSWER_B}{X}'",
            "has braces beside .*'X'",
        ),
        (
            "config/arena-hard-v2.0.yaml",
            "prompt_template: '{QUESTION}{ANSWER_A}{ANSWER_B}'\nregex_patterns: ['[AB]']",
            "has not one group",
        ),
        (
            "utils/judge_utils.py",
            "JUDGE_SETTINGS = open('x').read()",
            "judge_utils.py:1: JUDGE_SETTINGS is not spelled",
        ),
        ("utils/judge_utils.py", "OTHER = {}", "no JUDGE_SETTINGS"),
        ("data/arena-hard-v2.0/question.jsonl", '{"uid": 3}', "entry 0: uid is 3; accepted: text"),
        ("data/arena-hard-v2.0/question.jsonl", "[1]", "question.jsonl:1: '\\[1\\]'; accepted: an object"),
        (
            "data/arena-hard-v2.0/model_answer/o3-mini-2025-01-31.jsonl",
            "version https://git-lfs.github.com/spec/v1",
            "pointer of git-lfs",
        ),
        ("data/arena-hard-v2.0/model_answer/o3-mini-2025-01-31.jsonl", '{"uid": "u0"}', "the last one holds no answer"),
    ],
)
def test_a_bad_file_is_named(clone: Path, file: str, text: str, told: str) -> None:
    (clone / file).write_text(text)
    with pytest.raises(EvaluationError, match=told):
        load_arena_hard(str(clone))


def test_the_hub_is_asked_for_the_files_that_are_needed(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    asked: list[str] = []

    def snapshot(name: str, repo_type: str, allow_patterns: list[str]) -> str:
        asked.extend([name, repo_type, *allow_patterns])
        return str(clone)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    bench = load_arena_hard("lmarena-ai/arena-hard-auto", judging=str(clone))
    assert bench == load_arena_hard(str(clone))
    assert asked[:3] == ["lmarena-ai/arena-hard-auto", "dataset", "data/arena-hard-v2.0/question.jsonl"]
    assert "data/arena-hard-v2.0/model_answer/gemini-2.0-flash-001.jsonl" in asked

    def unreachable(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(EvaluationError, match="neither a folder nor a data set that the hub gave"):
        load_arena_hard("lmarena-ai/arena-hard-auto")


def test_judgments_are_exported_in_upstreams_form_and_read_back(bench: ArenaHard, tmp_path: Path) -> None:
    with JudgeServer(["says:[[B>>A]]", "says:\u2028 [[a<b]]", "refusal"] + ["says:[[A=B]]"] * 9) as server:
        games = played(server, bench)
    file = tmp_path / "model_judgment" / "judge" / "ours.jsonl"
    write_judgments(file, games)
    first = json.loads(file.read_text().split("\n")[0])
    assert {"uid", "category", "judge", "model", "baseline", "games"} == set(first)
    assert [g["score"] for g in first["games"]] == ["B>>A", "A<B"]
    assert [m["role"] for m in first["games"][0]["prompt"]] == ["system", "user"]
    again = read_judgments(file)
    assert arena_hard_scores(again) == arena_hard_scores(games)
    assert [g.shown for g in again] == [g.shown for g in games]


def test_others_judgments_are_recomputed(tmp_path: Path) -> None:
    file = tmp_path / "gpt" / "m.jsonl"
    old = {"question_id": "q", "model": "m", "judge": "gpt", "games": [{"judgment": "text", "score": "A>B"}, None]}
    new = {"uid": "r", "category": "hard_prompt", "model": "m", "judge": "gpt", "baseline": "base"}
    new["games"] = [{"score": "A=B", "judgment": {"answer": "t"}, "prompt": []}, {"score": "A", "judgment": None}]
    write_jsonl(file, [old, new])
    with pytest.raises(EvaluationError, match="entry 0: no baseline; name the model that m was judged against"):
        read_judgments(file)
    games = read_judgments(file, "gpt-4-0314")
    assert [(g.uid, g.baseline, g.verdicts) for g in games] == [
        ("q", "gpt-4-0314", ("A>B", None)),
        ("r", "base", ("A=B", None)),
    ]
    assert [g.reason for g in games] == ["stored without a verdict", "stored verdict 'A'"]
    assert games[0].judgments == ("text", "")


def test_answers_are_written_as_upstream_takes_them_and_read_back(tmp_path: Path) -> None:
    file = tmp_path / "ours.jsonl"
    answers = Answers("ours", {"u0": "one\u2028two", "u1": "# h"})
    styles = {"u0": Style(3, 0, 0, 0), "u1": Style(2, 1, 0, 0)}
    write_answers(file, {"u0": "p0", "u1": "p1"}, answers, styles)
    assert read_answers(file) == Answers("ours", answers.texts, styles)
    write_answers(file, {"u0": "p0", "u1": "p1"}, answers)
    assert read_answers(file) == answers
    write_jsonl(file, [{"uid": "u0", "messages": [{"content": "x"}]}] * 2)
    with pytest.raises(EvaluationError, match="entry 1: question 'u0' again"):
        read_answers(file)


@needs_reference_data
@pytest.mark.parametrize(("version", "count", "limit"), [("v0.1", 500, 4096), ("v2.0", 750, 16000)])
def test_the_published_prompts_are_judged(version: str, count: int, limit: int) -> None:
    if not (REFERENCE_DATA / "arena_hard_prompts.parquet").is_file():
        pytest.skip("the reference data have no arena_hard_prompts.parquet")
    bench = load_arena_hard(str(REFERENCE_DATA), version)  # type: ignore[arg-type]
    judging = bench.need_judging()
    assert (len(bench.questions), judging.max_tokens) == (count, limit)
    assert judging.baselines == judging.baselines | {c: bench.baseline_of(c) for c in bench.categories}
    first = bench.only(bench.categories[0])
    few = ArenaHard(first.version, first.questions[:3], judging, first.answers)
    with JudgeServer(["says:My final verdict is tie: [[A=B]]"] * 6) as server:
        games = played(server, few)
    assert [g.verdicts for g in games] == [("A=B", "A=B")] * 3
    assert all(few.questions[0].prompt in shown[1].content for shown in games[0].shown)
    assert OTHER not in bench.answers
