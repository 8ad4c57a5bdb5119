"""Least squares with clustered errors: statsmodels called directly, and a closed form."""

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from statsmodels.regression.linear_model import OLS

from analysis.errors import AnalysisError
from analysis.inference.second_opinion import expected_share, second_opinion


def runs_table(seed=0):
    """36 runs: two data sets, three adapters, w_p of 0, 1/2 and 1, two seeds a cell."""
    rng = np.random.default_rng(seed)
    rows = []
    for data in ("a", "b"):
        for adapter in ("full", "lora", "mora"):
            for wp in (0.0, 0.5, 1.0):
                shared = rng.normal(0, 2)
                for run_seed in range(2):
                    score = 50 + 4 * wp + 3 * (adapter == "lora") + shared + rng.normal()
                    rows.append((data, adapter, wp, run_seed, score))
    table = pd.DataFrame(rows, columns=["data", "adapter", "wp", "seed", "score"])
    return table.assign(cell=table["data"] + table["adapter"] + table["wp"].astype(str))


@pytest.mark.parametrize(("column", "levels", "names"), [
    ("adapter", ("lora", "full"), {"adapter[T.lora]": 1.0}),
    ("adapter", ("lora", "mora"), {"adapter[T.lora]": 1.0, "adapter[T.mora]": -1.0}),
    ("wp", (1.0, 0.0), {"wp": 1.0, "I(wp ** 2)": 1.0}),
])  # fmt: skip
def test_it_is_statsmodels_clustered_ols(column, levels, names):
    table = runs_table()
    ols = smf.ols("score ~ wp + I(wp ** 2) + adapter + data", table).fit(
        cov_type="cluster", cov_kwds={"groups": pd.factorize(table["cell"])[0]}, use_t=True
    )
    l_B = pd.Series(0.0, ols.params.index)
    l_B[list(names)] = list(names.values())
    theirs = ols.t_test(l_B.to_numpy())
    mixed = "score ~ wp + I(wp^2) + adapter + data + (1 | cell)"
    found = second_opinion(table, mixed, column, levels)
    assert found.estimate == pytest.approx(float(theirs.effect[0]))
    assert found.se == pytest.approx(float(theirs.sd[0, 0]))
    assert found.df == table["cell"].nunique() - 1 == 17
    assert found.p == pytest.approx(float(theirs.pvalue))
    assert (found.low, found.high) == pytest.approx(tuple(theirs.conf_int()[0]))


def test_columns_that_repeat_one_another_do_not_hide_the_effect():
    """Two labs with one data set, a third with the other: a mean over all pairs is not known."""
    table = runs_table()
    lab = table["data"].where(table["data"] == "b", "a" + table["seed"].astype(str))
    twice = table.assign(lab=lab)
    plain = second_opinion(twice, "score ~ adapter + lab", "adapter", ("lora", "full"))
    found = second_opinion(twice, "score ~ adapter + data + lab", "adapter", ("lora", "full"))
    assert found.estimate == pytest.approx(plain.estimate)
    assert found.se == pytest.approx(plain.se)
    crossed = "score ~ adapter * data + lab"  # what meets the column is averaged over
    found = second_opinion(table.assign(lab="one"), crossed, "adapter", ("lora", "full"))
    by_data = table.groupby(["data", "adapter"])["score"].mean().unstack()
    assert found.estimate == pytest.approx((by_data["lora"] - by_data["full"]).mean())


def test_a_balanced_design_has_a_closed_form():
    # Two arms of G / 2 cells of m runs: the difference of the arms' means of cell means, with
    # the cells' scatter for its error, times G / (G - 1) (N - 1) / (N - 2).
    rng = np.random.default_rng(3)
    cells, m = 8, 3
    arm = np.repeat(["new", "old"], cells * m // 2)
    cell = np.repeat([f"c{i}" for i in range(cells)], m)
    score = rng.normal(size=cells)[np.repeat(np.arange(cells), m)] + rng.normal(size=cells * m)
    table = pd.DataFrame({"arm": arm, "cell": cell, "score": score})
    means = table.groupby(["arm", "cell"])["score"].mean()
    new, old = means["new"], means["old"]
    scatter = sum(((own - own.mean()) ** 2).sum() / len(own) ** 2 for own in (new, old))
    n = cells * m
    found = second_opinion(table, "score ~ arm", "arm", ("new", "old"))
    assert found.estimate == pytest.approx(new.mean() - old.mean())
    assert found.se**2 == pytest.approx(scatter * cells / (cells - 1) * (n - 1) / (n - 2))
    assert found.df == cells - 1


def test_clusters_that_say_nothing_of_the_error_are_refused():
    table = runs_table()
    words = "cluster=adapter: the formula leaves too little between 3 clusters; .* 0% of the"
    with pytest.raises(AnalysisError, match=words):
        second_opinion(table, "score ~ adapter", "adapter", ("lora", "full"), cluster="adapter")
    with pytest.raises(AnalysisError, match="cluster=one: one cluster; an error needs at least"):
        second_opinion(table.assign(one=1), "score ~ wp", "wp", (1.0, 0.0), cluster="one")
    with pytest.raises(AnalysisError, match=r"cluster=cel: no such column.*'cell'"):
        second_opinion(table, "score ~ wp", "wp", (1.0, 0.0), cluster="cel")
    with pytest.raises(AnalysisError, match="adapter=lola: not one of"):
        second_opinion(table, "score ~ adapter", "adapter", ("lola", "full"))


def test_the_share_of_the_variance_that_clusters_find_is_that_of_simulated_errors():
    # Few clusters for the coefficients: independent errors, the clustered variance by statsmodels.
    rng = np.random.default_rng(5)
    groups = np.repeat(np.arange(9), 2)
    X = np.column_stack([np.ones(18), rng.normal(size=9)[groups], rng.normal(size=(18, 2))])
    l_B = np.array([0.0, 1.0, 0.0, 0.0])
    truth = l_B @ np.linalg.inv(X.T @ X) @ l_B
    found = [
        l_B @ OLS(rng.normal(size=18), X).fit().get_robustcov_results(
            cov_type="cluster", groups=groups).cov_params() @ l_B
        for _ in range(600)
    ]  # fmt: skip
    share, error = np.mean(found) / truth, np.std(found) / truth / np.sqrt(len(found))
    assert expected_share(X, l_B, groups) == pytest.approx(share, abs=4 * error)
    assert error < 0.04


def test_its_coverage_is_about_nominal_where_runs_of_a_cell_share_an_error():
    hits = 0
    for seed in range(60):
        found = second_opinion(runs_table(seed), "score ~ wp + adapter + data", "wp", (1.0, 0.0))
        hits += found.low <= 4.0 <= found.high
    assert hits / 60 >= 0.86
