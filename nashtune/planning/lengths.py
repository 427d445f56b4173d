"""How long texts are in tokens, and what is known of the policy, as far as this machine can tell without fetching anything."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nashtune.recipe import Recipe
from nashtune.records import Message, Policy

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHARACTERS_PER_TOKEN = 4
"""English prose, where no tokenizer is at hand."""
TOKENS_PER_MESSAGE = 4
"""Roles and separators of a chat template, where no tokenizer is at hand."""
FILLER = "An answer goes on in plain words, as most answers of a chat model do, and says what was asked for. "


@dataclass(frozen=True, slots=True)
class Lengths:
    """Counts tokens with the policy's tokenizer, or as characters / 4 where it is not on this machine."""

    tokenizer: PreTrainedTokenizerBase | None = None

    @property
    def how(self) -> str:
        if self.tokenizer is None:
            return f"tokens are characters / {CHARACTERS_PER_TOKEN}: the policy's tokenizer is not on this machine"
        return "tokens are counted with the policy's tokenizer, the judge's and teacher's texts too"

    def text(self, text: str) -> int:
        """Tokens of a text alone."""
        if self.tokenizer is None:
            return math.ceil(len(text) / CHARACTERS_PER_TOKEN)
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])  # type: ignore[arg-type]

    def messages(self, messages: Sequence[Message]) -> int:
        """Tokens of a chat prompt, ready for the answer."""
        if self.tokenizer is None:
            return sum(self.text(m.content) + TOKENS_PER_MESSAGE for m in messages)
        from nashtune.model.loading import render

        return len(render(self.tokenizer, messages))

    def filler(self, tokens: float) -> str:
        """Prose of about ``tokens`` tokens."""
        characters = CHARACTERS_PER_TOKEN if self.tokenizer is None else len(FILLER) / self.text(FILLER)
        return filler_text(tokens * characters)


def filler_text(characters: float) -> str:
    """Prose of that many characters."""
    wanted = max(1, round(characters))
    return (FILLER * (wanted // len(FILLER) + 1))[:wanted]


def local_lengths(recipe: Recipe, folder: Path | None) -> Lengths:
    """Lengths by the tokenizer in ``folder``. Raises ModelError where it has no chat template."""
    if folder is None or recipe.sampling.engine == "scripted":
        return Lengths()
    from nashtune.model.loading import load_tokenizer

    policy = Policy(folder, "", recipe.policy.model, recipe.policy.trust_remote_code)
    return Lengths(load_tokenizer(policy))


def local_policy(recipe: Recipe) -> Path | None:
    """The folder of the recipe's model, None where it would have to be fetched or converted first."""
    if recipe.sampling.engine == "scripted":
        return None
    from nashtune.model.loading import local_folder

    return local_folder(recipe.policy)


def count_parameters(folder: Path) -> int | None:
    """Weights in the safetensors files of a model folder, from their headers; None where there are none."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        return None
    return sum(math.prod(entry["shape"]) for file in files for name, entry in _header(file).items() if name[:2] != "__")


def _header(file: Path) -> dict[str, dict[str, list[int]]]:
    """The JSON at the start of a safetensors file, after its length as 8 bytes."""
    with file.open("rb") as stream:
        (size,) = struct.unpack("<Q", stream.read(8))
        return json.loads(stream.read(size))
