"""What surrounds the vLLM engine: settings, devices, adapters, the start-up check, and engines that rest between stages."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_chat import tiny_recipe

from nashtune.errors import RecipeError, SamplingError
from nashtune.model.loading import find_policy, load_tokenizer
from nashtune.recipe import PolicySection, Recipe, SamplingSection, VllmSection, parse_recipe
from nashtune.records import Policy
from nashtune.sampling.on_vllm import place
from nashtune.sampling.on_vllm.adapters import base_of, compose, rank_of, served_rank
from nashtune.sampling.on_vllm.check import compare, plain_logprobs, probe
from nashtune.sampling.on_vllm.place import child_variables, visible_devices, worker_environments
from nashtune.sampling.on_vllm.target import Target
from nashtune.sampling.role import Sampler
from nashtune.scale.local import LocalEngine, Unit
from nashtune.store.files import write_json


def recipe(tmp_path: Path, vllm: dict[str, Any] | None = None, engine: str = "vllm", **changes: Any) -> Recipe:
    sampling = {"engine": engine} | ({"vllm": vllm} if vllm is not None else {}) | changes.pop("sampling", {})
    raw = tiny_recipe(tmp_path, sampling=sampling, **changes)
    if "slots" not in sampling:
        del raw["sampling"]["slots"]
    return parse_recipe(raw)


def test_settings_of_vllm_change_no_identity_but_serving_adapters_does(tmp_path: Path) -> None:
    lora = {"lora": {"rank": 8}}
    plain = recipe(tmp_path, train=lora)
    tuned = {"python": "/somewhere/python", "tensor_parallel": 2, "gpu_memory_utilization": 0.5, "check": False}
    assert recipe(tmp_path, tuned, train=lora).identity_hash() == plain.identity_hash()
    assert recipe(tmp_path, {"adapters": "served"}, train=lora).identity_hash() != plain.identity_hash()
    native = recipe(tmp_path, engine="native", train=lora)
    assert "vllm" not in native.identity()["sampling"]  # runs begun before there was vLLM go on
    assert native.identity_hash() != plain.identity_hash()


@pytest.mark.parametrize(
    ("told", "settings"),
    [
        ("'native', which does not read sampling.vllm.check; remove", {"engine": "native", "vllm": {"check": False}}),
        ("sampling.mixture is 0.5, which mixes", {"sampling": {"mixture": 0.5}}),
        ("sampling.slots is 8, which sampling.engine 'vllm' does not read", {"sampling": {"slots": 8}}),
        ("max_model_len is 64 but prompts.max_prompt_tokens", {"vllm": {"max_model_len": 64}}),
        ("cpu_cores has 3 cores; accepted: a multiple of .* is 2", {"vllm": {"cpu_cores": [0, 1, 2], "tensor_parallel": 2}}),
        ("'served' but train.lora is not set", {"vllm": {"adapters": "served"}}),
        ("add up to 600; accepted: up to 512", {"vllm": {"adapters": "served"}, "train": {"lora": {"rank": 300}}}),
    ],
)  # fmt: skip
def test_settings_that_vllm_cannot_serve_are_refused(tmp_path: Path, told: str, settings: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=told):
        recipe(tmp_path, **settings)


def test_more_answers_than_slots_are_no_contradiction_for_vllm(tmp_path: Path) -> None:
    assert recipe(tmp_path, sampling={"k": 64}).sampling.k == 64


def test_workers_get_gpus_and_cores_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3,5,7")
    section = VllmSection(tensor_parallel=2, cpu_cores=(0, 1, 2, 3))
    assert [e["CUDA_VISIBLE_DEVICES"] for e in worker_environments(section, 2)] == ["2,3", "5,7"]
    assert [e["NASHTUNE_VLLM_CORES"] for e in worker_environments(section, 2)] == ["0,1", "2,3"]
    with pytest.raises(
        SamplingError, match=r"workers 3 x sampling\.vllm\.tensor_parallel 2 need 6 GPUs; visible here: 4"
    ):
        worker_environments(VllmSection(tensor_parallel=2), 3)
    assert visible_devices({}, 3) == ["0", "1", "2"]
    assert visible_devices({"CUDA_VISIBLE_DEVICES": ""}, 3) == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(place, "gpus", list)
    assert worker_environments(VllmSection(), 2) == [{}, {}]


def test_cores_bind_the_threads_of_each_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    section = VllmSection(tensor_parallel=2, cpu_cores=(4, 5, 6, 7), cpu_kv_cache_gb=3)
    found = child_variables(section)
    assert (found["VLLM_CPU_OMP_THREADS_BIND"], found["OMP_NUM_THREADS"]) == ("4,5|6,7", "2")
    assert found["VLLM_CPU_KVCACHE_SPACE"] == "3"
    monkeypatch.setenv("NASHTUNE_VLLM_CORES", "6,7")  # a worker's share
    assert child_variables(section)["VLLM_CPU_OMP_THREADS_BIND"] == "6|7"
    monkeypatch.delenv("NASHTUNE_VLLM_CORES")
    assert "OMP_NUM_THREADS" not in child_variables(VllmSection())


# ---- adapters ------------------------------------------------------------------------------------------------------------


def adapter(folder: Path, rank: int, alpha: float, seed: int, name: str = "q_proj", **config: Any) -> Path:
    torch.manual_seed(seed)
    folder.mkdir()
    stem = f"base_model.model.model.layers.0.self_attn.{name}"
    weights = {f"{stem}.lora_A.weight": torch.randn(rank, 12), f"{stem}.lora_B.weight": torch.randn(10, rank)}
    save_file(weights, folder / "adapter_model.safetensors")
    write_json(folder / "adapter_config.json", {"r": rank, "lora_alpha": alpha, "use_rslora": False, **config})
    return folder


def product(folder: Path, scale: float) -> torch.Tensor:
    """[out, in]: what an adapter adds to the weight."""
    weights = load_file(folder / "adapter_model.safetensors")
    a, b = (next(v for k, v in weights.items() if f"lora_{side}" in k) for side in "AB")
    return scale * b @ a


def test_adapters_trained_one_after_the_other_are_served_as_their_exact_sum(tmp_path: Path) -> None:
    one = adapter(tmp_path / "1", 4, 8, 1)
    two = adapter(tmp_path / "2", 2, 6, 2, use_rslora=True)
    whole = compose([one, two], tmp_path / "whole")
    assert rank_of([one, two]) == rank_of([whole]) == 6
    torch.testing.assert_close(product(whole, 1.0), product(one, 8 / 4) + product(two, 6 / 2**0.5))


def test_adapters_that_do_not_add_up_are_refused(tmp_path: Path) -> None:
    one, other = adapter(tmp_path / "1", 4, 8, 1), adapter(tmp_path / "2", 4, 8, 2, name="v_proj")
    with pytest.raises(SamplingError, match="adapts other modules"):
        compose([one, other], tmp_path / "a")
    with pytest.raises(SamplingError, match="not a plain LoRA adapter"):
        compose([one, adapter(tmp_path / "3", 4, 8, 2, use_dora=True)], tmp_path / "b")
    assert (served_rank(1), served_rank(9), served_rank(512)) == (8, 16, 512)
    with pytest.raises(SamplingError, match="rank 513 together; accepted: up to 512"):
        served_rank(513)
    assert base_of(one) is None


# ---- the start-up check and what log-probs are called -------------------------------------------------------------------


def test_the_check_takes_rounding_and_refuses_another_policy(tiny_folder: Path) -> None:
    policy = find_policy(PolicySection(model=str(tiny_folder / "policy")))
    ids = probe(load_tokenizer(policy), 64)
    assert len(ids) == 63
    plain = plain_logprobs(policy, ids, torch.float32)
    assert len(plain) == 62
    assert all(value < 0 for value in plain)
    compare(policy, plain, [value + 1e-3 for value in plain], torch.float32)
    for wrong in (plain[::-1], [float("nan")] * 62):
        with pytest.raises(SamplingError, match="differ from its plain forward pass"):
            compare(policy, plain, wrong, torch.float32)


def test_log_probs_of_vllm_are_not_called_those_of_the_initial_policy() -> None:
    policy = Policy(Path(), "f", "name")
    native = Sampler(policy, SamplingSection(), 2, 0, "x", is_initial=True)
    vllm = Sampler(policy, SamplingSection(engine="vllm"), 2, 0, "x", is_initial=True, served=Target(policy, policy))
    assert native.tells_initial
    assert not vllm.tells_initial
    assert native.key() != vllm.key()


# ---- engines at rest -------------------------------------------------------------------------------------------------------


@dataclass
class Thing:
    """Something costly to start; notes what happens to it."""

    kind: str
    worth_keeping: bool = True
    told: list[str] = field(default_factory=list)

    def rest(self) -> bool:
        self.told.append("rest")
        return self.worth_keeping

    def close(self) -> None:
        self.told.append("close")


@dataclass(frozen=True)
class Opens:
    """A role that opens a Thing, or goes on with one of its kind."""

    name: str
    kind: str
    opened: list[Thing]
    worth_keeping: bool = True

    def key(self) -> str:
        return self.name

    def open(self) -> Thing:
        self.opened.append(Thing(self.kind, self.worth_keeping))
        return self.opened[-1]

    def reopen(self, resting: Any) -> Any:
        return resting if resting.kind == self.kind else None

    def work(self, opened: Thing, unit: Unit) -> dict[str, float]:
        opened.told.append(self.name)
        return {}


@dataclass(frozen=True)
class Plain:
    """A role that knows nothing of rest."""

    def key(self) -> str:
        return "plain"

    def open(self) -> str:
        return "model"

    def work(self, opened: str, unit: Unit) -> dict[str, float]:
        return {"pid": os.getpid(), "share": float(os.environ.get("A_SHARE", "nan"))}


def units(folder: Path, count: int) -> list[Unit]:
    return [Unit(i, folder / "in", folder / f"{i}") for i in range(count)]


def test_an_engine_rests_while_others_work_and_is_opened_again(tmp_path: Path) -> None:
    local, opened = LocalEngine(), []
    for role in (Opens("a", "x", opened), Plain(), Opens("b", "x", opened)):
        list(local.run(role, units(tmp_path, 1)))
    local.release()
    list(local.run(Opens("c", "x", opened), units(tmp_path, 1)))
    assert [thing.told for thing in opened] == [["a", "rest", "b", "rest", "c"]]
    list(local.run(Opens("d", "y", opened), units(tmp_path, 1)))
    assert opened[0].told[-2:] == ["rest", "close"]  # of no use to d, and d's would not fit beside it
    local.close()
    assert opened[1].told == ["d", "close"]


def test_an_engine_that_ended_itself_at_rest_is_not_kept(tmp_path: Path) -> None:
    local, opened = LocalEngine(), []
    for name in "ab":
        list(local.run(Opens(name, "x", opened, worth_keeping=False), units(tmp_path, 1)))
    assert [thing.told for thing in opened] == [["a", "rest"], ["b"]]


def test_workers_with_shares_of_the_machine_do_every_unit(tmp_path: Path) -> None:
    local = LocalEngine(2, environments=[{"A_SHARE": "1"}, {"A_SHARE": "2"}])
    try:
        one = [facts for _, facts in local.run(Plain(), units(tmp_path, 1))]
        local.release()
        both = [facts for _, facts in local.run(Plain(), units(tmp_path, 2))]
    finally:
        local.close()
    assert [facts["share"] for facts in one] == [1]
    assert sorted(facts["share"] for facts in both) == [1, 2]
    assert os.getpid() not in {facts["pid"] for facts in one + both}
    assert "A_SHARE" not in os.environ
