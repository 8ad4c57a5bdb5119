"""Fits of generalised mixed models: glmmTMB, lme4, and special cases that must collapse."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from statsmodels.othermod.betareg import BetaModel

from analysis.mixed import fit_mixed, refit

ORACLES = Path(__file__).parents[1] / "oracles"
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
