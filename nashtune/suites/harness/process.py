"""Tasks run in a process of their own, so that lm-evaluation-harness's imports and the model's memory are apart."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nashtune.errors import EvaluationError
from nashtune.recipe import HarnessSection, HarnessTask
from nashtune.seeds import content_hash
from nashtune.store.files import read_json, write_json

CHILD = Path(__file__).with_name("child.py")
REFUSED = 3
TOLD = 2000
"""Characters of the child's output that an error repeats."""


def check_installed(settings: HarnessSection) -> None:
    """Raises EvaluationError where this environment is to run the tasks and has no lm-evaluation-harness, or a folder or
    interpreter is not there."""
    if settings.python is None and importlib.util.find_spec("lm_eval") is None:
        raise EvaluationError("harness tasks need lm-evaluation-harness: pip install 'nashtune[lm-eval]', or `python`")
    if settings.python is not None and not os.access(Path(settings.python).expanduser(), os.X_OK):
        raise EvaluationError(
            f"python is {settings.python!r}; accepted: an interpreter with lm-eval, as ENV/bin/python"
        )
    folder = include_folder(settings)
    if folder is not None and not folder.is_dir():
        raise EvaluationError(f"include_path is {settings.include_path!r}; accepted: a folder of task files (yaml)")


def include_folder(settings: HarnessSection) -> Path | None:
    """The folder of further tasks."""
    return Path(settings.include_path).expanduser().resolve() if settings.include_path else None


def include_digest(settings: HarnessSection) -> str | None:
    """A hash of the names and contents of a folder of tasks; data they name elsewhere are told by each result's task hashes."""
    folder = include_folder(settings)
    if folder is None:
        return None
    files = sorted(file for file in folder.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
    return content_hash([[str(file.relative_to(folder)), content_hash(file.read_bytes().hex())] for file in files])


def result_file(task: HarnessTask, settings: HarnessSection, work: Path) -> Path:
    """Where a task's result lies; what decides it is in the name. Batch size and interpreter do not count."""
    asked = [
        task.model_dump(),
        [settings.model, settings.model_args, settings.dtype, settings.limit, settings.apply_chat_template],
        [settings.seed, include_digest(settings)],
    ]
    return work / f"{task.task}-{content_hash(asked)[:12]}.json"


def run_tasks(policy: Path, work: Path, settings: HarnessSection) -> list[dict[str, Any]]:
    """Each task's result for the model in ``policy``, in the settings' order; those in ``work`` are not run again.

    ``work`` is one policy's alone. Raises EvaluationError with the child's own words where it fails; tasks that it had
    finished stay finished.
    """
    check_installed(settings)
    files = [result_file(task, settings, work) for task in settings.tasks]
    todo = [(task, file) for task, file in zip(settings.tasks, files, strict=True) if not file.exists()]
    if todo:
        _run_child(_job(policy, settings, todo), work, settings)
    return [read_json(file) for file in files]


def _job(policy: Path, settings: HarnessSection, todo: Sequence[tuple[HarnessTask, Path]]) -> dict[str, Any]:
    folder = include_folder(settings)
    model_args = {
        "pretrained": str(policy.resolve()),
        "dtype": settings.dtype,
        "trust_remote_code": settings.trust_remote_code,
        **settings.model_args,
    }
    return {
        "model": settings.model,
        "model_args": model_args,
        "batch_size": settings.batch_size,
        "device": settings.device,
        "limit": settings.limit,
        "apply_chat_template": settings.apply_chat_template,
        "include_path": str(folder) if folder else None,
        "seed": settings.seed,
        "tasks": [
            {
                "task": task.task,
                "shots": task.shots,
                "metric": task.metric,
                "filter": task.filter,
                "file": str(file.resolve()),
            }
            for task, file in todo
        ],
    }


def _run_child(job: Mapping[str, Any], work: Path, settings: HarnessSection) -> None:
    work.mkdir(parents=True, exist_ok=True)
    write_json(work / "job.json", job)
    python = str(Path(settings.python).expanduser()) if settings.python else sys.executable
    log = work / "log.txt"
    command = [python, str(CHILD), str(work / "job.json")]
    # Another interpreter must not find this one's packages.
    hidden = ("PYTHONPATH", "PYTHONHOME") if settings.python else ()
    variables = {name: value for name, value in os.environ.items() if name not in hidden}
    with log.open("wb") as stream:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, check=False, env=variables
        )
    if done.returncode == 0:
        return
    told = log.read_text(encoding="utf-8", errors="replace")
    if done.returncode == REFUSED:
        raise EvaluationError("harness: " + told[told.rindex("refused: ") :].removeprefix("refused: ").strip())
    names = ", ".join(entry["task"] for entry in job["tasks"] if not Path(entry["file"]).exists())
    raise EvaluationError(
        f"harness: lm-evaluation-harness ended with status {done.returncode}; not finished: {names}. Its last words "
        f"({log}): {told.strip()[-TOLD:]}"
    )
