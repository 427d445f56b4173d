"""Instructions of one prompt each: a task with one form of answer."""

from __future__ import annotations

import csv
import io
import re
from itertools import pairwise
from string import ascii_lowercase

from nashtune.suites.ifbench.plain import ascii_letters, bare, unpunctuated
from nashtune.suites.ifeval.resources import sentences
from nashtune.suites.ifeval.types import Types

TYPES = Types()
CAPITALS = [
    "Reykjavik",
    "Helsinki",
    "Oslo",
    "Tallinn",
    "Stockholm",
    "Riga",
    "Moscow",
    "Copenhagen",
    "Vilnius",
    "Minsk",
    "Dublin",
    "Berlin",
    "Amsterdam",
    "Warsaw",
    "London",
    "Brussels",
    "Prague",
    "Luxembourg",
    "Paris",
    "Vienna",
    "Bratislava",
    "Budapest",
    "Vaduz",
    "Chisinau",
    "Bern",
    "Ljubljana",
    "Zagreb",
]
"""From north to south, as published."""


@TYPES.add("custom:multiples")
def _multiples(text: str) -> bool:
    """The text's numbers are 14, 21, 28, 35, 42, 49."""
    return re.findall(r"\d+", text) == [str(n) for n in range(14, 51, 7)]


@TYPES.add("custom:mcq_count_length")
def _mcq_count_length(text: str) -> bool:
    """Four questions headed "Question n", of five options each, each question's text longer than the one before."""
    if not text.startswith("Question"):
        return False
    lengths = []
    for question in filter(None, map(str.strip, re.split(r"\n*(?:Question \d+[\.|\):;]?\s*)", text))):
        lines = [line.strip() for line in question.split("\n")]
        options = [i for i, line in enumerate(lines) if re.match(r"^[A-Ea-e][\.|\)]\s*\w+", line)]
        if len(options) != 5:
            return False
        lengths.append(len(" ".join(lines[: options[0]]).strip()))
    return len(lengths) == 4 and all(a < b for a, b in pairwise(lengths))


@TYPES.add("custom:reverse_newline")
def _reverse_newline(text: str) -> bool:
    """From the first line with Zimbabwe on, at least 52 lines in reverse alphabetical order."""
    lines = [line for line in map(bare, text.split("\n")) if line]
    first = next((i for i, line in enumerate(lines) if "Zimbabwe" in line), len(lines))
    listed = [ascii_letters(line) for line in lines[first:]]
    return len(listed) >= 52 and listed == sorted(listed, reverse=True)


@TYPES.add("custom:word_reverse", "punkt_tab")
def _word_reverse(text: str) -> bool:
    """Read backwards by words, the text has "bald eagle" and is one sentence, punctuation aside."""
    backwards = " ".join(unpunctuated(text.lower().strip()).split()[::-1])
    return "bald eagle" in backwards and backwards in sentences(backwards)


@TYPES.add("custom:character_reverse")
def _character_reverse(text: str) -> bool:
    """It has "bald eagle" backwards, in any case."""
    return "elgae dlab" in text.lower()


@TYPES.add("custom:sentence_alphabet", "punkt_tab")
def _sentence_alphabet(text: str) -> bool:
    """26 sentences that begin with a, b, ... z."""
    return [sentence.lstrip()[:1].lower() for sentence in sentences(text)] == list(ascii_lowercase)


@TYPES.add("custom:european_capitals_sort")
def _european_capitals_sort(text: str) -> bool:
    """The capitals in order, divided by commas, diacritics aside."""
    return [part.strip() for part in ascii_letters(text).split(",") if part.strip()] == CAPITALS


@TYPES.add("custom:csv_city")
def _csv_city(text: str) -> bool:
    """CSV: the five columns and seven rows."""
    rows = _csv_rows(text)
    return len(rows) == 8 and rows[0] == ["ID", "Country", "City", "Year", "Count"] and all(len(r) == 5 for r in rows)


@TYPES.add("custom:csv_special_character")
def _csv_special_character(text: str) -> bool:
    """CSV: the five columns and fourteen rows, one of them with a special character in a field in double quotes.

    Rows after the first such are not looked at.
    """
    if not re.match(_heading(["ProductID", "Category", "Brand", "Price", "Stock"], r",[ \t]*"), _first_line(text)):
        return False
    rows = _csv_rows(text.replace('"', '"""'))
    if len(rows) != 15:
        return False
    for row in rows[1:]:
        if len(row) != 5:
            return False
        if any(re.match(r'".*[^\d\w\s].*"', field) for field in row):
            return True
    return False


@TYPES.add("custom:csv_quotes")
def _csv_quotes(text: str) -> bool:
    """Tab-separated: the five columns and three rows, every field in double quotes."""
    if not re.match(_heading(["StudentID", "Subject", "Grade", "Semester", "Score"], r"\t *"), _first_line(text)):
        return False
    rows = _csv_rows(text.replace('"', '"""'), "\t")
    fields = [field.strip() for row in rows for field in row]
    return [len(row) for row in rows] == [5] * 4 and all(f.startswith('"') and f.endswith('"') for f in fields)


def _first_line(text: str) -> str:
    return text.split("\n")[0].strip()


def _heading(columns: list[str], separator: str) -> str:
    return "^" + separator.join(f'({name}|"{name}")' for name in columns) + "$"


def _csv_rows(text: str, delimiter: str = ",") -> list[list[str]]:
    """Empty where the csv module refuses it (the published code stops with that error)."""
    try:
        return list(csv.reader(io.StringIO(text), delimiter=delimiter))
    except csv.Error:
        return []


@TYPES.add("custom:date_format_list")
def _date_format_list(text: str) -> bool:
    """Dates as YYYY-MM-DD divided by commas, from 1769 to 1821, none of a month above 12 or past its month's last day."""
    return all(map(_is_date, text.strip().split(",")))


def _is_date(text: str) -> bool:
    if not re.match(r"^\d{4}-\d{2}-\d{2}$", text.strip()):
        return False
    year, month, day = map(int, text.strip().split("-"))
    last = 29 if month == 2 else 30 if month in (4, 6, 9, 11) else 31
    return 1769 <= year <= 1821 and month <= 12 and (day <= last or month == 0)
