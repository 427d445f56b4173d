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
from nashtune.sampling.slots import PromptCache, SlotCache

TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}


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


def decode(model: Any, cache: SlotCache, tokens: Tensor, positions: Tensor, longest: int) -> Tensor:
    """One step for rows 0..n-1: tokens [n] at ``positions`` [n], the greatest ``longest`` -> logits [n, V]."""
    cache.begin_step(positions, longest)
    ids, where = tokens[:, None], positions[:, None]
    return model(ids, position_ids=where, use_cache=True, layout=cache, **_as_cache(model, cache)).logits[:, 0]


def _as_cache(model: Any, cache: PromptCache | SlotCache) -> dict[str, Any]:
    """The cache under the name that the model's forward pass gives it: transformers renamed it from 5.24 on."""
    return {_cache_name(type(model)): cache}


@lru_cache
def _cache_name(model: type) -> str:
    return "cache" if "cache" in signature(model.forward).parameters else "past_key_values"


def check_forward(model: Any) -> None:
    """Compare prefill and decode, in rows of two lengths, with the model's own eager attention on a short text.

    Raises ModelError where the logits differ by more than rounding allows, as they would for an architecture whose
    attention needs something that no layout of this engine carries.
    """
    vocabulary = model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (16,), generator=generator).to(model.device)
    prompts = [ids[:12].tolist(), ids[:9].tolist()]
    layout = PackedLayout([Block(len(p)) for p in prompts], model.device)
    cache, last = prefill(model, prompts, layout)
    slots = SlotCache(2, 16)
    for row, (block, start) in enumerate(zip(layout.blocks, (0, 12), strict=True)):
        slots.admit(torch.tensor([row], device=ids.device), cache, start, block.length)
    ours, plain_at = [last], [11, 8]
    for step in range(3):
        positions = torch.tensor([12 + step, 9 + step], device=ids.device)
        ours.append(decode(model, slots, ids[positions], positions, 12 + step))
        plain_at += positions.tolist()
    model.set_attn_implementation("eager")
    try:
        plain = model(ids[None], use_cache=False).logits[0, plain_at].float()
    finally:
        model.set_attn_implementation(ATTENTION)
    error = ((torch.cat(ours).float() - plain).std() / plain.std()).item()
    allowed = TOLERANCE[model.dtype]
    if not error <= allowed:
        raise ModelError(
            f"{type(model).__name__}: logits of the native engine differ from the model's own forward pass by "
            f"{error:.2g} of their spread; accepted for {model.dtype}: up to {allowed}"
        )
