"""The recipe: every shipped one parses, bad ones are refused with field, value and what is accepted."""

import ast
import importlib
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from pydantic import Field

import nashtune.recipe
from nashtune.errors import RecipeError
from nashtune.objectives import OBJECTIVES
from nashtune.recipe import (
    ADDED,
    NEUTRAL,
    SUITE_SECTIONS,
    Asking,
    EvaluationFile,
    EvaluationScale,
    HostedVllm,
    InstructionSection,
    LoraSection,
    PairsSection,
    Recipe,
    Section,
    SuiteSection,
    TrainSection,
    VllmProcessSection,
    VllmSection,
    identity,
    load_recipe,
    parse_recipe,
    uncounted,
)
from nashtune.recipe.launch import LaunchSection
from nashtune.recipe.loading import _sections_in
from nashtune.recipe.objectives import SECTIONS, ObjectiveSection
from nashtune.starter import write_starter
from nashtune.suites.registry import SUITES

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))


PANEL = {
    "kind": "panel",
    "members": [{"oracle": {"kind": "scripted"}}, {"oracle": {"kind": "preference_model", "folder": "f"}}],
}


def minimal(**changes: Any) -> dict[str, Any]:
    base = {"name": "r", "policy": {"model": "m"}, "prompts": {"source": "p.jsonl"}, "oracle": {"kind": "rules"}}
    return base | changes


@pytest.mark.parametrize("file", RECIPES, ids=lambda f: f.stem)
def test_every_shipped_recipe_parses_and_survives_a_round_trip(file: Path) -> None:
    recipe = load_recipe(file)
    assert parse_recipe(recipe.written()) == recipe
    assert parse_recipe(recipe.written()).identity_hash() == recipe.identity_hash()


def test_the_papers_values_are_exact() -> None:
    recipe = load_recipe(RECIPES[0].parent / "paper-7b.yaml")
    assert (recipe.sampling.k, recipe.sampling.top_p, recipe.sampling.temperature) == (5, 0.95, 0.7)
    assert (recipe.train.batch_size, recipe.train.learning_rate, recipe.train.epochs) == (64, 5e-5, 1)
    assert (recipe.objective.name, recipe.objective.beta, recipe.objective.alpha) == ("dno-prct", 0.1, 0.005)
    assert (recipe.replay.fraction, recipe.replay.decay, recipe.iterations) == (0.3, 0.5, 3)
    assert (recipe.pairs.positive_score, recipe.pairs.margin, recipe.pairs.student_margin) == (5, 2, 1)
    assert recipe.prompts.per_iteration is None  # all prompts, in three disjoint parts


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"polcy": {}}, ["polcy", "unknown key", "accepted keys", "policy"]),
        ({"policy": {"model": "m", "modle": 1}}, ["policy.modle", "value 1", "revision"]),
        ({"oracle": {"kind": "rules", "guard": {"min": 3}}}, ["guard.min", "min_words"]),
        (
            {"oracle": {"kind": "judge"}},
            ["oracle", "'people', 'panel', 'cascade', 'scripted'", "judge"],
        ),
        ({"sampling": {"k": 0}}, ["sampling.k", "greater than or equal to 1", "received 0"]),
        ({"sampling": {"k": 60}}, ["sampling.k is 60", "slots"]),
        ({"sampling": {"temperature": 0, "top_p": 0.9}}, ["temperature is 0", "top_p"]),
        ({"sampling": {"k": 1}}, ["sampling.k is 1", "no teacher"]),
        ({"teacher": {"kind": "column"}}, ["teacher_column is not set"]),
        ({"prompts": {"source": "p", "teacher_column": "gold"}}, ["teacher_column is 'gold'", "nothing would read it"]),
        ({"pairs": {"rule": "restrictive"}}, ["restrictive", "teacher.kind is 'none'"]),
        ({"pairs": {"rule": "best"}}, ["pairs.rule", "best_worst", "received 'best'"]),
        ({"objective": {"name": "sft", "beta": 0.1}}, ["objective.sft.beta", "unknown key", "accepted keys: name"]),
        ({"objective": {"name": "dpp"}}, ["objective", "dpp", "'dno-prct', 'dno'"]),
        ({"objective": {"name": "inpo", "tau": 0.2, "eta": 0.1}}, ["objective.tau is 0.2", "at most objective.eta"]),
        ({"method": "dnoo"}, ["method is 'dnoo'", "accepted: dno, dno-soft"]),
        ({"method": "spin"}, ["'teacher_wins'", "teacher.kind is 'none'"]),
        ({"method": "dno-restrictive"}, ["'restrictive'", "teacher.kind is 'none'"]),
        ({"method": "sppo", "sampling": {"k": 2}}, ["'sppo'", "sampling.k is 2; accepted: 3 or more"]),
        ({"method": "sppo", "sampling": {"policy": "initial"}}, ["sampling.policy is 'initial'; accepted: 'current'"]),
        ({"method": "rspo", "sampling": {"mixture": 0.1}}, ["'rspo'", "sampling.mixture is 0.1; accepted: 0"]),
        (
            {"method": "rebel", "oracle": {"kind": "people", "folder": "f"}},
            ["'rebel' reads scores", "'people' only compares", "an oracle that scores"],
        ),
        ({"method": "rebel", "oracle": PANEL}, ["'rebel' reads scores", "'panel' only compares"]),
        (
            {"method": "spin", "teacher": {"kind": "scripted"}, "objective": {"name": "sppo"}},
            ["'sppo' reads the oracle's versus_policy", "'teacher_wins' does not ask it"],
        ),
        (
            {"sampling": {"mixture": 0.5, "engine": "scripted"}},
            ["sampling.mixture is 0.5", "sampling.engine is 'scripted'", "accepted: 'native', or mixture 0"],
        ),
        ({"sampling": {"mixture": 0.5, "policy": "initial"}}, ["sampling.mixture is 0.5", "mixed with itself"]),
        ({"sampling": {"mixture": 1.5}}, ["sampling.mixture", "less than or equal to 1"]),
        (
            {"method": "dno-regularized-mixed", "objective": {"eta": 0.2}},
            ["sampling.mixture is 0.1", "objective.tau / objective.eta = 0.05", "that number, or 0"],
        ),
        ({"replay": {"fraction": "all", "decay": 0.5}}, ["replay.fraction is 'all'", "replay.decay would not be read"]),
        ({"pairs": {"rule": "best_worst", "margin": 3}}, ["'best_worst' does not read pairs.margin"]),
        ({"sampling": {"policy": "first"}}, ["sampling.policy", "'current' or 'initial'", "first"]),
        ({"train": {"learning_rate": [1e-5, -1]}}, ["train.learning_rate is -1"]),
        (
            {"train": {"optimizer": "adamw_8bit"}, "scale": {"train_processes": 2}},
            ["scale.train_processes is 2", "train.optimizer 'adamw_8bit'", "accepted: 1"],
        ),
        (
            {"train": {"activation_gb": 2, "liger": True}, "scale": {"train_processes": 2}},
            ["train.activation_gb is for one process", "train.liger is for one process"],
        ),
        (
            {"train": {"compile": True}, "scale": {"train_processes": 2}},
            ["train.compile is for one process"],
        ),
        (
            {"train": {"compile": True, "liger": True}},
            ["train.compile and train.liger are both true"],
        ),
        ({"scale": {"train_nodes": 2}}, ["scale.train_nodes is 2", "scale.launcher is 'local'", "'slurm' or 'ray'"]),
        (
            {"scale": {"train_nodes": 2, "launcher": "ray"}, "train": {"liger": True}},
            ["scale.train_nodes is 2", "train.liger is for one process"],
        ),
        (
            {"scale": {"train_nodes": 2, "min_train_nodes": 3, "launcher": "slurm"}},
            ["scale.min_train_nodes is 3", "at most train_nodes"],
        ),
        ({"scale": {"min_train_nodes": 1}}, ["scale.min_train_nodes is 1", "with launcher 'slurm' or 'ray'"]),
        (
            {"scale": {"rank_prefix": ["apptainer"], "launcher": "ray"}},
            ["scale.rank_prefix is read by launcher 'slurm' alone"],
        ),
        (
            {"train": {"activation_gb": 2, "gradient_checkpointing": True}},
            ["train.activation_gb is 2", "train.gradient_checkpointing is true", "one of the two"],
        ),
        (
            {"train": {"attention": "varlen", "precision": "float32"}},
            ["train.attention is 'varlen'", "train.precision is 'float32'", "'autocast'"],
        ),
        ({"train": {"lora": {"base": "int8"}}}, ["train.lora.base", "'full' or 'nf4'", "int8"]),
        (
            {"validate": {"select": "satisfied_and_good"}, "oracle": {"kind": "scripted"}},
            ["satisfied_and_good", "rules"],
        ),
        ({"replay": {"fraction": 0, "decay": 0.5}}, ["replay.decay would not be read"]),
        ({"name": "a/b"}, ["name", "a/b"]),
    ],
)
def test_bad_settings_are_refused(changes: dict[str, Any], told: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(minimal(**changes), "my.yaml")
    assert "my.yaml" in str(caught.value)
    for text in told:
        assert text in str(caught.value)


def test_missing_sections_are_all_named() -> None:
    with pytest.raises(RecipeError, match=r"(?s)policy: required.*oracle: required"):
        parse_recipe({"name": "x", "prompts": {"source": "p"}})


def test_overrides_replace_values_and_bad_ones_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump(minimal()))
    recipe = load_recipe(file, ["train.batch_size=8", "train.learning_rate=[1.0e-5, 2.0e-6]", "seed=3"])
    assert (recipe.train.batch_size, recipe.seed) == (8, 3)
    assert [recipe.learning_rate(t) for t in (1, 2, 3)] == [1e-5, 2e-6, 2e-6]
    for bad in ("train.batch_size", "=3", "name.x=3", "seed=[1"):
        with pytest.raises(RecipeError, match="override"):
            load_recipe(file, [bad])


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"none\.yaml: no such recipe"):
        load_recipe(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(RecipeError, match=r"bad\.yaml: not valid YAML"):
        load_recipe(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- a")
    with pytest.raises(RecipeError, match="expected a mapping"):
        load_recipe(tmp_path / "list.yaml")


def sections(section: type[Section], seen: set[type[Section]]) -> set[type[Section]]:
    if section not in seen:
        seen.add(section)
        for info in section.model_fields.values():
            for inner in _sections_in(info.annotation):
                sections(inner, seen)
    return seen


def attributes_read() -> set[str]:
    """Every name that any module reads as an attribute; a declaration or a docstring is no reading."""
    files = (Path(__file__).parent.parent / "nashtune").rglob("*.py")
    nodes = (node for file in files for node in ast.walk(ast.parse(file.read_text())))
    return {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)}


def unread(section: type[Section], read: set[str]) -> set[str]:
    return {name for name in section.model_fields if name not in read and name not in ("kind", "suite")}


def test_every_setting_is_explained_and_read_somewhere() -> None:
    read = attributes_read()
    for section in sections(Recipe, set()) | sections(EvaluationFile, set()):
        for name, info in section.model_fields.items():
            inner = bool(getattr(info.annotation, "model_fields", None)) or name in {
                "kind",
                "teacher",
                "oracle",
                "suite",
            }
            assert info.description or inner or section is Recipe, f"{section.__name__}.{name} has no docstring"
        if not issubclass(section, ObjectiveSection):  # tests/test_objectives.py: each of its settings changes the loss
            assert not unread(section, read), f"nothing reads these of {section.__name__}"


def test_a_setting_that_nothing_reads_is_noticed() -> None:
    class Padded(PairsSection):
        margin_of_nobody: float = 0.0
        """Read nowhere, though its beginning, margin, is."""

    assert unread(Padded, attributes_read()) == {"margin_of_nobody"}


def test_every_section_of_every_module_belongs_to_the_recipe_and_is_exported() -> None:
    package = Path(str(nashtune.recipe.__file__)).parent
    modules = [importlib.import_module(f"nashtune.recipe.{f.stem}") for f in package.glob("*.py") if f.stem[0] != "_"]
    declared = {
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Section) and value.__module__ == module.__name__
    }
    made = set(SECTIONS.values())  # one for each row of the table of objectives
    assert declared == sections(Recipe, set()) - made | {
        Section,
        ObjectiveSection,
        EvaluationFile,
        EvaluationScale,
        SuiteSection,
        InstructionSection,
        LaunchSection,
        Asking,
        VllmProcessSection,
    }
    assert made <= sections(Recipe, set())
    assert set(SECTIONS) == set(OBJECTIVES)
    assert {section.__name__ for section in declared} <= set(nashtune.recipe.__all__)


def test_a_field_added_later_counts_only_where_it_is_set() -> None:
    class Before(Section):
        kept: int = 1

    class After(Section):
        kept: int = 1
        new: int = Field(default=3, json_schema_extra=ADDED)

    assert identity(After()) == identity(Before()) == {"kept": 1}
    assert identity(After(new=3)) == identity(Before())
    assert identity(After(new=4)) == {"kept": 1, "new": 4}


def test_training_settings_left_at_their_defaults_are_left_out_of_what_a_run_began_with() -> None:
    train = TrainSection(lora=LoraSection(), activation_gb=1.0)
    before = train.model_dump(exclude={**uncounted(train), "learning_rate": True})
    assert not {"attention", "liger", "optimizer", "activation_gb", "checkpoint_steps"} & before.keys()
    assert before["lora"] == {"rank": 16, "alpha": 32, "target_modules": "all-linear"}
    changed = TrainSection(lora=LoraSection(base="nf4"), attention="blocks", optimizer="adamw_8bit", liger=True)
    after = changed.model_dump(exclude={**uncounted(changed), "learning_rate": True})
    assert (after["attention"], after["liger"], after["optimizer"]) == ("blocks", True, "adamw_8bit")
    assert after["lora"]["base"] == "nf4"
    assert after.keys() == identity(changed).keys() - {"learning_rate"}


def test_a_section_added_later_counts_only_where_what_decides_results_in_it_is_set() -> None:
    class Inner(Section):
        speed: int = Field(default=1, json_schema_extra=NEUTRAL)
        decides: int = 1

    class After(Section):
        kept: int = 1
        new: Inner = Field(default=Inner(), json_schema_extra=ADDED)

    assert identity(After(new=Inner(speed=9))) == {"kept": 1}
    assert identity(After(new=Inner(speed=9, decides=2))) == {"kept": 1, "new": {"decides": 2}}


def test_neutral_settings_change_no_identity_and_identity_settings_do() -> None:
    base = parse_recipe(minimal())
    neutral = {
        "folder": "elsewhere",
        "shared": "a/folder",
        "scale": {"engine": "ray", "ray": {"address": "auto", "max_actors": 4}},
        "health": {"min_usable": 0.5, "stop_on_alarm": True},
        "train": {"checkpoint_steps": 7, "activation_gb": 2.0},
    }
    assert parse_recipe(minimal(**neutral)).identity_hash() == base.identity_hash()
    declared = {
        f"{s.__name__}.{n}"
        for s in sections(Recipe, set())
        for n, i in s.model_fields.items()
        if i.json_schema_extra == NEUTRAL
    }
    assert declared == {
        "Recipe.average",
        "Recipe.evaluate",
        *(f"HarnessSection.{name}" for name in ("batch_size", "device", "python", "regression_errors")),
        *(f"{suite.__name__}.{name}" for suite in SUITE_SECTIONS.values() for name in ("name", "when")),
        "AlpacaEvalSection.difficulty",
        "Recipe.folder",
        "ValidateSection.kl_samples",
        "Recipe.health",
        "Recipe.shared",
        "ScaleSection.engine",
        "ScaleSection.ray",
        "ScaleSection.workers",
        "ScaleSection.train_processes",
        *(f"ScaleSection.{name}" for name in LaunchSection.model_fields),
        "TrainSection.checkpoint_steps",
        "TrainSection.activation_gb",
        "Recipe.ledger",
        "BudgetSection.usd",
        "BudgetSection.usd_per_iteration",
        "ScaleSection.overlap",
        "ScaleSection.references",
        "ScaleSection.store",
        *(f"EngineSection.{name}" for name in ("api_key_env", "api_key_file", "price", "probe", "on_model_change")),
        *(f"EngineSection.{name}" for name in ("concurrency", "timeout_s", "max_attempts", "token_limit")),
        *(f"EngineSection.{name}" for name in ("requests_per_minute", "tokens_per_minute")),
        *(f"EngineSection.{name}" for name in ("batch", "batch_size", "batch_poll_s")),
        "PeopleOracle.poll_s",
        "ScriptedOracle.concurrency",
        "ScriptedOracle.latency_s",
        "RewardModelOracle.batch_size",
        "PreferenceModelOracle.batch_tokens",
        *(f"VllmSection.{name}" for name in VllmSection.model_fields if name != "adapters"),
        *(f"HostedVllm.{name}" for name in HostedVllm.model_fields),
        *(f"HostedSection.{name}" for name in ("slots", "actors", "gpus")),
    }
    assert parse_recipe(minimal(train={"order": "shuffled"})).identity_hash() == base.identity_hash()
    train = ({"train": {"batch_size": 2}}, {"train": {"order": "judged"}})
    for change in ({"seed": 1}, {"sampling": {"k": 4}}, *train, {"oracle": {"kind": "scripted"}}):
        assert parse_recipe(minimal(**change)).identity_hash() != base.identity_hash()


def test_init_writes_a_recipe_that_parses_whatever_it_is_given(tmp_path: Path) -> None:
    file = tmp_path / "my recipe.yaml"
    given = {
        "model": "org/na: me#1",
        "prompts": "data/it's.jsonl",
        "judge": "gpt-4o",
        "judge_url": "http://127.0.0.1:1/v1",
    }
    write_starter(file, **given, force=False)
    recipe = load_recipe(file)
    assert (recipe.policy.model, recipe.prompts.source, recipe.name) == (given["model"], given["prompts"], "my-recipe")
    with pytest.raises(RecipeError, match="exists already"):
        write_starter(file, **given, force=False)


def test_what_a_policy_is_chosen_by_is_a_figure_of_the_contest_or_of_a_suite_that_looks_at_each_iteration() -> None:
    suite = {"suite": "alpaca_eval", "when": "each"}
    chosen = parse_recipe(minimal(evaluate=[suite], validate={"select": "alpaca_eval_lc"}))
    assert chosen.evaluation("alpaca_eval_lc") == (chosen.evaluate[0], "lc")
    named = [suite | {"name": "ours"}]
    assert parse_recipe(minimal(evaluate=named, validate={"select": "ours_win_rate"})).evaluate[0].called == "ours"
    for evaluate, select, problem in (
        ([], "win_rate", "accepted: win_rate_vs_initial, mean_score, satisfied_and_good, or a metric of a suite"),
        ([suite], "mt_bench", "satisfied_and_good, alpaca_eval_lc, alpaca_eval_win_rate"),
        ([suite | {"when": "end"}], "alpaca_eval_lc", "accepted: when 'each'"),
        ([suite, suite], "mean_score", "2 evaluations called 'alpaca_eval'"),
        ([{"suite": "mt_bench", "data": "d", "mode": "pairwise"}], "mean_score", "baseline is not set"),
        ([{"suite": "mt"}], "mean_score", "'alpaca_eval', 'mt_bench'"),
        ([{"suite": "mt_bench", "dta": "d"}], "mean_score", "accepted keys: .*data, judge"),
    ):
        with pytest.raises(RecipeError, match=problem):
            parse_recipe(minimal(evaluate=evaluate, validate={"select": select}))


def test_evaluations_change_no_identity_and_their_metrics_are_those_of_the_suites() -> None:
    base = parse_recipe(minimal())
    assert parse_recipe(minimal(evaluate=[{"suite": "alpaca_eval"}])).identity_hash() == base.identity_hash()
    assert set(SUITES) == set(SUITE_SECTIONS)
    for name, section in SUITE_SECTIONS.items():
        assert section.model_fields["suite"].annotation == Literal[name]
        assert section.metrics
