"""Published figures of judges and annotators, reproduced from their stored verdicts (bench/judge_quality.py)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from judge_quality import PANDALM_KAPPA, PANDALM_SCORES, llmbar, llmbar_published, pandalm
from reference_data import REFERENCE_DATA
from typer.testing import CliRunner

from nashtune.cli import app
from nashtune.judging.judge_quality import macro_scores

needs = pytest.mark.skipif(
    not (REFERENCE_DATA / "pref_llmbar_judges.parquet").is_file(),
    reason="no preference sets ($NASHTUNE_REFERENCE_DATA, else ../shared/data)",
)


def test_the_published_table_is_whole() -> None:
    published = llmbar_published()
    assert len(published) == 325
    sizes = {subset: counts[0] for (subset, _), counts in published.items()}
    assert sum(sizes.values()) == 419
    # "average accuracy" of the paper's best: GPT-4 with metrics and reference on the natural set.
    n, first, second, both, same = published["Natural", "GPT-4/Metrics_Reference"]
    assert ((first + second) / 2 / n, both / n, same / n) == (0.96, 0.94, 0.96)


@needs
def test_all_published_statistics_of_llmbar_follow_from_the_verdicts() -> None:
    found = llmbar(REFERENCE_DATA)
    assert found.counts == llmbar_published()
    judge = found.judges["GPT-4/Metrics_Reference"]
    adversarial = [q for name, q in judge.subsets.items() if name.startswith("Adversarial/")]
    mean = sum(q.strict_accuracy.value for q in adversarial if q.strict_accuracy) / 4
    assert mean == pytest.approx(0.828, abs=5e-4)  # "82.8 %" of the paper: the mean of the four adversarial subsets
    biased = found.judges["ChatGPT-0301/Metrics_Reference"].place
    assert biased is not None
    assert biased.first_shown is not None
    assert biased.first_shown.low > 0.7  # three of four verdicts for whatever was shown first


@needs
def test_pandalms_annotators_and_judges_are_as_published() -> None:
    people, judges = pandalm(REFERENCE_DATA)
    kappas = {pair.raters: round(pair.kappa.value, 2) for pair in people.pairs if pair.kappa}
    assert kappas == PANDALM_KAPPA
    scores = {name: tuple(round(100 * s, 2) for s in macro_scores(q.confusion)) for name, q in judges.items()}
    assert scores == PANDALM_SCORES
    metrics = pytest.importorskip("sklearn.metrics")
    import pyarrow.parquet as pq

    table = pq.read_table(REFERENCE_DATA / "pref_pandalm_human3.parquet").to_pydict()
    for pair in people.pairs:
        assert pair.kappa is not None
        ours, theirs = (table[name] for name in pair.raters)
        assert pair.kappa.value == pytest.approx(metrics.cohen_kappa_score(ours, theirs))


@needs
@pytest.mark.parametrize(
    ("name", "options", "comparisons", "left_out"),
    [
        ("pref_hh_harmless_test", [], 2307, {"the two conversations have different prompts": 5}),
        ("pref_vicuna80_gpt4", ["--subset", "category"], 1040, {}),
        ("pref_pandalm_human3", ["--subset", "model_1"], 999, {}),
        ("pref_llmbar", [], 419, {}),
    ],
)
def test_every_shared_set_is_read(
    name: str, options: list[str], comparisons: int, left_out: Any, tmp_path: Any
) -> None:
    oracle = tmp_path / "oracle.yaml"
    oracle.write_text("kind: scripted\nprefer: longer\n")
    command = ["judge-check", str(REFERENCE_DATA / f"{name}.parquet"), "--oracle", str(oracle), *options]
    done = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "out"), "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["comparisons"] == comparisons
    assert found["left_out"] == left_out
    (judge,) = found["judges"]
    assert judge["length"]["longer_preferred"]["value"] > 0.9  # by words, measured in characters
