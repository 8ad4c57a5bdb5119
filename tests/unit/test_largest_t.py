"""The largest of correlated t: against plain quadrature, the range, and itself under rounding."""

import numpy as np
import pytest
from scipy import integrate, special, stats

from analysis.inference import largest_t
from analysis.inference.largest_t import OneFactor, directed, largest, one_factor, quantile
from analysis.inference.multiplicity import range_tail

# Of p near 0.05 by quasi-random directions: what the module promises as its standard error, times
# four, beyond which a right one is once in 16,000.
DIRECTED_SE = 2e-4
FAR = 4


def halves(count):
    return np.full((count, count), 0.5) + 0.5 * np.eye(count)


def all_pairs(count):
    """Correlations of all differences of `count` independent means of one variance."""
    rows = [np.eye(count)[i] - np.eye(count)[j] for i in range(count) for j in range(i)]
    return np.array(rows) @ np.array(rows).T / 2


def products(b):
    corr = np.outer(b, b)
    np.fill_diagonal(corr, 1.0)
    return corr


@pytest.mark.parametrize("df", [3, 15, np.inf])
@pytest.mark.parametrize("count", [2, 6, 25])
def test_directions_agree_with_the_exact_integral_within_their_own_error(count, df):
    exact = largest(halves(count), two_sided=False)
    assert isinstance(exact, OneFactor)
    d = quantile(exact, 0.95, df)
    sampled = directed(halves(count), two_sided=False)
    error = sampled.error(d, df)
    assert error < DIRECTED_SE
    assert sampled.tail(d, df) == pytest.approx(0.05, abs=FAR * max(error, DIRECTED_SE / 2))
    assert quantile(sampled, 0.95, df) == pytest.approx(d, abs=2e-3 * d)


@pytest.mark.parametrize("count", [3, 6, 15])
def test_directions_agree_with_the_studentised_range(count):
    sampled = directed(all_pairs(count), two_sided=True)
    for d, df in ((2.0, np.inf), (3.0, 30.0), (4.0, 12.0)):
        expected = range_tail(np.sqrt(2) * d, df, count)
        bound = FAR * max(sampled.error(d, df), DIRECTED_SE / 2)
        assert sampled.tail(d, df) == pytest.approx(expected, abs=bound)


@pytest.mark.parametrize("two_sided", [False, True])
@pytest.mark.parametrize("corr", [halves(25), all_pairs(7), products(np.r_[0.2, 0.5, -0.8, 0.5])])
def test_rounding_of_the_correlations_moves_nothing(corr, two_sided):
    """Repeated eigenvalues: their vectors turn freely under a change in the last digit."""
    rng = np.random.default_rng(0)
    noise = 1e-15 * rng.normal(size=corr.shape)
    other = corr + noise + noise.T
    for make in (largest, directed):
        one, two = (quantile(make(c, two_sided=two_sided), 0.95, 9.0) for c in (corr, other))
        # A singular factor turns 1e-15 into its square root at most; a turned one moves 1e-3.
        assert two == pytest.approx(one, abs=1e-7)


def plain_tail(d, b_C, two_sided):
    """1 - E prod_i P(|b_i z + sqrt(1 - b_i^2) e| <= d), infinite df, by scipy's quadrature."""

    def within(z):
        r_C = np.sqrt(1 - b_C**2)
        low_C = special.ndtr((-d - b_C * z) / r_C) if two_sided else 0.0
        return np.prod(special.ndtr((d - b_C * z) / r_C) - low_C) * stats.norm.pdf(z)

    return 1 - integrate.quad(within, -9, 9, epsabs=1e-12, limit=400)[0]


@pytest.mark.parametrize("two_sided", [False, True])
@pytest.mark.parametrize("b_C", [(0.3, 0.3, 0.9), (0.1, -0.7, 0.4, 0.4, 0.94), (0.0, 0.0, 0.0)])
def test_one_factor_is_found_and_integrated(b_C, two_sided):
    b_C = np.array(b_C)
    found = largest(products(b_C), two_sided=two_sided)
    assert isinstance(found, OneFactor)
    for d in (0.7, 2.0, 4.0):
        expected = plain_tail(d, b_C, two_sided)
        assert found.tail(d, np.inf) == pytest.approx(expected, abs=5e-7)


@pytest.mark.parametrize("corr", [
    all_pairs(4),
    products(np.array([0.5, 0.5, 0.97])),  # too steep for the rule
    np.array([[1.0, 0.5, 0.5], [0.5, 1.0, -0.4], [0.5, -0.4, 1.0]]),  # a b^2 below zero
    np.array([[1.0, 0.5, 0.0], [0.5, 1.0, 0.5], [0.0, 0.5, 1.0]]),
])  # fmt: skip
def test_what_has_no_single_factor_is_left_to_directions(corr):
    assert one_factor(corr) is None


def test_the_far_tail_stays_between_one_statistic_and_bonferroni():
    for corr in (halves(40), all_pairs(9)):
        for df in (8.0, np.inf):
            one = 2 * (stats.t.sf(7.5, df) if np.isfinite(df) else stats.norm.sf(7.5))
            assert one <= largest(corr, two_sided=True).tail(7.5, df) <= len(corr) * one


def test_bins_lose_nothing_of_the_tail(monkeypatch):
    binned = directed(all_pairs(8), two_sided=True)
    monkeypatch.setattr(largest_t, "ALONE", 2**largest_t.POINTS)
    every = directed(all_pairs(8), two_sided=True)
    assert every.share_N.size == 2**largest_t.POINTS
    for d, df in ((2.0, np.inf), (3.0, 12.0), (5.0, np.inf)):
        assert binned.tail(d, df) == pytest.approx(every.tail(d, df), rel=3e-3)
