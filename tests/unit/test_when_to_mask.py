"""When to mask the prompt: from a results table whose gain over Rg and rows is known."""

import numpy as np
import pandas as pd
import pytest

from analysis.questions.when_to_mask import section as part
from analysis.questions.when_to_mask.estimate import (
    RATIO,
    ROWS,
    changes,
    summaries,
    surfaces,
)
from analysis.regression.model import Request
from analysis.report.build import fitted_study
from analysis.table.frame import from_results
from tests.fake_results import fake_results

RG, SIZES = (0.25, 1.0, 4.0), (100, 200, 400)


def results(per_ratio: float, per_rows: float) -> pd.DataFrame:
    """Return runs on nine data sets; the gain of PLW 1 changes so much per doubling."""
    parts = []
    for i, ratio in enumerate(RG):
        for j, rows in enumerate(SIZES):
            own = fake_results(10 * i + j, seeds=3, plws=(0.0, 1.0), controls=False)
            own = own[(own["dataset"] == "micro") & own["adapter"].isin(["full", "none"])]
            own = own[own["masking"].isin(["instruction", "none"])].copy()
            gain = per_ratio * np.log2(ratio) + per_rows * np.log2(rows / 200)
            scale = np.where(own.groupby("metric")["value"].transform("max") > 2, 1.0, 0.01)
            own["value"] += np.where(own["wp"] > 0, gain * scale, 0.0)
            name = f"rg{ratio:g} n{rows}"
            own = own.assign(dataset=name, rg=ratio, train_rows=rows)
            parts.append(own.assign(train_key=own["train_key"] + name))
    return pd.concat(parts, ignore_index=True)


@pytest.fixture(scope="module")
def study():
    raw = results(-4.0, 5.0)
    return fitted_study(raw, from_results(raw), None, Request())


def test_changes_are_found_in_every_group_of_tasks(study):
    found = surfaces(study)
    assert {m.labels["task_group"] for m in found} == set(study.rows["task_group"].astype(str))
    table = changes(found, study.margin)
    held = {RATIO: -4.0 * 4, ROWS: 5.0 * 2}  # over four doublings, and two
    inside = [row.low <= held[row.over] <= row.high for row in table.itertuples()]
    assert np.mean(inside) >= 0.75
    assert (np.sign(table["estimate"]) == table["over"].map(held).map(np.sign)).all()


def test_a_summary_is_contradicted_by_a_change_the_other_way_round(study):
    said = summaries(changes(surfaces(study), study.margin))
    assert set(said["summary"]) == {"short and small", "long and large"}
    assert set(said["verdict"]) == {"contradicted"}  # each has one of its two changes wrong


def test_effects_have_both_kinds_of_intervals_and_the_plain_means(study):
    table = surfaces(study)[0].effects
    assert len(table) == len(RG) * len(SIZES)
    assert (table["all_low"] <= table["low"]).all()
    assert np.corrcoef(table["estimate"], table["observed"])[0, 1] > 0.8
    assert set(table["verdict"]) <= {"pays", "costs", "not distinguishable"}


def test_the_page_has_section_and_headlines(study):
    section = part.section(study)
    assert section is not None
    assert {"when_to_mask_none_1"} <= {getattr(b, "name", "") for b in section.blocks}
    groups = study.rows["task_group"].nunique()
    assert len(part.headlines(study)) == 2 * groups


def test_without_three_ratios_and_sizes_there_is_no_section():
    raw = results(-4.0, 5.0)
    raw = raw[raw["train_rows"] != 400]
    fewer = fitted_study(raw, from_results(raw), None, Request())
    assert part.section(fewer) is None
    assert part.headlines(fewer) == []
