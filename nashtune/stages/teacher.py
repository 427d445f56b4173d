"""Line 3 of Algorithm 2: the teacher's answer to each prompt, from wherever the recipe says."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from nashtune.judging.oracle import Oracle
from nashtune.judging.registry import open_oracle, wants_all_at_once
from nashtune.recipe import BestOfN, RemoteTeacher, identity
from nashtune.records import Finish, Prompt, Response
from nashtune.run import Run
from nashtune.sampling.defects import find_defects
from nashtune.sampling.engine import Request, SamplingParams
from nashtune.scale.local import Unit
from nashtune.seeds import content_hash, seed_for
from nashtune.stage import Stage
from nashtune.stages.candidates import Candidates, Group, PromptPart, Units
from nashtune.stages.endpoints import check_endpoints
from nashtune.stages.prepare import prompt_part
from nashtune.stages.sampling import draw, drawing, response_facts, scores_under_initial
from nashtune.stages.streaming import judged_alongside, judges_alongside
from nashtune.stages.work import (
    finish,
    initial_fingerprint,
    ledger_of,
    make_room,
    once,
    oracle_identity,
    payer_of,
    policy_of,
    resources_of,
    stage_units,
    unit_progress,
)
from nashtune.store import tables
from nashtune.store.files import create_once
from nashtune.store.objects import undone
from nashtune.together import together

Answers = Callable[[int, list[Prompt]], Awaitable[list[Response]]]


def sample(run: Run, iteration: int) -> Candidates:
    """K answers of policy pi_t-1 (or of pi_0, if the recipe says so) to iteration t's prompts, with the teacher's: the
    candidate sets to be judged.

    The teacher answers first, so that a judge behind a server can begin with the first finished unit of samples; where
    nobody waits for that, the policy does, which validation has just loaded.
    """
    part = prompt_part(run, iteration)
    sampler = 0 if run.recipe.sampling.policy == "initial" else iteration - 1
    k = run.recipe.sampling.k
    students, draw_them = drawing(
        run, iteration, "sample", part, sampler, f"train-{iteration}", k, "student", mixed=True
    )
    if not judges_alongside(run, validation=False):
        draw_them(lambda: "")
    teacher = teacher_group(run, iteration, "teacher", part)
    candidates = Candidates(iteration, part, (students, teacher) if teacher else (students,))
    with judged_alongside(run, candidates) as watch:
        draw_them(watch)
    return candidates


def teacher_group(run: Run, iteration: int, name: str, part: PromptPart) -> Group | None:
    """The teacher's answers to a part of the prompts; None where the recipe has no teacher."""
    teacher = run.recipe.teacher
    if teacher.kind == "none":
        return None
    stage = run.stage(iteration, name)
    source: Units | None = None
    inputs: tuple[Any, ...] = (part.fingerprint, initial_fingerprint(run), identity(teacher))
    if isinstance(teacher, BestOfN):
        pool = draw(run, iteration, f"{name}-pool", part, 0, f"{name}-{iteration}", teacher.n, "teacher")
        source = pool.responses
        inputs = (*inputs, source.key, oracle_identity(run, run.recipe.oracle, iteration), run.recipe.seed)
    units = stage_units(stage, inputs)

    def teach() -> dict[str, Any]:
        if source is not None:
            check_endpoints(run, iteration, run.recipe.oracle)
            make_room(run, run.recipe.oracle)
        return finish(_teach(run, iteration, stage, part, units, source))

    once(stage, inputs, teach)
    # Its samples are the initial policy's own, with log-probs where they are from this project's own forward pass.
    known = isinstance(teacher, BestOfN) and run.recipe.sampling.engine != "vllm"
    return Group("teacher", units, scores_under_initial(run, iteration, f"{name}-scores", part, units, known))


async def _teach(
    run: Run, iteration: int, stage: Stage, part: PromptPart, units: Units, pool: Units | None
) -> dict[str, Any]:
    work = [Unit(index, part.file, units.file(index)) for index in range(part.units)]
    oracle = open_oracle(run.recipe.oracle, resources_of(run, iteration)) if pool else None
    answer = _best_of_pool(run, oracle, pool) if oracle and pool else _Answerer(run, iteration).answers
    with stage.clock() as tick, unit_progress(f"iteration {iteration}: {stage.name}", work, part) as advance:

        async def one(unit: Unit) -> None:
            prompts = tables.read(Prompt, unit.source, unit.index)
            create_once(unit.target, tables.encode(Response, await answer(unit.index, prompts)))
            advance(len(prompts), "")
            tick()

        todo = undone(work)
        try:
            if pool and wants_all_at_once(run.recipe.oracle):
                await together(map(one, todo))
            else:
                for unit in todo:
                    await one(unit)
        finally:
            if oracle:
                await oracle.aclose()
    return response_facts(units, part)


def _best_of_pool(run: Run, oracle: Oracle, pool: Units) -> Answers:
    """Best of N by the oracle from the initial policy's samples; ties go to the earlier sample, and so does a prompt on
    which the oracle has no word."""

    async def answers(index: int, prompts: list[Prompt]) -> list[Response]:
        drawn: dict[str, list[Response]] = {prompt.id: [] for prompt in prompts}
        for response in tables.read(Response, pool.file(index)):
            drawn[response.prompt_id].append(response)

        async def best(prompt: Prompt) -> Response:
            candidates = drawn[prompt.id]
            judgment = await oracle.judge(prompt, candidates, seed_for(run.recipe.seed, "best of n", prompt.id))
            values = judgment.scores if judgment.scores is not None else judgment.win_rates()
            known = (
                [(-(v if v is not None else float("-inf")), k) for k, v in enumerate(values)]
                if judgment.outcome == "ok"
                else []
            )
            chosen = candidates[min(known)[1] if known else 0]
            return chosen.replace(source="teacher", id=content_hash("teacher", chosen.id))

        return await together(best(prompt) for prompt in prompts)

    return answers


class _Answerer:
    """Teachers that answer a prompt directly: a column of the data, a remote model, the scripted engine."""

    def __init__(self, run: Run, iteration: int):
        self.iteration = iteration
        self.teacher = run.recipe.teacher
        self.run = run
        self.scripted = run.recipe.sampling.engine == "scripted"
        if not self.scripted:
            from nashtune.model.loading import end_token_ids, load_tokenizer

            self.tokenizer = load_tokenizer(policy_of(run, 0))
            self.end = end_token_ids(policy_of(run, 0), self.tokenizer)[:1]

    async def answers(self, _: int, prompts: list[Prompt]) -> list[Response]:
        texts = await asyncio.to_thread(self._texts, prompts)
        return [self._response(prompt, text, finish) for prompt, (text, finish) in zip(prompts, texts, strict=True)]

    def _texts(self, prompts: list[Prompt]) -> list[tuple[str, Finish]]:
        if self.teacher.kind == "column":
            finish: Finish = "stop"
            return [(prompt.teacher or "", finish) for prompt in prompts]
        requests = [Request(p.id, p.messages, (), (seed_for(self.run.recipe.seed, "teacher", p.id),)) for p in prompts]
        if isinstance(self.teacher, RemoteTeacher):
            from nashtune.sampling.remote import RemoteEngine

            engine = RemoteEngine(self.teacher.engine, ledger_of(self.run), payer_of(self.run, self.iteration))
            params = SamplingParams(self.teacher.temperature, 1.0, 0, self.teacher.max_new_tokens)
        else:
            from nashtune.sampling.scripted import ScriptedEngine

            engine = ScriptedEngine()
            params = SamplingParams(max_new_tokens=self.run.recipe.sampling.max_new_tokens)
        done: dict[str, tuple[str, Finish]] = {
            c.prompt_id: (c.text, c.finish) for c in engine.generate(requests, params)
        }
        return [done[prompt.id] for prompt in prompts]

    def _response(self, prompt: Prompt, text: str, finish: Finish) -> Response:
        """Tokenised once, here; the end token belongs to an answer that ended by itself."""
        ids: list[int] = (
            list(text.encode()) if self.scripted else self.tokenizer(text, add_special_tokens=False)["input_ids"]
        )  # type: ignore[assignment]
        if finish == "stop" and not self.scripted:
            ids = [*ids, *self.end]
        kind = self.teacher.kind
        name = f"{kind}:{self.teacher.engine.model}" if isinstance(self.teacher, RemoteTeacher) else kind
        return Response(
            id=content_hash("teacher", name, prompt.id, text),
            prompt_id=prompt.id,
            k=0,
            source="teacher",
            policy=name,
            text=text,
            token_ids=tuple(ids),
            finish=finish,
            defects=find_defects(text, finish, self.run.recipe.sampling.defects),
        )
