"""Averaged weights: exact means, shard by shard; what a run exports, and that changing one's mind is cheap."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_loop import contents, recipe_for
from tiny_chat import write_tiny_policy
from transformers import AutoModelForCausalLM

from nashtune.errors import ModelError, RecipeError, StoreError
from nashtune.loop import improve
from nashtune.model.averaging import INDEX, average_policies
from nashtune.model.loading import fingerprint
from nashtune.records import Policy
from nashtune.run import Run
from nashtune.show import print_status, status_json
from nashtune.summaries import AVERAGE


def policy(folder: Path, seed: int, dtype: torch.dtype = torch.float32, **saved: str) -> Policy:
    """A tiny policy with noise of its own on every weight."""
    write_tiny_policy(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    (folder / "model.safetensors").unlink()
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        weight.data += torch.randn(weight.shape, generator=generator).to(dtype)
    model.save_pretrained(folder, **saved)
    return Policy(folder, fingerprint(folder), folder.name)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        found |= load_file(file)
    return found


def test_averaged_weights_are_the_mean_rounded_once(tmp_path: Path) -> None:
    members = [policy(tmp_path / "0", 0), policy(tmp_path / "1", 1), policy(tmp_path / "2", 2, max_shard_size="60KB")]
    average_policies(members, tmp_path / "mean")
    found, parts = weights(tmp_path / "mean"), [weights(member.folder) for member in members]
    assert found.keys() == parts[0].keys()
    for name, tensor in found.items():
        assert tensor.dtype == torch.float32
        exact = sum(part[name].double() for part in parts) / 3
        assert torch.equal(tensor, exact.float()), name
        assert not torch.equal(tensor, parts[2][name])
    assert len(list((tmp_path / "mean").glob("*.safetensors"))) > 1  # divided as the last policy is
    AutoModelForCausalLM.from_pretrained(tmp_path / "mean")


def test_bfloat16_policies_have_a_float32_average(tmp_path: Path) -> None:
    members = [policy(tmp_path / str(n), n, dtype=torch.bfloat16, max_shard_size="1GB") for n in (0, 1)]
    average_policies(members, tmp_path / "mean")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "mean", dtype="auto")
    assert model.dtype == torch.float32
    name, tensor = next(iter(weights(tmp_path / "mean").items()))
    assert torch.equal(tensor, sum(weights(m.folder)[name].float() for m in members) / 2)
    assert not (tmp_path / "mean" / INDEX).exists()


def test_policies_of_other_shapes_are_refused(tmp_path: Path) -> None:
    members = [policy(tmp_path / "0", 0), Policy(write_tiny_policy(tmp_path / "1", family="qwen3"), "x", "1")]
    with pytest.raises(ModelError, match="accepted: policies of one run"):
        average_policies(members, tmp_path / "mean")
    assert not (tmp_path / "mean").exists()


def test_a_run_exports_what_the_recipe_says_and_may_change_its_mind(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"iterations": 3, "prompts": {"per_iteration": 4}, "validate": {"payoffs": True}}
    improve(recipe_for(tiny_folder, tmp_path, **changes))
    run = Run.read(tmp_path / "tiny")
    best = run.best()
    assert best is not None
    assert json.loads((run.folder / "export.json").read_text())["iteration"] == best.iteration
    kept = {name: value for name, value in contents(run.folder).items() if name.startswith("iteration-")}

    row = improve(recipe_for(tiny_folder, tmp_path, **changes, average="last"))
    assert row is not None
    assert row.iteration == 3
    assert _same(run.folder / "best", run.iteration_folder(3) / "policy")
    assert "tiny, iteration 3" in (run.folder / "best" / "README.md").read_text()

    row = improve(recipe_for(tiny_folder, tmp_path, **changes, average="weights"))
    assert row is not None
    assert row.iteration == AVERAGE
    mean = {
        name: (sum(weights(run.iteration_folder(t) / "policy")[name].double() for t in (1, 2, 3)) / 3).float()
        for name in weights(run.folder / "best")
    }
    assert all(torch.equal(tensor, mean[name]) for name, tensor in weights(run.folder / "best").items())
    card = (run.folder / "best" / "README.md").read_text()
    assert "tiny, average of iterations" in card
    assert "| **average** |" in card
    assert {n: v for n, v in contents(run.folder).items() if n.startswith("iteration-")} == kept  # nothing done again

    run = Run.read(run.folder)
    status = json.loads(json.dumps(status_json(run), allow_nan=False))
    average = status["average"]
    assert status["finished"]
    assert status["exported"]["average"] == "weights"
    assert average["iterations"] == [1, 2, 3]
    for rival in ("initial", "previous", "teacher"):
        assert 0 <= average[f"win_rate_vs_{rival}"]["value"] <= 1
    assert average["payoffs"]["policies"] == [0, 1, 2, 3, AVERAGE]
    assert average["payoffs"]["matrix"][4][3] == average["win_rate_vs_previous"]
    print_status(run)
    shown = capsys.readouterr().out
    assert "best/   the average of iterations 1 to 3" in shown
    assert re.search(r"│ +average +│", shown)

    before = contents(run.folder)
    improve(run.recipe)
    assert contents(run.folder) == before
    run.rollback(2)
    assert Run.read(run.folder).averaged() is None
    assert not (run.folder / "average").exists()
    assert not (run.folder / "export.json").exists()
    assert [len(s.payoffs.policies) for s in run.summaries() if s.payoffs] == [2, 3]


def _same(one: Path, other: Path) -> bool:
    return all(torch.equal(tensor, weights(other)[name]) for name, tensor in weights(one).items())


def test_every_policy_meets_every_other_only_where_the_recipe_asks_for_it(tiny_folder: Path, tmp_path: Path) -> None:
    small = {"iterations": 3, "prompts": {"per_iteration": 4}}
    for name, payoffs in (("some", False), ("all", True)):
        improve(recipe_for(tiny_folder, tmp_path / name, **small, validate={"payoffs": payoffs}))
    some, every = (Run.read(tmp_path / name / "tiny").summaries() for name in ("some", "all"))
    assert [s.payoffs.unknown for s in some if s.payoffs] == [0, 0, 1]
    assert [s.payoffs.unknown for s in every if s.payoffs] == [0, 0, 0]
    for summary in (*some[1:], *every[1:]):
        assert summary.payoffs is not None
        assert summary.exploitability == summary.payoffs.exploitability["last"]
        assert summary.payoffs.matrix[-1][-2] == summary.win_rate_vs_previous
        assert summary.payoffs.matrix[-1][0] == summary.win_rate_vs_initial
        assert summary.payoffs.teacher[-1] == summary.win_rate_vs_teacher
    one, other = some[3].payoffs, every[3].payoffs
    assert one is not None
    assert other is not None
    assert one.matrix[3][1] is None
    assert one.equilibrium is None
    assert sum(other.equilibrium or ()) == pytest.approx(1)


def test_an_average_of_fewer_iterations_makes_room(tiny_folder: Path, tmp_path: Path) -> None:
    changes = {"prompts": {"per_iteration": 4}, "average": "weights", "validate": {"kl_samples": 0}}
    improve(recipe_for(tiny_folder, tmp_path, **changes, iterations=1))
    run = Run.read(tmp_path / "tiny")
    assert _same(run.folder / "best", run.iteration_folder(1) / "policy")
    improve(recipe_for(tiny_folder, tmp_path, **changes, iterations=2))
    run = Run.read(tmp_path / "tiny")
    assert run.stage(AVERAGE, "weights").record()["facts"]["iterations"] == [1, 2]
    assert not _same(run.folder / "best", run.iteration_folder(1) / "policy")
    assert [s.kl_from_previous for s in run.summaries()] == [None] * 3
    assert not list(run.folder.glob("iteration-*/kl-*"))


def test_settings_that_cannot_be_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"average is 'weights'.*accepted: average 'best' or 'last'"):
        recipe_for(tiny_folder, tmp_path, average="weights", sampling={"engine": "scripted"})
    plain = recipe_for(tiny_folder, tmp_path)
    for changes in ({"average": "last"}, {"validate": {"kl_samples": 5}}, {"validate": {"payoffs": False}}):
        assert recipe_for(tiny_folder, tmp_path, **changes).identity_hash() == plain.identity_hash()
    assert recipe_for(tiny_folder, tmp_path, validate={"payoffs": True}).identity_hash() != plain.identity_hash()


def test_a_policy_that_is_gone_cannot_be_exported(tiny_folder: Path, tmp_path: Path) -> None:
    small = {"iterations": 1, "prompts": {"per_iteration": 4}, "validate": {"kl_samples": 0}}
    improve(recipe_for(tiny_folder, tmp_path, **small, average="last"))
    run = Run.read(tmp_path / "tiny")
    shutil.rmtree(run.iteration_folder(1) / "policy")
    improve(run.recipe)  # it lies in best/ already
    shutil.rmtree(run.folder / "best")
    with pytest.raises(StoreError, match="its weights were removed"):
        improve(run.recipe)
