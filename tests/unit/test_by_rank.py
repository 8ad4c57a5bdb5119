"""The best weight at every rank: plain least squares, the true surface, coverage."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.curve.best import IN_DOUBT
from analysis.curve.shape import shape
from analysis.inference.optimum import INTERIOR
from analysis.questions.plw.by_rank import (
    difference_table,
    panel_curves,
    rank_optimum,
    rank_table,
)
from analysis.table.run_panels import RunPanel

WEIGHTS, RANKS = (0.0, 0.25, 0.5, 0.75, 1.0), (2, 4, 8, 16)
PEAK = np.array([8.0, 0.8, -9.0, -1.5, 1.0])  # wp, rank, wp^2, rank^2, wp rank
LABELS = {"mode": "none", "task_group": "mc", "dataset_type": "short"}


def grid(beta=PEAK, *, seed=0, noise=1.0, seeds=3, adapters=("lora",)):
    """Runs over weight, rank and seed; `full` runs once per weight and has no rank."""
    rng = np.random.default_rng(seed)
    cells = [
        (a, r, s, w)
        for a in adapters
        for r in (RANKS if a != "full" else (0,))
        for s in range(seeds)
        for w in WEIGHTS
    ]
    runs = pd.DataFrame(cells, columns=["adapter", "rank", "seed", "wp"])
    z = np.log2(runs["rank"].where(runs["rank"] > 0, 2**2.5)) - 2.5
    columns = np.column_stack([runs["wp"], z, runs["wp"] ** 2, z**2, runs["wp"] * z])
    effect = rng.normal(0, 2, seeds)[runs["seed"]]
    score = 40 + columns @ beta + effect + noise * rng.standard_normal(len(runs))
    arm = runs["adapter"] + " " + runs["rank"].astype(str)
    return runs.assign(
        log2_rank=z, score=score, dataset="d", model="m", arm=arm,
        block="d:" + runs["seed"].astype(str),
    )  # fmt: skip


def shapes_of(runs):
    return [shape(RunPanel(LABELS, runs), draws=200)]


def best_wp(log2_rank):
    return -(PEAK[0] + PEAK[4] * log2_rank) / (2 * PEAK[2])


def test_the_curve_at_a_rank_is_that_of_plain_least_squares():
    runs = grid(noise=1.5)
    x, z = runs["wp"].to_numpy(), runs["log2_rank"].to_numpy()
    blocks = pd.get_dummies(runs["block"]).to_numpy(dtype=float)
    columns = np.column_stack([x, x**2, x * z, z, z**2, blocks])
    y = runs["score"].to_numpy()
    b = np.linalg.lstsq(columns, y, rcond=None)[0]
    df = len(y) - columns.shape[1]
    cov = np.linalg.inv(columns.T @ columns) * ((y - columns @ b) ** 2).sum() / df
    (found,) = panel_curves(RunPanel(LABELS, runs))
    for rank in RANKS:
        ours = found.by_rank[rank].quadratic
        l_23 = np.array([[1, 0, np.log2(rank) - 2.5], [0, 1, 0]])
        assert (ours.b1, ours.b2) == pytest.approx(tuple(l_23 @ b[:3]))
        np.testing.assert_allclose(ours.cov_22, l_23 @ cov[:3, :3] @ l_23.T)
        assert ours.df == pytest.approx(df)
    assert found.p_changes == pytest.approx(2 * stats.t.sf(abs(b[2]) / np.sqrt(cov[2, 2]), df))


def test_the_best_weight_at_a_rank_is_covered_as_often_as_is_claimed():
    covered = 0
    for i in range(100):
        (found,) = panel_curves(RunPanel(LABELS, grid(seed=i, noise=1.5)))
        low, high = rank_optimum(found.by_rank[8]).fieller
        covered += low <= best_wp(0.5) <= high
    assert stats.binomtest(covered, 100, 0.95).pvalue > 0.001


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
