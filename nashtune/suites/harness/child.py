"""Runs tasks of lm-evaluation-harness: the child's side. It imports nothing of nashtune's, so it runs in any environment.

    python child.py JOB.json

The job: model ("hf" or "vllm"), model_args, batch_size, device, limit, apply_chat_template, include_path, seed, tasks: a list of
{task, shots, metric, filter, file}. The model is loaded once; a task's result is written to its file (whole or not at all) as
soon as the task is finished. Exit status 3 with one line on stderr is an error that the user can act on.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("lm_eval", "transformers", "torch", "datasets", "vllm")
BOOTSTRAPS = 1000
"""For errors of metrics that are no means."""


class Refused(Exception):
    """A job that cannot be done as it is asked."""


def main(job: dict[str, Any]) -> None:
    """Run what the job lists. Raises Refused."""
    try:
        from lm_eval.tasks import TaskManager  # type: ignore
    except ImportError as error:
        raise Refused(
            f"{sys.executable} has no lm-evaluation-harness ({error}); accepted: pip install 'nashtune[lm-eval]'"
        ) from None
    manager = TaskManager(include_path=job["include_path"])
    if absent := [entry["task"] for entry in job["tasks"] if not manager.match_tasks([entry["task"]])]:
        raise Refused(
            f"no task {', '.join(absent)}; accepted: tasks of lm-evaluation-harness (`lm-eval ls tasks`) and of include_path "
            f"({job['include_path']})"
        )
    lm = load(job)
    for entry in job["tasks"]:
        write(Path(entry["file"]), run(job, entry, lm, manager))


def load(job: dict[str, Any]) -> Any:
    """The model, as lm-evaluation-harness drives it."""
    from lm_eval.api.registry import get_model  # type: ignore

    sizes = {"batch_size": job["batch_size"], "max_batch_size": None, "device": job["device"]}
    return get_model(job["model"]).create_from_arg_obj(job["model_args"], sizes)


def run(job: dict[str, Any], entry: dict[str, Any], lm: Any, manager: Any) -> dict[str, Any]:
    """One task, or a group of tasks, evaluated -> what is kept of it. Raises Refused where it has no such metric."""
    from lm_eval import simple_evaluate  # type: ignore

    found = simple_evaluate(
        model=lm,
        tasks=[entry["task"]],
        num_fewshot=entry["shots"],
        limit=job["limit"],
        apply_chat_template=job["apply_chat_template"],
        fewshot_as_multiturn=job["apply_chat_template"],
        task_manager=manager,
        log_samples=True,
        bootstrap_iters=BOOTSTRAPS,
        fewshot_random_seed=job["seed"],
    )
    if found is None:
        raise Refused(f"{entry['task']}: lm-evaluation-harness gave no results in this process")
    figures = found.get("groups", {}).get(entry["task"]) or found["results"][entry["task"]]
    name = f"{entry['metric']},{entry['filter']}"
    if name not in figures:
        known = sorted(key for key in figures if "," in key and "_stderr," not in key)
        raise Refused(f"{entry['task']}: no metric {name!r}; accepted (metric,filter): {', '.join(known)}")
    return {
        "task": entry["task"],
        "metric": entry["metric"],
        "filter": entry["filter"],
        "value": figures[name],
        "stderr": number(figures.get(f"{entry['metric']}_stderr,{entry['filter']}")),
        "shots": {task: count for task, count in found["n-shot"].items() if task in found["samples"]},
        "results": plain(found["results"]),
        "groups": plain(found.get("groups", {})),
        "versions": plain(found["versions"]),
        "higher_is_better": plain(found["higher_is_better"]),
        "task_hashes": hashes(found["samples"]),
        "samples": {task: documents(rows, entry) for task, rows in found["samples"].items()},
        "counts": plain(found["n-samples"]),
        "packages": packages(),
        "python": platform.python_version(),
        "batch_size": job["batch_size"],
        "seed": job["seed"],
    }


def documents(rows: list[dict[str, Any]], entry: dict[str, Any]) -> dict[str, float]:
    """Document -> the metric's value, where it has one for each; documents are told by number and content."""
    return {
        f"{row['doc_id']}:{row['doc_hash'][:12]}": float(row[entry["metric"]])
        for row in rows
        if row.get("filter", "none") == entry["filter"] and number(row.get(entry["metric"])) is not None
    }


def hashes(samples: dict[str, list[dict[str, Any]]]) -> dict[str, str]:
    """By task, one hash of what was asked: documents, prompts with their shots, targets."""
    import hashlib

    found = {}
    for task, rows in samples.items():
        asked = sorted({(row["doc_id"], row["doc_hash"], row["prompt_hash"], row["target_hash"]) for row in rows})
        found[task] = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
    return found


def packages() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def number(value: Any) -> float | None:
    """None for what is no finite number ("N/A" among others)."""
    if isinstance(value, bool):
        return float(value)
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if abs(found) < float("inf") else None


def plain(value: Any) -> Any:
    """As JSON can hold it."""
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    return number(value) if number(value) is not None else str(value)


def write(file: Path, value: dict[str, Any]) -> None:
    """Whole or not at all."""
    partial = file.with_suffix(f".{os.getpid()}.partial")
    with partial.open("w", encoding="utf-8") as stream:
        json.dump(value, stream, allow_nan=False)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(file)


if __name__ == "__main__":
    try:
        main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    except Refused as refused:
        print(f"refused: {refused}", file=sys.stderr)
        sys.exit(3)
