"""Packed attention's other kernels against the segment-by-segment one, in values and gradients."""

from __future__ import annotations

import pytest
import torch
from test_attention import STYLES, tensors
from torch import Tensor
from torch.nn.attention.flex_attention import create_mask

from nashtune.errors import ModelError
from nashtune.model import attention, flex, varlen
from nashtune.model.attention import AttentionStyle, Block, PackedLayout, check_kernel, masked_attention

CPU = torch.device("cpu")
BLOCKS = [
    [Block(5)],
    [Block(6, (3,)), Block(4, (2, 0, 5)), Block(1, (1, 1))],
    [Block(70, (90, 33)), Block(140, (1, 0)), Block(20, (20, 20, 20))],  # several of flex's blocks of 128
]


def outcome(given: list[Tensor], out: Tensor) -> list[Tensor]:
    (out * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum().backward()
    return [out.detach(), *(t.grad for t in given)]  # type: ignore[misc]


def expected(blocks: list[Block], kv_heads: int, style: AttentionStyle) -> list[Tensor]:
    layout = PackedLayout(blocks, kernel="segments")
    given = tensors(layout, kv_heads, torch.float32)
    return outcome(given, layout.attend(*given, style))


def by_sequence(query: Tensor, key: Tensor, value: Tensor, layout: varlen.Sequences, style: AttentionStyle) -> Tensor:
    """What a flash kernel is documented to compute, sequence after sequence: row i of n queries and m keys sees keys up to
    i + m - n, the last ``window`` of them."""
    out = []
    for n in range(len(layout.query_ends) - 1):
        rows, columns = slice(*layout.query_ends[n : n + 2]), slice(*layout.key_ends[n : n + 2])
        q, k, v = query[rows], key[columns], value[columns]
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) * (style.scale or q.shape[-1] ** -0.5)
        scores = scores if style.softcap is None else style.softcap * torch.tanh(scores / style.softcap)
        distance = torch.arange(len(q))[:, None] + len(k) - len(q) - torch.arange(len(k))
        seen = (distance >= 0) & (distance < (style.window or len(k)))
        out.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, -torch.inf).softmax(-1), v))
    return torch.cat(out)


@pytest.mark.parametrize("kv_heads", [1, 4])
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("blocks", BLOCKS)
def test_sequences_agree_with_segments(kv_heads: int, style: AttentionStyle, blocks: list[Block]) -> None:
    layout = varlen.sequences(blocks, CPU)
    assert layout.query_ends.dtype == layout.key_ends.dtype == torch.int32
    assert layout.most_keys == int(layout.key_ends.diff().max())
    assert layout.most_queries == int(layout.query_ends.diff().max())
    given = tensors(PackedLayout(blocks), kv_heads, torch.float32)
    found = outcome(given, varlen.attend(*given, layout, style, by_sequence))  # type: ignore[arg-type]
    for ours, theirs in zip(found, expected(blocks, kv_heads, style), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kv_heads", [1, 4])
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("blocks", BLOCKS)
def test_flex_agrees_with_segments(kv_heads: int, style: AttentionStyle, blocks: list[Block]) -> None:
    wanted = expected(blocks, kv_heads, style)
    mask = flex.block_mask(blocks, style.window, CPU)
    given = tensors(PackedLayout(blocks), kv_heads, torch.float32)
    plain = [t.detach() for t in given]  # torch has no backward pass of flex attention on CPUs
    torch.testing.assert_close(flex.attend(*plain, mask, style, compiled=False), wanted[0], rtol=1e-4, atol=1e-5)
    length = given[0].shape[2]
    seen = create_mask(mask.mask_mod, None, None, length, length, device="cpu")[0, 0]
    found = outcome(given, masked_attention(*given, seen, style))  # type: ignore[arg-type]
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_flex_skips_blocks_in_which_nobody_sees_anybody() -> None:
    mask = flex.block_mask([Block(128, (256,)), Block(128, (128, 128))], None, CPU).to_dense()[0, 0]
    seen = [[0], [0, 1], [0, 1, 2], [3], [3, 4], [3, 5]]
    assert mask.tolist() == [[int(column in row) for column in range(6)] for row in seen]


@pytest.mark.slow
def test_compiled_flex_agrees_where_torch_compiles_it_for_this_cpu() -> None:
    blocks = BLOCKS[2]
    layout = PackedLayout(blocks, kernel="flex")
    given = [t.detach() for t in tensors(layout, 2, torch.float32)]  # compiled flex has no backward pass on CPUs
    with torch.no_grad():
        found = layout.attend(*given, AttentionStyle(None))
    torch.testing.assert_close(found, expected(blocks, 2, AttentionStyle(None))[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel", ["flex", "varlen"])
def test_kernels_of_gpus_are_refused_on_a_cpu(kernel: attention.PackedKernel) -> None:
    with pytest.raises(
        ModelError, match=f"train.attention is '{kernel}', which needs a GPU .* 'auto', 'segments', 'blocks'"
    ):
        check_kernel(kernel, CPU)
    check_kernel("blocks", CPU)


def test_a_kernel_that_is_not_there_is_refused() -> None:
    layout = PackedLayout([Block(3)], kernel="varlen")
    with pytest.raises(ModelError, match=r"train\.attention is 'varlen', but no kernel here computes"):
        layout.attend(*tensors(layout, 1, torch.float32), AttentionStyle(None))


def test_kernels_are_chosen_by_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, capped, gpu = AttentionStyle(None), AttentionStyle(None, softcap=2.0), torch.device("cuda")

    def choice(found: tuple[str, ...], dtype: torch.dtype, style: AttentionStyle) -> str:
        monkeypatch.setattr(varlen, "installed", lambda: found)
        return attention.automatic_kernel(gpu, dtype, style)

    assert attention.automatic_kernel(CPU, torch.bfloat16, plain) == "segments"
    monkeypatch.setattr(attention.importlib.util, "find_spec", lambda name: object())
    assert choice(("flash_attn", "torch"), torch.bfloat16, capped) == "varlen"
    assert choice(("torch",), torch.bfloat16, plain) == "varlen"
    assert choice(("torch",), torch.bfloat16, capped) == "flex"  # torch's own has no soft-cap
    assert choice(("flash_attn",), torch.float32, plain) == "flex"  # half precision only
    monkeypatch.setattr(attention.importlib.util, "find_spec", lambda name: None)
    assert choice((), torch.bfloat16, plain) == "blocks"
