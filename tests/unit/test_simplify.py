"""The ladder: only singular structures are simplified, in the documented order, and it is told."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.engine.formula import parse
from analysis.inference.simplify import simplified, written
from analysis.mixed import fit_mixed

GRID = pd.read_csv(Path(__file__).parents[1] / "oracles" / "grid.csv")


def test_a_fit_that_stands_is_left_alone():
    found = simplified(GRID, "score ~ wp + (1 + wp | task) + (1 | run)")
    assert not found.steps
    assert found.fit.formula == found.asked == "score ~ wp + (1 + wp | task) + (1 | run)"


def test_rungs_come_in_order_and_only_where_needed():
    # lab is balanced over everything and has no effect: nothing of it can stay.
    found = simplified(GRID, "score ~ wp + dataset + (1 + wp | lab) + (1 | task) + (1 | run)")
    assert found.fit.formula == "score ~ wp + dataset + (1 | task) + (1 | run)"
    assert not found.fit.singular
    kinds = ["correlations of what varies over lab", "slope of wp over lab", "intercept over lab"]
    for step, kind in zip(found.steps, kinds, strict=True):
        assert kind in step
    assert "was singular" in found.steps[0]
    plain = fit_mixed(GRID, "score ~ wp + dataset + (1 | task) + (1 | run)")
    np.testing.assert_allclose(found.fit.fixef, plain.fixef, atol=1e-4)


def test_a_slope_that_does_not_vary_goes_and_its_intercept_stays():
    rng = np.random.default_rng(7)
    data = pd.DataFrame({"g": np.repeat(np.arange(12), 10), "x": np.tile(np.arange(10.0), 12)})
    data["z"] = rng.normal(size=120)
    x, level = data["x"], rng.normal(0, 3, 12)[data["g"]]
    wiggle = np.tile([1.0, -1.0], 60)  # leaves slopes over x smaller than chance would have them
    data["score"] = level + 0.2 * x + wiggle + 0.01 * rng.normal(size=120)
    found = simplified(data, "score ~ x + (1 + x | g)")
    assert found.fit.formula == "score ~ x + (1 | g)"
    assert "slope of x over g was dropped" in found.steps[-1]


def test_several_bars_over_one_group_and_odd_names():
    data = GRID.rename(columns={"lab": "the lab"})
    found = simplified(data, "score ~ wp + (1 | `the lab`) + (0 + wp | `the lab`) + (1 | task)")
    assert found.fit.formula == "score ~ wp + (1 | task)"
    assert len(found.steps) == 2


def test_a_level_each_falls_back_to_an_intercept():
    found = simplified(GRID, "score ~ wp + (0 + adapter | lab) + (1 | task)")
    assert "slope of adapter over lab was replaced by a random intercept" in found.steps[0]
    assert found.fit.formula == "score ~ wp + (1 | task)"


def test_everything_may_go():
    found = simplified(GRID, "score ~ wp * adapter + (1 | lab)", method="ML", weights="w")
    assert found.fit.formula == "score ~ wp * adapter"
    assert found.fit.method == "ML"
    assert found.fit.design.weights_N is not None


@pytest.mark.parametrize(
    "formula",
    [
        "score ~ wp * adapter + (1 + wp | task) + (1 | run)",
        "score ~ poly(wp, 2) + (1 | dataset/run)",
        "score ~ 1 + (0 + wp || task:dataset)",
    ],
)
def test_a_formula_is_written_as_it_was_read(formula):
    parsed = parse(formula, GRID.columns)
    assert parse(written(parsed), GRID.columns) == parsed
