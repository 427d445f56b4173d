"""From a YAML file and overrides to a recipe, or to an error that says what is accepted."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from nashtune.errors import RecipeError
from nashtune.recipe.base import Section
from nashtune.recipe.contradictions import oracle_contradictions
from nashtune.recipe.evaluation_file import EvaluationFile
from nashtune.recipe.oracles import Oracle
from nashtune.recipe.recipe import Recipe

SECRET_NAME = re.compile(r"(key|token|secret|password|authorization)$", re.IGNORECASE)
URL_SECRETS = re.compile(r"(?<=://)[^/@\s]+(?=@)|(?<=[?#])\S+")


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file and apply ``key.path=value`` overrides (values are YAML).

    Raises RecipeError naming the file, field, value received and values accepted.
    """
    path = Path(path)
    raw = read_yaml(path, "recipe")
    for text in overrides:
        apply_override(raw, text)
    return parse_recipe(raw, str(path))


def load_oracle(path: str | Path, overrides: Sequence[str] = ()) -> Oracle:
    """Read an oracle from a file that holds a recipe's ``oracle`` section alone, with ``key.path=value`` overrides.

    Raises RecipeError as ``load_recipe``.
    """
    raw = read_yaml(Path(path), "oracle")
    for text in overrides:
        apply_override(raw, text)
    try:
        oracle: Oracle = TypeAdapter(Oracle).validate_python(_expand_env(raw))
    except ValidationError as error:
        found = [{**e, "loc": ("oracle", *e["loc"])} for e in error.errors()]  # as in a recipe, so that keys are known
        raise RecipeError("\n".join(_explain(str(path), e) for e in found)) from None
    if problems := list(oracle_contradictions([oracle])):
        raise RecipeError(f"{path}: {'; '.join(problems)}")
    return oracle


def read_yaml(path: Path, kind: str) -> dict[str, Any]:
    """The settings of a ``kind`` of file, unchecked. Raises RecipeError where it has none."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such {kind} file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(raw, dict):
        raise RecipeError(f"{path}: expected a mapping of settings, got {type(raw).__name__}")
    return raw


def parse_recipe(raw: dict[str, Any], where: str = "recipe") -> Recipe:
    """Validate a recipe given as a mapping. Raises RecipeError, one line per problem."""
    try:
        return Recipe.model_validate(_expand_env(raw))
    except ValidationError as error:
        raise RecipeError("\n".join(_explain(where, e) for e in error.errors())) from None


def parse_evaluation(raw: dict[str, Any], where: str = "evaluation") -> EvaluationFile:
    """The same of an evaluation file."""
    try:
        return EvaluationFile.model_validate(_expand_env(raw))
    except ValidationError as error:
        raise RecipeError("\n".join(_explain(where, e, EvaluationFile) for e in error.errors())) from None


def _expand_env(value: Any) -> Any:
    """``~`` and ``$NAME`` in strings, so that recipes need no machine's paths."""
    if isinstance(value, dict):
        return {k: _expand_env(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_expand_env(v) for v in value]
    if isinstance(value, str) and value.startswith(("~", "$")):
        return os.path.expanduser(os.path.expandvars(value))
    return value


def apply_override(raw: dict[str, Any], text: str) -> None:
    """Set one ``key.path=value`` (a YAML value). Raises RecipeError where it is none."""
    key, sign, value = text.partition("=")
    if not sign or not key:
        raise RecipeError(f"override {text!r}: expected key=value, as train.batch_size=32")
    *parents, last = key.split(".")
    node = raw
    for part in parents:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise RecipeError(f"override {text!r}: {part!r} is not a section")
    try:
        node[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise RecipeError(f"override {text!r}: the value is not valid YAML: {error}") from None


def _explain(where: str, error: Any, root: type[Section] = Recipe) -> str:
    field = ".".join(str(p) for p in error["loc"]) or "recipe"
    if error["type"] == "extra_forbidden":
        accepted = _accepted_keys(error["loc"][:-1], root)
        return f"{where}: {field}: unknown key (value {_shown(field, error['input'])!r}); accepted keys: {', '.join(accepted)}"
    if error["type"] == "missing":
        return f"{where}: {field}: required, but missing"
    if error["type"] == "value_error" and not error["loc"]:
        return f"{where}: " + str(error["msg"]).removeprefix("Value error, ")
    return f"{where}: {field}: {error['msg']} (received {_shown(field, error['input'])!r})"


def _shown(field: str, value: Any) -> Any:
    """A value as a message may repeat it: without what looks like a key, or an address's password or query."""
    if isinstance(value, dict):
        return {key: _shown(str(key), inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_shown(field, inner) for inner in value]
    if not isinstance(value, str):
        return value
    if SECRET_NAME.search(field):
        return "[hidden]"
    return URL_SECRETS.sub("[hidden]", value) if "://" in value else value


def _accepted_keys(location: Sequence[Any], root: type[Section]) -> list[str]:
    """The keys of the section at ``location``, in which a union's member is named by its ``kind``."""
    sections: list[type[Section]] = [root]
    for part in (part for part in location if not isinstance(part, int)):  # a place in a list
        inside = [s for section in sections for s in _sections_in(_by_key(section).get(part))]
        sections = inside or [s for s in sections if _is_member(s, part)]
    return sorted({key for section in sections for key in _by_key(section)})


def _is_member(section: type[Section], tag: Any) -> bool:
    """Whether a union's member goes by ``tag``: its ``kind``, an objective's ``name``, or a suite."""
    return any(tag in getattr(_by_key(section).get(key), "__args__", ()) for key in ("kind", "name", "suite"))


def _by_key(section: type[Section]) -> dict[str, Any]:
    """Annotation of each field under the name a recipe uses."""
    return {info.alias or name: info.annotation for name, info in section.model_fields.items()}


def _sections_in(annotation: Any) -> list[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [s for arg in getattr(annotation, "__args__", ()) for s in _sections_in(arg)]
