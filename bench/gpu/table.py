"""The same table on one GPU: sampling and training against vLLM, generate and TRL, each where it is installed.

    python bench/gpu/table.py [--rows sampling,training] [--models 135M,1B,7B] [--limit-s 460]
    python bench/gpu/table.py --device cpu --tiny            # does the code run at all

Runs from a copy of the tree with torch and transformers alone, without network; a row whose packages are missing names
them. README.md beside this file says more.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent.parent)]  # the copy need not be installed

from harness import Settings, main, parser  # noqa: E402

FAMILIES = {"sampling": "gpu_sampling", "training": "gpu_training"}


def cli() -> None:
    options = parser(__doc__, FAMILIES, FAMILIES)
    options.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    options.add_argument("--tiny", action="store_true", help="a smoke test: a model of a few thousand weights")
    options.add_argument("--models", help="shapes with random weights (see random_models.py) or model folders")
    options.add_argument("--limit-s", type=float, help="begin nothing more after so many seconds")
    chosen = options.parse_args()
    models = (chosen.models or ("tiny" if chosen.tiny else "135M,1B,7B")).split(",")
    threads = 1 if chosen.device == "cpu" else None
    settings = Settings(chosen.quick, chosen.device, chosen.tiny, tuple(models), threads, chosen.limit_s)
    main(Path(__file__), FAMILIES, chosen, settings)


if __name__ == "__main__":
    cli()
