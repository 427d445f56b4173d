"""Fitting a judge: from files and run folders to a held-out report that can be trusted."""

from __future__ import annotations

import asyncio
import csv
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_chat import tiny_recipe
from typer.testing import CliRunner

from nashtune import Run, judge, make_pairs, sample
from nashtune.cli import app
from nashtune.errors import OracleError, PromptError
from nashtune.judging.comparisons import Answer, Comparison, read_comparisons
from nashtune.judging.fit import fit_judge, held_out_groups
from nashtune.judging.preference_model import PreferenceModelOracle, check_gate, read_record
from nashtune.recipe import PreferenceModelOracle as Section
from nashtune.recipe import parse_recipe
from nashtune.records import Message, Prompt, Response


def word(letters: str, draw: random.Random) -> str:
    return " ".join("".join(draw.choices(letters, k=4)) for _ in range(5))


def rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Answers of early letters are better than answers of late ones; both are of the same length."""
    draw = random.Random(seed)
    return [
        {"prompt": f"Question {n}?", "chosen": word("abcdef", draw), "rejected": word("uvwxyz", draw)}
        for n in range(count)
    ]


def write(file: Path, lines: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


# ---- fitting -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["bradley-terry", "auto"])
def test_a_known_preference_is_recovered_on_prompts_not_seen(head: str, tiny_folder: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "data.jsonl", rows(60))
    policy = str(tiny_folder / "policy")
    record = fit_judge(tmp_path / "judge", [str(source)], policy, head)
    found = record.held_out
    assert found.prompts == found.comparisons == 12
    assert found.balanced_accuracy.value > 0.85
    assert found.log_loss < 0.5
    assert found.brier < 0.2
    assert 0 <= found.calibration_error <= 1
    assert found.length_baseline.value == 0.5  # same lengths everywhere
    assert found.triples == 0
    assert found.cyclic_triples is None
    assert read_record(tmp_path / "judge") == record
    check_gate(tmp_path / "judge", 0.6)
    # The oracle sees it too, on a prompt that is new.
    oracle = PreferenceModelOracle(Section(kind="preference_model", folder=str(tmp_path / "judge")))
    prompt = Prompt.make([Message("user", "Question 999?")])
    answers = [
        Response(f"r{k}", prompt.id, k, "student", "p", text) for k, text in enumerate(("xyzu vwxy", "abcf edab"))
    ]
    assert (asyncio.run(oracle.judge(prompt, answers, 0)).preference(1, 0) or 0) > 0.6


def test_the_same_data_in_another_form_gives_the_same_judge(tiny_folder: Path, tmp_path: Path) -> None:
    plain = rows(30)
    turned = [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "response_1": row["rejected"],
            "response_2": row["chosen"],
            "preference": 0.0,
        }
        for row in plain
    ]
    sources = [write(tmp_path / "plain.jsonl", plain), tmp_path / "turned.parquet", tmp_path / "plain.csv"]
    pq.write_table(pa.Table.from_pylist(turned), sources[1])
    with sources[2].open("w", newline="") as file:
        writer = csv.DictWriter(file, list(plain[0]))
        writer.writeheader()
        writer.writerows(plain)
    reports = [
        fit_judge(tmp_path / f"judge-{n}", [str(s)], str(tiny_folder / "policy"), "bradley-terry").held_out
        for n, s in enumerate(sources)
    ]
    assert reports[0].balanced_accuracy == reports[1].balanced_accuracy == reports[2].balanced_accuracy
    assert reports[0].log_loss == pytest.approx(reports[1].log_loss, abs=1e-3)


def test_noise_does_not_pass_the_gate(tiny_folder: Path, tmp_path: Path) -> None:
    draw = random.Random(1)
    noise = [{"prompt": f"Q {n}", "chosen": word("abc", draw), "rejected": word("abc", draw)} for n in range(40)]
    fit_judge(tmp_path / "judge", [str(write(tmp_path / "n.jsonl", noise))], str(tiny_folder / "policy"))
    with pytest.raises(OracleError, match=r"accepted: a lower bound of at least 0\.6"):
        check_gate(tmp_path / "judge", 0.6)


def test_held_out_prompts_are_a_fifth_and_share_none_with_training() -> None:
    def comparison(text: str, n: int) -> Comparison:
        return Comparison(Prompt.make([Message("user", text)]), Answer(f"a{n}"), Answer(f"b{n}"), 1.0)

    data = [comparison(text, n) for n in range(50) for text in (f"Prompt {n}", f"prompt  {n} ", f"Prompt {n}")]
    held_out = held_out_groups(data, 0, "held out")
    assert len(held_out) == 10
    in_both = {c.prompt.text.casefold().split()[1] for c in data if c.group in held_out} & {
        c.prompt.text.casefold().split()[1] for c in data if c.group not in held_out
    }
    assert not in_both
    assert held_out == held_out_groups(data[::-1], 0, "held out")
    assert held_out != held_out_groups(data, 1, "held out")


def test_the_order_shown_does_not_depend_on_the_source() -> None:
    prompt = Prompt.make([Message("user", "Q")])
    one = [Comparison(prompt, Answer(f"a{n}"), Answer(f"b{n}"), 0.8) for n in range(100)]
    assert [c.shown(0) for c in one] == [c.swapped().swapped().shown(0) for c in one]
    assert [c.shown(0).first for c in one] == [c.swapped().shown(0).first for c in one]
    assert 30 < sum(c.shown(0) == c for c in one) < 70


# ---- a run folder --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose first iteration is sampled and judged, by engines that cost nothing."""
    runs = tmp_path_factory.mktemp("runs")
    changes: dict[str, Any] = {"sampling": {"engine": "scripted"}, "oracle": {"kind": "scripted", "prefer": "longer"}}
    recipe = parse_recipe(tiny_recipe(tiny_folder, **changes) | {"folder": str(runs)})
    with Run.open(recipe) as run:
        judge(run, sample(run, 1))
    return runs / "tiny"


def test_a_runs_judgments_are_read_as_they_were_paid_for(run_folder: Path) -> None:
    found = read_comparisons([str(run_folder)])
    assert len({c.prompt.id for c in found.comparisons}) == 12
    # 3 of the student and 1 of the teacher: 6 verdicts a prompt, less texts that occur twice.
    assert len(found.comparisons) + sum(found.left_out.values()) == 12 * 6
    for comparison in found.comparisons:
        first, second = (len(answer.text.split()) for answer in (comparison.first, comparison.second))
        assert comparison.target == (first > second) + 0.5 * (first == second)


def test_a_run_folder_brings_its_own_backbone(run_folder: Path, tiny_folder: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "more.jsonl", [{"prompt": f"P{n}", "chosen": "a " * 9, "rejected": "b"} for n in range(5)])
    record = fit_judge(tmp_path / "judge", [str(file), str(run_folder)], head="bradley-terry")
    assert record.backbone.model == str((tiny_folder / "policy").resolve())
    assert record.data["prompts"] == 17
    assert record.held_out.length_baseline.value == 1
    assert record.held_out.triples > 0
    assert record.held_out.cyclic_triples == 0  # an order has no cycle


def test_a_run_can_be_judged_by_what_an_earlier_one_taught(run_folder: Path, tiny_folder: Path, tmp_path: Path) -> None:
    fit_judge(tmp_path / "judge", [str(run_folder)], head="general")
    oracle = {"kind": "preference_model", "folder": str(tmp_path / "judge")}
    changes: dict[str, Any] = {"sampling": {"engine": "scripted"}, "oracle": oracle, "pairs": {"rule": "best_worst"}}
    recipe = parse_recipe(tiny_recipe(tiny_folder, **changes) | {"folder": str(tmp_path / "runs")})
    with Run.open(recipe) as run:
        judgments = judge(run, sample(run, 1))
        assert [j.outcome for _, _, j in judgments] == ["ok"] * 12
        assert run.stage(1, "judge").record()["facts"]["cost_usd"] is None
        assert make_pairs(run, judgments)


# ---- bad input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"prompt": None}, r"data\.jsonl:3: column 'prompt': missing"),
        ({"prompt": []}, r"column 'prompt': list '\[\]'; accepted: a string"),
        ({"prompt": [{"role": "judge", "content": "x"}]}, r"column 'prompt': dict .*roles system, user, assistant"),
        ({"prompt": [{"role": "assistant", "content": "x"}]}, "the last message is the assistant's"),
        ({"rejected": None}, "column 'rejected': missing; accepted: a string"),
        ({"chosen": "cut \ud83d"}, r"column 'chosen': half a character \(lone surrogate\) at position 4"),
        ({"prompt": "cut \ud83d"}, r"column 'prompt': half a character \(lone surrogate\) at position 4"),
        ({"chosen": 3}, "column 'chosen': int '3'; accepted: a string"),
        ({"chosen": None, "rejected": None}, "columns 'prompt'; accepted: chosen and rejected, or response_1"),
        (
            {"chosen": None, "rejected": None, "response_1": "a", "response_2": "b", "preference": 1.5},
            r"data\.jsonl:3: column 'preference': float '1.5'; accepted: a number from 0 to 1",
        ),
        (
            {"chosen": None, "rejected": None, "response_1": "a", "response_2": "b", "preference": "better"},
            "column 'preference': str 'better'",
        ),
        (
            {"chosen": None, "rejected": None, "response_1": "a", "response_2": "b", "preference": True},
            "column 'preference': bool 'True'",
        ),
    ],
)
def test_bad_rows_are_named(change: dict[str, Any], told: str, tmp_path: Path) -> None:
    lines = rows(4)
    lines[2] |= change
    with pytest.raises(PromptError, match=told):
        read_comparisons([str(write(tmp_path / "data.jsonl", lines))])


def test_bad_sources_are_named(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text("{no json\n")
    with pytest.raises(PromptError, match=r"data\.jsonl:1: not valid JSON"):
        read_comparisons([str(tmp_path / "data.jsonl")])
    with pytest.raises(
        OracleError, match=r"--from .*is no run folder \(it has no recipe.yaml\); accepted: a run folder"
    ):
        read_comparisons([str(tmp_path)])
    with pytest.raises(OracleError, match=r"--from 'nowhere\.jsonl': cannot be read"):
        read_comparisons(["nowhere.jsonl"])
    same = write(tmp_path / "same.jsonl", [{"prompt": "p", "chosen": "a", "rejected": "a"}])
    with pytest.raises(OracleError, match=r"no comparison of two answers in it .*the same text twice: 1"):
        read_comparisons([str(same)])
    with pytest.raises(OracleError, match="no source given"):
        read_comparisons([])


def test_bad_settings_are_named(tiny_folder: Path, tmp_path: Path) -> None:
    few, enough = write(tmp_path / "few.jsonl", rows(9)), write(tmp_path / "enough.jsonl", rows(20))
    policy = str(tiny_folder / "policy")
    with pytest.raises(OracleError, match="better side for 9 prompts; accepted: at least 10"):
        fit_judge(tmp_path / "judge", [str(few)], policy)
    with pytest.raises(OracleError, match="--backbone: none given"):
        fit_judge(tmp_path / "judge", [str(enough)])
    with pytest.raises(OracleError, match=r"backbone: './nowhere' is not a folder"):
        fit_judge(tmp_path / "judge", [str(enough)], "./nowhere")
    with pytest.raises(OracleError, match="--head is 'linear'; accepted: general, bradley-terry, auto"):
        fit_judge(tmp_path / "judge", [str(enough)], policy, "linear")
    with pytest.raises(OracleError, match="exists already"):
        fit_judge(tmp_path, [str(enough)], policy)
    long = [row | {"chosen": "x" * 300} for row in rows(20)]
    with pytest.raises(OracleError, match="left out, too long for the backbone: 20"):
        fit_judge(tmp_path / "judge", [str(write(tmp_path / "long.jsonl", long))], policy)
    assert not (tmp_path / "judge").exists()


# ---- the command ---------------------------------------------------------------------------------------------------------


def test_the_command_prints_the_report_and_the_gate_decides_its_exit(tiny_folder: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "data.jsonl", rows(40))
    args = ["--from", str(source), "--backbone", str(tiny_folder / "policy"), "--head", "bradley-terry"]
    done = CliRunner().invoke(app, ["fit-judge", str(tmp_path / "judge"), *args, "--min-accuracy", "0.5"])
    assert done.exit_code == 0, done.output
    for text in ("balanced accuracy", "95 %", "log loss", "Brier", "calibration", "cyclic", "longer"):
        assert text in done.output
    refused = CliRunner().invoke(app, ["fit-judge", str(tmp_path / "other"), *args, "--min-accuracy", "1"])
    assert refused.exit_code == 1
    assert "accepted: a lower bound of at least 1" in refused.output
    assert (tmp_path / "other" / "preference_model.json").is_file()
