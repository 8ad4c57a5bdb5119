"""A part of a grid: against all parts of a small one, a textbook fraction, and its limits."""

from itertools import combinations, product

import numpy as np
import pandas as pd
import pytest

from analysis.errors import AnalysisError
from analysis.planning.fraction import _exchanged, _start, fraction
from tests.fake_results import fake_results

PLANNED = fake_results(seeds=3, plws=(0.0, 0.1, 0.5, 1.0), controls=False)


def determinant(q, part):
    return np.linalg.det(q[list(part)].T @ q[list(part)])


@pytest.mark.parametrize("seed", range(4))
def test_the_exchange_finds_what_trying_all_parts_finds(seed):
    x = np.random.default_rng(seed).normal(size=(11, 3))
    found = _exchanged(x, _start(x, 6))
    assert len(set(found)) == 6
    best = max(determinant(x, part) for part in combinations(range(11), 6))
    assert determinant(x, found) >= 0.97 * best


def test_half_of_a_two_level_grid_is_the_textbook_half():
    """Four of the eight corners of a cube: those that leave three main effects orthogonal."""
    cube = np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1])).reshape(3, -1).T.astype(float)
    x = np.column_stack([np.ones(8), cube])
    part = _exchanged(x, _start(x, 4))
    np.testing.assert_allclose(x[part].T @ x[part], 4 * np.eye(4), atol=1e-12)


def test_ties_of_a_balanced_grid_are_broken_by_order_and_not_by_rounding():
    """Turned columns have the same determinants with other roundings of them."""
    corners = np.array(list(product((-1.0, 0.0, 1.0), repeat=4)))
    x = np.column_stack([np.ones(len(corners)), corners, corners[:, :1] * corners[:, 1:]])
    part = _exchanged(x, _start(x, 20))
    for seed in range(4):
        turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(x.shape[1],) * 2))[0]
        np.testing.assert_array_equal(_exchanged(x @ turn, _start(x @ turn, 20)), part)


def test_a_part_of_a_study():
    found = fraction(PLANNED, 70)
    assert len(found.runs) == 70 == len(set(found.runs))
    assert set(found.runs) <= set(PLANNED["train_key"])
    needed = found.balance["factor"] != "plw"  # a quadratic has no use for a fourth level
    assert found.balance[needed]["part"].ge(1).all()
    assert found.balance.groupby("factor")["part"].sum().eq(70).all()
    assert found.efficiency > 0.9
    assert 1 < found.spread < 3
    assert fraction(PLANNED, 70).runs == found.runs


def test_the_whole_grid_is_as_good_as_itself():
    whole = fraction(PLANNED, 70).whole
    found = fraction(PLANNED, whole)
    assert found.efficiency == pytest.approx(1.0)
    assert found.spread == pytest.approx(1.0)


@pytest.mark.parametrize("runs", [0, 3, 10_000])
def test_too_few_and_too_many(runs):
    with pytest.raises(AnalysisError, match="coefficients and the grid"):
        fraction(PLANNED, runs)


def test_what_the_grid_itself_confounds_is_named():
    confounded = PLANNED[
        ((PLANNED["dataset"] == "micro") & (PLANNED["adapter"] != "mora"))
        | ((PLANNED["dataset"] == "micro_short") & (PLANNED["adapter"] == "mora"))
        | (PLANNED["adapter"] == "none")
    ]
    found = fraction(confounded, 40)
    assert found.aliased
    assert pd.Series(found.aliased).str.contains("adapter|dataset").any()
