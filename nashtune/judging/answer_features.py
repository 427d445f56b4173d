"""What a preference model knows of an answer: hidden states of a causal model that has read prompt and answer.

Legend: d hidden size, D = 2 d feature size, K answers of a prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nashtune.errors import OracleError
from nashtune.model.loading import context_length, load_model, load_tokenizer, render
from nashtune.records import Message, Policy
from nashtune.training.logprobs import check_architecture
from nashtune.training.packing import Answers, fill, pack

FEATURES = "final hidden state at the answer's last token, then its mean over the answer's tokens; float32"
"""Kept with each preference model: a head fits one definition only."""


class AnswerReader:
    """A causal model that reads answers. Raises ModelError where it cannot be used with packed answers."""

    def __init__(self, policy: Policy, max_tokens: int | None = None, batch_tokens: int = 4096) -> None:
        context = context_length(policy)
        if max_tokens is not None and max_tokens > context:
            raise OracleError(
                f"oracle.max_tokens is {max_tokens}; accepted: at most {context}, the context of {policy.name!r}"
            )
        self.longest = max_tokens or context
        self._batch_tokens = batch_tokens
        self._tokenizer = load_tokenizer(policy)
        self._model = load_model(policy, torch.float32).eval()
        check_architecture(self._model)

    def tokens(self, messages: Sequence[Message], answers: Sequence[tuple[str, bool]]) -> Answers:
        """Token ids of a prompt and of its answers, each a text and whether it ended by itself.

        Texts are always read with this model's own tokenizer. The end token belongs to an answer that ended, so that a
        reader can tell it from one that was cut; an empty one has the end token alone.
        """
        end = self._tokenizer.eos_token_id
        found = []
        for text, finished in answers:
            ids = list(self._tokenizer(text, add_special_tokens=False)["input_ids"])  # type: ignore[arg-type]
            found.append([*ids, end] if finished or not ids else ids)
        return render(self._tokenizer, messages), found

    def fits(self, item: Answers) -> list[bool]:
        """Whether each answer, with its prompt, is short enough [K]."""
        prompt, answers = item
        return [len(prompt) + len(answer) <= self.longest for answer in answers]

    @torch.no_grad()
    def read(self, items: Sequence[Answers], advance: Callable[[int], None] = lambda count: None) -> list[Tensor]:
        """Features of each item's answers, fp32 [K, D] on the model's device, the prompt computed once for its answers.

        All answers have to fit. ``advance`` is told of each group of answers as it is done.
        """
        # A prompt whose answers exceed the budget together is computed once for each group of them.
        units: list[tuple[int, tuple[int, ...]]] = []
        for i, (prompt, answers) in enumerate(items):
            cost = [len(answer) for answer in answers]
            units += [(i, g) for g in fill(range(len(answers)), cost, self._batch_tokens - len(prompt))]
        cost = [len(items[i][0]) + sum(len(items[i][1][k]) for k in group) for i, group in units]
        rows: list[dict[int, Tensor]] = [{} for _ in items]
        for batch in fill(sorted(range(len(units)), key=lambda u: (cost[u], u)), cost, self._batch_tokens):
            packed = [(items[i][0], [items[i][1][k] for k in group]) for i, group in (units[u] for u in batch)]
            features = iter(self._forward(packed))
            for i, group in (units[u] for u in batch):
                for k in group:
                    rows[i][k] = next(features)
                advance(len(group))
        width = 2 * int(self._model.config.get_text_config().hidden_size)
        return [
            torch.stack([row[k] for k in range(len(row))]) if row else torch.zeros(0, width, device=self._model.device)
            for row in rows
        ]

    def _forward(self, items: Sequence[Answers]) -> Tensor:
        """[all answers, D]."""
        # The packed layout leaves the last token of each answer out of the input, as nothing follows it; one more token
        # at the end makes the answer's own last token an input.
        batch = pack([(prompt, [[*answer, 0] for answer in answers]) for prompt, answers in items], self._model.device)
        decoder = self._model.get_decoder()
        hidden = decoder(
            input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False, layout=batch.layout
        ).last_hidden_state[0]
        # Per answer: the prompt's last position, then each of the answer's own.
        lengths = [len(answer) for _, answers in items for answer in answers]
        spans = batch.predicting.split([n + 1 for n in lengths])
        states = [hidden.index_select(0, span[1:]).float() for span in spans]
        return torch.stack([torch.cat([s[-1], s.mean(0)]) for s in states])
