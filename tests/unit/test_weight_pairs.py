"""Pairs of weights: from tables whose effect of the scale is known, and what was published."""

import numpy as np
import pandas as pd
import pytest

from analysis.errors import AnalysisError
from analysis.papers.wit import pairs as published
from analysis.papers.wit import section as part
from analysis.questions.weight_pairs.estimate import (
    left_out_error,
    pairs,
    pairs_of,
    terms,
    with_ratio,
)
from analysis.regression.model import Request
from analysis.regression.study import Study
from analysis.report.build import fitted_study
from analysis.table.frame import from_results
from tests.fake_results import fake_results

LEVELS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
GRID = [(p, a) for p in LEVELS for a in LEVELS if p or a]


def simulated(seed: int, slope: float, *, seeds: int = 3, cell_sd: float = 0.0) -> pd.DataFrame:
    """Return runs whose score is a curve of the share, plus `slope` per doubling of both."""
    draw = np.random.default_rng(seed)
    rows = []
    for p, a in GRID:
        q, cell = p / (p + a), cell_sd * draw.normal()
        mean = 50 - 30 * q**2 + slope * np.log2(max(p, a)) + cell
        rows += [
            {"prompt": p, "answer": a, "block": str(s), "score": mean + s + draw.normal()}
            for s in range(seeds)
        ]
    return pd.DataFrame(rows)


def test_ratios_of_decimals_are_told_as_fractions():
    runs = pd.DataFrame(GRID, columns=["prompt", "answer"]).assign(score=0.0, block="0")
    frame = with_ratio(runs)
    assert frame["ratio"].nunique() == 21  # 19 coprime pairs up to 5, and two ends
    assert set(frame.loc[frame["prompt"] == frame["answer"], "ratio"]) == {"1"}
    assert set(frame.loc[(frame["prompt"] == 0.2) & (frame["answer"] == 0.6), "ratio"]) == {"1/3"}
    assert set(frame.loc[frame["answer"] == 0, "ratio"]) == {"prompt alone"}
    assert np.allclose(frame.groupby("ratio")["s"].mean(), 0)


def test_two_weights_of_nought_are_no_pair():
    with pytest.raises(AnalysisError, match="one above 0"):
        with_ratio(pd.DataFrame({"prompt": [0.0], "answer": [0.0], "score": [1.0], "block": ["0"]}))


@pytest.mark.slow
def test_the_slope_is_covered_as_often_as_is_said():
    """Of 95 % intervals over 300 simulated studies with cells that scatter: 0.95 +- 0.04."""
    slope = 1.5
    found = [pairs(simulated(i, slope, cell_sd=0.7), {}) for i in range(300)]
    covered = np.mean([f.per_doubling.low <= slope <= f.per_doubling.high for f in found])
    assert 0.91 <= covered <= 0.985
    assert np.mean([f.per_doubling.estimate for f in found]) == pytest.approx(slope, abs=0.05)


def test_without_scatter_of_cells_it_is_least_squares_within_ratios():
    """Naive: y on ratio, block and s; the cell's variance is estimated at 0 in such tables."""
    runs = simulated(3, 1.0)
    found = pairs(runs, {})
    frame = with_ratio(runs)
    x = pd.get_dummies(frame[["ratio", "block"]], drop_first=True, dtype=float).assign(s=frame["s"])
    x = np.column_stack([np.ones(len(x)), x.to_numpy()])
    naive = np.linalg.lstsq(x, frame["score"].to_numpy(), rcond=None)[0][-1]
    assert found.per_doubling.estimate == pytest.approx(naive, abs=1e-8)
    assert found.noise == pytest.approx(1.0, rel=0.25)
    assert found.doublings == pytest.approx(np.log2(5))


def test_errors_are_those_of_pairs_left_out_one_by_one():
    cells = pairs(simulated(1, 0.0), {}).cells
    cells = cells[cells["answer"] > 0]
    y = cells["score"].to_numpy()
    for surface in ("mean", "ratio", "ratio and scale", "both weights"):
        x, errors = terms(cells, surface), []
        for i in range(len(y)):
            rest = np.arange(len(y)) != i
            errors.append(y[i] - x[i] @ np.linalg.lstsq(x[rest], y[rest], rcond=None)[0])
        assert left_out_error(x, y) == pytest.approx(np.sqrt(np.mean(np.square(errors))))


def test_one_scale_a_ratio_or_few_pairs_are_no_question():
    runs = simulated(0, 0.0)
    assert pairs(runs[runs["answer"] == 1.0], {}) is None
    assert pairs(runs[runs["prompt"] == runs["answer"]], {}) is None  # five pairs


def test_published_pairs_are_read_as_ours_are():
    """The estimator of a panel of ours, at one run a pair, and the published table's own noise."""
    cells = published.cells().rename(columns={"lambda_p": "prompt", "lambda_r": "answer"})
    found = [pairs(own.assign(block="1"), {}) for _, own in cells.groupby("panel")]
    slopes = [one.per_doubling.estimate for one in found]  # of panels with the same weights each
    assert np.mean(slopes) == pytest.approx(published.size_effect(published.cells()).estimate)
    noise = np.sqrt(np.mean([one.noise**2 for one in found]))
    assert noise == pytest.approx(published.noise(published.cells()).sd)
    assert noise == pytest.approx(1.11, abs=0.005)


def results(slope: float) -> pd.DataFrame:
    """Return a results table of pairs, the score changing by `slope` points per doubling."""
    base = fake_results(4, seeds=3, plws=(0.0, 1.0), controls=False)
    base = base[(base["dataset"] == "micro") & base["adapter"].isin(["full", "none"])]
    stand = base[(base["masking"] == "none") & (base["plw"] == 1.0) & (base["adapter"] == "full")]
    draw = np.random.default_rng(0)
    parts = [base[base["adapter"] == "none"]]
    scale = np.where(stand.groupby("metric")["value"].transform("max") > 2, 1.0, 0.01)
    for p, a in GRID:
        gain = slope * np.log2(max(p, a)) - 10 * (p / (p + a)) ** 2
        run = stand["train_key"] + f"-{p}-{a}"
        noise = run.map({key: draw.normal() for key in run.unique()})
        parts.append(
            stand.assign(
                plw=p, completion_weight=a, effective_plw=p / a if a else np.nan,
                normaliser="nonzero", train_key=run, value=stand["value"] + (gain + noise) * scale,
            )
        )  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def study_of(slope: float) -> Study:
    raw = results(slope)
    return fitted_study(raw, from_results(raw), None, Request())


@pytest.fixture(scope="module")
def study():
    return study_of(-3.0)


def test_the_page_has_section_and_headlines(study):
    found = pairs_of(study)
    assert {one.labels["task_group"] for one in found} == set(study.rows["task_group"].astype(str))
    assert all(len(one.cells) == len(GRID) and one.replicated for one in found)
    lines = part.headlines(study)
    assert [line.clear for line in lines] == [True] * len(found)
    assert all(line.estimate == pytest.approx(-3 * np.log2(5), abs=1.4) for line in lines)
    section = part.section(study)
    assert section is not None
    names = {getattr(block, "name", "") for block in section.blocks}
    assert {"weight_pairs_changes", "weight_pairs_shares"} <= names


def test_at_another_normaliser_there_is_no_question():
    raw = results(-3.0)
    raw["normaliser"] = "weight"
    other = fitted_study(raw, from_results(raw), None, Request())
    assert part.section(other) is None
    assert part.headlines(other) == []
