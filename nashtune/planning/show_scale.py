"""A plan for several machines as tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nashtune.planning.played import Row, Total
from nashtune.planning.scale_plan import ScalePlan
from nashtune.summaries import AVERAGE

COLUMNS = ("hours", "GPU-hours", "lost", "loading", "down", "idle", "units redone", "GPU $", "API $")


@dataclass(frozen=True, slots=True)
class _Unit:
    name: str
    in_hour: float
    digits: int


def print_scale_plan(plan: ScalePlan) -> None:
    """Stages, totals, advice, and every assumption."""
    console = Console()
    console = Console(width=max(console.width, 190)) if not console.is_terminal else console
    unit = _Unit("seconds", 3600, 1) if plan.total.hours < 1 else _Unit("hours", 1, 2)
    console.print(_table(plan, unit))
    lines = [f"time    {text}" for text in _times(plan, unit)]
    lines.append(f"money   {_money(plan.total)}")
    lines.append(f"wasted  {_wasted(plan.total, unit)}")
    lines += [f"advice  {text}" for text in plan.advice]
    lines += [f"rests on {text}" for text in plan.notes]
    lines += [f"rests on {figure}" for figure in plan.assumptions]
    for line in lines:
        console.print(Text(line), soft_wrap=True)


def _table(plan: ScalePlan, unit: _Unit) -> Table:
    table = Table(title=f"{plan.name} on {plan.machines}: means of {plan.trials} simulated runs")
    table.add_column("iteration", no_wrap=True)
    table.add_column("stage", no_wrap=True)
    for name in COLUMNS:
        table.add_column(name.replace("hours", unit.name), justify="right", no_wrap=True)
    table.add_column("tightest limit", no_wrap=True)
    for number, row in enumerate(plan.rows):
        last = number + 1 == len(plan.rows) or plan.rows[number + 1].iteration != row.iteration
        name = "average" if row.iteration == AVERAGE else str(row.iteration)
        table.add_row(name, row.stage, *_cells(row, unit), row.limit, end_section=last)
    table.add_row("total", "", *_cells(plan.total, unit), "", style="bold")
    return table


def _cells(row: Row | Total, unit: _Unit) -> Sequence[str]:
    times = (row.hours, row.gpu_hours, row.lost, row.loading, row.down, row.idle)
    shown = [f"{value * unit.in_hour:,.{unit.digits}f}" for value in times]
    return [*shown, f"{row.redone_units:,.1f}", f"{row.gpu_usd:,.2f}", f"{row.api_usd:,.2f}"]


def _times(plan: ScalePlan, unit: _Unit) -> Sequence[str]:
    def told(hours: float) -> str:
        return f"{hours * unit.in_hour:,.{unit.digits}f}"

    total = plan.total
    return [
        f"{told(total.hours)} {unit.name} ({told(total.least)} to {told(total.most)} in {plan.trials} simulated runs)",
        f"{told(plan.barriers.hours)} with a barrier after each stage (scale.overlap: false); "
        f"{told(plan.least_hours)} of it without failures and spread (closed form)",
    ]


def _money(total: Total) -> str:
    return f"${total.usd:,.2f}: GPUs ${total.gpu_usd:,.2f} ({total.gpu_hours:,.1f} GPU-hours), paid calls ${total.api_usd:,.2f}"


def _wasted(total: Total, unit: _Unit) -> str:
    parts = {"done again": total.lost, "loading": total.loading, "waiting for nodes": total.down, "idle": total.idle}
    told = ", ".join(f"{name} {hours * unit.in_hour:,.{unit.digits}f}" for name, hours in parts.items())
    return (
        f"{100 * total.wasted:.1f} % of the GPU-{unit.name} ({told}); {total.failures:.2f} failures and "
        f"{total.redone_units:.1f} units redone a run"
    )
