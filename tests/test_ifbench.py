"""IFBench's types against the published code's verdicts, and prompts with types that are not known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ifbench_cases import IFBENCH_MAKERS
from instructed_golden import by_type, missing, one
from reference_data import REFERENCE_DATA, needs_reference_data
from typer.testing import CliRunner

from nashtune.cli import app
from nashtune.errors import EvaluationError
from nashtune.suites.ifbench import word_rules
from nashtune.suites.ifbench.types import FILES, IFBENCH, NEW
from nashtune.suites.ifeval.checkers import IFEVAL
from nashtune.suites.ifeval.data import load_prompts
from nashtune.suites.ifeval.scores import check_answer, follow_scores

CASES = by_type("ifbench", IFBENCH_MAKERS)
TAGGED = "words:start_verb"  # its golden verdicts would need nltk's tagger


def test_there_are_58_new_types_beside_ifevals() -> None:
    assert len(NEW) == 58
    assert IFBENCH.keys() == NEW.keys() | IFEVAL.keys()
    assert CASES.keys() == NEW.keys() - {TAGGED}


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_type_decides_as_the_published_code(name: str) -> None:
    if why := missing(IFBENCH, name):
        pytest.skip(why)
    for case, digit in CASES[name]:
        if digit != "x":  # the published code stops with an error
            strict, loose = one(IFBENCH, name, case.text, **case.kwargs)
            assert str(strict + 2 * loose) == digit, case


def test_a_verb_is_what_the_tagger_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word_rules, "tokens", str.split)
    monkeypatch.setattr(word_rules, "part_of_speech", lambda words: ["VBG" if w == "Running" else "NN" for w in words])
    assert one(IFBENCH, TAGGED, "Running fast") == (True, True)
    assert one(IFBENCH, TAGGED, "Fast Running") == (False, False)


@pytest.mark.parametrize(
    ("name", "kwargs", "text", "follows"),
    [
        ("count:numbers", {"N": 2.0}, "3.14 and 1,000", True),
        ("count:conjunctions", {"small_n": 3.0}, "and And and,", True),
        ("count:punctuation", {}, "a?! b. c, d; e: f! g?", True),
        ("count:punctuation", {}, "a?! b. c, d; e: f!", False),
        ("ratio:overlap", {"reference_text": "abcdef", "percentage": 50.0}, "abcdxy", True),
        ("ratio:overlap", {"reference_text": "abcdef", "percentage": 47.0}, "abcdxy", False),
        ("words:alphabet", {}, "Yes, zebras 'are' big", True),
        ("format:parentheses", {}, "([{([x])}])", True),
        ("format:parentheses", {}, "([{(x)}])", False),
        ("format:line_indent", {}, "a\n\n b\n\n  c", True),
        ("format:line_indent", {}, "a\n\n\n b", False),
        (
            "custom:csv_quotes",
            {},
            '"StudentID"\t"Subject"\t"Grade"\t"Semester"\t"Score"\n' + "\n".join(["\t\t\t\t"] * 3),
            False,
        ),
        ("custom:csv_city", {}, "a\rb", False),
        ("repeat:repeat_span", {"prompt_to_repeat": "explain", "n_start": 0, "n_end": 2}, "Exp", True),
    ],
)
def test_edges(name: str, kwargs: dict[str, Any], text: str, follows: bool) -> None:
    assert one(IFBENCH, name, text, **kwargs)[0] is follows


def test_unknown_types_are_reported_and_bad_kwargs_refused(tmp_path: Path) -> None:
    rows = [
        {"key": "0", "prompt": "a", "instruction_id_list": ["count:numbers"], "kwargs": [{"N": 1.0}]},
        {"key": "1", "prompt": "b", "instruction_id_list": ["count:numbers", "count:comets"], "kwargs": [{"N": 1}, {}]},
    ]
    file = tmp_path / "IFBench_test.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    prompts = load_prompts(str(tmp_path), IFBENCH, FILES)
    scores, followed = follow_scores(prompts, {"0": "3", "1": "3"})
    assert scores.unknown == {"1": ("count:comets",)}
    assert len(followed) == scores.prompt_strict.n == 1
    with pytest.raises(EvaluationError, match="prompt 1: no check for count:comets"):
        check_answer(prompts[1], "3")
    file.write_text(json.dumps(rows[0] | {"kwargs": [{"N": 1.5}]}))
    with pytest.raises(EvaluationError, match=r"IFBench_test\.jsonl:1: key 0: .*N: Input should be a valid integer"):
        load_prompts(str(tmp_path), IFBENCH, FILES)
    file.write_text(json.dumps(rows[1]))
    with pytest.raises(EvaluationError, match="all of 1 prompts have types that are not known, as 'count:comets'"):
        follow_scores(load_prompts(str(tmp_path), IFBENCH, FILES), {"1": "3"})


@needs_reference_data
def test_the_published_prompts_hold_known_types_only() -> None:
    rows = [json.loads(line) for line in (REFERENCE_DATA / "ifbench_prompts.jsonl").read_text().splitlines()]
    seen = {}
    for row in rows:
        for name, kwargs in zip(row["instruction_id_list"], row["kwargs"], strict=True):
            assert IFBENCH[name].arguments(kwargs) is not None
            seen[name] = True
    assert len(rows) == 300
    assert seen.keys() == NEW.keys()


def test_answers_are_evaluated_through_the_command_line(tmp_path: Path) -> None:
    rows = [
        {"key": "0", "prompt": "a", "instruction_id_list": ["count:numbers"], "kwargs": [{"N": 2.0}]},
        {"key": "1", "prompt": "b ", "instruction_id_list": ["format:no_whitespace"], "kwargs": [{}]},
    ]
    (tmp_path / "IFBench_test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    answers = [{"prompt": "b", "response": "two words"}, {"prompt": "a", "response": "1 and 2"}]
    (tmp_path / "answers.jsonl").write_text("\n".join(map(json.dumps, answers)))
    command = ["eval", "--model-outputs", str(tmp_path / "answers.jsonl"), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*command, "--suite", "ifbench", "-o", f"ifbench.data={tmp_path}", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout.strip().splitlines()[-1])["evaluations"][0]
    assert found["metrics"]["ifbench_prompt_strict"]["value"] == 50.0
    assert [(name, figures[1]) for name, figures in found["tables"][0]["rows"]] == [
        ("count:numbers", 100.0),
        ("format:no_whitespace", 0.0),
    ]
    (tmp_path / "answers.jsonl").write_text(json.dumps(answers[0]))
    done = CliRunner().invoke(app, [*command, "--suite", "ifbench", "-o", f"ifbench.data={tmp_path}"])
    assert done.exit_code != 0
    assert "no response to 1 of 2 prompts, the first of key 0" in " ".join(done.output.split())
