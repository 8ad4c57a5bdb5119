"""Marginal means, slopes and their comparisons against emmeans and plain averages."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.errors import AnalysisError
from analysis.inference.comparisons import against, pairwise
from analysis.inference.means import means, slopes
from analysis.inference.scale import SCALES
from analysis.mixed import fit_mixed
from analysis.table.frame import from_results, study_rows
from tests.fake_results import fake_results

ORACLES = Path(__file__).parents[1] / "oracles"
STORED = json.loads((ORACLES / "inference_models.json").read_text())
CASES = [
    pytest.param(m, ask, found, id=f"{m['name']}-{i}-{found['df_rule']}")
    for m in STORED
    for i, ask in enumerate(m["asks"])
    for found in ask["found"]
    # pbkrtest leaves weights out, see test_kenward_roger.
    if not (m["weights"] and found["df_rule"] == "kenward-roger")
]
IN_SE, SE_RELATIVE, DF_RELATIVE = 1e-4, 1e-4, 1e-3  # emtrends differs by its forward difference
P_TUKEY, P_MVT = 1e-6, 1e-3  # mvtnorm's own quasi-random error is 1e-3
FITS = {}


def stored_fit(model):
    if model["name"] not in FITS:
        data = pd.read_csv(ORACLES / f"{model['data']}.csv")
        weights = "w" if model["weights"] else None
        FITS[model["name"]] = data, fit_mixed(data, model["formula"], weights=weights)
    return FITS[model["name"]]


def answered(model, ask, found):
    data, fit = stored_fit(model)
    options = {"within": ask["within"], "at": ask["at"] or None, "df": found["df_rule"]}
    if "variable" in ask:
        return slopes(fit, data, ask["variable"], of=ask["of"], weights=ask["weights"], **options)
    return means(fit, data, ask["of"], weights=ask["weights"], **options)


def side_by_side(table, found):
    other = pd.DataFrame({n: np.atleast_1d(found[n]) for n in ("estimate", "se", "df")})
    if not found["labels"]:
        return pd.concat([table, other.add_suffix("_r")], axis=1)
    labels = pd.DataFrame(found["labels"])
    both = table.merge(pd.concat([labels, other.add_suffix("_r")], axis=1), on=list(labels))
    assert len(both) == len(table) == len(labels)
    return both


@pytest.mark.parametrize(("model", "ask", "found"), CASES)
def test_means_and_slopes_equal_emmeans(model, ask, found):
    both = side_by_side(answered(model, ask, found).table(), found)
    assert ((both["estimate"] - both["estimate_r"]).abs() / both["se_r"]).max() < IN_SE
    np.testing.assert_allclose(both["se"], both["se_r"], rtol=SE_RELATIVE)
    np.testing.assert_allclose(both["df"], both["df_r"], rtol=DF_RELATIVE)


COMPARED = [c for c in CASES if c.values[2]["pairs"]]  # all but slopes


@pytest.mark.parametrize(("model", "ask", "found"), COMPARED)
def test_comparisons_equal_emmeans(model, ask, found):
    ours = answered(model, ask, found)
    theirs = {n: np.atleast_1d(v) for n, v in found["pairs"].items()}
    tukey, plain = pairwise(ours).table(), pairwise(ours, adjust="none").table()
    # Families come in another order; the estimates say which is which.
    mine, other = np.argsort(tukey["estimate"].to_numpy()), np.argsort(theirs["estimate"])
    for column, name, table in [
        ("estimate", "estimate", plain), ("se", "se", plain), ("p", "p", plain),
        ("p_adjusted", "tukey", tukey), ("low", "tukey_low", tukey),
    ]:  # fmt: skip
        np.testing.assert_allclose(
            table[column].to_numpy()[mine], theirs[name][other], atol=P_TUKEY, rtol=SE_RELATIVE
        )
    if len(ask["of"]) == 1:
        first = ours.labels[ask["of"][0]].iloc[0]
        dunnett = against(ours, first).table()["p_adjusted"]
        np.testing.assert_allclose(np.sort(dunnett), np.sort(theirs["dunnett"]), atol=P_MVT)


def test_equal_and_proportional_weights_are_plain_averages():
    # Least squares with all cells of two factors: marginal means are averages of cell means.
    data = pd.read_csv(ORACLES / "ragged.csv")
    fit = fit_mixed(data, "score ~ adapter * dataset")
    cells = data.groupby(["adapter", "dataset"])["score"].mean().unstack()
    share = data["dataset"].value_counts(normalize=True)
    equal = means(fit, data, "adapter").table().set_index("adapter")["estimate"]
    np.testing.assert_allclose(equal, cells.mean(axis=1))
    proportional = means(fit, data, "adapter", weights="proportional").table()
    np.testing.assert_allclose(proportional["estimate"], cells @ share[cells.columns])
    overall = means(fit, data).table()
    assert overall["estimate"].item() == pytest.approx(cells.to_numpy().mean())


def test_levels_may_be_numbers_and_covariates_several():
    data = pd.read_csv(ORACLES / "ragged.csv")
    fit = fit_mixed(data, "score ~ C(seed) + poly(wp, 2) + (1 | run)")
    by_seed = means(fit, data, "seed")
    assert list(by_seed.labels["seed"]) == [1, 2, 3, 4, 5]
    at = means(fit, data, ["wp"], within="seed", at={"wp": [0, 1], "seed": [2, 4]})
    assert at.labels.to_numpy().tolist() == [[2, 0], [2, 1], [4, 0], [4, 1]]
    rows = pd.DataFrame({"seed": [2, 2, 4, 4], "wp": [0.0, 1.0, 0.0, 1.0]})
    np.testing.assert_allclose(at.l_KB, fit.matrix(rows))
    table = pairwise(at).table()
    assert list(table["contrast"]) == ["0 - 1", "0 - 1"]
    assert list(table["seed"]) == [2, 4]


def test_the_slope_of_a_quadratic_is_exact():
    data = pd.read_csv(ORACLES / "ragged.csv")
    fit = fit_mixed(data, "score ~ wp + I(wp^2) + (1 | run)")
    found = slopes(fit, data, "wp", at={"wp": 0.3})
    np.testing.assert_allclose(found.l_KB, [[0, 1, 0.6]], atol=1e-9)


def test_a_mean_over_empty_cells_is_missing_and_spoils_nothing_else():
    data = pd.read_csv(ORACLES / "ragged.csv")
    data = data[(data["adapter"] != "mora") | (data["dataset"] != "long")]
    fit = fit_mixed(data, "score ~ adapter * dataset + (1 | run)")
    found = means(fit, data, "adapter")
    assert np.isnan(found.table().set_index("adapter").loc["mora", "estimate"])
    for adjust in ("tukey", "mvt", "holm", "bonferroni", "bh", "none"):
        table = pairwise(found, adjust=adjust).table().set_index("contrast")
        assert table["p_adjusted"].isna().tolist() == [False, True, True]
        assert table["low"].isna().tolist() == [False, True, True]
    # Without the interaction the cell is determined all the same.
    plain = fit_mixed(data, "score ~ adapter + dataset + (1 | run)")
    assert means(plain, data, "adapter").table()["estimate"].notna().all()


def test_bad_questions_are_one_line():
    data = pd.read_csv(ORACLES / "ragged.csv")
    fit = fit_mixed(data, "score ~ adapter + wp + (1 | run)")
    for call, words in [
        (lambda: means(fit, data, "adaptor"), "means of adaptor.*Did you mean 'adapter'"),
        (lambda: means(fit, data, "adapter", weights="prop"), "weights=prop: not one of equal"),
        (lambda: means(fit, data, "adapter", at={"adapter": "lorra"}), "Did you mean 'lora'"),
        (lambda: means(fit, data, "adapter", at={"wp": "high"}), "wp=high: must be a number"),
        (lambda: means(fit, data, "adapter", at={"steps": 3}), "at steps: not in the fixed part"),
        (lambda: means(fit, data, "adapter", df="kr"), "df=kr: not one of"),
        (lambda: means(fit, data.iloc[5:], "adapter"), "not the table that was fitted"),
        (lambda: means(fit, data, "adapter", within="adapter"), "within itself"),
        (lambda: slopes(fit, data, "adapter"), "slope over adapter: not a covariate"),
        (lambda: against(means(fit, data, "adapter"), "lorra"), "Did you mean 'lora'"),
        (lambda: against(means(fit, data, "adapter"), "lora", adjust="tukey"), "all pairs only"),
        (lambda: pairwise(means(fit, data, "adapter"), adjust="tuckey"), "Did you mean 'tukey'"),
    ]:
        with pytest.raises(AnalysisError, match=words):
            call().table()


def test_means_of_a_study_have_levels_that_are_numbers():
    """Seeds are a category of 0 and 1; adapters differ by their coefficients, and by slopes over
    the rank at its mean; the means themselves are of cells that no study has (a task in another
    task's group) and are not determined.
    """
    rows = study_rows(from_results(fake_results()))
    formula = (
        "score ~ task * (dataset + adapter) + dataset:seed + wp:mode:task_group:dataset_type + "
        "I(wp^2):curved:mode:task_group:dataset_type + "
        "log2_rank:adapter:task + (1 | run)"
    )
    fit = fit_mixed(rows, formula)
    found = pairwise(means(fit, rows, "adapter", within="task"))
    of = found.table().set_index(["task", "contrast"])["estimate"]
    beta = fit.fixef
    rank = rows["log2_rank"].mean()
    first = "micro_arithmetic"
    for task in rows["task"].unique():
        said = -beta["adapter[T.lora]"] - rank * beta[f"log2_rank:adapter[lora]:task[{task}]"]
        said -= 0 if task == first else beta[f"task[T.{task}]:adapter[T.lora]"]
        assert of[task, "full - lora"] == pytest.approx(said, rel=1e-9)
    assert np.isnan(found.means.l_KB).any(axis=1).all()


def test_a_ratio_beyond_all_numbers_is_infinite_without_a_warning():
    for name in ("logit", "log"):
        assert SCALES[name].ratios(np.array([0.0, 1e4])).tolist() == [1.0, np.inf]
    assert SCALES["log"].inverse(np.array([1e4])).tolist() == [np.inf]
