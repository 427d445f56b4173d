"""A plan as tables."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nashtune.planning.plan import Plan
from nashtune.summaries import AVERAGE

UNITS = ("B", "kB", "MB", "GB", "TB")


def print_plan(plan: Plan) -> None:
    """Stages and iterations, other judges, disk, budget, and what all of it rests on."""
    console = Console()
    console = Console(width=max(console.width, 175)) if not console.is_terminal else console
    console.print(_stages(plan))
    if plan.alternatives:
        console.print(_alternatives(plan))
    lines = [] if plan.alternatives else [plan.judging]
    lines += [f"price   {model}: {price}" for model, price in plan.prices.items()]
    lines += [f"disk    {_disk(plan)}", f"time    {plan.rates}", f"budget  {_budget(plan)}"]
    if plan.probe:
        lines.append(f"probe   {_probe(plan)}")
    lines += [f"rests on {text}" for text in plan.assumptions]
    for line in lines:
        console.print(Text(line), soft_wrap=True)


def _stages(plan: Plan) -> Table:
    table = Table(title=f"{plan.name}: what the run is expected to take")
    for name in ("iteration", "stage", "model"):
        table.add_column(name, no_wrap=True)
    for name in (
        "prompts",
        "tokens here",
        "calls",
        "tokens in",
        "tokens out",
        "sync $",
        "batch $",
        "worst $",
        "seconds",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for n, row in enumerate(plan.rows):
        last = n + 1 == len(plan.rows) or plan.rows[n + 1].iteration != row.iteration
        paid = (_number(row.calls), _number(row.prompt_tokens), _number(row.completion_tokens))
        money = (_dollars(row.usd_sync), _dollars(row.usd_batch), _dollars(row.usd_worst))
        shown = (*paid, *money) if row.model else ("",) * 6
        seconds = "-" if row.seconds is None else _number(row.seconds)
        tokens = _number(row.tokens) if row.tokens else ""
        table.add_row(
            "average" if row.iteration == AVERAGE else str(row.iteration),
            row.stage,
            row.model,
            _number(row.items),
            tokens,
            *shown,
            seconds,
            end_section=last,
        )
    figures = ("tokens", "calls", "prompt_tokens", "completion_tokens")
    sums = [_number(plan.sum_of(figure)) for figure in figures]
    money = [_dollars(plan.sum_of(figure)) for figure in ("usd_sync", "usd_batch", "usd_worst")]
    seconds = plan.seconds()
    table.add_row("total", "", "", "", *sums, *money, "-" if seconds is None else _number(seconds), style="bold")
    return table


def _alternatives(plan: Plan) -> Table:
    table = Table(title=f"other judges: {plan.judging}")
    table.add_column("judge", no_wrap=True)
    for name in ("calls", "tokens in", "tokens out", "sync $", "batch $", "worst $"):
        table.add_column(name, justify="right", no_wrap=True)
    for other in plan.alternatives:
        counts = map(_number, (other.calls, other.prompt_tokens, other.completion_tokens))
        money = map(_dollars, (other.usd_sync, other.usd_batch, other.usd_worst))
        table.add_row(other.name, *counts, *money)
    return table


def _disk(plan: Plan) -> str:
    disk = plan.disk
    kept = f"samples {_bytes(disk.samples)}, ledger {_bytes(disk.ledger)}"
    if disk.policies is None or disk.checkpoint is None:
        return f"{kept}; policies: not known, as the model is not on this machine"
    return (
        f"policies {_bytes(disk.policies)}, checkpoint while training {_bytes(disk.checkpoint)} (twice while one is written), "
        f"{kept}: at most {_bytes(disk.total or 0)}"
    )


def _budget(plan: Plan) -> str:
    budget = plan.budget
    caps = [f"budget.usd ${budget.usd:.2f}"] if budget.usd is not None else []
    caps += (
        [f"budget.usd_per_iteration ${budget.usd_per_iteration:.2f}"] if budget.usd_per_iteration is not None else []
    )
    spent = f", {budget.spent:.2f} of it spent already" if budget.spent else ""
    return f"expected ${budget.total:.2f}{spent}; caps: {', '.join(caps) or 'none'}"


def _probe(plan: Plan) -> str:
    probe = plan.probe
    assert probe is not None
    judged = probe.measured.judged
    price = "" if judged is None or judged.cost_usd is None else f", ${judged.cost_usd:.5f} a judgment"
    fields = "; ".join(f"usage of {model}: {', '.join(names)}" for model, names in probe.usage_fields.items())
    return (
        f"{probe.prompts} prompts, ${probe.cost_usd:.4f} newly spent and booked on this run's ledger, "
        f"{probe.seconds_per_prompt:.2f} s a prompt{price}{'; ' + fields if fields else ''}"
    )


def _number(value: float) -> str:
    return f"{value:,.0f}"


def _dollars(value: float) -> str:
    return f"{value:,.2f}"


def _bytes(value: float) -> str:
    for unit in UNITS[:-1]:
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:,.3g} {UNITS[-1]}"
