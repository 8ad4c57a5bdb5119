"""False-positive rates: exact intervals, the tests that are counted, rates on tables made null."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from analysis.errors import AnalysisError
from analysis.inference.estimates import contrast
from analysis.mixed import fit_mixed
from analysis.questions.controls import section as checks
from analysis.questions.controls.false_positives import (
    RELABELLINGS,
    _labels,
    clopper_pearson,
    clustered_share,
    false_positive_rates,
    measured_rates,
    panel_rates,
    relabelled,
    too_many,
)
from analysis.regression.default_model import default_formula
from analysis.regression.study import fitted
from analysis.report.page import Page, render
from analysis.report.trust import trust, trusted, warnings
from analysis.table.factors import cell_names, stratum_names
from analysis.table.frame import from_results, study_rows
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
    frames = [
        from_results(fake_results(s, seeds=seeds, plws=PLWS, truth=truth)) for s in range(tables)
    ]
    parts = [false_positive_rates(f, relabelled(f, labellings=10)) for f in frames]
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
    found = false_positive_rates(one, pd.DataFrame(), alpha=0.3).set_index("control").loc["sham"]
    assert (found["tests"], found["hits"]) == (len(sham), hits)


def bent(table):
    """Return results with an effect of every cell's own, which no term of the default model has."""
    rng = np.random.default_rng(0)
    key = table["masking"] + table["plw"].astype(str) + table["adapter"] + table["dataset"]
    quirk = dict(zip(key.unique(), rng.normal(0, 0.06, key.nunique()), strict=True))
    return table.assign(value=table["value"] + key.map(quirk) * (table["value"].abs() < 2))


def test_labels_by_cell_find_a_shape_that_the_model_misses():
    table = fake_results(5, seeds=4, plws=PLWS, controls=False)
    plain, found = (
        (relabelled(from_results(one), labellings=20)["p"] < 0.05).mean()
        for one in (table, bent(table))
    )
    assert plain < 0.12
    assert found > 2 * plain + 0.05


def test_a_label_is_tested_as_if_the_model_were_fitted_with_it_anew():
    """The columns of the label are replaced in one model matrix: the slow way gives the same p."""
    frame = from_results(fake_results(2, seeds=2, plws=PLWS, controls=False))
    rows, model = study_rows(frame), default_formula(frame)[0]
    cell, stratum, rng = cell_names(rows), stratum_names(rows), np.random.default_rng(7)
    found = relabelled(frame, labellings=3, seed=7)
    for labelling in range(3):
        label = _labels(stratum + " " + cell, stratum, rng)
        fit = fit_mixed(rows.assign(label=label), f"{model} + label:task_group:dataset_type")
        names = [n for n in fit.fixef.index if "label" in n.split(":")]
        p = [contrast(fit, (fit.fixef.index == n).astype(float)).p for n in names]
        np.testing.assert_allclose(found.loc[found["labelling"] == labelling, "p"], p, rtol=1e-4)


def test_the_interval_of_a_rate_holds_where_the_tests_of_a_labelling_go_together():
    """Eight tests of a labelling share half of their variance; 2,000 simulated rates."""
    rng = np.random.default_rng(4)
    cluster = pd.Series(np.repeat(np.arange(100), 8))
    inside, naive, draws = 0, 0, 2000
    for _ in range(draws):
        z = np.sqrt(0.5) * (rng.normal(size=(100, 1)) + rng.normal(size=(100, 8)))
        hit = pd.Series((np.abs(z) > stats.norm.isf(0.025)).ravel())
        low, high = clustered_share(hit, cluster)
        inside += low <= 0.05 <= high
        low, high = clopper_pearson(hit.sum(), len(hit))
        naive += low <= 0.05 <= high
    assert 0.94 < inside / draws < 0.99
    assert naive / draws < inside / draws - 0.02


@pytest.mark.parametrize("value", [False, True])
def test_labellings_that_all_agree_count_as_one_test_each(value):
    hit, cluster = pd.Series([value] * 40), pd.Series(np.repeat(np.arange(10), 4))
    assert clustered_share(hit, cluster) == clopper_pearson(10 * value, 10)


def test_too_many_false_positives_open_the_page_and_no_badge_is_green():
    table = fake_results(0, seeds=4, plws=PLWS, controls=False)
    for one, beyond in ((table, False), (bent(table), True)):
        study = fitted(one, from_results(one))
        assert len(too_many(measured_rates(study))) == beyond
        assert ("Too many false positives." in dict(warnings(study))) == beyond
        assert trusted(study) != beyond
        assert panel_rates(study)["tests"].tolist() == [RELABELLINGS] * 8
        page = render(Page("a", "b", "c", sections=(), trusted=trusted(study)), {})
        assert ('<body class="untrusted">' in page) == beyond
    assert ".untrusted .tag.clear { color: var(--muted); }" in page


def test_the_report_prints_the_rates_beside_the_results():
    table = fake_results(1, seeds=3, plws=PLWS)
    study = fitted(table, from_results(table))
    sheets = [b.table for b in checks.controls(study).blocks if b.kind == "table"]
    assert [s.name for s in sheets] == [
        "controls", "false_positives", "false_positives_by_panel"
    ]  # fmt: skip
    assert len(sheets[1].frame) == 4
    told = [i.text for i in trust(study)]
    assert told[-1].startswith("False positives at the 5 % level, measured here: A/A cells")
