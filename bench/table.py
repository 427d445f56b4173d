"""One table of ratios against named peers at named versions, on this machine's CPU.

    python bench/table.py [--rows sampling,training] [--quick] [--repeats N] [--output FILE]

Exits with 1 where a bar is missed or a part fails. NASHTUNE_VLLM_PYTHON names the Python of an environment with vLLM, where
there is one. The rows `quickstart` are measured only when named. README.md beside this file says what each row measures.
"""

from __future__ import annotations

from pathlib import Path

from harness import Settings, main, parser

FAMILIES = {
    "sampling": "rows_sampling",
    "training": "rows_training",
    "iteration": "rows_iteration",
    "growth": "rows_growth",
    "overhead": "rows_overhead",
    "quickstart": "rows_quickstart",
}
USUAL = [name for name in FAMILIES if name != "quickstart"]

if __name__ == "__main__":
    options = parser(__doc__, FAMILIES, USUAL).parse_args()
    main(Path(__file__), FAMILIES, options, Settings(quick=options.quick))
