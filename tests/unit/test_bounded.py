"""What scores a family takes, exact 0 and 1, separation, and bad tables: one clear line each."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import special, stats

from analysis.engine.bounded import FAMILIES
from analysis.engine.diagnosis import separation
from analysis.errors import AnalysisError
from analysis.mixed import GlmmFit, fit_mixed

ORACLES = Path(__file__).parents[1] / "oracles"
ITEMS, BOUNDED = (pd.read_csv(ORACLES / f"{name}.csv") for name in ("items", "bounded"))
CROSSED = "wp + adapter + (1 | task) + (1 | run)"


def refused(rows, formula, family, **options):
    """The one line of an error."""
    with pytest.raises(AnalysisError) as error:
        fit_mixed(rows, formula, family, **options)
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "gaussian"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda y: 100 * y, "takes scores from 0 to 1, 528 rows are not (from 4.125 to 93.67)"),
        (lambda y: y.where(y.index > 0, -0.01), "takes scores from 0 to 1, 1 rows are not"),
        (lambda y: y * np.nan, "no row has all of usual, wp"),
        (lambda y: y.where(y.index > 0, np.inf), "usual is not finite in every row"),
        (lambda y: 0 * y + 0.25, "score=usual: the same in every row"),
        (lambda y: y.astype(str), "score=usual: must be one column of numbers"),
    ],
)
def test_scores_that_no_family_takes(family, change, words):
    rows = BOUNDED.assign(usual=change(BOUNDED["usual"]))
    assert words in refused(rows, f"usual ~ {CROSSED}", family)


@pytest.mark.parametrize(
    ("score", "weights", "words"),
    [
        ("usual", None, "takes 0 or 1 in every row, or proportions with weights="),
        ("usual", "trials", "whole numbers of trials and of successes (score times trials); 518"),
        ("accuracy", "w", "whole numbers of trials"),
        ("ends", None, "takes 0 or 1 in every row"),
    ],
)
def test_fractions_need_their_trials(score, weights, words):
    text = refused(BOUNDED, f"{score} ~ {CROSSED}", "binomial", weights=weights)
    assert words in text


def test_rounded_proportions_are_made_whole_again():
    rows = BOUNDED.assign(rough=BOUNDED["accuracy"].round(4))
    formula = f"rough ~ {CROSSED}"
    fit = fit_mixed(rows, formula, "binomial", weights="trials")
    exact = fit_mixed(BOUNDED, f"accuracy ~ {CROSSED}", "binomial", weights="trials")
    np.testing.assert_allclose(fit.fixef, exact.fixef, rtol=1e-9)
    assert fit.loglik == pytest.approx(exact.loglik, abs=1e-9)


def test_booleans_are_right_and_wrong():
    fit = fit_mixed(ITEMS.assign(right=ITEMS["right"] == 1), "right ~ wp + (1 | item)", "binomial")
    other = fit_mixed(ITEMS, "right ~ wp + (1 | item)", "binomial")
    assert fit.loglik == other.loglik


def test_missing_scores_are_left_out_and_counted():
    rows = BOUNDED.assign(usual=BOUNDED["usual"].where(BOUNDED.index >= 31))
    fit = fit_mixed(rows, f"usual ~ {CROSSED}", "beta")
    other = fit_mixed(BOUNDED[31:], f"usual ~ {CROSSED}", "beta")
    assert fit.loglik == other.loglik
    assert fit.diagnosis[0] == "31 rows with a missing value were left out."


# Exact 0 and 1.


def test_a_beta_takes_no_zero_and_names_the_choices():
    text = refused(BOUNDED, f"ends ~ {CROSSED}", "beta")
    assert "48 scores are exactly 0 and 0 exactly 1" in text
    for choice in ("beta_squeezed", "beta_inflated", "gaussian", "logit(score)", "binomial"):
        assert choice in text


def test_squeezed_scores_are_those_of_the_formula():
    fit = fit_mixed(BOUNDED, f"ends ~ {CROSSED}", "beta_squeezed")
    n = len(BOUNDED)
    squeezed = BOUNDED.assign(ends=(BOUNDED["ends"] * (n - 1) + 0.5) / n)
    other = fit_mixed(squeezed, f"ends ~ {CROSSED}", "beta")
    assert fit.loglik == other.loglik
    np.testing.assert_array_equal(fit.fixef, other.fixef)
    assert (fit.family, other.family) == ("beta_squeezed", "beta")
    assert f"n = {n}: 48 scores are exactly 0 and 0 exactly 1" in fit.diagnosis[0]
    assert other.diagnosis == ()


def test_inflation_is_a_multinomial_beside_the_rest():
    rows = BOUNDED.assign(
        ends=BOUNDED["ends"].where(BOUNDED.index % 40 > 0, 1.0), other=BOUNDED["usual"]
    )
    fit = fit_mixed(rows, f"ends ~ {CROSSED}", "beta_inflated", weights=None)
    inner = rows["ends"].between(0, 1, inclusive="neither")
    rest = fit_mixed(rows[inner], f"ends ~ {CROSSED}", "beta")
    zeros, ones, total = (rows["ends"] == 0).sum(), (rows["ends"] == 1).sum(), len(rows)
    counts = np.array([zeros, ones, inner.sum()])
    apart = stats.multinomial.logpmf(counts, total, counts / total)
    apart -= special.gammaln(total + 1) - special.gammaln(counts + 1).sum()
    assert fit.loglik == pytest.approx(rest.loglik + apart, abs=1e-9)
    # Equal steps on arrays that lie otherwise in memory: sums over the rows, rounded otherwise.
    rounding = 16 * len(rows) * np.finfo(np.float64).eps * np.abs(rest.fixef).max()
    np.testing.assert_allclose(fit.fixef, rest.fixef, rtol=0, atol=rounding)
    assert dict(fit.inflation) == {0.0: zeros / total, 1.0: ones / total}
    assert fit.parameters == rest.parameters + 2
    assert (fit.n, len(fit.fitted)) == (total, inner.sum())
    assert fit.bic == pytest.approx(np.log(total) * fit.parameters - 2 * fit.loglik)
    assert "modelled apart" in fit.diagnosis[0]


def test_inflation_without_zeros_is_a_beta():
    fit = fit_mixed(BOUNDED, f"usual ~ {CROSSED}", "beta_inflated")
    other = fit_mixed(BOUNDED, f"usual ~ {CROSSED}", "beta")
    assert (fit.loglik, fit.parameters, fit.diagnosis) == (other.loglik, other.parameters, ())


def test_nothing_between_is_binomial():
    text = refused(ITEMS, "right ~ wp + (1 | item)", "beta_inflated")
    assert text == "score=right: only 0 and 1; choose family=binomial"


def test_logit_gaussian_is_a_linear_model_of_the_logit():
    fit = fit_mixed(BOUNDED, f"logit(usual) ~ {CROSSED}")
    rows = BOUNDED.assign(y=special.logit(BOUNDED["usual"]))
    other = fit_mixed(rows, f"y ~ {CROSSED}")
    np.testing.assert_allclose(fit.fixef, other.fixef, rtol=1e-10)
    assert fit.sigma == pytest.approx(other.sigma, rel=1e-10)
    assert not isinstance(fit, GlmmFit)
    assert "logit(ends) is not finite" in refused(BOUNDED, f"logit(ends) ~ {CROSSED}", "gaussian")


# Separation.


SEPARATED = {
    "one level, items": (
        ITEMS.assign(right=ITEMS["right"].where(ITEMS["adapter"] == "full", 1)),
        "right ~ wp + adapter + (1 | item)", None, ["adapter[T.lora]"],
    ),
    "one level, no random effects": (
        ITEMS.assign(right=ITEMS["right"].where(ITEMS["adapter"] == "full", 0)),
        "right ~ wp + adapter", None, ["adapter[T.lora]"],
    ),
    "all of a covariate": (
        ITEMS.assign(right=(ITEMS["wp"] > 0.3) * 1.0), "right ~ wp", None, ["Intercept", "wp"],
    ),
    "one cell of an interaction": (
        ITEMS.assign(
            right=ITEMS["right"].where(
                (ITEMS["adapter"] == "full") | (ITEMS["dataset"] != "long"), 1
            )
        ),
        "right ~ adapter * dataset + (1 | item)", None, ["adapter[T.lora]:dataset[T.long]"],
    ),
    "counts": (
        BOUNDED.assign(accuracy=BOUNDED["accuracy"].where(BOUNDED["dataset"] != "short", 1.0)),
        f"accuracy ~ dataset + {CROSSED}", "trials", ["dataset[T.short]"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SEPARATED)
def test_separation_is_found_and_named(name):
    rows, formula, weights, columns = SEPARATED[name]
    fit = fit_mixed(rows, formula, "binomial", weights=weights)
    assert fit.separated
    assert not fit.converged
    words = fit.diagnosis[-1]
    assert words.startswith("Separation: some value of " + ", ".join(columns) + " goes with")


def test_large_effects_are_no_separation():
    rows = ITEMS.assign(right=np.where(ITEMS["adapter"] == "lora", 1, ITEMS["right"]))
    first = rows.index[rows["adapter"] == "lora"][0]
    rows.loc[first, "right"] = 0  # one wrong answer is all it takes
    fit = fit_mixed(rows, "right ~ wp + adapter", "binomial")
    assert not fit.separated
    assert fit.converged
    assert fit.fixef["adapter[T.lora]"] > 5
    assert fit.diagnosis == ()


def test_random_effects_do_not_separate():
    # An item that is always right has a finite effect, because it is drawn towards the others.
    always = ITEMS["item"].isin(["i01", "i02"])
    rows = ITEMS.assign(right=ITEMS["right"].where(~always, 1))
    fit = fit_mixed(rows, "right ~ wp + (1 | item)", "binomial")
    assert fit.converged
    assert fit.random["item"].modes.loc["i01", "Intercept"] > 1
    fixed = fit_mixed(rows, "right ~ wp + item", "binomial")
    assert fixed.separated


def test_the_sentence_names_what_takes_part():
    words = separation(["a", "b", "c"], np.array([0.0, 1.0, -0.5]))
    assert "b, c goes" in words


# Bad tables.


@pytest.mark.parametrize(
    ("rows", "formula", "family", "options", "words"),
    [
        (BOUNDED, f"usual ~ {CROSSED}", "betta", {}, "family=betta: not one of gaussian"),
        (BOUNDED, f"usual ~ {CROSSED}", "beta", {"method": "REML"},
         "method=REML: family=beta is fitted by ML alone"),
        (BOUNDED, "usual ~ wp + (1 | study)", "beta", {}, "no column 'study'"),
        (BOUNDED[:10], "usual ~ wp * dataset * adapter * task", "beta", {},
         "coefficients for 10 rows"),
        (BOUNDED[::53], "usual ~ wp + (1 | task)", "beta", {}, "10 random effects for 10 rows"),
        (BOUNDED[BOUNDED["seed"] == 1], "usual ~ wp + (1 | seed)", "beta", {}, "one level only"),
        (ITEMS.assign(row=ITEMS.index), "right ~ wp + (1 | row)", "binomial", {},
         "1470 random effects for 1470 rows"),
        (BOUNDED.assign(usual=special.expit(BOUNDED["wp"])), "usual ~ wp + (1 | run)", "beta", {},
         "family=beta has no finite fit here"),
        (BOUNDED.assign(w=0.0), f"usual ~ {CROSSED}", "beta", {"weights": "w"},
         "weights=w: must be a positive number"),
    ],
)  # fmt: skip
def test_bad_tables_give_one_line(rows, formula, family, options, words):
    assert words in refused(rows, formula, family, **options)


def test_what_is_determined_by_the_rest_is_left_out():
    rows = BOUNDED.assign(again=2 * BOUNDED["wp"])
    fit = fit_mixed(rows, f"usual ~ again + {CROSSED}", "beta")
    assert fit.left_out == ("wp",)
    assert "determined by the others" in fit.diagnosis[0]
    other = fit_mixed(BOUNDED, f"usual ~ {CROSSED}", "beta")
    assert fit.loglik == pytest.approx(other.loglik, abs=1e-8)
