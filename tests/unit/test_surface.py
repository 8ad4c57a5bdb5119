"""The canonical analysis: closed forms, a brute-force region, coverage on simulated grids."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.errors import AnalysisError
from analysis.inference.optimum import INTERIOR, NO_INTERIOR, NOT_IDENTIFIED
from analysis.mixed import fit_mixed
from analysis.questions.plw.surface import (
    MAXIMUM,
    MINIMUM,
    SADDLE,
    Surface,
    best_weight_by_rank,
    bootstrap_point,
    canonical,
    in_region,
    surface,
)
from analysis.questions.plw.surfaces import (
    curves_differ,
    panel_surfaces,
    rank_table,
    surface_formula,
    surface_table,
)
from analysis.table.run_panels import RunPanel

WEIGHTS, RANKS = (0.0, 0.25, 0.5, 0.75, 1.0), (2, 4, 8, 16)
PEAK = np.array([8.0, 0.8, -9.0, -1.5, 1.0])  # wp, rank, wp^2, rank^2, wp rank
SURE = np.eye(5) * 1e-6
LABELS = {"mode": "none", "task_group": "mc", "dataset_type": "short"}
INSIDE = np.array([[0.0, 1.0], [-1.5, 1.5]])


def stationary(beta):
    return -0.5 * np.linalg.solve([[beta[2], beta[4] / 2], [beta[4] / 2, beta[3]]], beta[:2])


def grid(beta, *, seed=0, noise=1.0, seeds=3, adapters=("lora",)):
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
    x = runs["wp"]
    columns = np.column_stack([x, z, x**2, z**2, x * z])
    luck = rng.normal(0, 2, seeds)[runs["seed"]]
    score = 40 + columns @ beta + luck + noise * rng.standard_normal(len(runs))
    return runs.assign(
        log2_rank=z, score=score, dataset="d", model="m", block="d:" + runs["seed"].astype(str)
    )


@pytest.mark.parametrize(
    ("beta", "nature"),
    [
        (PEAK, MAXIMUM),
        (-PEAK, MINIMUM),
        (np.array([1.0, 0.5, -2.0, 1.0, 0.3]), SADDLE),
    ],
)
def test_the_stationary_point_and_its_nature_are_those_of_the_closed_form(beta, nature):
    found = canonical(Surface(beta, SURE))
    bend = np.array([[beta[2], beta[4] / 2], [beta[4] / 2, beta[3]]])
    np.testing.assert_allclose(found.at_2, stationary(beta))
    np.testing.assert_allclose(found.eigenvalues_2, np.linalg.eigvalsh(bend))
    assert found.nature == nature
    assert found.verdict == (INTERIOR if nature == MAXIMUM else NO_INTERIOR)


def test_the_delta_errors_are_those_of_numerical_derivatives():
    rng = np.random.default_rng(1)
    root = rng.normal(size=(5, 5))
    cov = 0.01 * root @ root.T
    steps = 1e-6 * np.eye(5)
    jacobian = np.array([(stationary(PEAK + h) - stationary(PEAK - h)) / 2e-6 for h in steps]).T
    expected = np.sqrt(np.diagonal(jacobian @ cov @ jacobian.T))
    found = canonical(Surface(PEAK, cov))
    np.testing.assert_allclose(found.delta_se_2, expected, rtol=1e-5)
    shift = [
        (np.linalg.eigvalsh([[b[2], b[4] / 2], [b[4] / 2, b[3]]]))
        for b in (PEAK + h for h in steps)
    ]
    slopes = (np.array(shift) - found.eigenvalues_2).T / 1e-6
    np.testing.assert_allclose(
        found.eigenvalues_se_2, np.sqrt(np.diagonal(slopes @ cov @ slopes.T)), rtol=1e-4
    )


def test_the_region_is_where_the_gradient_does_not_differ_from_zero():
    fit = fit_mixed(grid(PEAK, noise=0.5), surface_formula(_ready(grid(PEAK, noise=0.5))))
    found = surface(fit, grid(PEAK, noise=0.5))
    point = canonical(found)
    assert point.region_bounded
    low, high = point.region_22[:, 0], point.region_22[:, 1]
    wide = [np.linspace(a - 0.3, b + 0.3, 61) for a, b in zip(low, high, strict=True)]
    inside = np.array([(x, z) for x in wide[0] for z in wide[1] if in_region(found, (x, z))])
    np.testing.assert_allclose(inside.min(axis=0), low, atol=0.03)
    np.testing.assert_allclose(inside.max(axis=0), high, atol=0.03)


def _ready(runs):
    return runs.assign(place="d m")


def test_weak_curvature_leaves_the_region_open_and_the_point_unidentified():
    found = canonical(Surface(PEAK, np.eye(5) * 9.0))
    assert not found.region_bounded
    assert np.isinf(found.region_22).all()
    assert found.verdict == NOT_IDENTIFIED


def test_a_point_beyond_the_design_is_no_interior_optimum():
    far = PEAK.copy()
    far[0] = 30.0
    assert canonical(Surface(far, SURE), within=INSIDE).verdict == NO_INTERIOR
    assert canonical(Surface(PEAK, SURE), within=INSIDE).verdict == INTERIOR


@pytest.fixture(scope="module")
def simulated():
    """300 grids with a known surface, fitted by least squares as `surface` does."""
    first = grid(PEAK, noise=1.5)
    x, z = first["wp"].to_numpy(), first["log2_rank"].to_numpy()
    blocks = pd.get_dummies(first["block"]).to_numpy(dtype=float)
    columns = np.column_stack([x, z, x**2, z**2, x * z, blocks])
    df = len(first) - columns.shape[1]
    inverse = np.linalg.inv(columns.T @ columns)
    found = []
    for i in range(300):
        y = grid(PEAK, seed=i, noise=1.5)["score"].to_numpy()
        b = inverse @ columns.T @ y
        variance = ((y - columns @ b) ** 2).sum() / df
        found.append(Surface(b[:5], variance * inverse[:5, :5], df))
    fit = fit_mixed(first, surface_formula(_ready(first)))
    ours = surface(fit, first)
    np.testing.assert_allclose(ours.beta_5, found[0].beta_5, rtol=1e-6)
    np.testing.assert_allclose(ours.cov_55, found[0].cov_55, rtol=1e-6, atol=1e-9)
    assert ours.df == pytest.approx(df)
    return found


def test_the_region_covers_the_true_point(simulated):
    covered = sum(in_region(one, stationary(PEAK)) for one in simulated)
    assert stats.binomtest(covered, 300, 0.95).pvalue > 0.001


def test_the_best_weight_at_a_rank_is_covered(simulated):
    truth = -(PEAK[0] + PEAK[4]) / (2 * PEAK[2])  # one step of log2 rank above the middle
    best = [best_weight_by_rank(one, [1.0])[0] for one in simulated]
    covered = sum(one.fieller[0] <= truth <= one.fieller[1] for one in best)
    assert stats.binomtest(covered, 300, 0.95).pvalue > 0.001


def test_the_bootstrap_covers_the_true_point(simulated):
    ends = [bootstrap_point(one, draws=200, seed=i)[0] for i, one in enumerate(simulated[:150])]
    truth = stationary(PEAK)
    for axis in (0, 1):
        covered = sum(end[axis, 0] <= truth[axis] <= end[axis, 1] for end in ends)
        assert covered >= 0.88 * len(ends)  # percentiles are first-order right, no more


def test_full_tuning_has_no_rank_and_shares_the_panel():
    runs = grid(PEAK, noise=0.3, adapters=("full", "lora"))
    found = list(panel_surfaces(RunPanel(LABELS, runs), draws=200))
    assert [one.adapter for one in found] == ["full", "lora"]
    assert found[0].canonical is None
    assert found[0].ranks == {}
    assert found[1].canonical.verdict == INTERIOR
    table = rank_table(found)
    assert table["rank"].isna().tolist() == [True, False, False, False, False]
    truth = -(PEAK[0] + PEAK[4] * runs.query("rank > 0")["log2_rank"].unique()) / (2 * PEAK[2])
    np.testing.assert_allclose(table["best_wp"].to_numpy()[1:], truth, atol=0.05)
    assert surface_table(found)["nature"].tolist() == [MAXIMUM]


def test_two_ranks_have_best_weights_but_no_stationary_point():
    runs = grid(PEAK, noise=0.3, adapters=("lora",)).query("rank in (2, 16)")
    (found,) = panel_surfaces(RunPanel(LABELS, runs), draws=100)
    assert found.canonical is None
    assert "too few ranks" in found.why_not
    assert (rank_table([found])["optimum"] == INTERIOR).all()
    with pytest.raises(AnalysisError, match="too few"):
        canonical(found.surface)


def test_adapters_that_answer_alike_are_not_told_apart_and_others_are():
    alike = grid(PEAK, noise=1.0, adapters=("full", "lora"), seed=6)
    steeper = alike.assign(score=alike["score"] + 9 * alike["wp"] * (alike["adapter"] == "full"))
    p = [curves_differ(list(panel_surfaces(RunPanel(LABELS, r), draws=50)))
         for r in (alike, steeper)]  # fmt: skip
    assert p[0] > 0.05 > 1e-4 > p[1]


def test_a_formula_that_is_not_quadratic_is_refused():
    runs = grid(PEAK)
    with pytest.raises(AnalysisError, match="not quadratic"):
        surface(fit_mixed(runs, "score ~ wp:I(log2_rank^2) + block"), runs)
    with pytest.raises(AnalysisError, match="no column log2_rank"):
        surface(fit_mixed(runs, "score ~ wp + block"), runs.drop(columns="log2_rank"))
