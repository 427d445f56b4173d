"""Every named method through one or two iterations of the loop: its pairs, its references, its objective; and overriding."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_chat import tiny_recipe, write_prompts, write_tiny_policy

from nashtune import Run, improve, judge, make_pairs, sample, train, validate
from nashtune.catalog import method_facts
from nashtune.errors import PairError
from nashtune.recipe import METHODS, Recipe, load_recipe, parse_recipe
from nashtune.records import Judgment, LogProb, Pair, Response
from nashtune.stages.training import references_of, starting_policy
from nashtune.stages.work import policy_of
from nashtune.store import tables

PAPER = {"rule": "paper", "positive_score": 4, "margin": 1}
"""The paper's rule, with thresholds that a few made-up scores meet."""


def recipe_of(tiny_folder: Path, runs: Path, method: str | None, **changes: Any) -> Recipe:
    """A tiny recipe in which the method's own settings stand, but for the paper rule's thresholds."""
    raw = tiny_recipe(tiny_folder, **{"prompts": {"per_iteration": 8, "validation": {"count": 4}}, **changes})
    raw |= {"folder": str(runs), "method": method}
    if "pairs" not in changes:
        rule = METHODS[method].settings["pairs"]["rule"] if method else "all"
        raw["pairs"] = {"paper": PAPER, "restrictive": PAPER | {"rule": "restrictive"}}.get(rule, {})
    if method == "self-rewarding" and "oracle" not in changes:
        del raw["oracle"]
    if method and method != "spin" and "teacher" not in changes:
        raw["teacher"] = {"kind": "best_of_n", "n": 2}
    return parse_recipe({key: value for key, value in raw.items() if value is not None})


def iterate(run: Run, t: int) -> list[Pair]:
    pairs = make_pairs(run, judge(run, sample(run, t)))
    train(run, t, pairs)
    return pairs


def margin(pair: Pair) -> float:
    assert pair.score_chosen is not None
    assert pair.score_rejected is not None
    return pair.score_chosen - pair.score_rejected


def one_per_prompt(pairs: list[Pair]) -> bool:
    return len({pair.prompt_id for pair in pairs}) == len(pairs)


def all_clear(pairs: list[Pair]) -> bool:
    least = {"T>S": 1, "S>T": 1, "S>S": 1, "T>T": 1}
    return all((pair.score_chosen or 0) >= 4 and margin(pair) >= least[pair.kind] for pair in pairs)


EXPECTED: dict[str, tuple[Callable[[list[Pair]], bool], dict[str, int]]] = {
    # What holds of the second iteration's pairs, and the iterations of the policies its references are.
    "dno": (all_clear, {"t": 1}),
    "dno-soft": (lambda pairs: all(margin(p) > 0 for p in pairs), {"t": 1}),
    "dno-restrictive": (lambda pairs: all_clear(pairs) and {p.kind for p in pairs} == {"T>S"}, {"t": 1}),
    "dno-lookahead": (all_clear, {"t": 0}),
    "dno-regularized": (all_clear, {"t": 1, "0": 0}),
    "dno-regularized-mixed": (all_clear, {"t": 1, "0": 0}),
    "spin": (lambda pairs: {p.kind for p in pairs} == {"T>S"} and len(pairs) == 8 * 3, {"t": 1}),
    "offline-dpo": (all_clear, {"0": 0}),
    "iterative-dpo": (one_per_prompt, {"0": 0}),
    "self-rewarding": (one_per_prompt, {"t": 1}),
    "sppo": (lambda pairs: one_per_prompt(pairs) and all(p.p_chosen is not None for p in pairs), {"t": 1}),
    "rspo": (one_per_prompt, {"t": 1, "0": 0}),
    "inpo": (one_per_prompt, {"t": 1, "0": 0}),
    "comal": (one_per_prompt, {"t": 1, "every-12": 0}),
    "mnpo": (one_per_prompt, {"0": 0, "t": 1, "t-1": 0, "t-2": 0}),
    "rebel": (one_per_prompt, {"t": 1}),
    "iterative-kto": (all_clear, {"t": 1}),
    "sft-on-positives": (all_clear, {}),
    "best-of-n": (one_per_prompt, {}),
}


def test_every_method_has_its_expectations() -> None:
    assert set(EXPECTED) == set(METHODS)


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the shared one, but with a context that holds the rubric by which a policy grades itself."""
    folder = tmp_path_factory.mktemp("roomy")
    config = write_tiny_policy(folder / "policy") / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": 4096}))
    write_prompts(folder / "prompts.jsonl", 40)
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_a_methods_pairs_and_references_are_what_it_says(method: str, tiny_folder: Path, tmp_path: Path) -> None:
    teacher = {"teacher": {"kind": "scripted"}} if method == "spin" else {}
    # A teacher that the oracle likes only now and then leaves the student wins of its own.
    recipe = recipe_of(tiny_folder, tmp_path, method, **teacher)
    holds, references = EXPECTED[method]
    with Run.open(recipe) as run:
        iterate(run, 1)
        pairs = iterate(run, 2)
        assert pairs
        assert holds(pairs)
        expected = {name: policy_of(run, t).fingerprint for name, t in references.items()}
        assert {name: policy.fingerprint for name, policy in references_of(run, 2).items()} == expected
        sampled = {r.policy for r in tables.stream(Response, run.stage(2, "sample").files())}
        current, initial = policy_of(run, 1).fingerprint, policy_of(run, 0).fingerprint
        whose = {"offline-dpo": initial, "sft-on-positives": initial}
        whose["dno-regularized-mixed"] = f"{current} with 0.1 of {initial}"
        assert sampled == {whose.get(method, current)}
        facts = run.stage(2, "train").record()["facts"]
        replays = method.startswith("dno")
        assert (facts["replayed"] > 0) == replays
        new = len({p.chosen_id for p in pairs}) if run.recipe.objective.row.sides == 1 else len(pairs)
        assert facts["pairs_trained"] == new + facts["replayed"]
        assert facts["pairs_lacking"] == 0
        judged = list(tables.stream(Judgment, run.stage(2, "judge").files()))
        assert {j.oracle for j in judged} == {
            {"spin": "teacher_wins", "self-rewarding": "self"}.get(method, "scripted")
        }


def test_lookahead_pools_every_pair_and_starts_from_the_initial_policy(tiny_folder: Path, tmp_path: Path) -> None:
    with Run.open(recipe_of(tiny_folder, tmp_path, "dno-lookahead", iterations=3)) as run:
        made = [iterate(run, t) for t in (1, 2, 3)]
        facts = run.stage(3, "train").record()["facts"]
        assert facts["replayed"] == len({p.id for pairs in made[:2] for p in pairs})
        assert starting_policy(run, 3) == policy_of(run, 0)
        # The same pairs from pi_0, with the policy of iteration 2 never read.
        assert run.recipe.replay.fraction == "all"
        assert references_of(run, 3) == {"t": policy_of(run, 0)}


def test_comal_replaces_its_far_reference(tiny_folder: Path, tmp_path: Path) -> None:
    objective = {"name": "comal", "replace_every": 1}
    with Run.open(recipe_of(tiny_folder, tmp_path, "comal", objective=objective)) as run:
        iterate(run, 1)
        assert references_of(run, 2) == dict.fromkeys(("t", "every-1"), policy_of(run, 1))


def test_a_mixed_sampler_is_pi_0_first_then_the_mixture_and_an_oracle_still_gets_log_probs(
    tiny_folder: Path, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {
        "oracle": {"kind": "rules", "guard": {"min_fluency": -50.0}},
        "prompts": {"source": "nashtune:constraints", "per_iteration": 8, "validation": {"count": 4}},
        "pairs": {"rule": "all"},
    }
    with Run.open(recipe_of(tiny_folder, tmp_path, "dno-regularized-mixed", **changes)) as run:
        iterate(run, 1)
        first = list(tables.stream(Response, run.stage(1, "sample").files()))
        assert {r.policy for r in first} == {policy_of(run, 0).fingerprint}
        assert all(set(r.logprobs) == {"t", "0"} for r in first)
        candidates = sample(run, 2)
        for _, answers in candidates:
            assert all(set(a.logprobs) == {"mixture", "0"} for a in answers if a.source == "student")
        assert list(tables.stream(LogProb, run.stage(2, "sample-scores").files()))
        validate(run, 0)
        held_out = tables.stream(Response, run.stage(0, "validate-sample").files())
        assert all("mixture" not in r.logprobs for r in held_out)


@pytest.mark.parametrize("method", ["dno-regularized-mixed", "offline-dpo", "iterative-kto", "best-of-n"])
def test_a_whole_run_ends_with_a_card_that_names_the_method(method: str, tiny_folder: Path, tmp_path: Path) -> None:
    recipe = recipe_of(tiny_folder, tmp_path, method, iterations=1)
    improve(recipe)
    card = (tmp_path / "tiny" / "best" / "README.md").read_text()
    assert f"Method: `{method}`: {METHODS[method].summary}" in card
    assert f"Objective: `{recipe.objective.name}`, {recipe.objective.row.formula}" in card


def test_a_mixture_of_0_samples_as_the_method_without(tiny_folder: Path, tmp_path: Path) -> None:
    found = []
    for name, sampling in (("without", {}), ("zero", {"mixture": 0.0})):
        raw = recipe_of(tiny_folder, tmp_path / name, "dno-regularized").written()
        raw["sampling"] |= sampling
        with Run.open(parse_recipe(raw)) as run:
            iterate(run, 1)
            sample(run, 2)
            found.append([(r.id, r.token_ids) for r in tables.stream(Response, run.stage(2, "sample").files())])
    assert found[0] == found[1]


@pytest.mark.parametrize("method", ["spin", "self-rewarding"])
def test_validation_has_an_oracle_of_its_own(method: str, tiny_folder: Path, tmp_path: Path) -> None:
    teacher = {"teacher": {"kind": "scripted"}}
    longer = {"oracle": {"kind": "scripted", "prefer": "longer"}}
    recipe = recipe_of(tiny_folder, tmp_path, method, **teacher, validate=longer, iterations=1)
    improve(recipe)
    run = Run.read(tmp_path / "tiny")
    assert run.state() == "finished"
    for t in (0, 1):
        for judgment in tables.stream(Judgment, run.stage(t, "validate-judge").files()):
            assert judgment.oracle == "scripted"
            assert judgment.scores is not None
    trained_by = {j.oracle for j in tables.stream(Judgment, run.stage(1, "judge").files())}
    assert trained_by == {{"spin": "teacher_wins", "self-rewarding": "self"}[method]}


def test_the_page_of_methods_says_what_each_is() -> None:
    page = (Path(__file__).parent.parent / "docs" / "methods.md").read_text()
    for name in METHODS:
        facts = method_facts(name)
        section = page.partition(f"### {name}\n")[2].partition("###")[0].partition("\n## ")[0]
        assert facts["summary"][1:] in section
        assert f"- needs: {facts['needs']}\n" in section
        assert f"- source: {facts['source']}\n" in section
        assert f"`{facts['objective']['formula']}`" in section
        preset = section.partition("- preset: `")[2].partition("`\n")[0]
        assert yaml.safe_load(preset) == METHODS[name].settings


# ---- overriding ---------------------------------------------------------------------------------------------------------


def test_what_is_written_wins_over_the_method(tiny_folder: Path, tmp_path: Path) -> None:
    recipe = recipe_of(tiny_folder, tmp_path, "dno", replay={"fraction": 0.1}, objective={"beta": 0.7})
    assert (recipe.replay.fraction, recipe.objective.name) == (0.1, "dno-prct")
    assert recipe.objective.settings == {"beta": 0.7, "alpha": 0.005, "offset": 0.0, "per_token": False}
    other = recipe_of(tiny_folder, tmp_path, "self-rewarding", objective={"name": "ipo"}, oracle={"kind": "scripted"})
    assert other.objective.settings == {
        "tau": 0.1,
        "alpha": 0.0,
        "per_token": False,
    }  # nothing of the method's objective
    assert other.oracle.kind == "scripted"
    assert other.pairs.rule == "best_worst"


def test_an_overridden_method_runs_as_overridden(tiny_folder: Path, tmp_path: Path) -> None:
    changes = {"objective": {"name": "ipo", "tau": 0.5}, "pairs": {"rule": "all", "max_per_prompt": 2}}
    with Run.open(recipe_of(tiny_folder, tmp_path, "iterative-kto", **changes)) as run:
        pairs = iterate(run, 1)
        assert len(pairs) > len({p.prompt_id for p in pairs})
        assert list(references_of(run, 1)) == ["0"]


def test_overrides_on_the_command_line_and_the_written_recipe(tiny_folder: Path, tmp_path: Path) -> None:
    raw = tiny_recipe(tiny_folder)
    del raw["pairs"]
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump(raw | {"method": "inpo"}))
    recipe = load_recipe(file, ["objective.tau=0.005", "pairs.max_per_prompt=3"])
    assert recipe.objective.settings == {"eta": 0.0075, "tau": 0.005, "alpha": 0.0, "per_token": False}
    assert (recipe.pairs.rule, recipe.pairs.max_per_prompt) == ("best_worst", 3)
    written = recipe.written()
    assert written["method"] == "inpo"
    assert written["objective"] == {"tau": 0.005}
    assert written["pairs"] == {"max_per_prompt": 3}
    again = parse_recipe(json.loads(json.dumps(written)))
    assert (again, again.identity_hash()) == (recipe, recipe.identity_hash())
    assert load_recipe(file, ["method=rebel"]).objective.name == "rebel"


@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_the_same_recipe_as_its_preset_written_out(method: str, tiny_folder: Path, tmp_path: Path) -> None:
    teacher = {"teacher": {"kind": "scripted"}}
    by_name = recipe_of(tiny_folder, tmp_path, method, **teacher)
    resolved = by_name.resolved()
    assert parse_recipe({**by_name.written(), "pairs": by_name.written().get("pairs", {})}) == by_name
    for section, settings in METHODS[method].settings.items():
        for key, value in settings.items():
            assert resolved[section][key] == value, f"{section}.{key}"


def test_pairs_without_what_the_objective_reads_are_left_out_and_counted(tiny_folder: Path, tmp_path: Path) -> None:
    with Run.open(recipe_of(tiny_folder, tmp_path, "sppo")) as run:
        pairs = make_pairs(run, judge(run, sample(run, 1)))
        train(run, 1, [replace(pairs[0], p_chosen=None), *pairs[1:]])
        facts = run.stage(1, "train").record()["facts"]
        assert (facts["pairs_trained"], facts["pairs_lacking"]) == (len(pairs) - 1, 1)
    with Run.open(recipe_of(tiny_folder, tmp_path / "none", "sppo")) as run:
        pairs = make_pairs(run, judge(run, sample(run, 1)))
        with pytest.raises(PairError, match="'sppo' reads p_chosen, p_rejected, which none"):
            train(run, 1, [replace(pair, p_chosen=None) for pair in pairs])
