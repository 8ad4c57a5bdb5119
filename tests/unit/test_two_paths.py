"""The report's numbers are those of `analysis.inference`, which are those of stored R output."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import special

from analysis.inference.comparisons import pairwise
from analysis.inference.estimates import covariance
from analysis.inference.fit_quality import explained
from analysis.inference.means import means
from analysis.mixed import fit_mixed
from analysis.regression import contrasts, random_part
from analysis.regression.model import Request, analysed

ORACLES = Path(__file__).parents[1] / "oracles"
STORED = {m["name"]: m for m in json.loads((ORACLES / "glmm_models.json").read_text())}
TABLES = {name: pd.read_csv(ORACLES / f"{name}.csv") for name in ("items", "bounded")}
MEANS = [name for name, m in STORED.items() if "means" in m.get("glmmTMB", {})]
GROUPS = {"items": "item", "bounded": "task"}
TERMS = {"binomial": ("items", "right"), "beta": ("bounded", "usual")}


def quality(reg):
    return random_part.quality_rows(reg).set_index("quantity")["value"]


@pytest.mark.parametrize("family", TERMS)
def test_shares_of_variance_do_not_change_when_a_constant_offset_moves_the_intercept(family):
    # The two formulas are one model: only the intercept's value differs.
    table, score = TERMS[family]
    rows = TABLES[table].assign(shift=1.5)
    formula = f"{score} ~ wp + (1 | {GROUPS[table]})"
    plain = fit_mixed(rows, formula, family)
    moved = fit_mixed(rows, formula.replace("wp", "wp + offset(shift)"), family)
    assert moved.fixef["Intercept"] == pytest.approx(plain.fixef["Intercept"] - 1.5, abs=1e-4)
    for name in ("marginal", "conditional", "icc"):
        own, other = (getattr(explained(fit), name) for fit in (plain, moved))
        assert other == pytest.approx(own, rel=1e-4), name


@pytest.mark.parametrize("family", TERMS)
def test_the_report_and_the_fit_agree_on_shares_of_variance_with_an_offset(family):
    table, score = TERMS[family]
    rows = TABLES[table]
    rows = rows.assign(base=2 * np.sin(np.arange(len(rows))))
    formula = f"{score} ~ wp + offset(base) + (1 | {GROUPS[table]})"
    reg = analysed(rows, Request(formula=formula, family=family))
    fit = reg.fit
    eta = fit.design.X_NB @ fit.fixef.to_numpy()
    mu = special.expit(eta + rows["base"]).mean()
    noise = np.pi**2 / 3 if family == "binomial" else 1 / ((1 + fit.phi) * mu * (1 - mu))
    spread = float(fit.random[GROUPS[table]].cov.iloc[0, 0])
    icc, fixed = spread / (spread + noise), eta.var(ddof=1)
    assert explained(fit).icc == quality(reg)["ICC"] == pytest.approx(icc)
    assert quality(reg)["R² marginal"] == explained(fit).marginal
    assert quality(reg)["R² marginal"] == pytest.approx(fixed / (fixed + spread + noise))
    assert random_part.variance_rows(reg)["share"].iloc[0] == pytest.approx(icc)


def test_the_shares_of_a_beta_are_those_of_simulated_scores():
    # One group, few residual variances: logit(y) scattered by phi has about the delta variance.
    rng = np.random.default_rng(1)
    phi, sd, n = 80.0, 0.5, 400_000
    mu = special.expit(rng.normal(0.4, sd, n))
    y = rng.beta(phi * mu, phi * (1 - mu), (2, n))
    centre = special.expit(0.4)
    noise = 1 / ((1 + phi) * centre * (1 - centre))
    icc = np.corrcoef(special.logit(y))[0, 1]
    assert icc == pytest.approx(sd**2 / (sd**2 + noise), abs=0.01)


@pytest.mark.parametrize("name", MEANS)
def test_the_reports_means_are_the_tables_and_emmeans(name):
    model, stored = STORED[name], STORED[name]["glmmTMB"]["means"]
    rows = TABLES[model["data"]]
    request = Request(
        score=model["formula"].split("~")[0].strip(), formula=model["formula"],
        family=model["family"], weights=model.get("weights"),
    )  # fmt: skip
    reg = analysed(rows, request)
    assert not reg.steps
    told = contrasts.mean_rows(reg)
    told = told[told["factor"] == stored["over"]]
    table = means(reg.fit, reg.used, stored["over"], df=reg.df).table(type="response")
    back = "prob" if model["family"] == "binomial" else "response"
    pairs = {"response": ("estimate", back), "response_low": ("low", "asymp.LCL"),
             "response_high": ("high", "asymp.UCL")}  # fmt: skip
    for ours, (own, theirs) in pairs.items():
        np.testing.assert_array_equal(told[ours], table[own])
        error = 1e-3 * max(stored["response"]["SE"])
        np.testing.assert_allclose(told[ours], stored["response"][theirs], rtol=1e-3, atol=error)


@pytest.mark.parametrize(("left", "family"), [("usual", "beta"), ("log(usual)", "gaussian"),
                                              ("sqrt(usual)", "gaussian")])  # fmt: skip
def test_differences_on_the_scores_scale_are_of_the_means_and_their_error_is_the_derivative(
    left, family
):
    inverse = {"usual": special.expit, "log(usual)": np.exp, "sqrt(usual)": np.square}[left]
    rows = TABLES["bounded"]
    formula = f"{left} ~ adapter + wp + (1 | task)"
    reg = analysed(rows, Request(score="usual", formula=formula, family=family))
    found = means(reg.fit, reg.used, "adapter", df=reg.df)
    effects = pairwise(found).on_response
    pairs = contrasts.pair_rows(reg)
    pairs = pairs[pairs["factor"] == "adapter"].reset_index()
    beta, cov = reg.fit.fixef.to_numpy(), covariance(reg.fit, reg.df)
    kinds = [(0, 1), (0, 2), (1, 2)][: len(effects)]
    assert len(effects) == len(pairs)
    for effect, row, (i, j) in zip(effects, pairs.to_dict("records"), kinds, strict=True):

        def gap(b, i=i, j=j):
            mu = inverse(found.l_KB @ b)
            return mu[i] - mu[j]

        steps = 1e-5 * np.eye(len(beta))
        g = np.array([(gap(beta + h) - gap(beta - h)) / 2e-5 for h in steps])
        assert effect.estimate == pytest.approx(gap(beta), rel=1e-12)
        assert effect.se == pytest.approx(np.sqrt(g @ cov @ g), rel=1e-6)
        assert (row["difference"], row["difference_low"]) == (effect.estimate, effect.low)
    names = {"usual": "odds_ratio", "log(usual)": "ratio"}
    if left in names:
        np.testing.assert_allclose(pairs[names[left]], np.exp(pairs["estimate"]))
