"""``nashtune contamination``: which prompts of a source share words with evaluations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from nashtune.prompt_overlap import Overlap
from nashtune.prompts import overlap_index, read_prompts, user_text
from nashtune.recipe import ContaminationSection, PromptsSection

SHOWN = 20


@dataclass(frozen=True, slots=True)
class Found:
    """One contaminated prompt: where it stands, how it begins, what it shares."""

    where: str
    text: str
    overlap: Overlap


@dataclass(frozen=True, slots=True)
class Contamination:
    """Of ``prompts`` read, those that share words, by evaluation, and the first of them."""

    prompts: int
    contaminated: int
    by_set: Mapping[str, int]
    first: tuple[Found, ...]

    def facts(self) -> dict[str, object]:
        return asdict(self)


def check(source: PromptsSection, settings: ContaminationSection) -> Contamination:
    """Compare every prompt of ``source`` with the evaluations. Raises PromptError naming a source and row that is bad."""
    index = overlap_index(settings)
    prompts = read_prompts(source)
    by_set: Counter[str] = Counter(dict.fromkeys(settings.against, 0))
    found = []
    for prompt in prompts:
        text = user_text(prompt)
        if (overlap := index.overlap(text)) is not None:
            by_set.update(overlap.sets)
            found.append(Found(prompt.source, text[:80], overlap))
    return Contamination(len(prompts), len(found), dict(by_set), tuple(found[:SHOWN]))
