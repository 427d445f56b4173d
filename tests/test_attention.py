import sys

import pytest
import torch

from nashtune.model.allocator import freed_memory_kept
from nashtune.model.attention import AttentionStyle, Block, PackedLayout

STYLES = [AttentionStyle(None), AttentionStyle(0.3), AttentionStyle(None, window=4), AttentionStyle(None, softcap=2.0)]


def tensors(layout: PackedLayout, kv_heads: int, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    length = sum(block.length for block in layout.blocks)
    shapes = ((1, 4, length, 8), (1, kv_heads, length, 8), (1, kv_heads, length, 8))
    return [torch.randn(s, generator=generator).to(dtype).requires_grad_() for s in shapes]


def outcome(layout: PackedLayout, kv_heads: int, style: AttentionStyle, dtype=torch.float32) -> list[torch.Tensor]:
    given = tensors(layout, kv_heads, dtype)
    out = layout.attend(*given, style)
    weights = torch.linspace(-1, 1, out.numel()).view(out.shape)
    (out * weights).sum().backward()
    return [out.detach(), *(t.grad for t in given)]  # type: ignore[misc]


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize(
    "style",
    [AttentionStyle(None), AttentionStyle(0.3), AttentionStyle(None, window=4), AttentionStyle(None, softcap=2.0)],
)
@pytest.mark.parametrize("blocks", [[Block(5)], [Block(6, (3,)), Block(4, (2, 0, 5)), Block(1, (1, 1))]])
def test_segments_agree_with_whole_masked_blocks_in_value_and_gradient(kv_heads, style, blocks):
    small = outcome(PackedLayout(blocks), kv_heads, style)
    fused = outcome(PackedLayout(blocks, kernel="blocks"), kv_heads, style)
    for ours, theirs in zip(small, fused, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_short_segments_compute_bf16_inputs_in_float32():
    layout = PackedLayout([Block(30, (12, 20))])
    exact = outcome(layout, 2, AttentionStyle(None))
    rounded = outcome(layout, 2, AttentionStyle(None), torch.bfloat16)
    for ours, wanted in zip(rounded, exact, strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours.float() - wanted).abs().max() < 0.03


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator only")
def test_freed_memory_is_kept_inside_and_given_back_after():
    import psutil

    process, size = psutil.Process(), 256 << 20
    with freed_memory_kept():
        block = torch.ones(size, dtype=torch.uint8)
        del block
        inside = process.memory_info().rss
    after = process.memory_info().rss
    assert inside - after > size // 2
