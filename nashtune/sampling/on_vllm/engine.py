"""The vLLM engine: what runs in its own process, as an engine of this project."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig

from nashtune.errors import SamplingError
from nashtune.recipe import VllmProcessSection, VllmSection
from nashtune.records import Finish, Policy
from nashtune.sampling.engine import Completion, Request, SamplingParams
from nashtune.sampling.on_vllm.adapters import compose, rank_of, served_rank
from nashtune.sampling.on_vllm.check import compare, plain_logprobs, probe
from nashtune.sampling.on_vllm.place import child_variables, interpreter
from nashtune.sampling.on_vllm.process import VllmProcess
from nashtune.sampling.on_vllm.target import Target
from nashtune.sampling.support import check_params, check_requests, context_limit

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FINISHES: dict[str, Finish] = {"stop": "stop", "length": "length"}
PASSING = {"dtype", "torch_dtype", "transformers_version", "_name_or_path", "name_or_path", "_attn_implementation"}
"""Fields of a model's configuration that its weights may differ in and still load into the same engine."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What an engine process is started with; two targets of one setup and architecture can be served in turn."""

    section: VllmProcessSection
    dtype: torch.dtype
    context: int
    lora_rank: int = 0

    @staticmethod
    def of(section: VllmProcessSection, dtype: torch.dtype, target: Target) -> Setup:
        return Setup(section, dtype, target.context, target.lora_rank)


class VllmEngine:
    """Answers as one target at a time; ``serve`` changes it without starting vLLM anew where that can be.

    ``starts`` and ``refreshes`` count how often a process was started and weights were loaded into a running one;
    ``cached_tokens`` the prompt tokens that the prefix cache spared.
    """

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.starts = self.refreshes = self.cached_tokens = 0
        self.target: Target | None = None
        self._process: VllmProcess | None = None
        self._loaded: str | None = None  # fingerprint of the base weights in the engine, None where they were let go of
        self._shape: dict[str, Any] = {}
        self._asleep = self._sleeps = False
        self._plain: dict[str, list[float]] = {}
        self._composed = tempfile.TemporaryDirectory(prefix="nashtune-adapters-")

    @property
    def process(self) -> VllmProcess:
        if self._process is None:
            raise SamplingError("the vLLM engine serves nothing; call serve first")
        return self._process

    def serve(self, target: Target, tokenizer: PreTrainedTokenizerBase) -> None:
        """Answer as ``target`` from now on. Raises SamplingError where its log-probs are not those of its own plain forward
        pass, or the engine cannot be started."""
        config = AutoConfig.from_pretrained(target.base.folder, trust_remote_code=target.base.trust_remote_code)
        limit = context_limit(config.get_text_config())
        self.context = self.setup.context if limit is None else min(limit, self.setup.context)
        self.vocabulary = config.get_text_config().vocab_size
        self.tokenizer, self.target = tokenizer, target
        ids = probe(tokenizer, self.context)
        plain = self._expected(target, ids)  # before vLLM takes the device's memory
        shape = {key: value for key, value in config.to_dict().items() if key not in PASSING}
        if self._process is None or not self._process.alive or shape != self._shape or not self._change(target.base):
            self.close()
            self._start(target.base)
        self._shape, self._loaded = shape, target.base.fingerprint
        if self.setup.lora_rank:
            self.process.call("adapt", folder=self._adapter(target))
        if plain is not None:
            compare(target.policy, plain, self.process.call("score", ids=ids)["logprobs"], self.setup.dtype)

    def generate(self, requests: Sequence[Request], params: SamplingParams) -> Iterator[Completion]:
        """Yield every completion of every request, in order. Raises SamplingError on a bad request or setting, before
        anything is sampled, and where vLLM fails."""
        check_params(params)
        check_requests(requests, params, self.context, self.vocabulary)
        places = [(request, k) for request in requests for k in range(len(request.seeds))]
        if not places:
            return
        reply = self.process.call(
            "generate",
            prompts=[list(request.token_ids) for request in requests],
            seeds=[list(request.seeds) for request in requests],
            top=params.top_logprobs,
            params={
                "temperature": params.temperature,
                "top_p": params.top_p,
                "top_k": params.top_k,
                "max_tokens": params.max_new_tokens,
                "stop_token_ids": list(params.stop_token_ids),
            },
        )
        self.cached_tokens += reply["cached"]
        for (request, k), (ids, finish, logprob, top) in zip(places, reply["answers"], strict=True):
            likely = tuple({int(token): float(value) for token, value in place} for place in top or ())
            yield replace(self._completion(request, k, ids, finish, logprob, params), top_logprobs=likely)

    def rest(self) -> bool:
        """Give back the device's memory until ``serve`` is called again; False where the process was ended instead. On CPUs
        vLLM keeps its memory."""
        section = self.setup.section
        sleeps = isinstance(section, VllmSection) and section.between_stages == "sleep"
        if self._process is None or not self._process.alive or not sleeps:
            self.close()
            return False
        if self._sleeps and not self._asleep:
            level = 1 if self.setup.lora_rank else 2  # the base weights of adapters will be wanted again
            self.process.call("sleep", level=level)
            self._asleep, self._loaded = True, self._loaded if level == 1 else None
        return True

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.stop()
        self._process = self._loaded = None
        self._asleep = False

    def _start(self, base: Policy) -> None:
        section = self.setup.section
        variables = child_variables(section)
        if not base.trust_remote_code:
            variables |= {"HF_HUB_OFFLINE": "1"}  # the weights are a folder here
        settings: dict[str, Any] = {
            "dtype": str(self.setup.dtype).removeprefix("torch."),
            "max_model_len": self.context,
            "tensor_parallel_size": section.tensor_parallel,
            "gpu_memory_utilization": section.gpu_memory_utilization,
            "enforce_eager": section.enforce_eager,
            "trust_remote_code": base.trust_remote_code,
        }
        if section.max_num_seqs is not None:
            settings["max_num_seqs"] = section.max_num_seqs
        if self.setup.lora_rank:
            settings |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": served_rank(self.setup.lora_rank)}
        self._process = VllmProcess(interpreter(section), variables)
        found = self._process.call("start", model=str(base.folder), settings=settings)
        self._sleeps, self._asleep = found["sleeps"], False
        self.starts += 1

    def _change(self, base: Policy) -> bool:
        """Load other weights into the running engine; False where this vLLM cannot."""
        if self._asleep:
            forgotten = self._loaded is None
            found = self.process.call("wake", model=str(base.folder) if forgotten else None)
            self._asleep = False
            if forgotten:
                self._loaded = base.fingerprint
                self.refreshes += 1
            if not found["refreshed"]:
                return False
        if self._loaded != base.fingerprint:
            self.refreshes += 1
            return self.process.call("refresh", model=str(base.folder))["refreshed"]
        return True

    def _adapter(self, target: Target) -> str | None:
        """The folder of what is served on top of the base: an adapter as it is, or the sum of several."""
        folders = target.adapters
        if not folders:
            return None
        if rank_of(folders) > self.setup.lora_rank:
            raise SamplingError(
                f"adapters of rank {rank_of(folders)} together, but the engine was started for {self.setup.lora_rank}"
            )
        if len(folders) == 1:
            return str(folders[0])
        whole = Path(self._composed.name) / target.policy.fingerprint
        return str(whole if whole.is_dir() else compose(folders, whole))

    def _expected(self, target: Target, ids: list[int]) -> list[float] | None:
        """The target's own log-probs of the probe, computed once per policy; None where the recipe wants no check."""
        if not self.setup.section.check:
            return None
        key = json.dumps([target.policy.fingerprint, ids])
        if key not in self._plain:
            many = self.setup.section.tensor_parallel > 1  # then one device may be too small for the model
            self._plain[key] = plain_logprobs(target.policy, ids, self.setup.dtype, on_cpu=many)
        return self._plain[key]

    def _completion(
        self, request: Request, k: int, ids: list[int], finish: str, logprob: float, params: SamplingParams
    ) -> Completion:
        who = f"prompt {request.prompt_id}, answer {k}"
        if finish not in FINISHES:
            raise SamplingError(f"{who}: vLLM ended it with {finish!r}; accepted: {', '.join(FINISHES)}")
        if not math.isfinite(logprob):
            raise SamplingError(
                f"{who}: the model's log-probs are not finite; the weights are damaged, or their values too large for "
                f"{self.setup.dtype}"
            )
        stopped = ids[-1] in params.stop_token_ids
        text = self.tokenizer.decode(ids[:-1] if stopped else ids, skip_special_tokens=True)
        assert isinstance(text, str)
        return Completion(request.prompt_id, k, text, tuple(ids), "stop" if stopped else FINISHES[finish], logprob)
