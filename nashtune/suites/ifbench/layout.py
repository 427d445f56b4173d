"""Instructions about brackets, quotation marks, lines, lists and capitals."""

from __future__ import annotations

import itertools
import re
import string

from nashtune.suites.ifbench.plain import bare, unpunctuated
from nashtune.suites.ifeval.resources import sentences, tokens
from nashtune.suites.ifeval.types import Text, Types

TYPES = Types()
PAIRS = {")": "(", "]": "[", "}": "{"}


@TYPES.add("format:parentheses")
def _parentheses(text: str) -> bool:
    """Brackets of any kind nest five deep, and one is closed after that; a bracket closed wrongly starts all over."""
    opened: list[str] = []
    deepest = 0
    for char in text:
        if char in "([{":
            opened.append(char)
            deepest = max(deepest, len(opened))
        elif char in PAIRS:
            if not opened or opened.pop() != PAIRS[char]:
                opened, deepest = [], 0
            elif deepest >= 5:
                return True
    return False


@TYPES.add("format:quotes")
def _quotes(text: str) -> bool:
    """Straight double and single quotation marks nest three deep, and three are closed below the deepest."""
    opened: list[str] = []
    deepest = 0
    for char in text:
        if opened and char == opened[-1]:
            opened.pop()
            if deepest - len(opened) >= 3:
                return True
        elif char in "\"'":
            opened.append(char)
            deepest = max(deepest, len(opened))
    return False


@TYPES.add("format:options")
def _options(text: str, options: Text) -> bool:
    """One of the options and nothing else: letters of a multiple choice to the character, others in any case and dressing.

    Options are divided by /, else by "or", else by commas.
    """
    separator = "/" if "/" in options else "or" if "or" in options else ","
    choices = [option.strip() for option in options.split(separator)]
    if re.match(r"\W*[aA]\W*[bB]\W*[cC]\W*", options):
        return text in choices
    return bare(text).lower() in [bare(choice).lower() for choice in choices]


@TYPES.add("format:newline")
def _newline(text: str) -> bool:
    """As many lines that are not empty as words, punctuation aside."""
    plain = unpunctuated(text).strip()
    return sum(map(bool, plain.split("\n"))) == len(plain.split())


@TYPES.add("format:line_indent")
def _line_indent(text: str) -> bool:
    """Each line begins with more spaces than the one before; one blank line between two is passed over."""
    lines = text.split("\n")
    place = 0
    while place < len(
        lines
    ):  # the published loop removes from the list it walks, so the line after a removed one is kept
        if not lines[place].strip():
            lines.remove(lines[place])
        place += 1
    indents = [len(line) - len(line.lstrip(" ")) for line in lines]
    return all(a < b for a, b in itertools.pairwise(indents))


@TYPES.add("format:quote_unquote")
def _quote_unquote(text: str) -> bool:
    """No quotation next to another, and none at the end (other punctuation and digits there aside)."""
    joined = "".join(text.replace("'\"'", "").split())
    return '""' not in joined and not joined.strip(string.digits + string.punctuation.replace('"', "")).endswith('"')


@TYPES.add("format:list")
def _list(text: str, sep: Text) -> bool:
    """The mark appears at least twice, anywhere."""
    return text.count(sep) >= 2


@TYPES.add("format:thesis")
def _thesis(text: str) -> bool:
    """Something in HTML italics (<i> before <em>, wherever they stand), and something after it."""
    start = text.find("<i>") if "<i>" in text else text.find("<em>")
    text = text[start:] if start >= 0 else ""
    end = text.find("</i>") if "</i>" in text else text.find("</em>")
    # <em> is cut as <i> is, as published: its last character counts as part of what it encloses.
    return end >= 0 and bool(text[3:end].strip()) and bool(text[end + 4 :].strip())


@TYPES.add("format:sub-bullets")
def _sub_bullets(text: str) -> bool:
    """After every asterisk there is a hyphen before the next one."""
    return all("-" in part for part in text.split("*")[1:])


@TYPES.add("format:no_bullets_bullets", "punkt_tab")
def _no_bullets_bullets(text: str) -> bool:
    """At least two sentences, then at least two lines that begin with *, and nothing else.

    One blank line may stand between the two, or at the start, and it ends the sentences.
    """
    written, bullets, open_ = 0, 0, True
    for line in map(str.strip, text.split("\n")):
        if line.startswith("*"):
            if written < 2:
                return False
            bullets, open_ = bullets + 1, False
        elif open_:
            found = len(sentences(line))
            written, open_ = written + found, found > 0
        else:
            return False
    return bullets >= 2


@TYPES.add("format:title_case", "punkt_tab")
def _title_case(text: str) -> bool:
    """No token begins with a small letter, unless what follows is neither all small nor all capital."""
    return not any(
        token[0].isalpha() and token[0].islower() and (len(token) == 1 or token[1:].islower() or token[1:].isupper())
        for token in tokens(text)
    )


@TYPES.add("format:output_template")
def _output_template(text: str) -> bool:
    """The three headings appear."""
    return all(heading in text for heading in ("My Answer:", "My Conclusion:", "Future Outlook:"))


@TYPES.add("format:no_whitespace")
def _no_whitespace(text: str) -> bool:
    """No white space at all."""
    return not any(map(str.isspace, text))
