"""The model as an equation in LaTeX; the page's MathML is made from it by latex2mathml.

Factors enter as one symbol with the level of row i as its index (alpha^lab of lab[i]), so that a
model of forty coefficients is still one line of as many terms as its formula has.
"""

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from latex2mathml.converter import convert

from analysis.regression.model import Regression
from analysis.report.tables import escape_tex, plain_tex

A_LINE = 3  # summands on one line of LaTeX
SIM = r"\sim"
TEXT = re.compile(r"\\text\{((?:\\.|\{\}|[^{}\\])*)\}")  # a column's name, escaped


@dataclass(frozen=True, slots=True)
class Relation:
    """One line of the model in LaTeX: left side, relation and the summands of its right side."""

    left: str
    sign: str
    summands: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Equation:
    """The lines of a model, and what its symbols mean."""

    lines: tuple[Relation, ...]
    legend: tuple[tuple[str, str], ...] = ()  # symbol in LaTeX, meaning


@dataclass(slots=True)
class _Coefficients:
    """Numbers for the coefficients of numeric terms, in the order in which they stand."""

    last: int = 0
    legend: list[tuple[str, str]] = field(default_factory=list)

    def beta(self, meaning: str) -> str:
        self.last += 1
        symbol = rf"\beta_{{{self.last}}}"
        self.legend.append((symbol, f"coefficient of {meaning}"))
        return symbol


def name(text: str) -> str:
    """Return a column's name as upright text."""
    return rf"\text{{{escape_tex(text.replace('`', ''))}}}"


def equation(reg: Regression) -> Equation:
    """Return the fitted model as an equation."""
    coefficients = _Coefficients()
    summands = [_term(t, reg, coefficients) for t in reg.fit.design.spec.terms]
    summands += [f"{name(o)}_{{i}}" for o in reg.fit.design.parsed.offsets]
    summands += [own for f in reg.fit.problem.factors for own in _random(f)]
    groups = [_distribution(f) for f in reg.fit.problem.factors]
    lines = [*_outcome(reg, tuple(s for s in summands if s)), *groups]
    return Equation(tuple(lines), tuple(coefficients.legend))


def _outcome(reg: Regression, eta: tuple[str, ...]) -> list[Relation]:
    """Return the distribution of the score and what its mean is made of."""
    y, mu, weight = f"{name(reg.response)}_{{i}}", r"\mu_{i}", reg.proposal.weights
    link = Relation(rf"\text{{logit}} ( {mu} )", "=", eta)
    if reg.fit.family.startswith("beta"):
        return [Relation(y, SIM, (rf"\text{{Beta}} ( {mu} \phi , ( 1 - {mu} ) \phi )",)), link]
    if reg.fit.family == "binomial":
        if weight is None:
            return [Relation(y, SIM, (rf"\text{{Bernoulli}} ( {mu} )",)), link]
        m = f"{name(weight)}_{{i}}"
        return [Relation(rf"{m} \cdot {y}", SIM, (rf"\text{{Binomial}} ( {m} , {mu} )",)), link]
    epsilon, variance = r"\varepsilon_{i}", r"\sigma^{2}"
    if weight is not None:
        variance += f" / {name(weight)}_{{i}}"
    law = Relation(epsilon, SIM, (rf"\mathcal{{N}} ( 0 , {variance} )",))
    return [Relation(y, "=", (*eta, epsilon)), law]


def _term(term: Any, reg: Regression, coefficients: _Coefficients) -> str:
    """Return one term of the fixed part; nothing where it has no column."""
    spec = reg.fit.design.spec
    columns = reg.fit.design.names[spec.term_slices[term]]
    if not columns:
        return ""
    if columns == ("Intercept",):
        return r"\beta_{0}"
    expressions = [str(f.expr) for f in term.factors]
    states = {str(f.expr) for f in getattr(spec, "factor_contrasts", {})}
    levels = [e for e in expressions if e in states]
    numbers = [e for e in expressions if e not in states]
    if not levels:
        return _numbers(numbers, columns, coefficients)
    names = [re.sub(r"^C\(`?(.*?)`?\)$", r"\1", e) for e in levels]
    symbol = (r"\beta" if numbers else r"\alpha") + f"_{{{' , '.join(map(_level, names))}}}"
    if numbers:
        symbol += f"^{{{name('·'.join(numbers))}}}"
    coefficients.legend.append((symbol, _meaning(names, numbers)))
    return " ".join([symbol, *([_product(numbers)] if numbers else [])])


def _level(column: str) -> str:
    return f"{name(column)} [ i ]"


def _meaning(names: Sequence[str], numbers: Sequence[str]) -> str:
    what = f"slope of {' · '.join(numbers)} at" if numbers else "effect of"
    if len(names) == 1:
        return f"{what} the level of {names[0]}, zero for its first level"
    return f"{what} the levels of {' and '.join(names)}, zero where one is the first"


def _numbers(numbers: list[str], columns: tuple[str, ...], coefficients: _Coefficients) -> str:
    """Return a product of numbers with its coefficient, or a polynomial basis with its own."""
    if len(columns) == 1:
        what = " · ".join(re.sub(r"I\((\w+) \*\* 2\)", r"\1²", n) for n in numbers)
        return f"{coefficients.beta(what.replace('`', ''))} {_product(numbers)}"
    inner = _variable(re.sub(r"^\w+\(`?([^`,]*)`?.*$", r"\1", numbers[0]))
    return " + ".join(
        rf"{coefficients.beta(column.replace('`', ''))} \text{{p}}_{{{k}}} ( {inner} )"
        for k, column in enumerate(columns, start=1)
    )


def _product(numbers: Sequence[str]) -> str:
    return r" \cdot ".join(_variable(expression) for expression in numbers)


def _variable(expression: str) -> str:
    """Return a number of row i: x, x squared, log2(x), or the expression as text."""
    power = re.fullmatch(r"I\(`?(.+?)`? \*\* (\d)\)", expression)
    if power:
        return f"{name(power[1])}_{{i}}^{{{power[2]}}}"
    call = re.fullmatch(r"(\w+)\(`?([^`()]+)`?\)", expression)
    if call:
        return f"{name(call[1])} ( {name(call[2])}_{{i}} )"
    return f"{name(expression)}_{{i}}"


def _random(factor: Any) -> list[str]:
    """Return what a grouping factor adds to row i: an intercept, slopes."""
    found = []
    for k, column in enumerate(factor.names):
        number = f"{k} , " if len(factor.names) > 1 else ""
        u = f"u_{{{number}{_level(factor.group)}}}"
        found.append(u if column == "Intercept" else f"{u} {_variable(_plain(column))}")
    return found


def _plain(column: str) -> str:
    return re.sub(r"\[(?:T\.)?([^\]]*)\]", r" \1", column)


def _distribution(factor: Any) -> Relation:
    p, group = len(factor.names), name(factor.group)
    if p == 1:
        law = rf"\mathcal{{N}} ( 0 , \sigma_{{{group}}}^{{2}} )"
        return Relation(f"u_{{{group}}}", SIM, (law,))
    parts = " , ".join(f"u_{{{k} , {group}}}" for k in range(p))
    return Relation(f"( {parts} )", SIM, (rf"\mathcal{{N}} ( 0 , \Sigma_{{{group}}} )",))


def latex(found: Equation) -> str:
    """Return the equation in LaTeX; it needs `\\usepackage{amsmath}`."""
    lines = []
    for line in found.lines:
        parts = line.summands
        groups = [" + ".join(parts[i : i + A_LINE]) for i in range(0, len(parts), A_LINE)]
        lines.append(f"{line.left} &{line.sign} " + " \\\\\n  &\\quad + ".join(groups))
    body = " \\\\\n  ".join(lines)
    return "\\begin{align*}\n  " + body + "\n\\end{align*}\n"


def legend_tex(found: Equation) -> str:
    """Return what the coefficients mean as a clause in LaTeX."""
    return "; ".join(f"${symbol}$ is the {escape_tex(m)}" for symbol, m in found.legend)


def mathml(found: Equation) -> str:
    """Return the equation for a page: one <math> per summand, so that long lines can wrap."""
    lines = []
    for line in found.lines:
        parts = [converted(f"{line.left} {line.sign}")]
        parts += [converted(f"+ {s}" if k else s) for k, s in enumerate(line.summands)]
        lines.append(f'<div class="line">{" ".join(parts)}</div>')
    return "".join(lines)


def legend_html(found: Equation) -> str:
    """Return what the coefficients mean as a list for a page."""
    items = (f"<li>{converted(s)} {html.escape(m)}</li>" for s, m in found.legend)
    return f'<ul class="legend">{"".join(items)}</ul>'


def converted(tex: str) -> str:
    """Return LaTeX as MathML.

    latex2mathml neither undoes escapes within \\text nor escapes for HTML, so names go around it.
    It also takes \\sim for a letter, and a leading + for a sign.
    """
    names: list[str] = []

    def numbered(match: re.Match[str]) -> str:
        names.append(html.escape(plain_tex(match[1])))
        return rf"\text{{name{len(names) - 1}}}"

    found = convert(TEXT.sub(numbered, tex)).replace("<mi>&#x0007E;</mi>", "<mo>∼</mo>")
    found = found.replace("<mrow><mo>&#x0002B;</mo>", '<mrow><mo form="infix">+</mo>', 1)
    return re.sub(
        r"<mtext>name(\d+)</mtext>", lambda m: f"<mtext>{names[int(m[1])]}</mtext>", found
    )
