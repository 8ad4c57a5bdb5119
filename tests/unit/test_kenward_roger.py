"""Kenward and Roger's covariance and df against pbkrtest, ANOVA and N x N matrices."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.errors import AnalysisError
from analysis.inference import kenward_roger as module
from analysis.inference import marginal
from analysis.inference.estimates import coefficients, contrast, joint
from analysis.inference.kenward_roger import kenward_roger
from analysis.mixed import fit_mixed

ORACLES = Path(__file__).parents[1] / "oracles"
STORED = json.loads((ORACLES / "inference_models.json").read_text())
# pbkrtest takes W for the identity, so that its answers for weighted models are of another model
# (df off by 30 to 60 %); those are held against the N x N formulas below instead.
UNWEIGHTED = [m for m in STORED if not m["weights"]]
SE_RELATIVE, DF_RELATIVE = 1e-5, 1e-4  # agreement found: 1e-6; bounded by lme4's own theta


def stored_fit(model):
    data = pd.read_csv(ORACLES / f"{model['data']}.csv")
    return fit_mixed(data, model["formula"], weights="w" if model["weights"] else None)


@pytest.mark.parametrize("model", UNWEIGHTED, ids=[m["name"] for m in UNWEIGHTED])
def test_coefficients_and_f_equal_pbkrtest(model):
    fit = stored_fit(model)
    found = coefficients(fit, df="kenward-roger")
    np.testing.assert_allclose(found["se"], model["kr"]["se"], rtol=SE_RELATIVE)
    np.testing.assert_allclose(found["df"], model["kr"]["df"], rtol=DF_RELATIVE)
    np.testing.assert_allclose(
        np.sqrt(np.diagonal(kenward_roger(fit).cov)), model["kr"]["se"], rtol=SE_RELATIVE
    )
    test = joint(fit, np.eye(len(fit.fixef))[1:], df="kenward-roger")
    assert test.statistic == pytest.approx(model["kr"]["F"], rel=DF_RELATIVE)
    assert test.df_residual == pytest.approx(model["kr"]["df_residual"], rel=DF_RELATIVE)
    assert test.p == pytest.approx(stats.f.sf(test.statistic, test.df, test.df_residual))


def naive(fit):
    """Phi_A and the df of every coefficient from N x N matrices, as the paper writes them."""
    kept = fit.problem.fixed.kept
    X, n = fit.design.X_NB[:, kept], fit.n
    w = np.ones(n) if fit.design.weights_N is None else fit.design.weights_N
    g, sigma = [np.diag(1 / w)], fit.sigma**2 * np.diag(1 / w)
    for f in fit.problem.factors:
        cov = fit.random[f.group].cov.to_numpy()
        same = f.index_N[:, None] == f.index_N[None, :]
        sigma = sigma + (f.columns_NP @ cov @ f.columns_NP.T) * same
        for a, b in zip(*np.nonzero(f.free_PP), strict=True):
            one = np.outer(f.columns_NP[:, a], f.columns_NP[:, b])
            g.append((one if a == b else one + one.T) * same)
    inverse = np.linalg.inv(sigma)
    phi = np.linalg.inv(X.T @ inverse @ X)
    p = [-X.T @ inverse @ gi @ inverse @ X for gi in g]
    q = [[X.T @ inverse @ gi @ inverse @ gj @ inverse @ X for gj in g] for gi in g]
    k = range(len(g))
    information = [
        [
            np.trace(inverse @ g[i] @ inverse @ g[j])
            - 2 * np.trace(phi @ q[i][j])
            + np.trace(phi @ p[i] @ phi @ p[j])
            for j in k
        ]
        for i in k
    ]
    w_kk = 2 * np.linalg.inv(np.array(information))
    u = sum(w_kk[i, j] * (q[i][j] - p[i] @ phi @ p[j]) for i in k for j in k)
    seen = np.array([np.diagonal(phi @ pi @ phi) for pi in p])  # of l = e_b
    a2 = np.einsum("ib,ij,jb->b", seen, w_kk, seen) / np.diagonal(phi) ** 2
    return phi + 2 * phi @ u @ phi, 2 / a2


@pytest.mark.parametrize(
    ("formula", "weights"),
    [
        ("score ~ wp * adapter + (1 | run)", "w"),
        ("score ~ wp + adapter + steps + (1 + wp | run)", "w"),
        ("score ~ 0 + adapter + I(10000 * wp) + (0 + adapter | dataset) + (1 | seed)", None),
        ("score ~ wp + (1 + wp || run) + (1 | adapter)", "w"),
    ],
)
def test_products_of_random_effects_equal_the_papers_matrices(formula, weights):
    fit = fit_mixed(pd.read_csv(ORACLES / "ragged.csv"), formula, weights=weights)
    cov, df = naive(fit)
    found = coefficients(fit, df="kenward-roger")
    np.testing.assert_allclose(
        kenward_roger(fit).cov, cov, rtol=1e-5, atol=1e-9 * np.abs(cov).max()
    )
    # One contrast: the moments are matched by m = 2 / A2, whatever else the formulas say.
    np.testing.assert_allclose(found["df"], df, rtol=1e-5)


def test_a_balanced_split_plot_is_its_anova():
    data = pd.read_csv(ORACLES / "split_plot.csv")
    fit = fit_mixed(data, "score ~ dataset * adapter + (1 | block) + (1 | plot)")
    names = list(fit.fixef.index)
    whole = [i for i, n in enumerate(names) if n.startswith("dataset") and ":" not in n]
    y = data["score"]
    plot = data.groupby(["block", "dataset"])["score"].mean().unstack()
    table = plot.to_numpy()
    effects = table.mean(axis=0) - table.mean()
    ms_dataset = 4 * 6 * (effects**2).sum() / 2
    rest = table - table.mean(axis=1, keepdims=True) - table.mean(axis=0) + table.mean()
    ms_error = 4 * (rest**2).sum() / 10
    # Marginal means of the data sets: coefficients averaged over adapters.
    l_CB = np.zeros((2, len(names)))
    for row, i in enumerate(whole):
        l_CB[row, i] = 1
        level = names[i]
        for j, n in enumerate(names):
            if n.startswith(level + ":"):
                l_CB[row, j] = 1 / 4
    for rule in ("kenward-roger", "satterthwaite"):
        test = joint(fit, l_CB, df=rule)
        assert test.statistic == pytest.approx(ms_dataset / ms_error, rel=1e-6)
        assert test.df_residual == pytest.approx(10, rel=1e-5)
    adapters = [i for i, n in enumerate(names) if n.startswith("dataset") and ":" in n]
    sub = data.assign(r=y)
    mean = sub.groupby(["dataset", "adapter"])["r"].transform("mean")
    by_plot = sub.groupby("plot")["r"].transform("mean")
    by_dataset = sub.groupby("dataset")["r"].transform("mean")
    ss = ((y - mean - by_plot + by_dataset) ** 2).sum()
    inner = mean - by_dataset - sub.groupby("adapter")["r"].transform("mean") + y.mean()
    for rule in ("kenward-roger", "satterthwaite"):
        test = joint(fit, np.eye(len(names))[adapters], df=rule)
        assert test.statistic == pytest.approx(((inner**2).sum() / 6) / (ss / 45), rel=1e-6)
        assert test.df_residual == pytest.approx(45, rel=1e-5)


def test_a_balanced_one_way_layout_is_its_anova():
    rng = np.random.default_rng(0)
    data = pd.DataFrame({"arm": np.repeat(list("abc"), 20), "run": np.repeat(np.arange(15), 4)})
    data["score"] = rng.normal(size=15)[data["run"]] * 2 + rng.normal(size=60)
    fit = fit_mixed(data, "score ~ arm + (1 | run)")
    means = data.groupby(["arm", "run"])["score"].mean()
    f, p = stats.f_oneway(*(means[a] for a in "abc"))
    for rule in ("kenward-roger", "satterthwaite"):
        test = joint(fit, np.eye(3)[1:], df=rule)
        assert test.df_residual == pytest.approx(12, rel=1e-5)
        assert (test.statistic, test.p) == pytest.approx((f, p), rel=1e-5)


def test_without_random_effects_it_is_least_squares():
    data = pd.read_csv(ORACLES / "ragged.csv")
    fit = fit_mixed(data, "score ~ wp * adapter + steps", weights="w")
    found = coefficients(fit, df="kenward-roger")
    np.testing.assert_allclose(found["se"], fit.se, rtol=1e-8)
    np.testing.assert_allclose(found["df"], fit.n - len(fit.fixef), rtol=1e-8)


def test_what_it_cannot_do_is_told(monkeypatch):
    data = pd.read_csv(ORACLES / "ragged.csv")
    formula = "score ~ wp + (1 + wp | run)"
    with pytest.raises(AnalysisError, match="df=kenward-roger: needs a fit by REML, not by ML"):
        kenward_roger(fit_mixed(data, formula, method="ML"))
    fit = fit_mixed(data, formula)
    monkeypatch.setattr(module, "MOST_PARAMETERS", 2)
    with pytest.raises(AnalysisError, match="3 covariance parameters; at most 2"):
        kenward_roger(fit)
    monkeypatch.undo()
    monkeypatch.setattr(marginal, "MOST_EFFECTS", 10)
    with pytest.raises(AnalysisError, match="20 random effects; at most 10"):
        contrast(fit, np.array([0.0, 1.0]), df="kenward-roger")
    monkeypatch.undo()
    assert kenward_roger(fit) is kenward_roger(fit)
