"""False-positive rates: exact intervals, the tests that are counted, rates on tables made null."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from analysis.errors import AnalysisError
from analysis.questions.controls import section as checks
from analysis.questions.controls.false_positives import (
    clopper_pearson,
    false_positive_rates,
    relabelled_p,
)
from analysis.regression.study import fitted
from analysis.report.trust import trust
from analysis.table.frame import from_results
from tests.fake_results import TASKS, Truth, fake_results

PLWS = (0.0, 0.1, 1.0)


@pytest.mark.parametrize(("hits", "tests"), [(0, 24), (1, 24), (12, 24), (24, 24), (3, 400)])
def test_the_interval_is_statsmodels_beta(hits, tests):
    assert clopper_pearson(hits, tests) == pytest.approx(
        proportion_confint(hits, tests, method="beta")
    )


def test_a_share_of_no_tests_is_told():
    with pytest.raises(AnalysisError, match="between 0 and"):
        clopper_pearson(0, 0)


def rates(truth, *, tables=6, seeds=4):
    parts = [
        false_positive_rates(from_results(fake_results(s, seeds=seeds, plws=PLWS, truth=truth)))
        for s in range(tables)
    ]
    return pd.concat(parts).groupby("control")[["hits", "tests"]].sum()


def test_where_nothing_is_different_five_in_a_hundred_are_called_so():
    # The true effects of placebo and shuffling stay; only their swapped labels are compared.
    found = rates(Truth(block_sd=0.0))
    assert found.index.tolist() == ["placebo", "relabelled", "sham", "shuffled"]
    for control, row in found.iterrows():
        rate, sd = row["hits"] / row["tests"], np.sqrt(0.05 * 0.95 / row["tests"])
        assert abs(rate - 0.05) < 4 * sd + 0.01, control


def test_a_sham_effect_drives_the_rate_up():
    found = rates(Truth(sham=6.0), tables=1)
    assert found.loc["sham", "hits"] > 0.5 * found.loc["sham", "tests"]
    assert found.loc["placebo", "hits"] < 0.3 * found.loc["placebo", "tests"]


def test_the_sham_test_is_least_squares_on_the_cells_of_the_place():
    frame = from_results(fake_results(3, seeds=3, plws=(0.0, 1.0)))
    own = frame[(frame["task"] == next(iter(TASKS))) & (frame["dataset"] == "micro_short")]
    own = own[~own["is_base"] & own["control"].isin(["", "sham"])]
    rank = own["rank"].astype(str).mask(own["adapter"].astype(str) == "full", "-")
    parts = [own[n].astype(str) for n in ("masking", "wp", "adapter", "sham")]
    cell = rank.str.cat(parts, sep=" ")
    mean = own.groupby(cell)["score"].transform("mean")
    df = len(own) - cell.nunique()
    s = np.sqrt(((own["score"] - mean) ** 2).sum() / df)
    sham = sorted(c for c in cell.unique() if c.endswith(" b"))
    hits = 0
    for name in sham:
        a, b = own["score"][cell == name], own["score"][cell == name[:-1] + "a"]
        t = (a.mean() - b.mean()) / (s * np.sqrt(1 / len(a) + 1 / len(b)))
        hits += 2 * stats.t.sf(abs(t), df) < 0.3
    one = frame[frame["is_base"] | (frame["task"] == next(iter(TASKS)))]
    one.attrs = frame.attrs
    found = false_positive_rates(one, alpha=0.3).set_index("control").loc["sham"]
    assert (found["tests"], found["hits"]) == (len(sham), hits)


def test_labels_by_cell_find_a_shape_that_the_model_misses():
    table = fake_results(5, seeds=4, plws=PLWS, controls=False)
    # A cell's own quirk on every task is in no term of the default model.
    rng = np.random.default_rng(0)
    key = table["masking"] + table["plw"].astype(str) + table["adapter"] + table["dataset"]
    quirk = dict(zip(key.unique(), rng.normal(0, 0.06, key.nunique()), strict=True))
    bent = table.assign(value=table["value"] + key.map(quirk) * (table["value"].abs() < 2))
    plain = np.mean(np.array(relabelled_p(from_results(table))) < 0.05)
    found = np.mean(np.array(relabelled_p(from_results(bent))) < 0.05)
    assert plain < 0.12
    assert found > 2 * plain + 0.05


def test_the_report_prints_the_rates_beside_the_results():
    table = fake_results(1, seeds=3, plws=PLWS)
    study = fitted(table, from_results(table))
    sheets = [b.table for b in checks.controls(study).blocks if b.kind == "table"]
    assert [s.name for s in sheets] == ["controls", "false_positives"]
    assert len(sheets[1].frame) == 4
    told = [i.text for i in trust(study)]
    assert told[-1].startswith("False positives at the 5 % level, measured here: A/A cells")
