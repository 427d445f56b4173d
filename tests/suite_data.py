"""Small data of our own in the layouts of published suites."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TEMPLATE = """\
<|im_start|>system
You judge.
<|im_end|>
<|im_start|>user
{instruction}
m: {output_1}
M: {output_2}
<|im_end|>
"""
JUDGE_PROMPTS = {
    "single-v1": "Q {question} A {answer}",
    "single-math-v1": "Q {question} R {ref_answer_1} A {answer}",
    "single-v1-multi-turn": "Q {question_1} A {answer_1} Q {question_2} A {answer_2}",
    "single-math-v1-multi-turn": "R {ref_answer_1} R {ref_answer_2} Q {question_1} A {answer_1} Q {question_2} A {answer_2}",
    "pair-v2": "Q {question} A {answer_a} B {answer_b}",
    "pair-math-v1": "Q {question} R {ref_answer_1} A {answer_a} B {answer_b}",
    "pair-v2-multi-turn": "Q {question_1} {question_2} A {answer_a_1} {answer_a_2} B {answer_b_1} {answer_b_2}",
    "pair-math-v1-multi-turn": "R {ref_answer_1} {ref_answer_2} Q {question_1} {question_2} A {answer_a_1} {answer_a_2} "
    "B {answer_b_1} {answer_b_2}",
}


def alpaca_folder(folder: Path, prompts: int = 12) -> Path:
    """As alpaca_eval's data set on the hub, with the judge's prompt."""
    folder.mkdir(parents=True)
    rows = [
        {
            "dataset": f"set {n % 2}",
            "instruction": f"Say {n} things.",
            "output": f"thing {n} " * (n % 7 + 1),
            "generator": "base",
        }
        for n in range(prompts)
    ]
    (folder / "alpaca_eval_gpt4_baseline.json").write_text(json.dumps(rows))
    lines = ["index,model,std_delta_len,preference,instruction_difficulty"]
    for model, sign in (("concise", 1), ("verbose", -1)):
        lines += [f"{n},{model},{sign * 1.5},{0.5 - 0.3 * sign},{(n % 5 - 2) / 2}" for n in range(prompts)]
    (folder / "df_gamed.csv").write_text("\n".join(lines) + "\n")
    (folder / "alpaca_eval_clf.txt").write_text(TEMPLATE)
    return folder


def mt_bench_folder(folder: Path, questions: int = 6) -> Path:
    """As FastChat's data/mt_bench, with its judge prompts."""
    kinds = ["writing", "math", "stem"]
    _jsonl(
        folder / "question.jsonl",
        [{"question_id": n, "category": kinds[n % 3], "turns": [f"one {n}", f"two {n}"]} for n in range(questions)],
    )
    references = [
        {"question_id": n, "choices": [{"turns": [f"ref one {n}", f"ref two {n}"]}]}
        for n in range(questions)
        if kinds[n % 3] == "math"
    ]
    _jsonl(folder / "reference_answer" / "gpt-4.jsonl", references)
    prompts = [
        {"name": n, "system_prompt": f"system of {n}: [[rating]]", "prompt_template": t}
        for n, t in JUDGE_PROMPTS.items()
    ]
    _jsonl(folder / "judge_prompts.jsonl", prompts)
    return folder


def model_answers(file: Path, questions: int, name: str = "other") -> Path:
    """Answers in FastChat's model_answer format."""
    rows = [
        {"question_id": n, "model_id": name, "choices": [{"turns": [f"{name} one {n}", f"{name} two {n}"]}]}
        for n in range(questions)
    ]
    return _jsonl(file, rows)


def _jsonl(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file
