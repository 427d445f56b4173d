"""API keys: to the server and nowhere else, though the server sends them back."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from judge_server import JudgeServer
from tiny_chat import tiny_recipe

from nashtune.errors import RecipeError
from nashtune.recipe import parse_recipe

NASHTUNE = [sys.executable, "-m", "nashtune.cli"]
ENV_KEY, FILE_KEY = "sk-from-the-environment-0123456789", "sk-from-a-file-9876543210"


def contents(file: Path) -> bytes:
    """A file's bytes; what a parquet file's compression hides, in plain."""
    data = file.read_bytes()
    return data + str(pq.read_table(file).to_pydict()).encode() if file.suffix == ".parquet" else data


def test_keys_are_nowhere_in_a_run_its_report_or_what_it_prints(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "key.txt").write_text(FILE_KEY + "\n")
    with (
        JudgeServer(["leak"] * 999, require_key=ENV_KEY) as judge,
        JudgeServer(["leak"] * 25 + ["401"] * 99, require_key=FILE_KEY) as teacher,
    ):
        engine = {"model": "m", "price": "free"}
        recipe = tiny_recipe(tiny_folder, iterations=2, sampling={"engine": "scripted"}) | {
            "folder": str(tmp_path / "runs"),
            "oracle": {"kind": "rubric", "engine": engine | {"base_url": judge.url, "api_key_env": "JUDGE_KEY"}},
            "teacher": {
                "kind": "remote",
                "engine": engine | {"base_url": teacher.url, "api_key_file": str(tmp_path / "key.txt")},
            },
        }
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        run = tmp_path / "runs" / "tiny"
        said = ""
        for words in (["run", str(tmp_path / "recipe.yaml")], ["status", str(run)], ["report", str(run)], ["doctor"]):
            done = subprocess.run(
                [*NASHTUNE, *words], env=os.environ | {"JUDGE_KEY": ENV_KEY}, capture_output=True, text=True
            )
            said += done.stdout + done.stderr
    assert "[key]" in said, "the refusal that quotes the key was not met"
    assert judge.billed > 0
    assert teacher.billed > 0
    files = [file for file in run.rglob("*") if file.is_file()]
    assert {"ledger.sqlite", "endpoints.json", "report.html", "recipe.yaml"} <= {file.name for file in files}
    for key in (ENV_KEY, FILE_KEY):
        assert key not in said
        assert [file for file in files if key.encode() in contents(file)] == []


@pytest.mark.parametrize(
    "engine",
    [
        {"base_url": "https://user:sk-secret@judge.example/v1"},
        {"base_url": "https://judge.example/v1?key=sk-secret"},
        {"base_url": "https://judge.example/v1#sk-secret"},
        {"base_url": "ftp://user:sk-secret@judge.example/v1"},
        {"api_key": "sk-secret"},
        {"headers": {"authorization": "sk-secret", "x-api-key": "sk-secret"}},
    ],
)
def test_a_key_inside_a_recipe_is_refused_and_not_repeated(tiny_folder: Path, engine: dict[str, Any]) -> None:
    recipe = tiny_recipe(tiny_folder) | {"oracle": {"kind": "rubric", "engine": {"model": "m"} | engine}}
    with pytest.raises(RecipeError, match=r"oracle\.rubric\.engine\.(base_url|api_key|headers)") as caught:
        parse_recipe(recipe)
    assert "[hidden]" in str(caught.value)
    assert "sk-secret" not in str(caught.value)


def test_a_section_that_is_refused_whole_hides_what_looks_like_a_key(tiny_folder: Path) -> None:
    oracle = {
        "kind": "rubrik",
        "engine": {"base_url": "https://user:sk-secret@judge.example/v1", "api_key": "sk-secret"},
    }
    with pytest.raises(RecipeError, match="rubrik") as caught:
        parse_recipe(tiny_recipe(tiny_folder) | {"oracle": oracle})
    assert "sk-secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["localhost:8000/v1", "https://", "judge"])
def test_an_address_without_a_scheme_or_host_is_refused(tiny_folder: Path, url: str) -> None:
    with pytest.raises(RecipeError, match="accepted: http"):
        parse_recipe(
            tiny_recipe(tiny_folder) | {"oracle": {"kind": "rubric", "engine": {"model": "m", "base_url": url}}}
        )
