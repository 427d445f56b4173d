"""Training prompts that share words with evaluations are found, counted and left out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from reference_data import REFERENCE_DATA, needs_reference_data
from typer.testing import CliRunner

from nashtune.cli import app
from nashtune.errors import PromptError
from nashtune.prompt_overlap import OverlapIndex, words_of
from nashtune.prompts import load_prompts
from nashtune.recipe import ContaminationSection, PromptsSection, ValidationSplit

TEN = "one two three four five six seven eight nine ten"


def test_ten_words_in_a_row_are_an_overlap_whatever_their_case_and_punctuation() -> None:
    index = OverlapIndex({"a": [f"Before this, {TEN} and after."], "b": ["else"]}, 10)
    assert index.overlap(f"Now: {TEN.title().replace(' ', ', ')}!").sets == ("a",)  # type: ignore[union-attr]
    assert index.overlap(TEN.replace("ten", "eleven")) is None
    assert index.overlap("one two three four five six seven eight nine") is None


def test_a_short_prompt_counts_as_a_whole_but_not_where_it_says_next_to_nothing() -> None:
    index = OverlapIndex({"a": ["What is the capital of France?"], "b": ["Tell me a joke"]}, 10)
    assert index.overlap("Please say: what is the capital of France").sets == ("a",)  # type: ignore[union-attr]
    assert index.overlap("What is the capital of Peru?") is None
    assert index.overlap("Tell me a joke") is None


def test_scripts_without_spaces_are_compared_by_character() -> None:
    assert words_of("中译英: hello") == ["中", "译", "英", "hello"]
    index = OverlapIndex({"a": ["请把下面的中文句子翻译成英文"]}, 10)
    assert index.overlap("好, 请把下面的中文句子翻译成英文。") is not None
    assert index.overlap("请把下面的句子") is None


def write(file: Path, prompts: list[str]) -> str:
    file.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in prompts))
    return str(file)


@pytest.fixture
def sources(tmp_path: Path) -> tuple[str, str, str]:
    words = [f"w{n}" for n in range(200)]
    clean = [" ".join(words[n * 12 : n * 12 + 12]) for n in range(8)]
    training = write(tmp_path / "train.jsonl", [*clean, f"{TEN} please", f"so {TEN} or else {words[0]}"])
    turns = tmp_path / "mt.jsonl"
    turns.write_text(json.dumps({"turns": ["first question", f"second {TEN}"]}) + "\n")
    return training, write(tmp_path / "eval.jsonl", [f"{TEN} please", "never asked of anyone at all"]), str(turns)


@pytest.mark.parametrize("drop", [True, False])
def test_they_are_left_out_or_only_counted(sources: tuple[str, str, str], drop: bool) -> None:
    training, one, two = sources
    section = PromptsSection(
        source=training,
        validation=ValidationSplit(count=2),
        contamination=ContaminationSection(against=(one, two), drop=drop),
    )
    split = load_prompts(section, 2, seed=0)
    assert split.report.contaminated == 2
    assert split.report.contaminated_by == {one: 2, two: 2}
    texts = [p.text for p in (*split.validation, *split.parts[0], *split.parts[1])]
    assert sum(TEN in text for text in texts) == (0 if drop else 2)
    assert len(texts) == (8 if drop else 10)


def test_a_bad_evaluation_names_its_source_and_row(sources: tuple[str, str, str], tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": 3}\n')
    section = PromptsSection(
        source=sources[0], validation=ValidationSplit(count=2), contamination=ContaminationSection(against=(str(bad),))
    )
    with pytest.raises(PromptError, match=r"bad\.jsonl:1: column 'prompt'"):
        load_prompts(section, 1, seed=0)


def test_the_command_tells_how_many_and_which(sources: tuple[str, str, str]) -> None:
    training, one, two = sources
    ran = CliRunner().invoke(app, ["contamination", training, "--against", one, "--against", two, "--json"])
    assert ran.exit_code == 0, ran.output
    found = json.loads(ran.stdout)
    assert (found["prompts"], found["contaminated"], found["by_set"]) == (10, 2, {one: 2, two: 2})
    assert found["first"][0]["overlap"]["words"] == TEN
    ran = CliRunner().invoke(app, ["contamination", training, "--against", "absent.jsonl"])
    assert ran.exit_code == 1


@needs_reference_data
def test_real_prompts_against_real_evaluations() -> None:
    import pyarrow.parquet as pq

    instructions = pq.read_table(REFERENCE_DATA / "alpacaeval_prompts.parquet")["instruction"].to_pylist()
    index = OverlapIndex({"alpaca_eval": instructions}, 10)
    prompts = pq.read_table(REFERENCE_DATA / "prompts_alpaca_subset_NC.parquet")["instruction"].to_pylist()
    found = [p for p in prompts if index.overlap(p)]
    assert 0 < len(found) < 30
