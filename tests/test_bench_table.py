"""The table of ratios: what it says of parts that work, miss a bar, fail or are not installed, and what it leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from flops import peak_flops
from harness import SCHEMA, Bar, Row, judge_row, measure_family, table
from measure import Meter, run_json
from random_models import SHAPES, multiplied_parameters, write

BENCH = Path(__file__).parent.parent / "bench"
COLUMNS = [
    "family",
    "row",
    "figure",
    "peer",
    "peer_package",
    "peer_version",
    "ours",
    "theirs",
    "ratio",
    "lowest",
    "highest",
]
COLUMNS += ["bar", "status", "why"]

SCRIPT = """
import sys
from pathlib import Path
sys.path[:0] = [{bench!r}, {here!r}]
from harness import Settings, main, parser
FAMILIES = {{"toy": "toy_rows"}}
if __name__ == "__main__":
    main(Path(__file__), FAMILIES, parser("", FAMILIES, FAMILIES).parse_args(), Settings())
"""
ROWS = """
from harness import Bar, Family, Row
from measure import Meter, Missing

def family(settings):
    def fast(work):
        (work / "order").open("a").write("F")
        with Meter() as meter:
            pass
        return meter.figures() | {{"rate": 6.0}}
    def slow(work):
        order = (work / "order").open("a+")
        order.write("S")
        order.seek(0)
        return {{"rate": 2.0, "order": order.read()}}
    def absent(work):
        raise Missing("nothing like it here")
    def unknown(work):
        import no_such_package
    def broken(work):
        raise ValueError("it broke")
    parts = {{f.__name__: f for f in (fast, slow, absent, unknown, broken)}}
    rows = [Row("fast vs " + name, "rate", "fast", name, name, "pytest", Bar("at least", {bar})) for name in {theirs!r}]
    return Family({{name: parts[name] for name in ("fast", *{theirs!r})}}, rows, repeats=2)
"""


def run_table(folder: Path, bar: float, *theirs: str) -> tuple[int, dict[str, Any], str]:
    """Exit code, the JSON result and what was printed."""
    (folder / "table.py").write_text(SCRIPT.format(bench=str(BENCH), here=str(folder)))
    (folder / "toy_rows.py").write_text(ROWS.format(bar=bar, theirs=theirs))
    output = folder / "result.json"
    command = [sys.executable, str(folder / "table.py"), "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, json.loads(output.read_text()), done.stdout


def test_a_bar_that_is_met_and_the_layout_of_the_results(tmp_path: Path) -> None:
    code, result, printed = run_table(tmp_path, 2.5, "slow")
    assert code == 0
    assert list(result) == ["schema", "date", "settings", "machine", "rows", "parts", "failing"]
    assert result["schema"] == SCHEMA == 1
    assert result["failing"] == []
    [row] = result["rows"]
    assert list(row) == COLUMNS
    assert (row["ours"], row["theirs"], row["ratio"], row["status"]) == (6.0, 2.0, 3.0, "met")
    assert row["peer_version"] == pytest.__version__
    assert {"packages", "git", "cpu"} <= result["machine"].keys()
    assert "flags" in result["machine"]["cpu"]
    assert os.uname().nodename not in json.dumps(result["machine"])
    assert result["parts"]["toy"]["slow"][-1]["order"] == "FSFS"  # interleaved, not one after the other
    assert "fast vs slow" in printed
    assert "at least 2.5" in printed


def test_a_bar_that_is_missed_gives_exit_code_1(tmp_path: Path) -> None:
    code, result, printed = run_table(tmp_path, 3.5, "slow")
    assert (code, result["failing"]) == (1, ["fast vs slow"])
    assert "missed" in printed


def test_a_peer_that_is_not_installed_is_said_and_is_no_failure(tmp_path: Path) -> None:
    code, result, printed = run_table(tmp_path, 2.5, "slow", "absent", "unknown")
    assert code == 0
    assert [row["status"] for row in result["rows"]] == ["met", "not installed", "not installed"]
    assert "nothing like it here" in printed
    assert "no package no_such_package" in printed


def test_a_part_that_breaks_gives_exit_code_1_and_leaves_the_other_rows(tmp_path: Path) -> None:
    code, result, printed = run_table(tmp_path, 2.5, "broken", "slow")
    assert (code, result["failing"]) == (1, ["fast vs broken"])
    assert [row["status"] for row in result["rows"]] == ["failed", "met"]
    assert "it broke" in printed


def found(**figures: list[float]) -> dict[str, list[dict[str, Any]]]:
    return {name: [{"seconds": value} for value in values] for name, values in figures.items()}


def test_the_ratio_is_the_median_of_the_repeats_own_ratios() -> None:
    figures = found(a=[1.0, 2.0, 10.0], b=[4.0, 2.0, 5.0])
    forward = judge_row("f", Row("r", "seconds", "a", "b", "peer", bar=Bar("at most", 0.9)), figures)
    assert (forward["ratio"], forward["lowest"], forward["highest"], forward["status"]) == (1.0, 0.25, 2.0, "missed")
    inverse = judge_row("f", Row("r", "seconds", "a", "b", "peer", bar=Bar("at least", 1), inverse=True), figures)
    assert (inverse["ratio"], inverse["lowest"], inverse["highest"], inverse["status"]) == (1.0, 0.5, 4.0, "met")


def test_a_figure_that_a_machine_cannot_give_is_not_measured() -> None:
    row = Row("r", "flops", "a", "a", "peak", theirs_figure="peak_flops")
    judged = judge_row("f", row, {"a": [{"flops": 1.0, "peak_flops": None}]})
    assert (judged["status"], judged["ratio"]) == ("not measured", None)
    assert "peak_flops" in table([judged])


def test_a_missing_part_is_tried_once() -> None:
    asked: list[str] = []

    def run(name: str) -> dict[str, Any]:
        asked.append(name)
        return {"missing": "x"} if name == "b" else {"seconds": 1.0}

    measure_family(run, ["a", "b"], 3, lambda _: None)
    assert asked == ["a", "b", "a", "a"]


def test_no_family_reads_torch_before_its_parts_do() -> None:
    """The parent must stay small, and a copy beside a bare torch must be able to say what is missing."""
    code = (
        "import sys, importlib; sys.path[:0] = [sys.argv[1], sys.argv[1] + '/gpu'];"
        "from harness import Family, Settings; import table, gpu_sampling, gpu_training;"
        "families = [importlib.import_module(m).family(Settings(models=('tiny',))) for m in table.FAMILIES.values()];"
        "families += [m.family(Settings(models=('tiny',))) for m in (gpu_sampling, gpu_training)];"
        "used = [{r.ours, r.theirs} <= set(f.parts) for f in families for r in f.rows];"
        "names = [r.name for f in families for r in f.rows];"
        "loaded = {'torch', 'transformers', 'pydantic', 'pyarrow'} & set(sys.modules);"
        "print(sorted(loaded), all(used), len(names) - len(set(names)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(BENCH)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] True 0"


def test_memory_is_the_process_own_and_cpu_seconds_are_those_used() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(BENCH)!r}); from measure import Meter; import json, time;"
        "meter = Meter().__enter__(); time.sleep(0.2); block = bytearray(200_000_000); meter.__exit__();"
        "print(json.dumps(meter.figures(10)))"
    )
    figures = run_json([sys.executable, "-c", code], threads=1)
    assert 0.2 < figures["peak_gb"] < 0.3
    assert figures["cpu_seconds"] < figures["seconds"]
    assert figures["tokens_per_second"] == pytest.approx(10 / figures["seconds"])


# ---- the table of a GPU, as far as a CPU can run it ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of the shape `tiny`."""
    folder = tmp_path_factory.mktemp("bench") / "tiny"
    write("tiny", folder, "cpu")
    return folder


def test_weights_that_a_token_is_multiplied_by(tiny: Path) -> None:
    hidden, intermediate, layers, heads, kv_heads, vocabulary, tied = SHAPES["tiny"]
    assert tied
    head = hidden // heads
    layer = 2 * hidden * hidden + 2 * hidden * kv_heads * head + 3 * hidden * intermediate + 2 * hidden
    assert multiplied_parameters(tiny) == layers * layer + hidden + vocabulary * hidden


def test_peaks_are_found_by_the_device_name() -> None:
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_flops("NVIDIA H200") == 989e12
    assert peak_flops("Some Other Device") is None
    assert peak_flops(None) is None


def gpu_table(output: Path, *options: str) -> tuple[int, dict[str, Any]]:
    script = str(BENCH / "gpu" / "table.py")
    command = [sys.executable, script, "--device", "cpu", "--tiny", "--output", str(output), *options]
    environment = {name: value for name, value in os.environ.items() if name != "NASHTUNE_VLLM_PYTHON"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    return done.returncode, json.loads(output.read_text())


def statuses(result: dict[str, Any]) -> dict[str, str]:
    return {row["row"]: row["status"] for row in result["rows"]}


def test_the_sampling_table_of_a_gpu_runs_on_a_cpu(tmp_path: Path, tiny: Path) -> None:
    code, result = gpu_table(tmp_path / "result.json", "--rows", "sampling", "--models", str(tiny))
    assert code == 0, result["rows"]
    got = statuses(result)
    assert got["sampling, tiny: tokens/s vs generate"] == "measured"
    assert got["sampling, tiny: FLOP utilisation, native"] == "not measured"  # no peak is known of a CPU
    for engine in ("native", "generate"):
        [figures] = result["parts"]["sampling"][f"{engine}-tiny"]
        assert figures["tokens"] == 3 * 2 * 4
        assert figures["flops"] > 0


def test_a_gpu_table_out_of_time_says_so(tmp_path: Path) -> None:
    code, result = gpu_table(tmp_path / "result.json", "--limit-s", "0")
    assert code == 0
    assert set(statuses(result).values()) == {"not installed"}
    assert {row["why"] for row in result["rows"]} == {"the run's 0 s were over"}
    code, result = gpu_table(tmp_path / "result.json", "--rows", "sampling", "--limit-s", "0.4")
    assert code == 0
    assert result["parts"]["sampling"]["native-tiny"] == [{"missing": "stopped when the run's 0.4 s were over"}]


def test_training_on_the_gpu_table_runs_on_a_cpu(tmp_path: Path, tiny: Path) -> None:
    command = [sys.executable, str(BENCH / "gpu" / "table.py"), "--part", "training:native-tiny"]
    settings = json.dumps({"device": "cpu", "tiny": True, "models": [str(tiny)]})
    figures = run_json([*command, "--work", str(tmp_path), "--settings", settings], threads=1)
    assert figures["tokens"] > 0
    assert figures["flops"] > 0
    assert figures["mean_loss"] == pytest.approx(0.6931, abs=1e-3)  # ln 2: policy and reference start equal


@pytest.mark.slow
def test_the_whole_gpu_table_runs_on_a_cpu(tmp_path: Path) -> None:
    code, result = gpu_table(tmp_path / "result.json")
    assert code == 0, result["rows"]
    assert statuses(result)["training, tiny: tokens/s vs TRL"] == "measured"


def test_a_meter_counts_children_that_ended() -> None:
    with Meter() as meter:
        subprocess.run([sys.executable, "-c", "sum(range(3_000_000))"], check=True)
    assert meter.cpu > 0.01


COMMANDS = {f.name for f in BENCH.glob("*.py") if 'if __name__ == "__main__"' in f.read_text()}
# Started by other scripts, without options; and judge_cost.py, which loads torch, has a test file of its own.
COMMANDS -= {"vllm_part.py", "random_models.py", "cluster_faults.py", "ray_nodes.py", "judge_cost.py"}


@pytest.mark.parametrize("script", sorted(COMMANDS))
def test_every_benchmark_can_begin(script: str) -> None:
    """What it imports at module level is there."""
    done = subprocess.run([sys.executable, str(BENCH / script), "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("script", ["dispatch.py", "judge_chaos.py"])
def test_benchmarks_start_their_judge_server(script: str) -> None:
    command = [sys.executable, str(BENCH / script), "--part", "serve"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        said = server.stdout.readline()
        server.kill()
    assert said.strip()
