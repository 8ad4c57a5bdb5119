"""The default models, dose effects and cells on a table whose true effects are known."""

import numpy as np
import pandas as pd
import pytest

import ablate
from analysis.curve.shape import shapes
from analysis.errors import AnalysisError
from analysis.inference.estimates import joint
from analysis.inference.mean_response import response
from analysis.inference.optimum import INTERIOR, NO_INTERIOR, NOT_IDENTIFIED
from analysis.mixed import fit_mixed
from analysis.questions.adapters.section import arm_differences
from analysis.questions.plw.across import AGREE, ANY, CURVED, across_model, f_tests, joint_model
from analysis.questions.plw.estimate import dose_table
from analysis.questions.tradeoff.estimate import learning_forgetting
from analysis.regression import second
from analysis.regression.default_model import default_formula
from analysis.regression.model import Request
from analysis.regression.panels import dose_curves, panel_models
from analysis.regression.study import fitted
from analysis.table.cells import ARM, run_means
from analysis.table.frame import from_results, study_rows
from tests.fake_results import TASKS, Truth, default_models, fake_results

PLWS = (0.0, 0.01, 0.1, 0.5, 1.0)
NAMES = ["mode", "task_group", "dataset"]


@pytest.fixture(scope="module")
def frame():
    return from_results(fake_results(seed=2, seeds=5, plws=PLWS))


@pytest.fixture(scope="module")
def models(frame):
    return default_models(frame)


def doses_of(frame, models, tested=()):
    return dose_table(dose_curves(models), tested).set_index(NAMES)


@pytest.fixture(scope="module")
def doses(frame, models):
    return doses_of(frame, models, shapes(frame, draws=200))


# --- the default model -----------------------------------------------------------------------


def test_the_default_formula_holds_what_varies(frame):
    formula, reasons, *_ = default_formula(frame)
    assert formula == (
        "score ~ adapter + log2_rank:adapter + seed + wp:mode + I(wp^2):curved:mode + (1 | cell)"
    )
    text = " ".join(reasons)
    assert "5 seeds are few: a fixed block" in text
    assert "a line without curvature: boilerplate, special" in text
    assert "Every data set, base model and group of tasks has a model of its own" in text
    assert "Cells are a random effect" in text


def keep(frame, **levels):
    for name, level in levels.items():
        frame = frame[frame[name].isin(level)]
    return frame


@pytest.mark.parametrize(
    ("levels", "absent", "present"),
    [
        ({"dataset": ["micro"]}, ["dataset"], ["adapter", " + seed + "]),
        ({"adapter": ["full"]}, ["log2_rank", "adapter"], ["(1 | cell)"]),
        ({"rank": [4]}, ["log2_rank"], ["adapter"]),
        ({"seed": [0]}, ["seed", "cell"], ["adapter"]),
        ({"masking": ["instruction"]}, ["wp"], ["adapter"]),
        ({"masking": ["instruction", "none"]}, ["mode", "curved"], ["I(wp^2)"]),
        ({"plw": [0.0, 1.0]}, ["I(wp^2)"], ["wp:mode"]),
        ({"task": ["micro_facts"]}, ["task"], ["adapter"]),
    ],
)
def test_what_does_not_vary_is_not_in_the_formula(frame, levels, absent, present):
    formula, *_ = default_formula(keep(frame, **levels))
    assert not [word for word in absent if word in formula]
    assert not [word for word in present if word not in formula]
    for model in default_models(keep(frame, **levels)):
        assert model.fit.converged
        assert model.fit.left_out == ()


def test_a_swept_learning_rate_is_in_the_formula():
    results = fake_results()
    swept = results.assign(lr=np.where(results["rank"] == 4, 1e-3, 3e-3) * (1 + results["seed"]))
    formula, reasons, *_ = default_formula(from_results(swept))
    assert "adapter + log10(rate)" in formula
    assert "rate varies: an effect of its own, a line over its logarithm." in reasons


def test_eight_seeds_are_a_population():
    formula, reasons, *_ = default_formula(from_results(fake_results(seeds=8, controls=False)))
    assert formula.endswith("(1 | seed) + wp:mode + I(wp^2):curved:mode + (1 | cell)")
    assert "8 seeds: a random block." in reasons


def expected(model):
    """The true coefficients of a panel's model, by name."""
    truth, labels = Truth(), model.labels
    kind, side = labels["task_group"].split(" ")
    b1, b2 = truth.dose[kind, "short" if labels["dataset"] == "micro_short" else "long"]
    slopes = {f"log2_rank:adapter[{a}]": truth.per_log2_rank[a, side] for a in ("lora", "mora")}
    # A rank of 8 is one doubling above 4, and the middle rank half of one.
    steps = {f"adapter[T.{a}]": truth.adapter[a, side] + slopes[f"log2_rank:adapter[{a}]"] / 2
             - truth.adapter["full", side] for a in ("lora", "mora")}  # fmt: skip
    return slopes | steps | {"wp:mode[none]": b1, "I(wp ** 2):curved:mode[none]": b2}


def test_true_effects_lie_in_their_intervals(models):
    """One fixed table: 48 true values, of which 95 % intervals may miss a few."""
    off = []
    for model in models:
        for name, value in expected(model).items():
            off.append(abs(model.fit.fixef[name] - value) / model.fit.se[name])
    assert len(off) == 48
    assert np.sum(np.array(off) > 2) <= 6
    assert max(off) < 3.8


def test_the_noise_of_a_panel_is_that_of_its_own_runs(models):
    """A run's own effect has SD 1; two tasks of SD 1.2 are averaged in one group, one in others."""
    for model in models:
        tasks = 2 if model.labels["task_group"] == "mc source" else 1
        assert model.fit.sigma == pytest.approx(np.sqrt(1 + 1.44 / tasks), rel=0.16)
        assert model.fit.random["cell"].sd.iloc[0] < 0.6
        assert model.fit.n == len(model.frame) == 35 * 5


# --- one model of all panels -----------------------------------------------------------------


def test_tests_over_all_panels(frame, models):
    found = f_tests(joint_model(models, default_formula(frame).formula)).set_index("question")
    assert found.index.tolist()[:2] == [ANY, CURVED]
    assert found.loc[ANY, "df"] == 32  # 8 panels: a curve, two lines
    assert found.loc[CURVED, "df"] == 8
    assert found.loc[[ANY, CURVED, f"{AGREE}: none"], "p"].max() < 1e-6
    flat = from_results(fake_results(4, truth=Truth(dose=dict.fromkeys(Truth().dose, (0.0, 0.0)))))
    null = f_tests(joint_model(default_models(flat), default_formula(flat).formula))
    assert null["p"].min() > 0.01


def test_the_model_of_all_panels_agrees_with_those_of_its_panels(frame):
    """Without a cell's effect a residual of its own for every panel is all that panels share."""
    formula = default_formula(frame).formula.replace(" + (1 | cell)", "")
    models, _ = panel_models(study_rows(frame), formula, Request())
    joint = joint_model(models, formula)
    for one in dose_curves(models):
        own, l_B = one.response().gain(1.0), joint.points(one.labels).sum(axis=0)
        assert l_B @ joint.fit.fixef.to_numpy() == pytest.approx(own.estimate, abs=1e-6)
        assert np.sqrt(l_B @ joint.fit.cov.to_numpy() @ l_B) == pytest.approx(own.se, rel=1e-4)


# --- dose ------------------------------------------------------------------------------------


def test_a_response_is_the_coefficients_of_its_panel(models):
    for one in dose_curves(models):
        curve, fit = one.response().quadratic, one.reg.fit
        where = f"mode[{one.labels['mode']}]"
        assert curve.b1 == pytest.approx(fit.fixef[f"wp:{where}"])
        square = fit.fixef.get(f"I(wp ** 2):curved:{where}", 0.0)
        assert curve.b2 == pytest.approx(square, abs=1e-9)
        assert np.sqrt(curve.cov_22[0, 0]) == pytest.approx(fit.se[f"wp:{where}"])


def test_a_curve_counts_its_own_runs_and_those_at_zero(frame, models):
    rows = study_rows(frame)
    wanted = {"mode": "special", "dataset": "micro_short", "model": "micro_a",
              "task_group": "mc source"}  # fmt: skip
    one = next(c for c in dose_curves(models) if c.labels == wanted)
    short = rows[(rows["dataset"] == "micro_short") & (rows["task_group"] == "mc source")]
    own = short[short["masking"].isin(["instruction", "special"])]
    assert (one.runs, one.levels) == (own["run"].nunique(), 1)


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
    assert verdict["none", "short target", "micro_short"] == INTERIOR
    assert verdict["none", "long target", "micro_short"] == NO_INTERIOR
    assert verdict["none", "mc target", "micro"] == NOT_IDENTIFIED
    assert verdict["special", "mc target", "micro_short"] == NOT_IDENTIFIED
    peak = doses.loc[("none", "short target", "micro_short")]
    assert peak["plw_low"] ** 0.30103 < 0.6 < peak["plw_high"] ** 0.30103
    assert peak["plw_low"] < peak["best_plw"] < peak["plw_high"]
    assert doses.loc[("none", "long target", "micro_short"), "best_plw"] == 1.0


def test_effects_carry_interval_visible_effect_and_equivalence(doses):
    rises = doses.loc[("none", "long target", "micro_short")]
    assert rises["low"] < 12 < rises["high"]
    assert rises["verdict"] == "an effect"
    flat = doses.loc[("none", "short target", "micro")]
    assert flat["verdict"] == "no effect beyond the margin"
    assert 0 < flat["mde"] < 2
    # An inverted U: the whole curve has an effect where its far end has little.
    assert doses.loc[("none", "short target", "micro_short"), "p_any"] < 1e-6
    assert (doses["p_holm"] >= doses["p"]).all()


def test_a_panel_without_its_own_start_is_not_estimable(frame):
    # Short data with weights above 0 alone: the curve there hangs in the air.
    gone = (frame["dataset"] == "micro_short") & (frame["wp"] == 0)
    some = keep(frame[~gone], masking=["instruction", "special"])
    found = doses_of(some, default_models(some)).reset_index(["mode", "task_group"])
    assert found.loc["micro_short", "effect"].isna().all()
    assert set(found.loc["micro_short", "verdict"]) == {"not estimable"}
    assert found.loc["micro", "effect"].notna().all()


def test_without_replicates_nothing_is_called_anything(frame):
    one = keep(frame, seed=[0])
    found = doses_of(one, default_models(one), shapes(one, draws=50))
    assert not found["replicated"].any()
    assert set(found["verdict"]) == {"undecided"}
    assert found[["effect", "low", "high"]].notna().all(axis=None)
    assert found[["p", "p_any", "best_plw"]].isna().all(axis=None)


@pytest.mark.parametrize("runs", [1, 2, 4, 8, 16, 32])
def test_half_finished_sweeps_give_an_answer_or_one_clear_line(runs):
    results = fake_results()
    keys = np.random.default_rng(runs).permutation(results["train_key"].unique())
    frame = from_results(results[results["train_key"].isin(keys[:runs])])
    for ask in (lambda f: doses_of(f, default_models(f)), learning_forgetting):
        try:
            ask(frame)
        except AnalysisError as error:
            said = ("too few for a model", "coefficients for", "no trained run")
            assert any(words in str(error) for words in said)  # noqa: PT017


def test_panels_that_share_one_curve_by_their_formula_are_not_tested_for_agreeing():
    """One formula for all scores with one curve: all panels' effects are the same contrast."""
    asked = Request(formula="score ~ wp + I(wp^2) + mode + adapter + (1 | run)")
    raw = fake_results(seed=2, plws=PLWS)
    study = fitted(raw, from_results(raw), request=asked)
    found = f_tests(across_model(study))
    assert len(across_model(study).curves) > 1
    assert found["question"].tolist() == [ANY, CURVED]
    assert found["p"].notna().all()
    with pytest.raises(AnalysisError, match="all zero"):
        joint(study.joint.fit, np.zeros((2, len(study.joint.fit.fixef))))


def test_a_panel_whose_runs_all_score_alike_is_lost_in_words_of_a_study(frame):
    flat = frame.copy()
    group = flat["task_group"].astype(str).unique()[0]
    flat.loc[flat["task_group"].astype(str) == group, "score"] = 3.0
    found, lost = panel_models(study_rows(flat), default_formula(flat).formula, Request())
    assert {one.reason for one in lost} == {"every run has the same score"}
    assert {one.labels["task_group"] for one in lost} == {group}
    assert all(model.labels["task_group"] != group for model in found)


def test_a_run_under_two_names_leaves_every_estimate_as_it_was(models, doses):
    """The alias stands first and under another mode and weight: it must not count, nor mislead."""
    table = fake_results(seed=2, seeds=5, plws=PLWS)
    again = table[(table["plw"] == 0.0) & (table["adapter"] == "full") & ~table["alias"]]
    again = again.assign(masking="instruction", plw=0.5, alias=True)
    doubled = from_results(pd.concat([again, table], ignore_index=True))
    found = default_models(doubled)
    assert [m.fit.n for m in found] == [m.fit.n for m in models]
    same = doses_of(doubled, found)
    np.testing.assert_allclose(same["effect"], doses["effect"])
    np.testing.assert_allclose(same["b2"], doses["b2"])


# --- what is not there -----------------------------------------------------------------------

NOTHING = Truth(
    dose=dict.fromkeys(Truth().dose, (0.0, 0.0)), adapter=dict.fromkeys(Truth().adapter, 0.0),
    per_log2_rank={}, run_sd=0.5, residual_sd=0.5,
)  # fmt: skip


def small(truth=NOTHING, *, plws=(0.0, 1.0), **options):
    raw = fake_results(3, plws=plws, truth=truth, controls=False, **options)
    kept = raw["adapter"].isin(["full", "lora"]) & raw["masking"].isin(["none", "instruction"])
    return raw[kept & (raw["dataset"] == "micro_short")]


def test_runs_that_lack_tasks_are_adjusted_for_them_and_named():
    """Nothing is there, and full fine-tuning was not scored on two tasks of other levels."""
    raw = small(seeds=3)
    lost = raw["task"].isin(["micro_pronouns", "micro_biography"]) & (raw["adapter"] == "full")
    study = fitted(raw[~lost], from_results(raw[~lost]))
    table = arm_differences(study)
    assert (table["estimate"].abs() < 2).all()
    assert not (table["verdict"] == "distinguishable").any()
    assert any("were not scored on every task" in text for text in study.in_doubt)
    whole = fitted(raw, from_results(raw))
    assert not any("were not scored on every task" in text for text in whole.in_doubt)


def test_the_second_opinion_is_adjusted_for_missing_tasks_too():
    raw = small(seeds=3, plws=(0.0, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 1.0))
    lost = raw["task"].isin(["micro_pronouns", "micro_biography"]) & (raw["adapter"] == "full")
    study = fitted(raw[~lost], from_results(raw[~lost]))
    again = second.of_study(study, study.rows, "arm", ("full", "lora r4"))
    assert again is not None
    assert again.p > 0.05


def test_a_run_that_lacks_a_task_has_the_mean_of_an_additive_table():
    """Levels of tasks and runs add up exactly: the missing score is as good as there."""
    rows = pd.DataFrame(
        [{"run": r, "task": t, "side": "both", "seed": 0, "dataset": "d", "model": "m",
          "score": 10.0 * i + 3.0 * j} for i, r in enumerate("abc") for j, t in enumerate("xyz")]
    )  # fmt: skip
    whole = run_means(rows).set_index("run")["score"]
    some = run_means(rows.drop(index=[1, 5])).set_index("run")["score"]
    np.testing.assert_allclose(some - some["c"], whole - whole["c"])


def test_comparisons_of_one_seed_have_no_verdict(tmp_path):
    small(Truth(), seeds=1).to_parquet(tmp_path / "results.parquet")
    study = ablate.load(tmp_path)
    compared = study.compare("lora r8", "full")
    assert set(compared["verdict"]) == {"not distinguishable"}
    assert compared["p"].isna().all()
    effects = study.effects()
    assert not (effects["verdict"] == "distinguishable").any()
    assert effects["because"].str.contains("one seed a cell").all()


def test_runs_without_a_seed_are_replicates_where_they_share_a_cell():
    raw = small(Truth(), seeds=3).drop(columns="seed")
    study = fitted(raw, from_results(raw))
    assert study.replicated
    assert all(model.replicated for model in study.panels)
    assert (arm_differences(study)["p"] < 1).any()


def test_arms_that_ran_at_other_weights_are_not_compared():
    raw = small(Truth(), seeds=3)
    raw = raw[(raw["adapter"] == "full") == (raw["wp"] == 0)]
    assert not len(arm_differences(fitted(raw, from_results(raw))))


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
