import sys

import pytest
import torch

from nashtune.model.allocator import freed_memory_kept
from nashtune.model.attention import AttentionStyle, Block, PackedLayout, masked_attention
from nashtune.model.dense_attention import bias_of, dense_attention

STYLES = [AttentionStyle(None), AttentionStyle(0.3), AttentionStyle(None, window=4), AttentionStyle(None, softcap=2.0)]


def tensors(layout: PackedLayout, kv_heads: int, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    length = sum(block.length for block in layout.blocks)
    shapes = ((1, 4, length, 8), (1, kv_heads, length, 8), (1, kv_heads, length, 8))
    return [torch.randn(s, generator=generator).to(dtype).requires_grad_() for s in shapes]


def outcome(layout: PackedLayout, kv_heads: int, style: AttentionStyle, dtype=torch.float32) -> list[torch.Tensor]:
    given = tensors(layout, kv_heads, dtype)
    query, key, value = given
    out = layout.attend(query, key, value, style)
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


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("blocks", [[Block(30, (12, 20))], [Block(6, (3,)), Block(4, (2, 0, 5)), Block(1, (1, 1))]])
def test_segments_in_bf16_are_near_those_in_float32(kv_heads: int, style: AttentionStyle, blocks: list[Block]) -> None:
    layout = PackedLayout(blocks)
    exact = outcome(layout, kv_heads, style)
    rounded = outcome(layout, kv_heads, style, torch.bfloat16)
    for ours, wanted in zip(rounded, exact, strict=True):
        assert ours.dtype == torch.bfloat16
        torch.testing.assert_close(ours.float(), wanted, rtol=0.02, atol=0.03)


@pytest.mark.parametrize("before", [0, 40])
def test_the_dense_way_is_as_near_to_float32_as_the_fused_kernel(before: int) -> None:
    """In bf16, by the mean error of outputs and gradients."""
    generator = torch.Generator().manual_seed(5)
    rows, columns = 90, 90 + before
    exact = [torch.randn(1, h, n, 32, generator=generator) for h, n in ((6, rows), (2, columns), (2, columns))]
    seen = torch.ones(rows, columns, dtype=torch.bool).tril(before)

    def results(dtype: torch.dtype, dense: bool) -> list[torch.Tensor]:
        query, key, value = given = [t.to(dtype, copy=True).requires_grad_() for t in exact]
        if dense:
            keys, values = ([t[:, :, :before], t[:, :, before:]] if before else [t] for t in (key, value))
            out = dense_attention(query, keys, values, bias_of(seen), None)
        else:
            out = masked_attention(query, key, value, seen, AttentionStyle(None))
        (out.float() * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum().backward()
        return [out.detach().float(), *(t.grad.float() for t in given if t.grad is not None)]

    wanted = results(torch.float32, False)
    fused, ours = results(torch.bfloat16, False), results(torch.bfloat16, True)
    for a, b, c in zip(wanted, fused, ours, strict=True):
        assert 0 < (c - a).abs().mean() < 1.5 * (b - a).abs().mean() + 1e-4


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
