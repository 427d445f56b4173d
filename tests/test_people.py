"""People as the oracle: tasks out, votes in, nothing lost or taken for what it is not."""

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tiny_chat import tiny_recipe

from nashtune.errors import OracleError
from nashtune.judging.people import PeopleOracle
from nashtune.recipe import PeopleOracle as Section
from nashtune.recipe import parse_recipe
from nashtune.records import Judgment, Message, Prompt, Response
from nashtune.run import Run
from nashtune.stages.judging import judge
from nashtune.stages.teacher import sample

PROMPT = Prompt.make([Message("user", "What is rain?")])
ANSWERS = [Response(f"r{k}", PROMPT.id, k, "teacher" if k == 0 else "student", "t", f"answer {k}") for k in range(3)]


def oracle(folder: Path, votes: int = 1) -> PeopleOracle:
    return PeopleOracle(Section(kind="people", folder=str(folder), votes=votes, poll_s=0.01))


def task_of(folder: Path) -> dict:
    """The task as a person sees it, once it is there."""
    (file,) = (folder / "tasks").glob("*.json")
    return json.loads(file.read_text())


def vote(folder: Path, rows: list[dict | str], name: str = "ann.jsonl", end: str = "\n") -> None:
    (folder / "votes").mkdir(exist_ok=True)
    with (folder / "votes" / name).open("a") as stream:
        stream.write("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows) + end)


def judged(folder: Path, say, votes: int = 1, seed: int = 1) -> Judgment:
    """The judgment once ``say(task)``, called when the task is there, has voted."""

    async def run() -> Judgment:
        waiting = asyncio.create_task(oracle(folder, votes).judge(PROMPT, ANSWERS, seed))
        while not list((folder / "tasks").glob("*.json")):
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.05)
        assert not waiting.done()
        say(task_of(folder))
        return await asyncio.wait_for(waiting, 20)

    return asyncio.run(run())


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_scores_as_shown_become_preferences_in_the_candidates_order(tmp_path, seed):
    def say(task):
        worth = {"answer 0": 5, "answer 1": 2, "answer 2": 5}
        vote(tmp_path, [{"task": task["task"], "voter": "ann", "scores": [worth[a] for a in task["answers"]]}])

    found = judged(tmp_path, say, seed=seed)
    assert found.matrix == ((None, 1, 0.5), (0, None, 0), (0.5, 1, None))
    assert found.measures["voters"] == (1, 1, 1)
    assert sorted(found.order) == [0, 1, 2]


def test_a_task_tells_no_authors(tmp_path):
    judged(tmp_path, lambda t: vote(tmp_path, [{"task": t["task"], "voter": "a", "better": 0, "worse": 1}]))
    text = json.dumps(task_of(tmp_path))
    assert not any(word in text for word in ("teacher", "student", "r0"))


def test_it_waits_for_every_voter_and_counts_each_once(tmp_path):
    def say(task):
        places = {text: place for place, text in enumerate(task["answers"])}
        first = {"task": task["task"], "better": places["answer 1"], "worse": places["answer 0"]}
        second = {"task": task["task"], "better": places["answer 0"], "worse": places["answer 1"]}
        vote(tmp_path, [first | {"voter": "ann"}, first | {"voter": "ann"}, second | {"voter": "bob"}])
        vote(tmp_path, [first | {"voter": "cleo"}], "cleo.jsonl")

    found = judged(tmp_path, say, votes=3)
    assert found.matrix[1][0] == pytest.approx(2 / 3)
    assert found.matrix[2] == (None, None, None)
    assert found.measures["voters"] == (3, 3, 0)


def test_a_line_still_being_written_is_waited_for(tmp_path):
    def say(task):
        line = json.dumps({"task": task["task"], "voter": "ann", "better": 0, "worse": 2})
        vote(tmp_path, [line[:20]], end="")
        asyncio.get_running_loop().call_later(0.1, lambda: vote(tmp_path, [line[20:]]))

    assert judged(tmp_path, say).outcome == "ok"


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("{", "not valid JSON"),
        ({"voter": "a"}, "`task` and `voter`"),
        ({"task": "gone", "voter": "a", "better": 0, "worse": 1}, "task 'gone'"),
        ({"voter": "a", "scores": [1, 2]}, "a list of 3 numbers"),
        ({"voter": "a", "scores": [1, 2, "3"]}, "a list of 3 numbers"),
        ({"voter": "a", "better": 0, "worse": 3}, "worse 3"),
        ({"voter": "a", "better": 1, "worse": 1}, "two different places"),
    ],
)
def test_bad_votes_name_file_line_and_what_is_accepted(tmp_path, row, told):
    def say(task):
        unnamed = isinstance(row, dict) and "task" not in row and ("scores" in row or "better" in row)
        named = {"task": task["task"]} | row if unnamed else row
        vote(tmp_path, [named])

    with pytest.raises(OracleError, match=r"ann\.jsonl:1: ") as caught:
        judged(tmp_path, say)
    assert told in str(caught.value)


def test_a_run_shows_all_its_tasks_at_once(tiny_folder: Path, tmp_path: Path) -> None:
    """As many units as there are prompts, and nobody votes before the last task is there."""
    (tmp_path / "prompts.jsonl").write_bytes((tiny_folder / "prompts.jsonl").read_bytes())
    people = {"kind": "people", "folder": str(tmp_path / "people"), "votes": 1, "poll_s": 0.01}
    sections = {"sampling": {"engine": "scripted", "unit_prompts": 1}, "teacher": {"kind": "scripted"}}
    recipe = parse_recipe(tiny_recipe(tmp_path, **sections) | {"oracle": people})

    def votes_when_all_are_there() -> None:
        deadline = time.monotonic() + 60
        while len(files := list((tmp_path / "people" / "tasks").glob("*.json"))) < 12:
            assert time.monotonic() < deadline, f"{len(files)} of 12 tasks shown"
            time.sleep(0.01)
        tasks = [json.loads(file.read_text()) for file in files]
        rows = [{"task": t["task"], "voter": "ann", "better": 0, "worse": 1} for t in tasks]
        vote(tmp_path / "people", rows)

    with ThreadPoolExecutor(1) as thread, Run.open(recipe, tmp_path / "run") as run:
        voting = thread.submit(votes_when_all_are_there)
        judge(run, sample(run, 1))
        voting.result()
        assert run.stage(1, "judge").record()["facts"]["judgments"] == 12


def test_waiting_tasks_look_at_the_votes_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda file: reads.append(file.name) or read_bytes(file))
    people = oracle(tmp_path)
    prompts = [Prompt.make([Message("user", f"What is {n}?")]) for n in range(50)]

    async def run() -> None:
        waiting = [asyncio.create_task(people.judge(prompt, ANSWERS, 1)) for prompt in prompts]
        while len(files := list((tmp_path / "tasks").glob("*.json"))) < 50:
            await asyncio.sleep(0.005)
        names = [json.loads(file.read_text())["task"] for file in files]
        vote(tmp_path, [{"task": name, "voter": "ann", "better": 0, "worse": 1} for name in names])
        await asyncio.wait_for(asyncio.gather(*waiting), 20)

    asyncio.run(run())
    assert 1 <= reads.count("ann.jsonl") <= 3
