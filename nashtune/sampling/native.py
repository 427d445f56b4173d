"""The native engine: transformers' own model code, each prompt computed once for its K answers, slots refilled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nashtune.errors import SamplingError
from nashtune.model.attention import Block, PackedLayout
from nashtune.model.loading import Policy, end_token_ids, load_model, load_tokenizer
from nashtune.model.prepacked import prepack_linears
from nashtune.sampling.decoding import Decoding
from nashtune.sampling.engine import Completion, Request, SamplingParams
from nashtune.sampling.forward import check_forward, prefill
from nashtune.sampling.slots import PromptCache, SlotCache, Step
from nashtune.sampling.static import Decoder, StaticDecoder
from nashtune.sampling.support import check_params, check_requests, context_limit, refuse_unsupported


def open_native(
    policy: Policy,
    dtype: torch.dtype,
    slots: int = 40,
    device: torch.device | None = None,
    far: tuple[Policy, float] | None = None,
) -> NativeEngine:
    """Load ``policy`` for sampling, with the share of a ``far`` policy that is mixed in, if any. Raises ModelError where the
    engine and a model's plain forward pass disagree."""
    tokenizer = load_tokenizer(policy)
    model = load_model(policy, dtype, device)
    mixed = None if far is None else Mixture(load_model(far[0], dtype, device), far[1])
    for each in [model] if mixed is None else [model, mixed.model]:
        prepack_linears(each)
    engine = NativeEngine(model, tokenizer, end_token_ids(policy, tokenizer), slots=slots, mixture=mixed)
    engine.check_against_plain_forward()
    return engine


@dataclass(frozen=True, slots=True)
class Mixture:
    """A second model and its share m: tokens are drawn from the logits (1 - m) * first + m * second, the geometric mixture
    of both policies token by token (option II of algorithms 3 and 4 of arXiv 2404.03715)."""

    model: Any
    share: float

    def logits(self, first: Tensor, second: Tensor) -> Tensor:
        """Both [N, V] -> [N, V]. In fp32: halves of bf16 logits are no bf16 numbers."""
        return (1 - self.share) * first.float() + self.share * second.float()


def _check_mixture(first: Any, mixture: Mixture) -> None:
    refuse_unsupported(mixture.model)
    mixture.model.eval()
    if not 0 <= mixture.share <= 1:
        raise SamplingError(f"mixture: {mixture.share}; accepted: from 0 to 1")
    sizes = [model.get_input_embeddings().num_embeddings for model in (first, mixture.model)]
    if sizes[0] != sizes[1]:
        raise SamplingError(
            f"mixture: vocabularies of {sizes[0]} and {sizes[1]} tokens; accepted: one vocabulary for both"
        )


class NativeEngine:
    """Samples from a model loaded with ``attention="nashtune"``; implements ``sample.engine.Engine``.

    ``slots``: sequences decoded together. ``prefill_tokens``: prompt tokens computed in one forward pass (a longer
    prompt goes alone). ``on_tokens``: called after every step with the number of tokens sampled in it. ``mixture``: a
    second model of the same vocabulary, computed beside the first at each step with its own keys and values; log-probs are
    the mixture's. ``static``: decode in steps of few distinct shapes, as CUDA graphs where the model is on such a device;
    None does so there alone. ``prefilled_tokens``: prompt tokens computed so far for requests.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        stop_token_ids: Sequence[int],
        *,
        slots: int = 40,
        prefill_tokens: int = 512,
        on_tokens: Callable[[int], None] | None = None,
        mixture: Mixture | None = None,
        static: bool | None = None,
    ):
        if slots < 1:
            raise SamplingError(f"slots: {slots}; accepted: 1 or more")
        refuse_unsupported(model)
        if mixture is not None:
            _check_mixture(model, mixture)
        self.model: Any = model.eval()
        self.mixture = mixture
        self.tokenizer = tokenizer
        self.stop_token_ids = tuple(stop_token_ids)
        self.slots = slots
        self.prefill_tokens = prefill_tokens
        self.on_tokens = on_tokens
        self.prefilled_tokens = 0
        self.static = model.device.type == "cuda" if static is None else static

    @torch.inference_mode()
    def generate(self, requests: Sequence[Request], params: SamplingParams) -> Iterator[Completion]:
        """Yield every completion of every request, longest prompts first.

        Raises SamplingError on a bad request or setting, before anything is sampled, and on logits that are not finite.
        """
        check_params(params)
        if params.top_logprobs:
            raise SamplingError(f"top_logprobs: {params.top_logprobs}; accepted by the native engine: 0")
        self._check_requests(requests, params)
        yield from Decoding(self, requests, params).completions()

    def close(self) -> None:
        """Let go of the models' memory."""
        self.model = self.mixture = None

    @property
    def models(self) -> list[Any]:
        """The model, and the one mixed in, if any."""
        return [self.model] if self.mixture is None else [self.model, self.mixture.model]

    @torch.inference_mode()
    def check_against_plain_forward(self) -> None:
        """Check each model's prefill and decode against its own forward pass; raises ModelError."""
        for model in self.models:
            check_forward(model)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> tuple[PackedLayout, list[PromptCache], Tensor]:
        """Compute prompts in one packed pass of each model -> layout, each model's keys and values, logits of each prompt's
        last token [P, V]."""
        layout = PackedLayout([Block(len(p)) for p in prompts], self.model.device)
        caches, logits = zip(*(prefill(model, prompts, layout) for model in self.models), strict=True)
        return layout, list(caches), self._mixed(logits)

    def decoders(self, caches: Sequence[SlotCache]) -> list[Decoder]:
        """What computes the decode steps of each model with its cache."""
        kind = StaticDecoder if self.static else Decoder
        return [kind(model, cache) for model, cache in zip(self.models, caches, strict=True)]

    def decode(self, decoders: Sequence[Decoder], step: Step) -> Tensor:
        """One step of every model -> logits [n, V]."""
        return self._mixed([decoder.decode(step) for decoder in decoders])

    def _mixed(self, logits: Sequence[Tensor]) -> Tensor:
        return logits[0] if self.mixture is None else self.mixture.logits(logits[0], logits[1])

    def _check_requests(self, requests: Sequence[Request], params: SamplingParams) -> None:
        limit = context_limit(self.model.config.get_text_config())
        vocabulary = self.model.get_input_embeddings().num_embeddings
        check_requests(requests, params, limit, vocabulary)
