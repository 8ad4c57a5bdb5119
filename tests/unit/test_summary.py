"""What a fit prints: lme4's numbers, within a terminal's width, and never its arrays."""

import json
from dataclasses import is_dataclass
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.engine.summary import WIDTH
from analysis.inference.comparisons import pairwise
from analysis.inference.means import means
from analysis.mixed import fit_mixed

ORACLES = Path(__file__).parents[1] / "oracles"
LME4 = {m["name"]: m for m in json.loads((ORACLES / "lme4_models.json").read_text())}
BOUNDED = pd.read_csv(ORACLES / "bounded.csv")
SHOWN = 2e-3  # estimates are printed to five digits, standard errors to four
SLOPES = [n for n, m in LME4.items() if m["correlations"] and m["data"] == "grid"][:1]


def linear(name):
    model = LME4[name]
    rows = pd.read_csv(ORACLES / f"{model['data']}.csv")
    weights = "w" if model["weights"] else None
    return model, fit_mixed(rows, model["formula"], method=model["method"], weights=weights)


def printed(text, heading):
    """The rows of a printed table as lists of words."""
    lines = text.split(f"{heading}\n")[1].split("\n\n")[0].splitlines()[1:]
    return [line.split() for line in lines]


@pytest.mark.parametrize("name", ["crossed intercepts, ML", *SLOPES])
def test_what_is_printed_is_lme4s(name):
    model, fit = linear(name)
    text = str(fit)
    theirs = zip(*(model[k].values() for k in ("fixef", "se", "df")), strict=True)
    for row, (estimate, se, df) in zip(printed(text, "Fixed effects"), theirs, strict=True):
        assert float(row[-5]) == pytest.approx(estimate, abs=SHOWN * max(abs(estimate), se))
        assert float(row[-4]) == pytest.approx(se, rel=SHOWN)
        assert float(row[-3]) == pytest.approx(df, rel=0.02, abs=0.06)
        assert float(row[-2]) == pytest.approx(estimate / se, abs=0.02)
    found = fit.summary().tables["random"].set_index(["group", "name"])
    for row in model["random"]:
        sd = found.loc[(row["group"], row["name"].replace("(Intercept)", "Intercept")), "sd"]
        assert sd == pytest.approx(row["sd"], rel=SHOWN)
        assert f"{sd:#.5g}" in text
    assert found.loc[("residual", ""), "sd"] == pytest.approx(model["sigma"], rel=SHOWN)
    assert f"log-likelihood {model['loglik']:.2f}" in text
    assert f"Formula:  {model['formula']}" in text
    assert model["method"] in text.splitlines()[0]


def test_correlations_stand_beside_their_effects():
    fit = fit_mixed(BOUNDED, "usual ~ wp + adapter + (1 + wp | task) + (1 | run)", "beta")
    rows = {tuple(row[:2]): row for row in printed(str(fit), "Random effects")}
    corr = fit.random["task"].corr.iloc[1, 0]
    assert float(rows["task", "wp"][-1]) == pytest.approx(corr, abs=1e-3)
    assert "residual" not in str(fit)  # a beta has none
    assert f"Family:   beta, logit link, phi {fit.phi:.4g}" in str(fit)
    fixed = fit.summary().tables["fixed"]
    assert list(fixed) == ["name", "estimate", "se", "z", "p"]
    np.testing.assert_allclose(fixed["z"], fit.fixef / fit.se)


def test_a_singular_fit_and_missing_rows_are_noted():
    rng = np.random.default_rng(0)
    rows = pd.DataFrame({"g": np.repeat(list("abcdef"), 10), "x": rng.normal(size=60)})
    rows["y"] = rng.normal(size=60)
    rows["y"] -= rows.groupby("g")["y"].transform("mean")
    rows.loc[3, "x"] = np.nan
    text = str(fit_mixed(rows, "y ~ x + (1 | g)"))
    assert "Rows:     59 (1 more have missing values)" in text
    assert "- Singular: the variation over g" in text


def test_two_hundred_coefficients_are_abbreviated_and_every_line_fits():
    rng = np.random.default_rng(1)
    names = [f"a level whose name is too long for any table of a terminal {i}" for i in range(200)]
    rows = pd.DataFrame({"long_factor_name": np.repeat(names, 3), "task": list("abc") * 200})
    rows["score"] = rng.normal(size=600)
    fit = fit_mixed(rows, "score ~ long_factor_name + (1 | task)")
    lines = str(fit).splitlines()
    assert max(map(len, lines)) <= WIDTH < 100
    assert len(lines) < 60
    assert " ... and 170 more, see summary().tables" in lines
    assert len(fit.summary().tables["fixed"]) == 200
    assert any("…" in line for line in lines)


def test_different_coefficients_have_different_names_however_long():
    rng = np.random.default_rng(1)
    inside = [f"a level whose name is {i} too long for any table of a terminal" for i in range(9)]
    late = [f"a level whose name is {w} too long for any terminal" for w in ("x" * 40, "x" * 41)]
    names = [*inside, *late, "two\nlines", "two lines"]
    rows = pd.DataFrame({"factor": np.repeat(names, 3), "score": rng.normal(size=3 * len(names))})
    text = str(fit_mixed(rows, "score ~ factor"))
    shown = [line[:44].strip() for line in text.split("Fixed effects")[1].splitlines()[2:]]
    assert len(shown) == len(set(shown)) == len(names)
    assert any("is 3 too" in line for line in shown)


class Tags(HTMLParser):
    """Whether every tag that opens closes."""

    def __init__(self):
        super().__init__()
        self.open = []
        self.seen = set()

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.seen.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_a_notebook_gets_html():
    fit = linear("crossed intercepts, ML")[1]
    for shown in (fit, fit.summary()):
        tags = Tags()
        tags.feed(shown._repr_html_())
        assert not tags.open
        assert {"table", "th", "td"} <= tags.seen
    assert "I(wp ** 2)" in fit._repr_html_()


def parts(value, seen):
    """Every dataclass of ours that can be reached from a value."""
    ours = type(value).__module__.startswith("analysis") or isinstance(value, (list, tuple, dict))
    if id(value) in seen or not ours:
        return
    seen[id(value)] = value
    if is_dataclass(value):
        yield value
    inside = [getattr(value, n, None) for n in getattr(type(value), "__slots__", ())]
    inside += list(getattr(value, "__dict__", {}).values())
    inside += list(value.values()) if isinstance(value, dict) else []
    inside += list(value) if isinstance(value, (list, tuple)) else []
    for one in inside:
        yield from parts(one, seen)


def test_nothing_prints_its_arrays():
    gaussian = linear("crossed intercepts, ML")[1]
    beta = fit_mixed(BOUNDED, "usual ~ wp + (1 | task) + (1 | run)", "beta")
    assert gaussian.curvature is not None
    kinds = set()
    for fit in (gaussian, beta):
        for part in parts(fit, {}):
            kinds.add(type(part).__name__)
            if part is not fit:
                assert len(repr(part)) < 900, type(part).__name__
                assert "\n" not in repr(part), type(part).__name__
    assert {"DesignMatrices", "Factor", "Fixed", "Minimum", "Evaluation", "GlmmEvaluation"} <= kinds
    assert len(kinds) >= 12


def test_means_and_comparisons_print_as_tables():
    rows = pd.read_csv(ORACLES / "grid.csv")
    found = means(fit_mixed(rows, "score ~ wp + adapter + (1 | run)"), rows, "adapter")
    assert repr(found).splitlines()[0].split() == ["adapter", "estimate", "se", "df", "low", "high"]
    assert "p_adjusted" in repr(pairwise(found))
