"""The commented recipe that ``nashtune init`` writes."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import yaml

from nashtune.errors import RecipeError
from nashtune.recipe import load_recipe
from nashtune.store.files import write_atomic


def write_starter(file: Path, *, model: str, prompts: str, judge: str, judge_url: str, force: bool) -> None:
    """Write a recipe for the given model, prompts and judge. Raises RecipeError where ``file`` exists, unless ``force``."""
    if file.exists() and not force:
        raise RecipeError(f"{file}: exists already; accepted: another file name, or --force to overwrite it")
    template = files("nashtune").joinpath("starter.yaml").read_text(encoding="utf-8")
    name = "".join(c if c.isalnum() or c in "._-" else "-" for c in file.stem)
    values = {"NAME": name, "MODEL": model, "PROMPTS": prompts, "JUDGE": judge, "JUDGE_URL": judge_url}
    lines = [_fill(line, values) for line in template.splitlines()]
    write_atomic(file, "\n".join(lines) + "\n")
    load_recipe(file)


def _fill(line: str, values: dict[str, str]) -> str:
    """Replace one ``@KEY@`` by its value, quoted as YAML needs it."""
    for key, value in values.items():
        if f"@{key}@" in line:
            return line.replace(f"@{key}@", yaml.safe_dump(value, width=10_000).splitlines()[0])
    return line
