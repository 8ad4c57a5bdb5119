"""The health of a fit and its residuals: standardised, or randomised quantile residuals.

A model that is not Gaussian has no residuals to speak of; its randomised quantile residuals
(Dunn and Smyth 1996, J. Comput. Graph. Stat. 5(3)), Phi^-1 of a uniform draw between F(y-) and
F(y), are standard normal where the model is right. The draws are always the same.
"""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from analysis.engine.fits import GlmmFit
from analysis.engine.linalg import Array
from analysis.engine.ties import falling
from analysis.errors import AnalysisError
from analysis.inference.estimates import contrast
from analysis.mixed import MixedFit, fit_mixed
from analysis.regression.effect_groups import effects
from analysis.regression.model import Regression
from analysis.regression.propose import quoted
from analysis.report import plots, words
from analysis.report.page import Block, Item, Listing, Plate, Section, Sheet
from analysis.report.tables import P_VALUE, SIGNIFICANT, Table, p_text
from analysis.table.factors import is_number

ALPHA = 0.05
EDGE = 1e-12
FAR = 3.5  # standard deviations from which a row is listed
MOST_ROWS = 10
DRAWN = 4000  # dots that a figure carries
NO_ZERO = "No variance is estimated as zero."


def residuals(reg: Regression) -> "pd.Series[float]":
    """Return residuals that are standard normal where the model is right."""
    fit = reg.fit
    if not isinstance(fit, GlmmFit):
        return fit.standardised
    low_N, high_N = _ends(fit)
    draw_N = np.random.default_rng(0).uniform(size=len(low_N))
    between_N = np.clip(low_N + draw_N * (high_N - low_N), EDGE, 1 - EDGE)
    return pd.Series(stats.norm.ppf(between_N), index=fit.design.rows)


def _ends(fit: GlmmFit) -> tuple[Array, Array]:
    """Return F(y-) and F(y) of every row."""
    mu_N, family = fit.fitted.to_numpy(), fit.problem.family
    y_N = family.y_N
    if family.dispersed:
        at_N = np.asarray(stats.beta.cdf(y_N, mu_N * fit.phi, (1 - mu_N) * fit.phi))
        return at_N, at_N
    trials_N = np.ones(len(y_N)) * family.size_N
    hits_N = np.rint(y_N * trials_N)
    below_N, upto_N = (stats.binom.cdf(hits_N - k, trials_N, mu_N) for k in (1, 0))
    return np.asarray(below_N), np.asarray(upto_N)


def section(reg: Regression) -> Section:
    """Return the health of the fit in plain words, and its residuals."""
    found = residuals(reg)
    rows = check_rows(reg, found)
    lines = [*health(reg.fit), *reg.steps, *_notes(reg), *rows.loc[rows["words"] != "", "words"]]
    some = found.sample(DRAWN, random_state=0) if len(found) > DRAWN else found
    kind = "Randomised quantile residuals" if reg.general else "Standardised residuals"
    blocks: list[Block] = [Listing(tuple(Item(text=line) for line in dict.fromkeys(lines)))]
    blocks += [plate(reg.fit.fitted, some, kind), Sheet(check_table(rows))]
    far = _far(reg, found)
    blocks += [Sheet(far)] if len(far.frame) else []
    summary = f"{lines[0]} Residuals: {_verdict(rows)}."
    return Section("diagnostics", "Diagnostics", tuple(blocks), summary)


def plate(fitted: "pd.Series[float]", found: "pd.Series[float]", kind: str) -> Plate:
    """Return residuals of some kind against fitted scores and the normal distribution."""
    caption = (
        f"{kind} against the fitted score (a fan or a bend would mean that the model's form is "
        f"wrong) and against the normal distribution (a straight line is good)."
    )
    return Plate("residuals", plots.residuals(fitted.loc[found.index], found), caption)


def _verdict(rows: pd.DataFrame) -> str:
    odd = int((rows["words"] != "").sum())
    return "nothing unusual" if not odd else f"{odd} of {len(rows)} checks call for attention"


def health(fit: MixedFit) -> list[str]:
    """Return sentences on convergence and singularity, and whatever else the fit reports."""
    state = "converged" if fit.converged else "did NOT converge: do not rely on its intervals"
    lines = [f"The fit {state}; {fit.n} scores, {len(fit.fixef)} coefficients."]
    if fit.random and not fit.singular:
        lines.append(NO_ZERO)
    return [*lines, *fit.diagnosis]


def _notes(reg: Regression) -> list[str]:
    return [str(note) for note in reg.frame.attrs.get("notes", ())]


def check_rows(reg: Regression, found: "pd.Series[float]") -> pd.DataFrame:
    """Return what is asked of the residuals: check, value, p and, where it matters, words."""
    fitted = reg.fit.fitted.loc[found.index]
    size = found.abs().round(9)  # two seeds leave residuals of one size in every cell
    varies = fitted.nunique() > 1 and size.nunique() > 1
    bend = stats.spearmanr(fitted, size) if varies else (np.nan, np.nan)
    beyond = float((found.abs() > 3).mean())
    skew, tails = float(stats.skew(found)), float(stats.kurtosis(found))
    spread = "" if not bend[1] < 0.001 or abs(bend[0]) < 0.2 else (
        f"The residuals spread {'more' if bend[0] > 0 else 'less'} where the fitted score is "
        f"higher: standard errors are averages over rows of unequal noise."
    )  # fmt: skip
    shape = "" if abs(skew) < 1 and tails < 3 else (
        "The residuals are far from normal (skewed or heavy in the tails): trust intervals of "
        "means over many rows, not those that rest on few."
    )  # fmt: skip
    rows = [
        ("rank correlation of their size with the fitted score", bend[0], bend[1], spread),
        ("skewness", skew, np.nan, shape),
        ("excess kurtosis", tails, np.nan, ""),
        ("share beyond 3 standard deviations (normal: 0.27 %)", beyond, np.nan, ""),
    ]
    rows += [
        (f"curvature over {one.column}: t of its square", one.t, one.p, one.words)
        for one in bends(reg)
    ]
    return pd.DataFrame(rows, columns=["check", "value", "p", "words"])


@dataclass(frozen=True, slots=True)
class Bend:
    """The test of the square of a number that stands in a model as a straight line."""

    column: str
    t: float
    p: float
    words: str  # that the score bends over it; "" where it is not seen to


def bends(reg: Regression) -> list[Bend]:
    """Return the tests of every number that stands in the model as a straight line."""
    return reg.once("curvature", lambda: list(_bends(reg)))


def _bends(reg: Regression) -> Iterator[Bend]:
    every = effects(reg.fit)
    times = Counter(name for effect in every for name in effect.variables)
    numbers = [
        effect for effect in every
        if len(effect.variables) == len(effect.names) == 1 and times[effect.variables[0]] == 1
        and is_number(reg.used[effect.variables[0]])
        and reg.used[effect.variables[0]].nunique() > 2
    ]  # fmt: skip
    for effect in numbers:
        (column,), (name,) = effect.variables, effect.names
        term = quoted(column) if name == column else name
        try:
            formula = f"{reg.fit.formula} + I(({term})^2)"
            fit = fit_mixed(reg.used, formula, reg.family, weights=reg.proposal.weights)
        except AnalysisError:
            continue
        new = ~fit.fixef.index.isin(reg.fit.fixef.index)  # interactions stand behind the square
        if len(fit.fixef) != len(reg.fit.fixef) + 1 or new.sum() != 1:
            continue
        found = contrast(fit, new.astype(float), df=reg.df)
        if math.isfinite(found.p):
            said = "" if found.p * len(numbers) >= ALPHA else (
                f"The score bends over {column} ({p_text(found.p)} for its square): a straight "
                f"line misstates its effect; add I(({term})^2) to the formula."
            )  # fmt: skip
            yield Bend(column, found.t, found.p, said)


def check_table(rows: pd.DataFrame) -> Table:
    """Return `check_rows` as a table of the report."""
    note = (
        "Of the residuals, and of straight lines: the square of a number is added to the model and "
        "tested. A p-value asks whether the figure could be chance."
    )
    formats = {"value": SIGNIFICANT, "p": P_VALUE}
    frame = rows.drop(columns="words")
    return Table("residual_checks", "Residuals", frame, note, words.HEADS, formats)


def _far(reg: Regression, found: "pd.Series[float]") -> Table:
    """Return the rows that the model fits worst."""
    far = found[found.abs() > FAR]
    worst = far.index[falling(far.abs())][:MOST_ROWS]
    columns = [c for c in reg.fit.design.parsed.columns if c in reg.used]
    frame = reg.used.loc[worst, columns].assign(
        fitted=reg.fit.fitted.loc[worst], residual=found.loc[worst]
    )
    frame.insert(0, "row", [int(i) + 1 for i in worst])
    note = "Row: of the table's rows with a score. Look at them before anything is left out."
    formats = {"fitted": SIGNIFICANT, "residual": ".1f"}
    return Table("far_rows", f"Rows beyond {FAR:g} standard deviations", frame, note, {}, formats)
