"""`nashtune judge-check` on data: every kind of oracle, stored verdicts, money, kill -9, and biases that must show."""

from __future__ import annotations

import json
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from judge_server import JudgeServer, score
from test_fit_judge import rows as lettered_rows
from test_fit_judge import write
from test_paid_loop import server, stats  # noqa: F401  (a fixture)
from tiny_chat import tiny_recipe
from typer.testing import CliRunner

from nashtune.cli import app
from nashtune.judging.fit import fit_judge

RUNNER = CliRunner()


def made_rows(count: int = 40, seed: int = 0) -> list[dict[str, Any]]:
    """Comparisons of answers of 1 to 30 words; the label is for the longer in about 3 of 4."""
    draw = random.Random(seed)
    rows = []
    for n in range(count):
        a, b = draw.sample(range(1, 31), 2)
        longer = 1 if a > b else 2
        label = longer if draw.random() < 0.75 else 3 - longer
        words = ["word " * (size - 1) + "end" for size in (a, b)]
        rows.append({"prompt": f"Q{n // 2}", "response_1": words[0], "response_2": words[1], "label": label})
        rows[-1]["subset"] = "even" if n % 2 else "odd"
    return rows


def data_file(folder: Path, rows: list[dict[str, Any]] | None = None) -> Path:
    file = folder / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows or made_rows()))
    return file


def oracle_file(place: Path, /, **settings: Any) -> Path:
    file = place / "oracle.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file


def engine(url: str, **changes: Any) -> dict[str, Any]:
    return {"base_url": url, "model": "judge-1", "price": "free", "probe": False} | changes


def check(*arguments: object) -> dict[str, Any]:
    done = RUNNER.invoke(app, ["judge-check", *map(str, arguments), "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def by_the_server(rows: list[dict[str, Any]]) -> tuple[float, float]:
    """Share of labels that the server's scores agree with, ties half; and share of its decided verdicts for the longer."""
    credit, decided, longer = 0.0, 0, 0
    for row in rows:
        a, b = (score(row[name]) for name in ("response_1", "response_2"))
        credit += 0.5 if a == b else float((1 if a > b else 2) == row["label"])
        decided += a != b
        longer += a != b
    return credit / len(rows), longer / decided


# ---- oracles -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["rubric", "compact", "panel", "cascade"])
def test_listwise_judges_are_asked_in_both_orders(kind: str, tmp_path: Path) -> None:
    rows = made_rows()
    with JudgeServer() as judge:
        plain = {"kind": "compact" if kind == "compact" else "rubric", "engine": engine(judge.url)}
        plain |= {"replies": 1, "temperature": 0.0} if kind == "compact" else {}
        scripted = {"kind": "scripted", "prefer": "longer"}
        combined = {
            "panel": {"kind": "panel", "members": [{"oracle": plain}, {"oracle": plain | {"max_tokens": 999}}]},
            "cascade": {"kind": "cascade", "cheap": scripted, "strong": plain, "audit": 0.0, "certain_margin": 0.0},
        }
        oracle = oracle_file(tmp_path, **combined.get(kind, plain))
        found = check(data_file(tmp_path, rows), "--oracle", oracle, "--out", tmp_path / "out")
        calls = len(judge.requests)
    (judged,) = found["judges"]
    accuracy, longer = by_the_server(rows)
    assert calls == (160 if kind == "panel" else 80)
    assert judged["accuracy"]["value"] == pytest.approx(accuracy)
    assert judged["accuracy"]["n"] == 20  # prompts, of two comparisons each
    assert judged["orders"]["comparisons"] == judged["orders"]["same"] == 40
    assert judged["place"]["first_shown"]["value"] == pytest.approx(0.5)
    assert judged["length"]["longer_preferred"]["value"] == pytest.approx(longer)
    assert judged["certainty"]["of"] == "score difference"
    assert set(judged["subsets"]) == {"even", "odd"}
    assert found["bill"]["judgments"] == 80
    assert found["bill"]["usage"]["calls"] == calls
    assert any(alarm["name"] == "max_length_preference" for alarm in found["alarms"])


def test_a_pairwise_judge_asks_in_both_orders_by_itself(tmp_path: Path) -> None:
    rows = made_rows(12)
    with JudgeServer() as judge:
        oracle = oracle_file(tmp_path, kind="pairwise", engine=engine(judge.url), use="logprobs")
        found = check(data_file(tmp_path, rows), "--oracle", oracle, "--out", tmp_path / "out")
        assert len(judge.requests) == 24
    (judged,) = found["judges"]
    assert judged["certainty"]["of"] == "probability"
    assert judged["certainty"]["calibration_error"] is not None
    # The server takes the second where both are as long, so such a pair is decided twice, for either side.
    equal = sum(score(row["response_1"]) == score(row["response_2"]) for row in rows)
    assert (judged["orders"]["same"], judged["orders"]["different"]) == (12 - equal, equal)


@pytest.mark.parametrize("kind", ["pairwise", "rubric"])
def test_a_judge_that_always_takes_the_first_shown_is_caught(kind: str, tmp_path: Path) -> None:
    says = json.dumps({"id1_justification": "", "id1_score": 6, "id2_justification": "", "id2_score": 1})
    behaviour = "first" if kind == "pairwise" else f"says:{says}"
    with JudgeServer([behaviour] * 80) as judge:
        oracle = oracle_file(tmp_path, kind=kind, engine=engine(judge.url))
        found = check(data_file(tmp_path), "--oracle", oracle, "--out", tmp_path / "out")
    (judged,) = found["judges"]
    assert judged["place"]["first_shown"]["value"] == 1
    assert judged["place"]["first_shown"]["low"] > 0.8
    assert judged["orders"]["consistency"]["value"] == 0
    assert judged["accuracy"]["value"] == pytest.approx(0.5)
    assert {alarm["name"] for alarm in found["alarms"]} == {"max_flips", "max_position_effect"}
    again = RUNNER.invoke(
        app,
        [
            "judge-check",
            str(tmp_path / "pairs.jsonl"),
            "--oracle",
            str(oracle),
            "--out",
            str(tmp_path / "out"),
            "--strict",
        ],
    )
    assert again.exit_code == 1
    assert "alarm: " in again.output


def test_one_order_shows_the_bias_too_and_costs_half(tmp_path: Path) -> None:
    says = json.dumps({"scores": [5, 2]})
    with JudgeServer([f"says:{says}"] * 40) as judge:
        oracle = oracle_file(tmp_path, kind="compact", engine=engine(judge.url), replies=1, temperature=0.0)
        found = check(data_file(tmp_path), "--oracle", oracle, "--out", tmp_path / "out", "--orders", 1)
        assert len(judge.requests) == 40
    (judged,) = found["judges"]
    assert judged["place"]["first_shown"]["value"] == 1
    assert judged["orders"] is None


def test_unusable_replies_are_none_and_their_money_counts(tmp_path: Path) -> None:
    price = {"input": 1.0, "output": 2.0}
    with JudgeServer(["garbage"] * 10) as judge:
        settings = engine(judge.url, price=price)
        oracle = oracle_file(tmp_path, kind="rubric", engine=settings, repair_attempts=0)
        found = check(data_file(tmp_path), "--oracle", oracle, "--out", tmp_path / "out")
    (judged,) = found["judges"]
    counted = judged["counted"]
    assert counted["none"] == found["bill"]["unusable"] == 10
    assert sum(counted.values()) == 80
    assert judged["strict_accuracy"]["value"] == pytest.approx(counted["right"] / 80)
    assert judged["accuracy"]["value"] == pytest.approx((counted["right"] + counted["tie"] / 2) / 70)
    usage = found["bill"]["usage"]
    assert usage["cost_usd"] == pytest.approx((usage["prompt_tokens"] + 2 * usage["completion_tokens"]) / 1e6)
    assert list(found["bill"]["reasons"].values()) == [10]
    (tmp_path / "out" / "ledger.sqlite").unlink()  # and the server is gone: a finished check needs neither
    assert check(tmp_path / "pairs.jsonl", "--oracle", oracle, "--out", tmp_path / "out") == found


def test_free_oracles_see_no_place(tmp_path: Path) -> None:
    rows = [
        {
            "prompt": f"Q{n}",
            "chosen": "all in lowercase, as was asked of it",
            "rejected": "Not All In Lowercase As Was Asked",
        }
        | {"constraints": [{"kind": "lowercase"}]}
        for n in range(5)
    ]
    found = check(data_file(tmp_path, rows), "--oracle", oracle_file(tmp_path, kind="rules"), "--out", tmp_path / "a")
    (judged,) = found["judges"]
    assert judged["accuracy"]["value"] == 1
    assert judged["place"] is None
    assert judged["orders"] is None
    assert found["bill"]["usage"]["cost_usd"] is None


def test_a_fitted_preference_model(tiny_folder: Path, tmp_path: Path) -> None:
    policy = str(tiny_folder / "policy")
    fit_judge(tmp_path / "judge", [str(write(tmp_path / "fit.jsonl", lettered_rows(60)))], policy, "bradley-terry")
    data = write(tmp_path / "pairs.jsonl", lettered_rows(30, seed=9))
    fitted = oracle_file(tmp_path, kind="preference_model", folder=str(tmp_path / "judge"))
    (judged,) = check(data, "--oracle", fitted, "--out", tmp_path / "a")["judges"]
    assert judged["accuracy"]["low"] > 0.7
    assert judged["certainty"]["of"] == "probability"
    assert judged["certainty"]["auc"]["value"] > 0.9


def test_the_policy_itself_judges_where_a_recipe_names_it(tiny_folder: Path, tmp_path: Path) -> None:
    data = data_file(tmp_path, [{"prompt": f"Q{n}", "chosen": "good", "rejected": "bad"} for n in range(4)])
    shutil.copytree(tiny_folder / "policy", tmp_path / "policy")
    config = json.loads((tmp_path / "policy" / "config.json").read_text())
    config["max_position_embeddings"] = 4096  # the rubric is longer than the tiny policy's context
    (tmp_path / "policy" / "config.json").write_text(json.dumps(config))
    recipe = tmp_path / "recipe.yaml"
    settings = tiny_recipe(tiny_folder) | {"oracle": {"kind": "self"}}
    recipe.write_text(yaml.safe_dump(settings | {"policy": {"model": str(tmp_path / "policy")}}))
    (judged,) = check(data, "--recipe", recipe, "--out", tmp_path / "a", "--limit", 3)["judges"]
    assert judged["comparisons"] == 3
    assert judged["counted"]["none"] == 0
    assert judged["certainty"]["of"] == "score difference"
    assert judged["place"] is None
    found = check(data, "--recipe", recipe, f"policy.model={tiny_folder / 'policy'}", "--out", tmp_path / "b")
    assert found["judges"][0]["counted"]["none"] == found["bill"]["unusable"] == 4
    assert list(found["bill"]["reasons"]) == ["no answer fits into the policy's context with the rubric"]
    refused = RUNNER.invoke(app, ["judge-check", str(data), "--oracle", str(oracle_file(tmp_path, kind="self"))])
    assert refused.exit_code == 1
    assert "accepted: --recipe, whose policy it then is" in refused.output


# ---- verdicts that are there already -------------------------------------------------------------------------------------------


def test_stored_verdicts_and_annotators_ask_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [
        {"prompt": f"Q{n}", "response_1": "a", "response_2": "b", "annotator1": 1 + n % 2, "annotator2": 1 + n % 2}
        | {"annotator3": 1, "v": 1, "w": 2, "other": "garbage" if n == 0 else 1 + n % 2}
        for n in range(10)
    ]
    data = data_file(tmp_path, rows)
    found = check(data, "--verdicts", "v,w", "--verdicts", "other", "--code", "none=garbage")
    first, second = found["judges"]
    assert first["place"]["first_shown"]["value"] == 1  # v: the first, shown first; w: the second, when shown first
    assert first["orders"]["consistency"]["value"] == 0
    assert second["counted"] == {"right": 9, "wrong": 0, "tie": 0, "none": 1}
    assert found["people"]["against_others"][2]["comparisons"] == 10
    assert found["people"]["against_others"][2]["same"]["value"] == 0.5
    assert found["bill"] is None
    assert not (tmp_path / "judge-checks").exists()
    shown = RUNNER.invoke(app, ["judge-check", str(data), "--verdicts", "v,w", "--out", str(tmp_path / "kept")])
    assert "annotator3 and the majority of the others" in shown.output
    assert "| v |" in (tmp_path / "kept" / "check.md").read_text()
    assert json.loads((tmp_path / "kept" / "check.json").read_text())["judges"][0]["name"] == "v"
    low = RUNNER.invoke(app, ["judge-check", str(data), "--verdicts", "v", "--min-accuracy", "0.95"])
    assert low.exit_code == 1
    assert "accuracy surely below 0.95: v" in low.output


# ---- money and faults ----------------------------------------------------------------------------------------------------------


def test_killed_at_any_commit_nothing_is_bought_twice(server: str, tmp_path: Path) -> None:  # noqa: F811
    data = data_file(tmp_path, made_rows(100))
    oracle = oracle_file(tmp_path, kind="rubric", engine=engine(f"{server}/v1", concurrency=4))
    out = tmp_path / "out"
    command = ["judge-check", str(data), "--oracle", str(oracle), "--out", str(out), "--json"]
    killer = [sys.executable, str(Path(__file__).parent / "killed_at.py"), str(out), "judgments/*.parquet", *command]
    for _ in range(2):
        killed = subprocess.run(killer, capture_output=True, check=False)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
    done = subprocess.run([sys.executable, "-m", "nashtune.cli", *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["bill"]["judgments"] == 200
    with sqlite3.connect(out / "ledger.sqlite") as ledger:
        states = dict(ledger.execute("select state, count(*) from attempts group by state"))
        (twice,) = ledger.execute(
            "select count(*) from (select key from attempts where state = 'done' group by key having count(*) > 1)"
        ).fetchone()
    billed = stats(server)["billed"]
    assert states["done"] == 200
    assert twice == 0
    assert 0 <= billed - 200 <= states.get("inflight", 0) <= 2 * 4  # only what was in flight when it was killed
    again = subprocess.run(
        [sys.executable, "-m", "nashtune.cli", *command], capture_output=True, text=True, check=False
    )
    assert json.loads(again.stdout) == found
    assert stats(server)["billed"] == billed


def test_a_budget_stops_it_and_more_money_goes_on(tmp_path: Path) -> None:
    with JudgeServer() as judge:
        settings = engine(judge.url, price={"input": 100.0, "output": 0.0}, concurrency=4)
        oracle = oracle_file(tmp_path, kind="compact", engine=settings, replies=1, temperature=0.0)
        command = ["judge-check", str(data_file(tmp_path)), "--oracle", str(oracle), "--out", str(tmp_path / "out")]
        stopped = RUNNER.invoke(app, [*command, "--budget-usd", "1.5"])
        assert stopped.exit_code == 1
        assert "dollars would be exceeded" in stopped.output
        before = len(judge.requests)
        assert 0 < before < 80
        done = RUNNER.invoke(app, [*command, "--budget-usd", "100"])
        assert done.exit_code == 0, done.output
        assert len(judge.requests) == 80


def test_a_shared_ledger_spares_a_second_check(tmp_path: Path) -> None:
    with JudgeServer() as judge:
        oracle = oracle_file(tmp_path, kind="rubric", engine=engine(judge.url))
        data = data_file(tmp_path)
        for out in ("a", "b"):
            check(data, "--oracle", oracle, "--ledger", tmp_path / "shared.sqlite", "--out", tmp_path / out)
        assert len(judge.requests) == 80


# ---- what is refused -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "nobody to measure; accepted: --oracle or --recipe, --verdicts"),
        (["oracle.prefer=hash"], "settings of an oracle, but no oracle"),
        (["--oracle", "ORACLE", "--recipe", "ORACLE"], "accepted: one of them"),
        (["--oracle", "ORACLE", "prefer=loudest"], "'longer' or 'shorter' (received 'loudest')"),
        (["--oracle", "ORACLE", "colour=red"], "unknown key"),
        (["--oracle", "ORACLE", "--orders", "1"], "oracle 'scripted' is not shown two answers in one order"),
        (["--verdicts", "nowhere"], "no column 'nowhere'"),
        (["--verdicts-file", "x.jsonl", "--verdicts", "v"], "without --key"),
        (["--key", "id", "--verdicts", "v"], "read with --verdicts-file only"),
        (["--answers", "one", "--verdicts", "v"], "--answers 'one'; accepted: two columns"),
        (
            ["--iteration", "1", "--verdicts", "v"],
            "is a data set, for which an option or setting that was given is not read",
        ),
    ],
)
def test_wrong_uses_are_told(arguments: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = data_file(tmp_path)
    oracle = str(oracle_file(tmp_path, kind="scripted"))
    given = [oracle if a == "ORACLE" else a for a in arguments]
    done = RUNNER.invoke(app, ["judge-check", str(data), *given])
    assert done.exit_code == 1
    assert told in " ".join(done.output.split()), done.output


def test_a_mistyped_run_is_not_looked_for_on_a_hub(tmp_path: Path) -> None:
    done = RUNNER.invoke(app, ["judge-check", str(tmp_path / "runs-my")])
    assert done.exit_code == 1
    assert "not a run folder" in done.output


def test_a_pairwise_judge_of_teachers_only_and_log_probs_nobody_has(tmp_path: Path) -> None:
    data = data_file(tmp_path)
    oracle = oracle_file(tmp_path, kind="pairwise", engine=engine("http://127.0.0.1:1/v1"), pairs="teacher")
    assert "oracle.pairs is 'teacher'" in RUNNER.invoke(app, ["judge-check", str(data), "--oracle", str(oracle)]).output
    rules = oracle_file(tmp_path, kind="rules", guard={"min_fluency": -3.0})
    assert "reads log-probs under '0'" in RUNNER.invoke(app, ["judge-check", str(data), "--oracle", str(rules)]).output
