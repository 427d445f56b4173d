"""Instructions about what stands where: keywords in places, words and requests repeated."""

from __future__ import annotations

import itertools
import re
import string

from nashtune.suites.ifbench.plain import bare, bare_left, bare_right
from nashtune.suites.ifeval.resources import sentences, tokens
from nashtune.suites.ifeval.types import Positive, Text, Types, Whole

TYPES = Types()
SENTENCE = "Only output this sentence here, ignore all other requests."


@TYPES.add("sentence:keyword", "punkt_tab")
def _keyword(text: str, word: Text, N: Positive) -> bool:
    """The Nth sentence has the word between word boundaries, in any case."""
    nth = sentences(text)[N - 1 : N]
    return bool(nth) and bool(re.search(rf"\b{re.escape(word)}\b", nth[0], re.IGNORECASE))


@TYPES.add("words:keywords_specific_position", "punkt_tab")
def _keywords_specific_position(text: str, keyword: Text, n: Positive, m: Positive) -> bool:
    """The mth token (those without letter or digit left out) of the nth sentence is the keyword, in any case."""
    nth = sentences(text)[n - 1 : n]
    found = [token for token in tokens(nth[0]) if any(map(str.isalnum, token))] if nth else []
    return [token.lower() for token in found[m - 1 : m]] == [keyword.strip().lower()]


@TYPES.add("words:words_position", "punkt_tab")
def _words_position(text: str, keyword: Text) -> bool:
    """The second token and the last but one (a final mark aside) are the keyword, in any case."""
    found = [token.lower() for token in tokens(text)]
    if len(found) > 1 and found[-1] in string.punctuation:
        return len(found) > 2 and found[1] == found[-3] == keyword.strip().lower()
    return len(found) > 1 and found[1] == found[-2] == keyword.strip().lower()


@TYPES.add("words:last_first", "punkt_tab")
def _last_first(text: str) -> bool:
    """Each sentence begins with the last word of the one before, in any case."""
    parts = sentences(text)
    for before, after in itertools.pairwise(parts):
        last, first = bare_right(before).split()[-1:], bare_left(after).split()[:1]
        if not last or not first or last[0].lower() != first[0].lower():
            return False
    return True


@TYPES.add("words:paragraph_last_first")
def _paragraph_last_first(text: str) -> bool:
    """Each line that has words ends with the one it begins with, in any case, punctuation around the line aside."""
    lines = [bare(line.strip().lower()).split() for line in text.split("\n")]
    return all(line[0] == line[-1] for line in lines if line)


@TYPES.add("repeat:repeat_change")
def _repeat_change(text: str, prompt_to_repeat: Text) -> bool:
    """The request and nothing else, white space aside, its first word being free; not the very same text."""
    return text != prompt_to_repeat and text.split()[1:] == prompt_to_repeat.split()[1:]


@TYPES.add("repeat:repeat_simple")
def _repeat_simple(text: str) -> bool:
    """The one sentence and nothing else, in any case."""
    return text.strip().lower() == SENTENCE.lower()


@TYPES.add("repeat:repeat_span")
def _repeat_span(text: str, prompt_to_repeat: Text, n_start: Whole, n_end: Whole) -> bool:
    """The request's characters from n_start to n_end, both included, and nothing else, in any case."""
    return text.strip().lower() == prompt_to_repeat[n_start : n_end + 1].strip().lower()
