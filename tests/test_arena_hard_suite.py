"""Arena-Hard as a suite of a recipe: a policy is asked, judged over loopback and scored, and nothing is bought twice."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from arena_hard_folder import clone_folder, write_jsonl
from judge_server import JudgeServer
from tiny_chat import write_tiny_policy
from typer.testing import CliRunner

from nashtune.cli import app
from nashtune.errors import DriftError, EvaluationError
from nashtune.recipe import ArenaHardSection, EvaluationFile
from nashtune.stages.evaluation import evaluate
from nashtune.stages.subject import of_model
from nashtune.suites.arena_hard.suite import ArenaHardSuite
from nashtune.suites.registry import open_suite
from nashtune.suites.suite import Compares, ReadsVerdicts, Suite


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    return clone_folder(tmp_path / "clone")


def settings(clone: Path, url: str = "http://127.0.0.1:1/v1", **changes: Any) -> ArenaHardSection:
    judge = {"price": "free", "base_url": url, "model": "judge", "concurrency": 1}
    own = {"suite": "arena_hard", "data": str(clone), "judge": judge, "max_new_tokens": 8, "style_tokens": "words"}
    return ArenaHardSection.model_validate(own | changes)


def evaluated(folder: Path, model: str, section: ArenaHardSection, engine: str = "native") -> dict[str, Any]:
    with ExitStack() as stack:
        file = EvaluationFile.model_validate({"engine": engine, "unit_prompts": 3})
        return evaluate(of_model(stack, folder, model, file), section)


def test_a_policy_is_asked_judged_and_scored_and_nothing_is_done_twice(clone: Path, tmp_path: Path) -> None:
    policy = write_tiny_policy(tmp_path / "tiny")
    # the model is B in the first game of each prompt and A in the second
    script = ["says:[[B>>A]]", "says:[[A>B]]"] * 3 + ["says:[[A=B]]", "refusal"] + ["says:\u2028 [[A>B]]"] * 4
    with JudgeServer(script) as server:
        record = evaluated(tmp_path / "out", str(policy), settings(clone, server.url))
        assert server.billed == 12
        assert evaluated(tmp_path / "out", str(policy), settings(clone, server.url)) == record
        folder = tmp_path / "out" / "arena_hard" / "tiny"
        (folder / "verdicts.jsonl").unlink()  # as if it had been killed before they were all in
        (folder / "scores.json").unlink()
        again = evaluated(tmp_path / "out", str(policy), settings(clone, server.url))
        assert server.billed == 12
    assert again["metrics"] == record["metrics"]
    rate = record["metrics"]["arena_hard_win_rate"]
    assert (rate["value"], rate["n"], rate["unit"]) == (pytest.approx(100 * (12 + 2) / 16), 5, "%")
    assert record["counts"] == {"answers": 6, "games": 6, "unusable": 1, "flipped": 2}
    table = record["tables"][0]
    assert [label for label, _ in table["rows"]] == ["hard_prompt", "creative_writing"]
    assert table["rows"][1][1][0] == 50
    assert record["facts"]["baselines"] == ["gemini-2.0-flash-001", "o3-mini-2025-01-31"]
    assert any("1 of 6 games are unusable" in warning and "refusal" in warning for warning in record["warnings"])
    assert any("against several baselines" in warning for warning in record["warnings"])
    answers = [json.loads(line) for line in (folder / "model_answer" / "tiny.jsonl").read_text().split("\n")[:-1]]
    assert len(answers) == 6
    assert set(answers[0]["metadata"]) == {"token_len", "header_count", "list_count", "bold_count"}
    judged = [json.loads(line) for line in (folder / "model_judgment/judge/tiny.jsonl").read_text().split("\n")[:-1]]
    assert [game["score"] for game in judged[3]["games"]] == ["A=B", None]
    own = answers[0]["messages"][-1]["content"]["answer"]
    assert judged[0]["games"][0]["prompt"][1]["content"].endswith(f"\nB {own}")
    with pytest.raises(DriftError, match=r"settings\.max_new_tokens: 8 -> 9"):
        evaluated(tmp_path / "out", str(policy), settings(clone, max_new_tokens=9))


def test_published_verdicts_are_scored_and_two_models_are_compared(clone: Path) -> None:
    section = settings(clone, categories=["hard_prompt"])
    suite = open_suite(section)
    assert isinstance(suite, ArenaHardSuite)
    assert isinstance(suite, Suite)
    assert isinstance(suite, ReadsVerdicts)
    assert isinstance(suite, Compares)
    bench, sides = clone / "data" / "arena-hard-v2.0", []
    for name, labels in (("good", ["B>A", "A>B"]), ("mixed", ["B>A", "B>A"])):
        rows = [{"score": label, "judgment": {"answer": label}} for label in labels]
        of = {"category": "hard_prompt", "judge": "gpt", "model": name, "baseline": "o3-mini-2025-01-31", "games": rows}
        write_jsonl(bench / "model_judgment" / "gpt" / f"{name}.jsonl", [{"uid": f"u{n}"} | of for n in range(4)])
        model, verdicts, answers = suite.read_verdicts(bench / "model_judgment" / "gpt" / f"{name}.jsonl")
        assert (model, answers) == (name, [[], [], [], []])
        scores = suite.scores(verdicts, answers, 0.95)
        assert set(scores.metrics) == {"win_rate"}
        assert any(
            "no style-controlled win rate: " in warning and "no style of" in warning for warning in scores.warnings
        )
        sides.append((verdicts, answers))
    unstyled = open_suite(settings(clone, categories=["hard_prompt"], style_tokens=None))
    assert isinstance(unstyled, ArenaHardSuite)
    found = unstyled.differences(sides[0], sides[1], 0.95)
    assert list(found) == ["win_rate"]
    interval, p = found["win_rate"]
    assert (interval.value, interval.n, p) == (50, 4, 2 / 2**4), "all four prompts on one side, of 16 ways to swap"
    assert unstyled.section.metric_names() == {"arena_hard_win_rate": "win_rate"}
    write_jsonl(
        bench / "model_answer" / "good.jsonl",
        [{"uid": f"u{n}", "messages": [{"content": "one two " * (n + 1)}]} for n in range(4)],
    )
    _, verdicts, answers = suite.read_verdicts(bench / "model_judgment" / "gpt" / "good.jsonl")
    assert answers[1] == ["one two one two "]
    assert set(suite.scores(verdicts, answers, 0.95).metrics) == {"win_rate", "style_controlled"}
    same = suite.differences((verdicts, answers), (verdicts, answers), 0.95)
    for metric in ("win_rate", "style_controlled"):
        interval, p = same[metric]
        assert (interval.value, interval.low, interval.high, p) == (0, 0, 0, 1)


def test_a_file_of_answers_is_judged_against_another_baseline(clone: Path, tmp_path: Path) -> None:
    files = {}
    for name in ("mine", "rival"):
        files[name] = tmp_path / f"{name}.jsonl"
        texts = [{"uid": f"u{n}", "messages": [{"content": f"{name} {n}"}]} for n in range(6)]
        write_jsonl(files[name], texts)
    with JudgeServer(["says:[[B>A]]", "says:[[A>B]]"] * 6) as server:
        section = settings(clone, server.url, baseline=str(files["rival"]), style_tokens=None)
        record = evaluated(tmp_path / "out", str(files["mine"]), section)
        shown = {request["messages"][1]["content"] for request in server.requests}
    assert "Q Question 2?\nA rival 2\nB mine 2" in shown
    assert record["metrics"]["arena_hard_win_rate"]["value"] == 100
    assert (record["generator"], record["facts"]["baselines"]) == ("mine", ["rival"])
    write_jsonl(files["mine"], [{"uid": "u0", "messages": [{"content": "x"}]}])
    with pytest.raises(EvaluationError, match="no answer to 5 of 6 questions, the first u1"):
        open_suite(section).read_answers(files["mine"])


def test_what_could_not_be_judged_is_refused_before_anything_is_sampled(clone: Path, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="style tokens: 'letters'"):
        open_suite(settings(clone, style_tokens="letters")).check()
    with pytest.raises(EvaluationError, match="no category 'maths'"):
        open_suite(settings(clone, categories=["maths"]))
    (clone / "data/arena-hard-v2.0/model_answer/gemini-2.0-flash-001.jsonl").unlink()
    with pytest.raises(EvaluationError, match="the baseline of creative_writing"):
        evaluated(tmp_path / "out", "scripted", settings(clone), engine="scripted")
    assert not list((tmp_path / "out").rglob("answers-*"))
    open_suite(settings(clone, categories=["hard_prompt"])).check()
    (clone / "utils" / "judge_utils.py").unlink()
    with pytest.raises(EvaluationError, match="judging needs the judge's prompts"):
        open_suite(settings(clone, categories=["hard_prompt"])).check()


def run_cli(*words: str) -> Any:
    result = CliRunner().invoke(app, ["eval", *words, "--suite", "arena_hard", "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)["evaluations"][0]


def test_the_command_evaluates_a_model_and_published_verdicts(
    clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    own = [f"data={clone}", "style_tokens=words", "max_new_tokens=8", "judge.model=judge", "judge.price=free"]
    options = [word for change in own for word in ("-o", f"arena_hard.{change}")]
    policy = write_tiny_policy(tmp_path / "tiny")
    with JudgeServer(["says:[[A>B]]"] * 12) as server:
        options += ["-o", f"arena_hard.judge.base_url={server.url}", "-o", "arena_hard.judge.concurrency=1"]
        found = run_cli(str(policy), "--out", "out", *options)
        assert server.billed == 12
        assert run_cli(str(policy), "--out", "out", *options) == found
        assert server.billed == 12
        assert found["metrics"]["arena_hard_win_rate"]["value"] == 50
        judged = next((tmp_path / "out").rglob("model_judgment/judge/tiny.jsonl"))
        again = run_cli("--annotations", str(judged), *options)
        assert server.billed == 12
    assert again["metrics"]["arena_hard_win_rate"] == found["metrics"]["arena_hard_win_rate"]
    assert again["counts"]["answers"] == 6, "the answers beside the judgments are found"
    shown = CliRunner().invoke(app, ["suites", "--json"])
    assert "arena_hard" in {row["name"] for row in json.loads(shown.stdout)}
