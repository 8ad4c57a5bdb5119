"""The optimum of a quadratic: the Fieller set by brute force, the verdicts, coverage."""

import numpy as np
import pytest
from scipy import stats

from analysis.errors import AnalysisError
from analysis.inference.optimum import (
    INTERIOR,
    NO_INTERIOR,
    NOT_IDENTIFIED,
    Quadratic,
    fieller_set,
    optimum,
)
from analysis.table.frame import WP_EXPONENT, plw_of

SURE = np.diag([1e-6, 1e-6])
WIDE = np.linspace(-50, 50, 1_000_001)


def curve(b1, b2, cov=SURE, df=np.inf):
    return Quadratic(b1, b2, np.asarray(cov, dtype=float), df)


def not_rejected(found, t, x):
    """Whether the slope at x does not differ from zero: the definition of the Fieller set."""
    variance = found.cov_22[0, 0] + 4 * x * found.cov_22[0, 1] + 4 * x**2 * found.cov_22[1, 1]
    return (found.b1 + 2 * found.b2 * x) ** 2 <= t**2 * variance


@pytest.mark.parametrize(
    ("b1", "b2", "cov"),
    [
        (8.0, -6.0, [[1.0, -0.9], [-0.9, 1.0]]),
        (8.0, -6.0, [[1.0, 0.0], [0.0, 1.0]]),
        (3.0, -6.0, [[0.4, -0.3], [-0.3, 0.5]]),
        (-3.0, 6.0, [[0.4, -0.3], [-0.3, 0.5]]),
    ],
)
def test_the_fieller_set_is_where_the_slope_does_not_differ_from_zero(b1, b2, cov):
    found = curve(b1, b2, cov)
    low, high = fieller_set(found, 2.0)
    bounded = np.isfinite(low)
    inside = WIDE[not_rejected(found, 2.0, WIDE)]
    assert bounded
    assert low == pytest.approx(inside.min(), abs=2e-4)
    assert high == pytest.approx(inside.max(), abs=2e-4)
    assert low < -b1 / (2 * b2) < high


@pytest.mark.parametrize("b1", [0.1, 5.0])
def test_the_fieller_set_is_unbounded_when_curvature_is_not_established(b1):
    found = curve(b1, -1.0, [[1.0, 0.0], [0.0, 1.0]])
    assert fieller_set(found, 2.0) == (-np.inf, np.inf)
    assert not_rejected(found, 2.0, np.array([-1e6, 1e6])).all()


@pytest.mark.parametrize(
    ("b1", "b2", "cov", "verdict", "words", "at"),
    [
        (10, -8, SURE, INTERIOR, "rises at the low end and falls", 0.625),
        (10, 0, SURE, NO_INTERIOR, "rises throughout", 1.0),
        (10, -4, SURE, NO_INTERIOR, "rises throughout", 1.0),
        (-10, 0, SURE, NO_INTERIOR, "falls throughout", 0.0),
        (-5, 3, SURE, NO_INTERIOR, "minimum inside", 0.0),
        (-5, 8, SURE, NO_INTERIOR, "minimum inside", 1.0),
        (10, -5.0001, SURE, NOT_IDENTIFIED, "at the high end is not determined", 0.99998),
        (0.001, -8, SURE, NOT_IDENTIFIED, "at the low end is not determined", 0.0000625),
        (1, -1, np.eye(2), NOT_IDENTIFIED, "at either end is not determined", 0.5),
        (0, 0, np.eye(2), NOT_IDENTIFIED, "at either end is not determined", 0.0),
    ],
)
def test_verdicts(b1, b2, cov, verdict, words, at):
    found = optimum(curve(b1, b2, cov))
    assert found.verdict == verdict
    assert words in found.words
    assert found.at == pytest.approx(at, abs=1e-5)


def test_an_optimum_is_interior_exactly_when_the_fieller_set_is():
    # Lind and Mehlum 2010; checked on random curves, of which both kinds must occur.
    rng = np.random.default_rng(0)
    seen = {True: 0, False: 0}
    for _ in range(2000):
        b1, b2 = rng.normal(0, 4, 2)
        half = rng.normal(size=(2, 2))
        found = curve(b1, b2, half @ half.T + 0.05 * np.eye(2), df=20)
        t = stats.t.ppf(0.975, 20)
        low, high = fieller_set(found, t)
        bounded = np.isfinite(low)
        inside = bounded and low > 0 and high < 1 and b2 < 0
        assert (optimum(found).verdict == INTERIOR) == inside
        seen[inside] += 1
    assert min(seen.values()) > 20


def test_the_gain_is_the_height_above_the_start():
    found = optimum(curve(8.0, -6.0, np.diag([0.04, 0.09])))
    assert found.gain == pytest.approx(64 / 24)
    assert found.gain_se == pytest.approx(np.sqrt(0.04 * (2 / 3) ** 2 + 0.09 * (2 / 3) ** 4))


def test_the_flatness_test_is_the_f_test():
    cov = np.array([[0.4, -0.3], [-0.3, 0.5]])
    b = np.array([1.1, -0.7])
    statistic = b @ np.linalg.solve(cov, b) / 2
    assert curve(*b, cov, df=30).p == pytest.approx(stats.f.sf(statistic, 2, 30))
    line = curve(1.1, 0.0, np.diag([0.4, 0.0]), df=30)
    assert line.p == pytest.approx(2 * stats.t.sf(1.1 / np.sqrt(0.4), 30))


def test_fieller_covers_the_vertex():
    rng = np.random.default_rng(5)
    x = np.tile(np.linspace(0, 1, 6), 4)
    X = np.column_stack([np.ones(24), x, x**2])
    inverse = np.linalg.inv(X.T @ X)
    hits, bounded = 0, 0
    for _ in range(1000):
        y = 12 * x - 10 * x**2 + rng.normal(0, 0.8, 24)
        beta = inverse @ X.T @ y
        s2 = float(((y - X @ beta) ** 2).sum() / 21)
        found = optimum(curve(beta[1], beta[2], s2 * inverse[1:, 1:], df=21))
        hits += found.fieller[0] <= 0.6 <= found.fieller[1]
        bounded += np.isfinite(found.fieller[0])
    assert bounded > 995  # an unbounded set is reported as the whole line, which always covers
    assert 0.934 < hits / 1000 < 0.966


def test_the_published_optimum():
    # PLW paper, section 5.2: -4.284 (w_p - 0.652)^2 + 0.781, critical PLW 0.242.
    found = optimum(curve(2 * 4.284 * 0.652, -4.284, SURE))
    assert found.at == pytest.approx(0.652)
    assert plw_of(found.at) == pytest.approx(0.242, abs=5e-4)
    assert plw_of(0.5) == pytest.approx(0.1, abs=1e-6)
    half = 0.1**WP_EXPONENT
    assert half == pytest.approx(0.5, abs=1e-6)
    assert np.isnan(plw_of(-0.1))


def test_an_empty_range_is_an_error():
    with pytest.raises(AnalysisError, match=r"low=1\.0 must be below high=0\.0"):
        optimum(curve(1, -1), low=1.0, high=0.0)
