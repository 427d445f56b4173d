"""Verifiable instructions: what a program can check in an answer without understanding it.

Each kind is one function ``check(text, **args) -> bool`` registered under its name; its annotations are the schema of
its arguments. Where a kind exists in IFEval (Zhou et al. 2023, arXiv:2311.07911) it decides as published there, except
where its docstring says otherwise.
"""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from nashtune.errors import PromptError
from nashtune.judging.instruction_kinds import Kind, make_kind
from nashtune.judging.text_units import Marker, Separator, bullets, language_of, paragraphs, sentences, words
from nashtune.records import Constraint

Count = Annotated[int, Field(ge=1)]
Phrase = Annotated[str, Field(min_length=1)]
Phrases = Annotated[list[Phrase], Field(min_length=1)]


KINDS: dict[str, Kind] = {}


def instruction(name: str, bounds: bool = False) -> Callable[[Callable[..., bool]], Callable[..., bool]]:
    """Register a check as the kind ``name``; with ``bounds``, at_least or at_most must be given."""

    def register(check: Callable[..., bool]) -> Callable[..., bool]:
        KINDS[name] = make_kind(name, check, bounds)
        return check

    return register


def validate_constraint(constraint: Constraint) -> None:
    """Raise PromptError, naming what was received and what is accepted, unless the kind and its arguments are known."""
    _arguments(constraint)


def check(constraint: Constraint, text: str) -> bool:
    """Whether ``text`` satisfies the constraint; blank text satisfies none. Raises as validate_constraint."""
    args = _arguments(constraint)
    return bool(text.strip()) and KINDS[constraint.kind].check(text, **args)


def _arguments(constraint: Constraint) -> dict[str, Any]:
    kind = KINDS.get(constraint.kind)
    if kind is None:
        raise PromptError(f"constraint kind {constraint.kind!r} is unknown; accepted: {', '.join(sorted(KINDS))}")
    return kind.arguments(constraint.args)


def _lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


def _within(n: int, at_least: int | None, at_most: int | None) -> bool:
    return (at_least is None or n >= at_least) and (at_most is None or n <= at_most)


Bound = Annotated[int, Field(ge=0)] | None

# ------------------------------------------------------------------------------------------------------------- lengths


@instruction("words_at_least")
def _words_at_least(text: str, n: Count) -> bool:
    """At least n words."""
    return len(words(text)) >= n


@instruction("words_at_most")
def _words_at_most(text: str, n: Count) -> bool:
    """At most n words."""
    return len(words(text)) <= n


@instruction("words_between")
def _words_between(text: str, at_least: Count, at_most: Count) -> bool:
    """Between at_least and at_most words, both included."""
    return at_least <= len(words(text)) <= at_most


@instruction("sentences_exactly")
def _sentences_exactly(text: str, n: Count) -> bool:
    """Exactly n sentences."""
    return len(sentences(text)) == n


@instruction("sentences_at_least")
def _sentences_at_least(text: str, n: Count) -> bool:
    """At least n sentences."""
    return len(sentences(text)) >= n


@instruction("sentences_at_most")
def _sentences_at_most(text: str, n: Count) -> bool:
    """At most n sentences."""
    return len(sentences(text)) <= n


@instruction("paragraphs_exactly")
def _paragraphs_exactly(text: str, n: Count, separator: Separator = "blank line") -> bool:
    """Exactly n paragraphs, none empty, divided by blank lines or by *** (IFEval's divider)."""
    parts = paragraphs(text, separator)
    return len(parts) == n and all(parts)


@instruction("paragraph_first_word")
def _paragraph_first_word(text: str, n: Count, nth: Count, word: Phrase) -> bool:
    """Exactly n paragraphs divided by blank lines, the nth of them beginning with the word."""
    parts = [p for p in paragraphs(text) if p]
    return len(parts) == n and nth <= n and [w.lower() for w in words(parts[nth - 1])[:1]] == [word.lower()]


# -------------------------------------------------------------------------------------------------------------- layout


@instruction("bullets_exactly")
def _bullets_exactly(text: str, n: Count, marker: Marker = "any", only: bool = False) -> bool:
    """Exactly n bullet lines; with ``only``, nothing but them."""
    return len(bullets(text, marker)) == n and (not only or len(_lines(text)) == n)


@instruction("numbered_list")
def _numbered_list(text: str, n: Count, only: bool = False) -> bool:
    """Exactly n items numbered 1., 2., ... (or 1), 2), ...), in order; with ``only``, nothing but them."""
    numbers = re.findall(r"^\s*(\d+)[.)]\s+\S", text, re.MULTILINE)
    return numbers == [str(i) for i in range(1, n + 1)] and (not only or len(_lines(text)) == n)


@instruction("sections")
def _sections(text: str, n: Count, marker: Phrase) -> bool:
    """At least n sections, each headed by the marker and a number ("SECTION 1")."""
    return len(re.findall(rf"\s?{re.escape(marker)}\s?\d+\s?", text)) >= n


@instruction("highlighted")
def _highlighted(text: str, n: Count) -> bool:
    """At least n parts *highlighted* with asterisks."""
    single = [m for m in re.findall(r"\*([^\n*]*)\*", text) if m.strip()]
    double = [m for m in re.findall(r"\*\*([^\n*]*)\*\*", text) if m.strip()]
    return len(single) + len(double) >= n


@instruction("title_in_double_angles")
def _title_in_double_angles(text: str) -> bool:
    """A title wrapped in double angular brackets: <<title>>."""
    return any(m.strip("<> \t") for m in re.findall(r"<<([^\n]+)>>", text))


@instruction("placeholders")
def _placeholders(text: str, n: Count) -> bool:
    """At least n placeholders in square brackets, as [name]."""
    return len(re.findall(r"\[.*?\]", text)) >= n


@instruction("postscript")
def _postscript(text: str, marker: Phrase = "P.S.") -> bool:
    """A postscript that begins with the marker (P.S. and P.P.S. also with spaces between the letters)."""
    loose = {"P.S.": r"p\.\s?s\.", "P.P.S": r"p\.\s?p\.\s?s"}
    return bool(re.search(loose.get(marker) or re.escape(marker.lower()), text.lower()))


@instruction("two_answers")
def _two_answers(text: str) -> bool:
    """Two different answers, divided by six asterisks."""
    parts = [p.strip() for p in text.strip().split("******")]
    inner = [p for i, p in enumerate(parts) if p or 0 < i < len(parts) - 1]
    return len(inner) == 2 and all(inner) and inner[0] != inner[1]


@instruction("json")
def _json(text: str, keys: list[Phrase] | None = None) -> bool:
    """The whole answer is JSON (a Markdown fence is allowed); with ``keys``, an object that has them."""
    body = re.sub(r"^```(?:json)?\s*|\s*```$", "", text.strip(), flags=re.IGNORECASE)
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return False
    return keys is None or (isinstance(value, dict) and set(keys) <= set(value))


# ------------------------------------------------------------------------------------------------- letters and symbols


@instruction("lowercase")
def _lowercase(text: str) -> bool:
    """No capital letter, and some letter. (IFEval also asks for English: add a ``language`` constraint.)"""
    return text.islower()


@instruction("uppercase")
def _uppercase(text: str) -> bool:
    """No small letter, and some letter. (IFEval also asks for English: add a ``language`` constraint.)"""
    return text.isupper()


@instruction("capital_words", bounds=True)
def _capital_words(text: str, at_least: Bound = None, at_most: Bound = None) -> bool:
    """A number of words (parts between white space) wholly in capital letters."""
    return _within(sum(w.isupper() for w in text.split()), at_least, at_most)


@instruction("letter_frequency", bounds=True)
def _letter_frequency(
    text: str,
    letter: Annotated[str, Field(min_length=1, max_length=1)],
    at_least: Bound = None,
    at_most: Bound = None,
) -> bool:
    """A number of occurrences of one character, in either case."""
    return _within(text.lower().count(letter.lower()), at_least, at_most)


@instruction("no_commas")
def _no_commas(text: str) -> bool:
    """No comma."""
    return "," not in text


@instruction("no_digits")
def _no_digits(text: str) -> bool:
    """No digit."""
    return not any(c.isdigit() for c in text)


@instruction("quoted")
def _quoted(text: str) -> bool:
    """The whole answer in straight double quotation marks."""
    text = text.strip()
    return len(text) > 1 and text.startswith('"') and text.endswith('"')


# ------------------------------------------------------------------------------------------------------ words required


@instruction("include_keywords")
def _include_keywords(text: str, keywords: Phrases) -> bool:
    """Every keyword appears, in any case (also inside a longer word)."""
    return all(k.lower() in text.lower() for k in keywords)


@instruction("exclude_keywords")
def _exclude_keywords(text: str, keywords: Phrases) -> bool:
    """No keyword appears as a word of its own, in any case."""
    return not any(re.search(rf"\b{re.escape(k)}\b", text, re.IGNORECASE) for k in keywords)


@instruction("keyword_frequency", bounds=True)
def _keyword_frequency(text: str, keyword: Phrase, at_least: Bound = None, at_most: Bound = None) -> bool:
    """A number of appearances of the keyword, in any case (also inside longer words)."""
    return _within(text.lower().count(keyword.lower()), at_least, at_most)


@instruction("starts_with")
def _starts_with(text: str, phrase: Phrase, ignore_case: bool = False) -> bool:
    """The answer starts with the phrase (IFEval's repeat_prompt: with ignore_case)."""
    text, phrase = text.strip(), phrase.strip()
    return text.lower().startswith(phrase.lower()) if ignore_case else text.startswith(phrase)


@instruction("ends_with")
def _ends_with(text: str, phrase: Phrase, ignore_case: bool = False, allow_stop: bool = False) -> bool:
    """The answer ends with the phrase, double quotation marks around the answer aside.

    ``allow_stop`` also takes a final . or ! behind it. IFEval's end_checker: with ignore_case.
    """
    text, phrase = text.strip().strip('"').rstrip(), phrase.strip()
    text = text.rstrip(".!").rstrip() if allow_stop and phrase[-1] not in ".!" else text
    return text.lower().endswith(phrase.lower()) if ignore_case else text.endswith(phrase)


@instruction("ends_with_question")
def _ends_with_question(text: str) -> bool:
    """The answer ends with a question mark (closing quotation marks aside)."""
    return text.rstrip().rstrip("\"'”’)").endswith("?")


@instruction("one_of")
def _one_of(text: str, options: Phrases) -> bool:
    """At least one of the options appears, word for word."""
    return any(option in text for option in options)


# ------------------------------------------------------------------------------------------------- language and answers


def _known_language(code: str) -> str:
    from langdetect import PROFILES_DIRECTORY

    known = sorted(os.listdir(PROFILES_DIRECTORY))
    if code not in known:
        raise ValueError(f"no such language; known: {', '.join(known)}")
    return code


@instruction("language")
def _language(text: str, code: Annotated[str, AfterValidator(_known_language)]) -> bool:
    """The answer is in the language with this ISO 639-1 code, as langdetect tells (with its seed fixed).

    Text without any letter is in no language (IFEval lets it pass).
    """
    return language_of(text) == code


@instruction("exact_answer")
def _exact_answer(text: str, answer: Phrase) -> bool:
    """The final answer equals ``answer``: as numbers where it is one, else as text after normalisation.

    The final answer is what follows the last "answer:", "answer is" or "####", else the whole text. A number is
    compared with the last number in it, thousands separators aside; text without case, punctuation and articles.
    """
    final = re.split(r"answer\s*(?:is|:)|####", text, flags=re.IGNORECASE)[-1]
    number = _number(answer.strip().strip("$%"))
    if number is None:
        return _normalised(final) == _normalised(answer)
    found = re.findall(r"-?\d[\d,]*(?:\.\d+)?", final)
    return bool(found) and _number(found[-1]) == number


def _number(text: str) -> float | None:
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return None


def _normalised(text: str) -> list[str]:
    folded = unicodedata.normalize("NFKC", text).casefold()
    return [w for w in re.sub(r"[^\w\s]", " ", folded).split() if w not in ("a", "an", "the")]
