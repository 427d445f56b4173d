"""What makes a sample an automatic negative before any oracle sees it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from nashtune.errors import SamplingError
from nashtune.recipe import DefectsSection
from nashtune.records import Finish

# A stretch without a space longer than any ordinary word: a runaway token, or a script that writes without spaces.
LONG_RUN = 24
# A word of the scripts written without spaces has 2 (Chinese) to 4 (Thai) characters.
CHARACTERS_PER_WORD = 3
# langdetect guesses wildly at less text than a short sentence.
LEAST_LETTERS = 24

_TEMPLATE_TOKEN = re.compile(
    r"<\|[A-Za-z_]+\|>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|</s>",
)
_TURN_START = re.compile(r"\n[ \t]*(?:###[ \t]*(?:Instruction|Input|Response)|Human|Assistant)[ \t]*:", re.IGNORECASE)


def word_count(text: str) -> int:
    """Number of whitespace-separated words."""
    return len(text.split())


def find_defects(text: str, finish: Finish, section: DefectsSection) -> tuple[str, ...]:
    """Names of a sample's defects, in the order empty, repeated, truncated, wrong_language, template_debris.

    empty: nothing visible. repeated: repeat_share above section.max_repeat_share. truncated: it ended for its length.
    wrong_language: detected as another language than section.language. template_debris: a chat template's token
    anywhere, or a new turn begun after the first line. Raises SamplingError for a language that cannot be detected.
    """
    found = {
        "empty": not any(c.isprintable() and not c.isspace() for c in text),
        "repeated": repeat_share(text, section.repeat_ngram) > section.max_repeat_share,
        "truncated": section.truncated and finish == "length",
        "wrong_language": section.language is not None and _in_another_language(text, section.language),
        "template_debris": bool(_TEMPLATE_TOKEN.search(text) or _TURN_START.search(text)),
    }
    return tuple(name for name, present in found.items() if present)


def repeat_share(text: str, n: int) -> float:
    """Share of repeated n-grams in [0, 1]: 1 - distinct/all over the n-grams of its words, letter case ignored.

    Stretches of more than LONG_RUN characters without a space are measured apart, by n-grams of
    CHARACTERS_PER_WORD * n characters inside each stretch; the two shares are then averaged by the characters they
    stand for. So ordinary text is measured by words alone, Chinese by characters alone, and a runaway "aaaa..." in
    proportion to its length. Fewer than n + 1 words, or shorter stretches, repeat nothing.
    """
    words: list[str] = []
    runs: list[str] = []
    for word in text.casefold().split():
        (runs if len(word) > LONG_RUN else words).append(word)
    spaced, unspaced = sum(map(len, words)), sum(map(len, runs))
    if not spaced + unspaced:
        return 0.0
    word_share = _repeated(_ngrams(words, n))
    run_share = _repeated([gram for run in runs for gram in _ngrams(run, CHARACTERS_PER_WORD * n)])
    return (word_share * spaced + run_share * unspaced) / (spaced + unspaced)


def _ngrams(items: Sequence[str], n: int) -> list[Sequence[str]]:
    """Every stretch of n neighbours, hashable; none where there are fewer than n."""
    units = items if isinstance(items, str) else tuple(items)
    return [units[i : i + n] for i in range(len(units) - n + 1)]


def _repeated(ngrams: Sequence[Sequence[str]]) -> float:
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def _in_another_language(text: str, language: str) -> bool:
    """Whether the most probable language of ``text`` is not ``language``; False for texts too short to tell."""
    from langdetect import DetectorFactory, LangDetectException, detect  # loads 55 language profiles at first use

    if language not in (known := _detectable()):
        raise SamplingError(
            f"sampling.defects.language is {language!r}; accepted: null or one of {', '.join(sorted(known))}"
        )
    if sum(c.isalpha() for c in text) < LEAST_LETTERS:
        return False
    DetectorFactory.seed = 0  # its detector draws at random; this is its own documented switch
    try:
        return detect(text).partition("-")[0] != language
    except LangDetectException:  # nothing to go by: it leaves out links and scripts it has no profile of
        return False


@cache
def _detectable() -> frozenset[str]:
    """ISO 639-1 codes langdetect has a profile for (it tells "zh-cn" from "zh-tw"; both are "zh" here)."""
    from langdetect.detector_factory import PROFILES_DIRECTORY

    return frozenset(path.name.partition("-")[0] for path in Path(PROFILES_DIRECTORY).iterdir())
