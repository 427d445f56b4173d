"""Words without punctuation, as IFBench's checks see them."""

from __future__ import annotations

import string
import unicodedata

_EDGES = string.punctuation + " "
_DROP = str.maketrans("", "", string.punctuation)


def unpunctuated(text: str) -> str:
    """The text without ASCII punctuation, so that "it's" is "its"."""
    return text.translate(_DROP)


def plain_words(text: str) -> list[str]:
    """Parts between white space once ASCII punctuation is out."""
    return unpunctuated(text).split()


def bare(word: str) -> str:
    """Without ASCII punctuation and spaces at both ends."""
    return word.strip(_EDGES)


def bare_left(word: str) -> str:
    """Without those at the left end."""
    return word.lstrip(_EDGES)


def bare_right(word: str) -> str:
    """Without those at the right end."""
    return word.rstrip(_EDGES)


def ascii_letters(text: str) -> str:
    """Diacritics off, other characters beyond ASCII out."""
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode("ascii")
