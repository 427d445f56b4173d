"""Instructions about how many of something, or which share."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator, Field

from nashtune.judging.text_units import words
from nashtune.suites.ifbench.plain import bare, unpunctuated
from nashtune.suites.ifeval.resources import sentences, stop_words, tokens
from nashtune.suites.ifeval.types import Positive, Text, Types, Whole

TYPES = Types()
Percent = Annotated[float, BeforeValidator(lambda v: float(v) if type(v) is int else v), Field(ge=0, le=100)]
CONJUNCTIONS = frozenset(["and", "but", "for", "nor", "or", "so", "yet"])
NAMES = [
    "Emma",
    "Liam",
    "Sophia",
    "Jackson",
    "Olivia",
    "Noah",
    "Ava",
    "Lucas",
    "Isabella",
    "Mason",
    "Mia",
    "Ethan",
    "Charlotte",
    "Alexander",
    "Amelia",
    "Benjamin",
    "Harper",
    "Leo",
    "Zoe",
    "Daniel",
    "Chloe",
    "Samuel",
    "Lily",
    "Matthew",
    "Grace",
    "Owen",
    "Abigail",
    "Gabriel",
    "Ella",
    "Jacob",
    "Scarlett",
    "Nathan",
    "Victoria",
    "Elijah",
    "Layla",
    "Nicholas",
    "Audrey",
    "David",
    "Hannah",
    "Christopher",
    "Penelope",
    "Thomas",
    "Nora",
    "Andrew",
    "Aria",
    "Joseph",
    "Claire",
    "Ryan",
    "Stella",
    "Jonathan",
]
"""The fifty that the prompts list."""
PRONOUNS = frozenset(
    [
        "i",
        "me",
        "we",
        "us",
        "you",
        "he",
        "him",
        "she",
        "her",
        "it",
        "they",
        "them",
        "my",
        "mine",
        "our",
        "ours",
        "your",
        "yours",
        "his",
        "hers",
        "its",
        "their",
        "theirs",
        "myself",
        "ourselves",
        "yourself",
        "yourselves",
        "himself",
        "herself",
        "itself",
        "themselves",
        "this",
        "that",
        "these",
        "those",
        "who",
        "whom",
        "whose",
        "which",
        "what",
        "whoever",
        "whomever",
        "whatever",
        "whichever",
        "anybody",
        "anyone",
        "anything",
        "everybody",
        "everyone",
        "everything",
        "nobody",
        "nothing",
        "somebody",
        "someone",
        "something",
        "each",
        "either",
        "neither",
        "both",
        "all",
        "some",
        "any",
        "none",
    ]
)


@TYPES.add("count:word_count_range")
def _word_count_range(text: str, min_words: Whole, max_words: Whole) -> bool:
    """Between min_words and max_words words, both included."""
    return min_words <= len(words(text)) <= max_words


@TYPES.add("count:unique_word_count")
def _unique_word_count(text: str, N: Whole) -> bool:
    """At least N different parts between white space, case and punctuation at their ends aside (the empty one counts)."""
    return len({bare(word) for word in text.lower().split()}) >= N


@TYPES.add("count:conjunctions")
def _conjunctions(text: str, small_n: Whole) -> bool:
    """At least so many different coordinating conjunctions, where "and", "And" and "and," are different."""
    return len({word for word in text.split() if bare(word).lower() in CONJUNCTIONS}) >= small_n


@TYPES.add("count:person_names")
def _person_names(text: str, N: Whole) -> bool:
    """At least N different names of the fifty listed."""
    return sum(bool(re.search(rf"\b{name}\b", text)) for name in NAMES) >= N


@TYPES.add("count:numbers")
def _numbers(text: str, N: Whole) -> bool:
    """Exactly N runs of digits once punctuation is out ("3.14" is one)."""
    return len(re.findall(r"\d+", unpunctuated(text))) == N


@TYPES.add("count:punctuation")
def _punctuation(text: str) -> bool:
    """An interrobang (?!, !? or its one character), and . , ! ? ; : beside the first ?! (else the first !?)."""
    if not any(mark in text for mark in ("?!", "!?", "‽")):
        return False
    rest = text.replace("?!" if "?!" in text else "!?", "", 1)
    return all(mark in rest for mark in ".,!?;:")


@TYPES.add("count:pronouns", "punkt_tab")
def _pronouns(text: str, N: Whole) -> bool:
    """At least N of nltk's tokens are pronouns; she/her counts as two."""
    return sum(token in PRONOUNS for token in tokens(text.replace("/", " ").lower())) >= N


@TYPES.add("count:words_japanese")
def _words_japanese(text: str, N: Positive) -> bool:
    """Every Nth part between white space has a kana or a Chinese character, unless it is a number or punctuation."""
    every = (bare(word) for word in text.split()[N - 1 :: N])
    return all(re.search("[\u3040-\u30ff\u4e00-\u9fff]", word) for word in every if word and not word.isdigit())


@TYPES.add("count:keywords_multiple")
def _keywords_multiple(
    text: str, keyword1: Text, keyword2: Text, keyword3: Text, keyword4: Text, keyword5: Text
) -> bool:
    """The five appear exactly 1, 2, 3, 5 and 7 times, in any case, also inside longer words."""
    wanted = zip((keyword1, keyword2, keyword3, keyword4, keyword5), (1, 2, 3, 5, 7), strict=True)
    return all(text.lower().count(keyword.strip().lower()) == count for keyword, count in wanted)


@TYPES.add("ratio:stop_words", "stopwords")
def _stop_words(text: str, percentage: Percent) -> bool:
    """At most that share of the words are nltk's English stop words."""
    found = words(text)
    return bool(found) and 100 * (sum(w.lower() in stop_words() for w in found) / len(found)) <= percentage


@TYPES.add("ratio:overlap")
def _overlap(text: str, reference_text: Text, percentage: Percent) -> bool:
    """The share of the text's different runs of three characters that the reference has, within 2 points of percentage."""
    ours, theirs = _trigrams(text), _trigrams(reference_text)
    return bool(ours) and percentage - 2 <= len(ours & theirs) / len(ours) * 100 <= percentage + 2


def _trigrams(text: str) -> set[str]:
    return {text[i : i + 3] for i in range(len(text) - 2)}


@TYPES.add("ratio:sentence_type", "punkt_tab")
def _sentence_type(text: str) -> bool:
    """Twice as many sentences end in a full stop as in a question mark."""
    stops, questions, _ = _endings(text)
    return stops == 2 * questions


@TYPES.add("ratio:sentence_balance", "punkt_tab")
def _sentence_balance(text: str) -> bool:
    """As many sentences end in a full stop as in a question mark and in an exclamation mark."""
    stops, questions, exclamations = _endings(text)
    return stops == questions == exclamations


def _endings(text: str) -> tuple[int, int, int]:
    last = [sentence[-1:] for sentence in sentences(text)]
    return last.count("."), last.count("?"), last.count("!")


@TYPES.add("ratio:sentence_words", "punkt_tab")
def _sentence_words(text: str) -> bool:
    """Three sentences of the same number of characters. (That their words differ is asked, but not checked as published.)"""
    lengths = [len(sentence.strip()) for sentence in sentences(text)]
    return len(lengths) == 3 and len(set(lengths)) == 1
