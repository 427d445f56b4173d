"""Arena-Hard's style counts, Bradley-Terry against scikit-learn, and style control where the truth is known."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from tiny_models import tiny_tokenizer

from nashtune.errors import EvaluationError
from nashtune.suites.arena_hard.battles import Battles, battles_of
from nashtune.suites.arena_hard.bradley_terry import fit, leaderboard, style_controlled
from nashtune.suites.arena_hard.scores import arena_hard_scores
from nashtune.suites.arena_hard.style import Style, published_style, style_features, style_of, token_counter
from nashtune.suites.arena_hard.verdicts import Game

ANSWER = """\
# One
## Two
#nothing
**bold** and __bold__ and **not
bold**
- item
  * item
1. first
10) none
```python
# comment
- no item
**no**
```
"""


def sklearn_fit(design: np.ndarray, outcome: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Unpenalised, ties as a win and a loss of half the weight."""
    solver = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10, max_iter=10_000)
    labels = np.concatenate([np.ones(len(outcome)), np.zeros(len(outcome))])
    solver.fit(np.concatenate([design, design]), labels, np.concatenate([weight * outcome, weight * (1 - outcome)]))
    return solver.coef_[0]


# ---- counts --------------------------------------------------------------------------------------------------------------


def test_markdown_is_counted_outside_code() -> None:
    words = token_counter("words")
    assert style_of(ANSWER, words) == Style(tokens=len(ANSWER.split()), headers=2, lists=3, bold=2)
    assert style_of("```- x```\n- x", words).lists == 0, "what stood in code goes wherever it stands"
    assert style_of("``````\n- x", words).lists == 1
    assert style_of("", words) == Style(0, 0, 0, 0)


def test_published_counts_are_read() -> None:
    counts = {"header_count": {"h1": 1, "h2": 2}, "list_count": {"ordered": 3, "unordered": 4}, "bold_count": {"**": 5}}
    assert published_style({"token_len": 9} | counts, "file") == Style(9, 3, 7, 5)
    for bad in ({}, {"token_len": 9}, {"token_len": "9"} | counts, {"token_len": 9} | counts | {"bold_count": {}}):
        with pytest.raises(EvaluationError, match=r"file: metadata: .* accepted: a count, or counts by kind"):
            published_style(bad, "file")


def test_lengths_are_counted_as_named_and_never_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (token_counter("words")("a b  c"), token_counter("characters")("a b")) == (3, 3)
    for package in ("bpe_openai", "tiktoken"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(EvaluationError, match="'o200k_base' needs the package bpe-openai or tiktoken"):
        token_counter("o200k_base")
    for name in ("letters", "tokenizer:", "tokenizer:/no/such/folder"):
        with pytest.raises(EvaluationError, match=f"style tokens: '{name}'"):
            token_counter(name)


def test_o200k_base_counts_as_gpt_4o_does() -> None:
    pytest.importorskip("bpe_openai")
    count = token_counter("o200k_base")
    assert [count(text) for text in ("", "hello world", "<|endoftext|>")] == [0, 2, 7]


def test_a_tokenizer_of_ones_own_counts(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    text = "a few words"
    assert token_counter(f"tokenizer:{tmp_path}")(text) == len(tokenizer.encode(text, add_special_tokens=False))


def test_features_by_hand() -> None:
    ours, theirs = Style(9, 2, 0, 1), Style(3, 0, 4, 1)
    features = style_features([ours, theirs, ours, Style(0, 0, 0, 0)], [theirs, ours, ours, Style(0, 0, 0, 0)])
    assert features[0] == pytest.approx([6 / 12, 0.2 / 1.2, -1 / 2, (0.1 - 0.25) / 1.35])
    assert features[1] == pytest.approx(-features[0])
    assert not features[2:].any()


# ---- Bradley-Terry ---------------------------------------------------------------------------------------------------------


def test_the_fit_is_scikit_learns() -> None:
    rng = np.random.default_rng(1)
    design = rng.normal(size=(400, 5))
    outcome = np.where(rng.random(400) < 0.2, 0.5, rng.random(400) < expit(design @ [1, -2, 0.5, 0, 0.2]))
    weight = rng.choice([1.0, 3.0], 400)
    assert fit(design, outcome, weight) == pytest.approx(sklearn_fit(design, outcome, weight), abs=2e-5)


def test_a_model_that_won_everything_has_a_finite_strength() -> None:
    (strength,) = fit(np.ones((40, 1)), np.ones(40), np.ones(40))
    assert 10 < strength < 30


def game(uid: str, model: str, baseline: str, first: str, second: str) -> Game:
    return Game(uid, "arena-hard-v0.1", model, baseline, "judge", (first, second), ("", ""))


def test_against_the_anchor_alone_the_expected_win_rate_is_the_mean() -> None:
    games = [game(str(i), "m", "gpt-4-0314", ("B>>A", "A>B", "A=B")[i % 3], "A>B") for i in range(30)]
    games += [game(str(i), "n", "gpt-4-0314", "A>B", "A=B") for i in range(30)]
    table = leaderboard(battles_of(games), "gpt-4-0314", rounds=20)
    assert list(table) == ["m", "gpt-4-0314", "n"]
    assert table["m"].value == pytest.approx((30 + 0 + 5 + 30) / (30 + 10 + 10 + 30), abs=1e-6)
    assert table["n"].value == pytest.approx(0.25, abs=1e-6)
    assert table["gpt-4-0314"].value == 0.5
    assert table["n"].low < table["n"].value < table["n"].high


def test_strengths_pass_from_model_to_model() -> None:
    rng = np.random.default_rng(2)
    pairs = [("a", "anchor"), ("b", "a"), ("b", "c"), ("c", "anchor")]
    games = [
        game(f"{i}{a}{b}", a, b, *rng.choice(["A>B", "B>A", "B>>A", "A=B"], 2)) for a, b in pairs for i in range(40)
    ]
    battles = battles_of(games)
    names = ["a", "b", "c"]
    design = np.array(
        [[float(m == n) - float(b == n) for n in names] for m, b in zip(battles.model, battles.baseline, strict=True)]
    )
    expected = expit(sklearn_fit(design, battles.score, battles.weight))
    table = leaderboard(battles, "anchor", rounds=5)
    assert [table[name].value for name in names] == pytest.approx(expected, abs=1e-5)
    with pytest.raises(EvaluationError, match="no chain of battles ties 'd' to the anchor 'anchor'"):
        leaderboard(battles_of([*games, game("x", "d", "e", "A>B", "A>B")]), "anchor")


# ---- style control ---------------------------------------------------------------------------------------------------------


def simulated(
    models: dict[str, tuple[float, float]], prompts: int = 500
) -> tuple[Battles, dict[str, dict[str, Style]]]:
    """Two verdicts a prompt of models with (strength, how much longer, in log), where length is worth 2.5 log-odds of its
    feature and markdown nothing."""
    rng = np.random.default_rng(3)
    uids = [str(i) for i in range(prompts)]

    def style(longer: float) -> Style:
        return Style(int(rng.lognormal(6 + longer, 0.5)), *map(int, rng.poisson(3, 3)))

    styles = {"base": {uid: style(0) for uid in uids}}
    rows = []
    for model, (strength, longer) in models.items():
        styles[model] = {uid: style(longer) for uid in uids}
        length = style_features([styles[model][u] for u in uids], [styles["base"][u] for u in uids])[:, 0]
        wins = rng.random((prompts, 2)) < expit(strength + 2.5 * length)[:, None]
        rows += [(uid, model, "base", won) for uid, both in zip(uids, wins, strict=True) for won in both]
    uid, model, baseline, won = map(np.array, zip(*rows, strict=True))
    return Battles(uid, model, baseline, won.astype(float), np.ones(len(won))), styles


def test_where_style_explains_the_win_rate_its_control_leaves_one_half() -> None:
    battles, styles = simulated({"long": (0.0, 0.7)})
    assert battles.mean() > 0.65
    controlled = style_controlled(battles, styles)
    rate = controlled.win_rates["long"]
    assert rate.value == pytest.approx(0.5, abs=0.06)
    assert rate.low < 0.5 < rate.high
    assert controlled.coefficients["length"] > 5 * abs(controlled.coefficients["bold"])
    length = style_controlled(battles, styles, ["length"])
    assert list(length.coefficients) == ["length"]
    assert length.win_rates["long"].value == pytest.approx(0.5, abs=0.06)
    markdown = style_controlled(battles, styles, ["markdown"])
    # longer answers are thinner in markdown too, so it explains a part
    assert markdown.win_rates["long"].value > length.win_rates["long"].value + 0.05
    centred = style_controlled(battles, styles, way="published")
    assert centred.win_rates["long"].value > 0.65, "one model alone is rated at its own mean style"


def test_ours_finds_the_strengths_and_published_rates_at_the_pools_style() -> None:
    truth = {"weak": (-1.0, 0.0), "even": (0.0, 0.4), "strong": (0.8, 0.8)}
    battles, styles = simulated(truth)
    ours = style_controlled(battles, styles)
    for name, (strength, _) in truth.items():
        rate = ours.win_rates[name]
        assert rate.value == pytest.approx(expit(strength), abs=0.06)
        assert rate.low < expit(strength) < rate.high
    published = style_controlled(battles, styles, way="published")
    shifts = [
        np.log(r.value / (1 - r.value)) - truth[name][0] for name, r in published.win_rates.items()
    ]  # all rated at one style, longer than the baseline's
    assert shifts == pytest.approx([np.mean(shifts)] * 3, abs=0.3)
    assert min(shifts) > 0.2


def test_style_control_is_scikit_learns() -> None:
    battles, styles = simulated({"a": (-0.5, 0.2), "b": (0.5, 0.5)}, prompts=150)
    features = style_features(
        [styles[m][u] for m, u in zip(battles.model, battles.uid, strict=True)],
        [styles["base"][u] for u in battles.uid],
    )
    one_hot = np.array([[m == "a", m == "b"] for m in battles.model], dtype=float)
    scaled = features / features.std(axis=0, ddof=1)
    expected = sklearn_fit(np.concatenate([one_hot, scaled], 1), battles.score, battles.weight)
    ours = style_controlled(battles, styles, rounds=5)
    assert [ours.win_rates[m].value for m in "ab"] == pytest.approx(expit(expected[:2]), abs=1e-5)
    assert list(ours.coefficients.values()) == pytest.approx(expected[2:], abs=1e-4)


def test_what_style_control_cannot_tell_is_said() -> None:
    battles, styles = simulated({"m": (0.0, 0.3)}, prompts=30)
    with pytest.raises(EvaluationError, match="no style of m's answer to 0"):
        style_controlled(battles, {"base": styles["base"]})
    with pytest.raises(EvaluationError, match="accepted: length, markdown or both"):
        style_controlled(battles, styles, ())
    twice = {
        "base": dict.fromkeys(styles["m"], Style(10, 0, 0, 0)),
        "m": dict.fromkeys(styles["m"], Style(30, 0, 0, 0)),
    }
    with pytest.raises(EvaluationError, match="60 battles cannot tell length from the model itself"):
        style_controlled(battles, twice)
    same = style_controlled(battles, {"base": twice["base"], "m": twice["base"]})
    assert same.coefficients == {}
    assert same.win_rates["m"].value == pytest.approx(battles.mean(), abs=1e-6)
    games = [game(str(i), "m", "base", "A>B", "A=B") for i in range(4)]
    assert "cannot tell length" in arena_hard_scores(games, twice).overall.style_reason
    assert arena_hard_scores(games).overall.style_reason == "no styles given"
    both = battles_of([game("0", "m", "base", "A>B", "A>B"), game("0", "base", "m", "A>B", "A>B")])
    with pytest.raises(EvaluationError, match="'base' is a model and a baseline"):
        style_controlled(both, styles)
