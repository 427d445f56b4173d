"""What an answer looks like: its length and its markdown, counted as Arena-Hard's style control counts them."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nashtune.errors import EvaluationError

Floats = NDArray[np.float64]
CountTokens = Callable[[str], int]
CODE = re.compile(r"```([^`]*)```")
HEADER = re.compile(r"^#{1,6}\s", re.MULTILINE)
ORDERED, UNORDERED = re.compile(r"^\s*\d+\.\s", re.MULTILINE), re.compile(r"^\s*[-*+]\s", re.MULTILINE)
BOLD = re.compile(r"\*\*[^*\n]+\*\*"), re.compile(r"__[^_\n]+__")
O200K = "o200k_base"
"""gpt-4o's encoding, in which upstream counts tokens."""
COUNTERS = f"{O200K!r}, 'tokenizer:FOLDER-OR-NAME', 'words' or 'characters'"
FEATURES = ("length", "headers", "lists", "bold")


@dataclass(frozen=True, slots=True)
class Style:
    """Tokens of the whole answer; headers, list items and bold spans outside its code blocks."""

    tokens: int
    headers: int
    lists: int
    bold: int


def style_of(text: str, count_tokens: CountTokens) -> Style:
    """As upstream's add_markdown_info.py: what stands between code fences is taken out wherever it occurs in the text, the
    fences stay."""
    bare = text
    for code in CODE.findall(text):
        bare = bare.replace(code, "") if code else bare
    return Style(
        tokens=count_tokens(text),
        headers=len(HEADER.findall(bare)),
        lists=len(ORDERED.findall(bare)) + len(UNORDERED.findall(bare)),
        bold=sum(len(pattern.findall(bare)) for pattern in BOLD),
    )


def published_style(metadata: Mapping[str, Any], where: str) -> Style:
    """The ``metadata`` of upstream's answer files. Raises EvaluationError naming the field that is missing."""

    def count(field: str) -> int:
        value = metadata.get(field)
        given = list(value.values()) if isinstance(value, dict) else [value]
        counts = [one for one in given if isinstance(one, int) and not isinstance(one, bool)]
        if not counts or len(counts) < len(given):
            raise EvaluationError(f"{where}: metadata: {field} is {value!r:.80}; accepted: a count, or counts by kind")
        return sum(counts)

    return Style(count("token_len"), count("header_count"), count("list_count"), count("bold_count"))


def token_counter(name: str) -> CountTokens:
    """How lengths are counted, by name; figures are comparable with published ones for o200k_base only.

    Raises EvaluationError for another name, or where what it needs is not there.
    """
    if name == "characters":
        return len
    if name == "words":
        return lambda text: len(text.split())
    if name == O200K:
        return _o200k()
    kind, _, model = name.partition(":")
    if kind == "tokenizer" and model:
        from transformers import AutoTokenizer

        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(model)
        except (OSError, ValueError) as error:
            raise EvaluationError(f"style tokens: {name!r}: {str(error).splitlines()[0]}") from None
        return lambda text: len(tokenizer.encode(text, add_special_tokens=False))
    raise EvaluationError(f"style tokens: {name!r}; accepted: {COUNTERS}")


def _o200k() -> CountTokens:
    for package in ("bpe_openai", "tiktoken"):  # the first brings the encoding along, the second loads it once
        try:
            encoding = importlib.import_module(package).get_encoding(O200K)
        except ImportError:
            continue
        except OSError as error:
            raise EvaluationError(f"style tokens: {O200K!r}: {package} cannot load it: {error}") from None
        return lambda text: len(encoding.encode_ordinary(text))
    raise EvaluationError(
        f"style tokens: {O200K!r} needs the package bpe-openai or tiktoken; accepted without: {COUNTERS}"
    )


def style_features(ours: Sequence[Style], theirs: Sequence[Style]) -> Floats:
    """[N, 4] in FEATURES' order, of N answers against N others, each 0 where both are alike.

    length: (a - b) / (a + b); markdown: (a - b) / (a + b + 1) of the densities count / (tokens + 1).
    """
    a, b = (_table(styles) for styles in (ours, theirs))
    length = (a[:, :1] - b[:, :1]) / np.maximum(a[:, :1] + b[:, :1], 1)
    a_density, b_density = (table[:, 1:] / (table[:, :1] + 1) for table in (a, b))
    return np.concatenate([length, (a_density - b_density) / (a_density + b_density + 1)], axis=1)


def _table(styles: Sequence[Style]) -> Floats:
    return np.array([[s.tokens, s.headers, s.lists, s.bold] for s in styles], dtype=float).reshape(-1, 4)
