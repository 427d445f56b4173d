"""Forward passes of the native engine: packed prompts, steps of slots, and their check against the model's own."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from nashtune.errors import ModelError
from nashtune.model.attention import ATTENTION, Block, PackedLayout
from nashtune.sampling.slots import STEP, PromptCache, SlotCache, Step, round_up

TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}
LONGEST_CHECKED = 512


def prefill(model: Any, prompts: Sequence[Sequence[int]], layout: PackedLayout) -> tuple[PromptCache, Tensor]:
    """Compute prompts in one packed pass -> keys and values, logits of each prompt's last token [P, V]."""
    cache = PromptCache()
    ends = torch.tensor([len(p) for p in prompts], device=model.device).cumsum(0) - 1
    ids = torch.tensor([[i for p in prompts for i in p]], device=model.device)
    out = model(
        ids,
        position_ids=layout.position_ids,
        use_cache=True,
        layout=layout,
        logits_to_keep=ends,
        **_as_cache(model, cache),
    )
    return cache, out.logits[0]


def decode(model: Any, cache: SlotCache, step: Step) -> Tensor:
    """One step of rows 0..n-1 -> logits [n, V]."""
    cache.begin_step(step)
    ids, where = step.tokens[:, None], (step.prompt + step.own)[:, None]
    return model(ids, position_ids=where, use_cache=True, layout=cache, **_as_cache(model, cache)).logits[:, 0]


def _as_cache(model: Any, cache: PromptCache | SlotCache) -> dict[str, Any]:
    """The cache under the name that the model's forward pass gives it: transformers renamed it from 5.24 on."""
    return {_cache_name(type(model)): cache}


@lru_cache
def _cache_name(model: type) -> str:
    return "cache" if "cache" in signature(model.forward).parameters else "past_key_values"


def check_forward(model: Any) -> None:
    """Compare prefill and decode with the model's own eager attention on a short text, longer than a short sliding window.

    Raises ModelError where the logits differ by more than rounding allows, as they would for an architecture whose
    attention needs something that no layout of this engine carries. A window of more than ``LONGEST_CHECKED`` tokens is
    not reached by the text.
    """
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None) or 0
    length = 12 + (window if window <= LONGEST_CHECKED else 0)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(config.vocab_size, (length + 4,), generator=generator).to(model.device)
    ours, at = _engine_logits(model, ids, (length, length - 3))
    model.set_attn_implementation("eager")
    try:
        plain = model(ids[None], use_cache=False).logits[0, at].float()
    finally:
        model.set_attn_implementation(ATTENTION)
    error = ((ours.float() - plain).std() / plain.std()).item()
    allowed = TOLERANCE[model.dtype]
    if not error <= allowed:
        raise ModelError(
            f"{type(model).__name__}: logits of the native engine differ from the model's own forward pass by "
            f"{error:.2g} of their spread; accepted for {model.dtype}: up to {allowed}"
        )


def _engine_logits(model: Any, ids: Tensor, lengths: tuple[int, int]) -> tuple[Tensor, list[int]]:
    """Two prompts that begin as ``ids`` does, then three steps of three rows, two of which share the first prompt ->
    logits [2 + 9, V], the token of ``ids`` that each belongs to."""
    prompts = [ids[:length].tolist() for length in lengths]
    layout = PackedLayout([Block(length) for length in lengths], model.device)
    cache, last = prefill(model, prompts, layout)
    slots = SlotCache(3, STEP, max(lengths))
    for number, start in enumerate((0, lengths[0])):
        slots.admit_prompt(number, cache, start, lengths[number])
    place, members, prompt = (
        ids.new_tensor(x) for x in ([0, 2, 1], [0, 2, 1, 0], [lengths[0], lengths[1], lengths[0]])
    )
    logits, at = [last], [length - 1 for length in lengths]
    for count in range(3):
        own = ids.new_tensor([count, count, max(0, count - 1)])  # the row that shares the prompt lags one step behind
        where = prompt + own
        columns = (round_up(max(lengths)), STEP)
        logits.append(decode(model, slots, Step(ids[where], own, prompt, place, members, 2, columns)))
        at += where.tolist()
    return torch.cat(logits), at
