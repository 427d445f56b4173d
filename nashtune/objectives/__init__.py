"""Preference objectives: what training minimises, by name.

Each file of this package holds a family: its losses, each a short pure function, and its rows. A new objective is a row in
its family's file and a test: the recipe's settings, the trainer and the command line find it in OBJECTIVES.
"""

from nashtune.objectives.kernel import (
    WORDS,
    LossTerms,
    Objective,
    PairTerms,
    Setting,
    Sides,
    log_ratios,
    preference_loss,
    reference_iteration,
)
from nashtune.objectives.logistic import LOGISTIC
from nashtune.objectives.pointwise import POINTWISE
from nashtune.objectives.squared import SQUARED

OBJECTIVES: dict[str, Objective] = {**LOGISTIC, **SQUARED, **POINTWISE}

__all__ = [
    "OBJECTIVES",
    "WORDS",
    "LossTerms",
    "Objective",
    "PairTerms",
    "Setting",
    "Sides",
    "log_ratios",
    "preference_loss",
    "reference_iteration",
]
