"""The equation's MathML says what its LaTeX says, for every stored model and for awkward names."""

import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from analysis.mixed import fit_mixed
from analysis.regression import equation
from analysis.report.tables import escape_tex, plain_tex

ORACLES = Path(__file__).parents[1] / "oracles"
FILES = ("lme4_models", "glmm_models", "domain_models", "inference_models")
MODELS = {
    f"{name}: {m['name']}": m
    for name in FILES
    for m in json.loads((ORACLES / f"{name}.json").read_text())
}
COMMANDS = {
    "beta": "β", "alpha": "α", "varepsilon": "ε", "sigma": "σ", "phi": "φ", "mu": "μ",
    "Sigma": "Σ", "sim": "∼", "cdot": "⋅", "mathcal": "", "quad": "",
}  # fmt: skip
SAME = {"𝒩": "N", "ϕ": "φ", "·": "⋅", "−": "-"}  # letters that stand for one another


def visible(text):
    return "".join(SAME.get(c, c) for c in re.sub(r"\s", "", text))


def from_tex(tex):
    """What a reader sees of LaTeX, by a reader of its own: names first, then commands."""
    out, rest = [], tex
    while match := re.search(r"\\text\{((?:\\.|\{\}|[^{}\\])*)\}", rest):
        out += [(rest[: match.start()], False), (match[1], True)]
        rest = rest[match.end() :]
    out.append((rest, False))
    return visible("".join(
        plain_tex(part) if is_name else re.sub(
            r"[{}_^&]|\\\\", "", re.sub(r"\\([a-zA-Z]+)", lambda m: COMMANDS[m[1]], part)
        )
        for part, is_name in out
    ))  # fmt: skip


class Seen(HTMLParser):
    """The text between tags, every one of which must close."""

    def __init__(self):
        super().__init__()
        self.open, self.text = [], []

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def from_html(text):
    seen = Seen()
    seen.feed(text)
    assert not seen.open
    return visible("".join(seen.text))


def regression(fit, weights=None):
    return SimpleNamespace(
        fit=fit, response=fit.design.parsed.response, proposal=SimpleNamespace(weights=weights)
    )


def agree(reg):
    found = equation.equation(reg)
    tex = equation.latex(found).removeprefix("\\begin{align*}").removesuffix("\\end{align*}\n")
    assert from_html(equation.mathml(found)) == from_tex(tex)
    for symbol, _ in found.legend:
        assert from_html(equation.converted(symbol)) == from_tex(symbol)
    return found


@pytest.mark.parametrize("name", MODELS)
def test_page_and_paper_show_the_same_symbols(name):
    model = MODELS[name]
    rows = pd.read_csv(ORACLES / f"{model.get('data', 'domain')}.csv")
    weights = {True: "w", False: None}.get(model.get("weights"), model.get("weights"))
    fit = fit_mixed(rows, model["formula"], model.get("family", "gaussian"), weights=weights)
    found = agree(regression(fit, weights))
    assert found.lines


def test_names_that_mean_something_to_latex_or_html_are_only_text():
    rng = np.random.default_rng(0)
    name = "a<b>&amp;_{1}$%#^~\\x"
    table = pd.DataFrame({name: list("uvw") * 20, "x": rng.normal(size=60)})
    table["y"] = rng.normal(size=60)
    reg = regression(fit_mixed(table, f"y ~ `{name}` * x + poly(x, 2)"))
    found = agree(reg)
    page = equation.mathml(found) + equation.legend_html(found)
    assert "<b>" not in page
    assert html.escape(name) in page


def test_plain_tex_undoes_escape_tex():
    text = "a_b & 50 % of {x} \\ y ~ z ^ 2 < 3 > 1 | − ± × ² ≥ ≤ σ Δ ∞ → · ₂ $ #"
    assert plain_tex(escape_tex(text)) == text


def test_sums_break_between_summands_and_keep_their_plus():
    rows = pd.read_csv(ORACLES / "grid.csv")
    found = equation.equation(regression(fit_mixed(rows, "score ~ wp + adapter + (1 | run)")))
    page = equation.mathml(found)
    first = page.split("</div>")[0]
    assert first.count("<math") == 1 + len(found.lines[0].summands)
    assert first.count('<mo form="infix">+</mo>') == len(found.lines[0].summands) - 1
    assert "<mo>∼</mo>" in page
