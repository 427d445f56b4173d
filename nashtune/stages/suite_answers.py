"""A policy's answers to a suite's prompts, turn by turn, by work units that resume."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nashtune.recipe import SamplingSection
from nashtune.records import Prompt, Response
from nashtune.sampling.on_vllm.target import Target
from nashtune.sampling.role import Sampler
from nashtune.scale.claims import close_stage, open_stage
from nashtune.scale.local import Unit
from nashtune.stage import Stage
from nashtune.stages.candidates import PromptPart, Units
from nashtune.stages.sampling import response_facts
from nashtune.stages.subject import Subject
from nashtune.stages.work import HEAD_START, once, stage_units, unit_progress
from nashtune.store import tables
from nashtune.store.files import digest_files, write_atomic
from nashtune.suites.suite import Answers, Decoding, Suite

CONTEXT_STEP = 512
"""vLLM's context is rounded up to a multiple of this, so that turns of about one length share an engine."""


def suite_answers(subject: Subject, suite: Suite, folder: Path) -> Answers:
    """The policy's answers to every item, those of an earlier attempt and of other evaluations of it included."""
    found: list[list[str]] | None = None
    for turn in range(1, suite.turns + 1):
        prompts = suite.prompts(turn, found or ())
        said = _turn(subject, suite, folder, turn, prompts)
        found = [[*before, text] for before, text in zip(found or [[] for _ in prompts], said, strict=True)]
    return found or []


def _turn(subject: Subject, suite: Suite, folder: Path, turn: int, prompts: Sequence[Prompt]) -> list[str]:
    """One turn's texts. Items answered alike (at one temperature) are drawn together."""
    groups: dict[Decoding, list[int]] = {}
    for item in range(len(prompts)):
        groups.setdefault(suite.decoding(item), []).append(item)
    texts = [""] * len(prompts)
    for number, (decoding, items) in enumerate(groups.items(), 1):
        name = f"answers-{turn}" if len(groups) == 1 else f"answers-{turn}-{number}"
        drawn = _draw(subject, folder, name, decoding, [prompts[item] for item in items])
        for item, text in zip(items, drawn, strict=True):
            texts[item] = text
    return texts


def _draw(subject: Subject, folder: Path, name: str, decoding: Decoding, prompts: list[Prompt]) -> list[str]:
    part = _part(folder / f"{name}.parquet", prompts, subject.sampling.unit_prompts)
    stage = Stage(folder, name, subject.shared, _on_store(subject, folder))
    role = _sampler(subject, decoding, prompts)
    inputs = (part.fingerprint, role.identity())
    units = stage_units(stage, inputs)

    def draw() -> dict[str, Any]:
        redone = _run_units(subject, f"{subject.title}: {folder.parent.name} {name}", stage, role, part, units)
        return response_facts(units, part) | redone

    once(stage, inputs, draw)
    return [answer.text for index in range(part.units) for answer in tables.read(Response, units.file(index))]


def _on_store(subject: Subject, folder: Path) -> Callable[[], Path] | None:
    """The folder of this evaluation on the store; inside it come the policy's place and the stage, as in ``folder``."""
    store = subject.store
    return None if store is None else lambda: store() / subject.folder.name / folder.parent.name


def _part(file: Path, prompts: list[Prompt], unit_prompts: int) -> PromptPart:
    if not file.exists():
        write_atomic(file, tables.encode(Prompt, prompts, row_group=unit_prompts))
    count, units = tables.shape(file)
    return PromptPart(file, digest_files([file]), units, count)


def _sampler(subject: Subject, decoding: Decoding, prompts: Sequence[Prompt]) -> Sampler:
    own = subject.sampling
    sampling = SamplingSection(
        engine=own.engine,
        k=1,
        temperature=decoding.temperature,
        top_p=decoding.top_p,
        max_new_tokens=decoding.max_new_tokens,
        stop_tokens=own.stop_tokens,
        dtype=own.dtype,
        slots=own.slots,
        unit_prompts=own.unit_prompts,
        vllm=own.vllm,
    )
    target = subject.target()
    return Sampler(
        policy=subject.policy(),
        sampling=sampling,
        n=1,
        seed=subject.seed,
        purpose="evaluate",
        is_initial=False,
        served=None if target is None else _with_room(target, subject, decoding, prompts),
    )


def _with_room(target: Target, subject: Subject, decoding: Decoding, prompts: Sequence[Prompt]) -> Target:
    """With a context that holds the longest prompt and its answer, unless the recipe says how much there is."""
    from nashtune.model.loading import load_tokenizer, render

    if subject.sampling.vllm.max_model_len is not None:
        return replace(target, context=subject.sampling.vllm.max_model_len)
    tokenizer = load_tokenizer(target.policy)
    needed = max(len(render(tokenizer, prompt.messages)) for prompt in prompts) + decoding.max_new_tokens
    return replace(target, context=-(-needed // CONTEXT_STEP) * CONTEXT_STEP)


def _run_units(
    subject: Subject, title: str, stage: Stage, role: Sampler, part: PromptPart, units: Units
) -> dict[str, int]:
    work = [Unit(index, part.file, units.file(index), stage=stage.folder) for index in range(part.units)]
    usual = part.prompts / max(1, part.units)
    open_stage(stage.folder, part.units, stage.names())
    if subject.run is not None:
        subject.run.take(HEAD_START)  # another model is about to be loaded
    with stage.clock() as tick, unit_progress(title, work, part) as advance:
        tokens = 0.0
        for _, facts in subject.engine().run(role, work):
            tokens += facts.get("tokens", 0)
            tick()
            advance(int(facts.get("prompts", usual)), f"{tokens / max(tick.elapsed, 1e-9):.0f} tokens/s")
    return {"units_redone": close_stage(stage.folder)}
