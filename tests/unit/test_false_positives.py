"""False-positive rates: exact intervals, the tests that are counted, rates on tables made null."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from analysis.errors import AnalysisError
from analysis.inference.estimates import contrast
from analysis.mixed import fit_mixed
from analysis.questions.controls import false_positives as measured
from analysis.questions.controls import section as checks
from analysis.questions.controls.false_positives import (
    _labels,
    clopper_pearson,
    clustered_share,
    false_positive_rates,
    measured_rates,
    panel_rates,
    relabelled,
    too_many,
)
from analysis.regression.model import Request
from analysis.regression.study import fitted
from analysis.report.page import Page, render
from analysis.report.trust import trust, trusted, warnings
from analysis.table.factors import cell_names, stratum_names
from analysis.table.frame import from_results
from tests.fake_results import TASKS, Truth, fake_results

PLWS = (0.0, 0.1, 1.0)
SOME = ("micro_facts", "micro_arithmetic", "micro_translate")  # of three groups
NO_CELLS = "score ~ task + adapter + wp + (1 | run)"
CELLS_SCATTER = Truth(cell_sd=3.0)


def short_data(seed=0, *, tasks=SOME[:2], **options):
    """Results on the short data alone, where the controls are, of some tasks."""
    table = fake_results(seed, plws=PLWS, **options)
    return table[(table["dataset"] != "micro") & table["task"].isin(tasks)]


def study_of(table, formula=None):
    return fitted(table, from_results(table), request=Request(formula=formula))


@pytest.mark.parametrize(("hits", "tests"), [(0, 24), (1, 24), (12, 24), (24, 24), (3, 400)])
def test_the_interval_is_statsmodels_beta(hits, tests):
    assert clopper_pearson(hits, tests) == pytest.approx(
        proportion_confint(hits, tests, method="beta")
    )


def test_a_share_of_no_tests_is_told():
    with pytest.raises(AnalysisError, match="between 0 and"):
        clopper_pearson(0, 0)


def rates(truth, *, tables=4, seeds=4):
    some = [short_data(i, tasks=SOME, seeds=seeds, truth=truth) for i in range(tables)]
    parts = [false_positive_rates(from_results(table), pd.DataFrame()) for table in some]
    return pd.concat(parts).groupby("control")[["hits", "tests"]].sum()


def test_where_nothing_is_different_five_in_a_hundred_are_called_so():
    # The true effects of placebo and shuffling stay; only their swapped labels are compared.
    found = rates(Truth(block_sd=0.0))
    assert found.index.tolist() == ["placebo", "sham", "shuffled"]
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
        hits += 2 * stats.t.sf(abs(t), df) < 0.05
    one = frame[frame["is_base"] | (frame["task"] == next(iter(TASKS)))]
    one.attrs = frame.attrs
    found = false_positive_rates(one, pd.DataFrame()).set_index("control").loc["sham"]
    assert (found["tests"], found["hits"]) == (len(sham), hits)


@pytest.mark.parametrize(
    ("truth", "formula", "kept"),
    [(CELLS_SCATTER, None, True), (Truth(), None, True), (CELLS_SCATTER, NO_CELLS, False)],
)
def test_labels_drawn_by_cell_are_found_only_by_a_model_without_cells(truth, formula, kept):
    """They name no effect, but pick up what cells differ by."""
    study = study_of(short_data(0, seeds=3, truth=truth, controls=False), formula)
    drawn = relabelled(study, labellings=50, seed=5)
    assert len(drawn) == 2 * 50
    low, high = clustered_share(drawn["p"] < 0.05, drawn["labelling"])
    assert (low < 0.05 < high < 0.15) if kept else low > 0.1


def cells_of(rows):
    """The cells of every stratum."""
    return [sorted(own.unique()) for _, own in rows["cell"].groupby(stratum_names(rows))]


def naive_label_tests(study, labellings, seed):
    """The p-values of labels by a model that is made and fitted anew for each."""
    rng = np.random.default_rng(seed)
    rows = study.rows.assign(cell=stratum_names(study.rows) + " " + cell_names(study.rows))
    for labelling in range(labellings):
        label = _labels(cells_of(rows), rng)
        if study.joint is None:
            for model in study.panels:
                name = model.frame["dataset"].astype(str) + " " + model.frame["model"].astype(str)
                runs = model.frame.assign(label=(name + " " + model.frame["cell"]).map(label))
                fit = fit_mixed(runs, f"{model.fit.formula} + label")
                p = contrast(fit, (fit.fixef.index == "label").astype(float)).p
                yield (labelling, model.labels["dataset"], model.labels["task_group"]), p
        else:
            own = rows.assign(label=rows["cell"].map(label))
            panel = own["dataset"].astype(str) + " " + own["task_group"].astype(str)
            names = {f"label{i}": n for i, n in enumerate(panel.unique())}
            own = own.assign(**{k: own["label"] * (panel == n) for k, n in names.items()})
            fit = fit_mixed(own, f"{study.joint.fit.formula} + {' + '.join(names)}")
            for column, name in names.items():
                p = contrast(fit, (fit.fixef.index == column).astype(float)).p
                yield (labelling, *name.split(" ", 1)), p


@pytest.mark.parametrize("formula", [None, NO_CELLS])
def test_a_label_is_tested_as_if_the_model_were_fitted_with_it_anew(formula):
    """The columns of the label are replaced in one model matrix: the slow way gives the same p."""
    table = fake_results(2, seeds=2, plws=PLWS, controls=False)
    study = study_of(table[table["task"].isin(SOME[:2])], formula)
    found = relabelled(study, labellings=3, seed=7)
    keys = found[["labelling", "dataset", "task_group"]].itertuples(index=False, name=None)
    ours = dict(zip(keys, found["p"], strict=True))
    slow = dict(naive_label_tests(study, 3, 7))
    assert len(ours) == 3 * 4
    assert ours == pytest.approx(slow, rel=1e-3)


def test_half_of_the_cells_of_every_data_set_and_model_get_the_label():
    table = fake_results(2, seeds=2, plws=PLWS, controls=False)
    rows = study_of(table[table["task"] == SOME[0]]).rows
    rows = rows.assign(cell=stratum_names(rows) + " " + cell_names(rows))
    label = rows["cell"].map(_labels(cells_of(rows), np.random.default_rng(0)))
    assert set(label) == {-0.5, 0.5}
    cells = label.groupby(rows["cell"]).first()
    stratum = rows.groupby("cell")["dataset"].first()
    assert (cells.groupby(stratum).sum().abs() <= 0.5).all()
    assert (label.groupby(rows["cell"]).nunique() == 1).all()


def test_without_replicates_no_label_is_tested():
    """One seed tells cells from noise in no model, whoever wrote the formula."""
    table = short_data(0, seeds=1, controls=False)
    for formula in (None, NO_CELLS):
        assert relabelled(study_of(table, formula), labellings=2).empty


def test_the_interval_of_a_rate_holds_where_the_tests_of_a_labelling_go_together():
    """Eight tests of a labelling share half of their variance; 1,000 simulated rates."""
    rng = np.random.default_rng(4)
    cluster = pd.Series(np.repeat(np.arange(100), 8))
    inside, naive, draws = 0, 0, 1000
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


def test_too_many_false_positives_open_the_page_and_no_badge_is_green(monkeypatch):
    monkeypatch.setattr(measured, "RELABELLINGS", 40)
    table = short_data(0, seeds=3, truth=CELLS_SCATTER, controls=False)
    for formula, beyond in ((None, False), (NO_CELLS, True)):
        study = study_of(table, formula)
        assert len(too_many(measured_rates(study))) == beyond
        assert ("Too many false positives." in dict(warnings(study))) == beyond
        assert trusted(study) != beyond
        assert panel_rates(study)["tests"].tolist() == [40, 40]
        page = render(Page("a", "b", "c", sections=(), trusted=trusted(study)), {})
        assert ('<body class="untrusted">' in page) == beyond
    assert ".untrusted .tag.clear { color: var(--muted); }" in page


def test_the_report_prints_the_rates_beside_the_results(monkeypatch):
    monkeypatch.setattr(measured, "RELABELLINGS", 10)
    study = study_of(short_data(1, seeds=3))
    sheets = [b.table for b in checks.controls(study).blocks if b.kind == "table"]
    assert [s.name for s in sheets] == [
        "controls", "false_positives", "false_positives_by_panel"
    ]  # fmt: skip
    assert len(sheets[1].frame) == 4
    told = [i.text for i in trust(study)]
    assert told[-1].startswith("False positives at the 5 % level, measured here: A/A cells")
