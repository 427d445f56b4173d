"""Prompts with verifiable instructions, from a file, a folder or the hub; nashtune ships none of them."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nashtune.errors import EvaluationError, PromptError
from nashtune.records import Message, Prompt
from nashtune.suites.ifeval.checkers import IFEVAL
from nashtune.suites.ifeval.resources import require
from nashtune.suites.ifeval.types import InstructionType, Types
from nashtune.suites.json_lines import json_lines

HUB = "google/IFEval"
FILES = ("ifeval_input_data.jsonl", "input_data.jsonl", "ifeval_prompts.jsonl")
"""The names a folder may have the prompts under: the hub's, the published repository's, ours."""
FIELDS = ("key", "prompt", "instruction_id_list", "kwargs")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction of a prompt; ``type`` is None where the benchmark has no such type here."""

    id: str
    type: InstructionType | None
    args: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class InstructedPrompt:
    """A prompt and the instructions in it."""

    key: str
    text: str
    instructions: tuple[Instruction, ...]

    @property
    def unknown(self) -> tuple[str, ...]:
        """Types that cannot be checked: a prompt that has any is not scored."""
        return tuple(i.id for i in self.instructions if i.type is None)

    def prompt(self, suite: str) -> Prompt:
        """What a policy is asked."""
        return Prompt.make([Message("user", self.text)], source=f"{suite}:{self.key}")


def load_prompts(
    source: str, types: Types = IFEVAL, files: Sequence[str] = FILES, split: str = "train"
) -> tuple[InstructedPrompt, ...]:
    """Read a .jsonl file, a folder with one of ``files``, or a split of a data set of the hub by name.

    Raises EvaluationError naming file, line and key for a row that is malformed, and naming the package or data that must be
    installed to check the types that occur.
    """
    rows = list(_rows(source, files, split))
    prompts = tuple(_instructed(row, where, types) for where, row in rows)
    if not prompts:
        raise EvaluationError(f"{source}: no prompts")
    seen: dict[str, str] = {}
    for (where, _), prompt in zip(rows, prompts, strict=True):
        if prompt.key in seen:
            raise EvaluationError(
                f"{where}: key {prompt.key!r} is that of {seen[prompt.key]} too; accepted: one row a key"
            )
        seen[prompt.key] = where
    require_resources(prompts)
    return prompts


def require_resources(prompts: Iterable[InstructedPrompt]) -> None:
    """Raises EvaluationError unless what the prompts' types need is installed."""
    require(name for prompt in prompts for i in prompt.instructions if i.type is not None for name in i.type.needs)


def _rows(source: str, files: Sequence[str], split: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Rows, each with the words that name it in errors."""
    path = Path(source).expanduser()
    if path.is_dir():
        found = next((path / name for name in files if (path / name).is_file()), None)
        if found is None:
            raise EvaluationError(f"{path}: none of {', '.join(files)}; accepted: a folder with one, or a .jsonl file")
        path = found
    if path.is_file():
        yield from json_lines(path)
        return
    if path.suffix or path.is_absolute():
        raise EvaluationError(f"{source!r}: no such file or folder")
    for number, row in enumerate(_hub_rows(source, split)):
        yield f"{source}:{split}:{number}", row


def _hub_rows(name: str, split: str) -> Any:
    try:
        datasets: Any = importlib.import_module("datasets")
    except ImportError:
        raise EvaluationError(
            f"{name!r} is a data set of the hub and needs the package 'datasets': pip install nashtune[hub]"
        ) from None
    try:
        return datasets.load_dataset(name, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise EvaluationError(
            f"{name!r} is no file, no folder and no data set that the hub gave ({type(error).__name__}: {error})"
        ) from None


def _instructed(row: Mapping[str, Any], where: str, types: Types) -> InstructedPrompt:
    key = row.get("key")
    if isinstance(key, bool) or not isinstance(key, (str, int)):
        raise EvaluationError(f"{where}: key is {key!r}; accepted: a number or text")
    where = f"{where}: key {key}"
    prompt, ids, kwargs = (row.get(field) for field in FIELDS[1:])
    if not isinstance(prompt, str) or not prompt.strip():
        raise EvaluationError(f"{where}: prompt is {prompt!r:.80}; accepted: text")
    if not isinstance(ids, list) or not ids or not all(isinstance(i, str) for i in ids):
        raise EvaluationError(f"{where}: instruction_id_list is {ids!r:.80}; accepted: a list of types, at least one")
    if not isinstance(kwargs, list) or len(kwargs) != len(ids) or not all(isinstance(k, dict) for k in kwargs):
        raise EvaluationError(
            f"{where}: kwargs is {kwargs!r:.80}; accepted: a list of {len(ids)} objects, one an instruction"
        )
    return InstructedPrompt(
        str(key), prompt, tuple(_instruction(i, own, where, types) for i, own in zip(ids, kwargs, strict=True))
    )


def _instruction(name: str, kwargs: Mapping[str, Any], where: str, types: Types) -> Instruction:
    known = types.get(name)
    if known is None:
        return Instruction(name, None, kwargs)
    try:
        args = known.arguments(kwargs)
    except PromptError as error:
        raise EvaluationError(f"{where}: {error}") from None
    if name.endswith(":nth_paragraph_first_word") and args["nth_paragraph"] > args["num_paragraphs"]:
        raise EvaluationError(
            f"{where}: {name}: nth_paragraph is {args['nth_paragraph']}; accepted: at most num_paragraphs, "
            f"{args['num_paragraphs']}"
        )
    return Instruction(name, known, args)
