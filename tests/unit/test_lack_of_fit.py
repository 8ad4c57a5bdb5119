"""The shape of a curve: F tests against naive least squares, the monotone test by simulation."""

import numpy as np
import pandas as pd
import pytest
from patsy import cr, dmatrix
from scipy import stats
from sklearn.isotonic import IsotonicRegression

from analysis.curve.lack_of_fit import any_curve_test, knots_of, natural_spline, spline_test
from analysis.curve.level_curve import reduced
from analysis.curve.monotone import monotone_fit, monotone_test
from analysis.curve.shape import MISFIT, MONOTONE, shape, shape_table, shapes
from analysis.errors import AnalysisError
from analysis.inference.optimum import optimum
from analysis.table.frame import from_results
from analysis.table.run_panels import RunPanel
from tests.fake_results import fake_results

LEVELS = np.array([0.0, 0.1, 0.25, 0.4, 0.6, 0.8, 1.0])
LABELS = {"mode": "none", "dataset": "d", "model": "m", "task_group": "mc"}
REML = 1e-4  # how far the variances of two ways to the same fit may be apart
CURVES = {
    "flat": lambda x: 0 * x,
    "line": lambda x: 4 * x,
    "peak": lambda x: 16 * x - 16 * x**2,
    "plateau": lambda x: 6 * np.minimum(x / 0.2, 1.0),
    "bumps": lambda x: 3 * np.sin(3 * np.pi * x),
}


def grid(curve, *, seed=0, noise=1.0, cell_sd=0.0, seeds=4, levels=LEVELS):
    """Runs of two arms under `seeds` seeds each, whose effect they share."""
    rng = np.random.default_rng(seed)
    cells = [(a, s, x) for a in ("full", "lora") for s in range(seeds) for x in levels]
    runs = pd.DataFrame(cells, columns=["arm", "seed", "wp"])
    shift = rng.normal(0, 3, seeds)
    score = 50 + curve(runs["wp"]) + 5 * (runs["arm"] == "lora") + shift[runs["seed"]]
    runs["score"] = score + noise * rng.standard_normal(len(runs))
    own = cell_sd * rng.standard_normal(2 * len(levels))
    runs["score"] += own[runs.groupby(["arm", "wp"]).ngroup()]
    return runs.assign(block="d:" + runs["seed"].astype(str))


def rss(columns, y):
    b = np.linalg.lstsq(columns, y, rcond=None)[0]
    return float(((y - columns @ b) ** 2).sum())


def dummies(column):
    return pd.get_dummies(column.astype(str)).to_numpy(dtype=float)


def anova(runs):
    """Sums of squares and df of a balanced grid: lack of fit, cells beyond arm and level, runs."""
    y, x = runs["score"].to_numpy(), runs["wp"].to_numpy()
    base = np.hstack([dummies(runs["arm"]), dummies(runs["block"])])
    quadratic = rss(np.column_stack([base, x, x**2]), y)
    levels = rss(np.hstack([base, dummies(runs["wp"])]), y)
    cells = rss(np.hstack([dummies(runs["arm"] + runs["wp"].astype(str)), base]), y)
    arms, wps, blocks = (runs[n].nunique() for n in ("arm", "wp", "block"))
    between = (arms - 1) * (wps - 1)
    within = (arms * wps - 1) * (blocks - 1)
    return (quadratic - levels, wps - 3), (levels - cells, between), (cells, within)


def error(runs):
    """The mean square that a level is held against, and its df: of cells, if they scatter."""
    _, (between, df_between), (within, df_within) = anova(runs)
    if between / df_between > within / df_within:
        return between / df_between, df_between
    return (between + within) / (df_between + df_within), df_between + df_within


@pytest.mark.parametrize(("cell_sd", "df"), [(3.0, 6), (0.0, 6 + 39)])
def test_the_test_against_any_curve_is_the_textbook_one(cell_sd, df):
    """Cells are held against their own scatter, or pooled with runs where they have none."""
    runs = grid(CURVES["bumps"], noise=2.0, cell_sd=cell_sd)
    (lack, extra), *_ = anova(runs)
    square, df_error = error(runs)
    f = lack / extra / square
    found = any_curve_test(reduced(runs))
    assert df_error == df
    assert found.df == extra == 4
    assert found.df_residual == pytest.approx(df, rel=REML)
    assert found.statistic == pytest.approx(f, rel=REML)
    assert found.p == pytest.approx(stats.f.sf(f, 4, df), rel=1e-3)


@pytest.mark.parametrize(("cell_sd", "df"), [(3.0, 6), (0.0, 6 + 39)])
def test_the_quadratic_is_that_of_least_squares(cell_sd, df):
    runs = grid(CURVES["peak"], noise=2.0, cell_sd=cell_sd)
    x = runs["wp"].to_numpy()
    columns = np.column_stack([x, x**2, dummies(runs["arm"]), dummies(runs["block"])])
    columns = columns[:, :-1]  # arm and block share the constant
    b = np.linalg.lstsq(columns, runs["score"].to_numpy(), rcond=None)[0]
    cov = error(runs)[0] * np.linalg.inv(columns.T @ columns)
    found = reduced(runs).quadratic
    assert (found.b1, found.b2) == pytest.approx(tuple(b[:2]))
    np.testing.assert_allclose(found.cov_22, cov[:2, :2], rtol=REML)
    assert found.df == pytest.approx(df, rel=REML)


def test_the_spline_spans_what_a_peer_library_does():
    x = np.linspace(0, 1, 40)
    knots = np.array([0.0, 0.25, 0.6, 1.0])
    ours = np.column_stack([np.ones_like(x), x, natural_spline(x, knots)])
    theirs = np.asarray(dmatrix(cr(x, knots=knots[1:-1], lower_bound=0, upper_bound=1)))
    for columns, other in ((ours, theirs), (theirs, ours)):
        for column in other.T:
            assert rss(columns, column) < 1e-18 * len(x)
    assert knots_of(LEVELS).tolist() == [0.0, 0.25, 0.6, 1.0]


def test_the_monotone_fit_is_isotonic_regression():
    runs = grid(CURVES["bumps"], noise=0.5)
    found = reduced(runs)
    steps, sse, direction = monotone_fit(found.r_MM, found.m_M)
    means = runs.groupby("wp")["score"].mean()  # balanced: adjusting changes nothing
    peers = {
        name: IsotonicRegression(increasing=up).fit_transform(means.index, means)
        for name, up in (("rising", True), ("falling", False))
    }
    misses = {name: 8 * float(((means - fit) ** 2).sum()) for name, fit in peers.items()}
    assert direction == min(misses, key=misses.get)
    assert sse == pytest.approx(misses[direction])
    np.testing.assert_allclose(steps, np.diff(peers[direction]), atol=1e-8)


@pytest.mark.parametrize(
    ("curve", "fits", "words"),
    [
        ("peak", True, "the quadratic fits; it rises and comes back down"),
        ("bumps", False, MISFIT),
        ("plateau", False, MISFIT),
        ("line", True, f"the quadratic fits; {MONOTONE}"),
    ],
)
def test_a_known_truth_gets_its_verdict(curve, fits, words):
    found = shape(RunPanel(LABELS, grid(CURVES[curve], noise=0.7, seed=3)), draws=300)
    assert (found.any_curve.p > 0.05) == fits
    assert found.verdict == words


def test_a_plateau_is_no_interior_optimum_where_the_slope_test_says_that_it_is():
    """The trap: a quadratic through a plateau has a clear maximum inside, which is not there."""
    found = shape(RunPanel(LABELS, grid(CURVES["plateau"], noise=0.7, seed=1)), draws=300)
    assert optimum(found.data.quadratic).verdict == "interior optimum"
    assert not found.bears_maximum
    assert found.monotone.p_monotone > 0.05
    assert found.monotone.p_quadratic < 0.05
    assert found.monotone.verdict.startswith("a rising curve fits and the quadratic does not")


def test_curvature_that_hangs_on_the_level_zero_is_called_so():
    step = grid(lambda x: 5.0 * (x > 0), noise=0.7, seed=2)
    arch = grid(CURVES["peak"], noise=0.7, seed=2)
    shapes = [shape(RunPanel(LABELS, runs), draws=50) for runs in (step, arch)]
    told = shape_table(shapes)["without_zero"].tolist()
    assert told == ["curvature cannot be shown without PLW 0", "curvature survives"]


def test_the_tests_keep_their_level():
    """Null grids whose cells scatter; tests/slow has more of them, and of other nulls."""
    made = [grid(CURVES["flat"], seed=1000 + i, seeds=3, cell_sd=1.0) for i in range(60)]
    found = [reduced(runs) for runs in made]
    for test in (any_curve_test, spline_test):
        rejected = sum(test(one).p < 0.05 for one in found)
        assert stats.binomtest(rejected, 60, 0.05).pvalue > 0.001
    tested = [monotone_test(one, draws=60, seed=i) for i, one in enumerate(found)]
    assert sum(one.p_monotone < 0.05 for one in tested) <= 9  # 99.9 % of binomials at most
    pure = [(lack / 4 / (within / df), df) for (lack, _), _, (within, df) in map(anova, made)]
    assert sum(stats.f.sf(f, 4, df) < 0.05 for f, df in pure) > 20  # by the noise of runs alone


def test_a_true_quadratic_is_seldom_refused_and_a_monotone_curve_often():
    found = [reduced(grid(CURVES["peak"], seed=i, seeds=3, noise=2)) for i in range(30)]
    tested = [monotone_test(one, draws=60, seed=i) for i, one in enumerate(found)]
    assert sum(one.p_quadratic < 0.05 for one in tested) <= 6  # 1.5 expected; 99.9 %
    assert sum(one.p_monotone < 0.05 for one in tested) > 15


def test_the_table_has_a_line_per_panel():
    found = [shape(RunPanel(LABELS, grid(CURVES["peak"])), draws=50)]
    table = shape_table(found)
    assert len(table) == 1
    assert {"any_curve_p", "spline_p", "monotone_p", "b2_above_zero", "verdict"} <= set(table)


@pytest.mark.parametrize(
    ("runs", "match"),
    [
        (grid(CURVES["line"], levels=LEVELS[:2]), "2 levels"),
        (grid(CURVES["line"], seeds=1).query("arm == 'full'"), "nothing is left to tell the"),
        (grid(CURVES["line"], noise=0.0), "explain it exactly"),
    ],
)
def test_what_cannot_be_judged_says_why(runs, match):
    with pytest.raises(AnalysisError, match=match):
        reduced(runs)


def test_a_study_without_replicates_has_no_shapes():
    table = fake_results(seeds=2, controls=False)
    table = table[(table["dataset"] != "micro") & (table["task"] != "micro_pronouns")]
    assert len(shapes(from_results(table), draws=10)) == 4
    assert shapes(from_results(table[table["seed"] == 0]), draws=10) == []
