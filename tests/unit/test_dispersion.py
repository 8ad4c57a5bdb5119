"""Residual variances that differ between rows: nlme, glmmTMB, Welch, dense likelihoods, weights."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.engine.dispersion import MOST_LOG, Dispersed
from analysis.engine.formula import design, parse
from analysis.engine.lmm import Problem
from analysis.engine.lmm_fit import minimise
from analysis.engine.residual import basis
from analysis.errors import AnalysisError
from analysis.inference.bootstrap import bootstrap, bootstrap_ratio, simulated
from analysis.inference.estimates import contrast, joint, likelihood_ratio
from analysis.inference.fit_quality import explained, fitted_values
from analysis.inference.profile import profile
from analysis.inference.sensitivity import leverage
from analysis.inference.simplify import simplified
from analysis.mixed import fit_mixed, refit, with_score

ORACLES = Path(__file__).parents[1] / "oracles"
STORED = json.loads((ORACLES / "dispersion_models.json").read_text())
IDS = [m["name"] for m in STORED]
# Asked for: 1e-3 SE and 1e-3. Found, and held to: ten times closer or better.
FIXED_IN_SE, SE_RELATIVE, LOGLIK, SD_RELATIVE = 1e-4, 1e-4, 1e-6, 1e-4
WITH_THETA = 0.02  # glmmTMB's SEs know that theta is estimated, ours (as lme4's and nlme's) do not


def plain(name):
    """A coefficient's name in one spelling, ours or R's; factors of a product in any order."""
    for one, other in {"(Intercept)": "Intercept", "T.": "", "[": "", "]": ""}.items():
        name = name.replace(one, other)
    return frozenset(name.split(":"))


def in_order(names, stored, *columns):
    """Columns of stored coefficients in the order of our names."""
    order = {plain(name): k for k, name in enumerate(stored["names"])}
    assert len(order) == len(names)
    return [np.array(stored[c])[[order[plain(str(n))] for n in names]] for c in columns]


@cache
def fitted(i):
    model = STORED[i]
    rows = pd.read_csv(ORACLES / f"{model['data']}.csv")
    rows = rows[rows["panel"] <= "p06"] if model["small"] else rows
    weights = "w" if model["weights"] else None
    same = {"method": model["method"], "dispersion": model["dispersion"], "weights": weights}
    return fit_mixed(rows, model["formula"], **same)


@pytest.mark.parametrize("i", range(len(STORED)), ids=IDS)
def test_fits_equal_nlme_and_glmmtmb(i):
    fit, model = fitted(i), STORED[i]
    assert fit.n == model["n"]
    assert fit.converged
    assert fit.parameters == model["parameters"]
    assert fit.loglik == pytest.approx(model["loglik"], abs=LOGLIK)
    beta_B, se_B = in_order(fit.fixef.index, model, "fixef", "se")
    assert np.abs((fit.fixef - beta_B) / se_B).max() < FIXED_IN_SE
    known = model["program"] == "nlme"
    np.testing.assert_allclose(fit.se, se_B, rtol=SE_RELATIVE if known else WITH_THETA)
    own = fit.sigma / np.sqrt(fit.weights_N[np.array(model["rows"])])
    np.testing.assert_allclose(own, model["sd"], rtol=SD_RELATIVE)
    sds = np.sort([sd for effect in fit.random.values() for sd in effect.sd])
    np.testing.assert_allclose(sds, model["random"], rtol=SD_RELATIVE)


@pytest.mark.parametrize("i", [i for i, m in enumerate(STORED) if m["program"] == "glmmTMB"])
def test_coefficients_of_the_log_sd_and_their_errors_equal_glmmtmb(i):
    found = fitted(i).dispersion
    estimate, se = in_order(found["name"], STORED[i]["logs"], "estimate", "se")
    assert np.abs((found["estimate"] - estimate) / se).max() < 1e-3
    np.testing.assert_allclose(found["se"], se, rtol=1e-3)


def test_there_are_enough_models_and_one_is_pinheiro_and_bates():
    assert len(STORED) >= 8
    assert {m["program"] for m in STORED} == {"nlme", "glmmTMB"}
    # Pinheiro and Bates 2000, section 5.4: -207.15, with Helmert contrasts, whose |X' V^-1 X| is
    # 4^2 times that of treatment contrasts; 9 parameters; the ratio to one variance is 21.06.
    fit = fitted(IDS.index("Orthodont by Sex (fm3Orth.lme)"))
    assert fit.loglik - np.log(4) == pytest.approx(-207.15, abs=0.005)
    assert fit.aic + 2 * np.log(4) == pytest.approx(432.30, abs=0.005)
    rows = pd.read_csv(ORACLES / "orthodont.csv")
    one = fit_mixed(rows, fit.formula)
    assert 2 * (fit.loglik - one.loglik) == pytest.approx(21.059, abs=0.001)


def two_groups(seed=0):
    rng = np.random.default_rng(seed)
    group = np.repeat(["a", "b"], [8, 21])
    return pd.DataFrame({"group": group, "score": rng.normal(0, np.where(group == "a", 1, 7))})


@pytest.mark.parametrize("dispersion", ["~ group", "~ 0 + group"])
def test_two_groups_are_welchs_test(dispersion):
    data = two_groups()
    fit = fit_mixed(data, "score ~ group", dispersion=dispersion)
    a, b = (own["score"] for _, own in data.groupby("group"))
    welch = stats.ttest_ind(b, a, equal_var=False)
    found = contrast(fit, np.array([0.0, 1.0]))
    assert found.t == pytest.approx(welch.statistic, rel=1e-7)
    assert found.df == pytest.approx(welch.df, rel=1e-5)
    assert found.p == pytest.approx(welch.pvalue, rel=1e-5)
    np.testing.assert_allclose(fit.residual_sd[["a", "b"]], [a.std(), b.std()], rtol=1e-6)
    # The mean of one group alone has that group's df.
    assert contrast(fit, np.array([1.0, 0.0])).df == pytest.approx(7, rel=1e-5)
    # The variance of log s is 1 / (2 df).
    logs = np.sqrt([1 / 14, 1 / 14 + 1 / 40] if dispersion == "~ group" else [1 / 14, 1 / 40])
    np.testing.assert_allclose(fit.dispersion["se"], logs, rtol=1e-4)


def crossed(seed=0, n=60):
    rng = np.random.default_rng(seed)
    panel, run, task = rng.integers(0, [3, 7, 5], (n, 3)).T
    x = rng.normal(size=n)
    own, slope = rng.normal(size=7), rng.normal(size=7)
    noise = np.array([0.3, 1.0, 3.0])[panel] * np.exp(0.3 * x) * rng.normal(size=n)
    score = own[run] + slope[run] * x + rng.normal(size=5)[task] + noise
    names = [
        np.char.add(letter, v.astype(str))
        for letter, v in zip("prt", (panel, run, task), strict=True)
    ]
    data = pd.DataFrame({"x": x, "score": score, "w": rng.uniform(0.5, 2, n)})
    return data.assign(panel=names[0], run=names[1], task=names[2])


SHAPES = [
    "score ~ panel + x",
    "score ~ panel * x + (1 | run)",
    "score ~ x + (1 + x | run) + (1 | task)",
    "score ~ x + (1 | task) + (1 + x || run)",
]


@pytest.mark.parametrize("reml", [True, False], ids=["REML", "ML"])
@pytest.mark.parametrize("formula", SHAPES)
@pytest.mark.parametrize("weights", [None, "w"])
def test_the_deviance_and_its_gradient_are_those_of_the_dense_matrix(formula, reml, weights):
    data = crossed()
    found = design(parse(formula, data.columns), data, weights=weights, dispersion="~ panel + x")
    problem = Problem(
        found.X_NB, found.y_N, factors=found.factors, weights_N=found.weights_N, reml=reml
    )
    model = Dispersed(problem, basis(found.dispersion))
    d_NK, root_N = model.basis_NK, found.root_N
    np.testing.assert_allclose(d_NK.T @ d_NK, 60 * np.eye(3), atol=1e-9)
    np.testing.assert_allclose(d_NK.sum(axis=0), 0, atol=1e-9)

    def dense(x, variance=None):
        v_NN = np.diag(np.exp(2 * d_NK @ x[model.size :]) / root_N**2)
        pairs = zip(model.factors, model.unpack(x[: model.size]), model.scales, strict=True)
        for factor, template, scale in pairs:
            z = factor.matrix(factor.columns_NP).toarray()
            lam = template / scale[:, None]
            v_NN += z @ np.kron(np.eye(len(factor.levels)), lam @ lam.T) @ z.T
        n, X = len(v_NN), found.X_NB
        inverse = np.linalg.inv(v_NN)
        information = X.T @ inverse @ X
        r_N = found.y_N - X @ np.linalg.solve(information, X.T @ inverse @ found.y_N)
        r2, df = r_N @ inverse @ r_N, n - X.shape[1] if reml else n
        extra = np.linalg.slogdet(information)[1] if reml else 0.0
        sigma2 = r2 / df if variance is None else variance
        return np.linalg.slogdet(v_NN)[1] + extra + df * np.log(2 * np.pi * sigma2) + r2 / sigma2

    rng = np.random.default_rng(1)
    x = np.concatenate([rng.uniform(0.3, 1.2, model.size), [0.6, -0.4, 0.3]])
    at = model.evaluate(x)
    assert at.deviance == pytest.approx(dense(x), abs=1e-8)
    for gradient, variance in ((at.gradient, None), (model.slope(x, at, 1.7), 1.7)):
        for k in range(len(x)):
            step = 1e-5 * np.eye(len(x))[k]
            rise = (dense(x + step, variance) - dense(x - step, variance)) / 2e-5
            assert gradient[k] == pytest.approx(rise, abs=2e-5)
    # The guess at the curvature is the Hessian's sort: right on average, and never negative.
    assert np.linalg.eigvalsh(model.curvature(x, at)).min() > -1e-8


def study(seed=0, *, panels=4, arms=3, seeds=5):
    """Panels whose residual SDs go from 0.5 to 5, cells with an effect of their own."""
    rng = np.random.default_rng(seed)
    panel, arm, _ = np.meshgrid(*map(np.arange, (panels, arms, seeds)), indexing="ij")
    panel, arm = panel.ravel(), arm.ravel()
    cell = panel * arms + arm
    sd = 0.5 * 10 ** (np.arange(panels) / (panels - 1))
    score = 50 + panel + 0.8 * rng.normal(size=panels * arms)[cell]
    score = score + sd[panel] * rng.normal(size=len(cell))
    names = {"panel": panel, "arm": arm, "cell": cell}
    data = {k: np.char.add(k[0], v.astype(str)) for k, v in names.items()}
    return pd.DataFrame(data | {"x": arm / 2, "score": score})


FORMULA = "score ~ panel + x + (1 | cell)"


def test_with_the_variances_known_it_is_the_weighted_fit():
    data = study()
    fit = fit_mixed(data, FORMULA, dispersion="~ panel")
    known = fit_mixed(data.assign(w=fit.weights_N), FORMULA, weights="w")
    assert fit.loglik == pytest.approx(known.loglik, abs=1e-7)
    np.testing.assert_allclose(fit.fixef, known.fixef, atol=1e-5)
    np.testing.assert_allclose(fit.se, known.se, rtol=1e-5)
    np.testing.assert_allclose(fit.fitted, known.fitted, rtol=1e-6)
    np.testing.assert_allclose(fitted_values(fit)["se"], fitted_values(known)["se"], rtol=1e-4)
    np.testing.assert_allclose(fit.standardised, known.standardised, atol=1e-4)
    shares = [leverage(f, data, "arm").table["share"] for f in (fit, known)]
    np.testing.assert_allclose(*shares, atol=1e-5)
    assert explained(fit).conditional == pytest.approx(explained(known).conditional, abs=1e-5)
    noise = float((fit.sigma**2 / fit.weights_N).mean())
    cell = float(fit.random["cell"].cov.iloc[0, 0])
    assert explained(fit).icc == pytest.approx(cell / (cell + noise), rel=1e-9)
    # But it counts what was estimated, and its df know of it.
    assert fit.parameters == known.parameters + 3
    assert fit.aic == pytest.approx(known.aic + 6, abs=1e-6)
    l_B = np.eye(len(fit.fixef))[3]
    assert contrast(fit, l_B).df < contrast(known, l_B).df
    assert np.std(fit.standardised) == pytest.approx(1, abs=0.1)


def test_of_equal_variances_and_of_a_constant_it_is_the_plain_fit():
    data = study()
    plain_fit = fit_mixed(data, FORMULA)
    constant = fit_mixed(data, FORMULA, dispersion="~ 1")
    assert constant.loglik == plain_fit.loglik
    assert constant.dispersed is None
    assert len(constant.dispersion) == 0
    assert list(plain_fit.residual_sd.items()) == [("", plain_fit.sigma)]


def test_a_score_in_other_units_and_a_covariate_far_from_zero_change_nothing():
    data = study().assign(year=lambda d: 2000 + 10 * d["x"])
    fit = fit_mixed(data, FORMULA, dispersion="~ panel + x")
    far = fit_mixed(data, FORMULA, dispersion="~ panel + year")
    assert far.loglik == pytest.approx(fit.loglik, abs=1e-7)
    slope = [f.dispersion["estimate"].iloc[-1] for f in (fit, far)]
    assert slope[0] == pytest.approx(10 * slope[1], rel=1e-4)
    big = fit_mixed(data.assign(score=1e6 * data["score"]), FORMULA, dispersion="~ panel + x")
    np.testing.assert_allclose(big.residual_sd, 1e6 * fit.residual_sd, rtol=1e-5)


def test_refits_keep_the_dispersion():
    data = study()
    fit = fit_mixed(data, FORMULA, dispersion="~ panel")
    again = refit(fit, "ML")
    assert again.loglik == fit_mixed(data, FORMULA, dispersion="~ panel", method="ML").loglik
    moved = with_score(fit, 3 * data["score"].to_numpy())
    np.testing.assert_allclose(moved.residual_sd, 3 * fit.residual_sd, rtol=1e-4)
    lab = data.assign(lab=[f"l{i % 6}" for i in range(len(data))])
    simple = simplified(lab, f"{FORMULA} + (1 | lab)", dispersion="~ panel")
    assert simple.fit.design.dispersion is not None


def test_the_likelihood_ratio_of_unequal_variances_has_their_number_as_df():
    data = study()
    equal, own = (fit_mixed(data, FORMULA, dispersion=d) for d in (None, "~ panel"))
    test = likelihood_ratio(equal, own)
    statistic = 2 * (refit(own, "ML").loglik - refit(equal, "ML").loglik)
    assert (test.df, test.note, test.joint) == (3, "", None)
    assert test.statistic == pytest.approx(statistic)
    assert test.p == pytest.approx(stats.chi2.sf(statistic, 3))
    same = study(1).assign(score=lambda d: np.random.default_rng(2).normal(size=len(d)))
    equal, own = (fit_mixed(same, "score ~ panel", dispersion=d) for d in (None, "~ panel"))
    simulated_p = bootstrap_ratio(equal, own, draws=400).p
    assert simulated_p == pytest.approx(likelihood_ratio(equal, own).p, abs=0.12)


def test_simulated_scores_have_every_levels_own_spread_and_refits_find_it():
    data = study(seeds=8)
    fit = fit_mixed(data, FORMULA, dispersion="~ panel")
    drawn = np.array(list(simulated(fit, 400, np.random.default_rng(0))))
    total = [
        drawn[:, (data["panel"] == p).to_numpy()].std(axis=0).mean() for p in fit.residual_sd.index
    ]
    cell = float(fit.random["cell"].sd.iloc[0])
    np.testing.assert_allclose(total, np.hypot(fit.residual_sd, cell), rtol=0.05)
    found = bootstrap(fit, draws=60)
    names = [f"sd residual {p}" for p in fit.residual_sd.index]
    np.testing.assert_allclose(found.estimate[names], fit.residual_sd, rtol=1e-5)
    np.testing.assert_allclose(found.draws[names].mean(), fit.residual_sd, rtol=0.06)
    logs = fit_mixed(data, FORMULA, dispersion="~ 0 + panel").dispersion["se"]
    spread = found.draws[names].std().to_numpy() / fit.residual_sd.to_numpy()
    np.testing.assert_allclose(spread, logs, rtol=0.35)
    y_N = next(simulated(fit, 1, np.random.default_rng(3)))
    again = with_score(fit, y_N)
    whole = fit_mixed(data.assign(score=y_N), FORMULA, dispersion="~ panel")
    assert again.loglik == pytest.approx(whole.loglik, abs=1e-6)


def test_profiles_reach_the_deviance_they_promise():
    data = study(3, seeds=8)
    cut = stats.chi2.ppf(0.95, 1)
    fit = fit_mixed(data, FORMULA, dispersion="~ panel", method="ML")
    found = profile(fit, names=("x", "sd cell Intercept", "sd residual p1")).set_index("name")
    for end in found.loc["x", ["low", "high"]]:
        held = data.assign(score=data["score"] - end * data["x"])
        without = fit_mixed(held, "score ~ panel + (1 | cell)", dispersion="~ panel", method="ML")
        assert 2 * (fit.loglik - without.loglik) == pytest.approx(cut, abs=2e-3)
    cell, residual = found.loc["sd cell Intercept"], found.loc["sd residual p1"]
    assert cell["low"] < fit.random["cell"].sd.iloc[0] < cell["high"]
    assert residual["estimate"] == pytest.approx(fit.residual_sd["p1"])
    # Without random effects the panels are independent: n log s^2 + rss / s^2 of p1 alone.
    alone = fit_mixed(data, "score ~ panel", dispersion="~ panel", method="ML")
    own = data.loc[data["panel"] == "p1", "score"]
    n, best = len(own), own.var(ddof=0)
    _, _, low, high = profile(alone, names=("sd residual p1",)).iloc[0]
    for end in (low, high):
        rise = n * (np.log(end**2) + best / end**2 - np.log(best) - 1)
        assert rise == pytest.approx(cut, abs=2e-3)


def test_the_summary_shows_every_levels_sd_or_the_coefficients():
    data = study()
    fit = fit_mixed(data, FORMULA, dispersion="~ panel")
    table = fit.summary().tables["random"]
    own = table[table["group"] == "residual"]
    assert list(own["name"]) == ["p0", "p1", "p2", "p3"]
    np.testing.assert_allclose(own["sd"], fit.residual_sd)
    assert "~ panel" in repr(fit)
    assert " residual  p3 " in repr(fit)
    many = data.assign(z=np.linspace(0, 1, len(data)))
    found = fit_mixed(many, FORMULA, dispersion="~ panel + z")
    assert list(found.residual_sd.index) == [""]
    assert list(found.summary().tables["dispersion"]["name"])[-1] == "z"
    assert "Logarithm of the residual" in repr(found)


REFUSED = {
    "panel": "must be ~ and terms",
    "~": "must be ~ and terms",
    "score ~ panel": "must be ~ and terms",
    "~ (1 | cell)": "must be ~ and terms",
    "~ panel + offset(x)": "must be ~ and terms",
    "~ panle": "no column 'panle'.* Did you mean 'panel'",
    "~ 0 + x": "must have an intercept",
    "~ log(x - 0.7)": "is not finite in every row",
    "~ eval(x)": "no function 'eval'",
}


@pytest.mark.parametrize("text", REFUSED)
def test_a_dispersion_that_cannot_be_read_is_one_line(text):
    with pytest.raises(AnalysisError, match=REFUSED[text]) as error:
        fit_mixed(study(), FORMULA, dispersion=text)
    assert "\n" not in str(error.value)


def test_what_it_is_not_for_is_refused():
    data = study()
    with pytest.raises(AnalysisError, match="family=gaussian alone"):
        fit_mixed(data.assign(score=0.5), FORMULA, "beta", dispersion="~ panel")
    fit = fit_mixed(data, FORMULA, dispersion="~ panel")
    for test in (contrast, joint):
        with pytest.raises(AnalysisError, match="kenward-roger: not for a fit with dispersion=~ p"):
            test(fit, np.eye(len(fit.fixef))[-1:].squeeze(), df="kenward-roger")


def test_missing_values_of_the_dispersion_drop_the_row():
    data = study()
    data.loc[3, "panel"] = None
    fit = fit_mixed(data, "score ~ x + (1 | cell)", dispersion="~ panel")
    assert fit.n == len(data) - 1


@pytest.mark.parametrize("method", ["REML", "ML"])
def test_scores_without_noise_in_a_level_are_told(method):
    data = study()
    own = data["panel"] == "p0"
    exact = data.assign(score=data["score"].where(~own, 40 + data["x"]))
    formula = "score ~ panel * x"
    with pytest.raises(AnalysisError, match=r"of p0 goes to zero|explain the scores of p0 exactly"):
        fit_mixed(exact, formula, dispersion="~ panel", method=method)
    alone = data[~own | (data.index == 0)]
    with pytest.raises(AnalysisError, match="explain the scores of p0 exactly"):
        fit_mixed(alone, "score ~ panel + x", dispersion="~ panel", method=method)


def test_a_residual_that_the_cells_explain_is_told():
    data = study(seeds=6)
    once = data[(data["panel"] != "p0") | ~data.duplicated("cell")]
    near = 50 + once["x"] + 0.2 * (once["arm"] == "a1")  # less than cells differ by elsewhere
    once = once.assign(score=once["score"].where(once["panel"] != "p0", near))
    fit = fit_mixed(once, FORMULA, dispersion="~ panel")
    assert any(word.startswith("The residual of p0 is estimated as none") for word in fit.diagnosis)


def test_a_search_that_lets_a_residual_go_to_zero_is_begun_again():
    rng = np.random.default_rng(133)
    panel, group = rng.integers(0, [4, 30], (80, 2)).T
    sd = np.array([0.03, 0.03, 10, 20])[panel]
    score = rng.normal(size=30)[group] + sd * rng.normal(size=80)
    data = pd.DataFrame({"score": score, "x": rng.normal(size=80)})
    data = data.assign(panel=[f"p{p}" for p in panel], group=[f"g{g:02d}" for g in group])
    fit = fit_mixed(data, "score ~ panel * x + (1 | group)", dispersion="~ panel", method="ML")
    first = minimise(fit.dispersed)
    assert np.abs(fit.dispersed.logs(first.x)).max() > MOST_LOG  # it went to the penalty's place
    assert fit.loglik > -first.at.deviance / 2 + 0.1
    assert fit.residual_sd[["p0", "p1"]].min() > 0.005


@pytest.mark.parametrize(("asked", "said"), [(5, "as text"), ("~ y", "the score cannot stand")])
def test_a_dispersion_that_is_none_is_refused_in_one_line(asked, said):
    table = pd.DataFrame({"y": np.random.default_rng(0).normal(size=20), "g": list("ab") * 10})
    with pytest.raises(AnalysisError, match=said):
        fit_mixed(table, "y ~ g", dispersion=asked)
