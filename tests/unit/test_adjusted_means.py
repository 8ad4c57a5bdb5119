"""Adjusted means against statsmodels, plain averages and regressions on all columns at once."""

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from scipy import stats

from analysis.errors import AnalysisError
from analysis.table.adjusted_means import (
    adjusted_columns,
    adjusted_means,
    require_noise,
    seed_adjusted,
)
from analysis.table.level_means import level_means

LEVELS, BLOCKS = ("a", "b", "c"), ("s0", "s1", "s2", "s3")


def ragged(seed=0, *, lost=(("a", "s0"), ("b", "s2"))):
    """Runs of three levels under four seeds, some twice and some not at all; two outcomes."""
    rng = np.random.default_rng(seed)
    cells = [(level, block) for level in LEVELS for block in BLOCKS if (level, block) not in lost]
    runs = pd.DataFrame([*cells, *cells[:4]], columns=["cell", "seed"])
    effect = runs["cell"].map({"a": 0.0, "b": 1.0, "c": 3.0})
    block = runs["seed"].map(dict(zip(BLOCKS, rng.normal(0, 5, 4), strict=True)))
    noise = rng.multivariate_normal([0, 0], [[1.0, 0.6], [0.6, 2.0]], len(runs))
    return runs.assign(y=10 + effect + block + noise[:, 0], z=block - effect + noise[:, 1])


def fitted(runs, **options):
    level_N = runs["cell"].map({n: i for i, n in enumerate(LEVELS)}).to_numpy(dtype=np.intp)
    return adjusted_means(level_N, [runs["seed"]], runs[["y", "z"]].to_numpy(), **options)


@pytest.mark.parametrize("weights", ["equal", "proportional"])
@pytest.mark.parametrize("outcome", ["y", "z"])
def test_means_are_the_marginal_means_of_statsmodels(weights, outcome):
    runs = ragged()
    peer = smf.ols(f"{outcome} ~ C(cell) + C(seed)", runs).fit()
    share = runs["seed"].value_counts(normalize=True)[list(BLOCKS)]
    share = pd.Series(0.25, share.index) if weights == "equal" else share
    grid = pd.DataFrame({"cell": np.repeat(LEVELS, 4), "seed": BLOCKS * 3})
    x = np.asarray(peer.model.data.orig_exog.iloc[:0].reindex(columns=peer.params.index))
    design = pd.DataFrame({"Intercept": 1.0}, index=grid.index)
    for name in peer.params.index[1:]:
        column, level = name[2:].split(")[T.")
        design[name] = (grid[column] == level.rstrip("]")).astype(float)
    assert x.shape[1] == design.shape[1]
    l_LB = np.einsum("lbc,b->lc", design.to_numpy().reshape(3, 4, -1), share.to_numpy())
    test = peer.t_test(l_LB)
    found, i = fitted(runs, weights=weights), ["y", "z"].index(outcome)
    np.testing.assert_allclose(found.mean_SY[:, i], test.effect, rtol=1e-10)
    se = np.sqrt(np.diagonal(found.covariance(i)))
    np.testing.assert_allclose(se, np.ravel(test.sd), rtol=1e-10)
    assert found.df == peer.df_resid
    low, high = test.conf_int()[2]
    ours = found.contrast(np.array([0.0, 0, 1]), i)
    assert (ours.low, ours.high) == pytest.approx((low, high))


def test_outcomes_have_the_covariance_of_their_residuals():
    runs = ragged()
    rest = np.column_stack(
        [smf.ols(f"{n} ~ C(cell) + C(seed)", runs).fit().resid for n in ("y", "z")]
    )
    found = fitted(runs)
    np.testing.assert_allclose(found.residual_YY, rest.T @ rest / found.df)
    np.testing.assert_allclose(found.covariance(1), found.residual_YY[1, 1] * found.shape_SS)


def test_a_function_of_means_has_the_delta_methods_error():
    found = fitted(ragged())
    gap = found.function("gap", lambda m: m[1, 0] - m[0, 0])
    line = found.contrast(np.array([-1.0, 1, 0]))
    assert (gap.estimate, gap.se, gap.df) == pytest.approx((line.estimate, line.se, line.df))
    both = found.function("sum of outcomes", lambda m: m[2, 0] + m[2, 1])
    variance = found.shape_SS[2, 2] * found.residual_YY.sum()
    assert both.se == pytest.approx(np.sqrt(variance))


def test_means_and_intervals_are_covered_as_often_as_is_claimed():
    covered = 0
    for i in range(400):
        gap = fitted(ragged(i)).contrast(np.array([-1.0, 0, 1]))
        covered += gap.low <= 3.0 <= gap.high
    assert stats.binomtest(covered, 400, 0.95).pvalue > 0.001


def test_columns_of_interest_are_those_of_one_large_regression():
    rng = np.random.default_rng(1)
    x, z, y = rng.normal(size=(30, 2)), rng.normal(size=(30, 3)), rng.normal(size=(30, 1))
    z = np.hstack([z, z[:, :1] + z[:, 1:2]])  # one of them is determined by others
    found = adjusted_columns(x, z, y)
    whole = np.hstack([x, z[:, :3]])
    b = np.linalg.lstsq(whole, y, rcond=None)[0]
    variance = float(((y - whole @ b) ** 2).sum()) / 25
    np.testing.assert_allclose(found.mean_SY, b[:2])
    cov = variance * np.linalg.inv(whole.T @ whole)[:2, :2]
    np.testing.assert_allclose(found.covariance(), cov)
    assert found.df == 25


def test_without_blocks_they_are_plain_means():
    runs = ragged()
    found = level_means(runs.rename(columns={"y": "score"}), ["cell"], block=[])
    np.testing.assert_allclose(found.table["estimate"], runs.groupby("cell")["y"].mean())


def test_both_ways_to_the_means_of_cells_agree():
    """The leaderboard's means and those of the figures are one estimate."""
    runs = ragged().rename(columns={"y": "score"})
    board = seed_adjusted(runs, LEVELS)
    figure = level_means(runs, ["cell"], block=["seed"])
    np.testing.assert_allclose(board.mean_SY[:, 0], figure.table["estimate"])
    gap = figure.compare(figure.table["cell"] == "c", figure.table["cell"] == "a")
    ours = board.contrast(np.array([-1.0, 0, 1]))
    assert (gap.estimate, gap.se, gap.df) == pytest.approx((ours.estimate, ours.se, ours.df))


def test_what_cannot_be_compared_says_why():
    apart = ragged(lost=(("a", "s0"), ("a", "s1"), ("b", "s2"), ("b", "s3"), ("c", "s2"),
                         ("c", "s3")))  # fmt: skip
    with pytest.raises(AnalysisError, match="do not share their blocks"):
        fitted(apart)
    with pytest.raises(AnalysisError, match="no replicates"):
        fitted(ragged().drop_duplicates("cell"))
    flat = ragged().assign(y=3.0)
    with pytest.raises(AnalysisError, match="do not vary within levels"):
        require_noise(fitted(flat), flat["y"].to_numpy())
