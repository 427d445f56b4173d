"""Prompts split on disk: those that ``load_prompts`` gives, whatever the order of the rows, and after a kill."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_chat import tiny_recipe

from nashtune import prompt_spill, prompt_stream
from nashtune.errors import PromptError, RecipeError
from nashtune.planning.lengths import local_lengths
from nashtune.planning.work import read_work
from nashtune.prompt_stream import SPILL, stream_prompts
from nashtune.prompts import PromptReport, PromptSplit, load_prompts
from nashtune.recipe import PromptsSection, parse_recipe
from nashtune.records import Message, Prompt
from nashtune.run import Run
from nashtune.stages.prepare import prompt_part, prompt_report, validation_part
from nashtune.store import tables

UNIT = 16


@pytest.fixture(autouse=True)
def few_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    """As fits a few prompts; the run and the plan below have the usual number."""
    monkeypatch.setattr(prompt_spill, "BITS", 3)


def rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Many of them repeated: as they are, with other white space, or with another teacher's answer."""
    generator = random.Random(seed)
    return [
        {
            "prompt": f"Question {generator.randrange(count)}{' ' * generator.randrange(3)} about “kites”?",
            "gold": f"answer {generator.randrange(3)}",
            "topic": generator.choice([None, "kites"]),
        }
        for _ in range(count)
    ]


def write(file: Path, values: Sequence[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(value) + "\n" for value in values))
    return file


def section(source: Path, **settings: Any) -> PromptsSection:
    usual = {"teacher_column": "gold", "dedupe": {"near": None}, "validation": {"count": 30}, "streaming": True}
    return PromptsSection.model_validate({"source": str(source), **usual, **settings})


def streamed(settings: PromptsSection, folder: Path, iterations: int = 3, **rest: Any) -> PromptSplit:
    """What was written, read back."""
    report = stream_prompts(settings, iterations, 7, folder, UNIT, **rest)
    parts = tuple(tuple(tables.read(Prompt, folder / f"part-{t}.parquet")) for t in range(1, iterations + 1))
    assert sorted(f.name for f in folder.iterdir()) == [
        *(f"part-{t}.parquet" for t in range(1, iterations + 1)),
        "validation.parquet",
    ]
    return PromptSplit(parts, tuple(tables.read(Prompt, folder / "validation.parquet")), report)


def length(messages: Sequence[Message]) -> int:
    return sum(len(message.content) for message in messages)


@pytest.mark.parametrize(
    ("settings", "counted"),
    [
        ({}, False),
        ({"per_iteration": 50}, False),
        ({"dedupe": {"near": None, "exact": False}}, False),
        ({"max_prompt_tokens": 29}, True),
        ({"max_prompt_tokens": 29, "per_iteration": 50, "dedupe": {"near": None, "exact": False}}, True),
    ],
    ids=str,
)
def test_streaming_gives_what_memory_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], counted: bool
) -> None:
    """Also where every few rows go to disk."""
    monkeypatch.setattr(prompt_spill, "HELD_ROWS", 100)
    source = write(tmp_path / "p.jsonl", rows(1500))
    counter = length if counted else None
    wanted = load_prompts(section(source, **settings), 3, 7, counter)
    assert wanted.report.exact_duplicates > 100
    assert streamed(section(source, **settings), tmp_path / "out", count_tokens=counter) == wanted
    shape = tables.shape(tmp_path / "out" / "part-1.parquet")
    assert shape == (len(wanted.parts[0]), -(-len(wanted.parts[0]) // UNIT))
    groups = [tables.read(Prompt, tmp_path / "out" / "part-1.parquet", group) for group in range(shape[1])]
    assert [len(group) for group in groups[:-1]] == [UNIT] * (shape[1] - 1)


def test_streaming_gives_what_memory_gives_with_a_source_of_held_out_prompts_and_evaluations(tmp_path: Path) -> None:
    train, held = write(tmp_path / "p.jsonl", rows(1500)), write(tmp_path / "held.jsonl", rows(300, seed=1))
    shared = "Question 5 and thirteen words that no other prompt here has in this same order at all"
    write(tmp_path / "p.jsonl", [*rows(1500), {"prompt": f"Please: {shared}!", "gold": "a"}])
    evaluation = write(tmp_path / "evaluation.jsonl", [{"prompt": shared}])
    settings = {
        "validation": {"count": 30, "source": str(held)},
        "contamination": {"against": [str(evaluation)]},
        "max_prompt_tokens": 200,
    }
    wanted = load_prompts(section(train, **settings), 2, 7, length)
    assert wanted.report.overlap > 0
    assert wanted.report.contaminated == 1
    assert wanted.report.unused > 0
    assert streamed(section(train, **settings), tmp_path / "out", 2, count_tokens=length) == wanted


def test_the_order_of_the_rows_changes_nothing_but_where_they_stood(tmp_path: Path) -> None:
    values = rows(800)
    found = []
    for name, order in (("a", values), ("b", values[::-1])):
        split = streamed(section(write(tmp_path / f"{name}.jsonl", order)), tmp_path / name)
        found.append(
            [[(p.id, p.messages, p.teacher, p.topic) for p in part] for part in (*split.parts, split.validation)]
        )
    assert found[0] == found[1]


def test_prompts_that_go_to_several_rows_keep_teacher_and_constraints(tmp_path: Path) -> None:
    values = [
        {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"Kite {n}? \u2028é"}],
         "constraints": [{"kind": "lowercase", "args": {}}] if n % 2 else []}
        for n in range(40)
    ]  # fmt: skip
    settings = section(write(tmp_path / "p.jsonl", values), teacher_column=None, validation={"count": 4})
    split = streamed(settings, tmp_path / "out", 1)
    wanted = load_prompts(settings, 1, 7)
    both = [{p.id: p for part in (*s.parts, s.validation) for p in part} for s in (split, wanted)]
    assert both[0] == both[1]
    assert len(both[0]) == 40


def test_iterations_raised_later_leave_earlier_parts_as_they_are(tmp_path: Path) -> None:
    settings = section(write(tmp_path / "p.jsonl", rows(1500)), per_iteration=100)
    streamed(settings, tmp_path / "out", 2)
    before = {f.name: (f.stat().st_mtime_ns, f.read_bytes()) for f in (tmp_path / "out").iterdir()}
    more = streamed(settings, tmp_path / "out", 4)
    after = {f.name: (f.stat().st_mtime_ns, f.read_bytes()) for f in (tmp_path / "out").iterdir()}
    assert before.items() <= after.items()
    assert more == streamed(settings, tmp_path / "anew", 4)
    assert len({p.id for part in more.parts for p in part}) == 400


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"per_iteration": 400}, r"3 iterations with prompts\.per_iteration 400 need 1200 training prompts but \d+ are"),
        ({"validation": {"count": 5000}}, r"prompts\.validation\.count is 5000 but \d+ prompts are there \(rows read 1500"),
        ({"validation": {"count": 909}}, r"need 3 training prompts but \d are there"),
    ],
)  # fmt: skip
def test_too_few_prompts_leave_nothing_behind(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    settings = section(write(tmp_path / "p.jsonl", rows(1500)), **change)
    with pytest.raises(PromptError) as memory:
        load_prompts(settings, 3, 7)
    with pytest.raises(PromptError, match=told) as caught:
        stream_prompts(settings, 3, 7, tmp_path / "out", UNIT)
    assert str(caught.value) == str(memory.value)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("change", [{}, {"per_iteration": 300}])
def test_more_units_than_a_part_can_have_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    monkeypatch.setattr(prompt_stream, "MOST_UNITS", 10)
    settings = section(write(tmp_path / "p.jsonl", rows(1500)), **change)
    with pytest.raises(PromptError, match=r"unit_prompts is 16, .* more than 10 work units; accepted: (30|45) or more"):
        stream_prompts(settings, 2, 7, tmp_path / "out", UNIT)
    assert list((tmp_path / "out").glob("*")) == []


def test_a_bad_row_ends_it_with_its_place_or_is_counted(tmp_path: Path) -> None:
    values = rows(200)
    values[120] = {"prompt": " ", "gold": "x"}
    source = write(tmp_path / "p.jsonl", values)
    with pytest.raises(PromptError, match=r"p\.jsonl:121: .*empty"):
        stream_prompts(section(source), 1, 7, tmp_path / "out", UNIT)
    assert list((tmp_path / "out").iterdir()) == []
    split = streamed(section(source, on_bad_row="skip"), tmp_path / "out", 1)
    assert (split.report.read, split.report.bad) == (200, 1)
    assert split.report.bad_rows[0].startswith(f"{source}:121: ")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"dedupe": {}}, r"near duplicates \(dedupe\.near 0\.9\).*accepted: dedupe\.near null"),
        ({"source": "nashtune:constraints"}, r"'nashtune:constraints' is small"),
    ],
)
def test_what_streaming_cannot_do_is_refused_by_name(tiny_folder: Path, settings: dict[str, Any], told: str) -> None:
    prompts = {"dedupe": {"near": None}, "streaming": True} | settings
    with pytest.raises(RecipeError, match=rf"prompts[\s\S]*streaming is true[\s\S]*{told}"):
        parse_recipe(tiny_recipe(tiny_folder, prompts=prompts))


@pytest.mark.parametrize("inside", [False, True])
def test_a_list_that_has_to_be_read_whole_is_refused(tmp_path: Path, inside: bool) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "p.json").write_text(json.dumps(rows(100)))
    with pytest.raises(PromptError, match=r"p\.json: prompts\.streaming reads a row at a time.*accepted: \.jsonl"):
        stream_prompts(section(folder if inside else folder / "p.json"), 1, 7, tmp_path / "out", UNIT)


def test_streaming_left_out_is_not_part_of_a_recipes_identity(tiny_folder: Path) -> None:
    recipe = tiny_recipe(tiny_folder, prompts={"dedupe": {"near": None}})
    plain, written = parse_recipe(recipe), recipe["prompts"] | {"streaming": False}
    assert "streaming" not in plain.identity()["prompts"]
    assert parse_recipe(recipe | {"prompts": written}).identity_hash() == plain.identity_hash()
    assert parse_recipe(recipe | {"prompts": written | {"streaming": True}}).identity_hash() != plain.identity_hash()


def test_a_run_and_its_plan_stream_and_a_killed_split_starts_again(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    write(tmp_path / "p.jsonl", rows(3000))
    prompts = {"source": str(tmp_path / "p.jsonl"), "dedupe": {"near": None}, "per_iteration": 100, "streaming": True}
    settings = tiny_recipe(tiny_folder, prompts=prompts, sampling={"engine": "scripted"}) | {"folder": str(tmp_path)}
    recipe = parse_recipe(settings)
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(settings))
    killer = [
        sys.executable,
        str(Path(__file__).parent / "killed_at.py"),
        str(tmp_path / "tiny"),
        f"prompts/{SPILL}/pool/words-07*",
    ]
    killed = subprocess.run(
        [*killer, "run", str(tmp_path / "r.yaml")], capture_output=True, check=False, env=os.environ
    )
    assert killed.returncode == -signal.SIGKILL
    folder = tmp_path / "tiny" / "prompts"
    assert (folder / SPILL).is_dir()
    assert [f.name for f in folder.iterdir() if not f.name.startswith(".")] == []  # nothing that looks finished
    with Run.open(recipe) as run:
        parts = [prompt_part(run, 1), prompt_part(run, 2), validation_part(run)]
        report = prompt_report(run)
    assert sorted(f.name for f in folder.iterdir()) == [
        "part-1.parquet",
        "part-2.parquet",
        "report.json",
        "validation.parquet",
    ]
    wanted = load_prompts(recipe.prompts, 2, recipe.seed)
    assert [tuple(tables.read(Prompt, p.file)) for p in parts] == [*wanted.parts, wanted.validation]
    assert PromptReport(**{k: tuple(v) if isinstance(v, list) else v for k, v in report.items()}) == wanted.report  # type: ignore[arg-type]
    work = read_work(recipe, tmp_path / "none", local_lengths(recipe, None))
    assert (work.parts, work.validation, work.first) == ((100, 100), 8, wanted.parts[0])
