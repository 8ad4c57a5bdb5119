"""An effect as a quadratic surface over two numbers of the data, on log scales.

    gap_i = b0 + b1 x + b2 s + b3 x^2 + b4 x s + b5 s^2 + base model + cell + noise

with x and s the log2 of the two numbers less their means over the cells. A cell is one data set (a
pair x, s) on one base model; it is random, so what the surface misses widens the intervals
(`table.cell_effect`). Terms that the numbers do not determine are left out: fewer than three
values of a number give no square. Base models have coefficients that sum to zero, so the surface is
that of the mean base model.

Letters in names: P places on the surface, B coefficients.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd

from analysis.engine.linalg import Array
from analysis.errors import AnalysisError
from analysis.inference.estimates import LEVEL, Estimate, Joint, contrast, covariance, joint
from analysis.inference.largest_t import largest, quantile
from analysis.mixed import MixedFit, fit_mixed
from analysis.table.cell_effect import cell_formula

DF = "kenward-roger"
MOST = 0.999  # a correlation of two coefficients from which they are told as one


@dataclass(frozen=True, slots=True)
class Surface:
    """The fitted surface.

    Attributes:
        fit: of the pairs' differences.
        middle: of log2 of the two numbers: where x and s are 0.
        cells: the places that were run, with how many pairs each has.
        replicated: whether some cell has several pairs, without which there is no noise estimate
            apart from what the surface misses.
    """

    fit: MixedFit
    names: tuple[str, str]
    middle: tuple[float, float]
    cells: pd.DataFrame
    replicated: bool

    def l_PB(self, places: Sequence[tuple[float, float]]) -> Array:
        """Return the contrasts of the effect at places, given as the two numbers themselves."""
        x_P, s_P = (np.log2([p[i] for p in places]) - self.middle[i] for i in (0, 1))
        terms = {
            "Intercept": np.ones_like(x_P), "x": x_P, "s": s_P,
            "I(x ** 2)": x_P**2, "I(s ** 2)": s_P**2, "x:s": x_P * s_P,
        }  # fmt: skip
        zero_P = np.zeros_like(x_P)
        return np.column_stack([terms.get(name, zero_P) for name in self.fit.fixef.index])

    def at(self, places: Sequence[tuple[float, float]]) -> list[Estimate]:
        """Return the effect at places with an interval of its own each."""
        return [contrast(self.fit, l_B, df=DF) for l_B in self.l_PB(places)]

    def together(self, places: Sequence[tuple[float, float]]) -> pd.DataFrame:
        """Return the effect at places with intervals that hold for all of them at once.

        Columns: the two numbers, estimate, low, high (each for itself), all_low, all_high.
        """
        l_PB, found = self.l_PB(places), self.at(places)
        cov_PP = l_PB @ covariance(self.fit, DF) @ l_PB.T
        se_P = np.sqrt(np.diagonal(cov_PP))
        df = float(min(one.df for one in found))
        d = quantile(largest(cov_PP / np.outer(se_P, se_P), two_sided=True), LEVEL, df)
        table = pd.DataFrame(list(places), columns=list(self.names))
        estimate_P = np.array([one.estimate for one in found])
        return table.assign(
            estimate=estimate_P,
            low=[one.low for one in found],
            high=[one.high for one in found],
            all_low=estimate_P - d * se_P,
            all_high=estimate_P + d * se_P,
        )

    def change(self, number: int) -> Estimate:
        """Return the effect at a number's largest value less that at its smallest.

        The other number is at the middle of what was run.
        """
        values = self.cells[self.names[number]].astype(float)
        ends = [[2.0**middle for middle in self.middle] for _ in range(2)]
        ends[0][number], ends[1][number] = float(values.max()), float(values.min())
        high_B, low_B = self.l_PB([(x, s) for x, s in ends])
        return contrast(self.fit, high_B - low_B, df=DF)

    def changes(self) -> Joint | None:
        """Return the test that the effect is the same everywhere; None where it can only be so."""
        moving = [n for n in self.fit.fixef.index if {"x", "s"} & set(_letters(n))]
        if not moving:
            return None
        l_KB = np.array([[float(n == own) for n in self.fit.fixef.index] for own in moving])
        return joint(self.fit, l_KB, df=DF)


def surface(pairs: pd.DataFrame, x: str, s: str) -> Surface:
    """Return the surface of `gap` over two columns of positive numbers.

    Args:
        pairs: of `table.gaps.gaps`, with x, s, model and gap.
        x: the first number.
        s: the second.

    Raises:
        AnalysisError: a number that is not above 0, or too few places for a surface.
    """
    for name in (x, s):
        if not (pairs[name].astype(float) > 0).all():
            raise AnalysisError(f"{name}: must be above 0 for a log scale")
    logs = {n: np.log2(pairs[n].astype(float)) for n in (x, s)}
    cells = pairs.groupby([x, s], observed=True).agg(pairs=("gap", "size"), gap=("gap", "mean"))
    cells = cells.reset_index()
    middle = tuple(float(np.log2(cells[n].astype(float)).mean()) for n in (x, s))
    frame = pd.DataFrame(
        {"gap": pairs["gap"], "x": logs[x] - middle[0], "s": logs[s] - middle[1]}
    ).assign(cell=pairs[[x, s, "model"]].astype(str).agg(" ".join, axis=1))
    terms = _terms(frame)
    for number, (before, after) in enumerate(pairwise(sorted(pairs["model"].astype(str).unique()))):
        own = pairs["model"].astype(str)
        frame[f"base{number}"] = (own == after).astype(float) - (own == before).astype(float)
        terms.append(f"base{number}")
    formula, replicated = cell_formula(f"gap ~ {' + '.join(terms)} + (1 | cell)", frame)
    fit = fit_mixed(frame, formula)
    return Surface(fit, (x, s), (middle[0], middle[1]), cells, replicated)


def _terms(frame: pd.DataFrame) -> list[str]:
    """Return the terms that the places determine."""
    counts = {name: frame[name].round(9).nunique() for name in ("x", "s")}
    terms = ["1"]
    for name, count in counts.items():
        terms += [name] if count > 1 else []
        terms += [f"I({name}^2)"] if count > 2 else []
    if min(counts.values()) > 1:
        terms.append("x:s")
    if len(frame[["x", "s"]].round(9).drop_duplicates()) < len(terms):
        raise AnalysisError("too few places for a surface over the two numbers")
    return terms


def _letters(term: str) -> list[str]:
    return [part for part in ("x", "s") if part in term.replace("base", "")]
