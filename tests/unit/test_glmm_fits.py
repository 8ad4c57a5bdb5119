"""Fits of generalised mixed models: glmmTMB, lme4, and special cases that must collapse."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy.special import logsumexp
from statsmodels.othermod.betareg import BetaModel

from analysis.errors import AnalysisError
from analysis.mixed import fit_mixed, refit

ORACLES = Path(__file__).parents[1] / "oracles"
BY_POINTS = json.loads((ORACLES / "quadrature_models.json").read_text())
PAIRS = pd.read_csv(ORACLES / "pairs.csv")
STORED = json.loads((ORACLES / "glmm_models.json").read_text())
IDS = [m["name"] for m in STORED]
TABLES = {name: pd.read_csv(ORACLES / f"{name}.csv") for name in ("items", "bounded")}
# Asked for: 5e-3 SE, 5e-3, 1e-3, 1e-2. Found, and held to: ten times closer.
FIXED_IN_SE, SD_RELATIVE, LOGLIK, SE_RELATIVE = 5e-4, 1e-4, 1e-5, 1e-4
ZERO = 1e-3  # a standard deviation that is zero but for where R's search ended
FITS = {}


def fitted(model):
    """The rows and the fit of one stored model."""
    if model["name"] not in FITS:
        rows = TABLES[model["data"]]
        rows = rows[rows[model["rows"]] == 1] if "rows" in model else rows
        options = {"method": model.get("method"), "weights": model.get("weights")}
        fit = fit_mixed(rows, model["formula"], model["family"], **options)
        FITS[model["name"]] = rows, fit
    return FITS[model["name"]]


def of(name):
    return next(m for m in STORED if m["name"] == name)


def plain(name):
    """A coefficient's name in one spelling, ours or R's; factors of a product in any order."""
    pairs = {"(Intercept)": "Intercept", " ** 2": "^2", "T.": "", "[": "", "]": ""}
    for one, other in pairs.items():
        name = name.replace(one, other)
    return frozenset(name.split(":"))


def stored(model, what):
    """Stored values by coefficient in our order, of glmmTMB where it fitted the model."""
    by_name = {plain(n): v for n, v in model.get("glmmTMB", model.get("lme4"))[what].items()}
    return np.array([by_name[plain(n)] for n in fitted(model)[1].fixef.index])


def deviations(model, program):
    """Stored standard deviations by group and name; blocks of one group are numbered in R."""
    return {
        (frozenset(r["group"].split(".")[0].split(":")), plain(r["name"])): r["sd"]
        for r in model[program]["random"]
    }


def ours(fit):
    return {
        (frozenset(group.split(":")), plain(name)): sd
        for group, effect in fit.random.items()
        for name, sd in effect.sd.items()
    }


@pytest.mark.parametrize("model", STORED, ids=IDS)
def test_fits_equal_those_of_r(model):
    _, fit = fitted(model)
    other = model.get("glmmTMB") or model["lme4"]
    se = stored(model, "se")
    assert np.abs((fit.fixef - stored(model, "fixef")) / se).max() < FIXED_IN_SE
    np.testing.assert_allclose(fit.se, se, rtol=SE_RELATIVE)
    assert fit.loglik == pytest.approx(other["loglik"], abs=LOGLIK)
    assert fit.converged
    if "phi" in other:
        assert fit.phi == pytest.approx(other["phi"], rel=SD_RELATIVE)
    if "sigma" in other:
        assert fit.sigma == pytest.approx(other["sigma"], rel=SD_RELATIVE)
    theirs, own = deviations(model, "glmmTMB" if "glmmTMB" in model else "lme4"), ours(fit)
    assert own.keys() == theirs.keys()
    for key, sd in theirs.items():
        assert own[key] == pytest.approx(sd, rel=SD_RELATIVE, abs=ZERO if sd < ZERO else 0)
    assert fit.singular == any(sd < ZERO for sd in theirs.values())


@pytest.mark.parametrize(
    "model", [m for m in STORED if {"lme4", "glmmTMB"} <= m.keys()], ids=lambda m: m["name"]
)
def test_binomial_fits_equal_lme4(model):
    # Its mode is found less exactly, hence a likelihood that is off in the fifth digit.
    _, fit = fitted(model)
    by_name = {plain(n): v for n, v in model["lme4"]["fixef"].items()}
    theirs = np.array([by_name[plain(n)] for n in fit.fixef.index])
    assert np.abs((fit.fixef - theirs) / fit.se).max() < 5e-3
    assert fit.loglik == pytest.approx(model["lme4"]["loglik"], abs=1e-3)
    own = ours(fit)
    for key, sd in deviations(model, "lme4").items():
        assert own[key] == pytest.approx(sd, rel=5e-3, abs=ZERO if sd < ZERO else 0)


def test_there_are_enough_oracles():
    general = [m for m in STORED if m["family"] != "gaussian"]
    assert len(general) >= 30
    assert sum(m["family"] == "binomial" for m in general) >= 10
    assert sum(m["family"].startswith("beta") for m in general) >= 10
    assert sum(fitted(m)[1].singular for m in general) >= 2


# Special cases that must collapse.


def test_without_random_effects_it_is_a_glm():
    items = TABLES["items"]
    fit = fit_mixed(items, "right ~ wp * adapter", "binomial")
    other = sm.GLM(items["right"], fit.design.X_NB, family=sm.families.Binomial()).fit(tol=1e-14)
    np.testing.assert_allclose(fit.fixef, other.params, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(fit.se, other.bse, rtol=1e-5)
    assert fit.loglik == pytest.approx(other.llf, abs=1e-8)
    assert fit.random == {}
    assert not fit.singular


def test_counts_without_random_effects_are_a_glm_too():
    rows = TABLES["bounded"]
    fit = fit_mixed(rows, "accuracy ~ wp + dataset + offset(base)", "binomial", weights="trials")
    counts = np.column_stack([rows["correct"], rows["trials"] - rows["correct"]])
    other = sm.GLM(counts, fit.design.X_NB, family=sm.families.Binomial(), offset=rows["base"]).fit(
        tol=1e-14
    )
    np.testing.assert_allclose(fit.fixef, other.params, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(fit.se, other.bse, rtol=1e-5)
    assert fit.loglik == pytest.approx(other.llf, abs=1e-6)


def test_without_random_effects_it_is_a_beta_regression():
    rows = TABLES["bounded"]
    fit = fit_mixed(rows, "usual ~ wp + dataset", "beta")
    other = BetaModel(rows["usual"], fit.design.X_NB).fit(disp=False, method="newton", tol=1e-12)
    np.testing.assert_allclose(fit.fixef, other.params.iloc[:-1], atol=1e-4 * fit.se.min())
    assert fit.phi == pytest.approx(np.exp(other.params.iloc[-1]), rel=1e-5)
    assert fit.loglik == pytest.approx(other.llf, abs=1e-7)
    np.testing.assert_allclose(fit.se, other.bse.iloc[:-1], rtol=1e-4)


def test_trials_are_as_many_rows_of_right_and_wrong():
    rows = TABLES["bounded"].query("task in ['t01', 't02', 't03']")
    whole = fit_mixed(rows, "accuracy ~ wp + (1 | run)", "binomial", weights="trials")
    hits = [np.arange(t) < c for t, c in zip(rows["trials"], rows["correct"], strict=True)]
    long = rows.loc[rows.index.repeat(rows["trials"])].assign(right=np.concatenate(hits) * 1.0)
    apart = fit_mixed(long.reset_index(), "right ~ wp + (1 | run)", "binomial")
    np.testing.assert_allclose(apart.fixef, whole.fixef, atol=1e-4 * whole.se.min())
    np.testing.assert_allclose(apart.se, whole.se, rtol=1e-4)
    assert apart.random["run"].sd.iloc[0] == pytest.approx(whole.random["run"].sd.iloc[0], rel=1e-4)


def test_units_and_order_of_rows_do_not_matter():
    rows, fit = fitted(of("beta, correlated slopes"))
    other = rows.sample(frac=1, random_state=0).assign(wp=lambda d: 1e4 * d["wp"])
    again = fit_mixed(other, fit.formula, "beta")
    assert again.fixef["wp"] * 1e4 == pytest.approx(fit.fixef["wp"], rel=1e-4)
    assert again.se["wp"] * 1e4 == pytest.approx(fit.se["wp"], rel=1e-4)
    assert again.random["task"].sd["wp"] * 1e4 == pytest.approx(
        fit.random["task"].sd["wp"], rel=1e-4
    )
    assert again.loglik == pytest.approx(fit.loglik, abs=1e-6)
    np.testing.assert_allclose(again.fitted.sort_index(), fit.fitted, atol=1e-6)


def test_a_fit_says_what_it_is():
    rows, fit = fitted(of("beta, weights"))
    assert (fit.family, fit.link, fit.method) == ("beta", "logit", "ML")
    assert np.isnan(fit.sigma)
    assert fit.parameters == 3 + 2 + 1
    assert fit.n == len(rows)
    assert fit.aic == pytest.approx(2 * 6 - 2 * fit.loglik)
    assert refit(fit, "REML") is fit
    assert ((fit.fitted > 0) & (fit.fitted < 1)).all()
    np.testing.assert_allclose(fit.residuals, rows["usual"] - fit.fitted)


def test_evaluations_stay_few():
    # The analytic gradient and the working model's start: a table of 528 rows takes a dozen.
    counts = [fitted(m)[1].minimum.evaluations for m in STORED if m["family"] != "gaussian"]
    assert np.median(counts) < 20
    assert max(counts) < 60


# --- quadrature: few rows a level ---------------------------------------------------------------


@pytest.mark.parametrize("model", BY_POINTS, ids=lambda m: f"{m['formula']}, {m['points']}")
def test_quadrature_equals_lme4(model):
    weights = "trials" if model["formula"].startswith("accuracy") else None
    options = {"weights": weights, "quadrature": model["points"]}
    fit = fit_mixed(PAIRS, model["formula"], "binomial", **options)
    assert fit.converged
    fixef, se = (np.array(list(model[name].values())) for name in ("fixef", "se"))
    assert np.abs((fit.fixef - fixef) / se).max() < FIXED_IN_SE
    np.testing.assert_allclose(fit.random["item"].sd, model["sd"], rtol=SD_RELATIVE)
    np.testing.assert_allclose(fit.se, se, rtol=2e-3)  # lme4's are of differences of the deviance
    assert f"quadrature, {model['points']} points" in str(fit)


def two_rows_a_level(sd, levels=200):
    rng = np.random.default_rng(1)
    rows = pd.DataFrame({"g": np.repeat(np.arange(levels), 2), "x": rng.normal(size=2 * levels)})
    eta = 0.5 + 0.8 * rows["x"] + rng.normal(0, sd, levels)[rows["g"]]
    return rows.assign(y=(rng.random(2 * levels) < 1 / (1 + np.exp(-eta))).astype(float))


def brute_loglik(rows, beta, sd):
    """Return the log-likelihood by a sum over 12,001 places of every level's effect."""
    u = np.linspace(-12, 12, 12001)
    total = 0.0
    for _, own in rows.groupby("g"):
        eta = beta[0] + beta[1] * own["x"].to_numpy()[:, None] + sd * u
        each = (own["y"].to_numpy()[:, None] * eta - np.logaddexp(0, eta)).sum(axis=0)
        total += logsumexp(each - u**2 / 2) + np.log((u[1] - u[0]) / np.sqrt(2 * np.pi))
    return total


def test_quadrature_is_the_integral():
    rows = two_rows_a_level(1.5)
    fit = fit_mixed(rows, "y ~ x + (1 | g)", "binomial", quadrature=50)
    sd = fit.random["g"].sd.iloc[0]
    best = brute_loglik(rows, fit.fixef.to_numpy(), sd)
    assert fit.loglik == pytest.approx(best, abs=1e-6)
    for step in (0.02, -0.02):  # and its maximum
        assert brute_loglik(rows, fit.fixef.to_numpy(), sd + step) < best
        assert brute_loglik(rows, fit.fixef.to_numpy() + np.array([0, step]), sd) < best


@pytest.mark.parametrize("points", [1, 2, 7])
@pytest.mark.parametrize("family", ["binomial", "beta"])
def test_the_gradient_is_that_of_the_sum_over_the_points(family, points):
    rng = np.random.default_rng(0)
    rows = pd.DataFrame(rng.normal(size=(90, 2)), columns=["x", "z"])
    rows = rows.assign(g=np.arange(90) % 30, trials=rng.integers(1, 4, 90))
    hits = rng.binomial(rows["trials"], 0.5) / rows["trials"]
    rows["y"] = hits if family == "binomial" else rng.beta(2, 3, 90)
    problem = fit_mixed(rows, "y ~ x + (0 + z | g)", family, weights="trials").problem
    problem.points, x = points, np.full(len(problem.lower), 0.7)
    ours = problem.evaluate(x).gradient
    steps = 1e-5 * np.eye(len(x))
    ends = [(problem.evaluate(x + h).deviance, problem.evaluate(x - h).deviance) for h in steps]
    np.testing.assert_allclose(ours, [(a - b) / 2e-5 for a, b in ends], rtol=1e-5, atol=1e-5)


def test_laplaces_error_is_told_and_right():
    rows = two_rows_a_level(6.0)
    fit = fit_mixed(rows, "y ~ x + (1 | g)", "binomial")
    (said,) = fit.diagnosis
    exact = fit_mixed(rows, "y ~ x + (1 | g)", "binomial", quadrature=50)
    own, other = (f.random["g"].sd.iloc[0] for f in (fit, exact))
    assert other > 1.4 * own
    assert "with 2 rows or trials a level of g" in said
    assert f"standard deviation is {other:.3g}, not {own:.3g}" in said
    assert said in " ".join(str(fit).split())
    assert exact.diagnosis == ()
    assert fit_mixed(TABLES["items"], "right ~ wp + (1 | run)", "binomial").diagnosis == ()


def test_few_rows_a_level_of_several_effects_are_told():
    rows = two_rows_a_level(1.0).assign(h=lambda d: d.index % 10)
    said = fit_mixed(rows, "y ~ x + (1 | g) + (1 | h)", "binomial").diagnosis
    assert any("few rows or trials a level of g (2)." in text for text in said)
    counted = rows.assign(trials=20, y=0.05 * np.rint(20 * (0.2 + 0.6 * rows["y"])))
    fit = fit_mixed(counted, "y ~ x + (1 | g) + (1 | h)", "binomial", weights="trials")
    assert not any("few rows" in text for text in fit.diagnosis)


@pytest.mark.parametrize(
    ("formula", "family", "points", "message"),
    [
        ("y ~ x + (1 | g)", "gaussian", 25, "quadrature=25: family=gaussian needs none"),
        ("y ~ x + (1 | g)", "binomial", 1, "quadrature=1: must be a whole number from 2 to 100"),
        ("y ~ x + (1 | g)", "binomial", True, "quadrature=True: must be a whole number"),
        ("y ~ x + (1 | g)", "binomial", 25.0, "quadrature=25.0: must be a whole number"),
        ("y ~ x", "binomial", 25, "quadrature=25: for one random effect"),
        ("y ~ x + (1 | g) + (1 | h)", "binomial", 25, "quadrature=25: for one random effect"),
    ],
)
def test_a_quadrature_that_cannot_be_is_one_line(formula, family, points, message):
    rows = two_rows_a_level(1.0).assign(h=lambda d: d.index % 10)
    with pytest.raises(AnalysisError, match=message):
        fit_mixed(rows, formula, family, quadrature=points)
