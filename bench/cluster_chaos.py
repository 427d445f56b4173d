"""A run on a simulated Ray cluster that loses an actor, a node, the driver in mid-judging and a training rank, against a clean
run on one machine: the same rows, one committed object a unit, every billed call accounted for.

    python bench/cluster_chaos.py [--json] [--prompts 48]

Nothing depends on speed: a process is stopped (SIGSTOP) in the middle of what it does, looked at, and killed only then.
Two mistakes put in on purpose must be found by the same comparison (cluster_faults.py).
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from bars import Row, arguments, finish
from cluster_losses import lose_actor_node_and_driver, lose_rank, units_of
from ray_nodes import Nodes, quiet

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))
NASHTUNE = [sys.executable, "-m", "nashtune.cli", "run"]
ROUNDING = 1e-4
"""Largest difference between weights that were trained in one process and in two ranks (float32, learning rate 1e-3)."""
STAGES = ("sample", "judge", "pairs")
SLOW_REPLIES = 400
"""Judgments that take 0.2 s each."""


# ---- what is run -----------------------------------------------------------------------------------------------------


def recipe(folder: Path, name: str, server: str, prompts: int) -> dict[str, Any]:
    """One iteration of a tiny model, judged by a paid judge, in units of two prompts."""
    from tiny_chat import tiny_recipe

    engine = {"base_url": f"{server}/v1", "model": "judge-1", "concurrency": 2, "price": "free", "probe": False}
    return tiny_recipe(
        folder,
        iterations=1,
        prompts={"per_iteration": prompts, "validation": {"count": 4}},
        sampling={"unit_prompts": 2, "max_new_tokens": 144},
        oracle={"kind": "rubric", "engine": engine},
        teacher={"kind": "none"},
        train={"epochs": 2, "schedule": "constant"},
        validate={"kl_samples": 0},
    ) | {"name": name, "folder": str(folder / "runs")}


def on_cluster(address: str, **ray: Any) -> dict[str, Any]:
    """Changes to a recipe: its units run on a cluster, and two ranks train. There is never room for the third actor."""
    settings = {"address": address, "resources": {"sampler": 1}, "max_actors": 3, **ray}
    return {"scale": {"engine": "ray", "ray": settings, "train_processes": 2}}


def write(file: Path, settings: dict[str, Any]) -> Path:
    file.write_text(yaml.safe_dump(settings))
    return file


@contextmanager
def running(file: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The command line at work on a recipe, until the end of the block at the latest."""
    with log.open("ab") as stream:
        process = subprocess.Popen([*NASHTUNE, str(file)], stdout=stream, stderr=stream, env=quiet())
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def complete(run: subprocess.Popen[bytes], log: Path) -> None:
    if run.wait():
        raise RuntimeError(f"the run ended with code {run.returncode}: {log.read_text()[-3000:]}")


@contextmanager
def judge_server(folder: Path) -> Iterator[str]:
    """Address of a judge that counts what it bills."""
    port_file, script = folder / "port", HERE.parent / "tests" / "judge_server.py"
    command = [sys.executable, str(script), "--port-file", str(port_file)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        while not (port_file.exists() and port_file.read_text().strip()):
            assert process.poll() is None
            time.sleep(0.01)
        yield f"http://127.0.0.1:{port_file.read_text().strip()}"
    finally:
        process.terminate()
        process.wait()


def slow_from_now_on(server: str) -> None:
    """Have the judge take its time, so that there is a middle of judging."""
    body = json.dumps({"script": ["slow"] * SLOW_REPLIES}).encode()
    urllib.request.urlopen(urllib.request.Request(f"{server}/script", body)).close()


# ---- what is compared ------------------------------------------------------------------------------------------------


def rows(folder: Path, stage: str) -> list[dict[str, Any]]:
    """A stage's committed rows in order; of judgments, not what differs when a reply comes out of the ledger."""
    import pyarrow.parquet

    found = []
    for file in sorted((folder / "iteration-1" / stage).glob("*.parquet")):
        for row in pyarrow.parquet.ParquetFile(file).read().to_pylist():
            row.pop("usage", None)
            found.append(row)
    return found


def same_rows(one: Path, other: Path) -> dict[str, bool]:
    return {stage: bool(rows(one, stage)) and rows(one, stage) == rows(other, stage) for stage in STAGES}


def weight_difference(one: Path, other: Path) -> float:
    """The largest difference of any weight between the two runs' policies."""
    from safetensors.torch import load_file

    a, b = (load_file(run / "iteration-1" / "policy" / "model.safetensors") for run in (one, other))
    return max(float((a[name].float() - b[name].float()).abs().max()) for name in a)


def objects(folder: Path) -> tuple[int, int]:
    """Committed objects of sampling and judging, and units."""
    stages = [folder / "iteration-1" / name for name in ("sample", "judge")]
    return sum(len(list(stage.glob("*.parquet"))) for stage in stages), 2 * len(units_of(folder))


def billed(server: str) -> int:
    with urllib.request.urlopen(f"{server}/stats") as reply:
        return json.load(reply)["billed"]


def account(folder: Path, charged: int) -> dict[str, int]:
    """The server's bill against the ledger."""
    with sqlite3.connect(folder / "ledger.sqlite") as ledger:
        states = dict(ledger.execute("select state, count(*) from attempts group by state"))
    done = states.pop("done", 0)
    return {"billed": charged, "done": done, "unanswered": sum(states.values())}


def redone(folder: Path) -> int:
    return json.loads((folder / "iteration-1" / "sample.json").read_text())["facts"]["units_redone"]


# ---- what would be wrong ---------------------------------------------------------------------------------------------

SAMPLE = """
import sys
from nashtune.run import Run
from nashtune.stages.teacher import sample
with Run.open(sys.argv[1]) as run:
    sample(run, 1)
"""
TRAIN = """
import sys
from nashtune.run import Run
from nashtune.stages.candidates import Candidates
from nashtune.stages.judging import judge
from nashtune.stages.pairing import make_pairs
from nashtune.stages.teacher import sample
from nashtune.stages.training import train
from nashtune.training import launch
Torchrun = launch.Torchrun
launch.Torchrun = lambda module, *rest, **more: Torchrun("cluster_faults", *rest, **more)
with Run.open(sys.argv[1]) as run:
    train(run, 1, make_pairs(run, judge(run, sample(run, 1))))
"""


def in_python(code: str, *arguments_: str) -> None:
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments_],
        env={**quiet(), "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])


def seeds_by_process_are_found(folder: Path, settings: dict[str, Any], address: str) -> bool:
    """Whether samples drawn with seeds of the actors' own differ from the clean run's."""
    hook = {"worker_process_setup_hook": "cluster_faults.seeds_by_process"}
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    changes = on_cluster(address, runtime_env={**hook, "env_vars": {"PYTHONPATH": path}})
    name = {"name": "wrong-seeds", "oracle": {"kind": "scripted"}}
    in_python(SAMPLE, str(write(folder / "wrong-seeds.yaml", settings | changes | name)))
    clean, wrong = (rows(folder / "runs" / name, "sample") for name in ("clean", "wrong-seeds"))
    return len(clean) == len(wrong) and clean != wrong


def wrong_slicing_is_found(folder: Path, settings: dict[str, Any]) -> bool:
    """Whether a policy trained by ranks that take the same half of each batch differs by more than rounding."""
    clean, wrong = folder / "runs" / "clean", folder / "runs" / "wrong-slices"
    shutil.copytree(clean, wrong)
    for name in ("policy", "train"):
        shutil.rmtree(wrong / "iteration-1" / name)
    for file in (wrong / "iteration-1").glob("*.json"):
        if file.stem in ("train", "summary") or file.stem.startswith("validate"):
            file.unlink()
    changes = {"name": "clean", "folder": str(wrong.parent), "scale": {"train_processes": 2}}
    in_python(
        TRAIN.replace("Run.open(sys.argv[1])", "Run.open(sys.argv[1], sys.argv[2])"),
        str(write(folder / "wrong-slices.yaml", settings | changes)),
        str(wrong),
    )
    return weight_difference(clean, wrong) > ROUNDING


# ---- the whole of it -------------------------------------------------------------------------------------------------


def story(folder: Path, prompts: int, tell: Callable[[str], None], *, mistakes: bool = True) -> Row:
    """Both runs and the comparison; with ``mistakes``, that it finds them."""
    from tiny_chat import write_prompts, write_tiny_policy

    write_tiny_policy(folder / "policy")
    write_prompts(folder / "prompts.jsonl", prompts + 4)
    clean, lossy = folder / "runs" / "clean", folder / "runs" / "lossy"
    found: Row = {"prompts": prompts}
    with judge_server(folder) as server, Nodes(2) as nodes:
        settings = recipe(folder, "clean", server, prompts)
        with running(write(folder / "clean.yaml", settings), folder / "clean.log") as run:
            complete(run, folder / "clean.log")
        tell("the clean run has ended")
        before = billed(server)
        slow_from_now_on(server)
        file, log = (
            write(folder / "lossy.yaml", settings | {"name": "lossy"} | on_cluster(nodes.address)),
            folder / "lossy.log",
        )
        with running(file, log) as run:
            found["lost"] = lose_actor_node_and_driver(run, lossy, nodes)
        tell("; ".join(found["lost"]))
        with running(file, log) as run:
            found["lost"].append(lose_rank(run, lossy))
            complete(run, log)
        tell("the same command has gone on to the end, though a rank was killed")
        found["account"] = account(lossy, billed(server) - before)
        found["needed"] = len(rows(lossy, "judge")) + validation_judgments(lossy)
        if mistakes:
            found["wrong seeds found"] = seeds_by_process_are_found(folder, settings, nodes.address)
            found["wrong slicing found"] = wrong_slicing_is_found(folder, settings)
    found["same"] = same_rows(clean, lossy)
    found["objects"], found["units"] = objects(lossy)
    found["redone"], found["weights differ by"] = redone(lossy), weight_difference(clean, lossy)
    return found


def validation_judgments(folder: Path) -> int:
    import pyarrow.parquet

    files = folder.glob("iteration-*/validate-judge/*.parquet")
    return sum(pyarrow.parquet.ParquetFile(file).metadata.num_rows for file in files)


def bars(found: Row) -> dict[str, tuple[float, Callable[[float], bool], str]]:
    """What has to hold."""
    account_ = found["account"]
    expected = {
        "stages whose rows are identical": (sum(found["same"].values()), lambda n: n == len(STAGES), f"{len(STAGES)}"),
        "things lost on the way": (sum(map(bool, found["lost"])), lambda n: n == 6, "6"),
        "units redone": (found["redone"], lambda n: n >= 2, "at least the 2 that were stopped half-way"),
        "objects beyond one a unit": (found["objects"] - found["units"], lambda n: n == 0, "0"),
        "judgments not bought once": (account_["done"] - found["needed"], lambda n: n == 0, "0"),
        "calls billed and not in the ledger": (
            account_["billed"] - account_["done"] - account_["unanswered"],
            lambda n: n <= 0,
            "0 or less: a call in flight may or may not have been billed",
        ),
        "largest difference of a weight": (found["weights differ by"], lambda d: d < ROUNDING, f"below {ROUNDING:g}"),
    }
    for name in ("wrong seeds found", "wrong slicing found"):
        if name in found:
            expected[name] = (float(found[name]), lambda n: n == 1, "1")
    return expected


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--prompts", type=int, default=48, help="prompts of the iteration")
    options = parser.parse_args()
    started = time.monotonic()

    def tell(text: str) -> None:
        if not options.json:
            print(f"[{time.monotonic() - started:6.1f} s] {text}", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        found = story(Path(folder), options.prompts, tell)
    finish(found, bars(found), options.json)


if __name__ == "__main__":
    main()
