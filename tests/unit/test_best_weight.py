"""The best PLW of an external table: printed for a clear inverted U, never for a plateau."""

import re

import numpy as np
import pandas as pd
import pytest

from analysis.curve.best import IN_DOUBT, UNTESTED
from analysis.inference.optimum import INTERIOR, optimum
from analysis.regression import best_weight, external, headlines
from analysis.regression.model import Request, analysed
from analysis.regression.numbers import Numbers
from analysis.report.build import build

WP = np.linspace(0, 1, 7)


def table(curve, seed, *, rows=6, noise=1.0, **columns):
    """A table of `rows` scores at each of seven weights, spaced evenly as w_p."""
    rng = np.random.default_rng(seed)
    wp = np.repeat(WP, rows)
    score = 50 + curve(wp) + rng.normal(0, noise, len(wp))
    return pd.DataFrame({"plw": wp ** (1 / 0.30103), "score": score, **columns})


def plateau(wp):
    return 16 * np.minimum(wp, 0.5)


def inverted_u(wp):
    return 24 * wp * (1 - wp)


def said(reg):
    """All that the page's first sentence and tables say of the optimum."""
    found = Numbers.of(reg)
    rows = headlines.best_levels(reg, found).frame
    return found.optimum.iloc[0], headlines.remarks(reg, found), rows


@pytest.mark.parametrize("seed", range(20))
def test_a_plateau_has_no_best_weight(seed):
    reg = analysed(table(plateau, seed), Request())
    row, remarks, rows = said(reg)
    assert row["verdict"] != INTERIOR
    assert row[["estimate", "low", "high"]].isna().all()
    assert remarks == []
    assert not len(rows)


def test_a_clear_inverted_u_has_one():
    """Two F tests at the 5 % level each object to about one true quadratic in twelve."""
    printed = 0
    for seed in range(10):
        row, remarks, rows = said(analysed(table(inverted_u, seed), Request()))
        printed += row["verdict"] == INTERIOR
        if row["verdict"] == INTERIOR:
            assert row["low"] < row["estimate"] < row["high"]
            assert len(remarks) == len(rows) == 1
            assert "Fieller" in remarks[0]
    assert printed >= 8


def test_the_quadratics_of_plateaus_alone_would_show_one():
    regs = [analysed(table(plateau, seed), Request()) for seed in range(20)]
    alone = [optimum(best_weight.curve_of(reg).quadratic).verdict for reg in regs]
    assert alone.count(INTERIOR) >= 15


def test_the_section_of_the_curve_shows_no_number_where_the_shape_is_in_doubt():
    reg = analysed(table(plateau, 0), Request())
    section = external.dose(reg, Numbers.of(reg))
    texts = [b.text for b in section.blocks if hasattr(b, "text")]
    assert IN_DOUBT in section.summary
    assert any("is not shown" in text for text in texts)
    (bars,) = section.blocks[0].figure.axes[0].containers
    means = reg.used.groupby("wp")["score"].mean()
    np.testing.assert_allclose(bars.lines[0].get_ydata(), means)


def test_without_two_rows_alike_the_shape_is_not_tested_and_no_number_shown():
    """A covariate with a value of its own in every row leaves no rows to compare weights within."""
    frame = table(inverted_u, 0)
    frame = frame.assign(x=np.random.default_rng(1).normal(size=len(frame)))
    reg = analysed(frame, Request(formula="score ~ wp + I(wp^2) + x"))
    row = said(reg)[0]
    assert row["verdict"] == IN_DOUBT
    assert row["because"] == UNTESTED
    assert np.isnan(row["estimate"])


def test_a_model_with_weights_is_not_tested_and_shows_no_number():
    frame = table(inverted_u, 0).assign(w=np.tile([1.0, 2.0], 21))
    reg = analysed(frame, Request(weights="w"))
    row, remarks, _ = said(reg)
    assert row["verdict"] == IN_DOUBT
    assert row["because"] == UNTESTED
    assert remarks == []


def runs(curve, seed):
    """Runs of two seeds each at seven weights, scored on three tasks; errors of a run shared."""
    rng = np.random.default_rng(seed)
    rows = []
    for run in range(42):
        wp, shared = WP[run % 7], rng.normal()
        rows += [(f"r{run}", t, wp ** (1 / 0.30103), 50 + 5 * t + curve(wp) + shared
                  + rng.normal(0, 0.5)) for t in range(3)]  # fmt: skip
    frame = pd.DataFrame(rows, columns=["run", "task", "plw", "score"])
    return frame.assign(task="t" + frame["task"].astype(str))


def test_rows_of_a_run_are_tested_as_one():
    formula = "score ~ wp + I(wp^2) + task + (1 | run)"
    frame = runs(plateau, 0)
    reg = analysed(frame, Request(formula=formula))
    units = best_weight.units(reg)
    assert len(units) == 42
    np.testing.assert_allclose(
        np.sort(units["score"]), np.sort(frame.groupby("run")["score"].mean()), rtol=1e-12
    )
    lacking = analysed(frame.drop(index=[0]), Request(formula=formula))
    assert best_weight.shape_of(lacking) is None  # a run without a task: its mean is another's


@pytest.mark.parametrize("scale", [1.0, 200.0])
def test_a_weight_of_the_tables_own_is_told_on_its_own_scale(scale):
    """Without a PLW beside it nothing says that `wp` is PLW^0.30103, so nothing inverts it."""
    frame = table(inverted_u, 0).assign(wp=scale * np.repeat(WP, 6)).drop(columns="plw")
    reg = analysed(frame, Request(formula="score ~ wp + I(wp^2)"))
    row, (remark,), rows = said(reg)
    assert row["estimate"] == pytest.approx(0.5 * scale, rel=0.1)
    assert row["low"] < row["estimate"] < row["high"] < scale
    assert remark.startswith("the best wp is")
    assert rows["factor"].tolist() == ["wp"]
    assert [one.label for one in headlines.headlines(reg, Numbers.of(reg))] == [
        "any effect of wp",
        f"wp {scale:.4g} − 0",
    ]


def test_the_page_of_a_weight_of_the_tables_own_says_nothing_of_plw(tmp_path):
    frame = table(inverted_u, 0).assign(wp=100 * np.repeat(WP, 6)).drop(columns="plw")
    page = build(frame, tmp_path, formula="score ~ wp + I(wp^2)")
    text = page.read_text(encoding="utf-8")
    text = re.sub(r"<(style|script).*?</\1>", "", text, flags=re.DOTALL)
    assert not re.search(r"PLW|prompt loss weight|w_p", text)


@pytest.mark.parametrize(
    ("plw", "own"),
    [(WP ** (1 / 0.30103), False), (np.round(WP ** (1 / 0.30103), 4), False), (WP, True)],
    ids=["exact", "rounded", "raw"],
)
def test_a_weight_with_its_plw_beside_it_is_told_as_plw(plw, own):
    """In the middle of w_p PLW is 0.1; `wp` that is no power of the PLW beside it stays."""
    frame = table(inverted_u, 0).assign(wp=np.repeat(WP, 6), plw=np.repeat(plw, 6))
    reg = analysed(frame, Request(formula="score ~ wp + I(wp^2)"))
    row, (remark,), _ = said(reg)
    assert reg.own_wp == own
    assert row["estimate"] == pytest.approx(0.5 if own else 0.1, rel=0.3)
    assert remark.startswith(f"the best {'wp' if own else 'PLW'} is")


@pytest.mark.parametrize(("curve", "least", "most"), [(plateau, 0, 1), (inverted_u, 5, 6)])
def test_the_optimum_of_runs(curve, least, most):
    """The monotone test is at the 5 % level, so that one plateau in twenty may pass it."""
    formula = "score ~ wp + I(wp^2) + task + (1 | run)"
    regs = [analysed(runs(curve, seed), Request(formula=formula)) for seed in range(6)]
    inside = [best_weight.best_weight(reg)["verdict"].item() == INTERIOR for reg in regs]
    assert least <= sum(inside) <= most
