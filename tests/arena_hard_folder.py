"""A small Arena-Hard of our own in upstream's layout: 4 hard prompts and 2 creative ones, with both baselines' answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

CONFIG = {
    "judge_model": "some-judge",
    "temperature": 0.0,
    "max_tokens": 16000,
    "regex_patterns": [r"\[\[([AB<>=]+)\]\]", r"\[([AB<>=]+)\]"],
    "prompt_template": "Q {QUESTION}\nA {ANSWER_A}\nB {ANSWER_B}",
}
SETTINGS = """\
CAREFUL = "careful judge"

JUDGE_SETTINGS = {
    "hard_prompt": {"baseline": "o3-mini-2025-01-31", "system_prompt": CAREFUL},
    "creative_writing": {"baseline": "gemini-2.0-flash-001", "system_prompt": "free judge"},
}
"""
BASELINES = ("o3-mini-2025-01-31", "gemini-2.0-flash-001")
OTHER = "no-such-model"


def write_jsonl(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def clone_folder(folder: Path) -> Path:
    data = folder / "data" / "arena-hard-v2.0"
    kinds = [("hard_prompt", "coding")] * 4 + [("creative_writing", "creative_writing")] * 2
    questions = [
        {"uid": f"u{n}", "category": kind, "subcategory": sub, "prompt": f"Question {n}?"}
        for n, (kind, sub) in enumerate(kinds)
    ]
    write_jsonl(data / "question.jsonl", questions)
    for name in BASELINES:
        rows = [
            {
                "uid": q["uid"],
                "model": name,
                "messages": [{"role": "assistant", "content": {"answer": f"{name} {q['uid']}"}}],
            }
            for q in questions
        ]
        write_jsonl(data / "model_answer" / f"{name}.jsonl", rows)
    for file, text in (("config/arena-hard-v2.0.yaml", yaml.safe_dump(CONFIG)), ("utils/judge_utils.py", SETTINGS)):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(text)
    return folder
