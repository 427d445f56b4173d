"""A stand-in for the vllm package: NOT an engine. It lets tests of the process protocol make a real child process misbehave.

What it does wrong is named by $STANDIN_FAULT. Its answers are made up from the seeds alone; nothing about sampling may be
tested against it (tests/test_vllm_real.py does that, with vLLM).
"""

import os
import signal
import sys
from types import SimpleNamespace

__version__ = "0.0.standin"


def fault(name: str) -> bool:
    return os.environ.get("STANDIN_FAULT") == name


class SamplingParams(SimpleNamespace):
    pass


class LLM:
    def __init__(self, **settings):
        print("loading", settings["model"])
        if fault("start"):
            raise RuntimeError("No available memory for the cache blocks")
        self.llm_engine = SimpleNamespace(remove_lora=lambda number: None)

    def generate(self, prompts, params, use_tqdm, lora_request):
        if fault("die"):
            print("about to be killed", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        if fault("print"):
            os.write(1, b"\x00\xff{}" * 5000)
            sys.stderr.write("noise " * 5000)
        if fault("generate"):
            raise ValueError("prompt is too long")
        return [self._answer(prompt["prompt_token_ids"], own) for prompt, own in zip(prompts, params, strict=True)]

    def _answer(self, prompt, params):
        ids = [65 + params.seed % 26] * min(3, params.max_tokens)
        steps = [{token: SimpleNamespace(logprob=-1.5)} for token in ids]
        finish = "abort" if fault("abort") else "length"
        return SimpleNamespace(
            outputs=[SimpleNamespace(token_ids=ids, finish_reason=finish, logprobs=steps)], num_cached_tokens=None
        )

    def collective_rpc(self, name, kwargs):
        if fault("no reload"):
            raise NotImplementedError("reload_weights")

    def reset_prefix_cache(self):
        return not fault("no reset")
