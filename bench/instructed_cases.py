"""Answers made to follow, to miss and to miss by little each type of verifiable instruction; the same for the same seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from instructed_texts import LANGUAGES, ODD, SENTENCES, near, prose, scatter

Made = tuple[dict[str, Any], str]


@dataclass(frozen=True)
class Case:
    """One answer to one instruction."""

    type: str
    kwargs: dict[str, Any]
    text: str


RELATIONS = ("less than", "at least")


def counted(
    piece: Callable[[random.Random], str], name: str, *, with_prose: bool = True, most: int = 6
) -> Callable[[random.Random], Made]:
    """A maker of answers with about as many pieces as asked."""

    def make(rng: random.Random) -> Made:
        bound = rng.randint(1, most)
        parts = [piece(rng) for _ in range(near(rng, bound))]
        return {name: bound}, scatter(rng, parts + ([prose(rng, rng.randint(0, 2))] if with_prose else []))

    return make


def related(
    piece: Callable[[random.Random], str], number: str, relation: str, **fixed: Any
) -> Callable[[random.Random], Made]:
    """The same for types with a relation."""

    def make(rng: random.Random) -> Made:
        kwargs, text = counted(piece, number, with_prose=rng.random() < 0.6)(rng)
        return {**kwargs, relation: rng.choice(RELATIONS), **fixed}, text

    return make


def _existence(rng: random.Random) -> Made:
    keywords = rng.sample(["river", "map", "blue door", "idea", "TEA", "no. 5", "caf."], rng.randint(1, 3))
    shown = [rng.choice((str.lower, str.upper, str.title, lambda k: k + "s"))(k) for k in keywords]
    return {"keywords": keywords}, scatter(rng, [*shown[: rng.randint(0, len(shown))], prose(rng, rng.randint(0, 3))])


def _frequency(rng: random.Random) -> Made:
    keyword = rng.choice(["river", "map ", "or", "I", "blue door"])
    piece = lambda r: r.choice((keyword, keyword.upper(), keyword.strip() + "ine", "nothing"))  # noqa: E731
    return related(piece, "frequency", "relation", keyword=keyword)(rng)


def _forbidden(rng: random.Random) -> Made:
    words = rng.sample(["river", "map", "can", "rename", "U.S.", "blue door", "it"], rng.randint(1, 3))
    shown = [rng.choice((w, w + "s", "un" + w, w.upper(), f"_{w}_", f"({w})", "")) for w in words]
    return {"forbidden_words": words}, scatter(rng, [*shown, prose(rng, rng.randint(0, 2))])


def _letters(rng: random.Random) -> Made:
    letter = rng.choice("aeqzQo")
    piece = lambda r: r.choice((letter, letter.upper(), f"x{letter}{letter}", "bcd"))  # noqa: E731
    return related(piece, "let_frequency", "let_relation", letter=letter)(rng)


def _language(rng: random.Random) -> Made:
    wanted = rng.choice(list(LANGUAGES))
    parts = [LANGUAGES[rng.choice((wanted, wanted, rng.choice(list(LANGUAGES))))] for _ in range(rng.randint(1, 3))]
    return {"language": wanted}, rng.choice(("\n", " ", "\n\n")).join(parts)


def _cased(change: Callable[[str], str]) -> Callable[[random.Random], Made]:
    def make(rng: random.Random) -> Made:
        text = LANGUAGES[rng.choice(("en", "en", "en", "de", "ru", "ko"))] + " " + prose(rng, rng.randint(0, 2))
        text = change(text) if rng.random() < 0.8 else text
        return {}, text + rng.choice(("", "", "", " a", " A", " 123"))

    return make


def _paragraph_word(rng: random.Random) -> Made:
    count = rng.randint(1, 5)
    nth = rng.randint(1, count)
    word = rng.choice(["River", "map", "it", "président"])
    parts = [prose(rng, rng.randint(1, 2)) for _ in range(max(1, near(rng, count)))]
    if nth <= len(parts) and rng.random() < 0.85:
        dress = rng.choice(("{}", '"{}', "'{}'", "{},", "{}!", "*{}*", "'\"{}", "{}'s", "{}. ", "  {}", "{}:"))
        parts[nth - 1] = dress.format(rng.choice((word, word.upper(), word.lower()))) + " " + parts[nth - 1]
    if rng.random() < 0.3:
        parts.insert(rng.randint(0, len(parts)), rng.choice(("", " ", "\n")))
    joint = rng.choice(("\n\n", "\n\n", "\n\n", "\n\n\n", "\n \n", "\n"))
    return {"num_paragraphs": count, "nth_paragraph": nth, "first_word": word}, joint.join(parts)


def _stars(rng: random.Random) -> Made:
    count = rng.randint(1, 5)
    parts = [prose(rng, 1) for _ in range(near(rng, count))]
    if rng.random() < 0.2:
        parts.insert(rng.randint(0, len(parts)), " ")
    divider = rng.choice(("\n***\n", "\n\n***\n\n", " *** ", "***", "****", "\n* * *\n", "\n---\n"))
    return {"num_paragraphs": count}, rng.choice(("", divider)) + divider.join(parts) + rng.choice(("", divider))


def _postscript(rng: random.Random) -> Made:
    marker = rng.choice(("P.S.", "P.P.S", "PS:", "Note:"))
    shown = rng.choice((marker, marker.lower(), "P. S.", "P.S", "p.p.s.", "P. P. S", "P.P.S.", "note", "XP.S.", ""))
    return {"postscript_marker": marker}, prose(rng, 2) + rng.choice(("\n\n", " ", "")) + shown + rng.choice(
        (" Bye.", "", "\n")
    )


def _bullets(rng: random.Random) -> Made:
    count = rng.randint(1, 6)
    mark = rng.choice(("* ", "- ", "  * ", "\t- ", "*", "-", "• ", "** ", "1. "))
    lines = [
        rng.choice((mark, mark, mark, "* ")) + rng.choice(("one", "**two**", "", "- x"))
        for _ in range(near(rng, count))
    ]
    lines += rng.sample(["*Heading*", "---", "**Bold**", "Text.", "*", "- "], rng.randint(0, 2))
    return {"num_bullets": count}, rng.choice(("", "List:\n")) + rng.choice(("\n", "\n\n")).join(lines)


def _options(rng: random.Random) -> Made:
    return {}, rng.choice(
        (
            "My answer is yes.",
            "My answer is no.",
            "my answer is no.",
            "My answer is maybe",
            "So: My answer is maybe. Why?",
            "My answer is  yes.",
            '"My answer is yes."',
            "**My answer is no.**",
            "Yes.",
            "My answer\nis no.",
        )
    )


def _highlight(rng: random.Random) -> str:
    return rng.choice(
        ("*one part*", "**two words**", "***three***", "* *", "****", "*a\nb*", "*a", "**x*", "_no_", "* point")
    )


def _sections(rng: random.Random) -> Made:
    count = rng.randint(1, 5)
    marker = rng.choice(("SECTION", "Section", "Day ", "PARAGRAPH"))
    heads = [
        f"{rng.choice((marker, marker.strip(), marker.lower()))}{rng.choice((' ', '', '  '))}{i + 1}"
        for i in range(near(rng, count))
    ]
    parts = [head + rng.choice(("\n", ": ", "")) + prose(rng, 1) for head in heads]
    return {"section_spliter": marker, "num_sections": count}, rng.choice(("\n\n", " ", "")).join(parts)


def _json(rng: random.Random) -> Made:
    body = rng.choice(
        (
            '{"a": 1}',
            "[1, 2]",
            "{'a': 1}",
            '{"a": 1,}',
            '"text"',
            "1",
            "NaN",
            '{"a": "x\\ny"}',
            '{"a": "é"}',
            "text",
            "```{}",
        )
    )
    opened = rng.choice(
        ("", "```json\n", "```\n", "```JSON\n", "```Json ", "```jSON\n", "Here:\n```json\n", "``` json\n", "```json```")
    )
    return {}, opened + body + rng.choice(("", "\n```", "```", "\n```\n", "\n``` "))


def _title(rng: random.Random) -> Made:
    title = rng.choice(
        (
            "<<poem>>",
            "<< >>",
            "<<>>",
            "<poem>",
            "<<a\nb>>",
            "<<a>> <<b>>",
            "<<> <>>",
            "«poem»",
            "<<<x>>>",
            "<<a",
            "<<>>>>",
        )
    )
    return {}, scatter(rng, [title, prose(rng, rng.randint(0, 2))])


def _two(rng: random.Random) -> Made:
    parts = [rng.choice((prose(rng, 1), "Same.", "Same.")) for _ in range(near(rng, 2))] + (
        [" "] if rng.random() < 0.2 else []
    )
    divider = rng.choice(("******", "\n******\n", "\n\n******\n", "*****", "*******", "************"))
    return {}, rng.choice(("", "", divider)) + divider.join(parts) + rng.choice(("", "", divider))


def _repeat(rng: random.Random) -> Made:
    asked = prose(rng, 2)
    shown = rng.choice(
        (asked, asked.upper(), asked[:-1], " " + asked, "Sure: " + asked, f'"{asked}"', asked.replace(",", ""))
    )
    return {"prompt_to_repeat": rng.choice((asked, asked + " "))}, shown + rng.choice(
        ("", "\n\nAnswer.", " " + prose(rng, 1))
    )


def _end(rng: random.Random) -> Made:
    phrase = rng.choice(("Any other questions?", "Peace!", " Is that all? ", "No other words."))
    shown = rng.choice(
        (
            phrase,
            phrase.lower(),
            phrase.strip()[:-1],
            f'{phrase}"',
            f'{phrase} "',
            f"{phrase} ",
            f"{phrase}.",
            f"**{phrase}**",
        )
    )
    return {"end_phrase": phrase}, rng.choice(("", '"')) + prose(rng, 1) + " " + shown


def _quotation(rng: random.Random) -> Made:
    marks = rng.choice(('""', '""', "“”", "''", '" ', ' "', "  "))
    return {}, rng.choice(("", " ", "\n")) + (marks[0] + prose(rng, 1) + marks[1]).strip(" ") + rng.choice(
        ("", " ", ".")
    )


def _placeholder(rng: random.Random) -> str:
    return rng.choice(("[name]", "[]", "[a [b] c]", "[a\nb]", "(name)", "[x", "{y}", "[two words]", "![alt](url)"))


def _sentence(rng: random.Random) -> str:
    return rng.choice(SENTENCES)


def _word(rng: random.Random) -> str:
    return rng.choice(("river", "don't", "state-of-the-art", "3.14", "é", "—", "snake_case", "東京", "NASA", "U.S."))


IFEVAL_MAKERS: Mapping[str, Callable[[random.Random], Made]] = {
    "keywords:existence": _existence,
    "keywords:frequency": _frequency,
    "keywords:forbidden_words": _forbidden,
    "keywords:letter_frequency": _letters,
    "language:response_language": _language,
    "length_constraints:number_sentences": related(_sentence, "num_sentences", "relation"),
    "length_constraints:number_paragraphs": _stars,
    "length_constraints:number_words": related(_word, "num_words", "relation"),
    "length_constraints:nth_paragraph_first_word": _paragraph_word,
    "detectable_content:number_placeholders": counted(_placeholder, "num_placeholders"),
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:constrained_response": _options,
    "detectable_format:number_highlighted_sections": counted(_highlight, "num_highlights"),
    "detectable_format:multiple_sections": _sections,
    "detectable_format:json_format": _json,
    "detectable_format:title": _title,
    "combination:two_responses": _two,
    "combination:repeat_prompt": _repeat,
    "startend:end_checker": _end,
    "change_case:capital_word_frequency": related(_word, "capital_frequency", "capital_relation"),
    "change_case:english_capital": _cased(str.upper),
    "change_case:english_lowercase": _cased(str.lower),
    "punctuation:no_comma": lambda rng: (
        {},
        prose(rng, rng.randint(1, 3)).replace(*rng.choice(((",", ""), (",", "，"), ("x", "x")))),
    ),
    "startend:quotation": _quotation,
}
CHANGES: tuple[Callable[[str], str], ...] = (
    lambda t: f"Sure, here it is:\n{t}",
    lambda t: f"{t}\nI hope this helps!",
    lambda t: f"Sure:\n{t}\nDone.",
    lambda t: f"**{t}**",
    lambda t: f'"{t}"',
    lambda t: f"```\n{t}\n```",
    str.upper,
    str.lower,
    lambda t: t.replace(" ", "\n"),
    lambda t: t.replace(".", "。"),
    lambda t: t.replace("\n", "\r\n"),
    lambda t: t + " 🙂",
    lambda t: t.replace("*", ""),
    lambda t: t[: len(t) // 2],
    lambda t: f"\n\n{t}\n\n",
)


def cases(makers: Mapping[str, Callable[[random.Random], Made]], count: int, seed: int = 0) -> Iterator[Case]:
    """``count`` cases, types in turn: of ten, six as made, three changed somehow, and one something odd."""
    rng = random.Random(seed)
    names = list(makers)
    for i in range(count):
        name = names[i % len(names)]
        kwargs, text = makers[name](rng)
        draw = rng.random()
        if draw < 0.1:
            text = rng.choice(ODD)
        elif draw < 0.4:
            text = rng.choice(CHANGES)(text)
        yield Case(name, kwargs, text)
