"""Adjusted p-values by their definitions; scipy's Tukey and Dunnett tests, mvtnorm's numbers."""

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from analysis.errors import AnalysisError
from analysis.inference.multiplicity import (
    adjusted,
    holm,
    max_t_critical,
    max_t_p,
    range_tail,
    tukey_critical,
    tukey_p,
)

P_MAX_T = 1e-5  # 2^16 directions of two dimensions
RULE = 1e-9  # Gauss and Legendre


P = [0.01, 0.04, np.nan, 0.03, 0.2, 0.03]  # with a missing test, a tie, and out of order


def test_holm_is_the_step_down_of_bonferroni():
    # By the definition: the k-th smallest of n times (n - k + 1), made to rise, at most one.
    np.testing.assert_allclose(adjusted(P, "holm"), [0.05, 0.12, np.nan, 0.12, 0.2, 0.12])
    np.testing.assert_array_equal(holm(P), adjusted(P, "holm"))


def test_bonferroni_counts_the_tests_there_are():
    np.testing.assert_allclose(adjusted(P, "bonferroni"), [0.05, 0.2, np.nan, 0.15, 1.0, 0.15])


def test_the_false_discovery_rate_is_scipys():
    known = np.isfinite(P)
    found = adjusted(P, "bh")
    np.testing.assert_allclose(found[known], stats.false_discovery_control(np.array(P)[known]))
    assert np.isnan(found[2])


def test_holm_is_that_of_statsmodels():
    rng = np.random.default_rng(0)
    for count in (1, 2, 7, 40):
        p_C = rng.choice([0.001, 0.02, 0.3, *rng.uniform(size=count)], count)  # with ties
        np.testing.assert_allclose(holm(p_C), multipletests(p_C, method="holm")[1])


@pytest.mark.parametrize("method", ["none", "holm", "bonferroni", "bh"])
def test_missing_and_lonely_tests_stay_as_they_are(method):
    np.testing.assert_array_equal(adjusted([0.3], method), [0.3])
    np.testing.assert_array_equal(adjusted([np.nan, np.nan], method), [np.nan, np.nan])
    assert len(adjusted([], method)) == 0


def test_an_unknown_adjustment_is_told():
    with pytest.raises(AnalysisError, match=r"adjust=holms: not one of .* Did you mean 'holm'"):
        adjusted([0.1], "holms")


def three_groups():
    rng = np.random.default_rng(3)
    return [rng.normal(m, 1, n) for m, n in ((0.0, 8), (0.6, 12), (1.4, 9))]


def pooled(groups, pairs):
    """t statistics, df and the covariance of differences of means, by the textbook."""
    df = sum(len(g) - 1 for g in groups)
    s2 = sum(((g - g.mean()) ** 2).sum() for g in groups) / df
    l_CK = np.zeros((len(pairs), len(groups)))
    for row, (i, j) in enumerate(pairs):
        l_CK[row, i], l_CK[row, j] = 1, -1
    cov = l_CK @ np.diag([s2 / len(g) for g in groups]) @ l_CK.T
    t = l_CK @ [g.mean() for g in groups] / np.sqrt(np.diagonal(cov))
    return t, np.full(len(pairs), float(df)), cov


def test_tukey_is_scipys():
    groups = three_groups()
    pairs = [(0, 1), (0, 2), (1, 2)]
    t, df, cov = pooled(groups, pairs)
    theirs = stats.tukey_hsd(*groups)
    np.testing.assert_allclose(tukey_p(t, df, 3), [theirs.pvalue[i, j] for i, j in pairs])
    ends = theirs.confidence_interval(0.95)
    half = tukey_critical(0.95, df, 3) * np.sqrt(np.diagonal(cov))
    low = t * np.sqrt(np.diagonal(cov)) - half
    np.testing.assert_allclose(low, [ends.low[i, j] for i, j in pairs], rtol=1e-6)
    # All pairs of means of equal variance: the multivariate t is the studentised range.
    equal = np.array([[1.0, 0.5, -0.5], [0.5, 1.0, 0.5], [-0.5, 0.5, 1.0]])
    np.testing.assert_allclose(max_t_p(t, df, equal), tukey_p(t, df, 3), atol=P_MAX_T)
    endless = tukey_p(np.array([2.0]), np.array([np.inf]), 3)
    np.testing.assert_allclose(max_t_p([2.0], [np.inf], equal), endless, atol=P_MAX_T)


@pytest.mark.parametrize(("q", "df", "means"), [(3.0, 1.5, 3), (4.2, 7.3, 5), (0.4, 30.0, 2),
                                                (9.0, 12.0, 12), (5.0, 4000.0, 40)])  # fmt: skip
def test_the_studentised_range_is_scipys(q, df, means):
    expected = stats.studentized_range.sf(q, means, df)
    assert range_tail(q, df, means) == pytest.approx(expected, abs=1e-8)
    if means == 2:  # two means: Student's t
        assert range_tail(q, df, 2) == pytest.approx(2 * stats.t.sf(q / np.sqrt(2), df), abs=1e-9)


def test_the_multivariate_t_is_scipys_dunnett():
    groups = three_groups()
    t, df, cov = pooled(groups, [(1, 0), (2, 0)])
    theirs = stats.dunnett(*groups[1:], control=groups[0], rng=np.random.default_rng(0))
    np.testing.assert_allclose(max_t_p(t, df, cov), theirs.pvalue, atol=3e-4)  # theirs is random
    ends = theirs.confidence_interval(0.95)
    half = max_t_critical(0.95, df, cov) * np.sqrt(np.diagonal(cov))
    np.testing.assert_allclose(t * np.sqrt(np.diagonal(cov)) - half, ends.low, atol=2e-3)


def test_the_multivariate_t_in_closed_form():
    # Uncorrelated and without end of df: 1 - (1 - p)^k; wholly correlated: p itself.
    t = np.array([2.5])
    p = 2 * stats.norm.sf(2.5)
    assert max_t_p(t, [np.inf], np.eye(4))[0] == pytest.approx(1 - (1 - p) ** 4, abs=RULE)
    assert max_t_p(t, [7.0], np.ones((3, 3)))[0] == pytest.approx(2 * stats.t.sf(2.5, 7))
    critical = max_t_critical(0.9, [7.0, 9.0], np.eye(2))
    np.testing.assert_allclose(max_t_p(critical, [7.0, 9.0], np.eye(2)), 0.1, atol=1e-6)
    with pytest.raises(AnalysisError, match="a comparison has no variance"):
        max_t_p(t, [7.0], np.zeros((1, 1)))
