"""AlpacaEval's prompts, reference answers and controls, from the hub or a folder; nashtune ships none of them."""

from __future__ import annotations

import csv
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from nashtune.errors import EvaluationError
from nashtune.records import Message, Prompt
from nashtune.suites.alpaca_eval.length_control import Controls

HUB = "tatsu-lab/alpaca_eval"
REFERENCES = "alpaca_eval_gpt4_baseline.json"
"""Prompts with the baseline's answers: a list of {dataset, instruction, output, generator}."""
GAMED = "df_gamed.csv"
"""The two gamed baselines' rows: index, model, std_delta_len, preference (0 to 1), instruction_difficulty."""
TEMPLATES = ("alpaca_eval_clf.txt", "alpacaeval_judge_prompt.txt")
PACKAGED_TEMPLATE = Path("evaluators_configs", "alpaca_eval_clf_gpt4_turbo", "alpaca_eval_clf.txt")


@dataclass(frozen=True)
class AlpacaSet:
    """N prompts with the baseline's answers. ``controls`` None: no length control; ``template`` None: no judging."""

    instructions: tuple[str, ...]
    datasets: tuple[str, ...]
    references: tuple[str, ...]
    baseline: str
    controls: Controls | None
    template: str | None

    @cached_property
    def place(self) -> Mapping[str, int]:
        """Instruction -> its place in the set."""
        return {instruction: i for i, instruction in enumerate(self.instructions)}

    def prompts(self) -> list[Prompt]:
        """What a policy is asked, in the set's order."""
        return [
            Prompt.make([Message("user", text)], source=f"alpaca_eval:{i}") for i, text in enumerate(self.instructions)
        ]

    def need_controls(self) -> Controls:
        """Raises EvaluationError where there are none."""
        if self.controls is None:
            raise EvaluationError(f"length control needs {GAMED} beside {REFERENCES} (it is in the hub's {HUB})")
        return self.controls

    def need_template(self) -> str:
        """Raises EvaluationError where there is none."""
        if self.template is None:
            raise EvaluationError(
                f"judging needs the judge's prompt: {' or '.join(TEMPLATES)} in the data folder, or the alpaca_eval package"
            )
        return self.template


def load_set(source: str, references: str | None = None) -> AlpacaSet:
    """Read a folder, or a data set of the hub by name. ``references`` is another baseline's answers to the same prompts, a
    ``model_outputs.json``. Raises EvaluationError naming the file and what it lacks."""
    folder = Path(source).expanduser()
    local = folder.is_dir()
    file = Path(references).expanduser() if references else _file(source, REFERENCES, local)
    if file is None:
        raise EvaluationError(
            f"alpaca_eval data: {source!r}: no {REFERENCES}; accepted: a folder or hub data set that has it"
        )
    rows = read_json_list(file, ("instruction", "output"))
    generators = {str(row.get("generator") or file.parent.name) for row in rows}
    if len(generators) > 1:
        raise EvaluationError(f"{file}: answers of {len(generators)} generators; accepted: one")
    gamed = _file(source, GAMED, local)
    return AlpacaSet(
        instructions=tuple(row["instruction"] for row in rows),
        datasets=tuple(str(row.get("dataset", "")) for row in rows),
        references=tuple(row["output"] for row in rows),
        baseline=generators.pop(),
        controls=read_controls(gamed) if gamed else None,
        template=_template(folder if local else None),
    )


def _file(source: str, name: str, local: bool) -> Path | None:
    if local:
        file = Path(source).expanduser() / name
        return file if file.is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(source, name, repo_type="dataset"))
    except LocalEntryNotFoundError as error:  # the hub could not be reached: an EntryNotFoundError too
        raise EvaluationError(
            f"alpaca_eval data: {source!r}: {name} is not in the cache, and no hub answers: {error}"
        ) from None
    except EntryNotFoundError:
        return None
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise EvaluationError(
            f"alpaca_eval data: {source!r} is neither a folder nor a data set that the hub gave "
            f"({type(error).__name__}: {str(error).splitlines()[0]})"
        ) from None


def _template(folder: Path | None) -> str | None:
    places = [folder / name for name in TEMPLATES] if folder else []
    package = importlib.util.find_spec("alpaca_eval")
    if package and package.submodule_search_locations:
        places.append(Path(package.submodule_search_locations[0]) / PACKAGED_TEMPLATE)
    found = next((place for place in places if place.is_file()), None)
    return found.read_text(encoding="utf-8") if found else None


def read_json_list(file: Path, fields: tuple[str, ...]) -> list[dict[str, Any]]:
    """A JSON list of objects with string ``fields``. Raises EvaluationError naming file, row and field."""
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise EvaluationError(f"{file}: no such file") from None
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{file}: not readable as JSON: {error}") from None
    if not isinstance(rows, list) or not rows:
        raise EvaluationError(
            f"{file}: expected a list of answers, got {type(rows).__name__} of length {len(rows or ())}"
        )
    for number, row in enumerate(rows):
        for field in fields:
            if not isinstance(row, dict) or not isinstance(row.get(field), str):
                shown = row.get(field) if isinstance(row, dict) else row
                raise EvaluationError(f"{file}: entry {number}: {field} is {shown!r:.80}; accepted: text")
    return rows


def read_controls(file: Path) -> Controls:
    """The gamed baselines' rows and the instructions' difficulties. Raises EvaluationError naming row and column."""
    columns: dict[str, list[float]] = {
        name: [] for name in ("std_delta_len", "preference", "instruction_difficulty", "index")
    }
    with file.open(encoding="utf-8", newline="") as stream:
        for number, row in enumerate(csv.DictReader(stream), 2):
            for name, values in columns.items():
                try:
                    values.append(float(row[name]))
                except (KeyError, TypeError, ValueError):
                    raise EvaluationError(
                        f"{file}:{number}: {name} is {row.get(name)!r}; accepted: a number, in the columns {', '.join(columns)}"
                    ) from None
    if not columns["index"]:
        raise EvaluationError(f"{file}: no rows")
    difficulty: dict[int, float] = {}
    for index, value in zip(columns["index"], columns["instruction_difficulty"], strict=True):
        difficulty.setdefault(int(index), value)
    if sorted(difficulty) != list(range(len(difficulty))):
        raise EvaluationError(f"{file}: index has gaps; accepted: every prompt's place from 0 on")
    return Controls(
        difficulty=np.array([difficulty[i] for i in range(len(difficulty))]),
        delta=np.array(columns["std_delta_len"]),
        gamma=np.array(columns["instruction_difficulty"]),
        wins=np.array(columns["preference"]),
    )
