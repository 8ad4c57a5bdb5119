"""The engine against closed forms: ANOVA's estimates, exact F tests and df, and dense likelihoods.

In a balanced layout REML is the ANOVA estimate and every fixed effect is tested in one stratum, so
that F, its df and every standard error are known exactly. For small random designs the deviance
and its gradient are those of the N x N covariance matrix.
"""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.engine.layout import Factor
from analysis.engine.lmm import Problem, evaluate, solution
from analysis.inference.estimates import contrast, joint
from analysis.mixed import fit_mixed

RULES = ("satterthwaite", "kenward-roger")
EXACT = 1e-5  # theta is found to about its square root
ANOVA_DF = 2e-5


def one_way(seed, *, arms=3, runs=6, rows=4, between=1.5):
    """`arms` treatments of `runs` runs each, `rows` rows a run."""
    rng = np.random.default_rng(seed)
    run = np.repeat(np.arange(arms * runs), rows)
    arm = run // runs
    score = 5 + 0.7 * arm + between * rng.normal(size=arms * runs)[run] + rng.normal(size=len(run))
    names = [f"a{i}" for i in arm]
    return pd.DataFrame({"arm": names, "run": [f"r{i:02d}" for i in run], "score": score})


def mean_squares(data):
    """The mean squares between arms, between runs within arms, and within runs."""
    arm = data.groupby("arm")["score"].transform("mean")
    run = data.groupby("run")["score"].transform("mean")
    arms, runs, n = data["arm"].nunique(), data["run"].nunique(), len(data)
    return (
        float(((arm - data["score"].mean()) ** 2).sum() / (arms - 1)),
        float(((run - arm) ** 2).sum() / (runs - arms)),
        float(((data["score"] - run) ** 2).sum() / (n - runs)),
    )


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_nested_runs_are_anovas_estimates_f_and_df(seed):
    data = one_way(seed)
    ms_arm, ms_run, ms_within = mean_squares(data)
    assert ms_run > ms_within  # else the estimate is zero
    fit = fit_mixed(data, "score ~ arm + (1 | run)")
    assert fit.sigma**2 == pytest.approx(ms_within, rel=EXACT)
    between = float(fit.random["run"].cov.iloc[0, 0])
    assert between == pytest.approx((ms_run - ms_within) / 4, rel=EXACT)
    for rule in RULES:
        test = joint(fit, np.eye(3)[1:], df=rule)
        assert test.df == 2
        assert test.df_residual == pytest.approx(15, rel=ANOVA_DF)
        assert test.statistic == pytest.approx(ms_arm / ms_run, rel=EXACT)
        assert test.p == pytest.approx(stats.f.sf(ms_arm / ms_run, 2, 15), rel=1e-4)
        gap = contrast(fit, np.array([0.0, 1.0, 0.0]), df=rule)
        assert gap.se == pytest.approx(np.sqrt(2 * ms_run / 24), rel=EXACT)
        assert gap.df == pytest.approx(15, rel=ANOVA_DF)


def test_the_restricted_likelihood_of_one_way_data_has_a_closed_form():
    # Mean squares are independent: -2 log L = sum over strata of df (log MS-expected + 1) + const.
    data = one_way(4, arms=1, runs=9)
    fit = fit_mixed(data, "score ~ 1 + (1 | run)")
    mean, runs, rows = data["score"].mean(), 9, 4
    by_run = data.groupby("run")["score"].transform("mean")
    ms_run = float(((by_run - mean) ** 2).sum() / (runs - 1))
    ms_within = float(((data["score"] - by_run) ** 2).sum() / (runs * (rows - 1)))
    n = runs * rows
    deviance = (
        (n - 1) * (1 + np.log(2 * np.pi))
        + (runs - 1) * np.log(ms_run)
        + runs * (rows - 1) * np.log(ms_within)
        + np.log(n)
    )
    assert -2 * fit.loglik == pytest.approx(deviance, abs=1e-8)


def test_where_runs_differ_less_than_rows_the_variance_is_zero():
    # Then REML pools the two mean squares, and all tests are least squares'.
    data = one_way(1, between=0.0)
    _, ms_run, ms_within = mean_squares(data)
    assert ms_run < ms_within
    fit = fit_mixed(data, "score ~ arm + (1 | run)")
    assert fit.random["run"].sd.iloc[0] == pytest.approx(0.0, abs=1e-9)
    assert fit.singular
    pooled = (15 * ms_run + 54 * ms_within) / 69
    assert fit.sigma**2 == pytest.approx(pooled, rel=1e-10)


# --- the split plot --------------------------------------------------------------------------


def split_plot(seed=6, blocks=5):
    """Data sets are whole plots within blocks, adapters are sub-plots; every cell once."""
    rng = np.random.default_rng(seed)
    rows = [(b, d, a) for b in range(blocks) for d in range(3) for a in range(4)]
    data = pd.DataFrame(rows, columns=["block", "dataset", "adapter"])
    plot = data["block"] * 3 + data["dataset"]
    noise = 2 * rng.normal(size=blocks)[data["block"]] + 1.4 * rng.normal(size=3 * blocks)[plot]
    data["score"] = data["dataset"] + 0.5 * data["adapter"] + noise + rng.normal(size=len(data))
    text = {c: data[c].map(lambda v, c=c: f"{c[0]}{v}") for c in ("block", "dataset", "adapter")}
    return data.assign(**text, plot=[f"p{p:02d}" for p in plot])


def strata(data):
    """ANOVA of a balanced split plot: effect -> (mean square, df), errors included."""
    y, grand = data["score"], data["score"].mean()

    def mean(*keys):
        return data.groupby(list(keys))["score"].transform("mean")

    block, whole, sub = mean("block"), mean("dataset"), mean("adapter")
    cell, plot = mean("dataset", "adapter"), mean("block", "dataset")
    b = data["block"].nunique()
    parts = {
        "dataset": (whole - grand, 2),
        "plots": (plot - block - whole + grand, 2 * (b - 1)),
        "adapter": (sub - grand, 3),
        "both": (cell - whole - sub + grand, 6),
        "rest": (y - plot - cell + whole, 9 * (b - 1)),
    }
    return {name: (float((part**2).sum() / df), df) for name, (part, df) in parts.items()}


def contrasts(names):
    """Contrasts of the two main effects and the interaction, from treatment coding."""
    levels = {"dataset": ("d1", "d2"), "adapter": ("a1", "a2", "a3")}
    found = {}
    for factor, others in (("dataset", 4), ("adapter", 3)):
        rows = []
        for level in levels[factor]:
            own = f"{factor}[T.{level}]"
            crossed = [float(own in n.split(":") and ":" in n) / others for n in names]
            rows.append(np.array(crossed) + np.array([float(n == own) for n in names]))
        found[factor] = np.array(rows)
    found["both"] = np.array(
        [row for row, n in zip(np.eye(len(names)), names, strict=True) if ":" in n]
    )
    return found


@pytest.mark.parametrize("rule", RULES)
def test_a_split_plot_has_anovas_two_strata(rule):
    data = split_plot()
    table = strata(data)
    fit = fit_mixed(data, "score ~ dataset * adapter + (1 | block) + (1 | plot)")
    rest, plots = table["rest"][0], table["plots"][0]
    assert fit.sigma**2 == pytest.approx(rest, rel=EXACT)
    assert float(fit.random["plot"].cov.iloc[0, 0]) == pytest.approx((plots - rest) / 4, rel=1e-4)
    asked = contrasts(list(fit.fixef.index))
    for effect, error in (("dataset", "plots"), ("adapter", "rest"), ("both", "rest")):
        test = joint(fit, asked[effect], df=rule)
        assert test.df == table[effect][1]
        assert test.df_residual == pytest.approx(table[error][1], rel=ANOVA_DF)
        assert test.statistic == pytest.approx(table[effect][0] / table[error][0], rel=EXACT)
    # A difference of two data sets averages 20 rows each, of two adapters 15.
    for effect, error, rows in (("dataset", "plots", 20), ("adapter", "rest", 15)):
        gap = contrast(fit, asked[effect][0], df=rule)
        assert gap.se == pytest.approx(np.sqrt(2 * table[error][0] / rows), rel=EXACT)
        assert gap.df == pytest.approx(table[error][1], rel=ANOVA_DF)


def test_a_study_s_quadratic_is_least_squares_on_run_means():
    # Tasks fixed, every run scored on all: wp and wp^2 live between runs, df = runs - 3.
    rng = np.random.default_rng(7)
    wp = np.repeat([0.0, 0.25, 0.5, 0.8, 1.0], 3)
    own = 3 * wp - 3 * wp**2 + rng.normal(size=15)
    run, task = np.repeat(np.arange(15), 6), np.tile(np.arange(6), 15)
    score = own[run] + 4 * rng.normal(size=6)[task] + rng.normal(size=90)
    data = pd.DataFrame({"score": score, "wp": wp[run], "run": [f"r{r:02d}" for r in run],
                         "task": [f"t{t}" for t in task]})  # fmt: skip
    fit = fit_mixed(data, "score ~ task + wp + I(wp^2) + (1 | run)")
    X = np.column_stack([np.ones(15), wp, wp**2])
    means = score.reshape(15, 6).mean(axis=1)
    beta, rss, *_ = np.linalg.lstsq(X, means, rcond=None)
    se = np.sqrt(np.diagonal(np.linalg.inv(X.T @ X)) * float(rss[0]) / 12)
    np.testing.assert_allclose(fit.fixef.to_numpy()[-2:], beta[1:], rtol=1e-6)
    for rule in RULES:
        for i, l_B in enumerate(np.eye(len(fit.fixef))[-2:], start=1):
            found = contrast(fit, l_B, df=rule)
            assert found.se == pytest.approx(se[i], rel=EXACT)
            assert found.df == pytest.approx(12, rel=ANOVA_DF)


# --- dense likelihoods of random designs ------------------------------------------------------


def drawn_factor(rng, n, *, width, parent=None):
    """A grouping factor with columns and a pattern drawn anew; nested in `parent` if given."""
    levels = int(rng.integers(3, 7))
    index = rng.permutation(np.arange(n) % levels)
    if parent is not None:
        _, index = np.unique(parent.index_N * levels + index, return_inverse=True)
    columns = np.column_stack([np.ones(n), *rng.normal(1, 2, (width - 1, n))])
    free = np.tril(rng.random((width, width)) < 0.6) | np.eye(width, dtype=bool)
    names = tuple(f"x{i}" for i in range(width))
    labels = tuple(str(i) for i in range(int(index.max()) + 1))
    return Factor(f"g{width}{levels}", names, columns, index.astype(np.intp), labels, free)


def drawn_design(seed):
    """X, y, factors and weights of 40 to 60 rows: crossed, nested, with slopes, one to three."""
    rng = np.random.default_rng(seed)
    n, crossed = int(rng.integers(40, 61)), seed % 3
    factors = [drawn_factor(rng, n, width=int(rng.integers(1, 4)))]
    if crossed:
        factors.append(drawn_factor(rng, n, width=int(rng.integers(1, 3))))
    if crossed == 2:
        factors.append(drawn_factor(rng, n, width=1, parent=factors[0]))
    X = np.column_stack([np.ones(n), rng.normal(3, 2, n), rng.normal(size=n)])
    weights = rng.uniform(0.3, 3, n) if seed % 2 else None
    return X, rng.normal(size=n), tuple(factors), weights


def dense_deviance(problem, theta, design):
    """-2 log L by N x N matrices, at the best beta and sigma."""
    X, y, _, weights = design
    V = np.diag(np.ones(len(y)) if weights is None else 1 / weights)
    lambdas = zip(problem.factors, problem.unpack(theta), problem.scales, strict=True)
    for f, template, scale in lambdas:
        root = f.columns_NP @ (template / scale[:, None])
        V += (root @ root.T) * (f.index_N[:, None] == f.index_N)
    inverse = np.linalg.inv(V)
    information = X.T @ inverse @ X
    beta = np.linalg.solve(information, X.T @ inverse @ y)
    rest = y - X @ beta
    df = len(y) - X.shape[1] * problem.reml
    sigma2 = rest @ inverse @ rest / df
    # The density itself, written out; REML's has the information's determinant besides.
    found = len(y) * np.log(2 * np.pi * sigma2) + np.linalg.slogdet(V)[1] + df
    if problem.reml:
        found += np.linalg.slogdet(information / sigma2)[1] - X.shape[1] * np.log(2 * np.pi)
    return float(found), beta


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("seed", range(12))
def test_deviance_gradient_and_coefficients_equal_the_dense_ones(seed, reml):
    design = drawn_design(seed)
    X, y, factors, weights = design
    problem = Problem(X, y, factors=factors, weights_N=weights, reml=reml)
    theta = np.random.default_rng(100 + seed).normal(0.5, 0.7, problem.size)
    at = evaluate(problem, theta)
    deviance, beta = dense_deviance(problem, theta, design)
    assert at.deviance == pytest.approx(deviance, abs=1e-8)
    np.testing.assert_allclose(solution(problem, theta, at).beta_B, beta, atol=1e-9)
    step = 1e-5
    numeric = [
        dense_deviance(problem, theta + h, design)[0]
        - dense_deviance(problem, theta - h, design)[0]
        for h in np.eye(problem.size) * step
    ]
    np.testing.assert_allclose(at.gradient, np.array(numeric) / (2 * step), atol=2e-6)
