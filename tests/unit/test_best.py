"""One optimum per panel: where a number may be printed, and that all tables of a page agree."""

import numpy as np
import pandas as pd
import pytest

from analysis.curve.best import IN_DOUBT, NO_CURVE, UNTESTED, best_row, objection
from analysis.inference.optimum import INTERIOR, NO_INTERIOR, NOT_IDENTIFIED, Quadratic, optimum
from analysis.papers.plw import section as paper
from analysis.papers.plw.claims import SUPPORTED, plw_claims
from analysis.papers.verdicts import UNTESTABLE
from analysis.questions.plw import rank_section, section, shape_section
from analysis.questions.plw.estimate import dose
from analysis.questions.plw.headline_section import remarks
from analysis.regression.study import fitted
from analysis.table.frame import from_results
from tests.fake_results import fake_results

NUMBERS = ["best_wp", "best_plw", "plw_low", "plw_high", "gain", "gain_se"]
SURE = np.eye(2) * 0.01


def test_an_interval_stands_only_where_a_maximum_is_inside():
    inside = best_row(optimum(Quadratic(4.0, -4.0, SURE)), "")
    assert inside["optimum"] == INTERIOR
    assert inside["plw_low"] < inside["best_plw"] < inside["plw_high"]
    rising = best_row(optimum(Quadratic(4.0, 1.0, SURE)), "")
    assert (rising["optimum"], rising["best_plw"]) == (NO_INTERIOR, 1.0)
    assert np.isnan(rising["plw_low"])


@pytest.mark.parametrize(
    ("best", "doubt", "verdict"),
    [
        (optimum(Quadratic(4.0, -4.0, SURE)), "a plateau", IN_DOUBT),
        (optimum(Quadratic(-4.0, 4.0, SURE)), "", NO_INTERIOR),  # a minimum: which end is unclear
        (optimum(Quadratic(0.1, -0.1, SURE)), "", NOT_IDENTIFIED),
        (None, "", NOT_IDENTIFIED),
    ],
)
def test_nothing_is_printed_where_nothing_is_known(best, doubt, verdict):
    row = best_row(best, doubt)
    assert row["optimum"] == verdict
    assert np.isnan([row[name] for name in NUMBERS]).all()
    assert row["because"] == (doubt or (best.words if best else NO_CURVE))


def test_a_curve_whose_shape_was_not_tested_bears_no_optimum():
    assert objection(None) == UNTESTED


@pytest.fixture(scope="module")
def study():
    raw = fake_results(seeds=4, plws=(0.0, 0.01, 0.1, 0.5, 1.0), controls=False)
    raw = raw[(raw["masking"] == "none") | (raw["plw"] == 0) | (raw["adapter"] == "none")]
    raw = raw[(raw["dataset"] != "micro")]
    raw = raw[raw["side"] == "target"]
    return fitted(raw, from_results(raw))


def tables(made):
    return {b.table.name: b.table.frame for b in made.blocks if b.kind == "table"}


def test_every_table_and_sentence_of_a_page_has_one_optimum_per_panel(study):
    """The dose section, the tests of the shape, the answer and the paper's claims agree."""
    panels = dose(study)
    shown = tables(section.section(study))["optimum"]
    pd.testing.assert_series_equal(
        shown["best_plw"].reset_index(drop=True),
        panels.loc[panels["curved"], "best_plw"].reset_index(drop=True),
    )
    shapes = tables(shape_section.section(study))["curve_shape"]
    both = shapes.merge(shown, on=["mode", "dataset", "task_group"], suffixes=("", "_dose"))
    assert len(both) == len(shapes) > 0
    assert (both["optimum"] == both["optimum_dose"]).all()
    inside = panels[(panels["optimum"] == INTERIOR) & (panels["p_any_holm"] < 0.05)]
    assert len(inside)
    (text,) = remarks(study)
    surest = inside.loc[inside["p_any_holm"].idxmin()]
    assert f" is {surest['best_plw']:.2g} (95 % interval" in text
    claims = tables(paper.section(study))["plw_claims"]
    quadratic = claims[claims["claim"].str.contains("negative quadratic")]
    best = panels[(panels["dataset"] == "micro_short") & (panels["optimum"] == INTERIOR)]
    kinds = ~best["task_group"].str.startswith("long")
    assert (quadratic["verdict"] == SUPPORTED).sum() == kinds.sum()


def test_no_table_prints_an_optimum_in_doubt(study):
    made = (section.section(study), shape_section.section(study), rank_section.section(study))
    for frame in (f for one in made for f in tables(one).values() if "best_plw" in f):
        known = frame["optimum"].isin([INTERIOR, NO_INTERIOR])
        assert frame.loc[~known, "best_plw"].isna().all()
        assert frame.loc[frame["optimum"] == INTERIOR, "best_plw"].notna().all()


def test_without_replicates_no_claim_of_the_paper_is_judged():
    """Neither of scores nor of measures, which rise with the weight beyond all noise."""
    raw = fake_results(seeds=1, controls=False)
    raw = raw[(raw["masking"] == "none") | (raw["plw"] == 0) | (raw["adapter"] == "none")]
    raw = raw[(raw["dataset"] != "micro") & (raw["side"] != "source")]
    found = plw_claims(fitted(raw, from_results(raw)))
    assert set(found["verdict"]) == {UNTESTABLE}
