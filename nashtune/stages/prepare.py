"""The prompts of a run: read, split and kept once, so that a file that changes later changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from nashtune.prompt_stream import stream_prompts
from nashtune.prompts import load_prompts
from nashtune.records import Message, Prompt
from nashtune.run import Run
from nashtune.stages.candidates import PromptPart
from nashtune.stages.work import policy_of
from nashtune.store import tables
from nashtune.store.files import digest_files, read_json, write_atomic, write_json


def prompt_part(run: Run, iteration: int) -> PromptPart:
    """The part of the prompts that iteration t >= 1 trains on, disjoint from all others."""
    file = prompt_folder(run) / f"part-{iteration}.parquet"
    if not file.exists():  # iterations were raised after the run began
        _split(run)
    return _part(file)


def validation_part(run: Run) -> PromptPart:
    """The held-out prompts."""
    return _part(prompt_folder(run) / "validation.parquet")


def prompt_folder(run: Run) -> Path:
    """Where the prompts lie, made at first use."""
    folder = run.folder / "prompts"
    if not (folder / "report.json").exists():
        _split(run)
    return folder


def _split(run: Run) -> None:
    recipe, folder = run.recipe, run.folder / "prompts"
    size = recipe.sampling.unit_prompts
    if recipe.prompts.streaming:
        counter = _token_counter(run)
        report = stream_prompts(recipe.prompts, recipe.iterations, recipe.seed, folder, size, counter)
        write_json(folder / "report.json", asdict(report))
        return
    split = load_prompts(recipe.prompts, recipe.iterations, recipe.seed, _token_counter(run))
    named = {f"part-{t}": part for t, part in enumerate(split.parts, 1)} | {"validation": split.validation}
    for name, prompts in named.items():
        file = folder / f"{name}.parquet"
        data = tables.encode(Prompt, prompts, row_group=size)
        if not file.exists():
            write_atomic(file, data)
    write_json(folder / "report.json", asdict(split.report))


def _token_counter(run: Run) -> Callable[[Sequence[Message]], int] | None:
    if run.recipe.sampling.engine == "scripted":
        return None
    from nashtune.model.loading import load_tokenizer, render

    tokenizer = load_tokenizer(policy_of(run, 0))
    return lambda messages: len(render(tokenizer, tuple(messages)))


def _part(file: Path) -> PromptPart:
    prompts, units = tables.shape(file)
    return PromptPart(file, digest_files([file]), units, prompts)


def prompt_report(run: Run) -> dict[str, object]:
    """How the prompts were read: counts of what was kept and left out, and why."""
    return read_json(prompt_folder(run) / "report.json")
