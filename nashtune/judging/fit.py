"""Fitting a preference model to comparisons, and saying how good it is on prompts it has not seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from nashtune.errors import ModelError, OracleError
from nashtune.judging.answer_features import FEATURES, AnswerReader
from nashtune.judging.bradley_terry import sigmoid
from nashtune.judging.comparisons import Answer, Comparison, Found, read_comparisons
from nashtune.judging.judge_report import JudgeReport, report_on
from nashtune.judging.preference_head import Choice, Comparisons, HeadKind, PreferenceHead, choose, fit_head
from nashtune.judging.preference_model import Backbone, Record, locate, save
from nashtune.progress import progress
from nashtune.records import Policy, Prompt
from nashtune.run import Run
from nashtune.seeds import seed_for

HeadChoice = Literal["general", "bradley-terry", "auto"]
HELD_OUT = 0.2
"""Share of prompts held out, and of the others that choose ridge, kind and temperature."""
LEAST_PROMPTS = 10


@dataclass(frozen=True, slots=True)
class Table:
    """Comparisons as N rows over M distinct answers."""

    rows: list[Comparison]
    features: Tensor
    """[M, D]"""
    places: Comparisons
    of_prompt: dict[str, list[int]]
    """Places of each prompt's answers, by the prompt's id."""


def fit_judge(
    out: str | Path, sources: Sequence[str], backbone: str | None = None, head: str = "auto", seed: int = 0
) -> Record:
    """Fit a preference model to ``sources`` (run folders, preference data set files) and write it to the folder ``out``.

    ``backbone`` None takes the policy that the first run folder among the sources began with. ``head`` "auto" takes the
    kind that predicts an inner split of the training prompts better. Raises OracleError or PromptError for bad input.
    """
    out = Path(out).expanduser()
    if out.exists():
        raise OracleError(f"{out}: exists already; accepted: a new folder")
    if head not in get_args(HeadChoice):
        raise OracleError(f"--head is {head!r}; accepted: {', '.join(get_args(HeadChoice))}")
    found = read_comparisons(sources)
    _check_enough(found.comparisons, found)
    policy, named = _backbone(backbone, sources)
    table = _tabulate(policy, found, seed)
    _check_enough(table.rows, found)
    held_out = held_out_groups(table.rows, seed, "held out")
    kinds: Sequence[HeadKind] = ("bradley-terry", "general") if head == "auto" else (head,)  # type: ignore[assignment]
    fitted, choice = _fit(table, held_out, kinds, seed)
    report = evaluate(fitted, table, held_out, seed)
    data = {
        "sources": list(map(str, sources)),
        "comparisons": len(table.rows),
        "prompts": len({row.group for row in table.rows}),
        "left_out": dict(found.left_out),
        "seed": seed,
    }
    record = Record(fitted.kind, named, FEATURES, report, {"temperature": choice.temperature, **_how(choice)}, data)
    save(out, record, fitted)
    return record


def held_out_groups(rows: Sequence[Comparison], seed: int, purpose: str) -> set[str]:
    """A fifth of the prompts, drawn by a hash of seed and content: those of the smallest hashes."""
    groups = sorted({row.group for row in rows}, key=lambda group: seed_for(seed, purpose, group))
    return set(groups[: math.ceil(HELD_OUT * len(groups))])


def _check_enough(rows: Sequence[Comparison], found: Found) -> None:
    prompts = len({row.group for row in rows if row.target != 0.5})
    if prompts < LEAST_PROMPTS:
        left_out = "".join(f"; left out, {reason}: {count}" for reason, count in found.left_out.items())
        raise OracleError(
            f"--from: {len(rows)} comparisons, with a better side for {prompts} prompts; accepted: at least "
            f"{LEAST_PROMPTS} such prompts{left_out}"
        )


def _backbone(name: str | None, sources: Sequence[str]) -> tuple[Policy, Backbone]:
    revision, trust = None, False
    if name is None:
        runs = [source for source in sources if (Path(source).expanduser() / "recipe.yaml").is_file()]
        if not runs:
            raise OracleError(
                "--backbone: none given, and no source is a run folder whose policy could be taken; accepted: hub name, "
                "folder, .gguf file, package:NAME"
            )
        section = Run.read(Path(runs[0]).expanduser()).recipe.policy
        name, revision, trust = section.model, section.revision, section.trust_remote_code
    policy = locate(name, revision, trust)
    local = Path(name).expanduser()
    return policy, Backbone(str(local.resolve()) if local.exists() else name, policy.fingerprint, revision, trust)


def _tabulate(policy: Policy, found: Found, seed: int) -> Table:
    """Read every distinct answer once; comparisons with one that is too long are left out and counted."""
    try:
        reader = AnswerReader(policy)
    except ModelError as error:
        raise OracleError(str(error).replace("policy.model", "backbone")) from None
    prompts: dict[str, tuple[Prompt, dict[Answer, None]]] = {}
    for row in found.comparisons:
        answers = prompts.setdefault(row.prompt.id, (row.prompt, {}))[1]
        answers.update({row.first: None, row.second: None})
    items, keys = [], []
    for prompt, answers in prompts.values():
        item = reader.tokens(prompt.messages, [(a.text, a.finished) for a in answers])
        fitting = [(a, ids) for a, ids, fits in zip(answers, item[1], reader.fits(item), strict=True) if fits]
        items.append((item[0], [ids for _, ids in fitting]))
        keys += [(prompt.id, answer) for answer, _ in fitting]
    place = {key: number for number, key in enumerate(keys)}
    with progress("reading answers", len(keys), "answers") as advance:
        features = torch.cat(reader.read(items, lambda count: advance(count, "")))
    rows = [
        row.shown(seed)
        for row in found.comparisons
        if (row.prompt.id, row.first) in place and (row.prompt.id, row.second) in place
    ]
    found.left_out["too long for the backbone"] += len(found.comparisons) - len(rows)
    of_prompt: dict[str, list[int]] = {}
    for (prompt_id, _), number in place.items():
        of_prompt.setdefault(prompt_id, []).append(number)
    firsts = torch.tensor([place[row.prompt.id, row.first] for row in rows], dtype=torch.long)
    seconds = torch.tensor([place[row.prompt.id, row.second] for row in rows], dtype=torch.long)
    targets = torch.tensor([row.target for row in rows], dtype=features.dtype)
    device = features.device
    return Table(rows, features, Comparisons(firsts.to(device), seconds.to(device), targets.to(device)), of_prompt)


def _fit(table: Table, held_out: set[str], kinds: Sequence[HeadKind], seed: int) -> tuple[PreferenceHead, Choice]:
    """Choose on an inner split of the prompts not held out, then fit on all of those with what was chosen."""
    training = [row.group not in held_out for row in table.rows]
    rows = [row for row, use in zip(table.rows, training, strict=True) if use]
    data = table.places.where(training)
    inner = held_out_groups(rows, seed, "inner")
    choice = choose(table.features, data, [row.group in inner for row in rows], kinds, seed_for(seed, "head"))
    fitted = fit_head(table.features, data, choice.kind, choice.ridge, seed_for(seed, "head"))
    return fitted.at(choice.temperature), choice


def _how(choice: Choice) -> dict[str, object]:
    return {name: value for name, value in asdict(choice).items() if name != "temperature"}


def evaluate(head: PreferenceHead, table: Table, held_out: set[str], seed: int) -> JudgeReport:
    """The head's figures on the comparisons whose prompts are ``held_out``. Raises OracleError where none is decided."""
    mask = [row.group in held_out for row in table.rows]
    rows = [row for row, use in zip(table.rows, mask, strict=True) if use]
    if all(row.target == 0.5 for row in rows):
        raise OracleError(
            f"all {len(rows)} held-out comparisons are ties; accepted: more comparisons with a better side"
        )
    data = table.places.where(mask)
    logits = head.pair_logits(table.features, data.firsts, data.seconds).tolist()
    prompts = dict.fromkeys(row.prompt.id for row in rows)
    matrices = [head.logits(table.features[table.of_prompt[name]]).sigmoid().tolist() for name in prompts]
    return report_on(
        [sigmoid(logit) for logit in logits],
        [row.target for row in rows],
        [row.group for row in rows],
        [(len(row.first.text), len(row.second.text)) for row in rows],
        matrices,
        seed,
    )
