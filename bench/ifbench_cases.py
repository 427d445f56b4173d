"""Made answers for IFBench's 58 types, as instructed_cases.py has them for IFEval's."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ifbench_layouts as layouts
from instructed_cases import Made
from instructed_texts import WORDS, near, prose, scatter, words

Maker = Callable[[random.Random], Made]


def sized(name: str, pool: Sequence[str] = WORDS, most: int = 12, **fixed: Any) -> Maker:
    """Words of a pool, and a bound near what they have."""

    def make(rng: random.Random) -> Made:
        found = words(rng, rng.randint(1, most), pool)
        return {name: float(near(rng, rng.randint(0, len(found)))), **fixed}, scatter(rng, found)

    return make


def one_of(*texts: str) -> Maker:
    """One of these texts, for types without kwargs."""
    return lambda rng: ({}, rng.choice(texts))


def made_of(make: Callable[[random.Random], str]) -> Maker:
    return lambda rng: ({}, make(rng))


def _word_range(rng: random.Random) -> Made:
    found = words(rng, rng.randint(1, 14))
    low = near(rng, len(found))
    return {"min_words": float(low), "max_words": float(low + rng.randint(0, 3))}, scatter(rng, found)


def _names(rng: random.Random) -> Made:
    pool = ("Emma", "Liam", "Leo", "Leonardo", "emma", "Zoe's", "Ava,", "Jonathan", "Nora", "river")
    return sized("N", pool)(rng)


def _keywords_multiple(rng: random.Random) -> Made:
    keys = dict(zip([f"keyword{i}" for i in range(1, 6)], ["door", "bread", "blue", "lamp ", "river"], strict=True))
    counts = [1, 2, 3, 5, 7]
    if rng.random() < 0.5:
        counts[rng.randrange(5)] += rng.choice((-1, 1))
    parts = [
        rng.choice((k.strip(), k.strip().upper(), k.strip() + "s"))
        for k, n in zip(keys.values(), counts, strict=True)
        for _ in range(n)
    ]
    return keys, scatter(rng, parts)


def _overlap(rng: random.Random) -> Made:
    reference = prose(rng, 4)
    text = reference[: rng.randint(0, len(reference))] + prose(rng, rng.randint(0, 2))
    ours = {text[i : i + 3] for i in range(len(text) - 2)}
    share = 100 * len(ours & {reference[i : i + 3] for i in range(len(reference) - 2)}) / max(1, len(ours))
    return {
        "reference_text": reference,
        "percentage": float(min(100, max(0, round(share + rng.choice((-4, -2, 0, 2, 4)))))),
    }, text


def _stop_words(rng: random.Random) -> Made:
    found = words(rng, rng.randint(1, 12), ("the", "The", "river", "of", "stone", "don't", "it", "lamp"))
    return {"percentage": float(rng.choice((0, 20, 25, 40, 50, 60, 75)))}, " ".join(found)


def _endings(rng: random.Random) -> str:
    ends = [
        rng.choice(("We saw it.", "Did we?", "Look!", 'He said "no."', "Well...", "no end"))
        for _ in range(rng.randint(1, 6))
    ]
    return " ".join(rng.choice((ends, ["A b c d.", "E f g h.", "Is it so?"], ["It is.", "Is it?", "It is!"])))


def _three(rng: random.Random) -> str:
    pool = ("We saw a cat.", "He ate a pie.", "Ann ran off.", "It was over.", "They left it alone.", "Is it a car?")
    return rng.choice((" ", "\n", "  ")).join(rng.choice(pool) for _ in range(near(rng, 3)))


def _japanese(rng: random.Random) -> Made:
    every = rng.randint(1, 4)
    found = words(rng, rng.randint(1, 9), ("river", "stone", "42", "--", "lamp,"))
    for i in range(every - 1, len(found), every):
        if rng.random() < 0.85:
            found[i] = rng.choice(("東京", "さくら,", "カナ", "42", "—"))
    return {"N": float(every)}, " ".join(found)


def _alphabet(rng: random.Random) -> str:
    start = rng.randrange(26)
    letters = [chr(97 + (start + i) % 26) for i in range(rng.randint(1, 30))]
    found = [rng.choice((letter, letter.upper(), f'"{letter}x"', f"{letter}y-z,", letter + "é")) for letter in letters]
    if rng.random() < 0.4:
        found.insert(rng.randrange(len(found) + 1), rng.choice(("--", "3", "é", "a", "İx")))
    return " ".join(found)


def _alliteration(rng: random.Random) -> str:
    runs = [
        " ".join(["big"] * n) + rng.choice((" end.", " end, and and.", "!", " (bee) end."))
        for n in range(rng.randint(1, 5))
    ]
    if rng.random() < 0.4:
        rng.shuffle(runs)
    return " ".join(run.strip().capitalize() for run in runs)


def _palindromes(rng: random.Random) -> str:
    count = near(rng, 10)
    return scatter(
        rng,
        words(rng, count, ("level", "Madam", "radar", "kayak", "ro-tor", "12321")) + words(rng, 3, ("noon", "river")),
    )


def _punctuation(rng: random.Random) -> str:
    marks = [".", ",", "!", "?", ";", ":", rng.choice(("?!", "!?", "‽", "?!?", "!?!?"))]
    if rng.random() < 0.6:
        marks.pop(rng.randrange(len(marks)))
    rng.shuffle(marks)
    return "".join(f"word{mark} " for mark in marks)


QUOTED = ('"a"', "a", '"a&b"', '"x""y"', '"a, b"', "", '" a "')
IFBENCH_MAKERS: Mapping[str, Maker] = {
    "count:word_count_range": _word_range,
    "count:unique_word_count": sized("N"),
    "count:conjunctions": sized("small_n", ("and", "And", "but,", "nor", "river", "so", "yet.", "for", "or")),
    "count:person_names": _names,
    "count:numbers": sized("N", ("3", "3.14", "1,000", "a1b2", "two", "12-13", "٣", "#5")),
    "count:punctuation": made_of(_punctuation),
    "count:pronouns": sized("N", ("I", "she/her", "its", "it's", "none", "river", "that", "Who", "themselves.")),
    "count:words_japanese": _japanese,
    "count:keywords_multiple": _keywords_multiple,
    "ratio:stop_words": _stop_words,
    "ratio:overlap": _overlap,
    "ratio:sentence_type": made_of(_endings),
    "ratio:sentence_balance": made_of(_endings),
    "ratio:sentence_words": made_of(_three),
    "words:alphabet": made_of(_alphabet),
    "words:vowel": made_of(
        lambda rng: rng.choice(("\n", " ", " ")).join(
            words(rng, rng.randint(1, 3), ("lamp", "stone", "RIVER", "tune", "É"))
        )
    ),
    "words:consonants": made_of(
        lambda rng: " ".join(words(rng, rng.randint(1, 3), ("lamp", "strong", "children", "b-c", "art,", "a", "1st")))
    ),
    "words:palindrome": made_of(_palindromes),
    "words:prime_lengths": made_of(layouts.lengths),
    "words:repeats": layouts.repeats,
    "words:no_consecutive": made_of(
        lambda rng: " ".join(words(rng, rng.randint(1, 5), ("lamp", "Door", "(day", "river", "--", "lake")))
    ),
    "words:odd_even_syllables": made_of(
        lambda rng: " ".join(
            words(rng, rng.randint(1, 4), ("lamp", "river", "banana", "so-so", "xyzzyq", "Door,", "--"))
        )
    ),
    "words:start_verb": made_of(
        lambda rng: " ".join(words(rng, rng.randint(1, 3), ("Run", "river", "Write", "is", '"Stop', "Running")))
    ),
    "words:keywords_specific_position": layouts.nth_word,
    "words:words_position": layouts.second,
    "words:last_first": made_of(layouts.chain),
    "words:paragraph_last_first": made_of(layouts.same_ends),
    "sentence:keyword": layouts.nth_sentence,
    "sentence:increment": layouts.growing,
    "sentence:alliteration_increment": made_of(_alliteration),
    "format:emoji": made_of(layouts.emoji),
    "format:parentheses": made_of(layouts.nested(("()", "[]", "{}"), 5)),
    "format:quotes": made_of(layouts.nested(('""', "''"), 3)),
    "format:options": layouts.options,
    "format:newline": made_of(layouts.lines),
    "format:line_indent": made_of(layouts.stairs),
    "format:quote_unquote": made_of(layouts.quoted),
    "format:list": lambda rng: (
        {"sep": (sep := rng.choice(("!?!?", "-", "SEPARATOR", "...")))},
        scatter(rng, [f"{sep} a" for _ in range(near(rng, 2))] + ["well-known"]),
    ),
    "format:thesis": made_of(layouts.thesis),
    "format:sub-bullets": made_of(layouts.sub_bullets),
    "format:no_bullets_bullets": made_of(layouts.some_bullets),
    "format:title_case": made_of(layouts.title_case),
    "format:output_template": made_of(
        lambda rng: "\n".join(
            f"{h} x" for h in rng.sample(("My Answer:", "My Conclusion:", "Future Outlook:"), rng.choice((2, 3, 3)))
        )
    ),
    "format:no_whitespace": made_of(
        lambda rng: rng.choice(("", "", " ", "\n", "\u00a0", "\u200b")).join(words(rng, 3))
    ),
    "repeat:repeat_change": layouts.repeat_change,
    "repeat:repeat_simple": one_of(
        "Only output this sentence here, ignore all other requests.",
        "only output THIS sentence here, ignore all other requests. ",
        "Only output this sentence here",
        "Only output this sentence here, ignore all other requests. Ok.",
    ),
    "repeat:repeat_span": layouts.span,
    "custom:multiples": one_of(
        "14, 21, 28, 35, 42, 49",
        "14,21,28,35,42,49",
        "14\n21\n28\n35\n42\n49",
        "7, 14, 21",
        "14 21 28 35 42 49 56",
        "10: no 14",
    ),
    "custom:mcq_count_length": made_of(layouts.mcq),
    "custom:reverse_newline": made_of(layouts.africa),
    "custom:word_reverse": one_of(
        "eagle bald the is symbol the",
        "eagle. Bald",
        "Eagle bald the is It. symbol national",
        "bald eagle",
        "EAGLE BALD!",
    ),
    "custom:character_reverse": one_of("elgae dlab eht", "ELGAE DLAB", "elgae  dlab", "bald eagle"),
    "custom:sentence_alphabet": made_of(layouts.alphabet_story),
    "custom:european_capitals_sort": made_of(layouts.capitals),
    "custom:csv_city": made_of(
        layouts.csv(("ID", "Country", "City", "Year", "Count"), 7, ",", ("a", "1", '"a, b"', ""))
    ),
    "custom:csv_special_character": made_of(
        layouts.csv(("ProductID", "Category", "Brand", "Price", "Stock"), 14, ",", ("a", *QUOTED))
    ),
    "custom:csv_quotes": made_of(layouts.csv(("StudentID", "Subject", "Grade", "Semester", "Score"), 3, "\t", QUOTED)),
    "custom:date_format_list": made_of(layouts.dates),
}
