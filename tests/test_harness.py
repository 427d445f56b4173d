"""lm-evaluation-harness in a process of its own: a local task, a tiny model with random weights, no network."""

from __future__ import annotations

import ast
import importlib.util
import json
import math
import sys
from pathlib import Path
from typing import Any, cast

import pytest
from tiny_pairs import tiny_policy
from typer.testing import CliRunner

from nashtune.cli import app
from nashtune.errors import EvaluationError, RecipeError
from nashtune.evaluated import read_rows
from nashtune.recipe import OPEN_LLM, HarnessSection, HarnessTask, SamplingSection, parse_evaluation
from nashtune.records import Interval, Policy
from nashtune.run import Run
from nashtune.scale.local import LocalEngine
from nashtune.stages.evaluation import evaluate
from nashtune.stages.subject import Subject
from nashtune.suites.harness.compare import changes, items, regressions
from nashtune.suites.harness.process import CHILD, result_file, run_tasks
from nashtune.suites.harness.suite import HarnessSuite

needs_lm_eval = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm-evaluation-harness is not installed (nashtune[lm-eval])"
)
CHOICES = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
fewshot_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: ["yes", "no"]
doc_to_target: label
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
metadata: {{version: 2.0}}
"""
GENERATED = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
generation_kwargs: {{until: ["\\n"], max_gen_toks: 4}}
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{label}}}}"
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
"""
GROUP = """
group: local_group
task: [local_yes_no, local_again]
aggregate_metric_list:
  - {metric: acc, weight_by_size: true}
metadata: {version: 1}
"""
YES_NO = HarnessTask(task="local_yes_no", shots=2, metric="acc")


def harness(**settings: Any) -> HarnessSection:
    return HarnessSection(suite="harness", **settings)


def changed(settings: HarnessSection, **update: Any) -> HarnessSection:
    return settings.model_copy(update=update)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two policies and tasks."""
    place = tmp_path_factory.mktemp("harness")
    (place / "tasks").mkdir()
    for name, template, count in (
        ("local_yes_no", CHOICES, 12),
        ("local_again", CHOICES, 8),
        ("local_words", GENERATED, 3),
    ):
        data = place / f"{name}.jsonl"
        rows = [{"question": f"Is {name} {i} even?", "label": i % 2} for i in range(count)]
        data.write_text("\n".join(map(json.dumps, rows)))
        (place / "tasks" / f"{name}.yaml").write_text(template.format(name=name, data=data))
    (place / "tasks" / "local_group.yaml").write_text(GROUP)
    for i, name in enumerate(("initial", "next")):
        tiny_policy(place / name, seed=i)
    return place


@pytest.fixture
def settings(place: Path, monkeypatch: pytest.MonkeyPatch) -> HarnessSection:
    monkeypatch.setenv("HF_HOME", str(place / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return harness(tasks=(YES_NO,), include_path=str(place / "tasks"), dtype="float32", batch_size=4, device="cpu")


@pytest.mark.slow
@needs_lm_eval
def test_tasks_run_once_and_policies_are_compared_by_document(place: Path, settings: HarnessSection) -> None:
    from importlib.metadata import version

    both = changed(settings, tasks=(YES_NO, HarnessTask(task="local_group", shots=0, metric="acc")))
    before = run_tasks(place / "initial", place / "work0", both)
    first = before[0]
    assert first["shots"] == {"local_yes_no": 2}
    assert first["versions"]["local_yes_no"] == 2.0
    assert first["packages"]["lm_eval"] == version("lm_eval")
    assert first["counts"]["local_yes_no"]["effective"] == 12
    values = items(first)
    assert len(values) == 12
    assert first["value"] == pytest.approx(sum(values.values()) / 12)
    share = first["value"]
    assert first["stderr"] == pytest.approx(math.sqrt(share * (1 - share) / 11))
    group = before[1]
    assert {task: len(docs) for task, docs in group["samples"].items()} == {"local_yes_no": 12, "local_again": 8}
    assert len(items(group)) == 20  # weighted by size, so a mean over documents
    # A finished task is not run again: with no interpreter to run one, the same comes back.
    kept = run_tasks(place / "initial", place / "work0", both)
    assert kept == before
    written = {file: file.stat().st_mtime_ns for file in (place / "work0").glob("*.json")}
    more = changed(both, tasks=(*both.tasks, HarnessTask(task="local_words", shots=None, metric="exact_match")))
    words = run_tasks(place / "initial", place / "work0", more)[2]
    assert words["counts"]["local_words"]["effective"] == 3
    job = json.loads((place / "work0" / "job.json").read_text())
    assert [entry["task"] for entry in job["tasks"]] == ["local_words"]
    assert all(file.stat().st_mtime_ns == at for file, at in written.items() if file.name != "job.json")
    # Another policy on the same documents: the error of the difference is that of the paired differences.
    after = run_tasks(place / "next", place / "work1", both)
    change = changes(before, after)[0]
    assert change.paired
    assert change.documents == 12
    differences = [items(after[0])[doc] - value for doc, value in values.items()]
    assert change.difference == pytest.approx(sum(differences) / 12)
    # The child writes what lm-evaluation-harness itself gives.
    assert first["value"] == pytest.approx(first["results"]["local_yes_no"]["acc,none"])


@pytest.mark.slow
@needs_lm_eval
@pytest.mark.parametrize(
    ("task", "told"),
    [
        (
            HarnessTask(task="no_such_task", shots=0, metric="acc"),
            r"no task no_such_task; accepted: .* include_path",
        ),
        (
            HarnessTask(task="local_yes_no", shots=0, metric="f1"),
            r"local_yes_no: no metric 'f1,none'; accepted \(metric,filter\): acc,none",
        ),
    ],
)
def test_what_cannot_be_run_is_refused_in_words(
    place: Path, settings: HarnessSection, tmp_path: Path, task: HarnessTask, told: str
) -> None:
    with pytest.raises(EvaluationError, match=told):
        run_tasks(place / "initial", tmp_path / "work", changed(settings, tasks=(task,)))


def test_settings_that_cannot_work_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(settings: HarnessSection, told: str) -> None:
        with pytest.raises(EvaluationError, match=told):
            run_tasks(tmp_path, tmp_path / "work", settings)

    refused(harness(python=str(tmp_path / "no")), "python is .*; accepted: an interpreter with lm-eval")
    refused(harness(python=sys.executable, include_path=str(tmp_path / "no")), "include_path is .*; accepted: a folder")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refused(harness(), r"pip install 'nashtune\[lm-eval\]'")


def test_an_interpreter_without_the_harness_is_named(tmp_path: Path) -> None:
    """A Python without any packages stands for another environment."""
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -E "$@"\n')
    bare.chmod(0o755)
    with pytest.raises(EvaluationError, match=r"^harness: \S+ has no lm-evaluation-harness .*accepted: pip install"):
        run_tasks(tmp_path, tmp_path / "work", harness(python=str(bare)))
    told = tmp_path / "broken"
    told.write_text("#!/bin/sh\necho all wrong\nexit 9\n")
    told.chmod(0o755)
    with pytest.raises(EvaluationError, match=r"ended with status 9; not finished: arc_challenge, gsm8k.*all wrong"):
        run_tasks(tmp_path, tmp_path / "work", harness(python=str(told)))


def test_tasks_and_shots_are_the_leaderboards() -> None:
    assert {task.task: (task.shots, task.metric, task.filter) for task in OPEN_LLM} == {
        "arc_challenge": (25, "acc_norm", "none"),
        "gsm8k": (5, "exact_match", "strict-match"),
        "hellaswag": (10, "acc_norm", "none"),
        "mmlu": (5, "acc", "none"),
        "truthfulqa_mc2": (0, "acc", "none"),
        "winogrande": (5, "acc", "none"),
    }


@pytest.mark.slow
@needs_lm_eval
def test_the_leaderboards_tasks_exist() -> None:
    from lm_eval.tasks import TaskManager

    assert set(TaskManager().match_tasks([task.task for task in OPEN_LLM])) == {task.task for task in OPEN_LLM}


def test_what_decides_a_result_is_in_its_name(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("task: a")
    base = harness(include_path=str(tmp_path))
    name = result_file(YES_NO, base, tmp_path)
    assert result_file(YES_NO, changed(base, batch_size=8, device="cuda"), tmp_path) == name
    others = [
        result_file(YES_NO.model_copy(update={"shots": 3}), base, tmp_path),
        result_file(YES_NO, changed(base, limit=5), tmp_path),
        result_file(YES_NO, changed(base, apply_chat_template=True), tmp_path),
        result_file(YES_NO, changed(base, seed=1), tmp_path),
        result_file(YES_NO, changed(base, dtype="bfloat16"), tmp_path),
        result_file(YES_NO, changed(base, model="vllm"), tmp_path),
    ]
    (tmp_path / "a.yaml").write_text("task: a  # changed")
    others.append(result_file(YES_NO, base, tmp_path))
    assert len({name, *others}) == len(others) + 1


def result(
    values: list[float], task: str = "t", hashed: str = "h", better: bool = True, **change: Any
) -> dict[str, Any]:
    mean = sum(values) / len(values)
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))
    return {
        "task": task,
        "metric": "acc",
        "filter": "none",
        "value": mean,
        "stderr": spread,
        "task_hashes": {task: hashed},
        "samples": {task: {f"{i}:x": v for i, v in enumerate(values)}},
        "higher_is_better": {task: {"acc": better}},
        **change,
    }


def test_a_regression_is_beyond_its_paired_error() -> None:
    before, after = [1.0] * 8 + [0.0] * 8, [1.0] * 6 + [0.0] * 10
    (change,) = changes([result(before)], [result(after)])
    # by hand: two documents of 16 lost: mean -1/8, variance (2 - 16/64)/15
    assert change.stderr == pytest.approx(math.sqrt((2 - 0.25) / 15 / 16))
    assert (change.difference, change.documents) == (-0.125, 16)
    assert change.regressed()
    assert not change.regressed(2.0)
    # Independent errors of the same figures are twice as large: the same loss is then no regression.
    (apart,) = changes([result(before)], [result(after, hashed="other documents")])
    assert not apart.paired
    assert apart.stderr == pytest.approx(math.hypot(result(before)["stderr"], result(after)["stderr"]))
    assert not apart.regressed()
    assert regressions([result(before)], [result(after)]) == [change]
    assert regressions([result(after)], [result(before)]) == []
    assert [c.task for c in regressions([result(after, better=False)], [result(before, better=False)])] == ["t"]
    assert changes([result(before)], [result(after, task="u")]) == []


def test_a_change_without_any_error_is_no_regression() -> None:
    lost = {"samples": {"t": {}}, "stderr": None}
    (change,) = changes([result([1.0, 1.0]) | lost], [result([0.0, 0.0]) | lost])
    assert change.stderr is None
    assert not change.regressed()
    assert "error not known" in change.said()


def test_the_child_imports_nothing_of_nashtunes() -> None:
    nodes = [node for node in ast.walk(ast.parse(CHILD.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert not any("nashtune" in ast.unparse(node) for node in nodes)


def task_row(values: list[float], task: str = "t") -> dict[str, Any]:
    return result(values, task, shots={task: 0}, counts={task: {"effective": len(values)}}, packages={}, versions={})


def test_figures_and_regressions_of_the_suite() -> None:
    tasks = tuple(HarnessTask(task=name) for name in ("t", "u"))
    suite = HarnessSuite(harness(tasks=tasks))
    before = [task_row([1.0] * 8 + [0.0] * 8), task_row([0.0, 1.0] * 8, "u")]
    after = [task_row([1.0] * 6 + [0.0] * 10), task_row([0.0, 1.0] * 8, "u")]
    scores = suite.scores(after, [], 0.95)
    assert {end: suite.section.unit(end) for end in scores.metrics} == {"": "%", "t": "%", "u": "%"}
    task, mean = scores.metrics["t"], scores.metrics[""]
    assert isinstance(task, Interval)
    assert isinstance(mean, Interval)
    assert (task.value, task.n) == (37.5, 16)
    assert task.high - task.value == pytest.approx(1.959964 * 100 * after[0]["stderr"])
    assert mean.value == (37.5 + 50) / 2
    error = 100 * math.hypot(after[0]["stderr"], after[1]["stderr"]) / 2
    assert mean.high - mean.value == pytest.approx(1.959964 * error)
    assert sum(scores.items["t"].values()) == 600.0
    told = suite.with_initial(scores, before, after)
    assert len(told.warnings) == 1
    assert "regression against the initial policy" in told.warnings[0]
    assert "t acc: 0.5000 -> 0.3750 (-0.1250, standard error 0.0854, paired over 16 documents)" in told.warnings[0]
    assert [(name, figures[-1]) for name, figures in told.tables[-1].rows] == [("t", 1.0), ("u", 0.0)]
    lenient = HarnessSuite(harness(tasks=tasks, regression_errors=2.0))
    assert lenient.with_initial(scores, before, after).warnings == ()


def test_metrics_that_are_no_shares_keep_their_unit() -> None:
    section = harness(tasks=(HarnessTask(task="t"), HarnessTask(task="p", metric="word_perplexity")))
    assert section.metric_names() == {"harness_t": "t", "harness_p": "p"}
    assert (section.unit("t"), section.unit("p")) == ("%", "")
    with pytest.raises(RecipeError, match="tasks has 't' 2 times; accepted: once"):
        parse_evaluation({"evaluate": [{"suite": "harness", "tasks": [{"task": "t"}, {"task": "t"}]}]}, "file")


@pytest.mark.slow
@needs_lm_eval
def test_a_runs_policies_are_compared_with_the_initial_one(
    place: Path, settings: HarnessSection, tmp_path: Path
) -> None:
    """The stage's own work on two policies; the run itself only marks that there is one."""
    subjects = [
        Subject(
            run=cast(Run, object()),
            folder=tmp_path,
            iteration=i,
            place=f"iteration-{i}",
            title=name,
            generator=name,
            fingerprint=name,
            policy=lambda name=name: Policy(place / name, name, name),
            seed=0,
            confidence=0.95,
            sampling=SamplingSection(),
            engine=lambda: LocalEngine(),
            ledger=lambda: pytest.fail("nothing is paid"),
            payer=lambda: pytest.fail("nothing is paid"),
        )
        for i, name in enumerate(("initial", "next"))
    ]
    first = evaluate(subjects[0], settings)
    assert [table["title"] for table in first["tables"]] == ["by task"]
    second = evaluate(subjects[1], settings)
    assert [table["title"] for table in second["tables"]] == ["by task", "against the initial policy"]
    rows = [read_rows(tmp_path / "harness" / f"iteration-{i}" / "verdicts.jsonl") for i in (0, 1)]
    assert len([text for text in second["warnings"] if "regression" in text]) == len(regressions(*rows))
    assert second["metrics"]["harness_local_yes_no"]["value"] == 100 * rows[1][0]["value"]
    kept = json.loads((tmp_path / "harness" / "iteration-1" / "results.json").read_text())
    assert kept["tasks"][0]["task_hashes"].keys() == {"local_yes_no"}


@pytest.mark.slow
@needs_lm_eval
def test_a_model_is_evaluated_through_the_command_line(place: Path, settings: HarnessSection, tmp_path: Path) -> None:
    recipe = tmp_path / "evaluate.yaml"
    written = settings.model_dump(mode="json", exclude={"name", "when", "model_args"})
    recipe.write_text(json.dumps({"evaluate": [written]}))
    command = ["eval", str(place / "initial"), "--recipe", str(recipe), "--out", str(tmp_path / "out"), "--json"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout.strip().splitlines()[-1])["evaluations"][0]
    assert found["metrics"]["harness"]["value"] == found["metrics"]["harness_local_yes_no"]["value"]
    assert found["counts"] == {"tasks": 1, "verdicts": 12}
