"""The stages between sampling and training as a pipeline: the same results as one after the other, in bounded memory."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tiny_chat import tiny_recipe, write_prompts
from tiny_pairs import learnable_pairs, tiny_job, tiny_policy

from nashtune.errors import TrainingError
from nashtune.judging.scripted import ScriptedOracle
from nashtune.loop import improve
from nashtune.model import loading
from nashtune.pairs import replay
from nashtune.recipe import Recipe, ReplaySection, parse_recipe
from nashtune.records import Judgment, Pair
from nashtune.run import Run
from nashtune.stages import judging
from nashtune.stages.judging import UNITS_AT_ONCE, judge
from nashtune.stages.pairing import make_pairs
from nashtune.stages.teacher import sample
from nashtune.stages.training import train
from nashtune.stages.training_order import ReplayInTurn
from nashtune.training.head_start import HeadStart, plan_of
from nashtune.training.packing import TrainingPair, cuts_in_order, plan_steps, settled
from nashtune.training.trainer import train_policy

Wait = Callable[..., None]
SLOW = {"kind": "scripted", "latency_s": 0.02, "concurrency": 4}


def recipe(folder: Path, name: str, **changes: Any) -> Recipe:
    """Twelve prompts in three units, judged by a judge slower than the sampler."""
    train = {"batch_size": 4, "order": "judged"}
    return parse_recipe(tiny_recipe(folder, **({"oracle": SLOW, "train": train} | changes)) | {"name": name})


def with_runs_in(folder: Path, tiny_folder: Path, prompts: int = 40) -> Path:
    """A folder of the test's own, with the tiny policy."""
    (folder / "policy").symlink_to(tiny_folder / "policy")
    write_prompts(folder / "prompts.jsonl", prompts)
    return folder


def results(run: Run) -> dict[str, str]:
    """Fingerprints of what every stage made."""
    return {
        f"{t} {name}": run.stage(t, name).output
        for t in range(run.last_iteration() + 1)
        for name in ("sample", "judge", "pairs", "train", "validate-judge")
        if run.stage(t, name).file.exists()
    }


@pytest.fixture
def last_unit_waits(monkeypatch: pytest.MonkeyPatch):
    """Has the judge, where it works beside the sampler, end its last unit only when something has happened (or after 20 s)."""
    commit = judging.create_once

    def wait_for(happened: Callable[[], bool], last: int = 2) -> None:
        def waiting(target: Path, data: bytes) -> bool:
            beside = threading.current_thread() is not threading.main_thread()
            if beside and target.parent.name == "judge" and target.name.startswith(f"{last:06d}"):
                deadline = time.monotonic() + 20
                while not happened() and time.monotonic() < deadline:
                    time.sleep(0.01)
            return commit(target, data)

        monkeypatch.setattr(judging, "create_once", waiting)

    return wait_for


# ---- equal to the last bit ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("order", "objective", "precision"),
    [("judged", "dno-prct", "autocast"), ("shuffled", "dno-prct", "float32"), ("judged", "dpo", "float32")],
)
def test_the_overlapped_run_gives_what_the_staged_one_does(
    order: str,
    objective: str,
    precision: str,
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    last_unit_waits: Wait,
) -> None:
    folder = with_runs_in(tmp_path, tiny_folder)
    early: Counter[str] = Counter()
    last_unit_waits(lambda: order == "shuffled" or early["batches"] > 0)
    compute = HeadStart.step

    def counted(self: HeadStart) -> bool:
        did = compute(self)
        early["batches"] += did
        return did

    monkeypatch.setattr(HeadStart, "step", counted)
    found = {}
    for overlap in (False, True):
        early.clear()
        settings = {"train": {"order": order, "batch_size": 4, "precision": precision}, "replay": {"fraction": 0.5}}
        settings |= {"objective": {"name": objective}, "scale": {"overlap": overlap}}
        improve(recipe(folder, f"overlap-{overlap}", **settings))
        found[overlap] = results(Run.read(folder / "runs" / f"overlap-{overlap}"))
        expected = overlap and order == "judged"
        assert (early["batches"] > 0) == expected
    assert found[True] == found[False]
    assert len(found[True]) == 11


def test_what_was_done_early_is_not_done_again(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last_unit_waits: Wait
) -> None:
    folder = with_runs_in(tmp_path, tiny_folder)
    stored = (folder / "runs" / "once" / "iteration-1" / "train" / "references").glob
    last_unit_waits(lambda: any(stored("*/*.parquet")))
    loads: Counter[str] = Counter()
    load = loading.AutoModelForCausalLM.from_pretrained

    def counted(where: Any, **options: Any) -> Any:
        loads[str(options["dtype"])] += 1
        return load(where, **options)

    monkeypatch.setattr(loading.AutoModelForCausalLM, "from_pretrained", counted)
    with Run.open(recipe(folder, "once", sampling={"dtype": "bfloat16"})) as run:
        candidates = sample(run, 1)
        assert loads == {"torch.bfloat16": 1, "torch.float32": 1}, "the sampler's model, then the trainer's"
        judgments = judge(run, candidates)
        shards = sorted(run.stage(1, "train").folder.glob("references/*/*.parquet"))
        written = [file.stat().st_mtime_ns for file in shards]
        assert shards
        train(run, 1, make_pairs(run, judgments))
        assert [file.stat().st_mtime_ns for file in shards] == written
        assert loads == {"torch.bfloat16": 1, "torch.float32": 1}
        assert set(shards) < set(run.stage(1, "train").folder.glob("references/*/*.parquet"))


def test_one_policy_is_loaded_once_between_validation_and_training(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = with_runs_in(tmp_path, tiny_folder)
    loads: list[str] = []
    load = loading.AutoModelForCausalLM.from_pretrained

    def listed(where: Any, **options: Any) -> Any:
        loads.append(f"{Path(where).parent.name} {options['dtype']}".removeprefix("torch."))
        return load(where, **options)

    monkeypatch.setattr(loading.AutoModelForCausalLM, "from_pretrained", listed)
    improve(recipe(folder, "loads", oracle={"kind": "scripted"}, sampling={"dtype": "bfloat16"}))
    first, one, two = tiny_folder.name, "iteration-1", "iteration-2"
    sampled, trained = "torch.bfloat16", "torch.float32"
    # pi_0 samples for validation and iteration 1, is trained; pi_1 for validation and iteration 2; pi_0 is the teacher.
    assert loads == [f"{first} {sampled}", f"{first} {trained}", f"{one} {sampled}", f"{first} {sampled}",
                     f"{one} {trained}", f"{two} {sampled}"]  # fmt: skip


# ---- bounded memory ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompts", [40, 160])
def test_sets_and_pairs_in_flight_are_bounded_whatever_the_number_of_prompts(
    prompts: int, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last_unit_waits: Wait
) -> None:
    folder = with_runs_in(tmp_path, tiny_folder, prompts + 10)
    under_way: set[str] = set()
    most: Counter[str] = Counter()
    last_unit_waits(lambda: most["pairs"] > 0, last=prompts // 4 - 1)
    verdict, add = ScriptedOracle.judge, HeadStart.add

    async def watched(self: ScriptedOracle, prompt: Any, candidates: Any, seed: int) -> Judgment:
        under_way.add(prompt.id)
        most["sets"] = max(most["sets"], len(under_way))
        found = await verdict(self, prompt, candidates, seed)
        under_way.discard(prompt.id)
        return found

    def held(self: HeadStart, pairs: list[TrainingPair]) -> None:
        add(self, pairs)
        most["pairs"] = max(most["pairs"], self.waiting)

    monkeypatch.setattr(ScriptedOracle, "judge", watched)
    monkeypatch.setattr(HeadStart, "add", held)
    changes = {"oracle": SLOW | {"latency_s": 0.02}, "prompts": {"per_iteration": prompts}, "teacher": {"kind": "none"}}
    settings = recipe(folder, "bounded", iterations=1, sampling={"max_new_tokens": 2, "k": 4}, **changes)
    with Run.open(settings) as run:
        sample(run, 1)
        assert run.stage(1, "judge").count() == prompts / 4
    assert most["sets"] <= UNITS_AT_ONCE * 4
    assert 0 < most["pairs"] <= 2 * 4 + 4 * 2, "two batches, and what a unit of four prompts gives at two pairs each"


def test_no_more_judgments_are_under_way_than_the_scripted_judge_allows() -> None:
    section = recipe_oracle(latency_s=0.01, concurrency=3)
    most = now = 0

    async def counted(seconds: float) -> None:
        nonlocal most, now
        now += 1
        most = max(most, now)
        await sleep(seconds)
        now -= 1

    from nashtune.judging import scripted
    from nashtune.records import Message, Prompt, Response

    prompt = Prompt.make((Message("user", "?"),))
    answers = [Response(str(n), prompt.id, n, "student", "p", "word " * n, (1,), "stop") for n in range(2)]

    async def all_of_them() -> list[Judgment]:
        oracle = ScriptedOracle(section)
        return list(await asyncio.gather(*(oracle.judge(prompt, answers, n) for n in range(10))))

    sleep = asyncio.sleep
    scripted.asyncio.sleep, kept = counted, scripted.asyncio.sleep  # type: ignore[assignment]
    try:
        slow = asyncio.run(all_of_them())
    finally:
        scripted.asyncio.sleep = kept
    assert most == 3
    assert slow == [asyncio.run(ScriptedOracle(recipe_oracle()).judge(prompt, answers, n)) for n in range(10)]


def recipe_oracle(**changes: Any) -> Any:
    from nashtune import recipe as sections

    return sections.ScriptedOracle(kind="scripted", **changes)


# ---- batches before all pairs are known ----------------------------------------------------------------------------------------


def test_first_batches_are_cut_the_same_whatever_comes_later() -> None:
    for size in (1, 2, 3, 16):
        for count in range(1, 70):
            cuts = cuts_in_order(count, size)
            sizes = [b - a for a, b in pairwise(cuts)]
            assert sum(sizes) == count
            assert len(sizes) == -(-count // size)
            assert max(sizes) <= size
            assert len(sizes) < 2 or min(sizes) >= size // 2
            for more in (0, 1, size, 3 * size + 1):
                assert cuts_in_order(count + more, size)[: settled(count, size) + 1] == cuts[: settled(count, size) + 1]


def test_replayed_pairs_come_in_turn_and_are_those_that_replay_chooses() -> None:
    draw = random.Random(0)

    def pair(name: str, t: int) -> Pair:
        return Pair(name, name, name, name, "S>S", 1.0, 0.0, None, None, t)

    earlier = [[pair(f"{t}-{n}", t) for n in range(30)] for t in (2, 1)]
    for fraction in (0.0, 0.3, 1.0, "all"):
        section = ReplaySection(fraction=fraction)
        turn, found, new = ReplayInTurn(section, earlier, 7), [], 0
        for _ in range(20):
            more = draw.randint(0, 4)
            new += more
            found += turn.due(more)
            assert {p.id for p in found} == {p.id for p in replay(section, new, earlier, 7)}
        assert len({p.id for p in found}) == len(found)


def test_early_reference_batches_are_those_of_the_whole_plan(tmp_path: Path) -> None:
    policy, pairs = tiny_policy(tmp_path / "zero"), learnable_pairs(18)
    whole = tiny_job(tmp_path / "whole", policy, pairs, order="judged", precision="bfloat16")
    early = tiny_job(tmp_path / "early", policy, pairs, order="judged", precision="bfloat16")
    start = HeadStart(early)
    start.load()
    for pair in pairs:
        start.add([pair])
        while start.step():
            pass
    stored = list(early.folder.glob("references/*/*.parquet"))
    assert len(stored) == 3  # of the five batches the last two are cut when all is known
    train_policy(early, head_start=start)
    train_policy(whole)
    assert (early.output / "model.safetensors").read_bytes() == (whole.output / "model.safetensors").read_bytes()
    assert {f.name for f in stored} < {f.name for f in whole.folder.glob("references/*/*.parquet")}
    assert plan_of(whole, pairs).batches != plan_steps(
        pairs, batch_size=4, microbatch_tokens=64, epochs=1, seed=0
    ).batches  # fmt: skip


def test_a_pair_that_does_not_fit_is_refused_early(tmp_path: Path) -> None:
    policy, pairs = tiny_policy(tmp_path / "zero"), learnable_pairs(8)
    pairs[2] = TrainingPair("long", (5,) * 4000, (6,), (7,), 1.0, 0.0, None, None)
    start = HeadStart(tiny_job(tmp_path, policy, pairs, order="judged"))
    start.load()
    start.add(pairs)
    with pytest.raises(TrainingError, match="pair long: 4001 tokens"):
        start.step()
