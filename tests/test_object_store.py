"""Units on an object store: created once, equal to those of a local run, found again by everything that reads a run."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from object_store import BUCKET, RACE_ROUNDS, needs_s3, race, s3_server
from tiny_chat import tiny_recipe

needs_s3()

from nashtune.errors import RecipeError, StoreError  # noqa: E402
from nashtune.judging.comparisons import read_comparisons  # noqa: E402
from nashtune.loop import improve  # noqa: E402
from nashtune.planning.measured import earlier_run  # noqa: E402
from nashtune.recipe import Recipe, parse_recipe  # noqa: E402
from nashtune.records import Judgment, LogProb, Pair, Response  # noqa: E402
from nashtune.report.assemble import write_report  # noqa: E402
from nashtune.run import KEPT_HERE, Run  # noqa: E402
from nashtune.show import status_json  # noqa: E402
from nashtune.stages.health import run_health  # noqa: E402
from nashtune.store import tables  # noqa: E402
from nashtune.store.files import create_once, digest_files, files_in, link_once  # noqa: E402
from nashtune.store.objects import absent, check_store, is_there, names_in, on_store, open_store, read_object  # noqa: E402

RACERS = 8


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as endpoint:
        yield endpoint


@pytest.fixture
def store(server: str, request: pytest.FixtureRequest) -> str:
    return f"s3://{BUCKET}/{request.node.name}".replace("[", "-").rstrip("]")


@pytest.fixture
def fresh() -> Iterator[None]:
    """No file system object of another test, nor of this one in others: fsspec keeps them."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    yield
    s3fs.S3FileSystem.clear_instance_cache()


# ---- objects -------------------------------------------------------------------------------------------------------------


def test_of_racing_processes_one_commits_the_object_whole(store: str) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["s3fs", "upath", "object_store", "nashtune.store.files"])
    barrier, results = context.Barrier(RACERS), context.Queue()
    racers = [context.Process(target=race, args=(n, store, barrier, results, dict(os.environ))) for n in range(RACERS)]
    for racer in racers:
        racer.start()
    told = [results.get(timeout=120) for _ in range(RACERS * RACE_ROUNDS)]
    for racer in racers:
        racer.join()
    for turn in range(RACE_ROUNDS):
        winners = [number for t, number, won in told if t == turn and won]
        assert len(winners) == 1
        assert read_object(open_store(store) / f"unit-{turn}") == bytes(winners) * 300_000
    assert names_in(open_store(store)) == [f"unit-{turn}" for turn in range(RACE_ROUNDS)]


def test_places_on_a_store_behave_as_files_do(store: str, tmp_path: Path) -> None:
    there, here = open_store(store), open_store(str(tmp_path / "folder"))
    assert on_store(there)
    assert not on_store(here)
    for root in (there, here):
        check_store(root)
        assert files_in(root, "*") == []
        rows = [LogProb("r", "0", -1.5), LogProb("s", "0", -2.5)]
        assert create_once(root / "stage" / "b-key.parquet", tables.encode(LogProb, rows, row_group=1))
        assert not create_once(root / "stage" / "b-key.parquet", b"late")
        assert link_once(root / "stage" / "b-key.parquet", there / "copies" / f"{on_store(root)}.parquet")
        assert create_once(root / "stage" / "a-other.parquet", b"x")
        assert [f.name for f in files_in(root / "stage", "*-key.parquet")] == ["b-key.parquet"]
        file = pickle.loads(pickle.dumps(root / "stage" / "b-key.parquet"))  # as it goes to a worker process
        assert tables.read(LogProb, file) == rows
        assert tables.read(LogProb, file, 1) == rows[1:]
        assert tables.shape(file) == (2, 2)
        assert tables.holds(LogProb, file)
        assert not tables.holds(Response, file)
        assert absent([file, root / "stage" / "none"]) == [False, True]
        with pytest.raises(StoreError, match=r"a-other\.parquet: damaged"):
            tables.read(LogProb, root / "stage" / "a-other.parquet")
        with pytest.raises(StoreError, match=r"none: missing"):
            tables.read(LogProb, root / "stage" / "none")
    stages = [files_in(root / "stage", "*") for root in (there, here)]
    assert digest_files(stages[0]) == digest_files(stages[1])
    assert names_in(there / "copies") == ["False.parquet", "True.parquet"]


# ---- whole runs ----------------------------------------------------------------------------------------------------------


def recipe_of(tiny_folder: Path, folder: Path, **changes: Any) -> Recipe:
    changes = {"train": {"checkpoint_steps": 50}, "health": {"anchors": 2}} | changes
    return parse_recipe(tiny_recipe(tiny_folder, **changes) | {"folder": str(folder)})


@pytest.fixture(scope="module")
def local(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    recipe = recipe_of(tiny_folder, tmp_path_factory.mktemp("local"))
    improve(recipe)
    return Run.read(Path(recipe.folder) / recipe.name)


def rows_of(run: Run, iteration: int) -> dict[str, Any]:
    """Every row that an iteration committed, and its weights."""
    found: dict[str, Any] = {}
    for file in sorted(run.iteration_folder(iteration).glob("*.json")):
        if file.stem == "summary" or file.stem.startswith("references-"):  # which depend on who trains
            continue
        stage = run.stage(iteration, file.stem)
        found[f"{file.stem} output"] = stage.output
        if file.stem not in KEPT_HERE:
            for kind in (Response, Judgment, LogProb):
                units = [f for f in stage.committed() if tables.holds(kind, f)]
                found[f"{file.stem} {kind.__name__}"] = [tables.read(kind, unit) for unit in units]
    if iteration:
        found["pairs"] = tables.read(Pair, run.stage(iteration, "pairs").folder / "pairs.parquet")
    return found


def objects(store: str) -> dict[str, tuple[str, object]]:
    """Name, content hash and time of every object below a store."""
    place: Any = open_store(store)
    return {name: (info["ETag"], info["LastModified"]) for name, info in place.fs.find(place.path, detail=True).items()}


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_with_its_units_on_a_store_equals_a_local_one_and_goes_on_after_a_kill(
    tiny_folder: Path, tmp_path: Path, local: Run, store: str, workers: int
) -> None:
    recipe = recipe_of(tiny_folder, tmp_path, scale={"store": store})
    file, folder = tmp_path / "recipe.yaml", tmp_path / "tiny"
    file.write_text(yaml.safe_dump(recipe.written()))
    killer = [sys.executable, str(Path(__file__).parent / "killed_at.py"), str(folder), "iteration-1/.sample.seconds"]
    code = subprocess.run([*killer, "run", str(file)], capture_output=True, check=False).returncode
    assert code == -signal.SIGKILL
    before = objects(store)
    run = Run.read(folder)
    [(stage, count)] = [(n, c) for n, c in status_json(run)["pending"]["iteration-1"].items() if n == "sample"]
    assert stage == "sample"
    assert 1 <= count < 3
    improve(recipe_of(tiny_folder, tmp_path, scale={"store": store, "workers": workers}))
    after = objects(store)
    assert before.items() <= after.items()  # what was committed before the kill was not made again
    for iteration in range(3):
        ours = rows_of(run, iteration)
        assert any(ours.get("sample Response" if iteration else "validate-sample Response", []))
        assert ours == rows_of(local, iteration)
    here = {f.relative_to(folder).parts[1] for f in folder.glob("iteration-*/**/*.parquet")}
    assert here == ({"pairs", "train"} if workers == 1 else {"pairs"})
    _read_everywhere(run, local)
    with run.fork(tmp_path / "fork", 1) as fork:
        assert rows_of(fork, 1) == rows_of(local, 1)  # its records name the first run's objects
        fork.rollback(0)
        assert fork.begun_stages(1) == []
    assert objects(store) == after


def _read_everywhere(run: Run, local: Run) -> None:
    """What reads a run says the same of units on a store."""
    assert write_report(run).is_file()
    assert run_health(run) == run_health(local)
    assert read_comparisons([str(run.folder)]) == read_comparisons([str(local.folder)])
    ours, theirs = (earlier_run(r.recipe, r.folder) for r in (run, local))
    assert ours is not None
    assert theirs is not None
    assert (ours.student, ours.teacher) == (theirs.student, theirs.teacher)


@pytest.mark.slow
def test_fork_and_rollback_find_units_on_a_store(tiny_folder: Path, tmp_path: Path, local: Run, store: str) -> None:
    recipe = recipe_of(tiny_folder, tmp_path, iterations=1, scale={"store": store})
    improve(recipe)
    folder = tmp_path / "tiny"
    made = objects(store)
    with Run.read(folder).fork(tmp_path / "other", 1, ("iterations=2",)) as fork:
        forked = fork.recipe
    improve(forked)
    other = Run.read(tmp_path / "other")
    assert [rows_of(other, t) for t in (0, 1)] == [rows_of(local, t) for t in (0, 1)]
    assert rows_of(other, 2)["pairs"] == rows_of(local, 2)["pairs"]
    assert made.items() <= objects(store).items()
    with Run.open(recipe) as run:
        run.rollback(0)
    improve(recipe)
    assert rows_of(Run.read(folder), 1) == rows_of(local, 1)
    assert made.items() <= objects(store).items()  # the same units, found again
    with Run.open(recipe) as run:
        run.rollback(0)
    changed = recipe_of(tiny_folder, tmp_path, iterations=1, scale={"store": store}, sampling={"temperature": 0.9})
    improve(changed)
    again = Run.read(folder)
    assert rows_of(again, 1)["sample Response"] != rows_of(local, 1)["sample Response"]
    stage = again.stage(1, "sample")
    assert len(stage.files()) == len(stage.committed()) == 3
    assert len(files_in(stage.units, "*")) == 6  # the rolled-back ones beside them, under another key


@pytest.mark.slow
def test_a_store_named_later_takes_the_stages_that_are_not_done(tiny_folder: Path, tmp_path: Path, local: Run) -> None:
    improve(recipe_of(tiny_folder, tmp_path, iterations=1))
    shared = tmp_path / "shared-disk"
    improve(recipe_of(tiny_folder, tmp_path, scale={"store": str(shared)}))
    run = Run.read(tmp_path / "tiny")
    assert [rows_of(run, t) for t in range(3)] == [rows_of(local, t) for t in range(3)]
    assert [p.name for p in (shared / run.id).iterdir()] == ["iteration-2"]
    assert not (tmp_path / "tiny" / "iteration-2" / "sample").exists()


# ---- refused -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("memory://units", r"memory://units'; accepted: a folder that all workers share, or a URL"),
        ("s3://", r"accepted: a folder that all workers share"),
        ("", r"accepted: a folder that all workers share"),
        ("s3://key:secret@bucket/x", r"password in it.*accepted: s3://BUCKET/PREFIX"),
    ],
)
def test_urls_that_cannot_be_a_store_are_refused_with_the_recipe(tiny_folder: Path, url: str, told: str) -> None:
    with pytest.raises(RecipeError, match=rf"scale\.store[\s\S]*{told}") as caught:
        parse_recipe(tiny_recipe(tiny_folder, scale={"store": url}))
    assert "secret" not in str(caught.value)


def _refused(tiny_folder: Path, folder: Path, store: str) -> str:
    """What a run is told at its start; nothing was sampled."""
    with pytest.raises(StoreError) as caught:
        improve(recipe_of(tiny_folder, folder, scale={"store": store}))
    assert not list(folder.rglob("*.parquet"))
    return str(caught.value)


def test_a_bucket_that_is_not_there_ends_the_run_before_it_samples(
    tiny_folder: Path, tmp_path: Path, server: str
) -> None:
    told = _refused(tiny_folder, tmp_path, "s3://no-such-bucket/x")
    assert told.startswith("scale.store: s3://no-such-bucket/x")
    assert "bucket does not exist" in told


@pytest.mark.parametrize("lacking", ["server", "credentials", "package"])
def test_a_store_that_cannot_be_used_is_told_at_the_start(
    tiny_folder: Path, tmp_path: Path, server: str, fresh: None, monkeypatch: pytest.MonkeyPatch, lacking: str
) -> None:
    import s3fs

    if lacking == "server":
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    elif lacking == "credentials":
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    else:
        monkeypatch.setitem(sys.modules, "upath", None)
    told = _refused(tiny_folder, tmp_path, f"s3://{BUCKET}/x")
    assert told.startswith(f"scale.store: {'' if lacking != 'package' else repr(f's3://{BUCKET}/x')}")
    expected = {"server": "127.0.0.1:9", "credentials": "redentials", "package": r"pip install nashtune[s3]"}
    assert expected[lacking] in told


def test_a_store_that_cannot_keep_the_first_of_two_is_refused(
    store: str, fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    put = s3fs.S3FileSystem._pipe_file

    async def forgetful(self: Any, path: str, data: bytes, mode: str = "overwrite", **rest: Any) -> Any:
        return await put(self, path, data, **rest)

    monkeypatch.setattr(s3fs.S3FileSystem, "_pipe_file", forgetful)
    with pytest.raises(StoreError, match=r"scale\.store: .*5 of 5 writers of one object [\s\S]*create-if-absent"):
        check_store(open_store(store))


def test_an_answer_that_says_neither_yes_nor_no_is_asked_again(
    store: str, fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S3 answers 409 where conditional writes meet, and some servers refuse without naming the condition."""
    import s3fs

    put, calls = s3fs.S3FileSystem._pipe_file, []

    async def vague(self: Any, path: str, data: bytes, mode: str = "overwrite", **rest: Any) -> Any:
        calls.append(path)
        if len(calls) == 2:
            await put(self, path, b"another's", mode=mode)
        raise OSError(5, "conflict")

    monkeypatch.setattr(s3fs.S3FileSystem, "_pipe_file", vague)
    monkeypatch.setattr("nashtune.store.objects.PAUSE_SECONDS", 0.0)
    place = open_store(store) / "unit"  # a file system binds its methods when it is made
    assert not create_once(place, b"mine")
    assert len(calls) == 2
    assert read_object(place) == b"another's"
    assert is_there(place)
    calls.extend(["x", "x"])
    with pytest.raises(StoreError, match=r"scale\.store: .*other: failed as it was written to: OSError.*conflict"):
        create_once(place.with_name("other"), b"mine")
