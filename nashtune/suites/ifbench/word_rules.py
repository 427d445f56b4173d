"""Instructions that every word keeps."""

from __future__ import annotations

import re
import string
from collections import Counter
from itertools import pairwise

from nashtune.suites.ifbench.plain import plain_words
from nashtune.suites.ifeval.resources import part_of_speech, syllables, tokens
from nashtune.suites.ifeval.types import Types, Whole

TYPES = Types()
PRIMES = frozenset(n for n in range(2, 98) if all(n % d for d in range(2, n)))


@TYPES.add("words:alphabet")
def _alphabet(text: str) -> bool:
    """Each word starts with the next letter of the alphabet, from the first word's on, A after Z."""
    found = plain_words(text)
    if not found or found[0][0].lower() not in string.ascii_lowercase:
        return False
    first = string.ascii_lowercase.index(found[0][0].lower())
    letters = string.ascii_lowercase[first:] + string.ascii_lowercase[:first]
    return all(word.lower()[0] == letters[i % 26] for i, word in enumerate(found[1:], 1))


@TYPES.add("words:vowel")
def _vowel(text: str) -> bool:
    """One line, with at most three of the vowels a, e, i, o, u."""
    return "\n" not in text.strip() and len(set("aeiou") & set(text.lower())) <= 3


@TYPES.add("words:consonants")
def _consonants(text: str) -> bool:
    """Every part between white space has two consonants in a row."""
    return all(re.search("[bcdfghjklmnpqrstvwxyz]{2}", word) for word in text.lower().split())


@TYPES.add("words:palindrome")
def _palindrome(text: str) -> bool:
    """At least ten words of five or more characters read the same backwards; repeats count."""
    return sum(len(word) >= 5 and word == word[::-1] for word in plain_words(text.lower())) >= 10


@TYPES.add("words:prime_lengths")
def _prime_lengths(text: str) -> bool:
    """Every word's length is a prime number below 100."""
    return all(len(word) in PRIMES for word in plain_words(text))


@TYPES.add("words:repeats")
def _repeats(text: str, small_n: Whole) -> bool:
    """No word, in any case, appears more often than small_n times."""
    return all(count <= small_n for count in Counter(plain_words(text.lower())).values())


@TYPES.add("words:no_consecutive")
def _no_consecutive(text: str) -> bool:
    """No two words in a row share their first letter."""
    return all(a[0] != b[0] for a, b in pairwise(plain_words(text.lower())))


@TYPES.add("words:odd_even_syllables", "syllapy")
def _odd_even_syllables(text: str) -> bool:
    """Odd and even numbers of syllables alternate from word to word."""
    parities = [syllables(word) % 2 for word in plain_words(text.lower())]
    return all(a != b for a, b in pairwise(parities))


@TYPES.add("words:start_verb", "punkt_tab", "averaged_perceptron_tagger_eng")
def _start_verb(text: str) -> bool:
    """nltk tags the first token as a verb."""
    found = tokens(text)
    return bool(found) and "VB" in part_of_speech(found)[0]
