"""The surfaces of a study: an adapter each in every panel, fitted to its runs.

    score ~ place : adapter + block
          + (w_p + w_p^2) : adapter                              full tuning has these alone
          + (r + r^2 + w_p r) : adapter,   r = log2(rank / r0)   zero for full tuning

by least squares over runs (see `study.run_panels`), so that intervals are exact t intervals. An
adapter with two ranks has no r^2: then there is a best weight at every rank, but no stationary
point. Two ranks of one adapter need not have the same best weight; p_moves tests that they do.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from analysis.engine.linalg import Array
from analysis.errors import AnalysisError
from analysis.inference.estimates import joint
from analysis.inference.optimum import NOT_IDENTIFIED, Optimum
from analysis.mixed import MixedFit, fit_mixed
from analysis.questions.plw.optimum_intervals import best_row
from analysis.questions.plw.surface import (
    Canonical,
    Surface,
    best_weight_by_rank,
    bootstrap_point,
    canonical,
    surface_contrasts,
    surface_of,
)
from analysis.table.run_panels import RunPanel, run_panels

TOO_FEW_RANKS = "too few ranks for a curve over rank"


@dataclass(frozen=True, slots=True)
class AdapterSurface:
    """One adapter's surface in one panel."""

    labels: dict[str, str]
    adapter: str
    ranks: dict[int, float]  # the ranks that were run and their log2_rank; empty for full tuning
    surface: Surface
    fit: MixedFit
    l_2B: Array  # the curve over the weight at rank r0, as contrasts of the fit
    canonical: Canonical | None
    why_not: str  # "" or why there is no canonical analysis
    bootstrap_22: Array | None
    p_moves: float  # of w_p r = 0: the best weight does not move with the rank


def surfaces(frame: pd.DataFrame, *, draws: int = 2000) -> list[AdapterSurface]:
    """Return the surface of every adapter in every panel with two weights above 0."""
    return [one for panel in run_panels(frame) for one in panel_surfaces(panel, draws=draws)]


def panel_surfaces(panel: RunPanel, *, draws: int = 2000) -> Iterator[AdapterSurface]:
    """Yield the surface of every adapter of one panel; nothing where no noise can be estimated."""
    runs = _prepared(panel.runs)
    try:
        fit = fit_mixed(runs, surface_formula(runs))
    except AnalysisError:
        return
    for adapter, own in runs.groupby("adapter", sort=True):
        l_5B = surface_contrasts(fit, own)
        found = surface_of(fit, l_5B)
        ranks = own.loc[own["rank"] > 0].drop_duplicates("rank").set_index("rank")["log2_rank"]
        point, why_not, bootstrapped = _canonical(found, own, draws)
        yield AdapterSurface(
            panel.labels, str(adapter), {int(str(r)): float(z) for r, z in ranks.items()}, found,
            fit, l_5B[[0, 2]], point, why_not, bootstrapped, _moves(found),
        )  # fmt: skip


def _prepared(runs: pd.DataFrame) -> pd.DataFrame:
    model = runs["model"].astype(str) if "model" in runs else ""
    place = runs["dataset"].astype(str) + " " + model
    return runs.assign(place=place, adapter=runs["adapter"].astype(str))


def surface_formula(runs: pd.DataFrame) -> str:
    """Return the formula of the module's docstring without what does not vary."""
    split = [n for n in ("place", "adapter") if runs[n].nunique() > 1]
    of_adapter = ":adapter" if runs["adapter"].nunique() > 1 else ""
    terms = [":".join(split)] if split else []
    terms += ["block"] if runs["block"].nunique() > 1 else []
    terms += [f"wp{of_adapter}", f"I(wp^2){of_adapter}"]
    if runs["log2_rank"].nunique() > 1:
        terms += [f"{t}{of_adapter}" for t in ("log2_rank", "I(log2_rank^2)", "wp:log2_rank")]
    return "score ~ " + " + ".join(terms)


def _canonical(
    found: Surface, own: pd.DataFrame, draws: int
) -> tuple[Canonical | None, str, Array | None]:
    if own["log2_rank"].nunique() < 3:
        return None, TOO_FEW_RANKS if (own["rank"] > 0).any() else "", None
    ends = np.array([[own[n].min(), own[n].max()] for n in ("wp", "log2_rank")], dtype=float)
    try:
        return canonical(found, within=ends), "", bootstrap_point(found, draws=draws)[0]
    except AnalysisError as error:
        return None, str(error).removeprefix("surface: "), None


def _moves(found: Surface) -> float:
    """Return the p-value of the product of weight and rank; NaN where it is not determined."""
    se = float(np.sqrt(found.cov_55[4, 4]))
    return float(2 * stats.t.sf(abs(found.beta_5[4]) / se, found.df)) if se > 0 else float("nan")


def curves_differ(found: list[AdapterSurface]) -> float:
    """Return the p-value of one curve over the weight for all adapters of one panel.

    At the middle rank r0; NaN with one adapter or where it is not determined.
    """
    fit = found[0].fit
    l_A2B = [one.l_2B for one in found]
    if len(l_A2B) < 2 or not all(np.isfinite(l_2B).all() for l_2B in l_A2B):
        return float("nan")
    return joint(fit, np.vstack([l_2B - l_A2B[0] for l_2B in l_A2B[1:]])).p


def rank_table(found: list[AdapterSurface]) -> pd.DataFrame:
    """Return the best weight at every rank: a row per panel, adapter and rank, with its verdict."""
    rows = []
    for one in found:
        ranks = one.ranks or {0: 0.0}
        best = best_weight_by_rank(one.surface, list(ranks.values()))
        for rank, at in zip(ranks, best, strict=True):
            head: dict[str, object] = {"adapter": one.adapter, "rank": rank or float("nan")}
            rows.append(one.labels | head | _optimum_row(at) | {"p_moves": one.p_moves})
    return pd.DataFrame(rows)


def _optimum_row(best: Optimum | None) -> dict[str, float | str]:
    if best is None:
        return {"optimum": NOT_IDENTIFIED, "words": "the weights are too few for a curve"}
    return best_row(best) | {"gain": best.gain, "gain_se": best.gain_se, "words": best.words}


def surface_table(found: list[AdapterSurface]) -> pd.DataFrame:
    """Return the canonical analysis: a row per panel and adapter that has ranks."""
    return pd.DataFrame([_surface_row(one) for one in found if one.ranks])


def _surface_row(one: AdapterSurface) -> dict[str, object]:
    head: dict[str, object] = one.labels | {"adapter": one.adapter, "ranks": len(one.ranks)}
    point = one.canonical
    if point is None:
        return head | {"nature": one.why_not, "optimum": NOT_IDENTIFIED}
    names = ("wp", "log2_rank")
    row = head | {"nature": point.nature, "optimum": point.verdict}
    for i, name in enumerate(names):
        row[name] = point.at_2[i]
        row |= {f"{name}_low": point.region_22[i, 0], f"{name}_high": point.region_22[i, 1]}
        row[f"{name}_delta_se"] = point.delta_se_2[i]
        if one.bootstrap_22 is not None:
            row[f"{name}_boot_low"], row[f"{name}_boot_high"] = one.bootstrap_22[i]
        row[f"eigenvalue_{i + 1}"] = point.eigenvalues_2[i]
        row[f"eigenvalue_{i + 1}_se"] = point.eigenvalues_se_2[i]
    return row
