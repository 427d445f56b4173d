"""Settings of objectives: each changes the loss, bad ones are refused; and which policies the references are."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from test_objectives import NAMES, loss, random_terms

from nashtune.errors import TrainingError
from nashtune.objectives import OBJECTIVES, log_ratios, reference_iteration
from nashtune.recipe import objective_section

FREE = {name for name, row in OBJECTIVES.items() if not row.references(row.defaults())}
"""Objectives without a reference."""

OTHER = {"replace_every": 5, "history": 2, "ratio": 0.5, "offset": 0.7}


@pytest.mark.parametrize(("name", "setting"), [(n, s) for n in NAMES for s in OBJECTIVES[n].settings])
def test_every_setting_changes_the_loss(name: str, setting: str) -> None:
    given, row = random_terms(), OBJECTIVES[name]
    default = row.settings[setting].default
    value = not default if isinstance(default, bool) else OTHER.get(setting, default * 0.5 if default else 0.3)
    base, changed = (loss(name, given, **more).losses for more in ({}, {setting: value}))
    assert not torch.allclose(base, changed, rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", [n for n in NAMES if "per_token" in OBJECTIVES[n].settings])
def test_the_length_normalised_variant_divides_each_answers_log_ratio(name: str) -> None:
    given, row = random_terms(), OBJECTIVES[name]
    plain, normal = (log_ratios(row, given, {**row.defaults(), "per_token": on}) for on in (False, True))
    torch.testing.assert_close(normal.chosen * given.lengths.chosen, plain.chosen)
    torch.testing.assert_close(normal.rejected * given.lengths.rejected, plain.rejected)


@pytest.mark.parametrize(
    ("name", "settings", "told"),
    [
        ("dno-prct", {"beta": 0}, "greater than 0"),
        ("dno-prct", {"beta": math.inf}, "finite"),
        ("dno-prct", {"alpha": -0.1}, "greater than or equal to 0"),
        ("dpo", {"offset": -1.0}, "greater than or equal to 0"),
        ("dpo", {"tau": 0.1}, "Extra inputs"),
        ("sft", {"beta": 0.1}, "Extra inputs"),
        ("mnpo", {"ratio": 1.2}, "less than or equal to 1"),
        ("mnpo", {"history": 0}, "greater than or equal to 1"),
        ("comal", {"replace_every": 1.5}, "valid integer"),
        ("rspo", {"clip": 0.0}, "greater than 0"),
    ],
)
def test_bad_settings_are_refused(name: str, settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        objective_section(name, **settings)


@pytest.mark.parametrize(
    "name", [n for n, row in OBJECTIVES.items() if "tau" in row.settings and "eta" in row.settings]
)
def test_tau_above_eta_is_refused(name: str) -> None:
    row = OBJECTIVES[name]
    assert row.problem({**row.defaults(), "tau": 0.2, "eta": 0.2}) is None
    problem = row.problem({**row.defaults(), "tau": 0.3, "eta": 0.2})
    assert problem == "objective.tau is 0.3; accepted: at most objective.eta, which is 0.2"


# ---- references ---------------------------------------------------------------------------------------------------------


def test_references_are_policies_of_iterations() -> None:
    assert [reference_iteration("0", t) for t in (1, 2, 9)] == [0, 0, 0]
    assert [reference_iteration("t", t) for t in (1, 2, 9)] == [0, 1, 8]
    assert [reference_iteration("t-2", t) for t in (1, 2, 3, 9)] == [0, 0, 0, 6]
    assert [reference_iteration("every-3", t) for t in (1, 3, 4, 6, 7, 8)] == [0, 0, 3, 3, 6, 6]
    for bad in ("t-0", "t-x", "every-0", "every", "1", ""):
        with pytest.raises(TrainingError, match=rf"reference '{bad}'; accepted: t, t-1"):
            reference_iteration(bad, 2)


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"rspo"}))
def test_weights_of_references_sum_to_1(name: str) -> None:
    row = OBJECTIVES[name]
    weights = row.references(row.defaults())
    assert all(weight >= 0 for weight in weights.values())
    assert sum(weights.values()) == pytest.approx(0 if name in FREE else 1)
    for reference in weights:
        reference_iteration(reference, 3)
