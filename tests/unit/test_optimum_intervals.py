"""Fieller, delta and bootstrap intervals of an optimum: closed forms and coverage."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.inference.bootstrap import bootstrap
from analysis.inference.optimum import Quadratic, optimum
from analysis.mixed import fit_mixed
from analysis.questions.plw.effects import dose_table, response
from analysis.questions.plw.optimum_intervals import (
    METHODS,
    best_row,
    bootstrap_vertices,
    interval_table,
    percentiles,
    vertices,
)
from analysis.table.frame import from_results
from tests.fake_results import default_fit

WEIGHTS = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
B1, B2 = 12.0, -10.0  # vertex at 0.6


def test_a_vertex_without_a_maximum_is_infinitely_far_uphill():
    beta = np.array([[1.0, -1.0], [1.0, 1.0], [-3.0, 1.0], [0.0, 0.0]])
    np.testing.assert_array_equal(vertices(beta), [0.5, np.inf, -np.inf, -np.inf])
    assert percentiles(np.array([-np.inf, *[0.5] * 97, np.inf, np.inf]), 0.9) == (0.5, 0.5)
    assert percentiles(np.array([0.5] * 50 + [np.inf] * 50), 0.9) == (0.5, np.inf)


def test_an_interval_stands_only_where_a_maximum_is_inside():
    inside = best_row(optimum(Quadratic(4.0, -4.0, np.eye(2) * 0.01)))
    assert inside["plw_low"] < inside["best_plw"] < inside["plw_high"]
    rising = best_row(optimum(Quadratic(4.0, 1.0, np.eye(2) * 0.01)))
    assert rising["best_plw"] == 1.0
    assert np.isnan(rising["plw_low"])


def simulated(seed, *, noise=1.0, seeds=6):
    rng = np.random.default_rng(seed)
    x = np.tile(WEIGHTS, seeds)
    y = 40 + B1 * x + B2 * x**2 + noise * rng.standard_normal(len(x))
    return x, y


def test_all_three_intervals_cover_the_true_optimum():
    """300 grids by plain least squares; the bootstrap draws from the fitted coefficients."""
    covered = dict.fromkeys(METHODS, 0)
    for i in range(300):
        x, y = simulated(i)
        columns = np.column_stack([np.ones_like(x), x, x**2])
        inverse = np.linalg.inv(columns.T @ columns)
        beta = inverse @ columns.T @ y
        df = len(x) - 3
        cov = inverse * ((y - columns @ beta) ** 2).sum() / df
        found = optimum(Quadratic(beta[1], beta[2], cov[1:, 1:], df))
        rng = np.random.default_rng(i)
        drawn = beta[1:] + rng.multivariate_normal(np.zeros(2), cov[1:, 1:], 400)
        ends = (found.fieller, found.delta, percentiles(vertices(drawn), 0.95))
        for method, (low, high) in zip(METHODS, ends, strict=True):
            covered[method] += low <= 0.6 <= high
    assert stats.binomtest(covered["Fieller"], 300, 0.95).pvalue > 0.001
    assert covered["delta"] >= 270
    assert covered["bootstrap"] >= 270


def test_the_bootstrap_of_a_fit_is_that_of_its_draws():
    x, y = simulated(1)
    rows = pd.DataFrame({"wp": x, "score": y})
    fit = fit_mixed(rows, "score ~ wp + I(wp^2)")
    curve = response(fit, rows)
    (ends,) = bootstrap_vertices([curve], draws=200, seed=3)
    draws = bootstrap(
        fit, draws=200, seed=3, extra=lambda b: float(-b["wp"] / (2 * b["I(wp ** 2)"]))
    ).draws["extra"]
    low, high = np.quantile(draws, [0.025, 0.975], method="nearest")
    assert ends == pytest.approx((low, high))
    assert ends[0] < 0.6 < ends[1]


def results(*, alias=False):
    rng = np.random.default_rng(5)
    rows = []
    for seed in range(4):
        luck = rng.normal(0, 1)
        for plw in (0.0, 0.01, 0.1, 0.5, 1.0):
            wp = plw**0.30103
            for task in ("t1", "t2"):
                score = 40 + B1 * wp + B2 * wp**2 + luck + 0.5 * rng.standard_normal()
                rows.append(
                    {
                        "train_key": f"{plw} {seed}", "task": task, "task_type": "mc",
                        "side": "both", "metric": "acc", "value": score / 100, "masking": "none",
                        "plw": plw, "effective_plw": plw, "adapter": "full", "rank": 1,
                        "dataset": "d", "dataset_type": "short", "seed": seed, "alias": False,
                    }
                )  # fmt: skip
    table = pd.DataFrame(rows)
    if alias:
        again = table[table["plw"] == 0.0].assign(masking="instruction", plw=0.5, alias=True)
        table = pd.concat([again, table], ignore_index=True)
    return from_results(table)


def test_the_table_has_three_intervals_a_panel():
    frame = results()
    fit = default_fit(frame)
    table = interval_table(fit, frame, draws=100)
    assert table["method"].tolist() == list(METHODS)
    assert ((table["low_wp"] < 0.6) & (table["high_wp"] > 0.6)).all()
    assert (table["low_plw"] < table["best_plw"]).all()


def test_a_run_under_two_names_leaves_every_estimate_as_it_was():
    """The alias stands first and under another mode and weight: it must not count, nor mislead."""
    tables = []
    for alias in (False, True):
        frame = results(alias=alias)
        fit = default_fit(frame)
        assert fit.n == 40
        tables.append(dose_table(fit, frame))
    pd.testing.assert_frame_equal(tables[0], tables[1])
