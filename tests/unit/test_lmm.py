"""The engine against a dense likelihood, closed forms, lme4, statsmodels and simulation."""

import json
import shutil
import subprocess
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.engine.linalg import independent_columns
from analysis.engine.lmm import Factor, Problem, evaluate, solution
from analysis.engine.lmm_fit import minimise
from analysis.engine.satterthwaite import curvature
from analysis.errors import AnalysisError
from analysis.inference.estimates import DF_RULES, coefficients, joint, likelihood_ratio
from analysis.inference.profile import profile
from analysis.mixed import fit_mixed, refit

ORACLES = Path(__file__).parents[1] / "oracles"
STORED = json.loads((ORACLES / "lme4_models.json").read_text())
# lme4's own stopping tolerance bounds these; ours is tighter (agreement found: 1e-5 or better).
FIXED_IN_SE, SE_RELATIVE, SD_RELATIVE, LOGLIK, DF_RELATIVE = 1e-4, 1e-4, 1e-4, 1e-5, 1e-3
ZERO_SD = 1e-3  # where the estimate is a variance of zero there is no relative error
TRIANGLE = np.tril(np.ones((2, 2), dtype=bool))
ONE = np.ones((1, 1), dtype=bool)


def factor(group, index, columns, free=ONE):
    columns = np.asarray(columns, dtype=float).reshape(len(index), -1)
    names = tuple(f"x{i}" for i in range(columns.shape[1]))
    levels = tuple(str(i) for i in range(int(index.max()) + 1))
    return Factor(group, names, columns, np.asarray(index, dtype=np.intp), levels, free)


def small_data(seed=0, n=60):
    """Three crossed factors, slopes correlated and not, weights, a dependent column."""
    rng = np.random.default_rng(seed)
    x = rng.normal(1, 3, n)
    X = np.column_stack([np.ones(n), x, 2 * x, x**2])
    y, weights = x + rng.normal(size=n), rng.uniform(0.5, 2, n)
    blocks = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 1]], dtype=bool)
    factors = (
        factor("a", rng.permutation(n) % 6, np.column_stack([np.ones(n), x]), TRIANGLE),
        factor("b", rng.permutation(n) % 13, np.ones(n)),
        factor(
            "c",
            rng.permutation(n) % 4,
            np.column_stack([np.ones(n), rng.normal(size=n), x]),
            blocks,
        ),
    )
    return X, y, factors, weights


def dense(problem, theta, X, y, weights):
    """The deviance, beta and its covariance from the N x N covariance matrix, no tricks."""
    V = np.diag(1 / weights)
    for f, template, scale in zip(
        problem.factors, problem.unpack(theta), problem.scales, strict=True
    ):
        lam = template / scale[:, None]
        same = f.index_N[:, None] == f.index_N[None, :]
        V += (f.columns_NP @ lam @ lam.T @ f.columns_NP.T) * same
    inverse = np.linalg.inv(V)
    C = X.T @ inverse @ X
    beta = np.linalg.solve(C, X.T @ inverse @ y)
    r2 = (y - X @ beta) @ inverse @ (y - X @ beta)
    df = len(y) - X.shape[1] if problem.reml else len(y)
    deviance = np.linalg.slogdet(V)[1] + df * (1 + np.log(2 * np.pi * r2 / df))
    if problem.reml:
        deviance += np.linalg.slogdet(C)[1]
    return deviance, beta, np.linalg.inv(C)


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("boundary", [False, True])
def test_deviance_gradient_and_solution_equal_the_dense_ones(reml, boundary):
    X, y, factors, weights = small_data()
    problem = Problem(X, y, factors=factors, weights_N=weights, reml=reml)
    theta = np.random.default_rng(1).normal(size=8)
    theta = np.where(np.arange(8) % 3 == 0, 0.0, theta) if boundary else theta
    kept = X[:, [0, 1, 3]]
    at = evaluate(problem, theta)
    deviance, beta, cov = dense(problem, theta, kept, y, weights)
    assert at.deviance == pytest.approx(deviance, abs=1e-9)
    solved = solution(problem, theta, at)
    np.testing.assert_allclose(solved.beta_B, beta, atol=1e-10)
    np.testing.assert_allclose(solved.cov_BB, cov, rtol=1e-9, atol=1e-12)
    steps = np.eye(8) * 1e-5
    numeric = [
        (
            dense(problem, theta + h, kept, y, weights)[0]
            - dense(problem, theta - h, kept, y, weights)[0]
        )
        / 2e-5
        for h in steps
    ]
    np.testing.assert_allclose(at.gradient, numeric, atol=1e-6)


@pytest.mark.parametrize("reml", [True, False])
def test_the_slope_by_the_covariance_equals_the_dense_one(reml):
    # D_f is what tells a true boundary from a false one; at theta = 0 the gradient says nothing.
    X, y, factors, weights = small_data()
    problem = Problem(X, y, factors=factors[1:2], weights_N=weights, reml=reml)
    small = 1e-6
    at_zero, kept = evaluate(problem, np.zeros(1)), X[:, [0, 1, 3]]
    up = dense(problem, np.array([np.sqrt(small)]), kept, y, weights)[0]
    assert at_zero.gradient == pytest.approx(0.0)
    assert at_zero.slopes[0][0, 0] == pytest.approx((up - at_zero.deviance) / small, rel=1e-3)


def test_modes_are_the_conditional_means():
    X, y, factors, weights = small_data()
    problem = Problem(X, y, factors=factors[1:2], weights_N=weights)
    theta = 0.8 * problem.scales[0]
    solved = solution(problem, theta, evaluate(problem, theta))
    Z = factors[1].matrix(factors[1].columns_NP).toarray()
    V = 0.64 * Z @ Z.T + np.diag(1 / weights)
    residual = y - X[:, problem.fixed.kept] @ solved.beta_B
    np.testing.assert_allclose(solved.modes[0][:, 0], 0.64 * Z.T @ np.linalg.solve(V, residual))


def test_the_order_of_factors_and_rows_does_not_matter():
    X, y, factors, weights = small_data()
    first = minimise(Problem(X, y, factors=factors, weights_N=weights)).at.deviance
    order = np.random.default_rng(2).permutation(len(y))
    turned = [
        factor(f.group, f.index_N[order], f.columns_NP[order], f.free_PP) for f in factors[::-1]
    ]
    again = Problem(X[order], y[order], factors=turned, weights_N=weights[order])
    assert minimise(again).at.deviance == pytest.approx(first, abs=1e-6)


@pytest.mark.parametrize(
    ("columns", "kept"),
    [
        ([[1, 1, 1, 1], [0, 1, 2, 3]], [0, 1]),
        ([[1, 1, 1, 1], [2, 2, 2, 2], [0, 1, 2, 3]], [0, 2]),
        ([[0, 0, 0, 0], [0, 1, 2, 3], [0, 2, 4, 6], [1, 1, 1, 1], [1, 2, 3, 4]], [1, 3]),
        ([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [1, 2, 3, 4]], [0, 1, 2, 3]),
        ([[0, 0, 0, 0]], []),
    ],
)
def test_independent_columns_keeps_the_first_of_each(columns, kept):
    assert independent_columns(np.array(columns, dtype=float).T).tolist() == kept


def test_independent_columns_are_those_that_raise_the_rank():
    """Column by column, by singular values; factors that share levels, and numbers beside them."""
    rng = np.random.default_rng(0)
    for _ in range(60):
        rows = int(rng.integers(4, 25))
        parts = [np.ones((rows, 1))]
        for size in rng.integers(2, 7, 3):
            parts.append(np.eye(size)[rng.integers(0, size, rows)])
        number = rng.normal(size=(rows, 2))
        parts += [number, number @ rng.normal(size=(2, 1))]
        X_NB = np.hstack([parts[i] for i in rng.permutation(len(parts))])
        ranks = [np.linalg.matrix_rank(X_NB[:, : i + 1]) for i in range(X_NB.shape[1])]
        assert independent_columns(X_NB).tolist() == np.flatnonzero(np.diff([0, *ranks])).tolist()


# --- against other programs ------------------------------------------------------------------


def stored_fit(model):
    data = pd.read_csv(ORACLES / f"{model['data']}.csv")
    weights = "w" if model["weights"] else None
    return fit_mixed(data, model["formula"], method=model["method"], weights=weights)


def our_group(lme4_group):
    """lme4 numbers the blocks of one group (task, task.1) and writes a nested one inside out."""
    return ":".join(reversed(lme4_group.split(".")[0].split(":")))


def our_name(lme4_name):
    name = lme4_name.replace("(Intercept)", "Intercept")
    return {"adapterfull": "adapter[full]", "adapterlora": "adapter[lora]"}.get(name, name)


@pytest.mark.parametrize("model", STORED, ids=[m["name"] for m in STORED])
def test_fits_equal_lme4(model):
    fit = stored_fit(model)
    se = np.array(list(model["se"].values()))
    off = (fit.fixef.to_numpy() - np.array(list(model["fixef"].values()))) / se
    assert np.abs(off).max() < FIXED_IN_SE
    np.testing.assert_allclose(fit.se, se, rtol=SE_RELATIVE)
    assert fit.loglik == pytest.approx(model["loglik"], abs=LOGLIK)
    assert fit.sigma == pytest.approx(model["sigma"], rel=SD_RELATIVE)
    assert fit.singular == model["singular"]
    assert fit.converged
    for part in model["random"]:
        sd = fit.random[our_group(part["group"])].sd[our_name(part["name"])]
        assert sd == pytest.approx(part["sd"], rel=SD_RELATIVE, abs=ZERO_SD)


@pytest.mark.parametrize("model", STORED, ids=[m["name"] for m in STORED])
def test_degrees_of_freedom_equal_lmertest(model):
    fit = stored_fit(model)
    ours = [fit.curvature.df(l_B) for l_B in np.eye(len(fit.fixef))]
    np.testing.assert_allclose(ours, list(model["df"].values()), rtol=DF_RELATIVE)


@pytest.mark.parametrize("model", STORED, ids=[m["name"] for m in STORED])
def test_joint_tests_equal_lmertest(model):
    fit = stored_fit(model)
    found = joint(fit, np.eye(len(fit.fixef))[1:])
    assert found.statistic == pytest.approx(model["joint"]["F"], rel=1e-3)
    assert found.df == model["joint"]["df"]
    assert found.df_residual == pytest.approx(model["joint"]["df_residual"], rel=DF_RELATIVE)


def test_correlations_equal_lme4():
    checked = 0
    for model in STORED:
        for part in model["correlations"]:
            a, b = (our_name(name) for name in part["names"])
            corr = stored_fit(model).random[our_group(part["group"])].corr.loc[a, b]
            if isinstance(part["corr"], float) and not model["singular"]:
                assert corr == pytest.approx(part["corr"], abs=1e-3)
                checked += 1
    assert checked >= 5


def test_statsmodels_agrees():
    from statsmodels.regression.mixed_linear_model import MixedLM

    data = pd.read_csv(ORACLES / "grid.csv")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = MixedLM.from_formula(
            "score ~ wp + adapter", data, groups="task", re_formula="~wp"
        ).fit(reml=True)
    ours = fit_mixed(data, "score ~ wp + adapter + (1 + wp | task)")
    names = {"adapter[T.lora]": "adapter[T.lora]", "wp": "wp", "Intercept": "Intercept"}
    for ours_name, their_name in names.items():
        assert ours.fixef[ours_name] == pytest.approx(theirs.params[their_name], abs=1e-3)
        assert ours.se[ours_name] == pytest.approx(theirs.bse[their_name], rel=1e-3)
    assert ours.loglik == pytest.approx(theirs.llf, abs=1e-4)
    np.testing.assert_allclose(ours.random["task"].cov, theirs.cov_re, rtol=2e-3)


@pytest.mark.slow
def test_the_stored_oracle_is_what_r_says(tmp_path):
    if shutil.which("Rscript") is None:
        pytest.skip("no Rscript")
    script = [shutil.which("Rscript"), str(ORACLES / "lme4_models.R"), str(tmp_path)]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    if "there is no package called" in done.stderr:
        pytest.skip("R without lme4, lmerTest or jsonlite")
    assert done.returncode == 0, done.stderr
    again = json.loads((tmp_path / "lme4_models.json").read_text())
    assert [m["name"] for m in again] == [m["name"] for m in STORED]
    for new, old in zip(again, STORED, strict=True):
        assert new["loglik"] == pytest.approx(old["loglik"], abs=LOGLIK)
        assert list(new["se"].values()) == pytest.approx(list(old["se"].values()), rel=SE_RELATIVE)


# --- closed forms ----------------------------------------------------------------------------


def one_way(levels=8, each=5, between=2.0, seed=3):
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(levels), each)
    score = 10 + between * rng.normal(size=levels)[group] + rng.normal(size=levels * each)
    return pd.DataFrame({"group": group.astype(str), "score": score})


def test_balanced_one_way_reml_is_the_anova_estimate():
    data = one_way()
    fit = fit_mixed(data, "score ~ 1 + (1 | group)")
    means = data.groupby("group")["score"].mean()
    within = data["score"] - data["group"].map(means)
    ms_within = float((within**2).sum() / (40 - 8))
    ms_between = float(5 * means.var(ddof=1))
    assert fit.sigma**2 == pytest.approx(ms_within, rel=1e-6)
    assert fit.random["group"].cov.iloc[0, 0] == pytest.approx(
        (ms_between - ms_within) / 5, rel=1e-5
    )
    assert fit.se["Intercept"] == pytest.approx(np.sqrt(ms_between / 40), rel=1e-6)
    assert fit.curvature.df(np.ones(1)) == pytest.approx(7, rel=1e-4)


def test_split_plot_df_are_the_anova_ones():
    # 10 whole plots under 2 treatments, 4 subplots each: the treatment has 8 df, the slope 29.
    rng = np.random.default_rng(4)
    plot = np.repeat(np.arange(10), 4)
    data = pd.DataFrame({"plot": plot.astype(str), "treated": np.repeat([0.0, 1.0], 20)})
    data["x"] = np.tile([-1.5, -0.5, 0.5, 1.5], 10)
    data["score"] = 2 * rng.normal(size=10)[plot] + data["x"] + rng.normal(size=40)
    fit = fit_mixed(data, "score ~ treated + x + (1 | plot)")
    names = list(fit.fixef.index)
    df = {name: fit.curvature.df(np.eye(3)[i]) for i, name in enumerate(names)}
    assert df["treated"] == pytest.approx(8, rel=1e-3)
    assert df["x"] == pytest.approx(29, rel=1e-3)
    plots = data.groupby("plot").agg(treated=("treated", "first"), score=("score", "mean"))
    t = stats.ttest_ind(*(own["score"] for _, own in plots.groupby("treated")))
    assert (fit.fixef / fit.se)["treated"] ** 2 == pytest.approx(t.statistic**2, rel=1e-4)


def test_without_a_random_term_it_is_least_squares():
    data = one_way()
    fit = fit_mixed(data, "score ~ group")
    X = np.column_stack([np.ones(40), *(data["group"] == str(i) for i in range(1, 8))])
    beta, rss, *_ = np.linalg.lstsq(X, data["score"].to_numpy(), rcond=None)
    np.testing.assert_allclose(fit.fixef, beta)
    assert fit.sigma**2 == pytest.approx(float(rss[0]) / 32)
    assert fit.curvature.df(np.eye(8)[3]) == pytest.approx(32)
    ml = refit(fit, "ML")
    normal = stats.norm.logpdf(data["score"] - X @ beta, scale=np.sqrt(float(rss[0]) / 40))
    assert ml.loglik == pytest.approx(float(normal.sum()))


def test_scaling_the_weights_scales_the_variance_alone():
    data = pd.read_csv(ORACLES / "unbalanced.csv")
    formula = "score ~ wp + (1 | task) + (1 | run)"
    a = fit_mixed(data, formula, weights="w", method="ML")
    b = fit_mixed(data.assign(w=7 * data["w"]), formula, weights="w", method="ML")
    np.testing.assert_allclose(a.fixef, b.fixef, rtol=1e-6)
    assert b.sigma == pytest.approx(a.sigma * np.sqrt(7), rel=1e-4)
    assert b.loglik == pytest.approx(a.loglik, abs=1e-5)


def test_units_of_a_column_do_not_matter():
    # lme4 1.1-31 stops 69 log-likelihood units short on the first of these.
    data = pd.read_csv(ORACLES / "grid.csv")
    shifted = fit_mixed(data, "score ~ year + (1 + year | task) + (1 | run)", method="ML")
    plain = data.assign(year=(data["year"] - 2005) / 10)
    centred = fit_mixed(plain, "score ~ year + (1 + year | task) + (1 | run)", method="ML")
    assert shifted.loglik == pytest.approx(centred.loglik, abs=1e-4)
    off = (shifted.fixef["year"] * 10 - centred.fixef["year"]) / centred.se["year"]
    assert abs(off) < FIXED_IN_SE
    assert shifted.se["year"] * 10 == pytest.approx(centred.se["year"], rel=1e-3)


@pytest.mark.parametrize(("factor", "shift"), [(1e-8, 0), (1e-5, 0), (1e6, 0), (1e8, 0), (1, 1e6)])
def test_the_unit_of_the_score_does_not_matter(factor, shift):
    data = pd.read_csv(ORACLES / "unbalanced.csv")
    other = data.assign(score=factor * data["score"] + shift)
    small, large = "score ~ adapter + (1 | run)", "score ~ adapter + wp + (1 | task) + (1 | run)"
    found = {}
    for name, table in (("plain", data), ("other", other)):
        fit = fit_mixed(table, large)
        tests = [coefficients(fit, df=rule)[["df", "t", "p"]].iloc[1:] for rule in DF_RULES[:2]]
        ratio = likelihood_ratio(fit_mixed(table, small), fit)
        ends = profile(fit).iloc[1:][["low", "high"]] / (factor if name == "other" else 1)
        found[name] = [*tests, ratio.statistic, ratio.p, ends]
    for plain, again in zip(found["plain"], found["other"], strict=True):
        np.testing.assert_allclose(again, plain, rtol=1e-4)


@pytest.mark.parametrize("dispersion", [None, "~ adapter"])
@pytest.mark.parametrize(("y", "x", "w"), [(1e50, 1e-80, 1), (1e-50, 1e80, 1), (1, 1, 1e-80)])
def test_units_of_extreme_size_do_not_matter(y, x, w, dispersion):
    data = pd.read_csv(ORACLES / "unbalanced.csv").assign(w=1.0)
    other = data.assign(score=y * data["score"], wp=x * data["wp"], w=w)
    formula = "score ~ adapter + wp + (1 | task) + (1 | run)"
    fits = [fit_mixed(t, formula, weights="w", dispersion=dispersion) for t in (data, other)]
    plain, again = (fit.summary().tables["fixed"][["df", "t", "p"]] for fit in fits)
    np.testing.assert_allclose(again, plain, rtol=1e-4)


def test_a_small_spread_about_a_large_mean_is_fitted():
    data = pd.read_csv(ORACLES / "grid.csv")
    near = data.assign(score=1e6 + 1e-6 * data["score"])
    fits = [fit_mixed(table, "score ~ wp + (1 | run)") for table in (data, near)]
    t = [fit.fixef["wp"] / fit.se["wp"] for fit in fits]
    assert t[1] == pytest.approx(t[0], rel=1e-3)


def test_fitted_and_residuals_add_up_to_the_score():
    data = pd.read_csv(ORACLES / "unbalanced.csv")
    fit = fit_mixed(data, "score ~ wp + (1 + wp | task) + (1 | run)")
    np.testing.assert_allclose(fit.fitted + fit.residuals, data["score"])
    # A conditional residual is e-hat = sigma^2 W^-1 V^-1 (y - X beta): orthogonal to X.
    X = fit.design.X_NB
    np.testing.assert_allclose(X.T @ fit.residuals.to_numpy(), 0, atol=1e-6)


# --- the search and its checks -----------------------------------------------------------------


def test_a_false_boundary_is_left_again():
    # Started at zero the gradient is zero: without the check the search would stay there.
    X, y, group = np.ones((40, 1)), *one_way()[["score", "group"]].to_numpy().T
    problem = Problem(X, y.astype(float), factors=(factor("g", group.astype(int), np.ones(40)),))
    stuck = evaluate(problem, np.zeros(1))
    assert stuck.gradient == pytest.approx(0.0)
    found = minimise(problem, start=np.zeros(1))
    usual = minimise(problem)
    assert found.at.deviance == pytest.approx(usual.at.deviance, abs=1e-6)
    assert found.at.deviance < stuck.deviance - 10
    assert found.converged


def test_a_false_boundary_of_a_covariance_is_left_again():
    data = pd.read_csv(ORACLES / "grid.csv")
    fit = fit_mixed(data, "score ~ wp + (1 + wp | task) + (1 | run)")
    start = np.array([1.0, 1.0, 0.0, 0.0])  # run, task: intercept alone
    found = minimise(fit.problem, start=start)
    assert found.at.deviance == pytest.approx(fit.minimum.at.deviance, abs=1e-5)


@pytest.mark.parametrize("seed", [1371, 1489, 2315])
def test_a_slope_at_the_boundary_that_leads_to_next_to_nothing_is_no_failure(seed):
    # The minimum is so near zero that a long leap from the boundary lands beyond it.
    rng = np.random.default_rng(seed)
    y = rng.normal(0, 1, 144) + np.repeat(rng.normal(0, 0.15, 24), 6)
    between = np.repeat(rng.normal(0, 1, (24, 9)), 6, axis=0)
    X = np.column_stack([np.tile(np.eye(6), (24, 1)), between])
    problem = Problem(X, y, factors=(factor("run", np.repeat(np.arange(24), 6), np.ones(144)),))
    found = minimise(problem)
    assert found.converged
    near = np.concatenate([[0.0], np.geomspace(1e-3, 1, 400)])
    lowest = min(evaluate(problem, np.array([theta])).deviance for theta in near)
    assert found.at.deviance <= lowest + 1e-5


def test_a_true_boundary_is_called_singular_and_converged():
    data = one_way(between=0.0, seed=10)
    fit = fit_mixed(data, "score ~ 1 + (1 | group)")
    assert fit.random["group"].sd.iloc[0] == pytest.approx(0.0, abs=1e-6)
    assert fit.singular
    assert fit.converged
    assert any("Singular" in sentence for sentence in fit.diagnosis)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_correlation_of_one_is_no_missing_variance(sign):
    rng = np.random.default_rng(0)
    data = pd.DataFrame({"group": np.arange(120) % 12, "x": sign * rng.normal(size=120)})
    common = rng.normal(size=12)[data["group"]]
    data["score"] = 3 * common * (1 + sign * data["x"]) + rng.normal(size=120)
    fit = fit_mixed(data, "score ~ x + (1 + x | group)")
    assert fit.singular
    assert fit.random["group"].sd.min() > 1
    (said,) = fit.diagnosis
    assert f"correlation of Intercept and x over group is estimated as exactly {sign:+d}" in said
    assert said in " ".join(str(fit).split())
    slopes = np.eye(12)[data["group"]] * data[["x"]].to_numpy()
    noise = rng.normal(size=120)
    noise -= slopes @ np.linalg.lstsq(slopes, noise, rcond=None)[0]  # no group has a slope
    flat = data.assign(score=3 * common + noise)
    (said,) = fit_mixed(flat, "score ~ x + (1 + x || group)").diagnosis
    assert "the variation of x over group is estimated as none (a variance of zero)" in said


@pytest.mark.parametrize(
    ("empty", "other"), [({"arm": "b", "mode": "v"}, "a"), ({"arm": "a", "mode": "u"}, "c")]
)
def test_an_empty_cell_of_an_interaction_is_named(empty, other):
    cells = pd.MultiIndex.from_product([list("abc"), list("uv"), range(4)])
    data = cells.to_frame(index=False, name=["arm", "mode", "seed"])
    data["score"] = np.random.default_rng(0).normal(size=len(data))
    assert fit_mixed(data, "score ~ arm * mode").diagnosis == ()
    some = data[(data["arm"] != empty["arm"]) | (data["mode"] != empty["mode"])]
    fit = fit_mixed(some, "score ~ arm * mode")
    assert fit.left_out == (f"arm[T.{'b' if other == 'a' else 'c'}]:mode[T.v]",)
    assert f"arm={empty['arm']} and mode={empty['mode']}" in fit.diagnosis[0]
    assert all(fit.left_out[0] not in said for said in fit.diagnosis[:-1])
    assert fit.left_out[0] in fit.diagnosis[-1]
    # A level and a number that is zero there is no empty cell, and a sum of factors has none.
    assert fit_mixed(some, "score ~ arm + mode").left_out == ()
    zero = some.assign(dose=some["seed"] * (some["arm"] == "c"))
    assert fit_mixed(zero, "score ~ arm + dose:arm").left_out == ()


@pytest.mark.parametrize(("noise", "named"), [(1e-7, True), (1e-3, True), (1e-2, True), (1, False)])
def test_a_column_that_another_all_but_determines_is_named(noise, named):
    rng = np.random.default_rng(0)
    data = pd.DataFrame(rng.normal(size=(120, 3)), columns=["score", "x", "z"])
    data["copy"] = data["x"] + noise * rng.normal(size=120)
    data = data.assign(group=np.arange(120) % 12, year=2000 + 6 * data["z"])
    fit = fit_mixed(data, "score ~ x + year + copy + (1 | group)")
    assert list(fit.fixef.index) == ["Intercept", "x", "year", "copy"]  # as R keeps them
    said = [s for s in fit.diagnosis if s.startswith("Nearly collinear")]
    assert bool(said) is named
    if named:
        others = np.column_stack([np.ones(120), data[["x", "year"]]])
        left = data["copy"] - others @ np.linalg.lstsq(others, data["copy"], rcond=None)[0]
        factor = data["copy"].var() / left.var()  # 1 / (1 - R^2)
        assert "determine x, copy (variance" in said[0]
        assert float(said[0].split("up to ")[1].split(",")[0]) == pytest.approx(factor, rel=0.1)


def test_the_search_is_short():
    counts = [stored_fit(model).minimum.evaluations for model in STORED]
    assert max(counts) <= 45


def test_a_fit_that_was_cut_short_is_not_called_converged(monkeypatch):
    monkeypatch.setattr("analysis.engine.lmm_fit.minimize", _stays_put)
    monkeypatch.setattr("analysis.engine.lmm_fit.NEWTON_STEPS", 1)
    data = pd.read_csv(ORACLES / "grid.csv")
    fit = fit_mixed(data, "score ~ wp + (1 | task) + (1 | run)")
    assert not fit.converged
    assert any("Not converged" in sentence for sentence in fit.diagnosis)


def _stays_put(function, start, **options):
    from types import SimpleNamespace

    return SimpleNamespace(x=start * 2)


@pytest.mark.parametrize(
    "change", [{"decrement": 0.1}, {"curved": False}, {"false_boundary": ("run",)}]
)
def test_each_check_alone_denies_convergence(change):
    minimum = stored_fit(STORED[0]).minimum
    assert minimum.converged
    assert not replace(minimum, **change).converged


def test_dependent_columns_are_named_and_left_out():
    data = pd.read_csv(ORACLES / "grid.csv").assign(twice=lambda d: 2 * d["wp"], none=0.0)
    fit = fit_mixed(data, "score ~ wp + twice + none + (1 | task)")
    assert list(fit.fixef.index) == ["Intercept", "wp"]
    assert fit.left_out == ("twice",)
    assert any("twice" in sentence for sentence in fit.diagnosis)
    plain = fit_mixed(data, "score ~ wp + (1 | task)")
    assert fit.loglik == pytest.approx(plain.loglik, abs=1e-8)


def test_a_contrast_that_the_rows_do_not_determine_is_missing():
    data = pd.read_csv(ORACLES / "grid.csv").assign(twice=lambda d: 2 * d["wp"], none=0.0)
    fit = fit_mixed(data, "score ~ wp + twice + none + (1 | task)")
    asked = np.array([[1.0, 0.5, 1.0, 0.0], [1.0, 0.5, 0.0, 0.0], [0.0, 1.0, 2.0, 1.0]])
    np.testing.assert_array_equal(fit.kept(asked), [[1.0, 0.5], [np.nan] * 2, [np.nan] * 2])
    rows = pd.DataFrame({"wp": [0.5, 0.5], "twice": [1.0, 0.0], "none": 0.0})
    np.testing.assert_array_equal(fit.matrix(rows), [[1.0, 0.5], [np.nan] * 2])


@pytest.mark.parametrize(
    ("change", "formula", "message"),
    [
        ({"score": 3.0}, "score ~ wp + (1 | task)", "the same in every row"),
        ({}, "huge ~ wp + (1 | task)", "largest number is .*e\\+30., whose powers cannot"),
        ({}, "tiny ~ wp + (1 | task)", "multiply the column"),
        ({}, "score ~ tiny + (1 | task)", "tiny: its largest number .* multiply the column"),
        ({}, "I(1e70 * wp) ~ wp + (1 | task)", "spread is .*e\\+70.* divide the column"),
        ({}, "I(1e-70 * wp) ~ plw", "spread is .*e-70.* multiply the column"),
        ({}, "wp ~ plw + I(plw^2) + wp + (1 | task)", "explain it exactly"),
        ({}, "score ~ task:run", "coefficients for"),
        ({}, "score ~ wp + (1 | one)", "one level only"),
        ({}, "score ~ wp + (1 | row)", "random effects for"),
        ({}, "score ~ wp + (0 + none | task)", "is zero"),
        ({"score": "x"}, "score ~ wp", "must be one column of numbers"),
    ],
)
def test_models_that_cannot_be_fitted_say_why(change, formula, message):
    data = pd.read_csv(ORACLES / "grid.csv").assign(one="a", none=0.0, **change)
    data["row"] = [f"row{i}" for i in range(len(data))]
    data = data.assign(huge=1e300 * data["wp"], tiny=1e-300 * data["wp"])
    with pytest.raises(AnalysisError, match=message):
        fit_mixed(data, formula)


def test_unknown_family_method_and_weights_are_named():
    data = pd.read_csv(ORACLES / "grid.csv")
    with pytest.raises(AnalysisError, match="family=poisson: not one of gaussian"):
        fit_mixed(data, "score ~ wp", family="poisson")
    with pytest.raises(AnalysisError, match="method=MLE: not one of REML, ML"):
        fit_mixed(data, "score ~ wp", method="MLE")
    with pytest.raises(AnalysisError, match="weights=ww: no such column"):
        fit_mixed(data, "score ~ wp", weights="ww")
    with pytest.raises(AnalysisError, match="weights=wp: must be a positive number"):
        fit_mixed(data, "score ~ wp", weights="wp")


def test_duplicated_rows_are_suspected():
    data = one_way().drop_duplicates("group")
    with pytest.raises(AnalysisError, match="are rows duplicated"):
        fit_mixed(pd.concat([data] * 4), "score ~ 1 + (1 | group)")


# --- simulation --------------------------------------------------------------------------------

SIMULATIONS = 250
COVERAGE = (0.918, 0.982)  # 0.95 +- 2.3 standard errors of 250 draws


def simulated_grid(rng):
    """12 runs x 6 tasks: a run-level effect of 1, with run and task deviations."""
    run, task = np.repeat(np.arange(12), 6), np.tile(np.arange(6), 12)
    x = np.linspace(0, 1, 12)[run]
    y = x + rng.normal(size=12)[run] + 2 * rng.normal(size=6)[task] + rng.normal(size=72)
    return np.column_stack([np.ones(72), x]), y, run, task


def covers(problem):
    found = minimise(problem)
    bend = curvature(problem, found.theta, found.at)
    beta = solution(problem, found.theta, found.at).beta_B
    half = stats.t.ppf(0.975, bend.df(np.array([0.0, 1.0]))) * np.sqrt(bend.cov_BB[1, 1])
    return abs(beta[1] - 1) < half


def test_intervals_cover_and_without_the_run_effect_they_do_not():
    rng = np.random.default_rng(11)
    with_run, without = 0, 0
    for _ in range(SIMULATIONS):
        X, y, run, task = simulated_grid(rng)
        parts = [factor("run", run, np.ones(72)), factor("task", task, np.ones(72))]
        with_run += covers(Problem(X, y, factors=parts))
        without += covers(Problem(X, y, factors=parts[1:]))
    assert COVERAGE[0] < with_run / SIMULATIONS < COVERAGE[1]
    assert without / SIMULATIONS < 0.8
