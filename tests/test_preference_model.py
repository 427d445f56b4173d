"""The preference model: an antisymmetric head on hidden states, what it can express, and how it is kept."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_chat import write_tiny_policy

from nashtune.errors import OracleError
from nashtune.judging.answer_features import FEATURES, AnswerReader
from nashtune.judging.judge_report import balanced_accuracy, count_cycles, report_on
from nashtune.judging.preference_head import Comparisons, PreferenceHead, calibrate, choose, fit_head
from nashtune.judging.preference_model import (
    Backbone,
    PreferenceModel,
    PreferenceModelOracle,
    Record,
    check_gate,
    locate,
    save,
)
from nashtune.model.loading import load_model
from nashtune.recipe import PreferenceModelOracle as Section
from nashtune.records import Judgment, Message, Prompt, Response

PROMPT = Prompt.make([Message("user", "What is a cave?")])
TEXTS = ["A cave is a hollow.", "Rock.", "", "I do not know, but it is dark in there."]
WIDTH = 128


def random_head(rank: int = 3, seed: int = 0) -> PreferenceHead:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(WIDTH,), (WIDTH,), (WIDTH,), (WIDTH, rank), (WIDTH, rank)]
    centre, scale, w, u, v = (torch.randn(shape, generator=generator) for shape in shapes)
    return PreferenceHead(centre, 3 + scale.abs(), w, u, v, temperature=1.7)


def record_for(policy: Path, kind: str = "general") -> Record:
    predicted, targets = [0.9, 0.2, 0.7, 0.4], [1.0, 0.0, 0.0, 0.5]
    report = report_on(predicted, targets, ["a", "b", "b", "c"], [(3, 2)] * 4, [], seed=0)
    backbone = Backbone(str(policy), locate(str(policy)).fingerprint)
    return Record(kind, backbone, FEATURES, report, {"temperature": 1.7}, {"left_out": {}})


@pytest.fixture(scope="module")
def kept(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kept") / "model"
    save(folder, record_for(tiny_folder / "policy"), random_head())
    return folder


@pytest.fixture(scope="module")
def reader(tiny_folder: Path) -> AnswerReader:
    return AnswerReader(locate(str(tiny_folder / "policy")))


def candidates(texts: list[str], **rest: Any) -> list[Response]:
    return [Response(f"r{k}", PROMPT.id, k, "student", "p", text, **rest) for k, text in enumerate(texts)]


def judged(folder: Path, texts: list[str] = TEXTS, **settings: Any) -> Judgment:
    oracle = PreferenceModelOracle(Section(kind="preference_model", folder=str(folder), **settings))
    return asyncio.run(oracle.judge(PROMPT, candidates(texts), seed=1))


# ---- features ------------------------------------------------------------------------------------------------------------


def test_features_are_those_of_a_plain_forward_pass(reader: AnswerReader, tiny_folder: Path) -> None:
    item = reader.tokens(PROMPT.messages, [(text, True) for text in TEXTS])
    (features,) = reader.read([item])
    model = load_model(locate(str(tiny_folder / "policy")), torch.float32, attention="sdpa").eval()
    for answer, found in zip(item[1], features, strict=True):
        ids = torch.tensor([[*item[0], *answer]], device=model.device)
        with torch.no_grad():
            hidden = model.get_decoder()(input_ids=ids).last_hidden_state[0, len(item[0]) :]
        torch.testing.assert_close(found, torch.cat([hidden[-1], hidden.mean(0)]), atol=1e-4, rtol=1e-4)


def test_neighbours_and_budget_change_no_features(reader: AnswerReader, tiny_folder: Path) -> None:
    other = Prompt.make([Message("user", "And a hill?")])
    items = [reader.tokens(p.messages, [(text, True) for text in TEXTS]) for p in (PROMPT, other)]
    small = AnswerReader(locate(str(tiny_folder / "policy")), batch_tokens=64)
    whole, parts = reader.read(items), small.read(items)
    (alone,) = reader.read([(items[1][0], items[1][1][1:2])])
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(alone[0], whole[1][1], atol=1e-4, rtol=1e-4)


def test_an_answer_that_was_cut_has_no_end_token(reader: AnswerReader) -> None:
    _, (ended, cut, empty) = reader.tokens(PROMPT.messages, [("Rock.", True), ("Rock.", False), ("", False)])
    assert ended[:-1] == cut
    assert empty == ended[-1:]


# ---- the head ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [0, 3])
def test_the_head_is_antisymmetric_to_the_last_bit(rank: int) -> None:
    head = random_head(rank)
    features = 100 * torch.randn(7, WIDTH, generator=torch.Generator().manual_seed(1))
    logits = head.logits(features)
    assert torch.equal(logits, -logits.T)
    i, j = torch.tensor([0, 1, 5]), torch.tensor([3, 2, 6])
    assert torch.equal(head.pair_logits(features, i, j), -head.pair_logits(features, j, i))
    torch.testing.assert_close(head.pair_logits(features, i, j), logits[i, j], atol=1e-3, rtol=1e-4)
    assert head.kind == ("general" if rank else "bradley-terry")


def all_pairs(classes: torch.Tensor, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Places of every pair of answers within a group of consecutive ones."""
    size = len(classes) // groups
    pairs = [(g * size + a, g * size + b) for g in range(groups) for a in range(size) for b in range(a)]
    first, second = zip(*pairs, strict=True)
    return torch.tensor(first), torch.tensor(second)


def test_only_the_general_head_learns_rock_paper_scissors() -> None:
    generator = torch.Generator().manual_seed(0)
    classes = torch.arange(180) % 3
    features = torch.eye(3)[classes] @ torch.randn(3, 24, generator=generator)
    features = features + 0.2 * torch.randn(180, 24, generator=generator)
    first, second = all_pairs(classes, 60)
    targets = ((classes[first] - classes[second]) % 3 == 1).float()
    seen = first < 120
    train = Comparisons(first, second, targets).where(seen.tolist())
    accuracy, cyclic = {}, {}
    for kind in ("general", "bradley-terry"):
        head = fit_head(features, train, kind, 1e-4, seed=0)
        predicted = head.pair_logits(features, first[~seen], second[~seen]) > 0
        accuracy[kind] = float((predicted == (targets[~seen] > 0.5)).float().mean())
        cyclic[kind] = count_cycles([head.logits(features[n : n + 3]).sigmoid().tolist() for n in range(120, 180, 3)])
    assert accuracy["general"] > 0.95
    assert cyclic["general"][0] > 18
    assert accuracy["bradley-terry"] < 0.75  # two of the three edges are what an order can have
    assert cyclic["bradley-terry"] == (0, 20)
    inner = [n >= 90 for n in train.firsts.tolist()]
    assert choose(features, train, inner, ("bradley-terry", "general"), seed=0).kind == "general"


def test_soft_targets_and_temperature_recover_probabilities() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(400, 6, generator=generator)
    strength = features[:, 0]
    first, second = torch.arange(200), torch.arange(200, 400)
    targets = (strength[first] - strength[second]).sigmoid()
    head = fit_head(features, Comparisons(first, second, targets), "bradley-terry", 1e-6, seed=0)
    torch.testing.assert_close(head.pair_logits(features, first, second).sigmoid(), targets, atol=0.02, rtol=0)
    temperature, _ = calibrate(4 * (strength[first] - strength[second]), targets)
    assert temperature == pytest.approx(4, rel=0.05)


def test_a_few_right_comparisons_do_not_ask_for_certainty() -> None:
    logits = torch.tensor([2.0, 3.0, -2.0, 4.0])
    temperature, _ = calibrate(logits, (logits > 0).float())
    assert (logits / temperature).sigmoid().max() < 0.95


def test_the_order_of_a_comparison_changes_no_fit() -> None:
    features = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    first, second, targets = torch.arange(20), torch.arange(20, 40), torch.linspace(0, 1, 20)
    one = fit_head(features, Comparisons(first, second, targets), "bradley-terry", 1e-2, seed=0)
    two = fit_head(features, Comparisons(second, first, 1 - targets), "bradley-terry", 1e-2, seed=0)
    torch.testing.assert_close(one.w, two.w, atol=1e-3, rtol=1e-3)


def test_fitting_twice_gives_the_same_head() -> None:
    features = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    data = Comparisons(torch.arange(20), torch.arange(20, 40), (features[:20, 0] > features[20:, 0]).float())
    one, two = (fit_head(features, data, "general", 1e-3, seed=5) for _ in range(2))
    assert torch.equal(one.logits(features), two.logits(features))


# ---- the report ----------------------------------------------------------------------------------------------------------


def test_figures_on_a_case_done_by_hand() -> None:
    predicted, targets = [0.9, 0.8, 0.4, 0.3, 0.5], [1.0, 0.0, 1.0, 0.0, 0.5]
    cycle = [[0.5, 0.9, 0.1], [0.1, 0.5, 0.9], [0.9, 0.1, 0.5]]
    order = [[0.5, 0.9, 0.9], [0.1, 0.5, 0.9], [0.1, 0.1, 0.5]]
    report = report_on(predicted, targets, list("aabbc"), [(2, 1), (2, 1), (1, 1), (1, 2), (1, 1)], [cycle, order], 0)
    assert report.balanced_accuracy.value == pytest.approx(0.5)
    assert report.length_baseline.value == pytest.approx((1.5 / 2 + 1 / 2) / 2)
    assert report.brier == pytest.approx((0.01 + 0.64 + 0.36 + 0.09 + 0) / 5)
    assert report.calibration_error == pytest.approx((0.1 + 0.8 + 0.6 + 0.3 + 0) / 5)
    assert (report.cyclic_triples, report.triples, report.ties, report.prompts) == (0.5, 2, 1, 3)


def test_a_few_lucky_prompts_are_not_certainty() -> None:
    import numpy as np

    right = np.array([0.9, 0.1, 0.8, 0.2])
    interval = balanced_accuracy(right, np.array([1.0, 0.0, 1.0, 0.0]), list("abcd"), seed=0)
    assert interval.value == interval.high == 1
    assert interval.low == pytest.approx(0.51, abs=0.01)


# ---- the folder and the oracle -------------------------------------------------------------------------------------------


def test_a_model_survives_saving_and_loading(kept: Path, tiny_folder: Path) -> None:
    head = PreferenceHead.load(kept / "head.safetensors")
    features = torch.randn(4, WIDTH)
    assert torch.equal(head.logits(features), random_head().logits(features))
    model = PreferenceModel.load(kept)
    assert model.record == record_for(tiny_folder / "policy")
    with pytest.raises(OracleError, match="exists already"):
        save(kept, model.record, head)


def test_the_oracle_gives_a_matrix_that_neighbours_do_not_change(kept: Path) -> None:
    judgment = judged(kept)
    for i in range(len(TEXTS)):
        for j in range(len(TEXTS)):
            assert judgment.preference(i, j) == pytest.approx(1 - judgment.preference(j, i))
    assert judgment.preference(0, 1) == pytest.approx(judged(kept, TEXTS[:2]).preference(0, 1), abs=1e-4)
    assert judgment.preference(0, 3) == pytest.approx(judged(kept, batch_tokens=64).preference(0, 3), abs=1e-4)
    assert judgment.preference(0, 1) != pytest.approx(0.5, abs=1e-3)
    assert judgment.scores is None
    assert judgment.model_returned.startswith("general on ")


def test_too_long_candidates_have_no_verdict(kept: Path) -> None:
    judgment = judged(kept, ["Short.", "x" * 400, "Also short."])
    assert judgment.outcome == "ok"
    assert judgment.preference(0, 1) is None
    assert judgment.preference(0, 2) == pytest.approx(
        judged(kept, ["Short.", "Also short."]).preference(0, 1), abs=1e-4
    )
    assert judged(kept, ["Short.", "x" * 400]).outcome == "unusable"
    with pytest.raises(OracleError, match=r"oracle\.max_tokens is 999; accepted: at most 256"):
        judged(kept, max_tokens=999)


def test_other_weights_under_the_head_are_refused(tmp_path: Path) -> None:
    policy = write_tiny_policy(tmp_path / "policy")
    save(tmp_path / "model", record_for(policy), random_head())
    judged(tmp_path / "model")
    config = json.loads((policy / "config.json").read_text())
    (policy / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    with pytest.raises(OracleError, match=r"fingerprint .*; accepted: .*fit it again"):
        judged(tmp_path / "model")
    shutil.rmtree(policy)
    with pytest.raises(OracleError, match="backbone"):
        judged(tmp_path / "model")


def test_damaged_folders_are_named(kept: Path, tmp_path: Path) -> None:
    with pytest.raises(OracleError, match=r"preference_model\.json: no usable record"):
        judged(tmp_path)
    shutil.copytree(kept, tmp_path / "cut")
    (tmp_path / "cut" / "head.safetensors").write_bytes(b"nothing")
    with pytest.raises(OracleError, match=r"head\.safetensors"):
        judged(tmp_path / "cut")


def test_the_gate_refuses_by_the_lower_bound(kept: Path) -> None:
    found = PreferenceModel.load(kept).record.held_out.balanced_accuracy
    assert found.low < found.value
    check_gate(kept, found.low)
    with pytest.raises(OracleError, match=r"held-out balanced accuracy .* accepted: a lower bound of at least"):
        check_gate(kept, found.value)
