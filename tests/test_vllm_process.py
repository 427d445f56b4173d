"""The protocol with the vLLM process, with a real child and its faults; the engine inside it is a stand-in."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from tiny_chat import write_tiny_policy

import nashtune.sampling.on_vllm.process as protocol
from nashtune.errors import SamplingError
from nashtune.model.loading import find_policy, load_tokenizer
from nashtune.recipe import PolicySection, VllmSection
from nashtune.sampling.engine import Completion, Request, SamplingParams
from nashtune.sampling.on_vllm.engine import Setup, VllmEngine
from nashtune.sampling.on_vllm.place import check_installed, interpreter, version_in
from nashtune.sampling.on_vllm.process import VllmProcess
from nashtune.sampling.on_vllm.target import Target

STANDIN = Path(__file__).parent / "vllm_standin"
PYTHON = Path(sys.executable)
REQUESTS = [Request(f"p{i}", (), tuple(range(40, 50 + i)), (3, 4)) for i in range(2)]
PARAMS = SamplingParams(max_new_tokens=8)


@pytest.fixture
def standin(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The stand-in on the child's path; faults are chosen with $STANDIN_FAULT."""
    monkeypatch.setenv("PYTHONPATH", str(STANDIN))
    monkeypatch.delenv("NASHTUNE_VLLM_PYTHON", raising=False)
    return monkeypatch


def engine(policy: Path) -> VllmEngine:
    setup = Setup(VllmSection(check=False), torch.float32, 128)
    made = VllmEngine(setup)
    serve(made, policy)
    return made


def serve(engine: VllmEngine, folder: Path) -> None:
    policy = find_policy(PolicySection(model=str(folder)))
    engine.serve(Target(policy, policy, context=128), load_tokenizer(policy))


def sample(engine: VllmEngine) -> list[Completion]:
    return list(engine.generate(REQUESTS, PARAMS))


def gone(pid: int) -> bool:
    try:
        return not psutil.wait_procs([psutil.Process(pid)], timeout=30)[1]
    except psutil.NoSuchProcess:
        return True


def test_whatever_the_child_prints_the_answers_arrive_whole(standin: pytest.MonkeyPatch, tiny_folder: Path) -> None:
    standin.setenv("STANDIN_FAULT", "print")
    made = engine(tiny_folder / "policy")
    found = sample(made)
    assert [(c.prompt_id, c.k) for c in found] == [("p0", 0), ("p0", 1), ("p1", 0), ("p1", 1)]
    assert [c.token_ids for c in found] == [(68,) * 3, (69,) * 3] * 2
    assert {c.logprob for c in found} == {-4.5}
    pid = made.process.pid
    made.close()
    assert gone(pid)


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("die", r"died \(signal SIGKILL\) during 'generate'; run the same command again[\s\S]*about to be killed"),
        ("generate", "could not generate: ValueError: prompt is too long"),
        ("abort", "prompt p0, answer 0: vLLM ended it with 'abort'; accepted: stop, length"),
    ],
)
def test_a_failing_child_is_an_error_with_its_own_words(
    standin: pytest.MonkeyPatch, tiny_folder: Path, fault: str, told: str
) -> None:
    made = engine(tiny_folder / "policy")
    made.close()
    standin.setenv("STANDIN_FAULT", fault)
    serve(made, tiny_folder / "policy")
    pid = made.process.pid
    with pytest.raises(SamplingError, match=told):
        sample(made)
    made.close()
    assert gone(pid)


def test_a_child_that_cannot_load_the_model_says_why(standin: pytest.MonkeyPatch, tiny_folder: Path) -> None:
    standin.setenv("STANDIN_FAULT", "start")
    with pytest.raises(SamplingError, match="could not start: RuntimeError: No available memory"):
        engine(tiny_folder / "policy")


@pytest.mark.parametrize(("fault", "starts", "refreshes"), [("", 1, 1), ("no reload", 2, 1)])
def test_weights_are_refreshed_in_place_where_that_can_be(
    standin: pytest.MonkeyPatch, tiny_folder: Path, tmp_path: Path, fault: str, starts: int, refreshes: int
) -> None:
    standin.setenv("STANDIN_FAULT", fault)
    made = engine(tiny_folder / "policy")
    serve(made, tiny_folder / "policy")
    assert (made.starts, made.refreshes) == (1, 0)  # the same weights are not loaded twice
    serve(made, write_tiny_policy(tmp_path / "other", seed=1))
    assert (made.starts, made.refreshes) == (starts, refreshes)
    assert len(sample(made)) == 4
    serve(made, write_tiny_policy(tmp_path / "qwen", seed=1, family="qwen3"))
    assert made.starts == starts + 1  # another architecture needs another engine
    made.close()


def test_answers_of_a_prefix_cache_that_cannot_be_reset_are_refused(
    standin: pytest.MonkeyPatch, tiny_folder: Path, tmp_path: Path
) -> None:
    standin.setenv("STANDIN_FAULT", "no reset")
    made = engine(tiny_folder / "policy")
    with pytest.raises(SamplingError, match="the prefix cache could not be reset"):
        serve(made, write_tiny_policy(tmp_path / "other", seed=1))


def test_another_version_of_the_protocol_is_refused(standin: pytest.MonkeyPatch) -> None:
    standin.setattr(protocol, "PROTOCOL", 99)
    with pytest.raises(SamplingError, match="speaks protocol 2; accepted: 99"):
        VllmProcess(PYTHON)


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        ("b'INFO 11-25 loading weights'", "something that is no frame"),
        ("(5).to_bytes(8, 'big') + b'hello'", "a frame that is not JSON"),
        ("(7).to_bytes(8, 'big') + b'[1,2,3]'", "a frame that is not JSON: a frame holds list"),
        ("(50).to_bytes(8, 'big') + b'{'", r"died \(exit code 3\) as it started"),
    ],
)
def test_garbage_in_the_protocol_itself_is_an_error(
    standin: pytest.MonkeyPatch, tmp_path: Path, sent: str, told: str
) -> None:
    child = tmp_path / "child.py"
    child.write_text(f"import socket, sys\nsocket.socket(fileno=int(sys.argv[1])).sendall({sent})\nsys.exit(3)\n")
    standin.setattr(protocol, "CHILD", child)
    with pytest.raises(SamplingError, match=told):
        VllmProcess(PYTHON)


def test_without_vllm_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from nashtune.recipe import SamplingSection

    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.delenv("NASHTUNE_VLLM_PYTHON", raising=False)
    with pytest.raises(SamplingError, match=r"no vllm package.*pip install vllm.*sampling\.vllm\.python"):
        VllmProcess(PYTHON)
    with pytest.raises(SamplingError, match=r"no vllm package"):
        check_installed(SamplingSection(engine="vllm"))
    check_installed(SamplingSection())
    with pytest.raises(SamplingError, match=r"sampling\.vllm\.python: .*nowhere is not a program"):
        interpreter(VllmSection(python=str(tmp_path / "nowhere")))
    monkeypatch.setenv("NASHTUNE_VLLM_PYTHON", str(tmp_path))
    with pytest.raises(SamplingError, match=r"\$NASHTUNE_VLLM_PYTHON: .* is not a program"):
        interpreter(VllmSection())


def test_another_interpreter_does_not_see_this_ones_packages(standin: pytest.MonkeyPatch, tmp_path: Path) -> None:
    other = tmp_path / "python"
    other.symlink_to(Path(sys.executable).resolve())  # outside its environment, so without the environment's packages
    assert version_in(PYTHON) == "installed"
    assert version_in(other) is None
    with pytest.raises(SamplingError, match="no vllm package"):
        VllmProcess(other)


def test_the_child_leaves_with_a_parent_that_was_killed(standin: pytest.MonkeyPatch) -> None:
    standin.setenv("PYTHONPATH", f"{STANDIN}:{Path(__file__).parent.parent}")
    code = (
        "import os, signal, sys\nfrom pathlib import Path\n"
        "from nashtune.sampling.on_vllm.process import VllmProcess\n"
        "child = VllmProcess(Path(sys.executable))\nprint(child.pid, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)\n"
    )
    parent = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert parent.returncode == -signal.SIGKILL, parent.stderr
    assert gone(int(parent.stdout))


def test_a_child_that_dies_while_nothing_is_asked_is_started_again(
    standin: pytest.MonkeyPatch, tiny_folder: Path
) -> None:
    made = engine(tiny_folder / "policy")
    os.kill(made.process.pid, signal.SIGKILL)
    assert gone(made.process.pid)
    serve(made, tiny_folder / "policy")
    assert made.starts == 2
    assert len(sample(made)) == 4
    made.close()
