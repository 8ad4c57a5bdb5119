"""Order, rounding and factors of matrices under changes in the last digit."""

import ast
from pathlib import Path

import numpy as np
import pytest

from analysis.engine.canonical import eigen, pivoted, root
from analysis.engine.ties import falling, first_largest, rising, settled, tied_ranks
from analysis.inference.estimates import Estimate
from analysis.report import words
from analysis.report.tables import shown

ROOT = Path(__file__).parents[2]
SORTS = {"sort_values", "argsort"}


def nudged(values, seed=0):
    """The same numbers after other roundings."""
    values = np.asarray(values, dtype=float)
    return values * (1 + 4e-16 * np.random.default_rng(seed).integers(-3, 4, values.shape))


def test_equal_numbers_keep_their_order_whatever_their_last_digit():
    values = np.repeat([0.1 + 0.2, 0.5, 1 / 3, 0.3], 25)
    for seed in range(5):
        other = nudged(values, seed)
        np.testing.assert_array_equal(rising(other), [*range(25), *range(75, 100), *range(50, 75),
                                                      *range(25, 50)])  # fmt: skip
        np.testing.assert_array_equal(falling(other)[:50], [*range(25, 50), *range(50, 75)])
        assert first_largest(other) == 25


def test_tied_ranks_are_shared_by_ties_and_missing_numbers_come_last():
    values = [2.0, np.nan, 1.0, 2.0 + 1e-15, -np.inf, 3.0]
    np.testing.assert_array_equal(tied_ranks(values), [2, 4, 1, 2, 0, 3])
    assert first_largest(values) == 5
    assert tied_ranks([]).tolist() == []
    np.testing.assert_array_equal(tied_ranks([1e-3, 2e-3]), [0, 1])


@pytest.mark.parametrize("value", [1.495, 0.125, -2.675, 12.5, 1e-12, 0.0, 123456.5])
def test_a_number_at_a_rounding_border_is_shown_one_way(value):
    for seed in range(5):
        other = float(nudged([value], seed)[0])
        assert f"{settled(other):.2f} {settled(other):.2g}" == f"{value:.2f} {value:.2g}"
        estimate = Estimate("x", other, 1.0, np.inf)
        assert f"{estimate:.2f}" == f"{Estimate('x', value, 1.0, np.inf):.2f}"
        assert shown(other, ".2f") == shown(value, ".2f")
        assert words.signed(other, 2) == words.signed(value, 2)
    assert np.isnan(settled(np.nan))


def test_whole_numbers_are_shown_to_the_last():
    assert shown(13_015_864_321, ",.0f") == shown(13_015_864_321.0, ",.0f") == "13,015,864,321"


def test_an_estimate_shows_its_interval():
    assert f"{Estimate('x', 1.495, 0.5, np.inf):+.2f}" == "+1.50 (+0.52 to +2.47)"


def repeated(seed=0):
    """A covariance of rank 5 in 7 dimensions with the eigenvalue 2 three times."""
    q = np.linalg.qr(np.random.default_rng(seed).normal(size=(7, 7)))[0]
    return (q * [0, 0, 2, 2, 2, 5, 7]) @ q.T


@pytest.mark.parametrize("cov", [repeated(), np.eye(6) + 1, np.diag([3.0, 1, 1, 3])])
def test_factors_do_not_turn_with_the_last_digit(cov):
    noise = 1e-15 * np.random.default_rng(1).normal(size=cov.shape)
    one, two = cov, cov + noise + noise.T
    # The root of a zero eigenvalue is that of rounding, sqrt(7 * 1e-15) at most.
    np.testing.assert_allclose(root(one), root(two), atol=1e-7)
    np.testing.assert_allclose(root(one) @ root(one), one, atol=1e-12)
    (values, vectors), (_, others) = eigen(one), eigen(two)
    np.testing.assert_allclose((vectors * values) @ vectors.T, one, atol=1e-12)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(len(one)), atol=1e-12)
    np.testing.assert_allclose(np.abs(vectors), np.abs(others), atol=1e-12)
    (factor, pivots), (other, same) = (pivoted(np.diagonal(c), c.__getitem__) for c in (one, two))
    assert pivots == same
    assert len(pivots) == np.linalg.matrix_rank(one)
    np.testing.assert_allclose(factor, other, atol=1e-12)
    np.testing.assert_allclose(factor @ factor.T, one, atol=1e-12)


def sorts(path):
    """Return the lines of a file with a sort by the processor's order of equal numbers."""
    calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
    named = [c for c in calls if isinstance(c.func, ast.Attribute) and c.func.attr in SORTS]
    return [f"{path.name}:{c.lineno}" for c in named if not _stable(c)]


def _stable(call):
    """Whether the sort says so, or is of torch's, which takes `stable=True`."""
    words = {word.arg: getattr(word.value, "value", None) for word in call.keywords}
    return words.get("kind") == "stable" or words.get("stable") is True


def test_every_sort_of_numbers_is_stable():
    files = [p for room in ("ablate", "analysis", "notebooks") for p in (ROOT / room).rglob("*.py")]
    assert len(files) > 100
    assert [line for path in files for line in sorts(path)] == []
