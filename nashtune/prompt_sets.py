"""Prompt sets that come with nashtune, written as code; a recipe names one as ``nashtune:NAME``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from nashtune.records import Constraint, Message, Prompt
from nashtune.seeds import content_hash, seed_for


@dataclass(frozen=True, slots=True)
class SetPrompt:
    """A prompt of a built-in set; ``held_out`` ones serve validation only."""

    prompt: Prompt
    held_out: bool


HELD_OUT_TOPICS = 20

_WORDINGS = (
    "Tell me something about {topic}.",
    "Say something about {topic}.",
    "Describe {topic} for a curious child.",
    "Give me a short explanation of {topic}.",
    "Share an interesting fact about {topic}.",
    "Tell me a little about {topic}.",
    "Write a little about {topic}.",
    "What makes {topic} interesting?",
)

_TOPICS = (
    *("the moon", "coffee", "bicycles", "volcanoes", "honey bees", "chess", "rainbows", "glaciers", "trains", "bread"),
    *("owls", "the ocean", "gravity", "maps", "pianos", "tea", "deserts", "snow", "robots", "gardens", "whales"),
    *("clouds", "libraries", "mountains", "cheese", "comets", "rivers", "soccer", "dolphins", "lightning", "castles"),
    *("spiders", "sleep", "magnets", "penguins", "the sun", "bridges", "kites", "salt", "forests", "elephants"),
    *("clocks", "sharks", "tulips", "paper", "cats", "windmills", "the heart", "mirrors", "apples", "horses"),
    *("butterflies", "islands", "chocolate", "telescopes", "guitars", "caves", "rice", "airplanes", "turtles"),
    *("candles", "waterfalls", "frogs", "museums", "wolves", "umbrellas", "potatoes", "earthquakes", "eagles"),
    *("swimming", "glass", "camels", "lighthouses", "soap", "dinosaurs", "oranges", "shoes", "the wind", "ants"),
    *("cameras", "tomatoes", "parrots", "submarines", "bamboo", "dogs", "ice cream", "rockets", "wool", "diamonds"),
    *("peacocks", "violins", "lemons", "rabbits", "hurricanes", "pencils", "giraffes"),
)

_INSTRUCTIONS: tuple[tuple[str, tuple[tuple[str, dict[str, Any]], ...]], ...] = (
    ("Answer in all lowercase letters.", (("lowercase", {}),)),
    (
        "Answer with exactly three bullet points, each starting with '- ', and nothing else.",
        (("bullets_exactly", {"n": 3, "marker": "-", "only": True}),),
    ),
    ("Highlight at least one word by writing it *like this*.", (("highlighted", {"n": 1}),)),
    ("Start your answer with the words 'Here it is:'.", (("starts_with", {"phrase": "Here it is:"}),)),
    ("End your answer with the word DONE.", (("ends_with", {"phrase": "DONE", "allow_stop": True}),)),
    ("End your answer with a question mark.", (("ends_with_question", {}),)),
    ("Do not use any commas.", (("no_commas", {}),)),
    ("Use the word 'however' in your answer.", (("include_keywords", {"keywords": ["however"]}),)),
    ("Use the words 'for example' in your answer.", (("include_keywords", {"keywords": ["for example"]}),)),
    ("Use the word 'amazing' in your answer.", (("include_keywords", {"keywords": ["amazing"]}),)),
    ("Use the word 'perhaps' in your answer.", (("include_keywords", {"keywords": ["perhaps"]}),)),
    ("Use the word 'because' in your answer.", (("include_keywords", {"keywords": ["because"]}),)),
)


def constraints(seed: int) -> Iterator[SetPrompt]:
    """Every topic with every instruction once, in a wording chosen by ``seed``; so each kind has the same share.

    The seed also decides which 20 topics are held out: validation asks about topics never trained on.
    """
    by_hash = sorted(_TOPICS, key=lambda topic: content_hash("held-out topics", seed, topic))
    held_out = frozenset(by_hash[:HELD_OUT_TOPICS])
    for topic in _TOPICS:
        for instruction, kinds in _INSTRUCTIONS:
            wording = _WORDINGS[seed_for("wording", seed, topic, instruction) % len(_WORDINGS)]
            prompt = Prompt.make(
                [Message("user", f"{wording.format(topic=topic)} {instruction}")],
                constraints=tuple(Constraint(kind, args) for kind, args in kinds),
                topic=topic,
                source=f"nashtune:constraints ({topic})",
            )
            yield SetPrompt(prompt, topic in held_out)


PROMPT_SETS: dict[str, Callable[[int], Iterator[SetPrompt]]] = {"constraints": constraints}
