"""The report of any long table: what it proposes, fits, tells and refuses."""

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from scipy import stats

from ablate.cli import main
from analysis.errors import AnalysisError
from analysis.regression import (
    contrasts,
    equation,
    external,
    headlines,
    methods,
    random_part,
    residual_checks,
)
from analysis.regression.effect_groups import coefficient_text, effects, joint_tests
from analysis.regression.model import Request, analysed, prepared
from analysis.regression.numbers import Numbers
from analysis.regression.propose import propose
from analysis.report.build import build
from analysis.report.page import Page, render
from analysis.table.outcome import one_metric
from benchmarks import external_tables

PLWS = (0.0, 0.01, 0.1, 0.5, 1.0)


def gaussian_table(seed=0):
    rng = np.random.default_rng(seed)
    rows = []
    for task in range(9):
        level = rng.normal(0, 3)
        for plw in PLWS:
            for method in ("base", "new"):
                for _ in range(2):
                    wp = plw**0.30103
                    score = 50 + level - 20 * (wp - 0.5) ** 2 + 3 * (method == "new")
                    rows.append((f"t{task}", plw, method, score + rng.normal(0, 1)))
    return pd.DataFrame(rows, columns=["task", "plw", "method", "points"])


def item_table(seed=1):
    rng = np.random.default_rng(seed)
    ease, rows = rng.normal(0, 1, 30), []
    for run in range(12):
        arm = ("full", "lora", "mora")[run % 3]
        shift = rng.normal(0, 0.4)
        for item in range(30):
            eta = 0.3 + ease[item] + shift + {"full": 0.9, "lora": 0.0, "mora": 0.0}[arm]
            rows.append((arm, run, f"q{item}", int(rng.random() < 1 / (1 + np.exp(-eta)))))
    return pd.DataFrame(rows, columns=["arm", "run", "item", "correct"])


def beta_table(seed=2):
    rng = np.random.default_rng(seed)
    rows = []
    for task in range(10):
        level = rng.normal(0.4, 0.5)
        for method in ("a", "b"):
            for _ in range(4):
                mu = 1 / (1 + np.exp(-(level + 0.5 * (method == "b"))))
                rows.append((f"t{task}", method, rng.beta(30 * mu, 30 * (1 - mu))))
    return pd.DataFrame(rows, columns=["task", "method", "accuracy"])


def simple(n=40, seed=3):
    rng = np.random.default_rng(seed)
    x, arm = rng.normal(size=n), np.array(["a", "b"])[np.arange(n) % 2]
    return pd.DataFrame({"arm": arm, "x": x, "y": x + (arm == "b") + rng.normal(size=n)})


def proposed(table, score, **options):
    return propose(prepared(table, score), **options)


def choice(found, column):
    return next(c for c in found.choices if c.column == column)


# -- the proposal -----------------------------------------------------------------------------


def test_a_grid_of_tasks_and_weights_becomes_a_quadratic_with_random_tasks():
    found = proposed(gaussian_table(), "points")
    groups = "(1 + wp | task) + (1 | task:method)"  # tasks answer to both in their own way
    assert found.formula == f"points ~ method + wp + I(wp^2) + {groups}"
    assert found.family == "gaussian"
    assert "wp = PLW^0.30103" in choice(found, "plw").reason
    assert all(c.reason for c in found.choices)


def test_items_of_numbered_runs_become_a_binomial_with_crossed_effects():
    found = proposed(item_table(), "correct")
    formula = "correct ~ arm + (1 | run) + (1 | item) + (1 | item:arm)"
    assert (found.formula, found.family) == (formula, "binomial")


def test_items_numbered_anew_in_every_task_are_nested_in_it():
    table = item_table().assign(task=lambda d: np.where(d["run"] % 2, "one", "two"))
    assert "(1 | task:item)" in proposed(table, "correct").formula
    own = table.assign(item=table["task"] + table["item"])
    assert "(1 | item)" in proposed(own, "correct").formula


@pytest.mark.parametrize(
    ("scores", "extra", "family", "weights"),
    [
        ([0.0, 1.0] * 20, {}, "binomial", None),
        (np.linspace(0.1, 0.9, 40), {}, "beta", None),
        (np.linspace(0.0, 0.9, 40), {}, "gaussian", None),
        (np.linspace(10, 90, 40), {}, "gaussian", None),
        (np.arange(40) / 40, {"n_items": 40}, "binomial", "n_items"),
        (np.linspace(0.1, 0.9, 40), {"n_items": 40}, "beta", None),
    ],
)
def test_the_family_is_what_the_scores_suggest(scores, extra, family, weights):
    table = simple().assign(y=scores, **extra)
    found = proposed(table, "y")
    assert (found.family, found.weights) == (family, weights)
    assert choice(found, "family").reason


@pytest.mark.parametrize(
    ("column", "values", "used", "reason"),
    [
        ("k", [1] * 40, "left out", "does not vary"),
        ("copy", ["u", "v"] * 20, "left out", "says the same as arm"),
        ("se", np.linspace(0.1, 0.2, 40), "left out", "measurement"),
        ("rank", [2, 8, 32, 128] * 10, "fixed: log2(rank)", "doubling"),
        ("seed", [0, 1, 1, 0] * 10, "fixed: C(seed)", "block"),
        ("seed", list(range(20)) * 2, "random: (1 | seed)", "population"),
        ("run", list(range(40)), "left out", "residual"),
        ("flag", [True, False, False, True] * 10, "fixed: flag", "factor"),
        ("my col", list("xyzw") * 10, "fixed: `my col`", "factor"),
        ("class", list("xyzw") * 10, "fixed: `class`", "factor"),
        ("half", [1.0, 2.0] + [np.nan] * 38, "left out", "missing in 38"),
        ("a`b", list("xyzw") * 10, "left out", "backtick"),
    ],
)
def test_every_column_gets_the_part_its_values_call_for(column, values, used, reason):
    found = proposed(simple().assign(**{column: values}), "y")
    assert choice(found, column).used == used
    assert reason in choice(found, column).reason
    assert analysed(simple().assign(**{column: values}), Request(score="y")).fit.converged


COST = {"a": 1e6, "b": 1e9, "c": 1e6}
REDUNDANT = {
    "a number": {"cost": lambda arm: arm.map(COST)},
    "a coarser spelling": {"kind": lambda arm: arm.map({"a": "Full", "b": "LoRA", "c": "LoRA"})},
}


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("kind", REDUNDANT)
def test_a_column_that_others_determine_is_left_out_and_blanks_nothing(kind, first):
    rng = np.random.default_rng(4)
    arm = pd.Series(np.resize(list("abc"), 60))
    ((name, made),) = REDUNDANT[kind].items()
    own = {"arm": arm, "lr": np.resize([1.0, 1.0, 1.0, 2.0, 2.0, 2.0], 60)}
    table = pd.DataFrame({name: made(arm)} | own if first else own | {name: made(arm)})
    table["y"] = rng.normal(size=60)
    reg = analysed(table, Request(score="y"))
    assert choice(reg.proposal, name).reason.startswith("determined by arm")
    alone = analysed(table.drop(columns=name), Request(score="y"))
    pd.testing.assert_frame_equal(contrasts.pair_rows(reg), contrasts.pair_rows(alone))
    assert np.isfinite(contrasts.slope_rows(reg)["estimate"]).all()


def test_sums_of_columns_are_determined_and_times_since_1970_are_not():
    rng = np.random.default_rng(4)
    table = pd.DataFrame({
        "arm": np.resize(list("abc"), 60), "steps": rng.integers(0, 9, 60),
        "warmup": rng.integers(0, 9, 60), "moment": 1.79e9 + np.arange(60),
        "y": rng.normal(size=60),
    })  # fmt: skip
    found = proposed(table.assign(total=table["steps"] + table["warmup"]), "y")
    assert choice(found, "total").reason.startswith("determined by steps, warmup:")
    assert found.formula == "y ~ arm + steps + warmup"
    assert "time stamp" in choice(found, "moment").reason
    formula = "y ~ arm + moment"
    late, early = (
        contrasts.slope_rows(analysed(t, Request(formula=formula)))
        for t in (table, table.assign(moment=np.arange(60)))
    )
    np.testing.assert_allclose(late["estimate"], early["estimate"], rtol=1e-5)
    np.testing.assert_allclose(late["se"], early["se"], rtol=1e-5)


def test_what_large_numbers_beside_it_leave_undetermined_stays_missing():
    table = simple().assign(half=lambda d: d["arm"].map({"a": "x", "b": "y"}))
    table["moment"] = 1.79e9 + np.arange(40) ** 2
    reg = analysed(table, Request(formula="y ~ half + arm + moment"))
    assert contrasts.pair_rows(reg)["estimate"].isna().all()


def test_a_table_too_small_for_its_columns_gets_a_simpler_model_that_says_so(tmp_path):
    rng = np.random.default_rng(0)
    table = pd.DataFrame({f"x{i}": rng.normal(size=10).round(1) for i in range(30)})
    table = table.assign(y=rng.normal(size=10))
    found = proposed(table, "y")
    assert found.formula == "y ~ x0 + x1 + x2 + x3"
    assert len(found.simpler) == 26
    page = build(table, tmp_path, score="y").read_text(encoding="utf-8")
    assert "A simpler model than the table suggests." in page
    formula = "y ~ " + " + ".join(f"x{i}" for i in range(30))
    with pytest.raises(AnalysisError, match="coefficients for 10 rows"):
        build(table, tmp_path / "own", score="y", formula=formula)


def test_the_score_may_be_told_by_its_name_or_by_the_formula():
    assert analysed(beta_table(), Request()).score == "accuracy"
    assert analysed(simple(), Request(formula="y ~ arm")).score == "y"
    found = analysed(beta_table(), Request(formula="logit(accuracy) ~ method + (1 | task)"))
    assert (found.score, found.family, found.logit) == ("accuracy", "gaussian", True)


# -- the numbers ------------------------------------------------------------------------------


def test_joint_tests_of_a_balanced_table_are_the_analysis_of_variance():
    rng = np.random.default_rng(4)
    table = pd.DataFrame({"g": list("abc") * 12})
    table["y"] = rng.normal(size=36) + (table["g"] == "c")
    row = joint_tests(analysed(table, Request(formula="y ~ g"))).iloc[0]
    truth = stats.f_oneway(*(own["y"] for _, own in table.groupby("g")))
    assert row["F"] == pytest.approx(truth.statistic)
    assert row["p"] == pytest.approx(truth.pvalue)
    assert row["fit_status"] == "converged"


def test_a_curve_is_one_effect_and_an_interaction_another():
    reg = analysed(gaussian_table(), Request(formula="points ~ method * wp + I(wp^2) + (1 | task)"))
    assert [e.label for e in effects(reg.fit)] == ["method", "wp", "method × wp"]
    assert joint_tests(reg)["coefficients"].tolist() == [1, 2, 1]


def test_pairs_of_a_binomial_are_differences_of_the_means_on_both_scales():
    reg = analysed(item_table(), Request(margin=0.5))
    means, pairs = contrasts.mean_rows(reg).set_index("level"), contrasts.pair_rows(reg)
    for row in pairs.to_dict("records"):
        a, b = (means.loc[n] for n in row["contrast"].split(" − "))
        assert row["estimate"] == pytest.approx(a["estimate"] - b["estimate"])
        assert row["odds_ratio"] == pytest.approx(np.exp(row["estimate"]))
        assert row["difference"] == pytest.approx(a["response"] - b["response"])
        assert row["difference_low"] < row["difference"] < row["difference_high"]
    assert set(pairs["verdict"]) <= {"no effect beyond the margin", "a small effect"}
    assert means["response"].between(0, 1).all()


def test_pairs_within_a_factor_that_interacts_are_named_and_right():
    rng = np.random.default_rng(5)
    table = pd.DataFrame({"a": np.repeat(list("uv"), 40), "b": [*list("xyz" * 26), "x", "y"]})
    table["y"] = rng.normal(size=80) + 2 * ((table["a"] == "v") & (table["b"] == "z"))
    pairs = contrasts.pair_rows(analysed(table, Request(formula="y ~ a * b")))
    cell = table.groupby(["a", "b"])["y"].mean()
    row = pairs[(pairs["factor"] == "a") & (pairs["within"] == "b z")].iloc[0]
    assert row["estimate"] == pytest.approx(cell["u", "z"] - cell["v", "z"])


def test_the_random_part_has_intervals_tests_and_shares():
    reg = analysed(gaussian_table(), Request(formula="points ~ method + wp + (1 | task)"))
    rows = random_part.variance_rows(reg).set_index("group")
    assert (rows["low"] < rows["sd"]).all()
    assert (rows["sd"] < rows["high"]).all()
    assert rows["share"].sum() == pytest.approx(1)
    test = random_part.term_rows(reg).iloc[0]
    assert test["p"] == pytest.approx(stats.chi2.sf(test["chi2"], 1) / 2)
    assert test["fit_status"] == "converged"


def test_what_is_computed_is_settled_by_the_size_of_a_fit_not_by_the_clock(monkeypatch):
    reg = analysed(gaussian_table(), Request(formula="points ~ method + wp + (1 | task)"))
    monkeypatch.setattr("time.perf_counter", None)
    assert 1e-4 < random_part.seconds(reg.fit) < 1e-3
    binomial = analysed(item_table(), Request())
    assert random_part.seconds(binomial.fit) > random_part.seconds(reg.fit)


def test_a_slope_is_tested_apart_from_its_term():
    formula = "points ~ method + wp + I(wp^2) + (1 + wp | task)"
    reg = analysed(gaussian_table(), Request(formula=formula))
    names = [name for name, _ in random_part.smaller(reg.asked)]
    assert names == ["slope of wp over task", "(1 + wp | task)"]


def test_a_wald_interval_of_a_standard_deviation_holds_the_estimate():
    rows = random_part.variance_rows(analysed(item_table(), Request()))
    assert rows["group"].tolist() == ["run", "item"] or rows["group"].tolist() == ["item", "run"]
    assert ((rows["low"] < rows["sd"]) & (rows["sd"] < rows["high"])).all()


def bowl(seed=0):
    """A loss that is lowest at a middle learning rate, at another level for each optimizer."""
    rng = np.random.default_rng(seed)
    rows = [(o, 10.0**-k, s) for o in ("adamw", "lion") for k in range(2, 6) for s in range(3)]
    table = pd.DataFrame(rows, columns=["optimizer", "lr", "seed"])
    bend = (np.log10(table["lr"]) + 3.5) ** 2
    noise = rng.normal(0, 0.02, len(table))
    return table.assign(loss=2 + 0.1 * bend - 0.05 * (table["optimizer"] == "lion") + noise)


def test_a_square_is_tested_also_where_interactions_stand_behind_it():
    table = bowl().assign(depth=lambda t: np.random.default_rng(1).normal(0, 1, len(t)))
    formula = "loss ~ optimizer + log2(lr) + optimizer:depth"
    (found,) = residual_checks.bends(analysed(table, Request(score="loss", formula=formula)))
    by_hand = smf.ols(
        "loss ~ optimizer + x + I(x**2) + optimizer:depth",
        table.assign(x=np.log2(table["lr"])),
    ).fit()
    assert found.column == "lr"
    assert found.t == pytest.approx(by_hand.tvalues["I(x ** 2)"], rel=1e-6)


def test_a_line_that_the_data_bend_over_is_told_with_its_remedy():
    reg = analysed(bowl(), Request(score="loss", formula="loss ~ optimizer + log2(lr)"))
    (line,) = [item for item in headlines.trust(reg) if item.tag == "residuals"]
    assert line.tone == "warn"
    assert "The score bends over lr" in line.text
    remedy = re.search(r"add (\S+) to the formula", line.text)[1]
    again = analysed(bowl(), Request(score="loss", formula=f"{reg.fit.formula} + {remedy}"))
    rows = residual_checks.check_rows(again, residual_checks.residuals(again))
    assert not rows["check"].str.contains("curvature").any()
    square = smf.ols("loss ~ optimizer + x + I(x**2)", bowl().assign(x=np.log2(bowl()["lr"]))).fit()
    found = residual_checks.check_rows(reg, residual_checks.residuals(reg)).set_index("check")
    row = found.loc["curvature over lr: t of its square"]
    assert (row["value"], row["p"]) == pytest.approx(
        (square.tvalues["I(x ** 2)"], square.pvalues["I(x ** 2)"])
    )


def test_a_straight_line_is_seldom_called_bent():
    bent = 0
    for seed in range(40):
        table = bowl(seed)
        table["loss"] -= 0.1 * (np.log10(table["lr"]) + 3.5) ** 2
        reg = analysed(table, Request(score="loss", formula="loss ~ optimizer + log2(lr)"))
        rows = residual_checks.check_rows(reg, residual_checks.residuals(reg))
        bent += rows["words"].str.startswith("The score bends").any()
    assert bent <= 6  # binomial with 5 %: beyond it in 1.4 % of draws


def test_the_square_is_tested_also_where_interactions_stand_behind_it():
    """p is statsmodels' for the square, of the same model without random effects."""
    table = bowl().assign(x=lambda d: np.resize([0.0, 1.0, 2.0], len(d)))
    formula = "loss ~ log2(lr) + optimizer * x"
    reg = analysed(table, Request(score="loss", formula=formula))
    rows = residual_checks.check_rows(reg, residual_checks.residuals(reg)).set_index("check")
    ours = rows.loc["curvature over lr: t of its square", "p"]
    design = "loss ~ np.log2(lr) + I(np.log2(lr) ** 2) + optimizer * x"
    theirs = smf.ols(design, table).fit()
    assert ours == pytest.approx(theirs.pvalues["I(np.log2(lr) ** 2)"], rel=1e-6)


def test_of_a_loss_the_lowest_level_is_the_best():
    reg = analysed(bowl(), Request(score="loss", formula="loss ~ optimizer + log2(lr)"))
    table = headlines.best_levels(reg, Numbers.of(reg))
    row = table.frame.iloc[0]
    assert row["best"] == "lion"
    assert row["low"] < row["corrected"] < row["high"]
    assert "Lower is taken as better" in table.note
    up = analysed(bowl().assign(loss=lambda d: -d["loss"]).rename(columns={"loss": "acc"}),
                  Request(score="acc", formula="acc ~ optimizer + log2(lr)"))  # fmt: skip
    other = headlines.best_levels(up, Numbers.of(up)).frame.iloc[0]
    assert [row["low"], row["high"]] == pytest.approx([-other["high"], -other["low"]])


@pytest.mark.parametrize("higher", [True, False])
def test_which_way_a_score_is_better_may_be_said(higher):
    """Of a name that says nothing, and against one that does."""
    found = []
    for name in ("gap", "loss"):
        asked = Request(name, f"{name} ~ optimizer + log2(lr)", higher_is_better=higher)
        reg = analysed(bowl().rename(columns={"loss": name}), asked)
        found.append(headlines.best_levels(reg, Numbers.of(reg)))
    assert {table.frame.iloc[0]["best"] for table in found} == {"adamw" if higher else "lion"}
    word = "Higher" if higher else "Lower"
    assert all(f"{word} is taken as better, as was asked." in table.note for table in found)
    with pytest.raises(AnalysisError, match="higher_is_better=no: must be true or false"):
        analysed(bowl(), Request("loss", higher_is_better="no"))  # type: ignore[arg-type]


def test_a_table_whose_score_has_no_telling_name_says_which_columns_it_may_be():
    with pytest.raises(AnalysisError, match=r"^score: no column says by its name .*loss") as caught:
        analysed(bowl().drop(columns="optimizer"), Request())
    assert "score=score" not in str(caught.value)


@pytest.mark.parametrize("make", [item_table, beta_table])
def test_quantile_residuals_of_a_true_model_are_normal(make):
    found = residual_checks.residuals(analysed(make(), Request()))
    assert abs(found.mean()) < 0.15
    assert 0.8 < found.std() < 1.15
    assert stats.kstest(found, "norm").pvalue > 0.01


def test_a_singular_random_part_is_simplified_and_both_fits_are_named(tmp_path):
    table = gaussian_table()  # its tasks have no slopes of their own
    formula = "points ~ method + wp + I(wp^2) + (1 + wp | task)"
    reg = analysed(table, Request(formula=formula))
    assert reg.steps
    assert reg.asked.singular
    assert not reg.fit.singular
    page = build(table, tmp_path, formula=formula).read_text(encoding="utf-8")
    both = pd.read_csv(tmp_path / "tables" / "ladder.csv")
    assert both["formula"].tolist() == [formula, reg.fit.formula]
    assert "The random part was simplified." in page
    status = pd.read_csv(tmp_path / "tables" / "coefficients.csv")["fit_status"]
    assert set(status) == {"converged, simplified"}


@pytest.mark.parametrize(
    ("table", "df", "rule"),
    [
        (gaussian_table(), None, "kenward-roger"),
        (gaussian_table(), "satterthwaite", "satterthwaite"),
        (simple().rename(columns={"y": "points"}), None, "satterthwaite"),
        (item_table().rename(columns={"correct": "points"}), None, "normal"),
    ],
)
def test_the_rule_for_degrees_of_freedom_is_the_affordable_one(table, df, rule):
    assert analysed(table, Request(score="points", df=df)).df == rule


# -- the equation -----------------------------------------------------------------------------


def test_the_equation_of_a_mixed_model():
    formula = "points ~ method * wp + I(wp^2) + (1 + wp | task)"
    reg = SimpleNamespace(
        **{"fit": analysed(gaussian_table(), Request(formula=formula)).asked},
        response="points", proposal=SimpleNamespace(weights=None),
    )  # fmt: skip
    text = equation.latex(equation.equation(reg))
    assert r"\text{points}_{i} &= \beta_{0} + \alpha_{\text{method} [ i ]}" in text
    assert r"\beta_{1} \text{wp}_{i}" in text
    assert r"\text{wp}_{i}^{2}" in text
    assert r"u_{1 , \text{task} [ i ]} \text{wp}_{i}" in text
    assert r"\Sigma_{\text{task}}" in text
    assert text.count("{") == text.count("}")


def test_families_have_their_own_laws():
    items = analysed(item_table(), Request())
    assert "Bernoulli" in equation.latex(equation.equation(items))
    beta = analysed(beta_table(), Request())
    assert r"\text{Beta} ( \mu_{i} \phi" in equation.latex(equation.equation(beta))


# -- the page ---------------------------------------------------------------------------------

NUMBER = re.compile(r"(?<![\w^.])[−-]?\d[\d,]*(?:\.\d+)*(?:e[+−-]?\d+)?%?")
TABLES = {
    "gaussian": (gaussian_table, {"score": "points", "margin": 0.5}),
    "binomial": (item_table, {}),
    "beta": (beta_table, {"margin": 0.02}),
}


@pytest.fixture(scope="module", params=list(TABLES))
def report(request, tmp_path_factory):
    make, options = TABLES[request.param]
    out = tmp_path_factory.mktemp(request.param)
    build(make(), out, **options)
    return request.param, out, (out / "index.html").read_text(encoding="utf-8")


def section_of(page, key):
    return re.search(rf'<section id="{key}">(.*?)</section>', page, re.DOTALL)[1]


def plain(text):
    hidden = r'<svg.*?</svg>|<details class="table".*?</details>|<summary>.*?</summary>'
    text = re.sub(hidden, " ", text, flags=re.DOTALL)
    text = re.sub(r'<span class="(?:sources|files)">.*?</span>', " ", text, flags=re.DOTALL)
    return re.sub(r"<[^>]+>", " ", text).replace("&#39;", "'")


def cells(page, name):
    found = re.search(rf'<details class="table" id="table-{name}".*?</details>', page, re.DOTALL)[0]
    return re.findall(r"<td[^>]*>(.*?)</td>", found, re.DOTALL)


def numbers(text):
    return {n.rstrip(",").rstrip(".") for n in NUMBER.findall(text)}


def test_a_report_has_its_sections(report):
    kind, _, page = report
    sections = re.findall(r'<section id="([^"]+)"', page)
    curve = ["plw"] if kind == "gaussian" else []
    slopes = ["slopes"] if kind == "gaussian" else []
    assert sections == ["answer", "explore", "table", *curve, "means", *slopes, "model",
                        "coefficients", "variances", "influence", "diagnostics",
                        "methods"]  # fmt: skip


def test_every_number_of_the_answer_stands_in_its_table(report):
    """What is drawn and said of the effects is what the table of the first screen holds."""
    _, _, page = report
    said = numbers(re.search(r"(?s)<p>.*?</p>", section_of(page, "answer"))[0].replace("95 %", ""))
    known = numbers(" ".join(cells(page, "headlines") + cells(page, "best_levels")))
    estimates = {n for n in said if "." in n}
    assert estimates
    values = [abs(float(n.replace("−", "-"))) for n in known]
    for text in (n.lstrip("+−-") for n in estimates):  # an interval is rounded as its estimate is
        last = 10.0 ** -len(text.partition(".")[2])
        assert any(abs(float(text) - value) < 0.51 * last + 5e-3 * value for value in values), text


def test_every_number_of_the_methods_stands_in_their_table(report):
    _, _, page = report
    said = numbers(plain(section_of(page, "methods")))
    known = numbers(" ".join(cells(page, "methods")))
    assert len(said) > 6
    assert said <= known, said - known


def test_the_check_of_numbers_can_fail():
    assert numbers("−1.5 and 20 % of 1,800 rows, 3.9e-09") == {"−1.5", "20", "1,800", "3.9e-09"}


def test_every_table_with_a_p_value_says_how_the_fit_went(report):
    _, out, _ = report
    seen = 0
    for path in (out / "tables").glob("*.csv"):
        columns = list(pd.read_csv(path).columns)
        if {"p", "p_holm", "p_tukey", "p_equivalence"} & set(columns) and path.stem != (
            "residual_checks"
        ):
            assert "fit_status" in columns, path.stem
            seen += 1
    assert seen >= 4


def test_the_methods_can_be_pasted(report):
    kind, out, page = report
    text = (out / "methods.tex").read_text(encoding="utf-8")
    assert text.count(r"\begin{align*}") == text.count(r"\end{align*}") == 1
    bare = re.sub(r"\\[{}]", "", text)
    assert bare.count("{") == bare.count("}")
    assert 'href="methods.tex"' in page
    words = {"gaussian": "Gaussian", "binomial": "binomial", "beta": "beta"}
    assert f"with a {words[kind]} mixed model" in text


def test_dropped_rows_are_counted_in_the_methods():
    table = gaussian_table()
    table.loc[[0, 1, 2], "points"] = np.nan
    table.loc[[3, 4], "method"] = None
    reg = analysed(table, Request(score="points"))
    assert reg.dropped == 5
    assert "; 5 rows with a missing value were left out" in methods.sentences(reg)[0]


def test_an_effect_is_found_where_there_is_one_and_no_more(report):
    kind, _, page = report
    found = plain(section_of(page, "answer"))
    if kind == "gaussian":
        assert re.search(r"distinguishable from zero: .*(new − base|base − new)", found)
        assert "the best PLW is" in found
    if kind == "binomial":
        assert re.search(r"distinguishable from zero: .*full", found)


# -- bad tables -------------------------------------------------------------------------------


def constant(table):
    return table.assign(y=1.0)


BAD = {
    "no such score": (simple(), {"score": "yy"}, "Did you mean 'y'"),
    "no such column": (simple(), {"formula": "y ~ armm"}, "Did you mean 'arm'"),
    "no such weights": (simple(), {"score": "y", "weights": "xx"}, "Did you mean 'x'"),
    "negative weights": (simple(), {"score": "y", "weights": "x"}, "must be a positive number"),
    "infinite weights": (
        simple().assign(w=[np.inf, *[1.0] * 39]), {"score": "y", "weights": "w"}, "positive number",
    ),
    "missing weights": (
        simple().assign(w=[np.nan, *[1.0] * 39]), {"score": "y", "weights": "w"},
        "missing in 1 of 40 rows",
    ),
    "weights too far apart": (
        simple().assign(w=[1e300, *[1e-300] * 39]), {"score": "y", "weights": "w"}, "positive",
    ),
    "no mean": (simple().assign(g=np.resize(list("abcde"), 40)), {"formula": "y ~ 0 + (1 | g)"},
                "no fixed effect"),
    "root of a negative": (simple(), {"formula": "sqrt(y) ~ arm"}, "not finite in every row"),
    "one row": (simple(1), {"score": "y"}, "the same in every row"),
    "measurements alone": (simple()[["x", "y"]], {"score": "y"}, "varies in a usable way"),
    "one level": (simple().assign(k="u"), {"formula": "y ~ arm + k"}, "k is u in every row"),
    "one group": (simple().assign(g="u"), {"formula": "y ~ arm + (1 | g)"}, "g is u in every row"),
    "a group a row": (
        simple().assign(g=range(40)), {"formula": "y ~ arm + (1 | g)"}, "effects for 40 rows",
    ),
    "constant score": (constant(simple()), {"score": "y"}, "the same in every row"),
    "empty score": (simple().assign(y=np.nan), {"score": "y"}, "every row is empty"),
    "text score": (simple(), {"score": "arm"}, "'a' is not a number"),
    "empty column": (simple().assign(x=np.nan), {"formula": "y ~ x"}, "no row has all"),
    "nothing varies": (simple()[["y"]].assign(k=1), {"score": "y"}, "varies in a usable way"),
    "beyond the range": (simple(), {"score": "y", "family": "beta"}, "takes scores from 0 to 1"),
    "percent": (
        simple().assign(y=np.linspace(1, 99, 40)), {"score": "y", "family": "binomial"},
        "percentages are to be divided by 100",
    ),
    "shares without trials": (
        beta_table(), {"score": "accuracy", "family": "binomial"}, "weights= the column",
    ),
    "exact ends": (
        simple().assign(y=np.linspace(0, 1, 40)), {"score": "y", "family": "beta"}, "beta_squeezed",
    ),
    "family": (simple(), {"score": "y", "family": "betta"}, "Did you mean 'beta'"),
    "df": (simple(), {"score": "y", "df": "kenward"}, "Did you mean 'kenward-roger'"),
    "df of a binomial": (item_table(), {"df": "satterthwaite"}, "df=normal alone"),
    "margin": (simple(), {"score": "y", "margin": -1.0}, "must be a positive number"),
    "too many": (
        simple(12), {"formula": "y ~ poly(x, 9) * arm"}, "nothing is left to tell the noise from",
    ),
    "repeated exactly": (
        pd.concat([simple(6)] * 2, ignore_index=True).assign(g=lambda d: d["x"].astype(str)),
        {"formula": "y ~ 1 + (1 | g)"}, "are rows duplicated?",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(BAD))
def test_a_bad_table_is_one_clear_line_and_leaves_no_report(name, tmp_path):
    table, options, said = BAD[name]
    with pytest.raises(AnalysisError) as caught:
        build(table, tmp_path / "out", **options)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "index.html").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "cannot be read"),
        ("y,arm\n", "has no rows"),
        ("y,arm\nhigh,a\nlow,b\n", "is not a number"),
        ("y,arm\n1,a\n2,b\n", "coefficients for 2 rows"),
    ],
)
def test_a_bad_file_ends_with_status_two_and_one_line(tmp_path, capsys, text, said):
    path = tmp_path / "table.csv"
    path.write_text(text)
    arguments = ["report", str(path), "--formula", "y ~ arm", "--out", str(tmp_path / "out")]
    assert main(arguments) == 2
    told = capsys.readouterr().err
    assert said in told
    assert len(told.strip().splitlines()) == 1


def test_the_verb_writes_a_report_with_its_options(tmp_path, capsys):
    item_table().to_csv(tmp_path / "items.csv", index=False)
    out = tmp_path / "out"
    options = ["--score", "correct", "--family", "binomial", "--margin", "0.1", "--df", "normal"]
    assert main(["report", str(tmp_path / "items.csv"), "--out", str(out), *options]) == 0
    assert "index.html" in capsys.readouterr().out
    assert (out / "tables" / "equivalence.csv").exists()


def test_repeated_rows_and_odd_names_are_told_and_survived(tmp_path):
    table = pd.concat([simple(), simple().head(5)]).rename(columns={"arm": "the arm & <co>"})
    page = build(table, tmp_path, score="y").read_text(encoding="utf-8")
    assert "Repeated rows." in page
    assert "<co>" not in page


def test_separated_items_are_named_before_anything_else(tmp_path):
    table = item_table()
    table.loc[table["arm"] == "full", "correct"] = 1
    formula = "correct ~ arm + (1 | item)"
    page = build(table, tmp_path, formula=formula).read_text(encoding="utf-8")
    assert "Separated." in page
    status = pd.read_csv(tmp_path / "tables" / "coefficients.csv")["fit_status"]
    assert status.str.startswith("SEPARATED").all()


def test_weights_of_rows_reach_the_fit():
    table = simple().assign(w=np.tile([1.0, 4.0], 20))
    reg = analysed(table, Request(formula="y ~ x", weights="w"))
    X = np.column_stack([np.ones(40), table["x"]])
    w = table["w"].to_numpy()
    truth = np.linalg.solve(X.T @ (w[:, None] * X), X.T @ (w * table["y"]))
    np.testing.assert_allclose(reg.fit.fixef, truth)
    assert "w" in equation.latex(equation.equation(reg))


# -- tables that a formula or a page could trip over ------------------------------------------

NAMES = ["a ( b )", "x , y", "lr.scale (1e-4)", "log (params)", "I (x)", "x^2", "a|b", "a:b", "ünï"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_in_backticks_is_taken_as_it_stands(name, tmp_path):
    rng = np.random.default_rng(0)
    x = rng.choice([1.0, 2.5, 4.0], 40)
    table = pd.DataFrame({name: x, "task": [f"t{i % 10}" for i in range(40)]})
    table["score"] = 2 * x + rng.normal(size=40)
    reg = analysed(table, Request(formula=f"score ~ `{name}`"))
    assert reg.fit.fixef.to_numpy() == pytest.approx(np.polyfit(x, table["score"], 1)[::-1])
    build(table, tmp_path)
    assert name in pd.read_csv(tmp_path / "tables" / "slopes.csv")["covariate"].tolist()


def test_a_column_called_score_beside_another_score_is_a_predictor():
    table = simple().assign(score=np.resize([1.0, 2.0, 4.0], 40))
    same = table.rename(columns={"score": "other"})
    for options in ({"score": "y"}, {"formula": "y ~ arm + SCORE"}):
        found = []
        for name, rows in (("score", table), ("other", same)):
            own = {k: v.replace("SCORE", name) for k, v in options.items()}
            found.append(analysed(rows, Request(**own)).fit.fixef.to_numpy())
        np.testing.assert_allclose(*found)
    assert choice(proposed(table, "y"), "score").used == "fixed: score"


def test_levels_with_a_minus_in_their_names_are_told_apart(tmp_path):
    levels = ["a", "a - b", "b - c", "c"]
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"arm": np.resize(levels, 80), "y": rng.normal(size=80)})
    table["y"] += table["arm"].map(dict(zip(levels, (0.0, 3.0, 6.0, 9.0), strict=True)))
    plain = table.assign(arm=table["arm"].map(dict(zip(levels, "pqrs", strict=True))))
    ours, theirs = (contrasts.pair_rows(analysed(t, Request())) for t in (table, plain))
    np.testing.assert_allclose(ours["estimate"], theirs["estimate"])
    assert ours["contrast"].is_unique
    assert "a − (b - c)" in ours["contrast"].tolist()
    page = build(table.replace({"arm": {"a - b": "a − b"}}), tmp_path).read_text(encoding="utf-8")
    assert "(a − b) − c" in page


def test_infinite_scores_are_called_infinite():
    reg = analysed(simple().assign(y=lambda d: d["y"].where(d.index > 1, np.inf)), Request())
    assert "; 2 rows with an infinite score were left out" in methods.sentences(reg)[0]


def test_a_table_of_groups_alone_has_a_mean_and_its_interval(tmp_path):
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"task": [f"t{i % 10}" for i in range(60)]})
    table["score"] = 3 + rng.normal(size=60) + np.repeat(rng.normal(size=6), 10)
    reg = analysed(table, Request())
    assert reg.fit.formula.startswith("score ~ 1")
    page = build(table, tmp_path).read_text(encoding="utf-8")
    said = re.search(r"Mean of score: (−?[\d.]+) \(95 % interval", page)[1].replace("−", "-")
    assert float(said) == pytest.approx(reg.fit.fixef.iloc[0], rel=5e-3)


@pytest.mark.parametrize(("function", "unit"), [("log2", 1), ("log", np.log(2))])
def test_the_effect_of_a_logarithm_is_told_per_doubling(function, unit, tmp_path):
    rng = np.random.default_rng(0)
    rate = 10.0 ** rng.integers(-6, -1, 60)
    table = pd.DataFrame({"rate": rate, "score": 3 * np.log2(rate) + rng.normal(size=60)})
    formula = f"score ~ {function}(rate)"
    reg = analysed(table, Request(formula=formula))
    (row,) = contrasts.slope_rows(reg).to_dict("records")
    assert row["covariate"] == "rate, per doubling"
    assert row["estimate"] == pytest.approx(reg.fit.fixef.iloc[1] * unit)
    (one,) = headlines.headlines(reg, Numbers.of(reg))
    assert (one.label, one.estimate) == ("rate, per doubling", pytest.approx(row["estimate"]))
    assert build(table, tmp_path, formula=formula).exists()


def test_a_curve_over_a_logarithm_has_slopes_at_its_lowest_value():
    rng = np.random.default_rng(0)
    rate = 10.0 ** rng.integers(-6, -1, 60)
    table = pd.DataFrame({"rate": rate, "score": 3 * np.log2(rate) + rng.normal(size=60)})
    reg = analysed(table, Request(formula="score ~ log2(rate) + rate"))
    rows = contrasts.slope_rows(reg)
    derivative = reg.fit.fixef.iloc[1] / np.log(2) / rows["at"] + reg.fit.fixef.iloc[2]
    np.testing.assert_allclose(rows["estimate"], derivative, rtol=1e-4)


# -- what a table of the field holds beside its settings ---------------------------------------


def shaped(name, number=0):
    shape = external_tables.SHAPES[name]
    table = shape.make(np.random.default_rng([1, number]))
    return table, shape


RIGHT = {
    "sleepstudy": "Reaction ~ Days + (1 + Days | Subject)",
    "cake": "angle ~ recipe + temperature + (1 + temperature | replicate) + (1 | replicate:recipe)",
    "machines": "score ~ Machine + (1 | Worker) + (1 | Worker:Machine)",
    "oats": "y ~ block + variety + nitro + (1 | block:variety)",
    "cbpp": "rate ~ period + (1 + period | herd) + (1 | herd:period)",
    "lm-eval": "value ~ model + C(seed) + (1 | task) + (1 | seed:model) + (1 | task:model)",
    "sweep": "score ~ log2(lr) + method + C(seed) + task + (1 | seed:lr:method) "
             "+ (1 | seed:method) + (1 | seed:task)",
    "PEFT": "test_accuracy ~ log2(trainable_params) + log2(lr)",
}  # fmt: skip


@pytest.mark.parametrize("name", list(RIGHT))
def test_the_proposal_has_the_random_part_of_its_design(name):
    table, shape = shaped(name)
    table, _ = one_metric(table, shape.score)
    assert proposed(table, shape.score).formula == RIGHT[name]


@pytest.mark.parametrize(
    ("column", "make", "reason"),
    [
        ("acc_stderr,none", lambda d, r: r.uniform(0.01, 0.02, len(d)), "part or an error"),
        ("percent", lambda d, r: 100 * d["y"], "another unit"),
        ("f1", lambda d, r: r.uniform(size=len(d)), "another outcome"),
        ("eval_loss", lambda d, r: r.uniform(size=len(d)), "another outcome"),
        ("val_rmse", lambda d, r: r.integers(1, 5, len(d)), "another outcome"),
        ("evalWER", lambda d, r: r.integers(1, 5, len(d)), "another outcome"),
        ("peakMemory", lambda d, r: r.integers(10, 14, len(d)), "a run needed"),
        ("train_runtime", lambda d, r: r.integers(10, 14, len(d)), "a run needed"),
        ("train_time_s", lambda d, r: r.integers(900, 9000, len(d)), "belongs to a run"),
        ("global_step", lambda d, r: r.integers(10, 14, len(d)), "belongs to a run"),
        ("created_at", lambda d, r: [f"2026-07-{i % 28 + 1:02d}" for i in range(len(d))], "date"),
        ("when", lambda d, r: pd.Timestamp("2026-01-01") + pd.to_timedelta(d.index, "h"), "date"),
        ("day", lambda d, r: [f"2026-07-{i % 3 + 1:02d}T10:00" for i in range(len(d))], "date"),
        ("moment", lambda d, r: 1.79e12 + np.arange(len(d)), "time stamp"),
        ("output_path", lambda d, r: np.resize(["/a", "/b", "/c"], len(d)), "no setting"),
    ],
)  # fmt: skip
def test_what_was_measured_with_the_score_is_no_predictor(column, make, reason):
    rng = np.random.default_rng(0)
    table = simple(60).assign(y=rng.normal(50, 9, 60))
    found = proposed(table.assign(**{column: make(table, rng)}), "y")
    assert choice(found, column).used == "left out"
    assert reason in choice(found, column).reason


@pytest.mark.parametrize("column", ["bits", "precision", "label_errors"])
def test_a_metrics_name_that_may_be_a_settings_is_a_predictor(column):
    table = simple(60).assign(y=np.random.default_rng(0).normal(50, 9, 60))
    found = proposed(table.assign(**{column: np.resize([4, 8, 16], 60)}), "y")
    assert column in choice(found, column).used


@pytest.mark.parametrize("part", ["incidence", "healthy"])
def test_a_share_is_not_explained_by_its_numerator(part):
    table, _ = shaped("cbpp")
    table = table.assign(healthy=table["size"] - table["incidence"])
    table = table[["herd", part, "size", "period", "rate"]]
    found = proposed(table, "rate")
    assert (found.family, found.weights) == ("binomial", "size")
    assert "a part of the score" in choice(found, part).reason


def test_days_of_a_design_are_a_covariate_and_the_time_of_a_run_is_not():
    table, _ = shaped("sleepstudy")
    found = proposed(table.rename(columns={"Days": "time"}), "Reaction")
    assert choice(found, "time").used == "fixed: time"
    runs, _ = shaped("lm-eval")
    runs["time"] = 900 + runs.groupby(["model", "seed"]).ngroup()
    assert choice(proposed(runs, "value"), "time").used == "left out"


@pytest.mark.parametrize("words", [("Y", "N"), ("yes", "no"), ("True", "False"), (True, False)])
def test_words_for_right_and_wrong_are_an_outcome(words, tmp_path):
    table = item_table()
    said = table.assign(correct=np.where(table["correct"] == 1, *words))
    ours, theirs = (analysed(t, Request()) for t in (said, table))
    np.testing.assert_allclose(ours.fit.fixef, theirs.fit.fixef)
    assert ours.family == "binomial"
    assert f"{words[0]} is 1 and {words[1]} is 0" in external.warnings(ours)[0][1]


def test_one_metric_is_taken_and_said():
    table, _ = shaped("lm-eval")
    reg = analysed(table, Request(score="value"))
    assert set(reg.frame["metric"]) == {"acc_norm"}
    assert "One metric at a time: acc_norm, 90 of 180 rows; acc" in external.warnings(reg)[0][1]
    apart = table[(table["metric"] == "acc") == (table["task"] < "t5")]
    kept, (said,) = one_metric(apart, "value")
    assert len(kept) == len(apart)
    assert "each task" in said
    own = analysed(table, Request(formula="value ~ model + metric + (1 | task)"))
    assert own.fit.n == len(table)


def test_a_setting_that_one_arm_lacks_does_not_cost_that_arm():
    table, _ = shaped("sweep")
    reg = analysed(table, Request())
    assert "every row of method full" in choice(reg.proposal, "rank").reason
    assert set(reg.used["method"]) == {"full", "lora", "dora"}
    asked = analysed(table, Request(formula="score ~ method + log2(rank) + (1 | task)"))
    (line,) = [text for _, text in external.warnings(asked) if "no value of rank" in text]
    assert line.startswith("96 of 288 rows")
    assert "method full" in line


def test_effects_of_a_share_are_in_the_units_of_the_score_first():
    reg = analysed(beta_table(), Request())
    (one,) = headlines.headlines(reg, Numbers.of(reg))
    (pair,) = contrasts.pair_rows(reg).to_dict("records")
    assert one.unit == "accuracy"
    assert one.estimate == pytest.approx(pair["difference"])
    assert one.low == pytest.approx(pair["difference_low"], rel=0.02)  # one pair: Tukey's is t
    assert "logits)" in one.label


def test_levels_whose_means_the_table_does_not_determine_have_no_headline(tmp_path):
    table = simple().assign(kind=lambda d: d["arm"] + np.where(np.arange(40) % 4 < 2, "1", "2"))
    text = build(table, tmp_path, formula="y ~ arm * kind").read_text(encoding="utf-8")
    assert '<section id="answer">' in text


def test_beside_an_interaction_the_verdict_is_that_of_the_difference_shown(tmp_path):
    """The joint test of `arm` is at year 0, far from the data: it must not judge the mean gap."""
    rng = np.random.default_rng(2)
    table = pd.DataFrame({
        "arm": np.tile(list("ab"), 30), "year": 2000 + np.repeat(np.arange(10), 6),
    })  # fmt: skip
    table["acc"] = 60 + 3 * (table["arm"] == "b") + 0.5 * (table["year"] - 2000)
    table["acc"] += rng.normal(size=60)
    reg = analysed(table, Request(formula="acc ~ arm*year", score="acc"))
    found = headlines.headlines(reg, Numbers.of(reg))
    (arm,) = [one for one in found if one.group == "arm"]
    assert arm.verdict == "distinguishable"
    assert arm.p < 0.001


def ordinary(**columns):
    return pd.DataFrame({"arm": np.resize(["a", "b"], 24), "score": np.arange(24.0) % 7} | columns)


TASKS = np.repeat(["t1", "t2", "t3", "t4"], 6)
RUNS = np.resize([f"r{i}" for i in range(6)], 24)
ORDINARY = {
    "an intercept": (ordinary(run=RUNS, task=TASKS), {"formula": "score ~ 1 + (1|run) + (1|task)"}),
    "groups alone": (ordinary(run=RUNS, task=TASKS).drop(columns="arm"), {}),
    "a date": (ordinary(when=pd.date_range("2026-01-01", periods=24)), {}),
    "dates in a formula": (
        ordinary(when=pd.date_range("2026-01-01", periods=24)), {"formula": "score ~ arm + when"},
    ),
    "numbers as names": (ordinary(kind=np.resize(["1", "2", "10"], 24)), {}),
    "missing names": (ordinary(kind=np.resize(["u", None, "v", np.nan, "u", "v"], 24)), {}),
    "a dot": (ordinary().rename(columns={"arm": "my.arm"}), {}),
    "a dot in a formula": (
        ordinary().rename(columns={"arm": "my.arm"}), {"formula": "score ~ my.arm"},
    ),
    "no PLW": (
        ordinary(train_key=RUNS, task=TASKS, metric="acc").rename(columns={"score": "value"}), {},
    ),
    "logarithms of nothing": (ordinary(x=np.zeros(24)), {"formula": "score ~ log(x - 1)"}),
    "roots of nothing": (ordinary(x=np.ones(24)), {"formula": "score ~ sqrt(x - 5)"}),
    "a constant scaled": (ordinary(x=np.arange(24.0)), {"formula": "score ~ scale(x - x)"}),
    "a name of TeX": (ordinary(kind=np.resize(["$\\foo$", "u", "v"], 24)), {}),
    "infinite weights": (ordinary(w=np.resize([1.0, np.inf], 24)), {"weights": "w"}),
    "lists": (ordinary(kind=[[i % 3] for i in range(24)]), {}),
    "dictionaries": (ordinary(kind=[{"k": i % 3} for i in range(24)]), {}),
    "text in the value": (ordinary().assign(score=["high", *map(str, range(23))]), {}),
    "no metric": (ordinary(metric=np.resize(["acc", None], 24), task=TASKS), {}),
    "no formula": (ordinary(), {"formula": ""}),
    "an infinite margin": (ordinary(), {"margin": float("inf")}),
    "an interaction": (
        ordinary(lr=np.resize([1e-5, 1e-4, 0.3], 24)), {"formula": "score ~ arm * log2(lr)"},
    ),
    "rates": (ordinary(lr=np.resize([1e-5, 1e-4, 1e-3, 1e-2, 0.3], 24)), {}),
}  # fmt: skip


@pytest.mark.parametrize("name", list(ORDINARY))
def test_an_ordinary_table_gives_a_report_or_one_line(name, tmp_path, capsys):
    table, options = ORDINARY[name]
    path = tmp_path / "table.parquet"
    try:
        table.to_parquet(path)
    except (TypeError, ValueError):
        path = tmp_path / "table.csv"
        table.to_csv(path, index=False)
    given = [text for key, value in options.items() for text in (f"--{key}", str(value))]
    status = main(["report", str(path), "--out", str(tmp_path / "out"), *given])
    told = capsys.readouterr().err.strip()
    if status == 0:
        assert (tmp_path / "out" / "index.html").exists()
    else:
        assert (status, len(told.splitlines())) == (2, 1), told


@pytest.mark.parametrize("terms", ["penalty + C(`penalty.kl`)", "C(`penalty.kl`) + penalty"])
def test_a_coefficient_is_held_against_a_level_of_its_own_factor(terms):
    """Whatever order formulaic keeps its factors in: one's name is the beginning of the other's."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"penalty": ["kl", "none"] * 30, "penalty.kl": [0.0, 0.1, 1.0] * 20})
    table["score"] = rng.normal(size=60)
    reg = analysed(table, Request(formula=f"score ~ {terms}"))
    contrasts = reg.fit.design.spec.factor_contrasts
    for order in (list(contrasts), list(contrasts)[::-1]):
        spec = SimpleNamespace(factor_contrasts={factor: contrasts[factor] for factor in order})
        own = replace(reg, fit=replace(reg.fit, design=replace(reg.fit.design, spec=spec)))
        assert coefficient_text(own, "penalty[T.none]") == "penalty none against kl"
        text = coefficient_text(own, "C(`penalty.kl`)[T.0.1]")
        assert text == "penalty.kl 0.1 against 0.0"


def test_warnings_of_one_head_are_one_box_and_most_of_many_are_folded():
    lost = [("No model.", f"panel {i}: the same in every row") for i in range(6)]
    warnings = (("Once.", "alone"), *lost[:2], ("Twice.", "a"), *lost[2:], ("Twice.", "b"))
    page = render(Page("t", "source", "0", (), warnings=warnings), {})
    assert page.count('class="warning"') == 3
    assert re.search(r'<p class="warning"><strong>Once\.</strong> alone</p>', page)
    box = page[page.index("No model.") : page.index("Twice.")]
    shown, folded = box.split("<details>")
    assert [f"panel {i}" in shown for i in range(6)] == [True] * 3 + [False] * 3
    assert [f"panel {i}" in folded for i in range(6)] == [False] * 3 + [True] * 3
    assert "<summary>3 more</summary>" in folded
    assert "<details>" not in page[page.index("Twice.") : page.index("<nav")]
