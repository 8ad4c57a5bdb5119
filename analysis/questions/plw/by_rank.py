"""The best prompt loss weight of every adapter at every rank.

The default model of a panel for one masking mode, with a curve per adapter:

    score ~ adapter + block + (1 | cell)
          + (w_p + w_p^2) : adapter                              full tuning has these alone
          + (r + r^2 + w_p r) : adapter,   r = log2(rank / r0)   zero for full tuning

The block is what runs of one seed share. The curve over the weight at one rank is the mean response
there; its optimum is that of `curve.best`. Without replicates (one seed a cell) nothing is tested
and no optimum is given.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.curve.best import best_row, objection
from analysis.curve.shape import Shape
from analysis.errors import AnalysisError
from analysis.inference.estimates import DF_RULES, contrast, joint
from analysis.inference.mean_response import Response, response
from analysis.inference.optimum import Optimum, optimum
from analysis.mixed import fit_mixed
from analysis.questions.plw.estimate import NO_OPTIMUM
from analysis.table.cell_effect import cell_formula
from analysis.table.run_panels import RunPanel, key_of, run_panels

NAN = float("nan")


@dataclass(frozen=True, slots=True)
class AdapterCurves:
    """The curves over the weight of one adapter in one panel."""

    labels: dict[str, str]
    adapter: str
    by_rank: dict[int, Response]  # 0 for full tuning, which has no rank
    middle: Response  # at rank r0
    replicated: bool  # whether some cell ran under several seeds

    @property
    def p_changes(self) -> float:
        """The p-value of one curve at all ranks (w_p r = 0); NaN with one rank or one seed."""
        if len(self.by_rank) < 2 or not self.replicated:
            return NAN
        ends = [self.by_rank[rank].l_3B[1] for rank in (max(self.by_rank), min(self.by_rank))]
        return contrast(self.middle.fit, ends[0] - ends[1], df=self.middle.df).p


def adapter_curves(frame: pd.DataFrame, *, df: str = DF_RULES[0]) -> list[AdapterCurves]:
    """Return the curves of every adapter in every panel with two weights above 0.

    Args:
        frame: a prepared results table of `analysis.table.frame`.
        df: the rule for degrees of freedom, one of `estimates.DF_RULES`.
    """
    return [one for panel in run_panels(frame) for one in panel_curves(panel, df=df)]


def panel_curves(panel: RunPanel, *, df: str = DF_RULES[0]) -> Iterator[AdapterCurves]:
    """Yield the curves of every adapter of one panel; nothing where no noise can be estimated."""
    runs = panel.runs.assign(adapter=panel.runs["adapter"].astype(str))
    try:
        formula, replicated = cell_formula(curve_formula(runs), runs)
        fit = fit_mixed(runs, formula)
    except AnalysisError:
        return
    for adapter, own in runs.groupby("adapter", sort=True):
        ranks = {int(str(rank)): response(fit, rows, df=df) for rank, rows in own.groupby("rank")}
        middle = response(fit, own.assign(log2_rank=0.0), df=df)
        yield AdapterCurves(panel.labels, str(adapter), ranks, middle, replicated)


def curve_formula(runs: pd.DataFrame) -> str:
    """Return the formula of the module's docstring without what does not vary."""
    several = runs["adapter"].nunique() > 1
    of_adapter = ":adapter" if several else ""
    terms = ["adapter"] if several else []
    terms += ["block"] if runs["block"].nunique() > 1 else []
    terms += [f"wp{of_adapter}", f"I(wp^2){of_adapter}"]
    if runs["log2_rank"].nunique() > 1:
        terms += [f"{t}{of_adapter}" for t in ("log2_rank", "I(log2_rank^2)", "wp:log2_rank")]
    return "score ~ " + " + ".join([*terms, "(1 | cell)"])


def rank_optimum(curve: Response) -> Optimum | None:
    """Return the optimum of the curve at one rank; None where the weights determine no curve."""
    l_2B = curve.l_3B[1:]
    known = bool(np.isfinite(l_2B).all() and l_2B[1].any())
    return optimum(curve.quadratic) if known else None


def rank_table(found: list[AdapterCurves], tested: list[Shape]) -> pd.DataFrame:
    """Return the best weight at every rank: a row per panel, adapter and rank, with its verdict.

    Args:
        found: the curves of a study.
        tested: the tests of its panels' curves, without which no optimum inside is claimed.
    """
    known = {key_of(shape.labels): shape for shape in tested}
    rows = []
    for one in found:
        doubt = objection(known.get(key_of(one.labels)))
        for rank, curve in one.by_rank.items():
            head: dict[str, object] = {"adapter": one.adapter, "rank": rank or NAN}
            best = best_row(rank_optimum(curve), doubt) if one.replicated else NO_OPTIMUM
            rows.append(one.labels | head | best | {"p_changes": one.p_changes})
    return pd.DataFrame(rows)


def difference_table(found: list[AdapterCurves]) -> pd.DataFrame:
    """Return the labels of the curve, adapters and p of one curve for all adapters at r0.

    The test is an F test of both coefficients; p is NaN with one adapter, without replicates or
    where a curve is not determined.
    """
    groups: dict[tuple[str, ...], list[AdapterCurves]] = {}
    for one in found:
        groups.setdefault(key_of(one.labels), []).append(one)
    return pd.DataFrame(
        [own[0].labels | {"adapters": len(own), "p": _p_differ(own)} for own in groups.values()]
    )


def _p_differ(own: list[AdapterCurves]) -> float:
    l_A2B = [one.middle.l_3B[1:] for one in own]
    known = own[0].replicated and all(np.isfinite(l_2B).all() for l_2B in l_A2B)
    if len(l_A2B) < 2 or not known:
        return NAN
    return joint(own[0].middle.fit, np.vstack([l_2B - l_A2B[0] for l_2B in l_A2B[1:]])).p
