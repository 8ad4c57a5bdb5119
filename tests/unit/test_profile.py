"""Profile-likelihood intervals against lme4, a dense likelihood and a closed form."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import optimize, stats

from analysis.errors import AnalysisError
from analysis.inference.profile import profile
from analysis.mixed import fit_mixed

ORACLES = Path(__file__).parents[1] / "oracles"
STORED = json.loads((ORACLES / "inference_models.json").read_text())
# lme4 1.1-31 profiles the fixed effects of weighted models as if nothing varied: its interval of
# an intercept known to +- 1.8 is +- 0.07 wide. Their SDs agree; the others meet a dense likelihood.
SHARE = 2e-3  # of the interval's length; lme4 interpolates a spline
SINGULAR = 5e-3  # the same where a variance is zero and lme4's search ends early
FIXED = [m for m in STORED if not m["weights"]]


def theirs(name):
    """Our name of a quantity as the names that lme4 may give it; a nested group runs either way."""
    pairs = {"Intercept": "(Intercept)", " ** 2": "^2", "[T.": "", "]": ""}
    for ours, other in pairs.items():
        name = name.replace(ours, other)
    if not name.startswith("sd "):
        return [name]
    if name == "sd residual":
        return ["sigma"]
    _, group, column = name.split(" ", 2)
    turned = ":".join(reversed(group.split(":")))
    return [f"sd_{column}|{g}{end}" for g in (group, turned) for end in ("", ".1")]


def compared(model, *, deviations):
    data = pd.read_csv(ORACLES / f"{model['data']}.csv")
    fit = fit_mixed(data, model["formula"], weights="w" if model["weights"] else None)
    stored = {p["name"]: p for p in model["profile"]}
    sds = [f"sd {f.group} {n}" for f in fit.problem.factors for n in f.names] + ["sd residual"]
    names = tuple(sds if deviations else fit.fixef.index)
    share = SINGULAR if fit.singular else SHARE
    checked = 0
    for row in profile(fit, names=names).itertuples():
        other = next(stored[n] for n in theirs(row.name) if n in stored)
        if other["low"] is None or other["high"] is None:
            continue
        length = other["high"] - other["low"]
        assert row.low == pytest.approx(other["low"], abs=share * length), row.name
        assert row.high == pytest.approx(other["high"], abs=share * length), row.name
        checked += 1
    assert checked == len(names)


@pytest.mark.parametrize("model", FIXED, ids=[m["name"] for m in FIXED])
def test_intervals_of_fixed_effects_equal_lme4(model):
    compared(model, deviations=False)


@pytest.mark.parametrize("model", STORED, ids=[m["name"] for m in STORED])
def test_intervals_of_standard_deviations_equal_lme4(model):
    compared(model, deviations=True)


def test_a_weighted_fixed_effect_equals_the_dense_profile():
    data = pd.read_csv(ORACLES / "ragged.csv")
    fit = fit_mixed(data, "score ~ wp + adapter + (1 | run)", method="ML", weights="w")
    X, y, w = fit.design.X_NB, data["score"].to_numpy(), data["w"].to_numpy()
    same = data["run"].to_numpy()[:, None] == data["run"].to_numpy()[None, :]

    def deviance(value):
        rest, gap = np.delete(X, 1, axis=1), y - value * X[:, 1]

        def at(logs):
            V = np.diag(np.exp(2 * logs[0]) / w) + np.exp(2 * logs[1]) * same
            inverse = np.linalg.inv(V)
            beta = np.linalg.solve(rest.T @ inverse @ rest, rest.T @ inverse @ gap)
            left = gap - rest @ beta
            return np.linalg.slogdet(V)[1] + left @ inverse @ left

        start = np.log([fit.sigma, fit.random["run"].sd.iloc[0]])
        options = {"xatol": 1e-6, "fatol": 1e-9}
        return optimize.minimize(at, start, method="Nelder-Mead", options=options).fun

    found = profile(fit, names=("wp",)).iloc[0]
    least = deviance(fit.fixef["wp"])
    for end in (found["low"], found["high"]):
        assert deviance(end) - least == pytest.approx(stats.chi2.ppf(0.95, 1), abs=2e-3)


def test_least_squares_has_a_closed_form():
    # n log(1 + t^2 / (n - p)) = z^2 at the ends of a coefficient's interval.
    data = pd.read_csv(ORACLES / "ragged.csv")
    fit = fit_mixed(data, "score ~ wp + adapter")
    n, df = fit.n, fit.n - 4
    for level in (0.9, 0.99):
        half = np.sqrt(df * np.expm1(stats.chi2.ppf(level, 1) / n)) * fit.se["wp"]
        found = profile(fit, names=("wp",), level=level).iloc[0]
        assert found["low"] == pytest.approx(fit.fixef["wp"] - half, rel=1e-3)
        assert found["high"] == pytest.approx(fit.fixef["wp"] + half, rel=1e-3)
    alone = fit_mixed(data, "score ~ 1 + (1 | run)")
    row = profile(alone, names=("Intercept",)).iloc[0]
    assert row["low"] < row["estimate"] < row["high"]


def test_a_variance_of_zero_has_an_interval_from_zero():
    data = pd.read_csv(ORACLES / "grid.csv")
    fit = fit_mixed(data, "score ~ wp + (1 | lab) + (1 | task)")
    row = profile(fit, names=("sd lab Intercept",)).iloc[0]
    assert row["low"] == 0.0
    assert 0.1 < row["high"] < 2.0


def test_an_unknown_name_is_told():
    data = pd.read_csv(ORACLES / "ragged.csv")
    with pytest.raises(AnalysisError, match="profile: no 'sd runs'; there are Intercept, wp, sd r"):
        profile(fit_mixed(data, "score ~ wp + (1 | run)"), names=("sd runs",))


def runs_of_two(scores):
    """Two tasks of every run; both arms have half of the runs."""
    n = len(scores)
    return pd.DataFrame({
        "score": scores, "task": list("kp") * (n // 2),
        "arm": ["a"] * (n // 2) + ["b"] * (n // 2), "run": [f"r{i // 2}" for i in range(n)],
    })  # fmt: skip


SMALL = [
    44.64, 53.62, 63.04, 59.47, 42.96, 37.35, 43.77, 50.41,
    26.75, 47.81, 37.54, 42.68, 44.56, 46.84, 54.12, 60.43,
]  # fmt: skip


@pytest.mark.parametrize("scores", [SMALL, *np.random.default_rng(5).normal(50, 10, (3, 16))])
def test_the_ends_of_deviations_in_small_tables_equal_a_naive_grid_profile(scores):
    """A search that leaps to a variance of zero stops there: the first one had no upper end."""
    table = runs_of_two(scores)
    fit = fit_mixed(table, "score ~ task + arm + (1 | run)", method="ML")
    X, y, n = fit.design.X_NB, table["score"].to_numpy(), len(table)
    same = table["run"].to_numpy()[:, None] == table["run"].to_numpy()[None, :]

    def deviance(run, residual):
        V = run**2 * same + residual**2 * np.eye(n)
        inverse = np.linalg.inv(V)
        left = y - X @ np.linalg.solve(X.T @ inverse @ X, X.T @ inverse @ y)
        return np.linalg.slogdet(V)[1] + left @ inverse @ left + n * np.log(2 * np.pi)

    grid = np.concatenate([[0.0], np.geomspace(0.1, 60, 1500)])
    along = {
        "sd run Intercept": lambda sd: min(deviance(sd, other) for other in grid[1:]),
        "sd residual": lambda sd: min(deviance(other, sd) for other in grid),
    }
    found = profile(fit, names=tuple(along))
    for row in found.itertuples():
        for end in (row.low, row.high):
            rise = along[row.name](end) + 2 * fit.loglik
            if end == 0.0:
                assert rise < stats.chi2.ppf(0.95, 1)
            else:
                assert rise == pytest.approx(stats.chi2.ppf(0.95, 1), abs=0.01)
