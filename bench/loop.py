"""The quickstart's loop: seconds of each stage, and its sampling and training against the usual tools.

    python bench/loop.py [--json] [--quick] [--rows quickstart]

The families `quickstart`, `sampling` and `training` of table.py, with the same options.
"""

from __future__ import annotations

from pathlib import Path

from harness import Settings, main, parser
from table import FAMILIES

ROWS = ("quickstart", "sampling", "training")

if __name__ == "__main__":
    options = parser(__doc__, FAMILIES, ROWS).parse_args()
    main(Path(__file__), FAMILIES, options, Settings(quick=options.quick))
