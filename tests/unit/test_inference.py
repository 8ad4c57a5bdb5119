"""Contrasts, likelihood ratios, equivalence and multiplicity against scipy and statsmodels."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.errors import AnalysisError
from analysis.inference.boundary import mixture_p
from analysis.inference.estimates import (
    NOT_ESTIMABLE,
    Estimate,
    coefficients,
    contrast,
    covariance,
    equivalence,
    holm,
    joint,
    likelihood_ratio,
    minimum_detectable_effect,
)
from analysis.mixed import fit_mixed, refit

GRID = pd.read_csv(Path(__file__).parents[1] / "oracles" / "grid.csv")
FORMULA = "score ~ wp + adapter + (1 | task) + (1 | run)"


@pytest.fixture(scope="module")
def fit():
    return fit_mixed(GRID, FORMULA)


def test_coefficients_are_estimate_interval_and_p(fit):
    found = coefficients(fit).set_index("name")
    assert list(found.index) == list(fit.fixef.index)
    wp = found.loc["wp"]
    df = fit.curvature.df(np.array([0.0, 1.0, 0.0]))
    assert wp["df"] == pytest.approx(df)
    low, high = stats.t.interval(0.95, df, loc=fit.fixef["wp"], scale=fit.se["wp"])
    assert (wp["low"], wp["high"]) == pytest.approx((low, high))
    assert wp["p"] == pytest.approx(2 * stats.t.sf(abs(fit.fixef["wp"] / fit.se["wp"]), df))
    normal = coefficients(fit, df="normal").set_index("name").loc["wp"]
    assert normal["low"] == pytest.approx(fit.fixef["wp"] - 1.959964 * fit.se["wp"])


def test_a_contrast_uses_the_covariance(fit):
    l_B = np.array([1.0, 0.5, 1.0])
    found = contrast(fit, l_B, name="there")
    assert found.estimate == pytest.approx(float(l_B @ fit.fixef))
    assert found.se == pytest.approx(float(np.sqrt(l_B @ fit.cov.to_numpy() @ l_B)))
    nothing = contrast(fit, np.zeros(3))
    assert (nothing.estimate, nothing.se, nothing.low) == (0.0, 0.0, 0.0)
    assert np.isnan(nothing.p)
    with pytest.raises(AnalysisError, match=r"df=kenward: .* Did you mean .kenward-roger"):
        contrast(fit, l_B, df="kenward")


def test_a_likelihood_ratio_is_of_ml_fits_and_compares_aic(fit):
    small = fit_mixed(GRID, "score ~ adapter + (1 | task) + (1 | run)")
    found = likelihood_ratio(small, fit)
    a, b = refit(small, "ML"), refit(fit, "ML")
    assert found.df == 1
    assert found.statistic == pytest.approx(2 * (b.loglik - a.loglik))
    assert found.p == pytest.approx(stats.chi2.sf(found.statistic, 1))
    assert found.aic_small - found.aic_large == pytest.approx(found.statistic - 2)
    assert found.note == ""
    # One coefficient: F is t squared, in the REML fit.
    wp = coefficients(fit).set_index("name").loc["wp"]
    assert found.joint.statistic == pytest.approx(wp["t"] ** 2)
    assert found.joint.p == pytest.approx(wp["p"])
    slope = likelihood_ratio(
        fit, fit_mixed(GRID, "score ~ wp + adapter + (1 + wp | task) + (1 | run)")
    )
    assert slope.df == 2
    assert slope.joint is None
    assert "variance is zero under the small model" in slope.note
    mixed = (stats.chi2.sf(slope.statistic, 1) + stats.chi2.sf(slope.statistic, 2)) / 2
    assert slope.p == pytest.approx(mixed)


def test_a_likelihood_ratio_knows_the_boundary(fit):
    one = likelihood_ratio(fit_mixed(GRID, "score ~ wp + adapter + (1 | task)"), fit)
    assert one.df == 1
    assert one.p == pytest.approx(stats.chi2.sf(one.statistic, 1) / 2)
    assert "0 and 1 degrees of freedom" in one.note
    # Correlations alone are no boundary; two new variances have weights of their own.
    free = fit_mixed(GRID, "score ~ wp + adapter + (1 + wp || task) + (1 | run)")
    tied = fit_mixed(GRID, "score ~ wp + adapter + (1 + wp | task) + (1 | run)")
    correlation = likelihood_ratio(free, tied)
    assert correlation.note == ""
    assert correlation.p == pytest.approx(stats.chi2.sf(correlation.statistic, 1))
    both = likelihood_ratio(fit_mixed(GRID, "score ~ wp + adapter"), fit)
    assert both.p == pytest.approx(stats.chi2.sf(both.statistic, 2))
    assert "2 variances are zero" in both.note
    assert "bootstrap_ratio" in both.note


def test_the_boundarys_mixture_is_the_null_distribution():
    # Stram and Lee's case: one variance beside an intercept's, in balanced groups.
    assert mixture_p(0.0, 1) == 1.0
    assert mixture_p(2.705543, 1) == pytest.approx(0.05, abs=1e-6)
    assert mixture_p(5.138, 2) == pytest.approx(0.05, abs=1e-4)


def test_joint_tests_follow_the_df_rule(fit):
    wp = np.array([[0.0, 1.0, 0.0]])
    for rule in ("satterthwaite", "kenward-roger", "normal"):
        single = contrast(fit, wp[0], df=rule)
        together = joint(fit, wp, df=rule)
        assert together.statistic == pytest.approx(single.t**2, rel=1e-6)
        assert together.df_residual == pytest.approx(single.df)
        assert together.p == pytest.approx(single.p)
        cov = covariance(fit, rule)
        assert single.se == pytest.approx(np.sqrt(cov[1, 1]))


def test_a_likelihood_ratio_of_unlike_models_is_refused(fit):
    with pytest.raises(AnalysisError, match="different rows"):
        likelihood_ratio(fit_mixed(GRID.iloc[9:], "score ~ wp + (1 | task) + (1 | run)"), fit)
    with pytest.raises(AnalysisError, match="no more parameters"):
        likelihood_ratio(fit, fit)


def test_information_criteria_count_all_parameters(fit):
    ml = refit(fit, "ML")
    assert ml.parameters == 3 + 2 + 1
    assert ml.aic == pytest.approx(-2 * ml.loglik + 12)
    assert ml.bic == pytest.approx(-2 * ml.loglik + 6 * np.log(540))


@pytest.mark.parametrize(
    ("estimate", "margin", "verdict"),
    [
        (0.1, 2.0, "no effect beyond the margin"),
        (1.2, 2.0, "a small effect"),
        (3.0, 2.0, "an effect"),
        (-3.0, 2.0, "an effect"),
        (0.3, 0.4, "undecided"),
    ],
)
def test_equivalence_verdicts(estimate, margin, verdict):
    assert equivalence(Estimate("x", estimate, 0.3, 20.0), margin).verdict == verdict


def test_equivalence_is_two_one_sided_tests():
    from statsmodels.stats.weightstats import ttost_paired

    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1, (2, 25))
    gap = a - b
    effect = Estimate("gap", gap.mean(), gap.std(ddof=1) / 5, 24.0)
    assert equivalence(effect, 0.8).p == pytest.approx(ttost_paired(a, b, -0.8, 0.8)[0])
    with pytest.raises(AnalysisError, match="margin=0: must be positive"):
        equivalence(effect, 0)


def test_the_minimum_detectable_effect_has_the_power_it_claims():
    # Exact power is a non-central t; the textbook formula is within half a point of it here.
    from statsmodels.stats.power import TTestPower

    se, df = 0.4, 24
    mde = minimum_detectable_effect(se, df)
    exact = TTestPower().power(mde / (se * 5), nobs=25, alpha=0.05)
    assert exact == pytest.approx(0.80, abs=0.005)
    assert Estimate("x", 0.0, se, df).mde == mde
    assert minimum_detectable_effect(se, np.inf) == pytest.approx((1.959964 + 0.841621) * se)


def test_what_is_not_estimable_stays_missing(fit):
    found = contrast(fit, np.array([0.0, np.nan, 0.0]))
    assert np.isnan([found.estimate, found.se, found.low, found.p, found.mde]).all()
    assert equivalence(found, 2.0).verdict == NOT_ESTIMABLE
    np.testing.assert_array_equal(holm([0.04, np.nan, 0.01]), [0.04, np.nan, 0.02])
