"""Instruction modelling's figures and claims, from a results table whose gains are known."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats

from analysis.inference.estimates import Estimate
from analysis.papers.instruction_modelling import figure, section
from analysis.papers.instruction_modelling.arms import IM, IT, arms, mean_gap, pairs, runs_of, slope
from analysis.papers.instruction_modelling.claims import CLAIMS, compared, im_claims
from analysis.papers.instruction_modelling.losses import row_losses
from analysis.papers.verdicts import verdict
from analysis.regression.model import Request
from analysis.report.build import fitted_study
from analysis.table.frame import from_results
from tests.unit import test_when_to_mask

GAIN, NOISE, LATE = 2.0, 6.0, 8.0


def moved(
    raw: pd.DataFrame, points: float, name: str, sd: float = 0.0, **levels: object
) -> pd.DataFrame:
    """Return the runs again under other levels, their scores so many points higher, with noise."""
    draw = np.random.default_rng(0)
    points = points + raw["train_key"].map(
        {k: sd * draw.normal() for k in raw["train_key"].unique()}
    )
    scale = np.where(raw.groupby("metric")["value"].transform("max") > 2, 1.0, 0.01)
    scored = raw["task_type"].isin(["mc", "short", "long"])
    value = raw["value"] + np.where(scored, points * scale, 0.0)
    return raw.assign(value=value, train_key=raw["train_key"] + name, **levels)


def results() -> pd.DataFrame:
    """Return IT and IM on nine data sets, the gain falling with Rg and rows; with other arms."""
    raw = test_when_to_mask.results(-4.0, -5.0)
    raw = raw.assign(**{"regulariser": "none", "regulariser.kl": 0.0, "train.epochs": 3.0})
    trained = raw["adapter"] != "none"
    above = trained & (raw["wp"] > 0)
    raw = pd.concat([raw[~above], moved(raw[above], GAIN, "")])
    masked = raw[(raw["adapter"] != "none") & (raw["wp"] == 0)]
    some = raw["train_rows"] == 200
    late = raw[some & (raw["adapter"] != "none")]
    return pd.concat(
        [
            raw,
            moved(masked[masked["train_rows"] == 200], NOISE, "-n", 0.1, regulariser="neftune"),
            moved(masked[masked["train_rows"] == 200], 0.0, "-k", 0.1, regulariser="kl",
                  **{"regulariser.kl": 1.0}),
            moved(late[late["wp"] == 0], 0.0, "-e", **{"train.epochs": 12.0}),
            moved(late[late["wp"] > 0], LATE, "-e", **{"train.epochs": 12.0}),
        ],
        ignore_index=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def study():
    raw = results()
    return fitted_study(raw, from_results(raw), None, Request())


def test_arms_are_named_by_mask_and_regulariser():
    rows = pd.DataFrame(
        [
            {"masking": "instruction", "wp": 0.0, "plw": 0.0},
            {"masking": "none", "wp": 1.0, "plw": 1.0},
            {"masking": "none", "wp": 0.5, "plw": 0.1},
            {"masking": "im_released", "wp": 1.0, "plw": 0.0},
            {"masking": "none", "wp": 1.0, "plw": 1.0, "regulariser": "neftune"},
            {"masking": "instruction", "wp": 0.0, "plw": 0.0, "regulariser": "kl",
             "regulariser.kl": 0.1},
            {"masking": "instruction", "wp": 0.0, "plw": 0.0, "completion_weight": 0.9},
        ]
    )  # fmt: skip
    rows = rows.fillna({"regulariser": "none", "completion_weight": 1.0})
    assert arms(rows) == [
        "IT", "IM", "IM at PLW 0.1", "IM as released", "IM + NEFTune", "IT + KL 0.1",
        "IT + released KL 0.1",
    ]  # fmt: skip


def test_the_mean_gain_is_the_paired_t_test_over_data_sets(study):
    """Balanced pairs: the mean of the data sets' means, with their spread as its error."""
    for runs in runs_of(study):
        found = pairs(runs.at(), IM, IT)
        made = mean_gap(found)
        assert made is not None
        effect, replicated = made
        means = found.groupby("dataset", observed=True)["gap"].mean()
        assert replicated
        assert len(means) == 9
        assert effect.estimate == pytest.approx(means.mean())
        assert effect.se == pytest.approx(stats.sem(means), rel=1e-4)
        assert effect.df == pytest.approx(8, rel=1e-3)


def test_known_gains_have_their_verdicts(study):
    table = im_claims(study)
    assert list(dict.fromkeys(table["claim"])) == list(CLAIMS.values())
    said = {claim: set(own["verdict"]) for claim, own in table.groupby("claim")}
    assert said[CLAIMS["ratio"]] == {"supported"}  # it falls by 16 points over Rg
    assert said[CLAIMS["rows"]] == {"supported"}
    assert said[CLAIMS["bases"]] == {"not testable here"}
    assert "supported" not in said[CLAIMS["kl"]]  # nothing was added
    ends = table[table["claim"] == CLAIMS["epochs"]]
    assert set(ends["verdict"]) == {"supported"}  # 8 points over two doublings
    assert (ends["estimate"] - LATE / 2).abs().max() < 1e-9  # the same runs, moved


def test_an_arm_is_held_against_its_counterpart(study):
    table = compared(study).set_index(["where", "gain"])
    noise = table.xs("IT + NEFTune − IT", level="gain")
    assert noise["estimate"].to_numpy() == pytest.approx(NOISE, abs=0.3)
    assert (noise["data_sets"] == 3).all()
    flat = table.xs("IT + KL 1 − IT", level="gain")
    assert flat["estimate"].to_numpy() == pytest.approx(0.0, abs=0.3)


def test_a_slope_is_that_of_least_squares_within_data_sets():
    draw = np.random.default_rng(1)
    rows = [(d, x, 3 * d + 1.5 * x + draw.normal()) for d in range(6) for x in (0.0, 1.0, 2.0)]
    found = pd.DataFrame(rows, columns=["dataset", "x", "gap"]).assign(model="m")
    made = slope(found, found["x"])
    centred = found["gap"] - found.groupby("dataset")["gap"].transform("mean")
    assert made is not None
    assert made.estimate == pytest.approx(np.polyfit(found["x"], centred, 1)[0])


def test_verdicts_follow_interval_and_margin():
    def of(estimate, se, sign=1, margin=None):
        return verdict(Estimate("", estimate, se, 100.0), sign, margin)

    assert of(3.0, 1.0) == "supported"
    assert of(3.0, 1.0, -1) == "contradicted"
    assert of(0.1, 0.2) == "not distinguishable"
    assert of(0.1, 0.2, margin=1.0) == "no effect beyond the margin"
    assert of(0.1, 2.0, margin=1.0) == "not distinguishable"
    assert verdict(None, 1) == "not testable here"


def test_relative_gains_are_in_percent_of_it(study):
    runs = runs_of(study)[0]
    found = figure.relative(runs, "rg").set_index("rg")["percent"]
    table = runs.at()
    means = table[table["rg"] == 0.25].groupby("arm")["score"].mean()
    assert found[0.25] == pytest.approx(100 * (means[IM] / means[IT] - 1))


def test_losses_of_single_rows_are_read_where_they_lie(study, tmp_path):
    runs = runs_of(study)[0]
    assert row_losses(runs, None).empty
    assert row_losses(runs, tmp_path).empty
    run = runs.at().query("arm == 'IM'")["run"].astype(str).iloc[0]
    (tmp_path / "cells" / run).mkdir(parents=True)
    table = pa.table({
        "task": ["heldout_test", "heldout_test", "other"],
        "metric": ["loss_completion", "loss_input", "loss_completion"],
        "score": [1.5, 9.0, 8.0],
    })  # fmt: skip
    pq.write_table(table, tmp_path / "cells" / run / "items.parquet")
    assert row_losses(runs, tmp_path).to_dict("list") == {"arm": ["IM"], "loss": [1.5]}


def test_the_page_of_the_study_has_claims_and_figures(study):
    made = section.section(study)
    assert made is not None
    names = {getattr(block, "name", "") for block in made.blocks}
    assert {"im_scores", "im_scores_published", "im_gains", "im_epochs"} <= names


def test_without_ratios_and_sizes_there_is_no_section():
    raw = results()
    raw = raw[raw["train_rows"] == 200]
    fewer = fitted_study(raw, from_results(raw), None, Request())
    assert section.section(fewer) is None
