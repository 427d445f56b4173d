"""Workers that do not see the run folder: policies and prompts come to them through the run's store, whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from object_store import BUCKET, needs_s3, s3_server
from tiny_chat import tiny_recipe, write_prompts, write_tiny_policy

needs_s3()

from test_object_store import objects, rows_of  # noqa: E402
from test_reward_model import write_reward_model  # noqa: E402

from nashtune.errors import SamplingError, StoreError  # noqa: E402
from nashtune.evaluated import scores_of  # noqa: E402
from nashtune.loop import improve  # noqa: E402
from nashtune.model.copies import MANIFEST, fetch_policy, upload_policy  # noqa: E402
from nashtune.model.loading import fingerprint  # noqa: E402
from nashtune.recipe import parse_recipe  # noqa: E402
from nashtune.records import Policy, Prompt  # noqa: E402
from nashtune.run import Run  # noqa: E402
from nashtune.scale.home import Home, Receiving, Sending  # noqa: E402
from nashtune.scale.ray_worker import RayWorker  # noqa: E402
from nashtune.scale.units import Unit  # noqa: E402
from nashtune.store import tables  # noqa: E402
from nashtune.store.files import files_in, whole  # noqa: E402
from nashtune.store.objects import names_in, open_store, remove_object  # noqa: E402

HERE = Path(__file__).parent
PART = 5 * 2**20
"""Smallest part of an object that S3 takes in parts."""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as endpoint:
        yield endpoint


@pytest.fixture
def place(server: str, request: pytest.FixtureRequest, tiny_folder: Path) -> Path:
    name = request.node.name.replace("[", "-").rstrip("]")
    return open_store(f"s3://{BUCKET}/{name}") / fingerprint(tiny_folder / "policy")


# ---- policies ------------------------------------------------------------------------------------------------------------


def test_a_policy_is_uploaded_once_and_its_copy_is_the_policy(place: Path, tiny_folder: Path, tmp_path: Path) -> None:
    folder = tiny_folder / "policy"
    upload_policy(folder, place)
    before = objects(str(place))
    upload_policy(folder, place)
    assert objects(str(place)) == before
    copy = fetch_policy(place, tmp_path)
    assert fingerprint(copy) == fingerprint(folder) == copy.name
    times = {file: file.stat().st_mtime_ns for file in copy.iterdir()}
    assert fetch_policy(place, tmp_path) == copy
    assert {file: file.stat().st_mtime_ns for file in copy.iterdir()} == times  # nothing was fetched again


@pytest.mark.parametrize("damage", ["truncated", "changed", "missing", "stray"])
def test_a_damaged_copy_is_mended(place: Path, tiny_folder: Path, tmp_path: Path, damage: str) -> None:
    folder = tiny_folder / "policy"
    upload_policy(folder, place)
    copy = fetch_policy(place, tmp_path)
    weights = copy / "model.safetensors"
    good = weights.read_bytes()
    others = {f: f.stat().st_mtime_ns for f in copy.iterdir() if f != weights}
    if damage == "truncated":
        weights.write_bytes(good[:-100])
    elif damage == "changed":
        weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    elif damage == "missing":
        weights.unlink()
    else:
        (copy / "added_tokens.json").write_text("{}")
    assert fetch_policy(place, tmp_path) == copy
    assert weights.read_bytes() == good
    assert fingerprint(copy) == copy.name
    assert {f: f.stat().st_mtime_ns for f in others} == others


KILLED = """
import os, signal, sys
from pathlib import Path
import s3fs.core
s3fs.core.calculate_chunksize = lambda size, chunksize=None: 5 * 2**20
call, said = s3fs.core.S3FileSystem._call_s3, []
async def until(self, method, *rest, **more):
    if method == sys.argv[3] and "safetensors" in str(more.get("Key")):
        said.append(method)
        if len(said) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
    return await call(self, method, *rest, **more)
s3fs.core.S3FileSystem._call_s3 = until
from nashtune.model.copies import upload_policy
from nashtune.store.objects import open_store
upload_policy(Path(sys.argv[1]), open_store(sys.argv[2]))
"""


def test_of_an_upload_that_was_killed_nothing_is_read_and_the_next_goes_on(place: Path, tmp_path: Path) -> None:
    """Killed for real, in the second of a large file's three parts."""
    folder = tmp_path / "policy"
    folder.mkdir()
    for name in ("config.json", "generation_config.json", "tokenizer.json"):
        (folder / name).write_text(json.dumps({"of": name}))
    (folder / "model.safetensors").write_bytes(os.urandom(2 * PART + 1000))
    arguments = ["-c", KILLED, str(folder), str(place), "upload_part"]
    killed = subprocess.run([sys.executable, *arguments], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-2000:]
    left = objects(str(place))
    assert names_in(place) == ["config.json", "generation_config.json"]
    with pytest.raises(StoreError, match=r"no whole policy is there"):
        fetch_policy(place, tmp_path / "cache")
    upload_policy(folder, place)
    assert left.items() <= objects(str(place)).items()  # what was there was not sent again
    copy = fetch_policy(place, tmp_path / "cache")
    assert {f.name: f.read_bytes() for f in copy.iterdir()} == {f.name: f.read_bytes() for f in folder.iterdir()}


def test_objects_that_are_not_what_the_manifest_says_are_refused(
    place: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    upload_policy(tiny_folder / "policy", place)
    (place / "config.json").write_bytes(b"{}")
    with pytest.raises(StoreError, match=r"config\.json: its SHA-256 is .* remove both"):
        fetch_policy(place, tmp_path)
    assert not (tmp_path / place.name / "config.json").exists()
    remove_object(place / "config.json")
    with pytest.raises(StoreError, match=r"config\.json: missing, though the policy's manifest\.json names it"):
        fetch_policy(place, tmp_path)
    remove_object(place / MANIFEST)
    upload_policy(tiny_folder / "policy", place)
    assert fingerprint(fetch_policy(place, tmp_path)) == place.name


def test_old_copies_go_when_nobody_asks_for_them(place: Path, tiny_folder: Path, tmp_path: Path) -> None:
    upload_policy(tiny_folder / "policy", place)
    for age, name in enumerate("abcdef"):
        (tmp_path / name).mkdir()
        (tmp_path / f"{name}.lock").touch()
        os.utime(tmp_path / f"{name}.lock", (1e9 - age, 1e9 - age) if name != "f" else None)
    fetch_policy(place, tmp_path)
    assert sorted(f.name for f in tmp_path.iterdir() if f.is_dir()) == sorted([place.name, "a", "b", "f"])


# ---- what is sent --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Table:
    file: Path
    rows: int


@dataclass(frozen=True, slots=True)
class Reader:
    """A role that has a policy and a table, one inside another record, as those of the stages do."""

    policy: Policy
    table: Table
    twice: Table
    purpose: str = ""

    def key(self) -> str:
        return self.policy.fingerprint + self.purpose

    def open(self) -> str:
        return (self.policy.folder / "config.json").read_text()

    def work(self, opened: str, unit: Unit) -> dict[str, float]:
        rows = tables.read_unit(Prompt, unit.source, unit.index)
        assert rows == tables.read_unit(Prompt, self.table.file, unit.index)
        return {"prompts": len(rows), "bytes": len(opened)}


@pytest.fixture
def home(place: Path, tmp_path: Path) -> Home:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "id").write_text("mine")
    return Home(tmp_path / "run", "mine", place.parent)


def test_a_worker_that_does_not_see_the_run_gets_its_policy_and_its_prompts(
    home: Home, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NASHTUNE_CACHE", str(tmp_path / "cache"))
    policy = Policy(tiny_folder / "policy", fingerprint(tiny_folder / "policy"), "tiny")
    prompts = tables.encode(Prompt, [Prompt(str(n), ()) for n in range(5)], row_group=2)
    source = home.folder / "part.parquet"
    source.write_bytes(prompts)
    elsewhere = Table(home.folder / "other.parquet", 1)
    role = Reader(policy, Table(source, 5), elsewhere)
    unit = Unit(2, source, home.folder / "out", stage=home.folder)
    sending = Sending(home)
    sent, its = sending.sent(role, unit)
    assert isinstance(sent, Reader)
    assert sent.twice is elsewhere
    assert sent.table.rows == 5
    assert its.stage is None
    assert [f.name for f in files_in(its.source, "*")] == ["000002.parquet"]
    shutil.rmtree(home.folder)
    assert not home.seen()
    worker = RayWorker(str(tmp_path), 1, None, home)
    assert worker.hello()[2] is False
    facts, error, _ = worker.work(sent, its)
    assert error is None
    assert facts == {"prompts": 1, "bytes": len((policy.folder / "config.json").read_text())}
    assert [f.name for f in (tmp_path / "cache" / "policies").iterdir() if f.is_dir()] == [policy.fingerprint]
    worker = RayWorker(str(tmp_path), 1, None, replace(home, store=None))
    _, error, again = worker.work(role, unit)
    assert isinstance(error, SamplingError)
    assert "does not see" in str(error)
    assert "scale.store" in str(error)
    assert not again


def test_a_run_at_the_same_path_is_not_taken_for_the_run(home: Home) -> None:
    assert home.seen()
    (home.folder / "id").write_text("another's")
    assert not home.seen()


def test_a_copy_is_looked_at_again_when_something_else_is_opened(
    home: Home, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NASHTUNE_CACHE", str(tmp_path / "cache"))
    policy = Policy(tiny_folder / "policy", fingerprint(tiny_folder / "policy"), "tiny")
    assert home.store is not None
    upload_policy(policy.folder, home.store / "policies" / policy.fingerprint)
    role = Reader(policy, Table(Path("a"), 1), Table(Path("b"), 1))
    receiving = Receiving(home)
    first = receiving.received(role)
    assert isinstance(first, Reader)
    config = first.policy.folder / "config.json"
    config.write_text("damaged")
    receiving.received(role)  # the same is open: nobody reads the file
    assert config.read_text() == "damaged"
    receiving.received(replace(role, purpose="other"))
    assert config.read_bytes() == (policy.folder / "config.json").read_bytes()


# ---- a whole run -----------------------------------------------------------------------------------------------------------

MOUNT = ["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"]
NO_NAMESPACES = (
    shutil.which("unshare") is None or subprocess.run(MOUNT, capture_output=True, check=False).returncode != 0
)


@pytest.mark.slow
@pytest.mark.skipif(NO_NAMESPACES, reason="this user may not make a mount namespace (unshare -m)")
def test_a_cluster_that_does_not_see_the_run_folder_ends_as_one_machine_does(server: str, tmp_path: Path) -> None:
    """The cluster's processes live in a mount namespace in which the driver's folder is empty."""
    pytest.importorskip("ray", reason="the package ray is not installed (pip install 'nashtune[ray]')")
    from ray_nodes import Nodes

    driver, reward = tmp_path / "driver", write_reward_model(tmp_path / "reward")
    driver.mkdir()
    write_tiny_policy(driver / "policy")
    write_prompts(driver / "prompts.jsonl", 40)
    changes: dict[str, Any] = {"iterations": 1, "oracle": {"kind": "reward_model", "model": str(reward)}}
    changes |= {"teacher": {"kind": "none"}, "health": {"anchors": 0}, "validate": {"kl_samples": 0}}
    asked = {"key": 1, "prompt": "Say it.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    (driver / "asked.jsonl").write_text(
        "".join(json.dumps(asked | {"key": n, "prompt": f"Say {n}."}) + "\n" for n in range(3))
    )
    changes["evaluate"] = [{"suite": "ifeval", "data": str(driver / "asked.jsonl"), "max_new_tokens": 6}]
    raw = tiny_recipe(driver, **changes)
    improve(parse_recipe(raw | {"name": "local", "scale": {"references": "workers"}}))
    local = Run.read(driver / "runs" / "local")
    before = ["unshare", "-m", "sh", "-c", f'mount -t tmpfs none {driver} && exec "$@"', "-"]
    with Nodes(2, before) as nodes:
        environment = {"NASHTUNE_CACHE": str(tmp_path / "cache"), "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
        ray = {"address": nodes.address, "resources": {"sampler": 1}, "runtime_env": {"env_vars": environment}}
        scale = {"engine": "ray", "ray": ray, "store": f"s3://{BUCKET}/far"}
        file = driver / "far.yaml"
        file.write_text(json.dumps(raw | {"name": "far", "scale": scale}))
        seen = set[str]()
        with (tmp_path / "log").open("w") as log:
            run = subprocess.Popen([sys.executable, "-m", "nashtune.cli", "run", str(file)], stdout=log, stderr=log)
        while run.poll() is None:
            seen |= {f"{f.parent.parent.name}.{f.stem}" for f in driver.glob("runs/far/*/*/.claims/*-*.json")}
            time.sleep(0.02)
        assert run.returncode == 0, (tmp_path / "log").read_text()[-3000:]
    far = Run.read(driver / "runs" / "far")
    for iteration in (0, 1):
        assert rows_of(far, iteration) == rows_of(local, iteration)
    logprobs = [[whole(f) for f in run.stage(1, "references-t").committed()] for run in (far, local)]
    assert logprobs[0] == logprobs[1]
    trained = [far.stage(1, "train").output, fingerprint(driver / "policy")]
    assert sorted(f.name for f in (tmp_path / "cache" / "policies").iterdir() if f.is_dir()) == sorted(trained)
    kept = ["evaluations", "inputs", "iteration-0", "iteration-1", "policies"]
    assert sorted(names_in(far.store_folder())) == kept
    answers = far.store_folder() / "evaluations" / "ifeval" / "iteration-0" / "answers-1"
    assert len(files_in(answers, "*.parquet")) == 1
    scores = [scores_of(run.folder, "ifeval", 0) for run in (far, local)]
    assert scores[0] is not None
    assert scores[1] is not None
    assert scores[0]["metrics"] == scores[1]["metrics"]
    # While a stage was under way, each of its workers was to be seen.
    assert {worker.split(".")[0] for worker in seen} >= {"validate-sample", "sample", "references-t"}
