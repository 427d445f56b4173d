"""Talking to a policy of a run."""

from __future__ import annotations

from typing import TextIO

from nashtune.errors import StoreError
from nashtune.records import Message, Policy
from nashtune.run import Run


def talk(
    run: Run, iteration: int | None, system: str | None, temperature: float, max_new_tokens: int, lines: TextIO
) -> None:
    """Read the user's turns from ``lines``, stream the policy's to standard output; ends at an empty line."""
    policy = pick_policy(run, iteration)
    import torch
    from transformers import GenerationConfig, TextStreamer

    from nashtune.model.loading import end_token_ids, load_model, load_tokenizer, pick_dtype, render

    tokenizer = load_tokenizer(policy)
    model = load_model(policy, pick_dtype(run.recipe.sampling.dtype), attention="sdpa")
    sampled = {"do_sample": True, "temperature": temperature, "top_p": run.recipe.sampling.top_p} if temperature else {}
    ends = list(end_token_ids(policy, tokenizer))
    settings = GenerationConfig(max_new_tokens=max_new_tokens, eos_token_id=ends, pad_token_id=ends[0], **sampled)
    turns = [Message("system", system)] if system else []
    print(f"{policy.name}; an empty line ends", flush=True)
    while True:
        print("> ", end="", flush=True)
        said = lines.readline().strip()
        if not said:
            return
        turns.append(Message("user", said))
        prompt = torch.tensor([render(tokenizer, turns)], device=model.device)
        streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)  # type: ignore[arg-type]
        output = model.generate(prompt, generation_config=settings, streamer=streamer)  # type: ignore[operator]
        answer = tokenizer.decode(output[0, prompt.shape[1] :], skip_special_tokens=True)
        turns.append(Message("assistant", str(answer)))


def pick_policy(run: Run, iteration: int | None) -> Policy:
    """The policy of an iteration, the best one if None. Raises StoreError naming the iterations there are."""
    best = run.best()
    number = iteration if iteration is not None else (best.iteration if best else 0)
    trained = [0, *(t for t in run.iterations() if run.stage(t, "train").file.exists())]
    if number not in trained:
        raise StoreError(f"{run.folder}: no policy of iteration {number}; accepted: {trained}")
    from nashtune.stages.work import policy_of

    return policy_of(run, number)
