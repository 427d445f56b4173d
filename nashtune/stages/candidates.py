"""Reading back what stages committed: prompts, their candidates, and the oracle's word on them; one unit in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nashtune.records import Judgment, LogProb, Prompt, Response
from nashtune.store import tables

Candidate = tuple[Prompt, list[Response]]
Judged = tuple[Prompt, list[Response], Judgment]


@dataclass(frozen=True, slots=True)
class PromptPart:
    """A parquet file of prompts whose row groups are the work units (for a worker on another machine, a folder of units on an
    object store)."""

    file: Path
    fingerprint: str
    units: int
    prompts: int


@dataclass(frozen=True, slots=True)
class Units:
    """The committed objects of one stage; ``key`` is a hash of what the stage was made from."""

    folder: Path
    key: str

    def file(self, index: int) -> Path:
        return self.folder / f"{index:06d}-{self.key}.parquet"


@dataclass(frozen=True, slots=True)
class Group:
    """Responses that enter a candidate set together, and the name their policy goes by in a contest."""

    label: str
    responses: Units
    logprobs: Units | None = None
    """Log-probs computed after sampling, if any."""

    def read(self, index: int) -> list[Response]:
        responses = tables.read(Response, self.responses.file(index))
        if self.logprobs is None:
            return responses
        more: dict[str, dict[str, float]] = {}
        for row in tables.read(LogProb, self.logprobs.file(index)):
            more.setdefault(row.response_id, {})[row.policy] = row.logprob
        return [r.replace(logprobs={**r.logprobs, **more.get(r.id, {})}) for r in responses]


@dataclass(frozen=True, slots=True)
class Candidates:
    """The candidate sets of one part of the prompts. Iterate over it, or read it unit by unit."""

    iteration: int
    part: PromptPart
    groups: tuple[Group, ...]
    validation: bool = False

    @property
    def fingerprint(self) -> list[object]:
        """What decides the candidate sets."""
        keys = [[g.label, g.responses.key, g.logprobs.key if g.logprobs else None] for g in self.groups]
        return [self.part.fingerprint, keys]

    def unit(self, index: int) -> list[Candidate]:
        """Prompts of one unit with all their candidates, group by group."""
        return [(prompt, answers) for prompt, answers, _ in self.labelled(index)]

    def labelled(self, index: int) -> list[tuple[Prompt, list[Response], list[str]]]:
        """As ``unit``, with the group's label of each candidate."""
        prompts = tables.read_unit(Prompt, self.part.file, index)
        found: dict[str, tuple[list[Response], list[str]]] = {prompt.id: ([], []) for prompt in prompts}
        for group in self.groups:
            for response in group.read(index):
                answers, labels = found[response.prompt_id]
                answers.append(response)
                labels.append(group.label)
        return [(prompt, *found[prompt.id]) for prompt in prompts]

    def __iter__(self) -> Iterator[Candidate]:
        for index in range(self.part.units):
            yield from self.unit(index)


@dataclass(frozen=True, slots=True)
class Judgments:
    """Candidate sets with the oracle's judgments. Iterating gives (prompt, candidates, judgment)."""

    candidates: Candidates
    units: Units

    def __iter__(self) -> Iterator[Judged]:
        for prompt, answers, judgment, _ in self.labelled():
            yield prompt, answers, judgment

    def labelled(self) -> Iterator[tuple[Prompt, list[Response], Judgment, list[str]]]:
        """As iteration, with the group's label of each candidate."""
        for index in range(self.candidates.part.units):
            yield from self._labelled(index)

    def unit(self, index: int) -> Iterator[Judged]:
        """As iteration, of one unit."""
        return ((prompt, answers, judgment) for prompt, answers, judgment, _ in self._labelled(index))

    def _labelled(self, index: int) -> Iterator[tuple[Prompt, list[Response], Judgment, list[str]]]:
        judgments = {j.prompt_id: j for j in tables.read(Judgment, self.units.file(index))}
        for prompt, answers, labels in self.candidates.labelled(index):
            yield prompt, answers, judgments[prompt.id], labels
