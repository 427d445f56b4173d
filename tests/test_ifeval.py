"""IFEval: every type against the published code's verdicts, rows that are refused, scores by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from instructed_cases import IFEVAL_MAKERS
from instructed_golden import by_type, missing, one
from reference_data import REFERENCE_DATA, needs_reference_data
from tiny_pairs import tiny_policy
from typer.testing import CliRunner

from nashtune.cli import app
from nashtune.errors import EvaluationError
from nashtune.evaluate.winrate import win_rate
from nashtune.judging.instructions import KINDS
from nashtune.suites.ifeval import resources
from nashtune.suites.ifeval.checkers import IFEVAL
from nashtune.suites.ifeval.data import load_prompts
from nashtune.suites.ifeval.scores import clustered_share, follow_scores, loose_forms

CASES = by_type("ifeval", IFEVAL_MAKERS)


def test_all_25_types_have_cases_on_both_sides() -> None:
    assert len(IFEVAL) == 25
    assert CASES.keys() == IFEVAL.keys()
    for name, made in CASES.items():
        digits = {digit for _, digit in made}
        assert {"0", "3"} <= digits, name


@pytest.mark.parametrize("name", sorted(IFEVAL))
def test_a_type_decides_as_the_published_code(name: str) -> None:
    if why := missing(IFEVAL, name):
        pytest.skip(why)
    for case, digit in CASES[name]:
        strict, loose = one(IFEVAL, name, case.text, **case.kwargs)
        assert str(strict + 2 * loose) == digit, case


@pytest.mark.parametrize(
    ("name", "kwargs", "text", "follows"),
    [
        # where IFEval decides otherwise than the rules oracle of the same name
        ("keywords:existence", {"keywords": ["caf."]}, "cafe", True),
        ("language:response_language", {"language": "de"}, "1234", True),
        ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "*\n- b", True),
        ("detectable_format:title", {}, "<<> <>>", True),
        ("detectable_format:json_format", {}, "```jSON\n{}\n```", False),
        ("startend:end_checker", {"end_phrase": "Bye."}, 'So: Bye. "', False),
        (
            "length_constraints:nth_paragraph_first_word",
            {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "b"},
            "a\n\n\n\nb",
            False,
        ),
        # where the published code draws at random what it finds out of range
        ("keywords:letter_frequency", {"letter": "#", "let_frequency": 2, "let_relation": "at least"}, "# x #", True),
        ("keywords:letter_frequency", {"letter": "#", "let_frequency": 2, "let_relation": "less than"}, "# x #", False),
        ("keywords:frequency", {"keyword": "a", "frequency": 0, "relation": "less than"}, "b", False),
    ],
)
def test_edges(name: str, kwargs: dict[str, Any], text: str, follows: bool) -> None:
    assert one(IFEVAL, name, text, **kwargs)[0] is follows


def test_rules_that_are_the_same_are_the_oracles_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("no_commas", "placeholders", "highlighted", "quoted", "two_answers", "starts_with", "one_of"):
        monkeypatch.setitem(KINDS, kind, None)  # type: ignore[arg-type]
    for name, kwargs in (
        ("punctuation:no_comma", {}),
        ("detectable_content:number_placeholders", {"num_placeholders": 1}),
        ("detectable_format:number_highlighted_sections", {"num_highlights": 1}),
        ("startend:quotation", {}),
        ("combination:two_responses", {}),
        ("combination:repeat_prompt", {"prompt_to_repeat": "x"}),
        ("detectable_format:constrained_response", {}),
    ):
        with pytest.raises(AttributeError, match="'NoneType' object has no attribute 'check'"):
            one(IFEVAL, name, "text", **kwargs)


def test_loose_is_any_of_eight_forms() -> None:
    assert loose_forms("Sure:\n*a*\n\nBye") == [
        "Sure:\n*a*\n\nBye",
        "Sure:\na\n\nBye",
        "*a*\n\nBye",
        "a\n\nBye",
        "Sure:\n*a*",
        "Sure:\na",
        "*a*",
        "a",
    ]
    assert one(IFEVAL, "startend:quotation", 'Sure:\n"a"\nBye') == (False, True)
    assert one(IFEVAL, "startend:quotation", 'Sure: "a"') == (False, False)


def write(folder: Path, *rows: Any) -> Path:
    file = folder / "ifeval_prompts.jsonl"
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return file


def row(key: Any, *instructions: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    ids, kwargs = [name for name, _ in instructions], [own for _, own in instructions]
    return {"key": key, "prompt": f"Prompt {key}", "instruction_id_list": ids, "kwargs": kwargs}


NO_COMMA = ("punctuation:no_comma", {"num_words": None, "relation": None})
FIVE_WORDS = ("length_constraints:number_words", {"num_words": 5, "relation": "at least", "keyword": None})


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        ("{", r"ifeval_prompts\.jsonl:2: not JSON"),
        ("[]", r"ifeval_prompts\.jsonl:2: '\[\]'; accepted: an object"),
        (row(None, NO_COMMA), r":2: key is None; accepted: a number or text"),
        (row(7), r":2: key 7: instruction_id_list is \[\]"),
        (row(1, NO_COMMA), r":2: key '1' is that of .*:1 too"),
        (row(7, NO_COMMA) | {"prompt": 3}, r":2: key 7: prompt is 3; accepted: text"),
        (row(7, NO_COMMA) | {"kwargs": []}, r":2: key 7: kwargs is \[\]; accepted: a list of 1 objects"),
        (row(7, ("punctuation:no_comma", {"n": 1})), r":2: key 7: .*'punctuation:no_comma'.*n: Extra inputs"),
        (row(7, (FIVE_WORDS[0], {"num_words": 5})), r":2: key 7: .*relation: Field required; accepted: num_words"),
        (row(7, (FIVE_WORDS[0], {"num_words": "5", "relation": "at least"})), r":2: key 7: .*num_words: Input should"),
        (row(7, (FIVE_WORDS[0], {"num_words": 5, "relation": "at most"})), r":2: key 7: .*relation: Input should be"),
        (row(7, ("keywords:existence", {"keywords": ["("]})), r":2: key 7: .*keywords.*: .*regular expression"),
        (
            row(
                7,
                (
                    "length_constraints:nth_paragraph_first_word",
                    {"num_paragraphs": 2, "nth_paragraph": 3, "first_word": "a"},
                ),
            ),
            r":2: key 7: .*: nth_paragraph is 3; accepted: at most num_paragraphs, 2",
        ),
    ],
)
def test_a_bad_row_is_refused_with_file_line_and_key(tmp_path: Path, bad: Any, told: str) -> None:
    with pytest.raises(EvaluationError, match=told):
        load_prompts(str(write(tmp_path, row(1, NO_COMMA), bad)))


def test_a_source_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"none of ifeval_input_data\.jsonl, .*; accepted: a folder with one"):
        load_prompts(str(tmp_path))
    with pytest.raises(EvaluationError, match="no such file or folder"):
        load_prompts(str(tmp_path / "no.jsonl"))
    with pytest.raises(EvaluationError, match="no prompts"):
        load_prompts(str(write(tmp_path)))


def test_what_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise ImportError(name)

    resources._package.cache_clear()
    resources._find_nltk_data.cache_clear()
    monkeypatch.setattr(resources.importlib, "import_module", absent)
    words = row(1, ("length_constraints:number_sentences", {"num_sentences": 1, "relation": "at least"}))
    with pytest.raises(EvaluationError, match=r"needs the package 'nltk': pip install nashtune\[eval\]"):
        load_prompts(str(write(tmp_path, words)))
    assert load_prompts(str(write(tmp_path, row(1, NO_COMMA))))  # which needs nothing
    monkeypatch.undo()
    if nltk := pytest.importorskip("nltk"):
        monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
        with pytest.raises(EvaluationError, match=r"nltk's data 'punkt_tab': python -m nltk\.downloader punkt_tab, or"):
            load_prompts(str(write(tmp_path, words)))
    resources._find_nltk_data.cache_clear()


def test_scores_by_hand(tmp_path: Path) -> None:
    prompts = load_prompts(
        str(
            write(
                tmp_path,
                row(1, NO_COMMA, FIVE_WORDS),
                row(2, NO_COMMA, NO_COMMA, FIVE_WORDS),
                row("x", ("startend:quotation", {})),
                row(4, NO_COMMA, ("new:type", {"n": 1})),
            )
        )
    )
    answers = {"1": "one two three four five", "2": "a, b", "x": 'Here:\n"all"', "4": "no comma"}
    scores, followed = follow_scores(prompts, answers)
    assert scores.unknown == {"4": ("new:type",)}
    assert [one.key for one in followed] == ["1", "2", "x"]
    # prompt level: 1 of 3 strictly; loosely also x, without its first line
    assert scores.prompt_strict == win_rate([1.0, 0.0, 0.0], 0.95)
    assert scores.prompt_loose == win_rate([1.0, 0.0, 1.0], 0.95)
    # instruction level: 2 of 2, 0 of 3, 0 of 1; the unknown prompt's no_comma counts nowhere
    assert scores.instruction_strict.value == pytest.approx(2 / 6)
    assert scores.instruction_loose.value == pytest.approx(3 / 6)
    assert {name: (kind.count, kind.strict.value) for name, kind in scores.types.items()} == {
        "length_constraints:number_words": (2, 0.5),
        "punctuation:no_comma": (3, pytest.approx(1 / 3)),
        "startend:quotation": (1, 0.0),
    }
    assert scores.types["startend:quotation"].loose.value == 1.0
    with pytest.raises(EvaluationError, match="1 of 4 prompts have no answer, the first of key '2'"):
        follow_scores(prompts, {key: text for key, text in answers.items() if key != "2"})
    with pytest.raises(EvaluationError, match="1 answers have no prompt, the first of key '9'"):
        follow_scores(prompts, answers | {"9": ""})


def test_instruction_level_intervals_are_clustered_by_prompt() -> None:
    flags = [True, False, True, True, False, True, True, False]
    single = clustered_share([[flag] for flag in flags], 0.95)
    plain = win_rate([float(flag) for flag in flags], 0.95)
    assert (single.value, single.low, single.high) == pytest.approx((plain.value, plain.low, plain.high))
    # each prompt's flags repeated four times say nothing new
    repeated = clustered_share([[flag] * 4 for flag in flags], 0.95)
    assert (repeated.low, repeated.high, repeated.n) == pytest.approx((single.low, single.high, 8))
    # by hand: shares 2/2 and 0/1 and 1/1 of p = 3/4: residuals 1/2, -3/4, 1/4; error^2 = (14/16) (3/2) / 16
    interval = clustered_share([[True, True], [False], [True]], 0.95)
    error2 = 14 / 16 * 3 / 2 / 16
    quantile = 4.302652729911275  # Student's t, 2 degrees of freedom
    n_eff = 0.75 * 0.25 / error2
    penalty = quantile**2 / n_eff
    half = quantile / (1 + penalty) * ((0.75 * 0.25 + penalty / 4) / n_eff) ** 0.5
    assert interval.low == pytest.approx((0.75 + penalty / 2) / (1 + penalty) - half)
    assert clustered_share([[True, False]] * 5, 0.95).low < 0.5  # no spread between prompts is no certainty


@needs_reference_data
def test_the_published_prompts_are_read() -> None:
    if why := missing(IFEVAL, "length_constraints:number_sentences"):
        pytest.skip(why)
    prompts = load_prompts(str(REFERENCE_DATA))
    assert len(prompts) == 541
    assert sum(len(prompt.instructions) for prompt in prompts) == 834
    assert not any(prompt.unknown for prompt in prompts)
    scores, _ = follow_scores(prompts, {prompt.key: "" for prompt in prompts})
    assert scores.prompt_loose.value == scores.instruction_loose.value == 0.0


def test_a_model_is_evaluated_through_the_command_line(tmp_path: Path) -> None:
    """Sampled, checked, scored, exported; done once; the same from the exported answers."""
    tiny_policy(tmp_path / "model")
    file = write(
        tmp_path,
        row(1, NO_COMMA, FIVE_WORDS),
        row(2, ("startend:quotation", {})),
        row(3, NO_COMMA, ("new:type", {})),
    )
    settings = ["--suite", "ifeval", "-o", f"ifeval.data={file}", "-o", "ifeval.max_new_tokens=6", "--json"]

    def evaluate(*arguments: str) -> dict[str, Any]:
        done = CliRunner().invoke(app, ["eval", *arguments, *settings])
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout.strip().splitlines()[-1])["evaluations"][0]

    found = evaluate(str(tmp_path / "model"), "--out", str(tmp_path / "out"))
    place = tmp_path / "out" / "ifeval" / "model"
    answers = [json.loads(line)["response"] for line in (place / "input_response_data.jsonl").read_text().splitlines()]
    prompts = load_prompts(str(file))
    scores, followed = follow_scores(prompts, dict(zip("123", answers, strict=True)))
    assert found["metrics"]["ifeval_prompt_strict"]["value"] == 100 * scores.prompt_strict.value
    assert found["metrics"]["ifeval_instruction_loose"]["high"] == 100 * scores.instruction_loose.high
    assert found["counts"] == {"answers": 3, "verdicts": 2, "instructions": 3, "unknown": 1}
    assert any("1 prompts have types without a check and count nowhere: new:type" in text for text in found["warnings"])
    strict = [json.loads(line) for line in (place / "eval_results_strict.jsonl").read_text().splitlines()]
    assert [one["follow_instruction_list"] for one in strict] == [list(one.strict) for one in followed]
    assert json.loads((place / "items.json").read_text())["ifeval_prompt_loose"].keys() == {"1", "2"}
    before = (place / "verdicts.jsonl").stat().st_mtime_ns
    assert evaluate(str(tmp_path / "model"), "--out", str(tmp_path / "out")) == found
    assert (place / "verdicts.jsonl").stat().st_mtime_ns == before
    given = evaluate("--model-outputs", str(place / "input_response_data.jsonl"), "--out", str(tmp_path / "given"))
    assert given["metrics"] == found["metrics"]
