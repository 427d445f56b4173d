"""Packed attention by torch's flex attention: who sees whom is a function of two positions, compiled into the kernel.

Blocks of the mask in which nobody sees anybody (an answer and another prompt's, say) are not computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

if TYPE_CHECKING:
    from nashtune.model.attention import AttentionStyle, Block


def block_mask(blocks: Sequence[Block], window: int | None, device: torch.device) -> BlockMask:
    """The mask of packed blocks [L, L]: tokens see what comes before them in their own segment and in their prompt."""
    segments = [n for block in blocks for n in (block.prompt, *block.branches)]
    prompts = [s for b, block in enumerate(blocks) for s in [_first(blocks, b)] * (1 + len(block.branches))]
    counts = torch.tensor(segments)
    segment = torch.repeat_interleave(torch.arange(len(segments)), counts).to(device)
    prompt = torch.repeat_interleave(torch.tensor(prompts), counts).to(device)
    place = torch.cat([block.positions for block in blocks]).to(device)

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        known = (segment[key] == segment[query]) | (segment[key] == prompt[query])
        seen = (query >= key) & known
        return seen if window is None else seen & (place[query] - place[key] < window)

    length = sum(segments)
    return create_block_mask(sees, None, None, length, length, device=device)


def _first(blocks: Sequence[Block], number: int) -> int:
    """The segment that is the prompt of block ``number``."""
    return sum(1 + len(block.branches) for block in blocks[:number])


def attend(query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, style: AttentionStyle, compiled: bool) -> Tensor:
    """query [1, heads, L, D], key and value [1, kv_heads, L, D] -> [1, heads, L, D]. Without ``compiled`` all scores are
    held at once: for tests."""
    capped = None if style.softcap is None else partial(_capped, style.softcap)
    function = _compiled() if compiled else flex_attention
    grouped = key.shape[1] != query.shape[1]
    return function(query, key, value, score_mod=capped, block_mask=mask, scale=style.scale, enable_gqa=grouped)  # type: ignore[return-value]


def _capped(cap: float, score: Tensor, *_: Tensor) -> Tensor:
    return torch.tanh(score / cap) * cap


@cache
def _compiled() -> Callable[..., Any]:
    return torch.compile(flex_attention, dynamic=True)
