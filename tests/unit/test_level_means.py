"""Means of levels: least squares without a cell effect, paired t tests and coverage with one."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.engine.formula import parse
from analysis.inference.estimates import contrast
from analysis.mixed import fit_mixed, with_score
from analysis.table.adjusted_means import adjusted_means
from analysis.table.cell_effect import cell_formula
from analysis.table.level_means import level_means

EXACT = 1e-9  # of two ways to the same least squares
REML = 1e-4  # of two ways to the same variances


def grid(*, contexts=8, seeds=2, cell_sd=2.0, noise=1.0, seed=0, effect=3.0):
    """Runs of two arms in every context (a model here) under the same seeds."""
    rng = np.random.default_rng(seed)
    cells = [(a, f"m{c}") for a in ("a", "b") for c in range(contexts)]
    runs = pd.DataFrame(cells, columns=["arm", "model"])
    runs = runs.assign(own=cell_sd * rng.standard_normal(len(runs)))
    runs = runs.merge(pd.DataFrame({"seed": range(seeds)}), how="cross")
    block = (runs["model"] + " " + runs["seed"].astype(str)).astype("category").cat.codes
    score = effect * (runs["arm"] == "b") + runs["own"] + rng.normal(0, 5, block.max() + 1)[block]
    runs = runs.assign(score=score + noise * rng.standard_normal(len(runs)))
    return runs.assign(block=block.map("b{}".format), cell=runs["arm"] + runs["model"])


def levels(runs, **options):
    return level_means(runs[["arm", "model", "seed", "score"]], ["arm"], **options)


def gap_of(found):
    b = found.table["arm"] == "b"
    return found.compare(b, ~b)


def ordinary(runs):
    """Least squares on arm and block alone."""
    level_N = (runs["arm"] == "b").to_numpy(dtype=np.intp)
    return adjusted_means(level_N, [runs["block"]], runs[["score"]].to_numpy())


# --- where there is no cell effect to estimate --------------------------------------------------


def lacking(runs):
    return runs.drop(index=runs.index[[0, 5]])


@pytest.mark.parametrize(
    "runs",
    [
        grid(seeds=1, contexts=9),
        lacking(grid(seeds=1, contexts=9)),  # blocks of one run
        grid(contexts=1, seeds=7),  # a cell is a level, which the model tells apart
        lacking(grid(contexts=1, seeds=7)),
    ],
    ids=["one seed", "one seed, ragged", "cells are levels", "cells are levels, ragged"],
)
def test_without_a_cell_effect_they_are_those_of_least_squares(runs):
    found, naive = levels(runs), ordinary(runs)
    assert not found.means.fit.random
    for i, row in found.table.iterrows():
        one = naive.contrast(np.eye(2)[i])
        assert tuple(row[["estimate", "low", "high"]]) == pytest.approx(
            (one.estimate, one.low, one.high), rel=EXACT
        )
    ours, theirs = gap_of(found), naive.contrast(np.array([-1.0, 1.0]))
    assert (ours.estimate, ours.se, ours.df, ours.p) == pytest.approx(
        (theirs.estimate, theirs.se, theirs.df, theirs.p), rel=EXACT
    )


def test_two_runs_of_a_cell_say_whether_seeds_differ():
    """One seed has intervals, but is known to have no replicates; without seeds none are asked."""
    assert levels(grid()).replicated
    assert levels(grid(contexts=1, seeds=7)).replicated
    one = levels(grid(seeds=1))
    assert not one.replicated
    assert one.table["low"].notna().all()
    runs = grid(seeds=1)[["arm", "model", "score"]]
    assert level_means(runs, ["arm"]).replicated


# --- where there is one -------------------------------------------------------------------------


@pytest.mark.parametrize("seeds", [2, 3])
def test_with_a_cell_effect_two_arms_are_a_paired_t_test_of_contexts(seeds):
    """Balanced, cells that scatter: the contexts' differences are the units."""
    runs = grid(seeds=seeds)
    means = runs.pivot_table(index="model", columns="arm", values="score")
    gap = means["b"] - means["a"]
    test = stats.ttest_1samp(gap, 0.0)
    ours = gap_of(levels(runs))
    assert ours.estimate == pytest.approx(gap.mean(), rel=EXACT)
    assert ours.se == pytest.approx(gap.std(ddof=1) / np.sqrt(8), rel=REML)
    assert ours.df == pytest.approx(7, rel=REML)
    assert ours.p == pytest.approx(test.pvalue, rel=1e-3)
    assert ours.df < ordinary(runs).df


@pytest.mark.parametrize("rule", ["satterthwaite", "kenward-roger", "normal"])
def test_with_a_cell_effect_they_are_the_mixed_model_of_the_same_formula(rule):
    runs = grid(seeds=3).drop(index=[1, 8, 30, 31])
    fit = fit_mixed(runs, "score ~ arm + block + (1 | cell)")
    found = levels(runs, df=rule)
    names = list(fit.fixef.index)
    blocks = np.array([n.startswith("block") for n in names]) / runs["block"].nunique()
    at_a = blocks + (np.array(names) == "Intercept")
    is_b = np.array([n.startswith("arm") for n in names], dtype=float)
    assert (at_a > 0).sum() == runs["block"].nunique()
    for row, l_B in zip(found.table.itertuples(), (at_a, at_a + is_b), strict=True):
        one = contrast(fit, l_B, df=rule)
        assert (row.estimate, row.low, row.high) == pytest.approx(
            (one.estimate, one.low, one.high), rel=REML
        )
    ours, theirs = gap_of(found), contrast(fit, is_b, df=rule)
    assert (ours.estimate, ours.se, ours.df) == pytest.approx(
        (theirs.estimate, theirs.se, theirs.df), rel=REML
    )


def test_a_difference_of_arms_is_covered_as_often_as_is_claimed_where_least_squares_is_not():
    """400 tables of 8 contexts x 2 arms x 2 seeds: of cells that scatter one and a half times as
    much as their seeds, and share their contexts' and seeds' effects.
    """
    runs, tables, hits, naive = grid(), 400, 0, 0
    first, rng = levels(runs), np.random.default_rng(1)
    (cell_N, cells), (block_N, blocks) = (pd.factorize(runs[n]) for n in ("cell", "block"))
    b_N = (runs["arm"] == "b").to_numpy()
    y_NY = 3.0 * b_N[:, None] + rng.standard_normal((len(runs), tables))
    y_NY += 1.5 * rng.standard_normal((len(cells), tables))[cell_N]
    y_NY += rng.normal(0, 5, (len(blocks), tables))[block_N]
    plain = adjusted_means(b_N.astype(np.intp), [runs["block"]], y_NY)
    for i in range(tables):
        fit = with_score(first.means.fit, y_NY[:, i])
        gap = gap_of(replace(first, means=replace(first.means, fit=fit)))
        hits += gap.low <= 3.0 <= gap.high
        line = plain.contrast(np.array([-1.0, 1.0]), i)
        naive += line.low <= 3.0 <= line.high
    assert 0.93 <= hits / tables <= 0.97
    assert naive / tables < 0.90


def test_levels_that_share_no_block_are_compared_by_their_cells():
    """Contexts of their own under two seeds: the blocks say nothing, contexts are the units."""
    runs = grid()
    runs = runs[runs["model"].isin(["m0", "m1", "m2", "m3"]) == (runs["arm"] == "a")]
    means = runs.groupby(["arm", "model"])["score"].mean()
    test = stats.ttest_ind(means["b"], means["a"])
    ours = gap_of(levels(runs))
    assert ours.estimate == pytest.approx(means["b"].mean() - means["a"].mean(), rel=EXACT)
    assert ours.df == pytest.approx(6, rel=REML)
    assert ours.p == pytest.approx(test.pvalue, rel=1e-3)


def test_what_is_not_there_is_not_compared():
    found = levels(grid())
    none = pd.Series(data=False, index=found.table.index)
    assert found.compare(none, ~none) is None
    alone = levels(grid(contexts=1, seeds=1))
    assert alone.means is None
    assert gap_of(alone) is None


# --- whether a cell effect can be estimated -----------------------------------------------------

ADDITIVE = "score ~ arm + seed + (1 | cell)"
SATURATED = "score ~ arm:model + seed + (1 | cell)"


def small(*, seeds=2, **options):
    runs = grid(contexts=3, seeds=seeds, **options)
    return runs.assign(seed="s" + runs["seed"].astype(str))


def only_one_twice():
    runs = small()
    return runs[(runs["seed"] == "s0") | (runs["cell"] == "am1")]


def second_seed_lost():
    runs = small()
    return runs.assign(score=runs["score"].where(runs["seed"] == "s0"))


@pytest.mark.parametrize(
    ("runs", "formula", "stays", "replicated"),
    [
        (small(), ADDITIVE, True, True),
        (only_one_twice(), "score ~ arm + (1 | cell)", True, True),
        (small(), SATURATED, False, True),  # every cell has a mean of its own
        (small().query("model == 'm0'"), ADDITIVE, False, True),  # the arm is the cell
        (small(seeds=1), "score ~ arm + (1 | cell)", False, False),
        (small(seeds=1), "score ~ arm:model + (1 | cell)", False, False),
        (second_seed_lost(), "score ~ arm + (1 | cell)", False, False),
        (small(), "score ~ arm + seed", False, True),  # none is asked for
        (small(seeds=1), "score ~ arm", False, False),
    ],
)
def test_a_cell_effect_stays_where_replicates_and_the_model_leave_it_to_estimate(
    runs, formula, stays, replicated
):
    found, has = cell_formula(formula, runs)
    assert has == replicated
    assert [bar.group for bar in parse(found, runs.columns).bars] == [("cell",)] * stays
    left = formula if stays else formula.removesuffix(" + (1 | cell)")
    assert found.replace(" ", "") == left.replace(" ", "")


def test_other_random_effects_stay_where_that_of_the_cell_goes():
    formula = "score ~ arm:model + (1 | seed) + (1 | cell)"
    assert cell_formula(formula, small())[0] == "score ~ arm : model + (1 | seed)"
