"""Instructions about a text's sentences, one after the other."""

from __future__ import annotations

from itertools import groupby, pairwise

from nashtune.suites.ifbench.plain import bare_left, plain_words, unpunctuated
from nashtune.suites.ifeval.resources import is_emoji, sentences
from nashtune.suites.ifeval.types import Types, Whole

TYPES = Types()


@TYPES.add("sentence:alliteration_increment", "punkt_tab")
def _alliteration_increment(text: str) -> bool:
    """Each sentence has more words in runs of one first letter (runs of two or more) than the one before."""
    counts = [_alliterating(sentence) for sentence in sentences(text)]
    return all(a < b for a, b in pairwise(counts))


def _alliterating(sentence: str) -> int:
    words = [clean for word in sentence.lower().split() if (clean := bare_left(word))]
    runs = [len(list(run)) for _, run in groupby(words, key=lambda word: word[0])]
    return sum(length for length in runs if length > 1)


@TYPES.add("sentence:increment", "punkt_tab")
def _increment(text: str, small_n: Whole) -> bool:
    """Each sentence has exactly small_n more words than the one before."""
    counts = [len(plain_words(sentence)) for sentence in sentences(text)]
    return all(b == a + small_n for a, b in pairwise(counts))


@TYPES.add("format:emoji", "punkt_tab", "emoji")
def _emoji(text: str) -> bool:
    """Every sentence's last or last but one character is an emoji, or the next sentence's first, punctuation aside."""
    parts = [unpunctuated(sentence).strip() for sentence in sentences(text)]
    for part, after in zip(parts, [*parts[1:], ""], strict=True):
        if not part:
            return False
        ends = is_emoji(part[-1]) or is_emoji(part[-2:][0])
        if not ends and not (after and is_emoji(after[0])):
            return False
    return True
