"""All types that IFBench's published code knows: its own 58 and IFEval's 25."""

from __future__ import annotations

from nashtune.suites.ifbench import counts, layout, positions, sentence_rules, tasks, word_rules
from nashtune.suites.ifeval.checkers import IFEVAL
from nashtune.suites.ifeval.types import Types

HUB = "allenai/IFBench_test"
FILES = ("IFBench_test.jsonl", "ifbench_prompts.jsonl")
"""The names a folder may have the prompts under: the published repository's, ours."""

NEW = Types()
"""IFBench's own."""
for _module in (counts, layout, positions, sentence_rules, tasks, word_rules):
    NEW.update(_module.TYPES)
IFBENCH = Types({**IFEVAL, **NEW})
