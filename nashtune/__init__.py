"""nashtune: improve a chat model by preference feedback (Direct Nash Optimization, arXiv 2404.03715).

The names below are what a notebook needs; they load lazily, so ``import nashtune`` never imports torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_EXPORTS = {
    "Recipe": "nashtune.recipe",
    "load_recipe": "nashtune.recipe",
    "Run": "nashtune.run",
    "sample": "nashtune.loop",
    "judge": "nashtune.loop",
    "build_pairs": "nashtune.pairs",
    "make_pairs": "nashtune.loop",
    "train": "nashtune.loop",
    "validate": "nashtune.loop",
    "improve": "nashtune.loop",
}
__all__ = [
    "Recipe",
    "Run",
    "__version__",
    "build_pairs",
    "improve",
    "judge",
    "load_recipe",
    "make_pairs",
    "sample",
    "train",
    "validate",
]

if TYPE_CHECKING:
    from nashtune.loop import improve, judge, make_pairs, sample, train, validate
    from nashtune.pairs import build_pairs
    from nashtune.recipe import Recipe, load_recipe
    from nashtune.run import Run


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'nashtune' has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)
