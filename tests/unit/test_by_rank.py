"""The best weight at every rank: least squares on cells, the true surface, coverage."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.curve.best import IN_DOUBT
from analysis.curve.shape import curvature_p, shape
from analysis.inference.estimates import contrast
from analysis.inference.optimum import INTERIOR, NOT_IDENTIFIED
from analysis.mixed import with_score
from analysis.questions.plw.by_rank import (
    difference_table,
    panel_curves,
    rank_optimum,
    rank_table,
)
from analysis.table.run_panels import RunPanel

WEIGHTS, RANKS = (0.0, 0.25, 0.5, 0.75, 1.0), (2, 4, 8, 16)
PEAK = np.array([8.0, 0.8, -9.0, -1.5, 1.0])  # wp, rank, wp^2, rank^2, wp rank
LABELS = {"mode": "none", "dataset": "d", "model": "m", "task_group": "mc"}
REML = 1e-4  # how far the variances of two ways to the same fit may be apart


def grid(beta=PEAK, *, seed=0, noise=1.0, cell_sd=0.0, seeds=3, adapters=("lora",)):
    """Runs over weight, rank and seed; `full` runs once per weight and has no rank."""
    rng = np.random.default_rng(seed)
    cells = [(a, r, w) for a in adapters for r in (RANKS if a != "full" else (0,)) for w in WEIGHTS]
    names = pd.DataFrame(cells, columns=["adapter", "rank", "wp"])
    names = names.assign(cell=names.index.astype(str), own=rng.normal(0, 1, len(cells)))
    runs = names.merge(pd.DataFrame({"seed": range(seeds)}), how="cross")
    z = np.log2(runs["rank"].where(runs["rank"] > 0, 2**2.5)) - 2.5
    effect = rng.normal(0, 2, seeds)[runs["seed"]] + cell_sd * runs["own"]
    score = 40 + powers(runs["wp"], z) @ beta + effect + noise * rng.standard_normal(len(runs))
    arm = runs["adapter"] + " " + runs["rank"].astype(str)
    return runs.assign(
        log2_rank=z, score=score, dataset="d", model="m", arm=arm,
        block="d:" + runs["seed"].astype(str),
    )  # fmt: skip


def powers(wp, z):
    return np.column_stack([wp, z, wp**2, z**2, wp * z])


def shapes_of(runs):
    return [shape(RunPanel(LABELS, runs), draws=200)]


def best_wp(log2_rank):
    return -(PEAK[0] + PEAK[4] * log2_rank) / (2 * PEAK[2])


def ordinary(runs, extra=()):
    """Coefficients, covariance and df of plain least squares of the score on the surface."""
    one = np.ones((len(runs), 1))
    columns = np.hstack([powers(runs["wp"], runs["log2_rank"]), *(extra or [one])])
    y = runs["score"].to_numpy()
    b = np.linalg.lstsq(columns, y, rcond=None)[0]
    df = len(y) - columns.shape[1]
    return b, np.linalg.inv(columns.T @ columns) * ((y - columns @ b) ** 2).sum() / df, df


def cell_means(runs):
    return runs.groupby("cell", sort=False)[["wp", "log2_rank", "score"]].mean().reset_index()


def agrees(found, b, cov, df):
    for rank in RANKS:
        ours = found.by_rank[rank].quadratic
        l_25 = np.zeros((2, len(b)))
        l_25[0, 0] = l_25[1, 2] = 1
        l_25[0, 4] = np.log2(rank) - 2.5
        assert (ours.b1, ours.b2) == pytest.approx(tuple(l_25 @ b))
        np.testing.assert_allclose(ours.cov_22, l_25 @ cov @ l_25.T, rtol=REML)
        assert ours.df == pytest.approx(df, rel=REML)


def test_where_cells_scatter_the_curve_is_that_of_least_squares_on_their_means():
    """Every cell ran under the same seeds: REML is the analysis of variance, cells the units."""
    runs = grid(noise=0.5, cell_sd=1.5)
    b, cov, df = ordinary(cell_means(runs))
    (found,) = panel_curves(RunPanel(LABELS, runs))
    agrees(found, b, cov, df)
    assert df == 20 - 6
    p = 2 * stats.t.sf(abs(b[4]) / np.sqrt(cov[4, 4]), df)
    assert found.p_changes == pytest.approx(p, rel=1e-3)


def test_where_cells_lie_on_the_surface_the_curve_is_that_of_least_squares_on_runs():
    runs = grid(noise=1.5)
    means = cell_means(runs)
    b, _, _ = ordinary(means)
    columns = np.hstack([powers(means["wp"], means["log2_rank"]), np.ones((len(means), 1))])
    off = dict(zip(means["cell"], means["score"] - columns @ b, strict=True))
    runs = runs.assign(score=runs["score"] - runs["cell"].map(off))
    blocks = pd.get_dummies(runs["block"]).to_numpy(dtype=float)
    (found,) = panel_curves(RunPanel(LABELS, runs))
    agrees(found, *ordinary(runs, [blocks]))


def test_without_replicates_there_are_curves_but_neither_tests_nor_optima():
    runs = grid(noise=0.3, seeds=1, adapters=("full", "lora"))
    found = list(panel_curves(RunPanel(LABELS, runs)))
    alone = runs[runs["adapter"] == "lora"]
    b, _, _ = ordinary(alone)
    ours = found[1].by_rank[4].quadratic
    assert (ours.b1, ours.b2) == pytest.approx((b[0] - 0.5 * b[4], b[2]))
    table = rank_table(found, shapes_of(runs))
    assert table["optimum"].tolist() == [NOT_IDENTIFIED] * 5
    assert table[["best_plw", "gain", "p_changes"]].isna().all(axis=None)
    assert difference_table(found)["p"].isna().all()


def test_the_best_weight_at_a_rank_is_covered_as_often_as_is_claimed():
    """Cells scatter by a point beside the noise of their runs, which alone covers too seldom."""
    covered, naive = 0, 0
    (one,) = panel_curves(RunPanel(LABELS, grid(cell_sd=1.0)))
    for i in range(80):
        runs = grid(seed=i, noise=1.0, cell_sd=1.0)
        fit = with_score(one.middle.fit, runs["score"].to_numpy())
        low, high = rank_optimum(replace(one.by_rank[8], fit=fit)).fieller
        covered += low <= best_wp(0.5) <= high
        blocks = pd.get_dummies(runs["block"]).to_numpy(dtype=float)
        b, cov, df = ordinary(runs, [blocks])
        l_5 = np.array([1, 0, 2 * best_wp(0.5), 0, 0.5])  # the slope at the true best weight is 0
        t = l_5 @ b[:5] / np.sqrt(l_5 @ cov[:5, :5] @ l_5)
        naive += abs(t) <= stats.t.isf(0.025, df)
    assert stats.binomtest(covered, 80, 0.95).pvalue > 0.001
    assert naive < covered - 4


def test_full_tuning_has_no_rank_and_shares_the_panel():
    runs = grid(noise=0.3, adapters=("full", "lora"))
    found = list(panel_curves(RunPanel(LABELS, runs)))
    assert [one.adapter for one in found] == ["full", "lora"]
    assert list(found[0].by_rank) == [0]
    assert np.isnan(found[0].p_changes)
    table = rank_table(found, shapes_of(runs))
    assert table["rank"].isna().tolist() == [True, False, False, False, False]
    truth = best_wp(runs.query("rank > 0")["log2_rank"].unique())
    np.testing.assert_allclose(table["best_wp"].to_numpy()[1:], truth, atol=0.05)


def test_two_ranks_have_a_best_weight_each():
    runs = grid(noise=0.3).query("rank in (2, 16)")
    (found,) = panel_curves(RunPanel(LABELS, runs))
    assert rank_table([found], shapes_of(runs))["optimum"].tolist() == [INTERIOR] * 2


def test_an_optimum_that_the_shape_does_not_bear_is_not_printed():
    runs = grid(noise=0.3)
    (found,) = panel_curves(RunPanel(LABELS, runs))
    table = rank_table([found], [])
    assert table["optimum"].tolist() == [IN_DOUBT] * 4
    assert table["best_plw"].isna().all()


def test_adapters_that_answer_alike_are_not_told_apart_and_others_are():
    alike = grid(noise=1.0, adapters=("full", "lora"), seed=6)
    steeper = alike.assign(score=alike["score"] + 9 * alike["wp"] * (alike["adapter"] == "full"))
    p = [
        difference_table(list(panel_curves(RunPanel(LABELS, runs))))["p"].item()
        for runs in (alike, steeper)
    ]
    assert p[0] > 0.05 > 1e-4 > p[1]


def test_the_rule_for_degrees_of_freedom_is_the_one_asked_for():
    """Under `normal` the p-value of the same t is the normal distribution's."""
    runs = grid(noise=2.0, cell_sd=1.0, seed=3)
    panel = RunPanel(LABELS, runs)
    (found,), (normal,) = (list(panel_curves(panel, df=df)) for df in ("satterthwaite", "normal"))
    ends = found.by_rank[16].l_3B[1] - found.by_rank[2].l_3B[1]
    tested = contrast(found.middle.fit, ends)
    assert found.p_changes == pytest.approx(tested.p)
    assert normal.p_changes == pytest.approx(2 * stats.norm.sf(abs(tested.estimate / tested.se)))
    curves = [shape(panel, draws=200, df=df).data for df in ("satterthwaite", "normal")]
    t = curves[0].quadratic.b2 / np.sqrt(curves[0].quadratic.cov_22[1, 1])
    assert curvature_p(curves[0].quadratic) == pytest.approx(2 * stats.t.sf(abs(t), curves[0].df))
    assert curvature_p(curves[1].quadratic) == pytest.approx(2 * stats.norm.sf(abs(t)), rel=1e-5)
