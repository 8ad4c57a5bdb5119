"""Inference on generalised models: emmeans and lme4's answers, naive formulas, clear refusals."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import special, stats

from analysis.errors import AnalysisError
from analysis.inference.bootstrap import bootstrap, bootstrap_ratio, simulated
from analysis.inference.comparisons import pairwise
from analysis.inference.estimates import coefficients, contrast, joint, likelihood_ratio
from analysis.inference.fit_quality import explained, fitted_values, predicted, random_effects
from analysis.inference.means import means, slopes
from analysis.inference.profile import profile
from analysis.inference.sensitivity import collinearity, leverage
from analysis.inference.simplify import simplified
from analysis.mixed import fit_mixed

ORACLES = Path(__file__).parents[1] / "oracles"
STORED = {m["name"]: m for m in json.loads((ORACLES / "glmm_models.json").read_text())}
ITEMS, BOUNDED = (pd.read_csv(ORACLES / f"{name}.csv") for name in ("items", "bounded"))
MEANS = [name for name, m in STORED.items() if "means" in m.get("glmmTMB", {})]
MODES = [name for name, m in STORED.items() if "modes" in m.get("lme4", {})]
IN_SE, RELATIVE = 1e-3, 1e-3
FITS = {}


def fitted(name):
    """The rows and the fit of a stored model."""
    if name not in FITS:
        model = STORED[name]
        rows = ITEMS if model["data"] == "items" else BOUNDED
        weights = model.get("weights")
        FITS[name] = rows, fit_mixed(rows, model["formula"], model["family"], weights=weights)
    return FITS[name]


def equal(table, stored, pairs):
    """Our columns are R's, estimates to a share of their standard error."""
    for ours, theirs in pairs.items():
        values = np.atleast_1d(stored[theirs]).astype(float)
        error = IN_SE * np.atleast_1d(stored["SE"]).astype(float).max()
        np.testing.assert_allclose(table[ours], values, rtol=RELATIVE, atol=error)


@pytest.mark.parametrize("name", MEANS)
def test_marginal_means_equal_emmeans(name):
    rows, fit = fitted(name)
    stored = STORED[name]["glmmTMB"]["means"]
    found = means(fit, rows, stored["over"])
    limits = {"low": "asymp.LCL", "high": "asymp.UCL", "se": "SE"}
    table = found.table()
    assert table[stored["over"]].tolist() == stored["link"][stored["over"]]
    equal(table, stored["link"], {"estimate": "emmean", **limits})
    assert np.isinf(table["df"]).all()
    back = "prob" if fit.family == "binomial" else "response"
    equal(found.table(type="response"), stored["response"], {"estimate": back, **limits})
    compared = pairwise(found, adjust="none")
    equal(compared.table(), stored["pairs"], {"estimate": "estimate", **limits})
    ratios = compared.table(type="response")
    equal(ratios, stored["ratios"], {"odds_ratio": "odds.ratio", **limits})
    np.testing.assert_array_equal(ratios["p"], compared.table()["p"])
    trends = slopes(fit, rows, "wp", of=stored["over"]).table()
    if "I(wp ** 2)" in fit.fixef:  # emmeans takes a forward difference, which bends with the curve
        slope = fit.fixef["wp"] + 2 * fit.fixef["I(wp ** 2)"] * rows["wp"].mean()
        np.testing.assert_allclose(trends["estimate"], slope, rtol=1e-6)
        return
    equal(trends, stored["slopes"], {"estimate": "wp.trend", **limits})


def test_there_are_means_of_both_families():
    assert {STORED[name]["family"] for name in MEANS} == {"binomial", "beta"}
    assert len(MEANS) >= 5
    assert len(MODES) >= 2


def test_a_linear_model_of_a_logit_goes_back_too():
    fit = fit_mixed(BOUNDED, "logit(usual) ~ wp + adapter + (1 | task) + (1 | run)")
    found = means(fit, BOUNDED, "adapter")
    link, response = found.table(), found.table(type="response")
    np.testing.assert_allclose(response["low"], special.expit(link["low"]))
    mu = special.expit(link["estimate"])
    np.testing.assert_allclose(response["se"], link["se"] * mu * (1 - mu))
    ratio = pairwise(found).table(type="response")
    np.testing.assert_allclose(ratio["odds_ratio"], np.exp(pairwise(found).table()["estimate"]))


def test_other_scales_of_a_score():
    rows = BOUNDED.assign(cost=np.exp(BOUNDED["usual"]))
    for name, inverse in (("log2", np.exp2), ("log", np.exp), ("sqrt", np.square)):
        fit = fit_mixed(rows, f"{name}(cost) ~ adapter + (1 | task)")
        found = means(fit, rows, "adapter")
        table = found.table(type="response")
        np.testing.assert_allclose(table["estimate"], inverse(found.table()["estimate"]))
        step = 1e-6
        slope = (inverse(found.table()["estimate"] + step) - table["estimate"]) / step
        np.testing.assert_allclose(table["se"], found.table()["se"] * slope, rtol=1e-4)
    with pytest.raises(AnalysisError, match="a difference of sqrt is no ratio"):
        pairwise(found).table(type="response")
    plain = fit_mixed(rows, "cost ~ adapter + (1 | task)")
    same = means(plain, rows, "adapter")
    pd.testing.assert_frame_equal(same.table(type="response"), same.table())
    pd.testing.assert_frame_equal(pairwise(same).table(type="response"), pairwise(same).table())


@pytest.mark.parametrize("adjust", ["tukey", "mvt", "holm"])
def test_adjustments_hold_with_infinite_df(adjust):
    rows, fit = fitted("beta, interaction")
    table = pairwise(means(fit, rows, "dataset"), adjust=adjust).table()
    assert (table["p_adjusted"] >= table["p"] - 1e-9).all()
    if adjust == "tukey":
        other = stats.studentized_range.sf(np.sqrt(2) * table["t"].abs(), 3, np.inf)
        np.testing.assert_allclose(table["p_adjusted"], other, atol=1e-4)


# Coefficients and tests.


def test_coefficients_are_normal():
    _, fit = fitted("beta, crossed")
    table = coefficients(fit)
    z = fit.fixef / fit.se
    np.testing.assert_allclose(table["p"], 2 * stats.norm.sf(np.abs(z)))
    assert np.isinf(table["df"]).all()
    pd.testing.assert_frame_equal(table, coefficients(fit, df="normal"))


def test_kenward_roger_is_refused():
    _, fit = fitted("beta, crossed")
    with pytest.raises(AnalysisError) as error:
        contrast(fit, np.eye(4)[1], df="kenward-roger")
    assert str(error.value) == (
        "df=kenward-roger: for family=gaussian alone, this is beta; its tests are normal ones, "
        "df=normal"
    )
    for call in (
        lambda: coefficients(fit, df="kenward-roger"),
        lambda: joint(fit, np.eye(4)[1:3], df="kenward-roger"),
        lambda: means(fit, BOUNDED, "adapter", df="kenward-roger").table(),
    ):
        with pytest.raises(AnalysisError, match="df=kenward-roger: for family=gaussian alone"):
            call()


def test_a_joint_test_is_walds_chi_square():
    _, fit = fitted("beta, crossed")
    l_KB = np.eye(4)[1:3]
    own = l_KB @ fit.fixef.to_numpy()
    chi2 = float(own @ np.linalg.solve(l_KB @ fit.cov.to_numpy() @ l_KB.T, own))
    found = joint(fit, l_KB)
    assert found.statistic == pytest.approx(chi2 / 2)
    assert found.p == pytest.approx(stats.chi2.sf(chi2, 2))
    assert (found.df, found.df_residual) == (2, np.inf)


def test_likelihood_ratios_are_those_of_glmmtmb():
    large, small = fitted("beta, correlated slopes")[1], fitted("beta, interaction")[1]
    narrow = fit_mixed(BOUNDED, "usual ~ wp + adapter + (1 | task) + (1 | run)", "beta")
    found = likelihood_ratio(narrow, large)
    assert found.statistic == pytest.approx(2 * (large.loglik - narrow.loglik))
    assert "50:50 mixture" in found.note
    fixed = likelihood_ratio(narrow, small)
    stored = STORED["beta, interaction"]["glmmTMB"]["loglik"]
    assert fixed.statistic == pytest.approx(2 * (stored - narrow.loglik), abs=1e-4)
    assert fixed.df == 4
    assert fixed.p == pytest.approx(stats.chi2.sf(fixed.statistic, 4))
    assert fixed.joint.p == pytest.approx(fixed.p, abs=0.02)


def test_families_and_scores_are_not_compared():
    beta = fitted("beta, crossed")[1]
    for other, words in (
        (fit_mixed(BOUNDED, "usual ~ wp + (1 | task)"), "family=gaussian in one model and beta"),
        (fit_mixed(BOUNDED, "loose ~ wp + (1 | task)", "beta"), "score=loose in one model and usu"),
    ):
        with pytest.raises(AnalysisError, match=f"likelihood ratio: {words}"):
            likelihood_ratio(other, beta)
        with pytest.raises(AnalysisError, match=f"bootstrap: {words}"):
            bootstrap_ratio(other, beta, draws=20)


def test_what_only_linear_models_have_is_refused():
    rows, fit = fitted("beta, crossed")
    with pytest.raises(AnalysisError, match=r"profile: .* use coefficients \(Wald\) or bootstrap"):
        profile(fit)
    with pytest.raises(AnalysisError, match=r"leverage of plw: .* fit again without the rows"):
        leverage(fit, rows, "plw")
    with pytest.raises(AnalysisError, match="type=response: for means"):
        slopes(fit, rows, "wp").table(type="response")
    with pytest.raises(AnalysisError, match="type=respons: not one of link, response"):
        means(fit, rows, "adapter").table(type="respons")


def test_what_needs_no_residual_works():
    rows, fit = fitted("beta, crossed")
    assert collinearity(fit).condition > 1
    singular = simplified(rows, STORED["beta, singular"]["formula"], family="beta")
    assert "batch" not in singular.fit.random
    assert not singular.fit.singular


# Random effects, predictions and shares.


@pytest.mark.parametrize("name", MODES)
def test_random_effects_and_their_errors_equal_lme4(name):
    _, fit = fitted(name)
    stored = pd.DataFrame(STORED[name]["lme4"]["modes"])
    stored["term"] = stored["term"].replace("(Intercept)", "Intercept")
    found = random_effects(fit)
    both = found.merge(
        stored, left_on=["group", "level", "name"], right_on=["grpvar", "grp", "term"]
    )
    assert len(both) == len(found) == len(stored)
    np.testing.assert_allclose(both["estimate"], both["condval"], atol=2e-3 * both["condsd"].min())
    np.testing.assert_allclose(both["se"], both["condsd"], rtol=2e-3)


@pytest.mark.parametrize("name", ["beta, offset, weights, slopes", "counts, slopes"])
def test_fitted_values_stand_on_the_scale_of_the_score(name):
    _, fit = fitted(name)
    found = fitted_values(fit)
    np.testing.assert_allclose(found["fitted"], fit.fitted)
    assert ((found["low"] > 0) & (found["high"] < 1) & (found["low"] < found["fitted"])).all()
    z = stats.norm.ppf(0.975)
    eta = special.logit(found[["low", "fitted", "high"]])
    np.testing.assert_allclose(eta["high"] - eta["fitted"], eta["fitted"] - eta["low"])
    mu = found["fitted"]
    np.testing.assert_allclose(found["se"], (eta["high"] - eta["fitted"]) / z * mu * (1 - mu))
    # A row's own random effects leave less room than the fixed part alone.
    assert (found["se"] < predicted(fit, BOUNDED)["se"]).mean() > 0.95


def test_predictions_at_other_rows_hold_the_offset():
    _, fit = fitted("beta, offset")
    rows = BOUNDED[["wp", "adapter", "base"]].iloc[[0, 100]]
    found = predicted(fit, rows)
    l_NB = fit.matrix(rows)
    eta = l_NB @ fit.fixef.to_numpy() + rows["base"]
    np.testing.assert_allclose(found["fitted"], special.expit(eta))
    se = np.sqrt(np.diagonal(l_NB @ fit.cov.to_numpy() @ l_NB.T))
    np.testing.assert_allclose(found["high"], special.expit(eta + stats.norm.ppf(0.975) * se))
    with pytest.raises(AnalysisError, match="no column base"):
        predicted(fit, rows.drop(columns="base"))
    scaled = fit_mixed(BOUNDED, "usual ~ wp + offset(center(base)) + (1 | task)", "beta")
    with pytest.raises(AnalysisError, match=r"offset\(center\(base\)\) depends on the table"):
        predicted(scaled, rows)
    linear = fit_mixed(BOUNDED, "linear ~ wp + offset(base) + (1 | task)")
    own = linear.matrix(rows) @ linear.fixef.to_numpy() + rows["base"]
    np.testing.assert_allclose(predicted(linear, rows)["fitted"], own)


@pytest.mark.parametrize("name", ["counts, slopes", "beta, correlated slopes"])
def test_shares_of_variance_are_nakagawas(name):
    _, fit = fitted(name)
    fixed = fit.design.X_NB @ fit.fixef.to_numpy()
    z = np.column_stack([np.ones(fit.n), BOUNDED["wp"]])
    task = np.einsum("na,ab,nb->n", z, fit.random["task"].cov, z).mean()
    run = fit.random["run"].cov.iloc[0, 0]
    if fit.family == "binomial":
        noise = np.pi**2 / 3
    else:  # var y / (d mu / d eta)^2
        mu = special.expit(fixed).mean()
        noise = mu * (1 - mu) / (1 + fit.phi) / (mu * (1 - mu)) ** 2
    total = fixed.var(ddof=1) + task + run + noise
    found = explained(fit)
    assert found.marginal == pytest.approx(fixed.var(ddof=1) / total)
    assert found.conditional == pytest.approx(1 - noise / total)
    assert found.icc == pytest.approx((task + run) / (task + run + noise))
    assert found.by_group["run"] == pytest.approx(run / (task + run + noise))


def test_the_latent_share_is_that_of_simulated_scores():
    # The ICC of a logistic model is the correlation of two latent scores of one group.
    rng = np.random.default_rng(0)
    latent = rng.normal(0, 1.2, (200_000, 1)) + rng.logistic(size=(200_000, 2))
    icc = 1.44 / (1.44 + np.pi**2 / 3)
    assert np.corrcoef(latent.T)[0, 1] == pytest.approx(icc, abs=0.01)


def test_without_random_effects_there_is_inference_too():
    fit = fit_mixed(BOUNDED, "usual ~ wp * adapter", "beta")
    assert random_effects(fit).empty
    assert explained(fit).icc == 0
    l_NB = fit.design.X_NB
    se = np.sqrt(np.einsum("na,ab,nb->n", l_NB, fit.cov.to_numpy(), l_NB))
    mu = fit.fitted
    np.testing.assert_allclose(fitted_values(fit)["se"], se * mu * (1 - mu))


# Simulated refits.


@pytest.mark.parametrize(
    ("formula", "family", "weights"),
    [
        ("usual ~ wp + adapter + (1 + wp | task) + (1 | run)", "beta", "w"),
        ("accuracy ~ wp + offset(base) + (1 | task) + (1 | run)", "binomial", "trials"),
        ("usual ~ wp + (1 | batch) + (1 | run)", "beta", None),
        ("loose ~ wp * adapter", "beta", None),
    ],
)
def test_refits_equal_fits_from_scratch(formula, family, weights):
    fit = fit_mixed(BOUNDED, formula, family, weights=weights)
    found = bootstrap(fit, draws=20, seed=5, extra=lambda beta: 2 * beta["wp"])
    assert found.failed == 0
    assert found.estimate["wp"] == fit.fixef["wp"]
    rng, score = np.random.default_rng(5), formula.split(" ~")[0]
    rows = list(found.draws.iterrows())
    for y_N, (_, row) in list(zip(simulated(fit, 20, rng), rows, strict=True))[:6]:
        again = fit_mixed(BOUNDED.assign(**{score: y_N}), formula, family, weights=weights)
        assert ((row[again.fixef.index] - again.fixef) / again.se).abs().max() < 2e-3
        assert row["extra"] == 2 * row["wp"]
        for group, effect in again.random.items():
            for name, sd in effect.sd.items():
                assert row[f"sd {group} {name}"] == pytest.approx(sd, rel=2e-3, abs=5e-3)
        if family == "beta":
            assert row["phi"] == pytest.approx(again.phi, rel=1e-3)
    assert ("phi" in found.draws) == (family == "beta")


def test_percentile_intervals_are_walds_in_a_large_table():
    fit = fit_mixed(ITEMS, "right ~ wp + adapter", "binomial")
    found = bootstrap(fit, draws=600)
    low, high = found.interval("wp")
    assert low == pytest.approx(fit.fixef["wp"] - 1.96 * fit.se["wp"], abs=0.3 * fit.se["wp"])
    assert high == pytest.approx(fit.fixef["wp"] + 1.96 * fit.se["wp"], abs=0.3 * fit.se["wp"])
    assert found.table().set_index("name").loc["wp", "se"] == pytest.approx(fit.se["wp"], rel=0.1)


def test_simulated_scores_vary_as_the_model_says():
    fit = fit_mixed(BOUNDED, "accuracy ~ wp + (1 | run)", "binomial", weights="trials")
    draws = np.array(list(simulated(fit, 1500, np.random.default_rng(1))))
    nodes, weights = np.polynomial.hermite_e.hermegauss(30)
    sd = fit.random["run"].sd.iloc[0]
    fixed = fit.design.X_NB @ fit.fixef.to_numpy()
    mu = special.expit(fixed[:, None] + sd * nodes)
    share = weights / weights.sum()
    mean = mu @ share
    variance = (mu**2 @ share) - mean**2 + (mu * (1 - mu) @ share) / BOUNDED["trials"]
    error = np.sqrt(variance / 1500)
    assert np.abs((draws.mean(axis=0) - mean) / error).max() < 4.5
    np.testing.assert_allclose(draws.var(axis=0), variance, rtol=0.25)


def test_the_ratio_of_a_null_variance_is_the_known_mixture():
    rng = np.random.default_rng(2)
    data = pd.DataFrame({"g": np.repeat(np.arange(30), 6), "x": np.tile(np.arange(6.0), 30)})
    data["y"] = rng.beta(8, 8, 180)
    small, large = fit_mixed(data, "y ~ x", "beta"), fit_mixed(data, "y ~ x + (1 | g)", "beta")
    test = bootstrap_ratio(small, large, draws=150)
    assert test.failed == 0
    assert 0.4 < (test.null_D < 1e-4).mean() < 0.75
    tail = test.null_D[test.null_D > 1e-4]
    assert stats.kstest(tail, "chi2", args=(1,)).pvalue > 0.001


def test_offsets_are_no_harm_to_what_linear_models_are_asked():
    with_offset = fit_mixed(BOUNDED, "linear ~ wp + offset(base) + (1 | run)")
    rows = BOUNDED.assign(linear=BOUNDED["linear"] - BOUNDED["base"])
    without = fit_mixed(rows, "linear ~ wp + (1 | run)")
    names = ("wp", "sd run Intercept")
    found, other = profile(with_offset, names=names), profile(without, names=names)
    np.testing.assert_allclose(found[["low", "high"]], other[["low", "high"]], rtol=1e-3)
    found, other = (
        leverage(f, r, "plw").table for f, r in ((with_offset, BOUNDED), (without, rows))
    )
    np.testing.assert_allclose(found["estimate_without"], other["estimate_without"], rtol=1e-8)
