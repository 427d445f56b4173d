"""Arena-Hard's judge: its prompts, verdict patterns and limits, read from upstream's own files; nashtune ships no prompt."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from nashtune.errors import EvaluationError

Version = Literal["v0.1", "v2.0"]
VERSIONS: tuple[Version, ...] = ("v0.1", "v2.0")
BASELINES: Mapping[str, str] = {
    "hard_prompt": "o3-mini-2025-01-31",
    "creative_writing": "gemini-2.0-flash-001",
    "arena-hard-v0.1": "gpt-4-0314",
}
"""Whom a model is judged against, by category (utils/judge_utils.py of lmarena/arena-hard-auto at 196f6b8)."""
JUDGE_JSON = "arena_hard_judge.json"
"""{settings: {category: {baseline, system_prompt}}, v01: {judge_model, temperature, ...}, v20: {...}}."""
SETTINGS_PY = Path("utils", "judge_utils.py")
PLACEHOLDERS = ("{QUESTION}", "{ANSWER_A}", "{ANSWER_B}")


@dataclass(frozen=True, slots=True)
class JudgeSettings:
    """``template`` holds {QUESTION}, {ANSWER_A} and {ANSWER_B}; ``patterns`` are tried one after the other on the upper-cased
    reply, group 1 being the verdict; ``systems`` and ``baselines`` are by category."""

    template: str
    patterns: tuple[re.Pattern[str], ...]
    systems: Mapping[str, str]
    baselines: Mapping[str, str]
    judge: str
    temperature: float
    max_tokens: int


def read_judge_settings(place: Path, version: Version) -> JudgeSettings | None:
    """From a JSON file of that form, a folder that has one, or a clone of upstream's repository; None where there is
    neither, or nothing of this version.

    Raises EvaluationError naming file and field.
    """
    file = place if place.is_file() else place / JUDGE_JSON
    if file.is_file():
        whole = _mapping(_parsed(file, json.loads), str(file))
        config = whole.get(version.replace(".", ""))
        return None if config is None else _settings(config, whole.get("settings"), str(file))
    config_file = place / "config" / f"arena-hard-{version}.yaml"
    if not (config_file.is_file() and (place / SETTINGS_PY).is_file()):
        return None
    config = _parsed(config_file, yaml.safe_load)
    return _settings(config, _literal_named(place / SETTINGS_PY, "JUDGE_SETTINGS"), str(config_file))


def _settings(config: Any, settings: Any, where: str) -> JudgeSettings:
    config, settings = _mapping(config, where), _mapping(settings, f"{where}: judge settings")
    template = _text(config, "prompt_template", where)
    if lacking := [name for name in PLACEHOLDERS if name not in template]:
        raise EvaluationError(f"{where}: prompt_template lacks {', '.join(lacking)}")
    try:
        template.format(QUESTION="", ANSWER_A="", ANSWER_B="")
    except (KeyError, IndexError, ValueError) as error:
        raise EvaluationError(
            f"{where}: prompt_template has braces beside {', '.join(PLACEHOLDERS)}: {error!r}"
        ) from None
    by_category = {name: _mapping(one, f"{where}: {name}") for name, one in settings.items()}
    return JudgeSettings(
        template=template,
        patterns=_patterns(config.get("regex_patterns"), where),
        systems={name: _text(one, "system_prompt", f"{where}: {name}") for name, one in by_category.items()},
        baselines={name: _text(one, "baseline", f"{where}: {name}") for name, one in by_category.items()},
        judge=_text(config, "judge_model", where),
        temperature=float(_number(config, "temperature", where)),
        max_tokens=int(_number(config, "max_tokens", where)),
    )


def _patterns(found: Any, where: str) -> tuple[re.Pattern[str], ...]:
    if not isinstance(found, list) or not found:
        raise EvaluationError(f"{where}: regex_patterns is {found!r:.80}; accepted: a list of regular expressions")
    try:
        patterns = tuple(re.compile(one) for one in found)
    except (re.error, TypeError) as error:
        raise EvaluationError(f"{where}: regex_patterns: {error}") from None
    if bad := [one.pattern for one in patterns if one.groups != 1]:
        raise EvaluationError(f"{where}: regex_patterns: {bad[0]!r} has not one group, the verdict")
    return patterns


def _literal_named(file: Path, name: str) -> Any:
    """The value of a module's constant, read and never run: texts, numbers, dicts, and names of such constants above it."""
    known: dict[str, Any] = {}

    def value(node: ast.expr) -> Any:
        match node:
            case ast.Constant():
                return node.value
            case ast.Name() if node.id in known:
                return known[node.id]
            case ast.Dict(keys=keys, values=values):
                return {value(key): value(one) for key, one in zip(keys, values, strict=True) if key is not None}
        raise EvaluationError(f"{file}:{node.lineno}: {name} is not spelled out; accepted: texts, numbers and dicts")

    for line in _parsed(file, ast.parse).body:
        match line:
            case ast.Assign(targets=[ast.Name(id=target)], value=said):
                if target == name:
                    return value(said)
                if isinstance(said, ast.Constant):
                    known[target] = said.value
    raise EvaluationError(f"{file}: no {name}")


def _parsed(file: Path, parse: Any) -> Any:
    try:
        return parse(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError, yaml.YAMLError) as error:
        raise EvaluationError(f"{file}: {error}") from None


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise EvaluationError(f"{where}: {value!r:.80}; accepted: an object")
    return value


def _text(mapping: Mapping[str, Any], field: str, where: str) -> str:
    value = mapping.get(field)
    if not isinstance(value, str) or not value:
        raise EvaluationError(f"{where}: {field} is {value!r:.80}; accepted: text")
    return value


def _number(mapping: Mapping[str, Any], field: str, where: str) -> float:
    value = mapping.get(field)
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise EvaluationError(f"{where}: {field} is {value!r:.80}; accepted: a number from 0 on")
    return value
