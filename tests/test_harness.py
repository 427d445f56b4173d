"""lm-evaluation-harness in a process of its own: a local task, a tiny model with random weights, no network."""

from __future__ import annotations

import ast
import importlib.util
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_pairs import tiny_policy

from nashtune.errors import EvaluationError
from nashtune.suites.harness.compare import changes, items, regressions
from nashtune.suites.harness.process import CHILD, HarnessSettings, result_file, run_tasks
from nashtune.suites.harness.tasks import OPEN_LLM, HarnessTask

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
YES_NO = HarnessTask("local_yes_no", 2, "acc")


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
def settings(place: Path, monkeypatch: pytest.MonkeyPatch) -> HarnessSettings:
    monkeypatch.setenv("HF_HOME", str(place / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return HarnessSettings(tasks=(YES_NO,), include_path=place / "tasks", dtype="float32", batch_size=4, device="cpu")


@pytest.mark.slow
@needs_lm_eval
def test_tasks_run_once_and_policies_are_compared_by_document(place: Path, settings: HarnessSettings) -> None:
    from importlib.metadata import version

    both = replace(settings, tasks=(YES_NO, HarnessTask("local_group", 0, "acc")))
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
    more = replace(both, tasks=(*both.tasks, HarnessTask("local_words", None, "exact_match")))
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
        (HarnessTask("no_such_task", 0, "acc"), r"no task no_such_task; accepted: tasks of .* and of include_path"),
        (
            HarnessTask("local_yes_no", 0, "f1"),
            r"local_yes_no: no metric 'f1,none'; accepted \(metric,filter\): acc,none",
        ),
    ],
)
def test_what_cannot_be_run_is_refused_in_words(
    place: Path, settings: HarnessSettings, tmp_path: Path, task: HarnessTask, told: str
) -> None:
    with pytest.raises(EvaluationError, match=told):
        run_tasks(place / "initial", tmp_path / "work", replace(settings, tasks=(task,)))


def test_settings_that_cannot_work_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(settings: HarnessSettings, told: str) -> None:
        with pytest.raises(EvaluationError, match=told):
            run_tasks(tmp_path, tmp_path / "work", settings)

    refused(HarnessSettings(python=str(tmp_path / "no")), "python is .*; accepted: an interpreter with lm-eval")
    refused(
        HarnessSettings(python=sys.executable, include_path=tmp_path / "no"), "include_path is .*; accepted: a folder"
    )
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refused(HarnessSettings(), r"pip install 'nashtune\[lm-eval\]'")


def test_an_interpreter_without_the_harness_is_named(tmp_path: Path) -> None:
    """A Python without any packages stands for another environment."""
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -E "$@"\n')
    bare.chmod(0o755)
    with pytest.raises(EvaluationError, match=r"has no lm-evaluation-harness .*accepted: pip install"):
        run_tasks(tmp_path, tmp_path / "work", HarnessSettings(python=str(bare)))
    told = tmp_path / "broken"
    told.write_text("#!/bin/sh\necho all wrong\nexit 9\n")
    told.chmod(0o755)
    with pytest.raises(EvaluationError, match=r"ended with status 9; not finished: arc_challenge, gsm8k.*all wrong"):
        run_tasks(tmp_path, tmp_path / "work", HarnessSettings(python=str(told)))


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
    base = HarnessSettings(include_path=tmp_path)
    name = result_file(YES_NO, base, tmp_path)
    assert result_file(YES_NO, replace(base, batch_size=8, device="cuda"), tmp_path) == name
    others = [
        result_file(replace(YES_NO, shots=3), base, tmp_path),
        result_file(YES_NO, replace(base, limit=5), tmp_path),
        result_file(YES_NO, replace(base, apply_chat_template=True), tmp_path),
        result_file(YES_NO, replace(base, seed=1), tmp_path),
        result_file(YES_NO, replace(base, dtype="bfloat16"), tmp_path),
        result_file(YES_NO, replace(base, model="vllm"), tmp_path),
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
