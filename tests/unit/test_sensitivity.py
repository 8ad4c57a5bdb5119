"""Leverage against generalised least squares on the other rows, collinearity in closed form."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.errors import AnalysisError
from analysis.inference.sensitivity import collinearity, leverage
from analysis.mixed import fit_mixed

GRID = pd.read_csv(Path(__file__).parents[1] / "oracles" / "grid.csv")
RAGGED = pd.read_csv(Path(__file__).parents[1] / "oracles" / "ragged.csv")


def dense_without(fit, keep, weights=None):
    """beta and its errors on some rows, from the N x N covariance of the whole fit."""
    n = fit.n
    V = np.diag(fit.sigma**2 / (np.ones(n) if weights is None else weights))
    for f in fit.problem.factors:
        same = f.index_N[:, None] == f.index_N[None, :]
        V += (f.columns_NP @ fit.random[f.group].cov.to_numpy() @ f.columns_NP.T) * same
    inverse = np.linalg.inv(V[np.ix_(keep, keep)])
    X, y = fit.design.X_NB[keep], fit.design.y_N[keep]
    cov = np.linalg.inv(X.T @ inverse @ X)
    return cov @ X.T @ inverse @ y, np.sqrt(np.diagonal(cov))


@pytest.mark.parametrize(
    ("formula", "weights"),
    [
        ("score ~ wp + I(wp^2) + adapter + (1 + wp | run)", "w"),
        ("score ~ wp + I(wp^2) + adapter + (0 + wp | run) + (1 | seed)", None),
    ],
)
def test_leaving_a_level_out_equals_generalised_least_squares(formula, weights):
    fit = fit_mixed(RAGGED, formula, weights=weights)
    table = leverage(fit, RAGGED, "wp").table
    given = None if weights is None else RAGGED["w"].to_numpy()
    for level in RAGGED["wp"].unique():
        keep = (RAGGED["wp"] != level).to_numpy()
        beta, se = dense_without(fit, keep, given)
        part = table[table["level"] == level].set_index("name")
        for j, name in enumerate(fit.fixef.index):
            if name == "Intercept":
                assert name not in part.index
                continue
            row = part.loc[name]
            assert row["estimate_without"] == pytest.approx(beta[j], rel=1e-6)
            assert row["se_without"] == pytest.approx(se[j], rel=1e-6)
            assert row["share"] == pytest.approx(1 - (fit.se[name] / se[j]) ** 2, abs=1e-6)
            assert row["shift"] == pytest.approx((beta[j] - fit.fixef[name]) / fit.se[name])


def test_a_quadratic_that_rests_on_weight_zero_is_told():
    # "None" against "a little" looks like curvature: everything but weight 0 is at 0.5 or 1.
    data = GRID[GRID["plw"].isin([0, 0.5, 1])]
    fit = fit_mixed(data, "score ~ wp + I(wp^2) + (1 | task) + (1 | run)")
    found = leverage(fit, data, "plw", names=["I(wp ** 2)"])
    assert found.table.set_index("level")["share"].tolist() == [1.0, 1.0, 1.0]
    assert found.words == (
        "I(wp ** 2) depends on plw=0.0 entirely: without it there is no estimate.",
    )
    whole = leverage(fit_mixed(GRID, "score ~ wp + I(wp^2) + (1 | task)"), GRID, "plw")
    assert whole.words[0].startswith("wp depends on plw=0.0: 8")
    even = leverage(fit_mixed(GRID, "score ~ adapter + (1 | task) + (1 | run)"), GRID, "plw")
    assert even.words == ()


def test_a_level_that_moves_an_estimate_is_told():
    data = GRID.assign(score=GRID["score"] + 30 * (GRID["dataset"] == "long") * GRID["wp"])
    found = leverage(fit_mixed(data, "score ~ wp + (1 | task)"), data, "dataset")
    assert any("wp moves by" in w and "without dataset=long" in w for w in found.words)


def test_bad_questions_about_leverage():
    fit = fit_mixed(GRID, "score ~ wp + (1 | task)")
    with pytest.raises(AnalysisError, match=r"leverage of plv: no such column. Did you mean 'plw'"):
        leverage(fit, GRID, "plv")
    with pytest.raises(AnalysisError, match=r"leverage: no coefficient 'wpp'. Did you mean 'wp'"):
        leverage(fit, GRID, "plw", names=["wpp"])
    with pytest.raises(AnalysisError, match="its rows differ"):
        leverage(fit, GRID.iloc[1:], "plw")
    with pytest.raises(AnalysisError, match=r"leverage of score: .* levels; at most 200"):
        leverage(fit, GRID, "score")


def test_variance_inflation_is_statsmodels_for_least_squares():
    from statsmodels.stats.outliers_influence import variance_inflation_factor

    fit = fit_mixed(RAGGED, "score ~ wp + I(wp^2) + steps")
    X = fit.design.X_NB
    found = collinearity(fit)
    expected = [variance_inflation_factor(X, j) for j in range(1, 4)]
    np.testing.assert_allclose(found.vif, expected)
    assert found.condition == pytest.approx(np.linalg.cond(X / np.linalg.norm(X, axis=0)))
    assert "hardly be separated from the others" in found.words[0]


def test_a_terms_inflation_does_not_depend_on_its_coding():
    # Fox and Monette's point: any basis of a factor gives the same number.
    a = collinearity(fit_mixed(RAGGED, "score ~ adapter + wp + steps + (1 | run)"))
    other = RAGGED.assign(adapter=RAGGED["adapter"].map({"full": "z", "lora": "a", "mora": "m"}))
    b = collinearity(fit_mixed(other, "score ~ adapter + wp + steps + (1 | run)"))
    assert list(a.vif.index) == ["adapter", "wp", "steps"]
    np.testing.assert_allclose(a.vif, b.vif, rtol=1e-5)
    assert a.words == ()


def test_a_covariate_far_from_zero_is_told():
    data = RAGGED.assign(year=RAGGED["wp"] + 2000)
    found = collinearity(fit_mixed(data, "score ~ year + (1 | run)"))
    assert found.condition > 1000
    assert "nearly dependent" in found.words[-1]
    assert found.vif.tolist() == [1.0]
