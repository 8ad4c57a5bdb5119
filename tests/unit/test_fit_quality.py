"""R2, ICC, random effects and fitted values with their errors, against R and dense algebra."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.errors import AnalysisError
from analysis.inference.fit_quality import (
    conditional_covariances,
    explained,
    fitted_values,
    predicted,
    random_effects,
)
from analysis.mixed import fit_mixed

ORACLES = Path(__file__).parents[1] / "oracles"
STORED = json.loads((ORACLES / "inference_models.json").read_text())
# performance 0.10.2 loses one of the two variances of (1 + wp || task), gives up on singular
# models, and takes a weighted model's sigma^2 for every row's variance.
PLAIN = [m for m in STORED if m["icc"] and "||" not in m["formula"] and not m["weights"]]
RELATIVE = 1e-5


def stored_fit(model):
    data = pd.read_csv(ORACLES / f"{model['data']}.csv")
    return fit_mixed(data, model["formula"], weights="w" if model["weights"] else None)


@pytest.mark.parametrize("model", PLAIN, ids=[m["name"] for m in PLAIN])
def test_r2_and_icc_equal_performance(model):
    found = explained(stored_fit(model))
    assert found.marginal == pytest.approx(model["r2"]["marginal"], rel=RELATIVE)
    assert found.conditional == pytest.approx(model["r2"]["conditional"], rel=RELATIVE)
    assert found.icc == pytest.approx(model["icc"]["adjusted"], rel=RELATIVE)
    assert sum(found.by_group.values()) == pytest.approx(found.icc)


def test_r2_with_slopes_and_weights_is_the_mean_over_rows():
    data = pd.read_csv(ORACLES / "unbalanced.csv")
    fit = fit_mixed(data, "score ~ wp + (1 + wp || task) + (1 | run)", weights="w")
    task, run = (fit.random[g].sd ** 2 for g in ("task", "run"))
    r = (task["Intercept"] + task["wp"] * data["wp"] ** 2).mean() + run["Intercept"]
    e = (fit.sigma**2 / data["w"]).mean()
    f = (data["wp"] * fit.fixef["wp"]).var()
    assert explained(fit).marginal == pytest.approx(f / (f + r + e))
    assert explained(fit).conditional == pytest.approx((f + r) / (f + r + e))


def test_without_random_effects_r2_is_nearly_the_usual_one():
    data = pd.read_csv(ORACLES / "ragged.csv")
    fit = fit_mixed(data, "score ~ wp + steps")
    found = explained(fit)
    ss = ((data["score"] - fit.fitted) ** 2).sum()
    f = fit.fitted.var()
    assert found.marginal == pytest.approx(f / (f + ss / (fit.n - 3)))
    assert (found.icc, found.conditional) == (0.0, found.marginal)
    assert len(random_effects(fit)) == 0


@pytest.mark.parametrize("model", STORED, ids=[m["name"] for m in STORED])
def test_random_effects_equal_lme4(model):
    found = random_effects(stored_fit(model)).set_index(["group", "level", "name"])
    checked = 0
    for group, part in model["modes"].items():
        rows = pd.DataFrame(part)
        for row in rows.itertuples():
            name = row.term.replace("(Intercept)", "Intercept")
            ours = found.loc[(group, row.level, name)]
            assert ours["estimate"] == pytest.approx(row.value, abs=2e-6)
            assert ours["se"] == pytest.approx(row.se, rel=1e-5, abs=2e-6)
            checked += 1
    assert checked == len(found)


@pytest.mark.parametrize("weights", [None, "w"])
def test_errors_equal_the_mixed_model_equations(weights):
    # Henderson: the inverse of [X'WX X'WZ; Z'WX Z'WZ + G^-1] is the joint covariance of the
    # errors of beta and b, and the inverse of its lower corner alone that of b given beta.
    data = pd.read_csv(ORACLES / "unbalanced.csv")
    formula = "score ~ wp + adapter + (1 + wp | task) + (1 | run)"
    fit = fit_mixed(data, formula, weights=weights)
    assert not fit.singular
    w = np.ones(fit.n) if weights is None else data["w"].to_numpy()
    X = fit.design.X_NB
    z, g = [], []
    for f in fit.problem.factors:
        z.append(f.matrix(f.columns_NP).toarray())
        g.append(np.kron(np.eye(len(f.levels)), fit.random[f.group].cov.to_numpy()))
    Z = np.hstack(z)
    G = np.zeros((Z.shape[1], Z.shape[1]))
    at = 0
    for block in g:
        G[at : at + len(block), at : at + len(block)] = block
        at += len(block)
    both = np.hstack([X, Z])
    left = both.T @ (both * w[:, None]) / fit.sigma**2
    left[X.shape[1] :, X.shape[1] :] += np.linalg.inv(G)
    cov = np.linalg.inv(left)
    found = fitted_values(fit, level=0.9)
    se = np.sqrt(np.einsum("na,ab,nb->n", both, cov, both))
    np.testing.assert_allclose(found["se"], se, rtol=1e-6)
    np.testing.assert_allclose(found["fitted"], fit.fitted)
    np.testing.assert_allclose(found["high"] - found["fitted"], 1.6448536 * se, rtol=1e-6)
    given = np.sqrt(np.diagonal(np.linalg.inv(left[X.shape[1] :, X.shape[1] :])))
    np.testing.assert_allclose(random_effects(fit)["se"], given, rtol=1e-6)


def test_the_sparse_coupling_gives_the_same_errors():
    rng = np.random.default_rng(4)
    n = 3000
    data = pd.DataFrame({"s": rng.integers(0, 600, n), "d": rng.integers(0, 350, n)})
    data["x"] = rng.normal(size=n)
    noise = rng.normal(size=600)[data["s"]] + rng.normal(size=350)[data["d"]]
    data["score"] = data["x"] + noise + rng.normal(size=n)
    fit = fit_mixed(data, "score ~ x + (1 | s) + (1 | d)")
    assert fit.problem.layout.pattern is not None
    a = [f.matrix(f.columns_NP).toarray() for f in fit.problem.factors]
    Z = np.hstack(a)
    var = [fit.random[f.group].cov.to_numpy()[0, 0] for f in fit.problem.factors]
    c = Z.T @ Z / fit.sigma**2 + np.diag(np.repeat(1 / np.array(var), [m.shape[1] for m in a]))
    expected = np.diagonal(np.linalg.inv(c))
    own = np.concatenate([v.ravel() for v in conditional_covariances(fit)])
    np.testing.assert_allclose(own, expected, rtol=1e-6)


def test_predictions_elsewhere_have_the_contrasts_errors():
    data = pd.read_csv(ORACLES / "ragged.csv")
    fit = fit_mixed(data, "score ~ wp + adapter + (1 | run)")
    rows = pd.DataFrame({"wp": [0.3, 2.0], "adapter": ["lora", "full"]}, index=["a", "b"])
    found = predicted(fit, rows)
    l_B = np.array([1, 0.3, 1, 0])
    assert found.loc["a", "fitted"] == pytest.approx(l_B @ fit.fixef)
    assert found.loc["a", "se"] == pytest.approx(np.sqrt(l_B @ fit.cov.to_numpy() @ l_B))
    with pytest.raises(AnalysisError, match="no column adapter"):
        predicted(fit, rows[["wp"]])
