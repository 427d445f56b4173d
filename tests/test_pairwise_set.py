"""Pairwise sets of every layout read alike; what is odd in them is named."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nashtune.errors import PromptError
from nashtune.judging.comparisons import read_comparisons
from nashtune.judging.pairwise_set import PairwiseSet, Reading, Stored, VerdictFile, read_pairwise
from nashtune.judging.preference_rows import Columns, majority, with_codes

USER = {"role": "user", "content": "Q"}


def write(file: Path, rows: list[dict[str, Any]]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def read(tmp_path: Path, *rows: dict[str, Any], **how: Any) -> PairwiseSet:
    return read_pairwise(write(tmp_path / "data.jsonl", list(rows)), Reading(**how))


LAYOUTS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"prompt": "Q", "chosen": "good", "rejected": "bad"}, {}),
    ({"prompt": [USER], "chosen": "good", "rejected": "bad", "subset": "chat"}, {}),
    (
        {
            "prompt": "Q",
            "chosen": [USER, {"role": "assistant", "content": "good"}],
            "rejected": [USER, {"role": "assistant", "content": "bad"}],
        },
        {},
    ),
    ({"chosen": "\n\nHuman: Q\n\nAssistant: good", "rejected": "\n\nHuman: Q\n\nAssistant: bad"}, {}),
    ({"prompt": "Q", "response_1": "good", "response_2": "bad", "preference": 0.9}, {}),
    ({"prompt": "Q", "response_a": "bad", "response_b": "good", "label": "B"}, {}),
    ({"instruction": "Q", "input": "", "response1": "good", "response2": "bad", "annotator1": 1, "annotator2": 1}, {}),
    ({"instruction": " ", "input": "Q", "response1": "good", "response2": "bad", "label": 1}, {}),
    ({"input": "Q", "output_1": "bad", "output_2": "good", "label": 2}, {}),
    ({"question": "Q", "answer_1": "good", "answer_2": "bad", "score_1": 8, "score_2": 7.5}, {}),
    (
        {"ask": "Q", "x": "bad", "y": "good", "best": "no. 2"},
        {"columns": Columns("ask", ("x", "y"), "best", codes=with_codes(["second=no. 2"]))},
    ),
]


@pytest.mark.parametrize(("row", "how"), LAYOUTS)
def test_every_layout_says_that_good_is_better(row: dict[str, Any], how: dict[str, Any], tmp_path: Path) -> None:
    (pair,) = read(tmp_path, row, **how).pairs
    comparison = pair.comparison if pair.comparison.target > 0.5 else pair.comparison.swapped()
    assert (comparison.prompt.text, comparison.first.text, comparison.second.text) == ("Q", "good", "bad")
    assert comparison.target > 0.5
    assert pair.subset == row.get("subset")


def test_fit_judge_reads_the_same_layouts(tmp_path: Path) -> None:
    for number, (row, how) in enumerate(LAYOUTS):
        if not how:
            (found,) = read_comparisons([write(tmp_path / f"{number}.jsonl", [row])]).comparisons
            assert (found.first.text if found.target > 0.5 else found.second.text) == "good"
    no_majority = {"instruction": "Q", "response1": "good", "response2": "bad", "annotator1": 1, "annotator2": 2}
    again = read_comparisons([write(tmp_path / "more.jsonl", [no_majority, LAYOUTS[0][0]])])
    assert again.left_out == {"no verdict": 1}


def test_instruction_and_input_are_one_prompt(tmp_path: Path) -> None:
    row = {"instruction": "Translate.", "input": "chat", "response1": "cat", "response2": "dog", "label": 1}
    assert read(tmp_path, row).pairs[0].comparison.prompt.text == "Translate.\n\nchat"


def test_chosen_is_not_always_first_and_annotations_turn_with_the_answers(tmp_path: Path) -> None:
    rows = [{"prompt": f"Q{n}", "chosen": "g", "rejected": "b", "annotator1": 1, "v": 2, "w": 0} for n in range(60)]
    pairs = read(tmp_path, *rows, stored=(Stored("v", "w"),)).pairs
    turned = [pair for pair in pairs if pair.turned]
    assert 15 < len(turned) < 45
    for pair in pairs:
        assert (pair.comparison.target, pair.annotations) == ((0, (0,)) if pair.turned else (1, (1,)))
        # v, asked with chosen first, says rejected; w, asked with rejected first, says tie.
        assert pair.verdicts["v"] == ((0.5, 1) if pair.turned else (0, 0.5))
    assert {pair.comparison.first.text for pair in turned} == {"b"}


def test_rows_that_compare_nothing_are_counted(tmp_path: Path) -> None:
    other = {"chosen": "\n\nHuman: Q\n\nAssistant: a", "rejected": "\n\nHuman: R\n\nAssistant: b"}
    same = {"prompt": "Q", "chosen": "a", "rejected": "a"}
    found = read(tmp_path, other, same, LAYOUTS[0][0])
    assert len(found.pairs) == 1
    assert found.left_out == {"the two conversations have different prompts": 1, "the same text twice": 1}
    with pytest.raises(PromptError, match=r"no comparison of two answers in it \(the same text twice: 1\)"):
        read(tmp_path, same)


def test_majority_is_more_than_any_other() -> None:
    assert majority((1, 1, 0)) == 1
    assert majority((0.5, math.nan)) == 0.5
    assert math.isnan(majority((1, 0)))
    assert math.isnan(majority((math.nan,)))


@pytest.mark.parametrize(
    ("change", "how", "told"),
    [
        ({"label": 3}, {}, r"data\.jsonl:2: column 'label': int '3'; accepted: first: 1, a, .*--code names others"),
        ({"label": True}, {}, r"data\.jsonl:2: column 'label': bool 'True'"),
        ({"label": None}, {}, r"data\.jsonl:2: no label; accepted: a column preference, label, winner"),
        ({"output_2": None}, {}, r"data\.jsonl:2: column 'output_2': missing; accepted: a string"),
        ({"input": " "}, {}, r"data\.jsonl:2: column 'input': str ' '; accepted: text"),
        ({"v": "garbage"}, {"stored": (Stored("v"),)}, r"data\.jsonl:2: column 'v': str 'garbage'; accepted"),
        ({}, {"stored": (Stored("w"),)}, r"data\.jsonl:1: no column 'w'; accepted: one of 'input', 'output_1'"),
        ({"s": 1.5}, {"subset": "s"}, r"data\.jsonl:1: column 's': missing"),
        ({"constraints": [{"kind": "nonsense"}]}, {}, r"data\.jsonl:2: .*nonsense"),
    ],
)
def test_odd_rows_are_named(change: dict[str, Any], how: dict[str, Any], told: str, tmp_path: Path) -> None:
    row = {"input": "Q", "output_1": "a", "output_2": "b", "label": 1, "v": 1}
    with pytest.raises(PromptError, match=told):
        read(tmp_path, row, row | change, **how)


def test_codes_replace_the_usual_ones_and_are_checked(tmp_path: Path) -> None:
    codes = with_codes(["none=0", "none=garbage"])
    assert codes["none"] == ("0", "garbage")
    assert "0" not in codes["tie"]
    row = {"input": "Q", "output_1": "a", "output_2": "b", "label": 1, "v": "GARBAGE", "w": 0.0}
    stored = (Stored("v", "w"),)
    (pair,) = read(tmp_path, row, stored=stored, columns=Columns(codes=codes)).pairs
    assert all(word is not None and math.isnan(word) for word in pair.verdicts["v"])
    with pytest.raises(PromptError, match=r"--code 'maybe=1'; accepted: first, second, tie, none"):
        with_codes(["maybe=1"])
    with pytest.raises(PromptError, match="accepted: COLUMN, or COLUMN,COLUMN_SWAPPED"):
        Stored.parse("a,b,c")


def test_verdicts_in_a_file_of_their_own_are_joined(tmp_path: Path) -> None:
    rows = [{"id": n, "input": f"Q{n}", "output_1": "a", "output_2": "b", "label": 1} for n in range(3)]
    said = [{"id": n, "who": who, "v": 1 + (who == "y"), "w": 1} for n in range(3) for who in "xy"]
    pq.write_table(pa.Table.from_pylist(said), tmp_path / "said.parquet")
    file = VerdictFile(str(tmp_path / "said.parquet"), ("id",), ("who",))
    found = read(tmp_path, *rows, stored=(Stored("v", "w"),), file=file)
    assert found.judges == ["x", "y"]
    assert [pair.verdicts for pair in found.pairs] == [{"x": (1, 1), "y": (0, 1)}] * 3
    limited = read(tmp_path, *rows, stored=(Stored("v", "w"),), file=file, limit=2)
    assert limited.left_out == {"verdicts on rows that are not looked at": 2}
    with pytest.raises(PromptError, match=r"a second verdict of v on .*data\.jsonl:1; accepted: one"):
        read(tmp_path, *rows, stored=(Stored("v"),), file=VerdictFile(file.source, ("id",), ()))
    with pytest.raises(PromptError, match=r"data\.jsonl:2: \{'id': '0'\} is there twice"):
        read(tmp_path, rows[0], rows[0], stored=(Stored("v"),), file=file)
