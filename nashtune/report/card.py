"""The model card: README.md of an exported policy."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nashtune.errors import StoreError
from nashtune.objectives import OBJECTIVES
from nashtune.recipe import METHODS
from nashtune.records import IterationSummary
from nashtune.report import tables
from nashtune.report.html import as_yaml, confidence_label, result_sentence
from nashtune.report.templates import template
from nashtune.summaries import AVERAGE

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
PAPER = "[arXiv 2404.03715](https://arxiv.org/abs/2404.03715)"
EXCERPT: Mapping[str, tuple[str, ...]] = {
    "policy": ("revision",),
    "teacher": ("kind", "n"),
    "sampling": ("policy", "mixture", "k", "temperature", "top_p", "top_k", "max_new_tokens"),
    "oracle": ("kind", "guard"),
    "pairs": ("rule", "positive_score", "margin", "student_margin", "max_per_prompt"),
    "replay": ("fraction", "decay"),
    "train": ("start", "batch_size", "epochs", "learning_rate", "schedule", "warmup_steps", "lora"),
    "validate": ("k", "confidence", "select"),
}
"""What the card shows of the recipe besides its objective; no prompts' source, server address or folder, which may be private."""


@dataclass(frozen=True, slots=True)
class CardInput:
    """What a card tells. ``recipe`` is resolved; ``best`` is the exported iteration (0: the initial policy; AVERAGE: the mean of
    all trained ones, whose row is among ``summaries``)."""

    name: str
    created: str
    recipe: Mapping[str, Any]
    summaries: Sequence[IterationSummary]
    best: int


def model_card(data: CardInput) -> str:
    """Markdown with YAML front matter. A hub name becomes ``base_model``; a local model is named by its last folder
    only, so that a card tells nothing of the machine.

    Raises StoreError where ``best`` is not among the iterations of ``summaries``.
    """
    iterations = [s.iteration for s in data.summaries]
    if data.best not in iterations:
        raise StoreError(f"model card: best is iteration {data.best}, but the summaries hold {iterations or 'none'}")
    summaries = sorted(data.summaries, key=lambda s: (s.iteration == AVERAGE, s.iteration))
    excerpt = as_yaml(_excerpt(data.recipe))
    longest = max((len(run) for run in re.findall("`+", excerpt)), default=0)
    # Markdown, not HTML: nothing is escaped, and nothing sampled or user-written but the recipe's settings goes in.
    return template("model_card.md.j2").render(
        data=data,
        recipe=data.recipe,
        front_matter=yaml.safe_dump(_front_matter(data), sort_keys=False, allow_unicode=True),
        headline=result_sentence(data.summaries, data.best, data.recipe),
        title="average of iterations" if data.best == AVERAGE else f"iteration {data.best}",
        trained=max(iterations),
        method=_method(data.recipe),
        objective=_objective(data.recipe["objective"]["name"]),
        base=_base_name(data.recipe["policy"]["model"]),
        sampler=_sampler(data.recipe["sampling"]),
        judged=_judged(data.recipe),
        confidence=confidence_label(data.recipe),
        table=_results(summaries, data.best),
        limits=_limits(data, summaries),
        excerpt=excerpt,
        fence="`" * max(3, longest + 1),
    )


def _method(recipe: Mapping[str, Any]) -> str:
    """The method by name, or the loop that every recipe runs."""
    if name := recipe.get("method"):
        return f"`{name}`: {METHODS[name].summary} ({METHODS[name].source})"
    return f"in the iterations of Direct Nash Optimization, {PAPER}, Algorithm 2"


def _objective(name: str) -> str:
    return f"`{name}`, {OBJECTIVES[name].formula} ({OBJECTIVES[name].source})"


def _sampler(sampling: Mapping[str, Any]) -> str:
    if sampling.get("policy") == "initial":
        return "the initial model"
    share = sampling.get("mixture")
    return "the model of the iteration before" + (f", mixed with {share:g} of the initial one," if share else "")


def _judged(recipe: Mapping[str, Any]) -> str:
    """Who said which answers are better."""
    if recipe["pairs"]["rule"] == "teacher_wins":
        return "a teacher's answers counted as better than all of them, unjudged"
    teacher = "" if recipe["teacher"]["kind"] == "none" else ", a teacher's answer among them"
    return f"{_oracle(recipe['oracle'])} compared the answers{teacher}"


def _front_matter(data: CardInput) -> dict[str, Any]:
    model = data.recipe["policy"]["model"]
    base = {"base_model": model} if _on_hub(model) else {}
    tags = ["dno", "preference-optimization", "nashtune"]
    return {**base, "library_name": "transformers", "pipeline_tag": "text-generation", "tags": tags}


def _on_hub(model: str) -> bool:
    """Whether the name is a hub's: transformers, too, takes a folder of that name first where there is one."""
    return bool(HUB_NAME.fullmatch(model)) and not model.endswith(".gguf") and not Path(model).exists()


def _base_name(model: str) -> str:
    if _on_hub(model):
        return f"[{model}](https://huggingface.co/{model})"
    return f"`{Path(model).name}`"


def _oracle(oracle: Mapping[str, Any]) -> str:
    if oracle["kind"] == "rules":
        return "verifiable rules with a quality guard"
    judge = (oracle.get("engine") or oracle.get("hosted") or {}).get("model")
    return f"the `{oracle['kind']}` oracle" + (f" (`{judge}`)" if judge else "")


def _excerpt(recipe: Mapping[str, Any]) -> dict[str, Any]:
    shown = {
        section: {key: recipe[section][key] for key in keys if recipe[section].get(key) is not None}
        for section, keys in EXCERPT.items()
        if section in recipe
    }
    shown["objective"] = dict(recipe["objective"])
    return {"seed": recipe["seed"], "iterations": recipe["iterations"]} | {k: v for k, v in shown.items() if v}


@dataclass(frozen=True, slots=True)
class _Table:
    head: list[str]
    rows: list[list[str]]


def _results(summaries: Sequence[IterationSummary], best: int) -> _Table:
    """Contests and answers of every iteration, one per row; measures known nowhere are left out."""
    contests, answers, *_ = tables.iteration_groups(summaries)
    measures = [row for row in (*contests.rows, *answers.rows) if row.known]
    rows = []
    for i, summary in enumerate(summaries):
        figures = (measure.cells[i] for measure in measures)
        texts = (cell.text + (f" ({cell.detail})" if cell.detail else "") for cell in figures)
        names = {0: "initial policy", AVERAGE: "average"}
        cells = [names.get(summary.iteration, str(summary.iteration)), *texts]
        rows.append([f"**{text}**" for text in cells] if summary.iteration == best else cells)
    return _Table(["iteration", *(row.label for row in measures)], rows)


def _selected(data: CardInput, rows: int) -> list[str]:
    """How the figures were bent by choosing this policy by them."""
    if data.best == AVERAGE or data.recipe.get("average") == "last":
        return []
    return [f"This iteration was selected from {rows} by the same prompts, which flatters its figures slightly."]


def _limits(data: CardInput, summaries: Sequence[IterationSummary]) -> list[str]:
    """What the figures above do not say."""
    summary = next(s for s in summaries if s.iteration == data.best)
    rate = summary.win_rate_vs_initial or summary.win_rate_vs_teacher
    prompts = f"{rate.n:,} held-out prompts" if rate else "held-out prompts"
    separate = data.recipe["prompts"]["validation"]["source"] is not None
    kind = "from a source of their own" if separate else "of the same kind as the training prompts"
    other = data.recipe["validate"].get("oracle")
    chose = "chose none of" if other or data.recipe["pairs"]["rule"] == "teacher_wins" else "also chose"
    found = [
        f"Measured on {prompts} {kind}, by the oracle that {chose} the training pairs "
        f"({_oracle(other or data.recipe['oracle'])}). Another judge or another kind of prompt may say otherwise.",
        *_selected(data, len(summaries)),
        "Nothing was measured about safety, factual accuracy or languages beyond those prompts; the limits of the base "
        "model remain.",
    ]
    first = next((s.mean_words for s in summaries if s.iteration == 0), None)
    if first and summary.mean_words is not None and not 0.8 <= summary.mean_words / first <= 1.25:
        change = f"Mean answer length went from {first:,.1f} to {summary.mean_words:,.1f} words"
        found.append(f"{change}; part of a preference may be a preference for length.")
    return found
