"""What made answers are put together from."""

from __future__ import annotations

import random
from collections.abc import Sequence

SENTENCES = (
    "The river was quiet that morning.",
    "Dr. Smith arrived at 3 p.m. with a map, a lamp and 2.5 litres of tea.",
    "Is it far from here?",
    "Stop!",
    'She said, "I would rather not go there today."',
    "Bring fruit, e.g. apples, pears, etc. and some bread.",
    "The U.S. team, i.e. the one from last year, won again.",
    "Wait... what happened to the blue door?",
    "it starts without a capital and has no end",
    "We saw the NASA logo and the WHO report.",
    "A well-known state-of-the-art idea isn't always right.",
    "Prices rose 3.14% in Jan. 2020; nobody knew why.",
    "Naïve café owners déjà vu the façade.",
    "No. 5 is alive!",
    "Really?! Yes!!",
)
LANGUAGES = {
    "en": "This is a simple text about the weather and the people who live in the small town by the sea.",
    "de": "Das ist ein einfacher Text über das Wetter und die Menschen, die in der kleinen Stadt am Meer leben.",
    "fr": "Ceci est un texte simple sur le temps et les gens qui vivent dans la petite ville au bord de la mer.",
    "es": "Este es un texto sencillo sobre el tiempo y la gente que vive en el pequeño pueblo junto al mar.",
    "ru": "Это простой текст о погоде и людях, которые живут в маленьком городе у моря.",
    "hi": "यह मौसम और समुद्र के किनारे छोटे शहर में रहने वाले लोगों के बारे में एक सरल पाठ है।",
    "ko": "이것은 날씨와 바닷가 작은 마을에 사는 사람들에 대한 간단한 글입니다.",
    "ar": "هذا نص بسيط عن الطقس والناس الذين يعيشون في البلدة الصغيرة بجانب البحر.",
    "vi": "Đây là một văn bản đơn giản về thời tiết và những người sống ở thị trấn nhỏ bên bờ biển.",
    "ta": "இது வானிலை மற்றும் கடலோர சிறிய நகரத்தில் வாழும் மக்களைப் பற்றிய எளிய உரை.",
}
ODD = (
    "",
    " ",
    "\n\n",
    "***",
    "******",
    "*",
    "-",
    '"',
    '""',
    "{}",
    "```",
    "1234 5678",
    "。、",
    "🙂",
    "<<>>",
    "[]",
    "ß İ ı",
    "\u2028",
    "A",
    "a",
)
_WORDS = """river stone the a of and quiet lamp blue door strong children Emma Noah Leo it she their that none both run write
level madam radar civic kayak rotor refer don't well-known 東京 さくら café I and, But so yet"""
WORDS = tuple(_WORDS.split())


def prose(rng: random.Random, count: int) -> str:
    """``count`` sentences."""
    return " ".join(rng.choice(SENTENCES) for _ in range(count))


def words(rng: random.Random, count: int, pool: Sequence[str] = WORDS) -> list[str]:
    """``count`` words of the pool."""
    return [rng.choice(pool) for _ in range(count)]


def near(rng: random.Random, bound: int) -> int:
    """A count at the bound or beside it."""
    return max(0, bound + rng.choice((-1, 0, 0, 1)))


def scatter(rng: random.Random, parts: list[str], joints: tuple[str, ...] = (" ", "\n", "\n\n", ", ", " and ")) -> str:
    """The parts in any order, joined in any way."""
    rng.shuffle(parts)
    return "".join(part + rng.choice(joints) for part in parts)
