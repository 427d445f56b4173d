"""The makers of ifbench_cases.py for types about layout, places of words, and single tasks."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from instructed_cases import Made
from instructed_texts import near, prose, words

EMOJI = ("🙂", "❤️", "👍🏽", "👨‍👩‍👧", "☀", "🇫🇷", ":)")


def nested(pairs: Sequence[str], depth: int) -> Callable[[random.Random], str]:
    def make(rng: random.Random) -> str:
        chosen = [rng.choice(pairs) for _ in range(near(rng, depth))]
        if rng.random() < 0.6:
            chosen = [pairs[i % len(pairs)] for i in range(len(chosen))]
        text = "".join(f"a {pair[0]}" for pair in chosen) + "x" + "".join(pair[1] + " b" for pair in reversed(chosen))
        draw = rng.random()
        if draw < 0.2:
            text = text.replace(rng.choice([p[1] for p in pairs]), "", 1)
        return text if draw < 0.8 else prose(rng, 1) + text + rng.choice((")", "'", '"', "]"))

    return make


def lengths(rng: random.Random) -> str:
    pool = ("it", "the", "river", "don't", "quietly", "blue", "a", "abcdefghijk", "well-be", "x" * 97, "so,")
    return " ".join(words(rng, rng.randint(1, 5), pool))


def options(rng: random.Random) -> Made:
    options = rng.choice(("yes/no/maybe", "I know or I don't know", "a), b), c), d)"))
    shown = (
        "yes",
        "No.",
        "**maybe**",
        "I know",
        "i don't know!",
        "a)",
        "b) ",
        "C)",
        "d",
        "a), b)",
        "yes, I know",
        "I don't",
        "t know",
    )
    return {"options": options}, rng.choice(shown)


def lines(rng: random.Random) -> str:
    joint = rng.choice(("\n", "\n", "\n\n", " \n", "\n "))
    found = words(rng, rng.randint(1, 6), ("river", "stone,", "don't", "—", "!", "two words"))
    return joint.join(found) + rng.choice(("", "\n"))


def emoji(rng: random.Random) -> str:
    pool = ("We saw it. {}", "Did we? {}", "Look {}!", "Fine {}.", "Well.", "{} Yes.", "No{}")
    return " ".join(rng.choice(pool).format(rng.choice(EMOJI)) for _ in range(rng.randint(1, 4)))


def repeats(rng: random.Random) -> Made:
    found = words(rng, rng.randint(2, 10), ("river", "River", "stone.", "stone", "lamp"))
    return {"small_n": float(rng.randint(1, 5))}, " ".join(found)


def nth_sentence(rng: random.Random) -> Made:
    n, word = rng.randint(1, 4), rng.choice(("eat", "giraffe", "u.s."))
    parts = ["We left.", "Dr. Lee stayed.", "Why?", "It ended."][: rng.randint(1, 4)]
    if n <= len(parts) and rng.random() < 0.8:
        place = min(len(parts) - 1, max(0, n - 1 + rng.choice((0, 0, 0, 1))))
        parts[place] = f"They {rng.choice((word, word.upper(), word + 's', f'*{word}*', f'({word})'))} there."
    return {"word": word, "N": float(n)}, " ".join(parts)


def nth_word(rng: random.Random) -> Made:
    n, m, keyword = rng.randint(1, 3), rng.randint(1, 5), rng.choice(("giggle", "slowly "))
    parts = [["They", "left", "it", "there", "today"] for _ in range(rng.randint(1, 3))]
    if n <= len(parts):
        shown = rng.choice(
            (keyword.strip(), keyword.strip().title(), "(" + keyword.strip() + ")", "isn't " + keyword.strip())
        )
        parts[n - 1][m - 1 if rng.random() < 0.7 else 0] = shown
    return {"keyword": keyword, "n": n, "m": m}, " ".join(" ".join(part) + "." for part in parts)


def second(rng: random.Random) -> Made:
    keyword = rng.choice(("vibrant", "despite "))
    k = rng.choice((keyword.strip(), keyword.strip().upper(), "other"))
    last = rng.choice(("end", "end.", "end!", "end...", "end?!", 'end"', "end ()"))
    shown = (
        f"A {k} day has a {keyword.strip()} {last}",
        f"{k} {k}",
        f"a {k}",
        f"A {k}.",
        f"A {k} {last}",
        f"A, {k} b {k} c.",
        "x.",
    )
    return {"keyword": keyword}, rng.choice(shown)


def chain(rng: random.Random) -> str:
    parts, last = [], "river"
    for _ in range(rng.randint(1, 5)):
        after = rng.choice(("door", "Lamp", "day"))
        parts.append(
            f"{rng.choice((last, last.title(), '(' + last + ')', last))} is a {after}{rng.choice(('.', '!', '?', '.', '...'))}"
        )
        last = after if rng.random() < 0.85 else "other"
    return " ".join(parts)


def same_ends(rng: random.Random) -> str:
    pool = (
        "River is a river.",
        "Day",
        "'Lamp' on lamp",
        '"Lamp on lamp!"',
        "",
        "  ",
        "...",
        "Door is open.",
        "* a b a",
        "Us, then us.",
    )
    return "\n".join(words(rng, rng.randint(1, 4), pool[:5] if rng.random() < 0.5 else pool))


def growing(rng: random.Random) -> Made:
    step, first = rng.randint(0, 3), rng.randint(1, 3)
    lengths = [first + step * i for i in range(rng.randint(1, 4))]
    if rng.random() < 0.4:
        lengths[rng.randrange(len(lengths))] += 1
    parts = ["We " + " ".join(["go"] * (n - 1)) + rng.choice((".", "!", " -.")) for n in lengths]
    return {"small_n": float(step)}, " ".join(parts)


def stairs(rng: random.Random) -> str:
    lines = [" " * (i * rng.randint(1, 2)) + "step" for i in range(rng.randint(1, 5))]
    for _ in range(rng.choice((0, 0, 1, 2, 3))):
        lines.insert(rng.randint(0, len(lines)), rng.choice(("", "  ")))
    return "\n".join(lines).replace(*rng.choice((("x", "x"), ("  step", "\tstep"))))


def quoted(rng: random.Random) -> str:
    pool = ('"One" means this.', '"Two"', '"a" "b"', "the '\"' mark", '"x" 12.', "“curly”", "plain text", '"y".')
    return " ".join(words(rng, rng.randint(1, 3), pool))


def thesis(rng: random.Random) -> str:
    opened, closed = rng.choice(
        (("<i>", "</i>"), ("<em>", "</em>"), ("<i>", "</em>"), ("<I>", "</I>"), ("</i>", "<i>"))
    )
    return (
        rng.choice(("", "Title\n", "<i> </i>"))
        + opened
        + rng.choice(("Thesis.", " ", ""))
        + closed
        + rng.choice(("", " ", "\nText.", ">"))
    )


def sub_bullets(rng: random.Random) -> str:
    pool = ("* one\n  - sub", "* two", "* well-known", "**bold**", "- alone", "text", "* a\n- b\n- c")
    return "\n".join(words(rng, rng.randint(1, 3), pool[:1] + pool[4:] if rng.random() < 0.4 else pool))


def some_bullets(rng: random.Random) -> str:
    start = rng.choice(("One is here. Two is here.", "One.\nTwo is here.", "One is alone.", "One. Two. Three?", ""))
    end = rng.choice(("* a\n* b", "* a", "* a\n* b\n* c", " * a\n * b\n", "* a\n\n* b", "- a\n- b", "* a\n* b\nEnd."))
    return start + rng.choice(("\n", "\n\n", "\n\n\n")) + end


def title_case(rng: random.Random) -> str:
    pool = ("River", "NASA", "of", "McDonald", "iPhone", "A", "a", "eBay", "Don't", "3rd", "Well-Known", "xY", "xYz")
    return " ".join(words(rng, rng.randint(1, 4), pool[:4] if rng.random() < 0.4 else pool))


def repeat_change(rng: random.Random) -> Made:
    asked = "Write a short  text about maps.\nNow."
    return {"prompt_to_repeat": asked}, rng.choice(
        (
            asked,
            asked.replace("Write", "Make"),
            "Make a short text about maps. Now.",
            asked.replace("Write", "Please make"),
            asked + " Ok",
            " " + asked,
        )
    )


def span(rng: random.Random) -> Made:
    asked, start = "explain the context, code and theory", rng.randint(0, 6)
    end = start + rng.randint(0, 9)
    cut = asked[start : end + 1]
    shown = rng.choice((cut, cut.upper(), f" {cut}\n", asked[start:end], asked[start : end + 2], f'"{cut}"'))
    return {"prompt_to_repeat": asked, "n_start": start, "n_end": end}, shown


def mcq(rng: random.Random) -> str:
    parts = []
    for i in range(near(rng, 4)):
        text = "Why " + "so " * (i if rng.random() < 0.9 else 1) + "much?"
        options = [
            f"{letter}{rng.choice((') ', '. ', ')'))}{'opt'}" for letter in "ABCDE"[: 5 if rng.random() < 0.95 else 4]
        ]
        parts.append(f"Question {i + 1}{rng.choice((':', '.', ')', ''))} {text}\n" + "\n".join(options))
    return rng.choice(("", "", "", "Sure.\n")) + "\n\n".join(parts) + rng.choice(("", "", "\nAnswer: A"))


def africa(rng: random.Random) -> str:
    names = sorted((f"{chr(65 + i % 25)}{chr(97 + i // 25)}land" for i in range(near(rng, 51))), reverse=True)
    if rng.random() < 0.3:
        i = rng.randrange(len(names) - 1)
        names[i], names[i + 1] = names[i + 1], names[i]
    head = rng.choice(("Zimbabwe", "Zimbabwe", "- Zimbabwe", "Zambia"))
    joint = rng.choice(("\n", "\n", "\n- ", "\n\n"))
    return rng.choice(("", "Here:\n")) + joint.join(
        [head, *names, rng.choice(("Aaland", "Åaland", "Algeria"))][: len(names) + rng.choice((1, 2))]
    )


def alphabet_story(rng: random.Random) -> str:
    letters = "abcdefghijklmnopqrstuvwxyz"[: 26 if rng.random() < 0.9 else 25]
    parts = [f"{rng.choice((letter.upper(), letter.upper(), letter.upper()))}xen went home." for letter in letters]
    if rng.random() < 0.3:
        parts[3], parts[4] = parts[4], parts[3]
    return rng.choice(("", " ", "\n")) + rng.choice((" ", "\n", "\n\n")).join(parts)


def capitals(rng: random.Random) -> str:
    from nashtune.suites.ifbench.tasks import CAPITALS

    names = [
        rng.choice((name, name.replace("Reykjavik", "Reykjavík").replace("Chisinau", "Chișinău"))) for name in CAPITALS
    ]
    if rng.random() < 0.4:
        names.pop(rng.randrange(len(names)))
    return rng.choice((", ", ",", " , ", "\n", ",\n")).join(names) + rng.choice(("", ",", ".", "\n"))


def csv(columns: Sequence[str], rows: int, delimiter: str, field: Sequence[str]) -> Callable[[random.Random], str]:
    def make(rng: random.Random) -> str:
        names = list(columns) if rng.random() < 0.9 else list(columns[:-1])
        quote = rng.choice(('"{}"', "{}"))
        lines = [rng.choice((delimiter, delimiter, delimiter + " ")).join(quote.format(name) for name in names)]
        pool = field[:1] if rng.random() < 0.4 else field
        count = rows if rng.random() < 0.7 else near(rng, rows)
        lines += [
            delimiter.join(rng.choice(pool) for _ in range(5 if rng.random() < 0.98 else 4)) for _ in range(count)
        ]
        return rng.choice(("", "", "", "Sure:\n")) + "\n".join(lines) + rng.choice(("", "", "\n", "\n\n"))

    return make


def dates(rng: random.Random) -> str:
    pool = (
        "1796-04-12",
        "1815-06-18",
        "1805-12-02",
        "1821-12-31",
        "1768-01-01",
        "1800-02-29",
        "1800-02-30",
        "1800-13-01",
        "1800-00-99",
        "1800-4-1",
        "1800-04-31",
        "x",
    )
    return rng.choice((", ", ",", "\n", ",\n")).join(
        words(rng, rng.randint(1, 4), pool[:4] if rng.random() < 0.6 else pool)
    )
