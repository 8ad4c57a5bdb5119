"""`ablate.load`: a results folder or a table, opened for notebooks and scripts."""

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf

import ablate
from analysis.errors import AnalysisError
from analysis.facade import LoadedStudy, LoadedTable
from analysis.mixed import fit_mixed
from tests.fake_results import fake_results


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("study")
    fake_results().to_parquet(place / "results.parquet")
    return place


@pytest.fixture(scope="module")
def study(folder):
    return ablate.load(folder)


def test_a_results_folder_is_a_study(study, folder):
    assert isinstance(study, LoadedStudy)
    pd.testing.assert_frame_equal(study.results, pd.read_parquet(folder / "results.parquet"))
    assert study.fit.formula.startswith("score ~")
    assert "full" in study.arms
    assert len(repr(study)) < 200
    assert study.reasons


def test_effects_are_those_of_the_reports_first_screen(study, folder, tmp_path):
    """Two paths: the facade, and the table that the report writes."""
    found = study.effects()
    study.report(tmp_path)
    written = pd.read_csv(tmp_path / "tables" / "headlines.csv")
    assert len(found) == len(written) > 0
    for name in ("estimate", "low", "high", "p", "mde"):
        np.testing.assert_allclose(found[name], written[name], rtol=1e-9)
    assert found["verdict"].tolist() == written["verdict"].tolist()


def test_a_comparison_is_least_squares_over_equal_conditions(study):
    """The difference of two arms equals statsmodels' coefficient of the arm."""
    first, second = "lora r8", "full"
    table = study.compare(first, second)
    rows = study.regression.rows
    arm = rows["adapter"].astype(str) + np.where(
        rows["adapter"].astype(str) == "full", "", " r" + rows["rank"].astype(int).astype(str)
    )
    own = rows.assign(arm=arm)[arm.isin([first, second])]
    for line in table.to_dict("records"):
        there = own[(own["side"] == line["tasks"]) & (own["dataset"] == line["dataset"])]
        if "model" in line:
            there = there[there["model"] == line["model"]]
        names = [n for n in ("masking", "plw") if there[n].nunique() > 1]
        condition = there[names].astype(str).agg(" ".join, axis=1) if names else "all"
        runs = there.assign(condition=condition, first=(there["arm"] == first).astype(float))
        runs = runs.groupby(["run", "condition", "seed", "first"], observed=True)["score"].mean()
        runs = runs.reset_index().astype({"seed": str})
        shared = set(runs.loc[runs["first"] == 1, "condition"])
        shared &= set(runs.loc[runs["first"] == 0, "condition"])
        fit = smf.ols(
            "score ~ first + C(condition) + C(seed)", runs[runs["condition"].isin(shared)]
        ).fit()
        assert line["estimate"] == pytest.approx(fit.params["first"])
        assert (line["low"], line["high"]) == pytest.approx(tuple(fit.conf_int().loc["first"]))
        assert line["p"] == pytest.approx(fit.pvalues["first"])


def test_sides_may_be_levels_and_the_difference_turns_with_them(study):
    forth = study.compare({"masking": "none", "plw": 1.0}, {"masking": "none", "plw": 0.0})
    back = study.compare({"masking": "none", "plw": 0.0}, {"masking": "none", "plw": 1.0})
    np.testing.assert_allclose(forth["estimate"], -back["estimate"])
    assert (forth["p_holm"] >= forth["p"]).all()


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ("lora r80", "full", "arm=lora r80: not one of"),
        ({"adaptor": "lora"}, "full", "adaptor: no such factor. Did you mean 'adapter'?"),
        ({"adapter": "lora"}, {"adapter": "lora"}, "some runs belong to"),
    ],
)
def test_a_wrong_side_is_one_line(study, first, second, said):
    with pytest.raises(AnalysisError, match=r"^[^\n]*$") as caught:
        study.compare(first, second)
    assert said in str(caught.value)


def test_items_without_a_folder_of_cells_are_refused(study):
    with pytest.raises(AnalysisError, match="items: none beside"):
        _ = study.items


def test_any_other_table_is_fitted_as_its_report_fits_it(tmp_path):
    rng = np.random.default_rng(5)
    table = pd.DataFrame({"lab": list("abc") * 20, "dose": np.tile([0.0, 1.0], 30)})
    table["score"] = 2.0 * table["dose"] + (table["lab"] == "b") + rng.normal(0, 0.3, 60) + 50
    table.to_csv(tmp_path / "t.csv", index=False)
    found = ablate.load(tmp_path / "t.csv", formula="score ~ lab + dose")
    assert type(found) is LoadedTable
    own = fit_mixed(table, "score ~ lab + dose")
    np.testing.assert_allclose(found.fit.fixef, own.fixef)
    dose = found.effects().set_index("label").filter(like="dose", axis=0)
    assert dose["estimate"].iloc[0] == pytest.approx(own.fixef["dose"])
    assert found.report().is_file()
    with pytest.raises(AnalysisError, match="frozen="):
        ablate.load(tmp_path / "t.csv", frozen="plan.json")


def test_loading_ablate_imports_no_analysis():
    import subprocess
    import sys

    code = "import sys, ablate; sys.exit(any(m.startswith('analysis') for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
