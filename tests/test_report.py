"""The HTML report and the model card: what they say, and that data can never become markup."""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from importlib import resources
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from nashtune.errors import StoreError
from nashtune.recipe import parse_recipe
from nashtune.records import Interval, IterationSummary, Payoffs
from nashtune.report import charts, tables
from nashtune.report.card import CardInput, model_card
from nashtune.report.health import JudgedStage
from nashtune.report.html import ReportInput, ShownAnswer, SideBySide, length_alarms, render_report, result_sentence

HOSTILE = '<script>alert(1)</script></details><img src="https://example.org/x.png" onerror=alert(2)>{{ 7 * 7 }}'
RECIPE = parse_recipe(
    {
        "name": "demo",
        "policy": {"model": "org/base-model"},
        "prompts": {"source": "nashtune:constraints"},
        "teacher": {"kind": "best_of_n"},
        "oracle": {"kind": "rules"},
    }
).resolved()


def summary(t: int, value: float = 0.8125) -> IterationSummary:
    if t == 0:
        return IterationSummary(
            0, win_rate_vs_teacher=Interval(0.2, 0.1, 0.3, 96), satisfied=0.31, mean_words=40.0, dynamics={"x": 1.0}
        )
    return IterationSummary(
        t,
        win_rate_vs_initial=Interval(value, value - 0.09, value + 0.07, 96),
        win_rate_vs_previous=Interval(0.58, 0.49, 0.67, 96),
        win_rate_vs_teacher=Interval(0.52, 0.42, 0.62, 96),
        satisfied=0.61,
        satisfied_and_good=0.47,
        good=0.7,
        mean_score=4.125,
        mean_words=41.5,
        pairs={"S>S": 1054, "T>S": 1380, "S>T": 210},
        replayed_pairs=512,
        dropped={"no_positive": 312, "margin too small": 1140},
        defects={"repetition": 91},
        dynamics={
            "inputs": 1200,
            "student_words_mean": 39.0,
            "student_words_sd": 11.0,
            "best_of_n_beats_teacher": 0.159,
        },
        unusable_judgments=7,
        tokens={"sampled": 412331, "judge_prompt": 1203400},
        seconds={"sample": 812.5, "train": 3187.5},
        cost_usd=0.0421,
        train={"loss": 0.4321},
    )


def full_input() -> ReportInput:
    answers = [
        ShownAnswer("initial policy", HOSTILE, 2.0, {"satisfied": 0.0}, "length", ("repetition",)),
        ShownAnswer("iteration 1", "the sea keeps its own time", 5.0, {"satisfied": 1.0, "good": None}, "stop"),
        ShownAnswer("teacher", "", None),
    ]
    curve = [{"step": i, "loss": 0.69 - 0.01 * i, "accuracy": 0.5 + 0.02 * i, "margin": 0.1 * i} for i in range(1, 11)]
    return ReportInput(
        name="demo",
        created="2026-01-02 03:04 UTC",
        recipe={**RECIPE, "note": HOSTILE},
        environment={"python": "3.11", "host": HOSTILE},
        summaries=[summary(0), summary(1, 0.66), summary(2)],
        best=2,
        state="finished",
        train_curves={1: curve, 2: curve},
        pair_margins={1: {"T>S": [1, 2, 2], "S>S": [3]}, 2: {"S>T": [5]}},
        lengths={0: [30, 40, 50], 1: [35, 45], 2: [44]},
        contests=[SideBySide(HOSTILE, HOSTILE, answers), SideBySide("short", None, answers[:1])],
        prompt_report={"read": 5120, "parts": [1200, 1200], "first": HOSTILE},
        alarms=[HOSTILE],
    )


EMPTY = ReportInput("demo", "2026-01-02", {}, {}, [], None, "running")


class Page(HTMLParser):
    """What a browser would make of the markup: elements, links, and tables as rows of cell texts."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.open: list[str] = []
        self.text = ""
        self.rows: dict[str, list[list[str]]] = {}
        self.table = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in ("meta", "link"):
            self.open.append(tag)
        if tag == "table":
            self.table = dict(attrs).get("id") or ""
            self.rows[self.table] = []
        elif tag == "tr":
            self.rows[self.table].append([])
        elif tag in ("td", "th"):
            self.rows[self.table][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        self.text += data
        if {"td", "th"} & set(self.open):
            self.rows[self.table][-1][-1] += data.strip().replace("\N{NO-BREAK SPACE}", " ") + (
                " " if data.strip() else ""
            )

    def row(self, table: str, label: str) -> list[str]:
        return next([c.strip() for c in row[1:]] for row in self.rows[table] if row[0].strip() == label)


def test_figures_in_the_table_equal_the_input() -> None:
    page = Page(render_report(full_input()))
    table = {
        "against the initial policy": ["–", "66 % 57–73", "81 % 72–88"],
        "against the teacher": ["20 % 10–30", "52 % 42–62", "52 % 42–62"],
        "satisfied": ["31 %", "61 %", "61 %"],
        "mean score": ["–", "4.12", "4.12"],
        "mean words": ["40.0", "41.5", "41.5"],
        "new pairs": ["–", "2,644", "2,644"],
        "T>S": ["–", "1,380", "1,380"],
        "replayed pairs": ["–", "512", "512"],
        "unusable judgements": ["0", "7", "7"],
        "loss": ["–", "0.432", "0.432"],
        "time": ["–", "1 h 07 min", "1 h 07 min"],
        "cost": ["–", "$0.0421", "$0.0421"],
        "judge prompt": ["–", "1,203,400", "1,203,400"],
    }
    assert {label: page.row("iteration-table", label) for label in table} == table
    assert page.rows["iteration-table"][0] == ["iteration ", "initial ", "1 ", "best 2 "]
    assert [row[0] for row in page.rows["dynamics-table"]] == ["iteration ", "1 ", "2 "]
    assert page.row("dynamics-table", "1") == ["1,200", "39 ± 11", "16 %", "–", "–", "–", "1,380", "210", "1,054"]
    assert page.row("reason-table", "no positive") == ["–", "312", "312"]
    assert (
        "Iteration 2 beats the initial policy in 81 % of held-out contests (95 % interval 72–88)."
        in page.text.replace("\N{NO-BREAK SPACE}", " ")
    )


def test_data_stays_text() -> None:
    html = render_report(full_input())
    page = Page(html)
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert not page.open
    assert not [a for a in page.attributes if a[1].startswith("on")]
    assert page.tags.count("details") == 5  # two contests; prompts, recipe, environment
    # Alarm, environment, prompt report, recipe; first contest: prompt, system prompt, answer; second contest: answer.
    assert page.text.count(HOSTILE) == 8


def test_the_judges_health_is_a_table_and_its_alarms_stand_first() -> None:
    health = {
        "judgments": 96,
        "usable": 0.875,
        "position": {"effect": 0.214, "p": 0.0004},
        "length": {"preference": {"value": 0.8, "low": 0.71, "high": 0.87, "n": 96}, "correlation": None, "p": None},
        "favour": {"student": None, "own_model": None},
        "spread": {"ties": 0.25, "equal_sets": 0.0},
        "cycles": None,
        "drift": {"mean_change": 0.5, "flips": 0.1},
        "alarms": [{"name": "min_usable", "value": 0.875, "threshold": 0.9, "message": HOSTILE}],
    }
    page = Page(render_report(replace(full_input(), health=[JudgedStage(1, "judge", health)], alarms=[])))
    assert page.row("judge-table", "1, training") == (
        ["96", "88 %", "0.21 p 0.0004", "80 % 71–87", "25 %", "0 %", "0.50 10 % flipped"]
    )
    assert f"Iteration 1, judge on training prompts: {HOSTILE} (threshold 0.9)." in page.text
    unknown = "length corr., student over teacher, own model, cycles, flipped by order, panel agrees, repeats audit."
    assert f"Not known in any iteration: {unknown}" in page.text
    assert "script" not in page.tags
    assert "No judgements have been looked at yet." in Page(render_report(EMPTY)).text


def test_nothing_is_loaded() -> None:
    page = Page(render_report(full_input()))
    loads = [
        (t, v) for t, name, v in page.attributes if name in ("src", "srcset", "href", "xlink:href", "poster", "data")
    ]
    assert set(loads) == {("link", "data:,"), ("a", "https://arxiv.org/abs/2404.03715")}
    css = resources.files("nashtune.report").joinpath("templates/report.css").read_text()
    assert "url(" not in css
    assert "@import" not in css
    assert ("meta", "content", "default-src 'none'; style-src 'unsafe-inline'; img-src data:") in page.attributes


def test_every_drawing_and_header_is_named() -> None:
    page = Page(render_report(full_input()))
    ids = [v for _, name, v in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {v for _, name, v in page.attributes if name == "aria-labelledby"} <= set(ids)
    named = sum(t == "svg" and name in ("aria-label", "aria-hidden") and bool(v) for t, name, v in page.attributes)
    assert named == page.tags.count("svg")
    scopes = sum(t == "th" and name == "scope" for t, name, _ in page.attributes)
    assert scopes == page.tags.count("th")


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (EMPTY, "Nothing has been validated yet."),
        (replace(EMPTY, summaries=[IterationSummary(0)]), "no iteration is finished yet"),
        (replace(EMPTY, summaries=[IterationSummary(0), IterationSummary(1)]), "Iteration 1 is the latest."),
        (replace(EMPTY, summaries=[summary(0), summary(1)], best=0), "No iteration does better"),
        (replace(EMPTY, summaries=[summary(1)], lengths={1: [0]}, train_curves={1: []}), "Iteration 1 beats"),
        (replace(EMPTY, summaries=[summary(0)], pair_margins={1: {}}, lengths={0: []}), "Measured on 96"),
    ],
)
def test_missing_data_leaves_a_whole_page(data: ReportInput, sentence: str) -> None:
    page = Page(render_report(data))
    if "Measured" in sentence:
        assert "No pairs yet." in page.text
    else:
        assert sentence in page.text
    assert "None" not in page.text
    assert not page.open


def test_headline_is_honest_about_intervals() -> None:
    unclear = [IterationSummary(1, win_rate_vs_initial=Interval(0.54, 0.42, 0.66, 50))]
    worse = [IterationSummary(1, win_rate_vs_initial=Interval(0.3, 0.2, 0.4, 50))]
    recipe = {"validate": {"confidence": 0.9}}
    assert "not clearly better" in result_sentence(unclear, 1, recipe)
    assert "(90\N{NO-BREAK SPACE}% interval 42–66)" in result_sentence(unclear, 1, recipe)
    assert "loses to the initial policy" in result_sentence(worse, 1, recipe)


def test_unknown_best_is_refused() -> None:
    with pytest.raises(StoreError, match=r"best is iteration 7.*\[0, 1, 2\]"):
        render_report(replace(full_input(), best=7))
    with pytest.raises(StoreError, match=r"best is iteration 7.*\[0\]"):
        model_card(CardInput("demo", "2026", RECIPE, [summary(0)], 7))


def test_lone_surrogates_can_be_written() -> None:
    contest = SideBySide("broken \ud83d emoji", None, [])
    assert b"broken \xef\xbf\xbd emoji" in render_report(replace(EMPTY, contests=[contest])).encode()


@pytest.mark.parametrize(
    ("words", "alarmed"),
    [
        ([40, 79], []),
        ([40, 80], [1]),
        ([40, 20.1], []),
        ([40, 20], [1]),
        ([40, 60, 90], [2]),  # against the initial policy only
        ([40, 70, 35], [2]),  # against the previous iteration only
        ([40, None, 100], [2]),
        ([None, 40, None], []),
        ([0, 0, 5], [2]),
    ],
)
def test_length_alarms(words: list[float | None], alarmed: list[int]) -> None:
    found = length_alarms([IterationSummary(t, mean_words=w) for t, w in enumerate(words)])
    assert [int(re.findall(r"^Iteration (\d+)", text)[0]) for text in found] == alarmed
    data = replace(EMPTY, summaries=[IterationSummary(t, mean_words=w) for t, w in enumerate(words)], alarms=found)
    assert Page(render_report(data)).text.count("mean words per answer") == len(found)  # given and found: shown once


def test_number_formats() -> None:
    space = tables.SPACE
    assert [tables.percent(v) for v in (0, 0.004, 0.155, 0.999, 1)] == [f"{p}{space}%" for p in (0, 0.4, 16, 99.9, 100)]
    times = {4.04: "4.0 s", 59.4: "59 s", 245: "4 min 05 s", 600: "10 min", 3599: "1 h 00 min", 12000: "3 h 20 min"}
    assert {t: tables.duration(t).replace(space, " ") for t in times} == times
    assert [tables.dollars(v) for v in (0, 0.0421, 12.5, 1234)] == ["$0.00", "$0.0421", "$12.50", "$1,234.00"]
    assert charts.unit_of(119, charts.DURATIONS).name == "seconds"
    assert charts.unit_of(120, charts.DURATIONS).name == "minutes"


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 7), (-0.13, 0.31), (3.2, 3.2), (0, 123456), (0, 0)])
def test_ticks_cover_the_range_in_equal_round_steps(low: float, high: float) -> None:
    found = charts.ticks(low, high)
    steps = {round(b - a, 9) for a, b in pairwise(found)}
    assert len(steps) == 1
    step = steps.pop()
    assert round(step / 10 ** math.floor(math.log10(step) + 1e-9)) in (1, 2, 5)
    assert found[0] <= low
    assert found[-1] >= high
    assert 2 <= len(found) <= 8


def test_histograms_lose_nothing() -> None:
    values = [1, 2, 2, 5]
    edges = charts.histogram_edges(values)
    assert edges == [0.5, 1.5, 2.5, 3.5, 4.5, 5.5]
    assert charts.histogram_counts(values, edges) == [1, 2, 0, 0, 1]
    rates = [0.4, 0.55, 1.0, 1.0]
    assert sum(charts.histogram_counts(rates, charts.histogram_edges(rates))) == 4
    assert charts.quantile([1, 2, 3, 4], 0.5) == 2.5
    assert charts.block_means([(i, 2 * i) for i in range(6)], most=3) == [(0.5, 1), (2.5, 5), (4.5, 9)]


def test_a_chart_places_what_it_is_given() -> None:
    drawn = charts.win_rate_chart("w", ["initial", "1"], {"against <b>": [None, Interval(0.75, 0.5, 1.0, 8)]})
    frame = charts.Frame(600, 290, (-0.5, 1.5), (0, 1), left=62)
    assert f'cx="{frame.x(1):g}" cy="{frame.y(0.75):g}"' in drawn
    assert "against &lt;b&gt;: 75.0% (50.0% to 100.0%), 8 prompts" in drawn
    bars = charts.stacked_bars("s", {"1": {"a": 30.0, "b": 90.0}}, ["a", "b"], charts.DURATIONS)
    a, b = (float(w) for w in re.findall(r' width="([\d.]+)" height="20"', bars))
    assert b / a == pytest.approx(3, rel=1e-3)
    assert charts.training_curve("c", {"1": [(1, math.nan)]}) == ""
    assert "nan" not in charts.training_curve("c", {"1": [(1, math.nan), (2, 0.5)], "2": [(1, 0.4), (2, 0.3)]})


def test_model_card() -> None:
    card = model_card(CardInput("demo", "2026-01-02", RECIPE, [summary(0), summary(1, 0.66), summary(2)], 2))
    _, front, text = card.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "base_model": "org/base-model",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["dno", "preference-optimization", "nashtune"],
    }
    text = text.replace("\N{NO-BREAK SPACE}", " ")
    assert "| **2** | **81 % (72–88)** | **58 % (49–67)** |" in text
    assert "| initial policy | – | – | 20 % (10–30) | 31 % | – |" in text
    assert "Measured on 96 held-out prompts of the same kind" in text
    assert "arXiv 2404.03715" in text
    excerpt = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert excerpt["objective"] == {"name": "dno-prct", "beta": 0.1, "alpha": 0.005, "offset": 0.0, "per_token": False}
    head, rule, *rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in (head, rule, *rows)} == {head.count("|")}
    code = text.split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")


def test_model_card_tells_nothing_of_the_machine(tmp_path: Path) -> None:
    recipe = {**RECIPE, "policy": {**RECIPE["policy"], "model": str(tmp_path / "my-model")}, "folder": str(tmp_path)}
    card = model_card(CardInput("demo", "2026", recipe, [summary(0)], 0))
    assert str(tmp_path) not in card
    assert "base_model" not in card
    assert "the initial policy, `my-model`, unchanged" in card


@pytest.mark.browser
def test_a_browser_shows_it(tmp_path: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on PATH")
    file = tmp_path / "report.html"
    file.write_text(render_report(full_input()), encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    flags += [
        "--disable-background-networking",
        "--disable-component-update",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    command = [chromium, *flags, "--enable-logging=stderr", "--dump-dom", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, "LC_ALL": "C.UTF-8"})
    assert done.returncode == 0, done.stderr
    assert "CONSOLE" not in done.stderr
    page = Page(done.stdout)
    assert page.row("iteration-table", "against the initial policy") == ["–", "66 % 57–73", "81 % 72–88"]
    assert len(page.rows["iteration-table"]) == len(Page(file.read_text(encoding="utf-8")).rows["iteration-table"])
    assert "script" not in page.tags


def game(*shares: tuple[float | None, ...]) -> Payoffs:
    cells = tuple(tuple(None if p is None else Interval(p, p - 0.1, p + 0.1, 20) for p in row) for row in shares)
    known = all(p is not None for i, row in enumerate(shares) for p in row[:i])
    return Payoffs(
        policies=tuple(range(len(shares))),
        matrix=cells,
        teacher=tuple(Interval(0.25, 0.1, 0.4, 20) for _ in shares),
        equilibrium=(0.25, 0.75) if known else None,
        best=1,
        exploitability={"last": Interval(0.125, 0.0, 0.25, 20), "best": Interval(0.0625, 0.0, 0.25, 20)},
    )


def table(page: Page, name: str) -> list[list[str]]:
    """A table's cells, with single spaces."""
    return [[re.sub("[ \n]+", " ", cell).strip(" ") for cell in row] for row in page.rows[name]]


def test_theory_stands_beside_what_was_measured() -> None:
    one = replace(
        summary(1),
        kl_from_previous=Interval(6.5, 6, 7, 20),
        improvement_bound=Interval(1.15, 1.1, 1.2, 20),
        exploitability=Interval(0.125, 0, 0.25, 20),
        payoffs=game((None, 0.25), (0.75, None)),
    )
    page = Page(render_report(replace(full_input(), summaries=[summary(0), one], best=1)))
    assert table(page, "theory-table")[1] == [
        "1",
        "6.50 6.00–7.00",
        "115 % 110–120",
        "58 % 49–67",
        "0.125 0.000–0.250",
    ]
    assert table(page, "payoff-table") == [
        ["policy beats", "initial", "1", "teacher"],
        ["initial", "·", "25 % 15–35", "25 % 10–40"],
        ["1", "75 % 65–85", "·", "25 % 10–40"],
        ["weight in the equilibrium", "25 %", "75 %", "·"],
    ]
    assert "a comparison, not a guarantee" in page.text
    assert "further than that moved: iteration 1." in page.text
    assert "never in one candidate set" not in page.text

    two = replace(one, iteration=2, payoffs=game((None, 0.25, 0.5), (0.75, None, None), (0.5, None, None)))
    average = replace(two, iteration=-1, payoffs=None)
    page = Page(render_report(replace(full_input(), summaries=[summary(0), one, two], average=average)))
    assert table(page, "payoff-table")[2][3] == "unknown"
    assert [row[0] for row in table(page, "theory-table")] == ["iteration", "1", "2", "average"]
    assert table(page, "iteration-table")[0][-1] == "average"
    assert "1 pair of policies was never in one candidate set" in page.text
    assert not any("equilibrium" in row[0] for row in table(page, "payoff-table"))


def test_no_bound_is_claimed_where_eq_9_says_nothing() -> None:
    one = replace(summary(1), kl_from_previous=Interval(1, 0.5, 1.5, 20))
    page = Page(render_report(replace(full_input(), summaries=[summary(0), one], best=1)))
    assert "No bound is shown" in page.text
    assert "a comparison, not a guarantee" not in page.text


def test_the_card_of_an_average_says_so() -> None:
    rows = [summary(0), summary(1), summary(2), replace(summary(2, 0.9), iteration=-1)]
    card = model_card(CardInput("demo", "2026-01-02", {**RECIPE, "average": "weights"}, rows, -1))
    assert "# demo, average of iterations" in card
    assert "uniform mean" in card
    assert "after 1 to 2 iterations" in card
    assert "**average**" in card
    assert "The average of all iterations beats the initial policy in 90" in card
    assert "was selected from" not in card
