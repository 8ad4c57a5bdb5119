"""Simulated refits against fits from scratch, closed forms and the known boundary mixture."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.engine.lmm import Problem
from analysis.engine.response import with_response
from analysis.errors import AnalysisError
from analysis.inference.bootstrap import bootstrap, bootstrap_ratio, simulated
from analysis.inference.marginal import root_weights
from analysis.mixed import fit_mixed

ORACLES = Path(__file__).parents[1] / "oracles"
RAGGED = pd.read_csv(ORACLES / "ragged.csv")
FORMULAS = [
    "score ~ wp * adapter + (1 | run)",
    "score ~ wp + adapter + (1 + wp | run)",
    "score ~ wp + (1 | run) + (1 | adapter)",
    "score ~ wp + adapter",
]


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("weights", [None, "w"])
def test_another_response_is_another_fit(formula, weights):
    fit = fit_mixed(RAGGED, formula, weights=weights)
    y_N = np.random.default_rng(0).normal(20, 3, fit.n)
    again = with_response(fit.problem, y_N, root_weights(fit))
    fresh = Problem(
        fit.design.X_NB, y_N, factors=fit.design.factors, weights_N=fit.design.weights_N
    )
    theta = np.linspace(0.3, 1.1, len(fit.minimum.theta))
    mine, theirs = again.evaluate(theta), fresh.evaluate(theta)
    assert mine.deviance == pytest.approx(theirs.deviance, abs=1e-9)
    np.testing.assert_allclose(mine.gradient, theirs.gradient, atol=1e-9)
    np.testing.assert_allclose(again.start if len(theta) else [], fresh.start)
    # The original is left as it was.
    assert fit.problem.evaluate(fit.minimum.theta).deviance == fit.minimum.at.deviance


def test_refits_equal_fits_from_scratch():
    fit = fit_mixed(RAGGED, "score ~ wp + adapter + (1 + wp | run)")
    found = bootstrap(fit, draws=20, seed=5)
    rng = np.random.default_rng(5)
    for y_N, (_, row) in zip(simulated(fit, 20, rng), found.draws.iterrows(), strict=True):
        again = fit_mixed(RAGGED.assign(score=y_N), fit.formula)
        se = again.se["wp"]
        assert row["wp"] == pytest.approx(again.fixef["wp"], abs=2e-3 * se)
        assert row["sd residual"] == pytest.approx(again.sigma, rel=2e-3)
    assert found.failed == 0
    assert found.estimate["wp"] == fit.fixef["wp"]
    assert found.estimate["sd run wp"] == pytest.approx(fit.random["run"].sd["wp"])


def test_simulated_responses_have_the_models_covariance():
    fit = fit_mixed(RAGGED, "score ~ wp + (1 + wp | run)", weights="w")
    rows = np.array(list(simulated(fit, 4000, np.random.default_rng(1))))
    factor = fit.problem.factors[0]
    same = factor.index_N[:, None] == factor.index_N[None, :]
    cov = (factor.columns_NP @ fit.random["run"].cov.to_numpy() @ factor.columns_NP.T) * same
    cov += np.diag(fit.sigma**2 / RAGGED["w"])
    off = np.abs(np.cov(rows.T) - cov) / np.sqrt(np.outer(np.diagonal(cov), np.diagonal(cov)))
    assert off.max() < 5 / np.sqrt(4000) * np.sqrt(2)
    np.testing.assert_allclose(rows.mean(axis=0), fit.design.X_NB @ fit.fixef, atol=0.25)


def test_percentile_intervals_are_those_of_least_squares():
    # sigma known to the simulation: the interval is estimate +- z se, up to its own noise.
    fit = fit_mixed(RAGGED, "score ~ wp + adapter")
    found = bootstrap(fit, draws=4000, extra=lambda beta: beta["wp"] / 2)
    low, high = found.interval("wp")
    assert low == pytest.approx(fit.fixef["wp"] - 1.96 * fit.se["wp"], abs=0.1 * fit.se["wp"])
    assert high == pytest.approx(fit.fixef["wp"] + 1.96 * fit.se["wp"], abs=0.1 * fit.se["wp"])
    np.testing.assert_allclose(found.interval("extra"), [low / 2, high / 2])
    df = fit.n - len(fit.fixef)
    chi = fit.sigma * np.sqrt(stats.chi2.ppf([0.025, 0.975], df) / df)
    np.testing.assert_allclose(found.interval("sd residual"), chi, rtol=0.02)
    table = found.table().set_index("name")
    assert table.loc["wp", "se"] == pytest.approx(fit.se["wp"], rel=0.05)


def test_the_ratio_of_a_null_variance_is_the_known_mixture():
    rng = np.random.default_rng(2)
    data = pd.DataFrame({"g": np.repeat(np.arange(40), 5), "x": np.tile(np.arange(5.0), 40)})
    data["score"] = rng.normal(size=200)
    small, large = fit_mixed(data, "score ~ x"), fit_mixed(data, "score ~ x + (1 | g)")
    test = bootstrap_ratio(small, large, draws=1000)
    # Half at zero, a little more in a finite table; the rest chi-square with one df.
    assert 0.45 < (test.null_D < 1e-4).mean() < 0.62
    tail = test.null_D[test.null_D > 1e-4]
    assert stats.kstest(tail, "chi2", args=(1,)).pvalue > 0.001
    assert test.p == (1 + (test.null_D >= test.statistic).sum()) / 1001


def test_a_fixed_effect_is_tested_too():
    small = fit_mixed(RAGGED, "score ~ adapter + (1 | run)")
    test = bootstrap_ratio(small, fit_mixed(RAGGED, "score ~ adapter + wp + (1 | run)"), draws=50)
    assert test.failed == 0
    assert 1 / 51 <= test.p < 0.3


def test_bad_input_is_told():
    fit = fit_mixed(RAGGED, "score ~ wp + (1 | run)")
    with pytest.raises(AnalysisError, match="draws=5: must be at least 20"):
        bootstrap(fit, draws=5)
    with pytest.raises(AnalysisError, match="bootstrap: no 'wpp'; there are Intercept, wp, sd run"):
        bootstrap(fit, draws=20).interval("wpp")
    with pytest.raises(AnalysisError, match="different rows"):
        bootstrap_ratio(fit_mixed(RAGGED.iloc[3:], "score ~ 1 + (1 | run)"), fit)
    with pytest.raises(AnalysisError, match="fits worse"):
        bootstrap_ratio(fit, fit_mixed(RAGGED, "score ~ 1 + (1 | run)"))
