"""The default model, dose effects and cells on a table whose true effects are known."""

import numpy as np
import pandas as pd
import pytest

from analysis.curve.shape import shapes
from analysis.errors import AnalysisError
from analysis.inference.mean_response import response
from analysis.inference.optimum import INTERIOR, NO_INTERIOR, NOT_IDENTIFIED
from analysis.mixed import fit_mixed
from analysis.questions.plw.estimate import dose_table, linear_against_quadratic
from analysis.questions.tradeoff.estimate import learning_forgetting
from analysis.regression.default_model import default_formula
from analysis.table.cells import ARM, run_means
from analysis.table.frame import from_results, study_rows
from analysis.table.run_panels import panels
from tests.fake_results import TASKS, Truth, default_fit, fake_results

PLWS = (0.0, 0.01, 0.1, 0.5, 1.0)


@pytest.fixture(scope="module")
def frame():
    return from_results(fake_results(seed=2, seeds=5, plws=PLWS))


@pytest.fixture(scope="module")
def fit(frame):
    return default_fit(frame)


@pytest.fixture(scope="module")
def doses(frame, fit):
    table = dose_table(fit, frame, shapes(frame, draws=200))
    return table.set_index(["mode", "task_group", "dataset_type"])


# --- the default model -----------------------------------------------------------------------


def test_the_default_formula_holds_what_varies(frame):
    formula, reasons, _ = default_formula(frame)
    assert formula == (
        "score ~ task * (dataset + adapter) + dataset:seed + wp:mode:task_group:dataset_type + "
        "I(wp^2):curved:mode:task_group:dataset_type + log2_rank:adapter:task + (1 | run)"
    )
    text = " ".join(reasons)
    assert "5 seeds are few: a fixed block" in text
    assert "a line without curvature: boilerplate, special" in text
    assert "One run feeds every task" in text


def keep(frame, **levels):
    for name, level in levels.items():
        frame = frame[frame[name].isin(level)]
    return frame


@pytest.mark.parametrize(
    ("levels", "absent", "present"),
    [
        ({"dataset": ["micro"]}, ["dataset"], ["task * adapter", " + seed + "]),
        ({"adapter": ["full"]}, ["log2_rank", "adapter"], ["task * dataset"]),
        ({"rank": [4]}, ["log2_rank"], ["adapter"]),
        ({"seed": [0]}, ["seed"], ["(1 | run)"]),
        ({"masking": ["instruction"]}, ["wp"], ["adapter"]),
        ({"masking": ["instruction", "none"]}, ["mode", "curved"], ["I(wp^2):task_group"]),
        ({"plw": [0.0, 1.0]}, ["I(wp^2)"], ["wp:mode:task_group"]),
        ({"task": ["micro_facts"]}, ["(1 | run)", "task"], ["dataset + adapter"]),
    ],
)
def test_what_does_not_vary_is_not_in_the_formula(frame, levels, absent, present):
    formula, _, _ = default_formula(keep(frame, **levels))
    assert not [word for word in absent if word in formula]
    assert not [word for word in present if word not in formula]
    fit = default_fit(keep(frame, **levels))
    assert fit.converged
    assert fit.left_out == ()


def test_a_swept_learning_rate_is_in_the_formula():
    results = fake_results()
    swept = results.assign(lr=np.where(results["rank"] == 4, 1e-3, 3e-3) * (1 + results["seed"]))
    formula, reasons, _ = default_formula(from_results(swept))
    assert "task * (dataset + adapter + log10(rate))" in formula
    assert "rate varies: an effect of its own, a line over its logarithm." in reasons


def test_eight_tasks_are_a_population(frame):
    parts = [frame.assign(task=frame["task"].astype(str) + suffix) for suffix in ("", "_2")]
    formula, reasons, _ = default_formula(pd.concat(parts, ignore_index=True))
    assert "(1 + wp | task) + (1 | task:dataset)" in formula
    assert "task_group * (dataset + adapter)" in formula
    assert "log2_rank:adapter:task_group" in formula
    assert any("10 tasks can speak for a population" in reason for reason in reasons)


def test_the_raw_weight_is_available_as_a_scale(frame):
    formula, _, _ = default_formula(frame, dose="effective_plw")
    assert "effective_plw:mode" in formula
    assert "I(effective_plw^2)" in formula
    assert "wp" not in formula.replace("effective_plw", "")


def test_true_effects_lie_in_their_intervals(fit):
    # One fixed table: 12 true values, of which 95 % intervals may miss one or two.
    truth = Truth()
    named = fit.fixef
    expected = {
        "log2_rank:adapter[lora]:task[micro_biography]": truth.per_log2_rank["lora", "target"],
        "log2_rank:adapter[mora]:task[micro_facts]": truth.per_log2_rank["mora", "source"],
        "adapter[T.lora]": truth.adapter["lora", "target"] + 0.5 - truth.adapter["full", "target"],
    }
    for kind, (b1, b2) in truth.dose.items():
        side = {"mc": "mc target", "short": "short target", "long": "long target"}[kind[0]]
        panel = f"mode[none]:task_group[{side}]:dataset_type[{kind[1]}]"
        expected[f"wp:{panel}"] = b1
        expected[f"I(wp ** 2):curved:{panel}"] = b2
    off = [abs(named[name] - value) / fit.se[name] for name, value in expected.items()]
    assert len(off) == 15
    assert np.sum(np.array(off) > 2) <= 2
    assert max(off) < 3.5


def test_variance_components_are_recovered(fit):
    assert fit.random["run"].sd.iloc[0] == pytest.approx(1.0, rel=0.15)
    assert fit.sigma == pytest.approx(1.2, rel=0.05)


# --- dose ------------------------------------------------------------------------------------


def test_a_response_is_the_coefficients_of_its_panel(fit, frame):
    for panel in panels(study_rows(frame)):
        curve = response(fit, panel.rows).quadratic
        where = ":".join(f"{name}[{level}]" for name, level in panel.labels.items())
        assert curve.b1 == pytest.approx(fit.fixef[f"wp:{where}"])
        square = fit.fixef.get(f"I(wp ** 2):curved:{where}", 0.0)
        assert curve.b2 == pytest.approx(square, abs=1e-9)
        assert np.sqrt(curve.cov_22[0, 0]) == pytest.approx(fit.se[f"wp:{where}"])


def test_a_panel_counts_its_own_rows_and_those_at_zero(frame):
    rows = study_rows(frame)
    panel = next(
        p
        for p in panels(rows)
        if p.labels == {"mode": "special", "task_group": "mc source", "dataset_type": "short"}
    )
    short = rows[(rows["dataset"] == "micro_short") & (rows["task_group"] == "mc source")]
    own = short[short["masking"].isin(["instruction", "special"])]
    assert (panel.n, panel.runs, panel.levels) == (len(own), own["run"].nunique(), 1)


def test_a_response_does_not_depend_on_how_the_quadratic_is_written(frame):
    rows = study_rows(frame)
    raw = fit_mixed(rows, "score ~ task + wp + I(wp^2) + (1 | run)")
    poly = fit_mixed(rows, "score ~ task + poly(wp, 2) + (1 | run)")
    a, b = response(raw, rows), response(poly, rows)
    assert (a.quadratic.b1, a.quadratic.b2) == pytest.approx((b.quadratic.b1, b.quadratic.b2))
    assert a.at(0.3).se == pytest.approx(b.at(0.3).se, rel=1e-5)


def test_a_response_is_averaged_over_the_rows_as_they_are(frame):
    rows = study_rows(frame)
    fit = fit_mixed(rows, "score ~ task + wp + I(wp^2) + (1 | run)")
    uneven = pd.concat([rows.head(40), *[rows[rows["task"] == "micro_facts"]] * 3])
    mean = float((fit.matrix(uneven.assign(wp=0.3)) @ fit.fixef).mean())
    assert response(fit, uneven).at(0.3).estimate == pytest.approx(mean)


def test_a_response_that_is_no_quadratic_is_refused(frame):
    rows = study_rows(frame)
    cubic = fit_mixed(rows, "score ~ task + wp + I(wp^2) + I(wp^3)")
    with pytest.raises(AnalysisError, match="not quadratic"):
        response(cubic, rows)
    with pytest.raises(AnalysisError, match="variable=dose: the table has no such column"):
        response(cubic, rows, "dose")


def test_optima_and_verdicts_follow_the_truth(doses):
    verdict = doses["optimum"]
    assert verdict["none", "short target", "short"] == INTERIOR
    assert verdict["none", "long target", "short"] == NO_INTERIOR
    assert verdict["none", "mc target", "long"] == NOT_IDENTIFIED
    assert verdict["special", "mc target", "short"] == NOT_IDENTIFIED
    peak = doses.loc[("none", "short target", "short")]
    assert peak["plw_low"] ** 0.30103 < 0.6 < peak["plw_high"] ** 0.30103
    assert peak["plw_low"] < peak["best_plw"] < peak["plw_high"]
    assert doses.loc[("none", "long target", "short"), "best_plw"] == 1.0


def test_effects_carry_interval_visible_effect_and_equivalence(doses):
    rises = doses.loc[("none", "long target", "short")]
    assert rises["low"] < 12 < rises["high"]
    assert rises["verdict"] == "an effect"
    flat = doses.loc[("none", "short target", "long")]
    assert flat["verdict"] == "no effect beyond the margin"
    assert 0 < flat["mde"] < 2
    # An inverted U: the whole curve has an effect where its far end has little.
    assert doses.loc[("none", "short target", "short"), "p_any"] < 1e-6
    assert (doses["p_holm"] >= doses["p"]).all()


def test_a_panel_without_its_own_start_is_not_estimable(frame):
    # Short data with weights above 0 alone: the curve there hangs in the air.
    gone = (frame["dataset"] == "micro_short") & (frame["wp"] == 0)
    some = keep(frame[~gone], masking=["instruction", "special"])
    found = dose_table(default_fit(some), some).set_index(["dataset_type", "task_group"])
    assert found.loc["short", "effect"].isna().all()
    assert set(found.loc["short", "verdict"]) == {"not estimable"}
    assert found.loc["long", "effect"].notna().all()


@pytest.mark.parametrize("runs", [1, 2, 4, 8, 16, 32])
def test_half_finished_sweeps_give_an_answer_or_one_clear_line(runs):
    results = fake_results()
    keys = np.random.default_rng(runs).permutation(results["train_key"].unique())
    frame = from_results(results[results["train_key"].isin(keys[:runs])])
    for ask in (lambda f: dose_table(default_fit(f), f), learning_forgetting):
        try:
            ask(frame)
        except AnalysisError as error:
            assert "coefficients for" in str(error) or "no trained run" in str(error)  # noqa: PT017


def test_linear_against_quadratic(frame):
    found = linear_against_quadratic(frame)
    assert list(found) == ["any effect", "curvature"]
    assert found["any effect"].df == 24
    assert found["curvature"].df == 8
    assert found["curvature"].p < 1e-6
    flat = Truth(dose={key: (0.0, 0.0) for key in Truth().dose})
    null = linear_against_quadratic(from_results(fake_results(seed=4, truth=flat)))
    assert null["curvature"].p > 0.01


def test_a_run_under_two_names_leaves_every_estimate_as_it_was(frame, doses):
    """The alias stands first and under another mode and weight: it must not count, nor mislead."""
    table = fake_results(seed=2, seeds=5, plws=PLWS)
    again = table[(table["plw"] == 0.0) & (table["adapter"] == "full") & ~table["alias"]]
    again = again.assign(masking="instruction", plw=0.5, alias=True)
    doubled = from_results(pd.concat([again, table], ignore_index=True))
    fit = default_fit(doubled)
    assert fit.n == len(study_rows(frame))
    found = dose_table(fit, doubled).set_index(["mode", "task_group", "dataset_type"])
    np.testing.assert_allclose(found["effect"], doses["effect"])
    np.testing.assert_allclose(found["b2"], doses["b2"])


# --- cells -----------------------------------------------------------------------------------


def test_a_run_counts_once(frame):
    runs = run_means(study_rows(frame))
    assert not runs["run"].duplicated().any()
    assert (runs["tasks"] == len(TASKS)).all()
    one = study_rows(frame)
    key = runs["run"].iloc[7]
    assert runs["score"].iloc[7] == pytest.approx(one.loc[one["run"] == key, "score"].mean())


def test_learning_and_forgetting_against_the_base(frame):
    found = learning_forgetting(frame, ARM).set_index(["dataset", "adapter", "rank"])
    assert len(found) == 10
    rows = study_rows(frame)
    base = frame[frame["is_base"]].set_index("task")["score"]
    own = rows[(rows["dataset"] == "micro") & (rows["adapter"] == "full")]
    change = own["score"] - own["task"].astype(str).map(base.to_dict())
    target = change[own["side"] == "target"].mean()
    source = -change[own["side"] == "source"].mean()
    full = found.loc[("micro", "full", 0)]
    assert full["learning"] == pytest.approx(target)
    assert full["forgetting"] == pytest.approx(source)
    assert (found["learning_low"] < found["learning"]).all()
    # Full tuning forgets 6 points more than LoRA at the middle rank, by construction.
    gap = full["forgetting"] - found.loc[("micro", "lora", 4), "forgetting"]
    assert gap == pytest.approx(6.0, abs=1.2)


def test_learning_and_forgetting_needs_a_base():
    results = fake_results(seeds=1)
    assert learning_forgetting(from_results(results[results["adapter"] != "none"])).empty
