"""Suites as a user runs them: in a run's loop, by `nashtune eval` on runs, models and files; a real server judges."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from judge_server import JudgeServer
from suite_data import alpaca_folder, model_answers, mt_bench_folder
from tiny_chat import tiny_recipe
from typer.testing import CliRunner

from nashtune.cli import app
from nashtune.evaluated import all_scores, scores_of
from nashtune.recipe import AlpacaEvalSection, load_recipe
from nashtune.run import Run
from nashtune.show_evaluations import print_comparison
from nashtune.store.files import write_json
from nashtune.suites.alpaca_eval.suite import AlpacaEval2
from nashtune.summaries import called

RUNNER = CliRunner()
PROMPTS = 12


def cli(*words: object) -> Any:
    """The command's JSON, or its whole output where it gives none."""
    done = RUNNER.invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout) if "--json" in words else done.output


def refused(*words: object) -> str:
    done = RUNNER.invoke(app, [str(word) for word in words])
    assert done.exit_code == 1, done.output
    assert "Traceback" not in done.output
    return " ".join(done.output.split())


def judge(server: JudgeServer) -> dict[str, Any]:
    return {"model": "judge", "base_url": server.url, "price": "free"}


def asked(server: JudgeServer, **settings: object) -> list[str]:
    """-o for a judge on loopback and further settings."""
    found = {f"judge.{name}": value for name, value in judge(server).items()} | settings
    return [word for key, value in found.items() for word in ("-o", f"{key}={value}")]


@pytest.fixture(scope="module")
def server() -> Iterator[JudgeServer]:
    with JudgeServer() as server:
        yield server


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    alpaca_folder(folder / "alpaca", PROMPTS)
    mt_bench_folder(folder / "mt_bench")
    return folder


@pytest.fixture(scope="module")
def runs(tiny_folder: Path, data: Path, server: JudgeServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs that differ in the learning rate, evaluated by two suites, the best chosen by one of them."""
    folder = tmp_path_factory.mktemp("runs")
    suites = [
        {
            "suite": "alpaca_eval",
            "when": "each",
            "data": str(data / "alpaca"),
            "max_new_tokens": 8,
            "judge": judge(server) | {"probe": False},
        },
        {
            "suite": "mt_bench",
            "data": str(data / "mt_bench"),
            "max_new_tokens": 8,
            "judge": judge(server) | {"probe": False},
        },
    ]
    changes: dict[str, Any] = {"evaluate": suites, "validate": {"select": "alpaca_eval_win_rate", "kl_samples": 0}}
    for name, rate in (("one", 1e-3), ("two", 3e-3)):
        file = folder / f"{name}.yaml"
        recipe = tiny_recipe(tiny_folder, train={"learning_rate": rate}, **changes)
        file.write_text(yaml.safe_dump(recipe | {"name": name, "folder": str(folder)}))
        cli("run", file)
    return folder


# ---- in the loop ---------------------------------------------------------------------------------------------------------


def test_each_iteration_is_evaluated_and_the_best_is_chosen_by_a_suites_metric(runs: Path) -> None:
    run = Run.read(runs / "one")
    found = all_scores(run.folder)["alpaca_eval"]
    assert list(found) == [0, 1, 2]
    rates = [scores["metrics"]["alpaca_eval_win_rate"]["value"] for scores in found.values()]
    best = run.best()
    assert best is not None
    assert best.iteration == rates.index(max(rates))
    assert len({scores["policy"] for scores in found.values()}) == 3
    assert json.loads((run.folder / "export.json").read_text())["iteration"] == best.iteration
    status = cli("status", run.folder, "--json")
    assert status["finished"]
    assert status["best"] == best.iteration
    assert status["evaluations"]["alpaca_eval"]["1"]["metrics"]["alpaca_eval_win_rate"]["value"] == rates[1]


def test_the_report_has_a_section_for_each_suite(runs: Path) -> None:
    page = Path(cli("report", runs / "one").strip()).read_text()
    section = page[page.index('id="evaluation-1"') :]
    scores = scores_of(runs / "one", "alpaca_eval", 2)
    assert scores is not None
    lc = scores["metrics"]["alpaca_eval_lc"]
    for text in (
        "alpaca_eval_lc",
        f"{lc['value']:.1f}",
        f"{lc['low']:.1f}–{lc['high']:.1f}",
        "judged by judge",
        "parity",
        "set 1",
    ):
        assert text in section
    assert "p of no better than half" in page


def test_a_finished_evaluation_does_nothing_and_changed_settings_are_refused(
    runs: Path, server: JudgeServer, data: Path
) -> None:
    run, before = runs / "one", len(server.requests)
    kept = {file: file.stat().st_mtime_ns for file in (run / "evaluations").rglob("*") if file.is_file()}
    again = cli("eval", run, "--iteration", "all", "--suite", "alpaca_eval", "--json")["evaluations"]
    assert [scores["iteration"] for scores in again] == [0, 1, 2]
    assert len(server.requests) == before
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    told = refused("eval", run, "--iteration", 1, "--suite", "alpaca_eval", "-o", "max_new_tokens=9")
    assert "settings.max_new_tokens: 8 -> 9" in told
    assert "another `name`" in told
    moved = shutil.copytree(data / "alpaca", run.parent / "moved")
    cli("eval", run, "--iteration", 1, "--suite", "alpaca_eval", "-o", f"data={moved}")  # the same data elsewhere
    (moved / "alpaca_eval_clf.txt").write_text((moved / "alpaca_eval_clf.txt").read_text() + "\n")
    assert "suite.data" in refused("eval", run, "--iteration", 1, "--suite", "alpaca_eval", "-o", f"data={moved}")


def test_another_name_takes_the_same_answers_and_judges_them_anew(runs: Path, server: JudgeServer) -> None:
    run, before = runs / "one", len(server.requests)
    words = ("--suite", "alpaca_eval", "-o", "name=second", "-o", "judge.model=another", "-o", "judge.probe=false")
    found = cli("eval", run, "--iteration", 1, *words, "--json")["evaluations"][0]
    assert len(server.requests) == before + PROMPTS
    assert list(found["metrics"]) == ["second_lc", "second_win_rate", "second_discrete_win_rate"]
    files = [
        sorted((run / "evaluations" / name / "iteration-1" / "answers-1").iterdir())
        for name in ("alpaca_eval", "second")
    ]
    assert all(os.path.samefile(a, b) for a, b in zip(*files, strict=True)), "answers are not drawn twice"


def test_intervals_of_another_level_come_from_the_verdicts_alone(
    runs: Path, server: JudgeServer, tmp_path: Path
) -> None:
    run = shutil.copytree(runs / "one", tmp_path / "one")
    text = (run / "recipe.yaml").read_text().replace("select: alpaca", "confidence: 0.6\n  select: alpaca")
    (run / "recipe.yaml").write_text(text)
    before = len(server.requests)
    wide, narrow = (
        cli("eval", folder, "--iteration", 1, "--suite", "alpaca_eval", "--json")["evaluations"][0]["metrics"]
        for folder in (runs / "one", run)
    )
    assert narrow["alpaca_eval_win_rate"]["value"] == wide["alpaca_eval_win_rate"]["value"]
    assert narrow["alpaca_eval_win_rate"]["low"] > wide["alpaca_eval_win_rate"]["low"]
    assert len(server.requests) == before


def test_a_run_is_not_finished_before_its_last_evaluation(runs: Path, server: JudgeServer, tmp_path: Path) -> None:
    run = Run.read(shutil.copytree(runs / "one", tmp_path / "one"))
    last = run.folder / "evaluations" / "alpaca_eval" / "iteration-2"
    kept = (last / "scores.json").read_text()
    (last / "scores.json").unlink()
    assert run.state() == "finished but for alpaca_eval of iteration 2"
    before = len(server.requests)
    cli("run", run.folder, f"folder={tmp_path}")
    assert run.state() == "finished"
    assert (last / "scores.json").read_text() == kept
    assert len(server.requests) == before


def test_rollback_takes_later_evaluations_along_and_a_fork_keeps_earlier_ones(runs: Path, tmp_path: Path) -> None:
    run = Run.read(shutil.copytree(runs / "two", tmp_path / "two"))
    with run.fork(tmp_path / "forked", 1) as forked:
        assert list(all_scores(forked.folder)["alpaca_eval"]) == [0, 1]
    run.rollback(1)
    assert list(all_scores(run.folder)["alpaca_eval"]) == [0, 1]
    assert list(run.folder.glob("rolled-back/*/evaluations/alpaca_eval/iteration-2/scores.json"))


def test_the_best_is_not_chosen_by_a_length_controlled_win_rate_far_from_the_raw_one(
    runs: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(runs / "one", tmp_path / "one")
    text = (folder / "recipe.yaml").read_text().replace("select: alpaca_eval_win_rate", "select: alpaca_eval_lc")
    (folder / "recipe.yaml").write_text(text)
    run = Run.read(folder)
    for t, (lc, unfit) in enumerate(((30.0, {}), (86.5, {"alpaca_eval_lc": "far from the raw 20.0 %"}), (40.0, {}))):
        scores = scores_of(folder, "alpaca_eval", t)
        assert scores is not None
        scores["metrics"]["alpaca_eval_lc"]["value"], scores["unfit"] = lc, unfit
        write_json(folder / "evaluations" / "alpaca_eval" / f"iteration-{t}" / "scores.json", scores)
    best = run.best()
    assert best is not None
    assert called(best.iteration) == "iteration 2"
    assert run.passed_over() == {1: "far from the raw 20.0 %"}
    assert "1 cannot be the best: far from the raw 20.0 %" in cli("status", folder)
    assert "cannot be the best by alpaca eval lc" in Path(cli("report", folder).strip()).read_text()


def test_answers_that_only_length_control_likes_are_unfit_for_selection(data: Path) -> None:
    suite = AlpacaEval2(AlpacaEvalSection(suite="alpaca_eval", data=str(data / "alpaca")))
    rows = [  # always shorter, and the less preferred the shorter: at the baseline's length it would win half
        {
            "index": i,
            "preference": 1 + 0.5 * (1 - i / PROMPTS) ** 2,
            "length": 1000 - 80 * i,
            "baseline_length": 1000,
            "reason": "",
        }
        for i in range(PROMPTS)
    ]
    scores = suite.scores(rows, [["x"]] * PROMPTS, 0.95)
    assert list(scores.unfit) == ["lc"]
    assert scores.unfit["lc"] in scores.warnings
    assert "do not choose" in scores.unfit["lc"]
    even = [row | {"length": 1000, "preference": 1.5} for row in rows]
    assert not suite.scores(even, [["x"]] * PROMPTS, 0.95).unfit


# ---- comparing -----------------------------------------------------------------------------------------------------------


def test_two_runs_are_compared_on_the_same_prompts(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = cli("compare", runs / "one", runs / "two", "--json")
    assert found["recipe"] == [{"setting": "train.learning_rate", "a": 1e-3, "b": 3e-3}]
    assert [row["iteration"] for row in found["iterations"]] == [0, 1, 2]
    paired = {(row["metric"], row["iteration_a"], row["iteration_b"]): row for row in found["suites"]}
    same = paired["alpaca_eval_win_rate", 0, 0]
    assert (same["difference"]["value"], same["p"], same["difference"]["n"]) == (0.0, 1.0, PROMPTS)
    values = [scores_of(runs / name, "alpaca_eval", 2) for name in ("one", "two")]
    rates = [scores["metrics"]["alpaca_eval_win_rate"]["value"] for scores in values if scores]
    row = paired["alpaca_eval_win_rate", 2, 2]
    assert row["difference"]["value"] == pytest.approx(rates[0] - rates[1])
    assert row["difference"]["low"] < row["difference"]["value"] < row["difference"]["high"]
    assert 0 < row["p"] <= 1
    assert ("alpaca_eval_lc", 2, 2) in paired
    held_out = [row for row in found["held_out"] if row["metric"] == "win_rate_vs_initial" and row["iteration_a"] == 1]
    of_one = Run.read(runs / "one").summaries()[1].win_rate_vs_initial
    assert of_one is not None
    assert held_out[0]["a"] == pytest.approx(100 * of_one.value)
    assert held_out[0]["difference"]["n"] == 8
    print_comparison(found)
    shown = capsys.readouterr().out
    assert "a less b, on the same prompts" in shown
    assert f"{row['difference']['value']:+.1f} [" in shown


# ---- models and files ----------------------------------------------------------------------------------------------------


def test_mt_bench_asks_two_turns_and_rates_both(tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    words = ["eval", tiny_folder / "policy", "--suite", "mt_bench", "--out", tmp_path / "out", "--json"]
    with JudgeServer(
        [f"says:Rating: [[{n}]]" for n in (5, 6, 7, 8)] + ["says:no rating"] + ["says:[[9]]"] * 20
    ) as server:
        more = asked(server, data=data / "mt_bench", max_new_tokens=6, dtype="float32", **{"judge.concurrency": 1})
        found = cli(*words, *more)["evaluations"][0]
        shown = [request["messages"][1]["content"] for request in server.requests]
        again = cli(*words, *more)["evaluations"][0]
        assert len(server.requests) == len(shown) == 12
    assert again == found
    assert found["metrics"]["mt_bench"]["value"] == pytest.approx((5 + 6 + 7 + 8 + 7 * 9) / 11)
    assert (found["counts"]["verdicts"], found["counts"]["unusable"]) == (11, 1)
    assert "1 of 12 verdicts are unusable" in found["warnings"][0]
    assert {row[0] for row in found["tables"][0]["rows"]} == {"writing", "math", "stem"}
    lines = (tmp_path / "out" / "mt_bench" / "policy" / "model_answer.jsonl").read_text().splitlines()
    answers = {line["question_id"]: line["choices"][0]["turns"] for line in map(json.loads, lines)}
    assert f"Q one 0 A {answers[0][0]}" in shown
    assert f"Q one 0 A {answers[0][0]} Q two 0 A {answers[0][1]}" in shown
    folder = tmp_path / "out" / "mt_bench" / "policy"
    records = [json.loads(file.read_text())["inputs"][1][1] for file in sorted(folder.glob("answers-1-*.json"))]
    assert [settings["temperature"] for settings in records] == [0.7, 0.0, 0.1], "by category"

    import pyarrow.parquet as pq

    asked_second = json.loads(pq.read_table(folder / "answers-2-1.parquet").to_pylist()[0]["messages"])
    assert [m["role"] for m in asked_second] == ["user", "assistant", "user"]
    assert asked_second[1]["content"] == answers[0][0], "the second turn holds the first answer"


def test_mt_bench_games_against_a_baselines_answers(data: Path, tmp_path: Path) -> None:
    ours, theirs = (model_answers(tmp_path / f"{name}.jsonl", 6, name) for name in ("ours", "theirs"))
    words = ["eval", ours, "--suite", "mt_bench", "--out", tmp_path / "out", "--json"]
    with JudgeServer(["says:[[A]]", "says:[[B]]"] * 12) as server:
        more = asked(server, data=data / "mt_bench", mode="pairwise", baseline=theirs, **{"judge.concurrency": 1})
        found = cli(*words, *more)["evaluations"][0]
        assert len(server.requests) == 24, "both orders of both turns"
    assert found["generator"] == "ours"
    assert list(found["metrics"]) == ["mt_bench_win_rate"]
    assert found["counts"]["wins"] + found["counts"]["losses"] + found["counts"]["ties"] == 12
    assert found["metrics"]["mt_bench_win_rate"]["n"] == 6
    told = refused(*words, *asked(server, data=data / "mt_bench", baseline=theirs, name="x"))
    assert "which mode 'single' does not read" in told


def test_published_verdicts_and_answers_are_read_as_ours_are_written(
    tiny_folder: Path, data: Path, server: JudgeServer, tmp_path: Path
) -> None:
    more = asked(server, data=data / "alpaca", max_new_tokens=6, dtype="float32")
    first = cli("eval", tiny_folder / "policy", "--suite", "alpaca_eval", *more, "--out", tmp_path / "out", "--json")
    folder = tmp_path / "out" / "alpaca_eval" / "policy"
    before = len(server.requests)
    words = ["eval", "--suite", "alpaca_eval", "-o", f"data={data / 'alpaca'}", "--json"]
    recomputed = cli(*words, "--annotations", folder / "annotations.json", "--out", tmp_path / "theirs")
    assert recomputed["evaluations"][0]["metrics"] == first["evaluations"][0]["metrics"]
    assert len(server.requests) == before, "nobody is asked"
    assert (tmp_path / "theirs" / "alpaca_eval" / "policy" / "scores.json").exists()
    outputs = ["eval", "--suite", "alpaca_eval", "--model-outputs", folder / "model_outputs.json", *asked(server)]
    judged = cli(*outputs, "-o", f"data={data / 'alpaca'}", "--out", tmp_path / "judged", "--json")["evaluations"][0]
    assert judged["generator"] == "policy"
    assert judged["metrics"] == first["evaluations"][0]["metrics"]


def test_suites_are_listed_with_their_metrics() -> None:
    listed = {one["name"]: one for one in cli("suites", "--json")}
    assert set(listed) >= {"alpaca_eval", "mt_bench"}
    assert listed["alpaca_eval"]["metrics"]["alpaca_eval_lc"] == "%"
    assert "alpaca_eval_lc" in cli("suites")


# ---- bad input -----------------------------------------------------------------------------------------------------------


def test_what_cannot_be_evaluated_is_said_before_anything_is_sampled(
    tiny_folder: Path, data: Path, server: JudgeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    model, out = tiny_folder / "policy", ("--out", tmp_path / "out")
    alpaca = ("--suite", "alpaca_eval", "-o", f"data={data / 'alpaca'}")
    assert "accepted: alpaca_eval, mt_bench" in refused("eval", model, "--suite", "alpaka", *out)
    assert "nothing to evaluate by" in refused("eval", model, *out)
    assert "OPENAI_API_KEY" in refused("eval", model, *alpaca, *out)
    (tmp_path / "empty").mkdir()
    assert "no alpaca_eval_gpt4_baseline.json" in refused(
        "eval", model, *alpaca, "-o", f"data={tmp_path / 'empty'}", *out
    )
    assert "mt_bench" in refused("eval", model, "--suite", "mt_bench", "-o", f"data={tmp_path / 'empty'}", *out)
    assert "evaluate.0.alpaca_eval.temprature: unknown key" in refused(
        "eval", model, *alpaca, "-o", "temprature=1", *out
    )
    assert "which does not read vllm.check" in refused("eval", model, *alpaca, "-o", "vllm.check=false", *out)
    assert "accepted: one of" in refused("eval", *alpaca, *out)
    assert "no such file" in refused("eval", "absent.json", *alpaca, *out)
    with JudgeServer(["nologprobs"] * 99) as deaf:
        assert "no log-probs" in refused("eval", model, *alpaca, *asked(deaf), *out)
        assert len(deaf.requests) == 7, "the probe alone"
    assert not list((tmp_path / "out").rglob("answers-1*"))


def test_answers_files_are_complete_or_refused_and_empty_answers_are_counted(
    data: Path, server: JudgeServer, tmp_path: Path
) -> None:
    rows = json.loads((data / "alpaca" / "alpaca_eval_gpt4_baseline.json").read_text())
    answers = [row | {"output": "" if n == 3 else f"answer {n}", "generator": "mine"} for n, row in enumerate(rows)]
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(answers[:-1]))
    words = ["eval", file, "--suite", "alpaca_eval", *asked(server, data=data / "alpaca"), "--out", tmp_path / "out"]
    assert "no answer to 1 of 12 prompts" in refused(*words)
    file.write_text(json.dumps(answers))
    found = cli(*words, "--json")["evaluations"][0]
    assert "1 answers are empty" in found["warnings"]
    file.write_text(json.dumps([row | {"output": "another"} for row in answers]))
    assert "answers:" in refused(*words), "other answers under one name are not mixed"


def test_unreadable_replies_are_counted_and_count_nowhere(data: Path, tmp_path: Path) -> None:
    rows = json.loads((data / "alpaca" / "alpaca_eval_gpt4_baseline.json").read_text())
    file = tmp_path / "mine.json"
    file.write_text(json.dumps([row | {"output": f"answer {n}", "generator": "mine"} for n, row in enumerate(rows)]))
    words = ["eval", file, "--suite", "alpaca_eval", "--out", tmp_path / "out", "--json"]
    with JudgeServer(["nologprobs", "ok", "400:flagged by the content_filter"]) as server:
        found = cli(*words, *asked(server, data=data / "alpaca", **{"judge.probe": "false", "judge.concurrency": 1}))
    found = found["evaluations"][0]
    assert (found["counts"]["verdicts"], found["counts"]["unusable"]) == (10, 2)
    assert "2 of 12 verdicts are unusable" in found["warnings"][0]
    with JudgeServer(["nologprobs"] * 12) as server:
        more = asked(server, data=data / "alpaca", name="deaf", **{"judge.probe": "false"})
        assert "no answer has a usable verdict" in refused(*words, *more)


def test_a_budget_stops_judging_and_a_higher_one_goes_on(data: Path, server: JudgeServer, tmp_path: Path) -> None:
    rows = json.loads((data / "alpaca" / "alpaca_eval_gpt4_baseline.json").read_text())
    file = tmp_path / "mine.json"
    file.write_text(json.dumps([row | {"output": f"answer {n}", "generator": "mine"} for n, row in enumerate(rows)]))
    settings = {"data": data / "alpaca", "judge.probe": "false", "judge.price": "{input: 1000, output: 1000}"}
    words = ["eval", file, "--suite", "alpaca_eval", *asked(server, **settings), "--out", tmp_path / "out", "--json"]
    assert "budget" in refused(*words, "-o", "budget_usd=0.15").lower()
    before = len(server.requests)
    found = cli(*words, "-o", "budget_usd=1000")["evaluations"][0]
    assert len(server.requests) - before < PROMPTS, "what was bought is not bought again"
    assert found["cost_usd"] > 0


def test_an_evaluation_file_serves_models_and_runs(runs: Path, data: Path, server: JudgeServer, tmp_path: Path) -> None:
    suite = {
        "suite": "alpaca_eval",
        "name": "mine",
        "data": str(data / "alpaca"),
        "max_new_tokens": 5,
        "judge": judge(server),
    }
    file = tmp_path / "evaluation.yaml"
    file.write_text(yaml.safe_dump({"engine": "scripted", "evaluate": [suite]}))
    found = cli("eval", "anything", "--recipe", file, "--out", tmp_path / "out", "--json")["evaluations"][0]
    assert found["policy"] == "scripted"
    assert "sampled as its recipe says" in refused("eval", runs / "one", "--recipe", file)
    file.write_text(yaml.safe_dump({"evaluate": [suite]}))
    found = cli("eval", runs / "one", "--recipe", file, "--iteration", 0, "--json")["evaluations"][0]
    assert (found["name"], found["iteration"]) == ("mine", 0)
    assert "mine" not in (runs / "one" / "recipe.yaml").read_text(), "the run's own recipe stays as it is"
    assert load_recipe(runs / "one" / "recipe.yaml").evaluate[0].called == "alpaca_eval"


def test_answers_come_from_vllms_process_with_room_for_the_longest(
    tiny_folder: Path, data: Path, server: JudgeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent / "vllm_standin"))
    monkeypatch.delenv("NASHTUNE_VLLM_PYTHON", raising=False)
    more = asked(
        server, data=data / "alpaca", engine="vllm", max_new_tokens=8, dtype="float32", **{"vllm.check": "false"}
    )
    found = cli("eval", tiny_folder / "policy", "--suite", "alpaca_eval", *more, "--out", tmp_path, "--json")
    assert found["evaluations"][0]["counts"]["verdicts"] == PROMPTS
    outputs = json.loads((tmp_path / "alpaca_eval" / "policy" / "model_outputs.json").read_text())
    assert {len(row["output"]) for row in outputs} == {3}, "the stand-in's three tokens"


def test_verdicts_are_bought_in_batches_where_the_judge_says_so(data: Path, tmp_path: Path) -> None:
    rows = json.loads((data / "alpaca" / "alpaca_eval_gpt4_baseline.json").read_text())
    file = tmp_path / "mine.json"
    file.write_text(json.dumps([row | {"output": f"answer {n}", "generator": "mine"} for n, row in enumerate(rows)]))
    with JudgeServer() as server:
        more = asked(server, data=data / "alpaca", **{"judge.batch": "true", "judge.batch_poll_s": 0.3})
        found = cli("eval", file, "--suite", "alpaca_eval", *more, "--out", tmp_path / "out", "--json")
        assert sum(server.stats()["batches"]) == PROMPTS
        assert len(server.requests) == PROMPTS, "none one by one"
    assert found["evaluations"][0]["counts"]["verdicts"] == PROMPTS
