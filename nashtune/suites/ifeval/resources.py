"""What some types need beyond nashtune's own packages: nltk with its data, emoji, syllapy. Absent: an error, no other rule."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from functools import cache, lru_cache
from typing import Any

from nashtune.errors import EvaluationError

NLTK_DATA = {
    "punkt_tab": "tokenizers/punkt_tab/english/",
    "stopwords": "corpora/stopwords",
    "averaged_perceptron_tagger_eng": "taggers/averaged_perceptron_tagger_eng/",
}
"""nltk's data by the names its downloader knows, and where they lie in a folder of NLTK_DATA."""
PACKAGES = ("emoji", "syllapy")


def require(names: Iterable[str]) -> None:
    """Raises EvaluationError naming all that is to be installed, unless all are there."""
    missing = []
    for name in sorted(set(names)):
        try:
            _find_nltk_data(name) if name in NLTK_DATA else _package(name)
        except EvaluationError as error:
            missing.append(str(error))
    if missing:
        raise EvaluationError("\n".join(dict.fromkeys(missing)))


@cache
def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise EvaluationError(
            f"checking these instructions needs the package {name!r}: pip install nashtune[eval]"
        ) from None


@cache
def _find_nltk_data(name: str) -> Any:
    nltk = _package("nltk")
    try:
        nltk.data.find(NLTK_DATA[name])
    except LookupError:
        raise EvaluationError(
            f"checking these instructions needs nltk's data {name!r}: python -m nltk.downloader {name}, or NLTK_DATA set "
            f"to a folder with {NLTK_DATA[name]}; looked in {', '.join(nltk.data.path)}"
        ) from None
    return nltk


def sentences(text: str) -> list[str]:
    """nltk's punkt model for English, as IFEval and IFBench split."""
    return _find_nltk_data("punkt_tab").sent_tokenize(text)


def tokens(text: str) -> list[str]:
    """nltk's word tokens: punctuation marks are tokens of their own, hyphenated words are one."""
    return _find_nltk_data("punkt_tab").word_tokenize(text)


@lru_cache(maxsize=1)
def stop_words() -> frozenset[str]:
    """nltk's list of English stop words."""
    return frozenset(_find_nltk_data("stopwords").corpus.stopwords.words("english"))


def part_of_speech(words: list[str]) -> list[str]:
    """Penn Treebank tags of the tokens, by nltk's averaged perceptron."""
    return [tag for _, tag in _find_nltk_data("averaged_perceptron_tagger_eng").pos_tag(words)]


def is_emoji(text: str) -> bool:
    """Whether the whole text is one emoji, by the emoji package's table."""
    return _package("emoji").is_emoji(text)


def syllables(word: str) -> int:
    """By syllapy's dictionary, or its rule for words that are not in it."""
    return _package("syllapy").count(word)
