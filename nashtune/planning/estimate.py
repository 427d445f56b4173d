"""The estimate: pure arithmetic from prompts, lengths, prices and, where there are any, measured figures."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from nashtune import recipe as settings
from nashtune.judging.prices import find_price
from nashtune.judging.registry import hosted_in
from nashtune.planning.bills import (
    REPAIR_SHARE,
    RUBRIC_TOKENS,
    TURNED_SHARE,
    UNSURE_SHARE,
    WORST_BYTES_PER_TOKEN,
    Bill,
    Factors,
    Texts,
    judge_bills,
    teacher_bill,
)
from nashtune.planning.evaluations import evaluation_bills, evaluations_of
from nashtune.planning.lengths import Lengths, filler_text
from nashtune.planning.measured import Answers, Measured, references_of
from nashtune.planning.opened import loads
from nashtune.planning.start import Start
from nashtune.planning.unit_size import unit_advice
from nashtune.planning.work import Work
from nashtune.recipe import BestOfN, EngineSection, Recipe, RemoteTeacher
from nashtune.records import Prompt
from nashtune.summaries import AVERAGE

START = "start"
"""The row of what a run does before its first stage; only where a calibration has measured it."""
PAIRS_PER_PROMPT = 2.0
"""Where no run has shown how many pairs the rule finds (the paper's first iteration has about two)."""

MONEY_RESTS_ON = (
    "several replies to one prompt come from one call (a server that ignores n bills the prompt for each); nothing is found in "
    "the server's cache or in a ledger shared with other runs"
)
WORST_MEANS = (
    "at worst: every byte of a prompt is a token, every answer and reply has full length, every rubric reply is asked for again "
    f"as often as allowed ({WORST_BYTES_PER_TOKEN} bytes a token); what time-outs may cost is not in it"
)


@dataclass(frozen=True, slots=True)
class Row:
    """One stage of one iteration, by the model that is paid ("" for work on this machine and free oracles). ``items`` are
    prompts or candidate sets; ``tokens`` are computed here; ``seconds`` is None where no rate was measured."""

    iteration: int
    stage: str
    model: str = ""
    items: int = 0
    tokens: float = 0.0
    calls: float = 0.0
    prompt_tokens: float = 0.0
    completion_tokens: float = 0.0
    usd: float = 0.0
    """Expected, in the mode the engine is set to."""
    usd_sync: float = 0.0
    usd_batch: float = 0.0
    usd_worst: float = 0.0
    """What budgets reserve, in the mode the engine is set to."""
    seconds: float | None = None


class Estimator:
    """The rows of a recipe's run. Raises OracleError for an engine whose price is not known."""

    def __init__(
        self,
        recipe: Recipe,
        work: Work,
        lengths: Lengths,
        measured: Measured | None = None,
        answer_tokens: int | None = None,
    ):
        self.recipe, self.work, self.lengths = recipe, work, lengths
        self.measured = measured or Measured("nothing")
        self.student = self._answer(self.measured.student, recipe.sampling.max_new_tokens, answer_tokens)
        self.teacher = self._teacher()

    def _answer(self, found: Answers | None, longest: int, given: int | None = None) -> Answers:
        if found is not None and given is None:
            return found
        tokens = given or max(1, longest // 2)
        return Answers(0, tokens, len(self.lengths.filler(tokens)))

    def _teacher(self) -> Answers | None:
        teacher = self.recipe.teacher
        if teacher.kind == "none":
            return None
        if teacher.kind == "best_of_n":
            return self.measured.teacher or self.student
        longest = teacher.max_new_tokens if isinstance(teacher, RemoteTeacher) else self.recipe.sampling.max_new_tokens
        return self._answer(self.measured.teacher, longest)

    def texts(self, prompts: tuple[Prompt, ...]) -> Texts:
        """Stand-ins of the lengths expected, and at worst."""
        longest = self.lengths.filler(self.recipe.sampling.max_new_tokens)
        teacher = self.recipe.teacher
        column = self.teacher is None or teacher.kind == "column"
        limit = teacher.max_new_tokens if isinstance(teacher, RemoteTeacher) else self.recipe.sampling.max_new_tokens
        return Texts(
            lengths=self.lengths,
            prompts=prompts,
            student=filler_text(self.student.characters),
            longest_student=longest,
            teacher=None if column or self.teacher is None else filler_text(self.teacher.characters),
            longest_teacher=None if column else self.lengths.filler(limit),
        )

    @cached_property
    def train_texts(self) -> Texts:
        return self.texts(self.work.sample)

    @cached_property
    def held_out_texts(self) -> Texts:
        return self.texts(self.work.validation_sample)

    @property
    def teachers(self) -> int:
        return int(self.recipe.teacher.kind != "none")

    @cached_property
    def set_bills(self) -> list[Bill]:
        """What judging one training set takes, before any correction; [] where it is free."""
        return judge_bills(self.recipe.oracle, self.recipe.sampling.k, self.teachers, self.train_texts)

    @cached_property
    def correction(self) -> Factors:
        """From what was measured of this oracle's judgments of training sets."""
        judged = self.measured.judged
        if judged is None or not self.set_bills or not judged.prompt_tokens:
            return Factors()
        calls, prompt, completion = (
            sum(getattr(bill, name) for bill in self.set_bills)
            for name in ("calls", "prompt_tokens", "completion_tokens")
        )
        return Factors(judged.calls / calls, judged.prompt_tokens / prompt, judged.completion_tokens / completion)

    @property
    def start(self) -> Start | None:
        """What was measured of a run's start."""
        return self.measured.times.start if self.measured.times else None

    # ---- rows --------------------------------------------------------------------------------------------------------

    def rows(self) -> list[Row]:
        """Every stage of iterations 0..T, in the order of the run."""
        found: list[Row] = []
        if self.start is not None:
            found.append(Row(0, START, seconds=self.start.run))
        for t in range(self.recipe.iterations + 1):
            if t >= 1:
                prompts = self.work.parts[t - 1]
                models = 2 if self.recipe.sampling.mixture and t > 1 else 1
                found.append(self._sampling(t, "sample", prompts, self.recipe.sampling.k, models))
                found += self._teacher_rows(t, "teacher", prompts, self.train_texts)
                judge = self.recipe.judge(validation=False)
                found += self._judging(
                    t, "judge", prompts, self.recipe.sampling.k, self.teachers, self.train_texts, judge
                )
                found.append(self._training(t))
            found += [*self._validation(t), *self._evaluations(t)]
        if self.recipe.average == "weights":
            found += [*self._validation(AVERAGE), *self._evaluations(AVERAGE)]
        return found

    def _evaluations(self, t: int) -> list[Row]:
        """Answers and verdicts of each suite; its time is not known."""
        rows: list[Row] = []
        for section in evaluations_of(self.recipe, t):
            if (asks := section.asks()) is not None:
                tokens, name = asks.prompts * asks.turns * self.student.tokens, section.called
                rows.append(Row(t, f"{name} answers", items=asks.prompts * asks.turns, tokens=tokens))
                rows += self._paid(t, name, asks.calls, evaluation_bills(section, self.student.tokens), None)
        return rows

    def _validation(self, t: int) -> list[Row]:
        """Held-out sets: this policy, the earlier ones that it is compared with, and the teacher; and its divergence."""
        k, count, n = self.recipe.validate_.k, self.work.validation, self.recipe.validate_.kl_samples
        rows = [self._sampling(t, "validate-sample", count, k)]
        if t == 0:
            rows += self._teacher_rows(0, "validate-teacher", count, self.held_out_texts)
        place = self.recipe.iterations + 1 if t == AVERAGE else t
        students = k * (1 + len(self.recipe.rivals(place)))
        judge, anchors = self.recipe.judge(validation=True), self.recipe.health.anchors
        if anchors and t != AVERAGE:  # in the first iteration twice
            sets = anchors * (1 if t else 2)
            rows += self._judging(t, "anchor-judge", sets, k, self.teachers, self.held_out_texts, judge)
        rows += self._judging(t, "validate-judge", count, students, self.teachers, self.held_out_texts, judge)
        if t >= 1 and n and self.recipe.sampling.engine != "scripted":
            rows.append(self._sampling(t, "kl-sample", count, n))
            rate, times = self.measured.scoring_rate, self.measured.times
            seconds = count * n / rate if rate else None
            if times is not None:
                seconds = times.scoring(count, n, self.recipe.sampling.unit_prompts)
            rows += [Row(t, stage, items=count, seconds=seconds) for stage in ("kl-scores", "kl-scores-previous")]
        return rows

    def _sampling(self, t: int, stage: str, prompts: int, n: int, models: int = 1) -> Row:
        """``models`` are computed at each token; the measured rate is that of one."""
        tokens = prompts * n * self.student.tokens
        rate, times = self.measured.sampling_rate, self.measured.times
        seconds = models * tokens / rate if rate else None
        if times is not None:
            load = loads(self.recipe, t, stage)
            seconds = times.sampling(prompts, n, self.recipe.sampling.unit_prompts, models, load=load)
            if self.start is not None and (t, stage) == (0, "validate-sample"):
                seconds += self.start.crew  # the crew lives as long as the run
        return Row(t, stage, items=prompts, tokens=tokens, seconds=seconds)

    def _teacher_rows(self, t: int, stage: str, prompts: int, texts: Texts) -> list[Row]:
        teacher, rate = self.recipe.teacher, self.measured.teacher_rate
        if isinstance(teacher, BestOfN):
            pool = self._sampling(t, f"{stage}-pool", prompts, teacher.n)
            return [pool, *self._judging(t, stage, prompts, teacher.n, 0, texts, self.recipe.oracle)]
        if isinstance(teacher, RemoteTeacher) and self.teacher is not None:
            bill = teacher_bill(teacher, texts, self.teacher.tokens)
            return self._paid(t, stage, prompts, [bill], prompts / rate if rate else None)
        return []

    def _judging(
        self,
        t: int,
        stage: str,
        sets: int,
        students: int,
        teachers: int,
        texts: Texts,
        judge: settings.Oracle | None,
    ) -> list[Row]:
        """Sets judged by ``judge``; by nobody (None), they take no time. What was measured is the recipe's oracle's."""
        if judge is None:
            return [Row(t, stage, items=sets, seconds=0.0)]
        bills, judged, times = judge_bills(judge, students, teachers, texts), self.measured.judged, self.measured.times
        if judge != self.recipe.oracle:
            return self._paid(t, stage, sets, bills, None)
        seconds = sets * judged.seconds if judged else None
        if seconds is None and times is not None:
            seconds = times.judging(sets, students + teachers)
        return self._paid(t, stage, sets, [bill.corrected(self.correction) for bill in bills], seconds)

    def _paid(self, t: int, stage: str, items: int, bills: list[Bill], seconds: float | None) -> list[Row]:
        """A row per model; the stage's time stands in its first row."""
        if not bills:
            return [Row(t, stage, items=items, seconds=seconds)]
        by_engine: dict[str, list[Bill]] = {}
        for bill in bills:
            by_engine.setdefault(bill.engine.model_dump_json(), []).append(bill.times(items, items))
        return [
            _paid_row(t, stage, items, same, seconds if place == 0 or seconds is None else 0.0)
            for place, same in enumerate(by_engine.values())
        ]

    def _training(self, t: int) -> Row:
        """New pairs and replayed ones, each the prompt with both answers, in every epoch; with their reference log-probs, whoever
        computes them."""
        recipe, work = self.recipe, self.work
        new = work.parts[t - 1] * self.pairs_per_prompt
        replay = recipe.replay
        older = [1.0 if replay.fraction == "all" else replay.fraction * replay.decay**n for n in range(t - 1)]
        tokens = new * (1 + sum(older)) * self.pair_tokens * recipe.train.epochs
        rate, times = self.measured.training_rate, self.measured.times
        seconds = tokens / rate if rate else None
        if times is not None:
            references = len(references_of(recipe))
            seconds = times.training(new * (1 + sum(older)), references, recipe.train.epochs)
            seconds += self.start.trainer if self.start is not None and t == 1 else 0.0
            if recipe.scale.references_by_workers:  # which load each policy, as they do to score answers
                seconds += references * times.load_scorer
        return Row(t, "train", items=round(new), tokens=tokens, seconds=seconds)

    @cached_property
    def prompt_tokens(self) -> float:
        """Mean length of a prompt."""
        return sum(self.lengths.messages(p.messages) for p in self.work.sample) / len(self.work.sample)

    @property
    def pair_tokens(self) -> float:
        """The prompt with both answers."""
        return self.prompt_tokens + 2 * self.student.tokens

    @property
    def pairs_per_prompt(self) -> float:
        if self.measured.pairs_per_prompt is not None:
            return self.measured.pairs_per_prompt
        return min(PAIRS_PER_PROMPT, self.recipe.pairs.max_per_prompt or PAIRS_PER_PROMPT)

    # ---- what it rests on ----------------------------------------------------------------------------------------------

    def assumptions(self) -> list[str]:
        """One sentence each, for the reader of the estimate."""
        m, found = self.measured, [self.work.how, self.lengths.how]
        seen = f"measured on {self.student.count} answers ({m.source})" if self.student.count else "assumed"
        found.append(f"the policy's answers have {self.student.tokens:.0f} tokens: {seen}")
        if self.teacher is not None and self.recipe.teacher.kind in ("remote", "column"):
            how = f"measured ({m.source})" if self.teacher.count else "half of max_new_tokens assumed"
            in_rows = self.recipe.teacher.kind == "column" and not self.teacher.count
            found.append(
                "the teacher's answers are those of the prompt data"
                if in_rows
                else f"the teacher's answers have {self.teacher.tokens:.0f} tokens: {how}"
            )
        if m.judged is not None and m.judged.prompt_tokens:
            cached = "cached prompt tokens are priced in full"
            found.append(
                f"a judgment takes {m.judged.calls:.2f} calls, {m.judged.prompt_tokens:.0f} prompt and "
                f"{m.judged.completion_tokens:.0f} reply tokens: measured on {m.judged.judgments} ({m.source}); {cached}"
            )
        elif self.set_bills:
            found.append(
                f"the judge's replies: rubric {RUBRIC_TOKENS} tokens an answer and {100 * REPAIR_SHARE:.0f} % asked for again; "
                f"cascade asks again on {100 * TURNED_SHARE:.0f} % of sets, with trust about {100 * UNSURE_SHARE:.0f} % at "
                "all; hidden reasoning tokens are not counted"
            )
        pairs = f"measured ({m.source})" if m.pairs_per_prompt is not None else "assumed"
        found.append(f"{self.pairs_per_prompt:.1f} new training pairs a prompt: {pairs}")
        if self.recipe.evaluate:
            found.append(
                "evaluations have the published data's sizes, answers as long as the policy's to the recipe's prompts, and no "
                "known time"
            )
        if m.times is not None:
            found += [f"seconds of {text}" for text in m.times.assumptions()]
            sampling = self.recipe.sampling
            models = 2 if sampling.mixture else 1
            found.append(unit_advice(m.times, max(self.work.parts), sampling.k, sampling.unit_prompts, models))
        if hosts := [host.model for oracle in self.recipe.oracles for host in hosted_in(oracle)]:
            found.append(
                f"{', '.join(dict.fromkeys(hosts))}: hosted, no dollars a token; its time is that of one's own machines"
            )
        if any(isinstance(b.engine, EngineSection) for b in self.set_bills) or self.recipe.teacher.kind == "remote":
            found += [MONEY_RESTS_ON, WORST_MEANS]
        return found


def _paid_row(t: int, stage: str, items: int, bills: list[Bill], seconds: float | None) -> Row:
    engine = bills[0].engine
    plain, batch = find_price(engine), find_price(engine, batch=True)
    price = batch if isinstance(engine, EngineSection) and engine.batch else plain
    prompt, completion = sum(b.prompt_tokens for b in bills), sum(b.completion_tokens for b in bills)
    worst = price.cost(sum(b.worst_prompt for b in bills), sum(b.worst_completion for b in bills))
    return Row(
        iteration=t,
        stage=stage,
        model=engine.model,
        items=items,
        calls=sum(b.calls for b in bills),
        prompt_tokens=prompt,
        completion_tokens=completion,
        usd=price.cost(prompt, completion),
        usd_sync=plain.cost(prompt, completion),
        usd_batch=batch.cost(prompt, completion),
        usd_worst=worst,
        seconds=seconds,
    )
