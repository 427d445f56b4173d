"""The command line as a user types it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import yaml
from tiny_chat import tiny_recipe
from typer.testing import CliRunner

from nashtune.cli import app
from nashtune.objectives import OBJECTIVES
from nashtune.recipe import METHODS, SamplingSection, load_recipe

RUNNER = CliRunner()


@pytest.fixture(scope="module")
def run_folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump(tiny_recipe(tiny_folder, iterations=1) | {"folder": str(folder)}))
    done = RUNNER.invoke(app, ["run", str(file), "train.batch_size=6"])
    assert done.exit_code == 0, done.output
    assert "report  " in done.output
    assert "best    iteration" in done.output
    return folder / "tiny"


def test_run_takes_a_run_folder_too_and_a_finished_one_is_quick(run_folder: Path) -> None:
    done = RUNNER.invoke(app, ["run", str(run_folder)])
    assert done.exit_code == 0, done.output
    assert load_recipe(run_folder / "recipe.yaml").train.batch_size == 6


def test_status_is_a_table_or_json(run_folder: Path) -> None:
    shown = RUNNER.invoke(app, ["status", str(run_folder)])
    assert "finished" in shown.output
    assert "vs initial" in shown.output
    status = json.loads(RUNNER.invoke(app, ["status", str(run_folder), "--json"]).output)
    row = status["iterations"][1]
    needed = ["win_rate_vs_initial", "win_rate_vs_previous", "win_rate_vs_teacher", "satisfied", "satisfied_and_good"]
    assert set(row) >= {*needed, "mean_words", "pairs", "tokens", "seconds"}
    assert status["best"] in (0, 1)


def test_report_is_one_file_that_loads_nothing(run_folder: Path) -> None:
    done = RUNNER.invoke(app, ["report", str(run_folder)])
    page = Path(done.output.strip()).read_text()
    assert "Question" in page
    assert "<script src" not in page
    assert 'href="http' not in page.replace('href="https://arxiv.org', "")


def test_chat_answers_each_line_and_names_missing_policies(run_folder: Path) -> None:
    done = RUNNER.invoke(
        app,
        ["chat", str(run_folder), "--iteration", "1", "--max-new-tokens", "4", "--temperature", "0"],
        input="hi\nyou?\n\n",
    )
    assert done.exit_code == 0, done.output
    assert done.output.count("> ") == 3
    refused = RUNNER.invoke(app, ["chat", str(run_folder), "--iteration", "9"])
    assert refused.exit_code == 1
    assert "no policy of iteration 9; accepted: [0, 1]" in refused.output


def test_doctor_says_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    monkeypatch.delenv("NASHTUNE_VLLM_PYTHON", raising=False)
    facts = json.loads(RUNNER.invoke(app, ["doctor", "--json"]).output)
    assert facts["torch"]["device"] in ("cpu", "cuda")
    assert facts["machine"]["cores"] >= 1
    assert facts["engines"]["native"] != "not installed"
    assert facts["engines"]["vllm"].startswith("not installed in this environment; $NASHTUNE_VLLM_PYTHON names")
    assert facts["keys"]["OPENAI_API_KEY"] == "set"
    assert "sk-very-secret" not in json.dumps(facts)


def test_rollback_and_fork_from_the_command_line(run_folder: Path, tmp_path: Path) -> None:
    forked = RUNNER.invoke(
        app, ["fork", str(run_folder), str(tmp_path / "f"), "objective.beta=0.2", "--iteration", "0"]
    )
    assert forked.exit_code == 0, forked.output
    assert RUNNER.invoke(app, ["run", str(tmp_path / "f")]).exit_code == 0
    assert load_recipe(tmp_path / "f" / "recipe.yaml").objective.beta == 0.2
    back = RUNNER.invoke(app, ["rollback", str(tmp_path / "f"), "0"])
    assert "moved" in back.output
    assert "in iteration 1 of 1" in RUNNER.invoke(app, ["status", str(tmp_path / "f")]).output


def test_doctor_looks_for_vllm_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NASHTUNE_VLLM_PYTHON", str(tmp_path / "nothing"))
    told = json.loads(RUNNER.invoke(app, ["doctor", "--json"]).output)["engines"]["vllm"]
    assert "$NASHTUNE_VLLM_PYTHON" in told
    assert "is not a program" in told
    monkeypatch.setenv("NASHTUNE_VLLM_PYTHON", sys.executable)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent / "vllm_standin"))
    assert "installed in this environment" in RUNNER.invoke(app, ["doctor"]).output


def test_every_engine_that_a_recipe_may_name_is_listed() -> None:
    listed = json.loads(RUNNER.invoke(app, ["engines", "--json"]).output)
    assert set(listed) == set(get_args(SamplingSection.model_fields["engine"].annotation))
    shown = RUNNER.invoke(app, ["engines"]).output
    assert all(name in shown for name in listed)


def test_methods_are_listed_and_each_is_shown_in_full() -> None:
    listed = RUNNER.invoke(app, ["methods"])
    assert listed.exit_code == 0, listed.output
    known = json.loads(RUNNER.invoke(app, ["methods", "--json"]).output)
    assert [facts["name"] for facts in known] == list(METHODS)
    for facts in known:
        assert facts["name"] in listed.output
        shown = RUNNER.invoke(app, ["methods", facts["name"]])
        assert shown.exit_code == 0, shown.output
        for text in (facts["summary"], facts["source"], facts["needs"], facts["objective"]["formula"]):
            assert text in shown.output
        preset = shown.output.partition("# the same as\n")[2].partition("\n\n")[0]
        assert yaml.safe_load(preset) == facts["settings"] == METHODS[facts["name"]].settings
        assert json.loads(RUNNER.invoke(app, ["methods", facts["name"], "--json"]).output) == facts


def test_a_methods_objective_is_shown_as_the_preset_sets_it() -> None:
    facts = json.loads(RUNNER.invoke(app, ["methods", "dno-regularized-mixed", "--json"]).output)["objective"]
    assert facts["references"] == pytest.approx({"t": 0.9, "0": 0.1})
    assert facts["settings"]["tau"]["value"] == 0.01
    simpo = json.loads(RUNNER.invoke(app, ["objectives", "simpo", "--json"]).output)
    assert (simpo["references"], simpo["settings"]["per_token"]["value"]) == ({}, True)
    assert "(D - eta (score_w - score_l))^2" in RUNNER.invoke(app, ["objectives", "rebel"]).output
    listed = RUNNER.invoke(app, ["objectives"]).output
    rows = json.loads(RUNNER.invoke(app, ["objectives", "--json"]).output)
    assert [row["name"] for row in rows] == list(OBJECTIVES)
    assert all(name in listed for name in OBJECTIVES)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["methods", "dpp"], "method 'dpp'; accepted: dno, "),
        (["objectives", "dpp"], "objective 'dpp'; accepted: dno-prct, "),
        (["run", "none.yaml"], "none.yaml: no such recipe file"),
        (["plan", "none.yaml"], "none.yaml: no such recipe file"),
        (["status", "nowhere"], "not a run folder"),
        (["report", "nowhere"], "not a run folder"),
        (["rollback", "nowhere", "1"], "not a run folder"),
    ],
)
def test_bad_input_is_one_line_without_a_traceback(arguments: list[str], told: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "nashtune.cli", *arguments], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 1
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir()), "a refused command leaves nothing behind"


def test_init_runs_as_written_once_its_prompts_exist(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    done = RUNNER.invoke(app, ["init", str(file), "--model", "org/model", "--judge", "judge-1"])
    assert done.exit_code == 0, done.output
    assert load_recipe(file).oracle.kind == "rubric"
    assert RUNNER.invoke(app, ["init", str(file)]).exit_code == 1
    assert RUNNER.invoke(app, ["init", str(file), "--force"]).exit_code == 0
