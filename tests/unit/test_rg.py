"""The best weight against Rg: a known line is found, and covered as often as is claimed."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.errors import AnalysisError
from analysis.questions.plw.rg import LIKE, THESE, prediction_table, rg_curve
from analysis.table.run_panels import RunPanel

WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
TRUTH = np.array([10.0, -10.0, 2.0, -1.0])  # b1, b2, and their slopes over log10 Rg
LABELS = {"mode": "none", "task_group": "mc"}


def best(rg):
    step = np.log10(rg)
    return -(TRUTH[0] + TRUTH[2] * step) / (2 * (TRUTH[1] + TRUTH[3] * step))


def grid(ratios, *, seed=0, noise=1.0, scatter=0.0, seeds=3):
    """Runs on data sets with these Rg; `scatter` moves each data set's own curve off the line."""
    rng = np.random.default_rng(seed)
    parts = []
    for i, rg in enumerate(ratios):
        runs = pd.DataFrame([(s, w) for s in range(seeds) for w in WEIGHTS], columns=["seed", "wp"])
        x, own = runs["wp"], scatter * rng.standard_normal(2)
        b1 = TRUTH[0] + TRUTH[2] * np.log10(rg) + own[0]
        b2 = TRUTH[1] + TRUTH[3] * np.log10(rg) + own[1]
        score = rng.normal(50, 5) + b1 * x + b2 * x**2 + noise * rng.standard_normal(len(runs))
        parts.append(runs.assign(score=score, rg=rg, dataset=f"d{i}", arm=f"d{i} m full 0"))
    runs = pd.concat(parts, ignore_index=True)
    return RunPanel(LABELS, runs.assign(block=runs["dataset"] + ":" + runs["seed"].astype(str)))


RATIOS = tuple(float(r) for r in np.logspace(-1, 1, 8))


def test_a_known_line_is_found_and_predicted():
    found = rg_curve(grid(RATIOS, noise=0.05), draws=19)
    for line in found.lines:
        np.testing.assert_allclose(line.beta_4, TRUTH, atol=0.3)
    table = prediction_table(found, [0.5, 3.0, 30.0])
    expected = [best(rg) for rg in (0.5, 3.0, 30.0)]
    for speaks_of in (THESE, LIKE):
        rows = table[table["speaks_of"] == speaks_of]
        np.testing.assert_allclose(rows["best_wp"], expected, atol=0.02)
        assert rows["outside"].tolist() == [False, False, True]
    assert found.p_changes < 1e-6


def test_both_lines_are_those_of_plain_least_squares():
    panel = grid(RATIOS[:7], noise=1.0)
    runs = panel.runs
    x, step = runs["wp"].to_numpy(), np.log10(runs["rg"].to_numpy())
    blocks = pd.get_dummies(runs["block"]).to_numpy(dtype=float)
    columns = np.column_stack([x, x**2, x * step, x**2 * step, blocks])
    b = np.linalg.lstsq(columns, runs["score"].to_numpy(), rcond=None)[0]
    found = rg_curve(panel, draws=19)
    these, like = found.lines
    np.testing.assert_allclose(these.beta_4, b[:4])
    assert these.df == len(runs) - columns.shape[1]
    # A data set's slope at any x is one number: its regression on log Rg is the textbook one.
    own, x0 = found.datasets, 0.4
    line = stats.linregress(np.log10(own["rg"]), own["b1"] + 2 * x0 * own["b2"])
    slope, se = like.at(1.0).slope(x0)
    assert (slope, se) == pytest.approx((line.intercept, line.intercept_stderr))
    assert like.df == 5


@pytest.mark.parametrize(("count", "known"), [(2, False), (6, False), (7, True)])
def test_few_ratios_have_no_curve(count, known):
    found = rg_curve(grid(RATIOS[:count]), draws=19)
    assert found.ratios == count
    assert bool(found.lines) == known
    assert len(prediction_table(found)) == (2 * count if known else 0)


def test_data_sets_of_one_ratio_count_once():
    found = rg_curve(grid((*RATIOS[:5], 5.0, 5.0, 5.0)), draws=19)
    assert (found.ratios, found.lines) == (6, ())


def lines(ratios, **options):
    return rg_curve(grid(ratios, **options), draws=19).lines


def covered(line, rg):
    from analysis.inference.optimum import optimum

    at = optimum(line.at(rg))
    inside = at.fieller[0] <= best(rg) <= at.fieller[1]
    if np.isfinite(at.fieller[0]):
        return inside
    t = stats.t.ppf(0.975, line.df)  # the set is the points whose slope does not differ from zero
    slope, se = line.at(rg).slope(best(rg))
    return abs(slope) <= t * se


@pytest.mark.slow
def test_the_predicted_optimum_is_covered_as_often_as_is_claimed():
    exact = sum(covered(lines(RATIOS[:7], seed=i)[0], 0.7) for i in range(60))
    assert stats.binomtest(exact, 60, 0.95).pvalue > 0.001


@pytest.mark.slow
def test_where_data_sets_scatter_only_the_wider_question_has_an_honest_interval():
    found = [lines(RATIOS[:7], seed=i, scatter=4.0) for i in range(60)]
    wide = sum(covered(like, 0.7) for _, like in found)
    narrow = sum(covered(these, 0.7) for these, _ in found)
    assert stats.binomtest(wide, 60, 0.95).pvalue > 0.001
    assert narrow < 0.75 * 60


def test_a_ratio_must_be_positive():
    with pytest.raises(AnalysisError, match="rg=0: must be above 0"):
        lines(RATIOS)[0].at(0)
