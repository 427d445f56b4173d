"""IFEval's 25 types of instructions, deciding as the published code does (its port in lm-evaluation-harness, task version 4).

Where the rules oracle has the same rule, the check is the oracle's own (``rule(...)``). Where IFEval's differs, it is written
here, and docs/ifeval.md has a table of what differs. Where the published code draws what a row leaves out or what it finds
out of range at random, the row is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import Field

from nashtune.judging.instructions import KINDS
from nashtune.judging.text_units import language_of, words
from nashtune.suites.ifeval.resources import sentences, tokens
from nashtune.suites.ifeval.types import Pattern, Positive, Text, Types, Whole

IFEVAL = Types()
Relation = Literal["less than", "at least"]
ANSWERS = ["My answer is yes.", "My answer is no.", "My answer is maybe."]


def rule(kind: str) -> Callable[..., bool]:
    """The rules oracle's check of that kind."""
    return KINDS[kind].check


def _within(count: int, relation: Relation, bound: int) -> bool:
    return count < bound if relation == "less than" else count >= bound


# ------------------------------------------------------------------------------------------------------------- keywords


@IFEVAL.add("keywords:existence")
def _existence(text: str, keywords: Annotated[list[Pattern], Field(min_length=1)]) -> bool:
    """Every keyword is found, in any case, also inside a longer word."""
    return all(re.search(keyword, text, re.IGNORECASE) for keyword in keywords)


@IFEVAL.add("keywords:frequency")
def _frequency(text: str, keyword: Pattern, frequency: Whole, relation: Relation) -> bool:
    """How often a keyword is found, in any case, also inside longer words."""
    return _within(len(re.findall(keyword.strip(), text, re.IGNORECASE)), relation, frequency)


@IFEVAL.add("keywords:forbidden_words")
def _forbidden_words(text: str, forbidden_words: Annotated[list[Pattern], Field(min_length=1)]) -> bool:
    """None of the words is found between word boundaries, in any case."""
    return not any(re.search(rf"\b{word}\b", text, re.IGNORECASE) for word in forbidden_words)


@IFEVAL.add("keywords:letter_frequency")
def _letter_frequency(
    text: str, letter: Annotated[str, Field(min_length=1, max_length=1)], let_frequency: Whole, let_relation: Relation
) -> bool:
    """How often one character occurs, in either case. (The published code draws another letter for one not in a to z.)"""
    found = rule("letter_frequency")(text, letter=letter, at_least=let_frequency)
    return found if let_relation == "at least" else not found


# --------------------------------------------------------------------------------------------------- language and case


@IFEVAL.add("language:response_language")
def _response_language(text: str, language: Text) -> bool:
    """langdetect tells this language. Text without letters passes."""
    return language_of(text) in (language, None)


@IFEVAL.add("change_case:english_capital")
def _english_capital(text: str) -> bool:
    """English without a small letter."""
    return rule("uppercase")(text) and language_of(text) in ("en", None)


@IFEVAL.add("change_case:english_lowercase")
def _english_lowercase(text: str) -> bool:
    """English without a capital letter."""
    return rule("lowercase")(text) and language_of(text) in ("en", None)


@IFEVAL.add("change_case:capital_word_frequency", "punkt_tab")
def _capital_word_frequency(text: str, capital_frequency: Whole, capital_relation: Relation) -> bool:
    """How many of nltk's tokens are wholly in capital letters."""
    return _within(sum(token.isupper() for token in tokens(text)), capital_relation, capital_frequency)


# --------------------------------------------------------------------------------------------------------------- length


@IFEVAL.add("length_constraints:number_sentences", "punkt_tab")
def _number_sentences(text: str, num_sentences: Whole, relation: Relation) -> bool:
    """How many sentences nltk's punkt splits the text into."""
    return _within(len(sentences(text)), relation, num_sentences)


@IFEVAL.add("length_constraints:number_words")
def _number_words(text: str, num_words: Whole, relation: Relation) -> bool:
    """How many words the text has."""
    return _within(len(words(text)), relation, num_words)


@IFEVAL.add("length_constraints:number_paragraphs")
def _number_paragraphs(text: str, num_paragraphs: Whole) -> bool:
    """Exactly so many parts divided by ***, none in the middle blank."""
    return rule("paragraphs_exactly")(text, n=num_paragraphs, separator="***")


@IFEVAL.add("length_constraints:nth_paragraph_first_word")
def _nth_paragraph_first_word(text: str, num_paragraphs: Positive, nth_paragraph: Positive, first_word: Text) -> bool:
    r"""So many parts divided by \n\n that are not blank, the nth of all parts beginning with the word.

    Blank parts are left out of the count, not of the numbering. The first word ends at white space or . , ? ! ' and ".
    """
    parts = [part.strip() for part in text.split("\n\n")]
    filled = sum(map(bool, parts))
    if nth_paragraph > filled or not parts[nth_paragraph - 1]:
        return False
    first = parts[nth_paragraph - 1].split()[0].lstrip("'").lstrip('"')
    bare = re.split("[.,?!'\"]", first)[0]
    return filled == num_paragraphs and "".join(map(str.lower, bare)) == first_word.lower()


# --------------------------------------------------------------------------------------------------- content and format


@IFEVAL.add("detectable_content:number_placeholders")
def _number_placeholders(text: str, num_placeholders: Whole) -> bool:
    """At least so many placeholders, as [name]."""
    return rule("placeholders")(text, n=num_placeholders)


@IFEVAL.add("detectable_content:postscript")
def _postscript(text: str, postscript_marker: Pattern) -> bool:
    """A postscript that begins with the marker, in any case."""
    marker = postscript_marker.strip()
    if marker in ("P.S.", "P.P.S"):
        return rule("postscript")(text, marker=marker)
    return bool(re.search(marker.lower(), text.lower()))


@IFEVAL.add("detectable_format:number_bullet_lists")
def _number_bullet_lists(text: str, num_bullets: Whole) -> bool:
    """Exactly so many lines that begin with - or with a single * (which may stand alone on its line)."""
    stars = re.findall(r"^\s*\*[^*].*$", text, re.MULTILINE)
    return len(stars) + len(re.findall(r"^\s*-.*$", text, re.MULTILINE)) == num_bullets


@IFEVAL.add("detectable_format:constrained_response")
def _constrained_response(text: str) -> bool:
    """One of the three answers appears."""
    return rule("one_of")(text, options=ANSWERS)


@IFEVAL.add("detectable_format:number_highlighted_sections")
def _number_highlighted_sections(text: str, num_highlights: Whole) -> bool:
    """At least so many parts *highlighted* with asterisks."""
    return rule("highlighted")(text, n=num_highlights)


@IFEVAL.add("detectable_format:multiple_sections")
def _multiple_sections(text: str, section_spliter: Pattern, num_sections: Whole) -> bool:
    """At least so many sections, each headed by the word and a number."""
    return len(re.findall(rf"\s?{section_spliter.strip()}\s?\d+\s?", text)) >= num_sections


@IFEVAL.add("detectable_format:json_format")
def _json_format(text: str) -> bool:
    """JSON; a Markdown fence around it, marked json, Json, JSON or nothing, is allowed."""
    body = text.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):  # one after the other, as published
        body = body.removeprefix(fence)
    try:
        json.loads(body.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


@IFEVAL.add("detectable_format:title")
def _title(text: str) -> bool:
    """A line has <<title>>; what is between the first << and the last >> of it may not be blank or brackets alone."""
    return any(title.lstrip("<").rstrip(">").strip() for title in re.findall(r"<<[^\n]+>>", text))


# ------------------------------------------------------------------------------- combinations, start, end, punctuation


@IFEVAL.add("combination:two_responses")
def _two_responses(text: str) -> bool:
    """Two different answers, divided by six asterisks."""
    return rule("two_answers")(text)


@IFEVAL.add("combination:repeat_prompt")
def _repeat_prompt(text: str, prompt_to_repeat: Text) -> bool:
    """The answer begins with the request, in any case."""
    return rule("starts_with")(text, phrase=prompt_to_repeat, ignore_case=True)


@IFEVAL.add("startend:end_checker")
def _end_checker(text: str, end_phrase: Text) -> bool:
    """The answer ends with the phrase, in any case, double quotation marks around the answer aside."""
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


@IFEVAL.add("startend:quotation")
def _quotation(text: str) -> bool:
    """The whole answer in straight double quotation marks."""
    return rule("quoted")(text)


@IFEVAL.add("punctuation:no_comma")
def _no_comma(text: str) -> bool:
    """No comma."""
    return rule("no_commas")(text)
