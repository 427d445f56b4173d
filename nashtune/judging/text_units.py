"""How an answer's words, sentences, bullets and paragraphs are counted: each in one place, for every check."""

from __future__ import annotations

import re
from typing import Literal

Marker = Literal["any", "-", "*"]
Separator = Literal["blank line", "***"]

_ABBREVIATIONS = frozenset(
    ["mr", "mrs", "ms", "dr", "prof", "st", "vs", "fig", "approx", "e.g", "i.e", "cf", "u.s", "u.k", "a.m", "p.m"]
)
_STOP = re.compile(r"[.!?…]+[\"'”’)\]*_]*(?=\s|$)")
_ITEM = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s+", re.MULTILINE)


def words(text: str) -> list[str]:
    """Runs of letters, digits and underscores, as IFEval counts them ("don't" is two)."""
    return re.findall(r"\w+", text)


def sentences(text: str) -> list[str]:
    """Stretches ended by . ! ? or … before white space, by a blank line, or by the start of a list item.

    A stop after an abbreviation or a single capital letter ends nothing, unless the text ends there. Stretches
    without a word do not count. (IFEval uses a trained splitter here; the two differ on unlisted abbreviations.)
    """
    found = []
    for block in re.split(r"\n\s*\n|\n(?=\s*(?:[-*•]|\d+[.)])\s)", text):
        block, start = _ITEM.sub("", block), 0
        for stop in _STOP.finditer(block):
            last = block[start : stop.start()].split()[-1:] or [""]
            if stop.group()[0] == "." and stop.end() < len(block.rstrip()) and _is_abbreviation(last[0]):
                continue
            found.append(block[start : stop.end()])
            start = stop.end()
        found.append(block[start:])
    return [s.strip() for s in found if words(s)]


def _is_abbreviation(word: str) -> bool:
    word = word.lstrip("(\"'“‘")
    return word.lower() in _ABBREVIATIONS or (len(word) == 1 and word.isupper() and word != "I")


def bullets(text: str, marker: Marker = "any") -> list[str]:
    """Lines that begin with - or with a single *."""
    pattern = {"any": r"^\s*(?:-.*|\*[^*\n].*)$", "-": r"^\s*-.*$", "*": r"^\s*\*[^*\n].*$"}[marker]
    return re.findall(pattern, text, re.MULTILINE)


def paragraphs(text: str, separator: Separator = "blank line") -> list[str]:
    """Parts between separators; an empty part at either end does not count, one in the middle stays as ''."""
    parts = [p.strip() for p in re.split(r"\n\s*\n" if separator == "blank line" else r"\s?\*\*\*\s?", text.strip())]
    return [p for i, p in enumerate(parts) if p or 0 < i < len(parts) - 1]


def language_of(text: str) -> str | None:
    """The ISO 639-1 code that langdetect tells (its seed fixed, as its guess is drawn), None for text without letters."""
    from langdetect import DetectorFactory, LangDetectException, detect

    DetectorFactory.seed = 0
    try:
        return detect(text)
    except LangDetectException:
        return None
