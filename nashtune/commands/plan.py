"""The command `nashtune plan`: parse, call, print. Heavy imports stay inside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from nashtune.planning.cluster import Cluster
    from nashtune.recipe import Recipe

CLUSTER = "Several machines"


def plan(
    recipe: Annotated[Path, typer.Argument(help="A recipe file, or a run folder.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings to replace, as sampling.k=3.")
    ] = None,
    probe: Annotated[
        int, typer.Option(min=0, help="Really sample and judge that many prompts (4 are enough); their calls are paid.")
    ] = 0,
    answer_tokens: Annotated[
        int | None, typer.Option(min=1, help="Length of the policy's answers; measured, or half of max_new_tokens.")
    ] = None,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate", help="Measure seconds by sampling and training a little here; kept for later plans."
        ),
    ] = False,
    nodes: Annotated[
        int | None,
        typer.Option(help="Machines; without --gpu they are machines like this one.", rich_help_panel=CLUSTER),
    ] = None,
    gpus: Annotated[int | None, typer.Option(help="GPUs in each node.", rich_help_panel=CLUSTER)] = None,
    gpu: Annotated[str | None, typer.Option(help="Type of the GPUs, as H100.", rich_help_panel=CLUSTER)] = None,
    train_gpus: Annotated[int | None, typer.Option(help="GPUs that train; all.", rich_help_panel=CLUSTER)] = None,
    price: Annotated[float | None, typer.Option(help="Dollars an hour of a GPU.", rich_help_panel=CLUSTER)] = None,
    mtbf: Annotated[
        float | None, typer.Option(help="Hours between failures of a node; inf: none fails.", rich_help_panel=CLUSTER)
    ] = None,
    replace_minutes: Annotated[
        float | None, typer.Option(help="Until a lost node's successor is there; 10.", rich_help_panel=CLUSTER)
    ] = None,
    boot_minutes: Annotated[
        float | None, typer.Option(help="Until a node that is asked for is up; 2 with --gpu.", rich_help_panel=CLUSTER)
    ] = None,
    keep_gpus: Annotated[
        bool, typer.Option("--keep-gpus", help="Pay for GPUs while only a judge works.", rich_help_panel=CLUSTER)
    ] = False,
    prompts: Annotated[
        int | None, typer.Option(help="Prompts of the whole run, whatever there are.", rich_help_panel=CLUSTER)
    ] = None,
    parameters: Annotated[
        float | None, typer.Option(help="Weights of the policy (billions).", rich_help_panel=CLUSTER)
    ] = None,
    sampling_rate: Annotated[
        float | None, typer.Option(help="Answer tokens a second of a GPU.", rich_help_panel=CLUSTER)
    ] = None,
    training_rate: Annotated[
        float | None, typer.Option(help="Tokens a second of a GPU in training.", rich_help_panel=CLUSTER)
    ] = None,
    judge_tpm: Annotated[
        float | None, typer.Option(help="Tokens a minute of each served model.", rich_help_panel=CLUSTER)
    ] = None,
    judge_rpm: Annotated[
        float | None, typer.Option(help="Requests a minute of each served model.", rich_help_panel=CLUSTER)
    ] = None,
    judge_gpus: Annotated[
        int | None, typer.Option(help="Further GPUs that serve, or host, a judge of your own.", rich_help_panel=CLUSTER)
    ] = None,
    judge_parameters: Annotated[
        float | None, typer.Option(help="Weights of that judge (billions).", rich_help_panel=CLUSTER)
    ] = None,
    trials: Annotated[int | None, typer.Option(help="Runs simulated; 20.", rich_help_panel=CLUSTER)] = None,
    seed: Annotated[int | None, typer.Option(help="Decides failures; 0.", rich_help_panel=CLUSTER)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """What a run will take: tokens, money, time and disk, and what other judges would cost; on several machines hours, money,
    failures and waste. Exit code 1 over budget."""
    from nashtune.recipe import load_recipe
    from nashtune.run import recipe_file

    settings = load_recipe(recipe_file(recipe), overrides or [])
    folder = recipe if (recipe / "recipe.yaml").is_file() else None
    options = {
        "nodes": nodes,
        "gpus": gpus,
        "gpu": gpu,
        "train_gpus": train_gpus,
        "price": price,
        "mtbf": mtbf,
        "replace_minutes": replace_minutes,
        "boot_minutes": boot_minutes,
        "keep_gpus": keep_gpus or None,
        "prompts": prompts,
        "parameters": parameters,
        "sampling_rate": sampling_rate,
        "training_rate": training_rate,
        "judge_tpm": judge_tpm,
        "judge_rpm": judge_rpm,
        "judge_gpus": judge_gpus,
        "judge_parameters": judge_parameters,
        "trials": trials,
        "seed": seed,
    }
    given = {name: value for name, value in options.items() if value is not None}
    if given:
        _several(settings, folder, _cluster(given, probe), answer_tokens, calibrate, as_json)
    else:
        _one(settings, folder, probe, answer_tokens, calibrate, as_json)


def _cluster(given: dict[str, Any], probe: int) -> Cluster:
    from nashtune.errors import PlanError
    from nashtune.planning.cluster import Cluster

    if probe:
        raise PlanError(
            "--probe with options of several machines; accepted: one or the other (a probed run is not simulated)"
        )
    if "nodes" not in given and "gpu" not in given:
        option = next(iter(given)).replace("_", "-")
        raise PlanError(f"--{option} is about several machines; accepted: --nodes N, or --gpu TYPE --gpus G, beside it")
    return Cluster(**given)


def _one(
    recipe: Recipe, folder: Path | None, probe: int, answer_tokens: int | None, calibrate: bool, as_json: bool
) -> None:
    from nashtune.planning.plan import make_plan
    from nashtune.planning.show import print_plan

    found = make_plan(recipe, folder, probe_prompts=probe, answer_tokens=answer_tokens, calibrated=calibrate)
    if as_json:
        print(json.dumps(found.to_dict(), allow_nan=False))
    else:
        print_plan(found)
    found.budget.refuse()


def _several(
    recipe: Recipe, folder: Path | None, cluster: Cluster, answer_tokens: int | None, calibrate: bool, as_json: bool
) -> None:
    """A budget caps paid calls, as in a run."""
    from nashtune.planning.scale_plan import make_scale_plan
    from nashtune.planning.show_scale import print_scale_plan

    found = make_scale_plan(recipe, cluster, folder, answer_tokens=answer_tokens, calibrated=calibrate)
    if as_json:
        print(json.dumps(found.to_dict(), allow_nan=False))
    else:
        print_scale_plan(found)
    found.refuse_over_budget()
