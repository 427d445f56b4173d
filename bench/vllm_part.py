"""A sampling job (JSON on standard input) by vLLM, with the Python of an environment that has it; prints JSON figures."""

from __future__ import annotations

import json
import os
import sys

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine in this process, so that its CPU time is counted
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

from measure import Meter


def main() -> None:
    job = json.loads(sys.stdin.read())
    import vllm

    longest = max(map(len, job["prompts"])) + job["new_tokens"]
    engine = vllm.LLM(
        model=job["model"],
        dtype=job["dtype"],
        max_num_seqs=job["rows"],
        max_model_len=longest + 1,
        generation_config="vllm",  # the settings are the job's, not the model's own
        enable_prefix_caching=True,
        disable_log_stats=True,
    )
    settings = {"temperature": job["temperature"], "top_p": job["top_p"], "max_tokens": job["new_tokens"]}
    prompts = [{"prompt_token_ids": ids} for ids in job["prompts"]]

    def params(n: int) -> vllm.SamplingParams:
        return vllm.SamplingParams(n=job["k"], seed=n, ignore_eos=not job["ends"], **settings)

    engine.generate(prompts[:2], [params(n) for n in range(2)][: len(prompts)], use_tqdm=False)
    engine.reset_prefix_cache()
    with Meter() as meter:
        done = engine.generate(prompts, [params(n) for n in range(len(prompts))], use_tqdm=False)
    tokens = sum(len(answer.token_ids) for request in done for answer in request.outputs)
    print("\n" + json.dumps(meter.figures(tokens) | {"version": vllm.__version__}))


if __name__ == "__main__":
    main()
