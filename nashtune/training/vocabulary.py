"""A model's two ends, whose weights are as wide as the vocabulary: embeddings in, log-probs of tokens out.

Neither the logits of all tokens nor a gradient of the weights' size is made anew for every micro-batch.
Legend: L input tokens, T answer tokens, d hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from nashtune.errors import ModelError

CHUNK_BYTES = {"cpu": 1 << 26, "cuda": 1 << 29}
"""fp32 logits held at once; about 2.5 times as much is needed while they turn into gradients."""
KEEP_BYTES = {"cpu": 1 << 28, "cuda": 1 << 31}
"""Largest [T, V] of gradients kept from forward to backward pass; beyond it the logits are computed a second time."""
CACHED = {True: 1 << 20, False: 1 << 40}
"""Numbers worked on at once between two matrix products, on a CPU (so that they stay in its cache) and elsewhere."""


@dataclass(frozen=True, slots=True)
class Head:
    """How hidden states become logits: cap * tanh(scale * h W^T / cap), or scale * h W^T where ``softcap`` is None."""

    weight: nn.Parameter
    """[V, d]"""
    scale: float
    softcap: float | None

    @staticmethod
    def of(model: PreTrainedModel) -> Head:
        """Raises ModelError where the output layer is not a plain linear map."""
        layer = model.get_output_embeddings()
        if type(layer) is not nn.Linear or layer.bias is not None:
            raise ModelError(
                f"{type(model).__name__}: its output layer is {layer}; accepted: a Linear without bias or adapter"
            )
        config = model.config.get_text_config()
        scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
        return Head(layer.weight, float(scale), getattr(config, "final_logit_softcapping", None))  # type: ignore[arg-type]

    def chunk(self) -> int:
        """Tokens whose logits are computed at once; depends on V and the kind of device alone, so results repeat."""
        budget = CHUNK_BYTES.get(self.weight.device.type, CHUNK_BYTES["cpu"])
        return max(16, budget // (4 * self.weight.shape[0]))

    def keeps(self, tokens: int, dtype: torch.dtype) -> bool:
        """Whether the logits' gradients of ``tokens`` are few enough to be kept for the backward pass."""
        budget = KEEP_BYTES.get(self.weight.device.type, KEEP_BYTES["cpu"])
        return tokens * self.weight.shape[0] * dtype.itemsize <= budget


@dataclass(frozen=True, slots=True)
class Ends:
    """What a trained model keeps of its two ends between micro-batches. All None: nothing is kept."""

    matrix: Tensor | None = None
    """Output weights in the dtype of products [V, d], so that they are not cast for every micro-batch."""
    output: Tensor | None = None
    """The tensor to whose ``grad`` the output weights' gradient is added in place (the parameter or its fp32 master)."""
    embedding: Tensor | None = None
    """The same for the input embeddings; the same tensor where they are tied."""


NOTHING_KEPT = Ends()


def token_logprobs(hidden: Tensor, targets: Tensor, head: Head, dtype: torch.dtype, ends: Ends) -> Tensor:
    """log softmax(logits)[target] per token, fp32 [T], of hidden states [T, d]; matrix products in ``dtype``."""
    matrix = head.weight.detach().to(dtype) if ends.matrix is None else ends.matrix
    return _TokenLogProbs.apply(hidden, head.weight, targets, matrix, head, ends.output)  # type: ignore[return-value]


class _TokenLogProbs(torch.autograd.Function):
    """Logits exist one chunk at a time. What is kept of them, or made again in backward, is d log p(target) / d logits."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, matrix: Tensor, head: Head, sink: Tensor | None
    ) -> Tensor:
        states = hidden.to(matrix.dtype)
        out = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        learns = any(ctx.needs_input_grad[:2])
        slopes = None
        if learns and head.keeps(len(targets), matrix.dtype):
            slopes = torch.empty(len(targets), len(matrix), dtype=matrix.dtype, device=hidden.device)
        for rows in _chunks(len(targets), head.chunk()):
            kept = None if slopes is None else slopes[rows]
            out[rows] = _chunk(states[rows], matrix, targets[rows], head, kept)
        if learns:
            ctx.save_for_backward(states, targets, matrix, *([] if slopes is None else [slopes]))
            ctx.head, ctx.sink, ctx.hidden_dtype, ctx.weight_dtype = head, sink, hidden.dtype, weight.dtype
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        grad = grads[0][:, None]
        states, targets, matrix, *kept = ctx.saved_tensors
        d_hidden = torch.empty_like(states, dtype=ctx.hidden_dtype)
        d_weight = None
        if ctx.needs_input_grad[1]:
            d_weight = torch.zeros_like(matrix, dtype=torch.float32) if ctx.sink is None else gradient_of(ctx.sink)
        for rows in [slice(0, len(targets))] if kept else _chunks(len(targets), ctx.head.chunk()):
            if kept:
                slopes = kept[0]
            else:
                slopes = torch.empty(len(targets[rows]), len(matrix), dtype=matrix.dtype, device=matrix.device)
                _chunk(states[rows], matrix, targets[rows], ctx.head, slopes)
            # The loss's gradient is one number per token: it scales the narrow side of both products.
            d_hidden[rows] = (slopes @ matrix).float().mul_(grad[rows])
            if d_weight is not None:
                _add_product(d_weight, slopes.t(), states[rows].float().mul_(grad[rows]).to(matrix.dtype))
        returned = None if d_weight is None or ctx.sink is not None else d_weight.to(ctx.weight_dtype)
        return d_hidden, returned, None, None, None, None


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b, whatever the dtype of the product."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        for rows in _chunks(len(total), CACHED[total.device.type == "cpu"] // total.shape[1]):
            total[rows] += a[rows] @ b


def _chunk(states: Tensor, matrix: Tensor, targets: Tensor, head: Head, slopes: Tensor | None) -> Tensor:
    """Log-probs of the targets; d log p(target) / d (states @ matrix.t()) goes to ``slopes`` where it is given."""
    products = states @ matrix.t()
    size = max(1, CACHED[products.device.type == "cpu"] // len(matrix))
    out = [
        _rows(products[rows].float(), targets[rows, None], head, None if slopes is None else slopes[rows])
        for rows in _chunks(len(targets), size)
    ]
    return torch.cat(out)


def _rows(logits: Tensor, targets: Tensor, head: Head, slopes: Tensor | None) -> Tensor:
    """As ``_chunk``, from products [T, V] that may be overwritten and targets [T, 1]."""
    if head.scale != 1:
        logits.mul_(head.scale)
    cap = None
    if head.softcap is not None:
        logits.div_(head.softcap).tanh_()
        cap = None if slopes is None else 1 - logits**2
        logits.mul_(head.softcap)
    logits.sub_(logits.amax(-1, keepdim=True))
    chosen = logits.gather(1, targets)
    masses = logits.exp_().sum(-1, keepdim=True)
    if slopes is not None:
        # onehot(target) - softmax
        logits.mul_(-1 / masses).scatter_add_(1, targets, torch.ones_like(chosen))
        if cap is not None:
            logits.mul_(cap)
        if head.scale != 1:
            logits.mul_(head.scale)
        slopes.copy_(logits)
    return (chosen - masses.log())[:, 0]


def _chunks(length: int, size: int) -> Iterable[slice]:
    return (slice(start, start + size) for start in range(0, length, size))


def embedded(embedding: nn.Module, ids: Tensor, ends: Ends) -> Tensor | None:
    """Embeddings [1, L, d] of ``ids`` [1, L] whose gradient is added in place; None where the model must look them up
    itself, as its embedding is not a plain one or nothing is kept."""
    plain = type(embedding) is nn.Embedding and embedding.max_norm is None and not embedding.scale_grad_by_freq
    if not plain or ends.embedding is None or not torch.is_grad_enabled():
        return None
    assert isinstance(embedding, nn.Embedding)
    return _Embedding.apply(embedding.weight, ids, embedding.padding_idx, ends.embedding)  # type: ignore[return-value]


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Tensor, padding: int | None, sink: Tensor) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.padding, ctx.sink = padding, sink
        return F.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[None, ...]:
        (ids,) = ctx.saved_tensors
        rows = grads[0][0].float()
        if ctx.padding is not None:  # as torch does: the padding token's row does not learn from the input side
            rows = rows.masked_fill((ids[0] == ctx.padding)[:, None], 0.0)
        gradient_of(ctx.sink).index_add_(0, ids[0], rows)
        return None, None, None, None


def gradient_of(tensor: Tensor) -> Tensor:
    """Its ``grad``, zeros where there is none yet."""
    if tensor.grad is None:
        tensor.grad = torch.zeros_like(tensor)
    return tensor.grad
