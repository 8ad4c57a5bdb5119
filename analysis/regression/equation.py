"""The model as an equation: MathML for the page, LaTeX for a paper, from one tree of symbols.

Factors enter as one symbol with the level of row i as its index (alpha^lab of lab[i]), so that a
model of forty coefficients is still one line of as many terms as its formula has.
"""

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from analysis.regression.model import Regression
from analysis.report.tables import escape_tex

GREEK = {
    "α": r"\alpha", "β": r"\beta", "γ": r"\gamma", "ε": r"\varepsilon", "σ": r"\sigma",
    "φ": r"\phi", "μ": r"\mu", "Σ": r"\Sigma", "π": r"\pi", "∼": r"\sim", "−": "-", "·": r"\cdot",
    "×": r"\times", "∈": r"\in", "≠": r"\neq", "𝒩": r"\mathcal{N}",
}  # fmt: skip
PLUS = '<mo form="infix">+</mo>'
A_LINE = 3  # summands on one line of LaTeX


@dataclass(frozen=True, slots=True)
class Leaf:
    """One symbol: i a letter, n a number, o an operator, t upright text."""

    text: str
    kind: str = "i"


@dataclass(frozen=True, slots=True)
class Marked:
    """A symbol with what stands below and above it."""

    base: "Node"
    below: tuple["Node", ...] = ()
    above: tuple["Node", ...] = ()


Node = Leaf | Marked
Row = tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Line:
    """One relation: a head (left side and relation) and the summands of its right side."""

    head: Row
    summands: tuple[Row, ...]


@dataclass(frozen=True)
class Equation:
    """The lines of a model, and what its symbols mean."""

    lines: tuple[Line, ...]
    legend: tuple[tuple[Node, str], ...] = ()  # symbol, meaning


@dataclass(slots=True)
class _Counter:
    """Numbers for the coefficients of numbers, in the order in which they stand."""

    last: int = 0
    legend: list[tuple[Node, str]] = field(default_factory=list)

    def beta(self, meaning: str) -> Marked:
        self.last += 1
        symbol = Marked(Leaf("β"), (Leaf(str(self.last), "n"),))
        self.legend.append((symbol, f"coefficient of {meaning}"))
        return symbol


I_ROW = Leaf("i")
OF = "∼"


def name(text: str) -> Leaf:
    """Return a column's name as upright text."""
    return Leaf(text.replace("`", ""), "t")


def op(text: str) -> Leaf:
    """Return an operator or bracket."""
    return Leaf(text, "o")


def equation(reg: Regression) -> Equation:
    """Return the fitted model as an equation."""
    counter = _Counter()
    summands: list[Row] = [_row(t, reg, counter) for t in reg.fit.design.spec.terms]
    summands += [(Marked(name(o), (I_ROW,)),) for o in reg.fit.design.parsed.offsets]
    summands += [row for f in reg.fit.problem.factors for row in _random(f)]
    groups = [_distribution(f) for f in reg.fit.problem.factors]
    lines = [*_outcome(reg, tuple(s for s in summands if s)), *groups]
    return Equation(tuple(lines), tuple(counter.legend))


def _outcome(reg: Regression, eta: tuple[Row, ...]) -> list[Line]:
    y = Marked(name(reg.response), (I_ROW,))
    mu = Marked(Leaf("μ"), (I_ROW,))
    weight = reg.proposal.weights
    if reg.fit.family.startswith("beta"):
        phi = Leaf("φ")
        shape = (name("Beta"), op("("), mu, phi, op(","), op("("), Leaf("1", "n"), op("−"), mu,
                 op(")"), phi, op(")"))  # fmt: skip
        return [Line((y, op(OF)), (shape,)), _link(mu, eta)]
    if reg.fit.family == "binomial":
        if weight is None:
            bernoulli = (name("Bernoulli"), op("("), mu, op(")"))
            return [Line((y, op(OF)), (bernoulli,)), _link(mu, eta)]
        m = Marked(name(weight), (I_ROW,))
        law: Row = (name("Binomial"), op("("), m, op(","), mu, op(")"))
        return [Line((m, op("·"), y, op(OF)), (law,)), _link(mu, eta)]
    epsilon = Marked(Leaf("ε"), (I_ROW,))
    variance: Row = (Marked(Leaf("σ"), (), (Leaf("2", "n"),)),)
    if weight is not None:
        variance = (*variance, op("/"), Marked(name(weight), (I_ROW,)))
    law = (Leaf("𝒩"), op("("), Leaf("0", "n"), op(","), *variance, op(")"))
    return [Line((y, op("=")), (*eta, (epsilon,))), Line((epsilon, op(OF)), (law,))]


def _link(mu: Marked, eta: tuple[Row, ...]) -> Line:
    return Line((name("logit"), op("("), mu, op(")"), op("=")), eta)


def _row(term: Any, reg: Regression, counter: _Counter) -> Row:
    """Return one term of the fixed part."""
    spec = reg.fit.design.spec
    own = spec.term_slices[term]
    columns = reg.fit.design.names[own]
    if not columns:
        return ()
    if columns == ("Intercept",):
        return (Marked(Leaf("β"), (Leaf("0", "n"),)),)
    expressions = [str(f.expr) for f in term.factors]
    states = {str(f.expr) for f in getattr(spec, "factor_contrasts", {})}
    levels = [e for e in expressions if e in states]
    numbers = [e for e in expressions if e not in states]
    if not levels:
        return _numbers(numbers, columns, counter)
    names = [re.sub(r"^C\(`?(.*?)`?\)$", r"\1", e) for e in levels]
    index: list[Node] = []
    for n in names:
        index += [op(","), *_level(n)] if index else list(_level(n))
    above = (name("·".join(numbers).replace("`", "")),) if numbers else ()
    symbol = Marked(Leaf("β" if numbers else "α"), tuple(index), above)
    counter.legend.append((symbol, _meaning(names, numbers)))
    return (symbol, *_product(numbers))


def _level(column: str) -> Row:
    return (name(column), op("["), I_ROW, op("]"))


def _meaning(names: Sequence[str], numbers: Sequence[str]) -> str:
    what = f"slope of {' · '.join(numbers)} at" if numbers else "effect of"
    if len(names) == 1:
        return f"{what} the level of {names[0]}, zero for its first level"
    return f"{what} the levels of {' and '.join(names)}, zero where one is the first"


def _numbers(numbers: list[str], columns: tuple[str, ...], counter: _Counter) -> Row:
    if len(columns) == 1:
        what = " · ".join(re.sub(r"I\((\w+) \*\* 2\)", r"\1²", n) for n in numbers)
        return (counter.beta(what.replace("`", "")), *_product(numbers))
    row: list[Node] = []
    for k, column in enumerate(columns, start=1):
        basis = Marked(name("p"), (Leaf(str(k), "n"),))
        inner = re.sub(r"^\w+\(`?([^`,]*)`?.*$", r"\1", numbers[0])
        row += [op("+")] if row else []
        row += [counter.beta(column.replace("`", "")), basis, op("("), *_variable(inner), op(")")]
    return tuple(row)


def _product(numbers: Sequence[str]) -> Row:
    row: list[Node] = []
    for expression in numbers:
        row += [*([op("·")] if row else []), *_variable(expression)]
    return tuple(row)


def _variable(expression: str) -> Row:
    """Return a number of row i: x, x squared, log2(x), or the expression as text."""
    power = re.fullmatch(r"I\(`?(.+?)`? \*\* (\d)\)", expression)
    if power:
        return (Marked(name(power[1]), (I_ROW,), (Leaf(power[2], "n"),)),)
    call = re.fullmatch(r"(\w+)\(`?([^`()]+)`?\)", expression)
    if call:
        return (name(call[1]), op("("), Marked(name(call[2]), (I_ROW,)), op(")"))
    return (Marked(name(expression), (I_ROW,)),)


def _random(factor: Any) -> list[Row]:
    rows: list[Row] = []
    for k, column in enumerate(factor.names):
        below = (*([Leaf(str(k), "n"), op(",")] if len(factor.names) > 1 else []),
                 *_level(factor.group))  # fmt: skip
        u = Marked(Leaf("u"), below)
        rows.append((u,) if column == "Intercept" else (u, *_variable(_plain(column))))
    return rows


def _plain(column: str) -> str:
    return re.sub(r"\[(?:T\.)?([^\]]*)\]", r" \1", column)


def _distribution(factor: Any) -> Line:
    p, group = len(factor.names), name(factor.group)
    law: tuple[Node, ...] = (Leaf("𝒩"), op("("), Leaf("0", "n"), op(","))
    if p == 1:
        variance = Marked(Leaf("σ"), (group,), (Leaf("2", "n"),))
        head: Row = (Marked(Leaf("u"), (group,)), op(OF))
        return Line(head, ((*law, variance, op(")")),))
    parts: list[Node] = [op("(")]
    for k in range(p):
        parts += [op(",")] if k else []
        parts.append(Marked(Leaf("u"), (Leaf(str(k), "n"), op(","), group)))
    return Line((*parts, op(")"), op(OF)), ((*law, Marked(Leaf("Σ"), (group,)), op(")")),))


def mathml(found: Equation) -> str:
    """Return the equation for a page: one <math> per summand, so that long lines can wrap."""
    lines = []
    for line in found.lines:
        head = f"<math><mrow>{_ml(line.head)}</mrow></math>"
        parts = [
            f"<math><mrow>{PLUS if k else ''}{_ml(row)}</mrow></math>"
            for k, row in enumerate(line.summands)
        ]
        lines.append(f'<div class="line">{head} {" ".join(parts)}</div>')
    return "".join(lines)


def _ml(row: Sequence[Node]) -> str:
    return "".join(_ml_node(node) for node in row)


def _ml_node(node: Node) -> str:
    if isinstance(node, Leaf):
        tag = {"i": "mi", "n": "mn", "o": "mo", "t": "mtext"}[node.kind]
        stretch = ' stretchy="false"' if tag == "mo" else ""
        return f"<{tag}{stretch}>{html.escape(node.text)}</{tag}>"
    base, below, above = _ml_node(node.base), _ml(node.below), _ml(node.above)
    if node.below and node.above:
        return f"<msubsup>{base}<mrow>{below}</mrow><mrow>{above}</mrow></msubsup>"
    if node.below:
        return f"<msub>{base}<mrow>{below}</mrow></msub>"
    return f"<msup>{base}<mrow>{above}</mrow></msup>"


def latex(found: Equation) -> str:
    """Return the equation in LaTeX; it needs `\\usepackage{amsmath}`."""
    lines = []
    for line in found.lines:
        parts = [_tex(row) for row in line.summands]
        groups = [" + ".join(parts[i : i + A_LINE]) for i in range(0, len(parts), A_LINE)]
        *left, relation = line.head
        lines.append(f"{_tex(left)} &{_tex((relation,))} " + " \\\\\n  &\\quad + ".join(groups))
    body = " \\\\\n  ".join(lines)
    return "\\begin{align*}\n  " + body + "\n\\end{align*}\n"


def _tex(row: Sequence[Node]) -> str:
    return " ".join(_tex_node(node) for node in row)


def _tex_node(node: Node) -> str:
    if isinstance(node, Leaf):
        if node.kind == "t":
            return rf"\text{{{escape_tex(node.text)}}}"
        return GREEK.get(node.text, node.text)
    text = _tex_node(node.base)
    if node.below:
        text += f"_{{{_tex(node.below)}}}"
    if node.above:
        text += f"^{{{_tex(node.above)}}}"
    return text


def legend_tex(found: Equation) -> str:
    """Return what the coefficients mean as a clause in LaTeX."""
    return "; ".join(f"${_tex_node(n)}$ is the {escape_tex(m)}" for n, m in found.legend)


def legend_html(found: Equation) -> str:
    """Return what the coefficients mean as a list for a page."""
    items = (f"<li><math>{_ml_node(n)}</math> {html.escape(m)}</li>" for n, m in found.legend)
    return f'<ul class="legend">{"".join(items)}</ul>'
