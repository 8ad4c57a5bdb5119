"""Warnings about a fit, in plain words."""

from collections.abc import Sequence
from copy import copy
from itertools import combinations

import numpy as np
from scipy.linalg import qr

from analysis.engine.formula import DesignMatrices
from analysis.engine.glmm import GlmmEvaluation, GlmmProblem
from analysis.engine.layout import Factor
from analysis.engine.linalg import Array, independent_columns
from analysis.engine.lmm import Problem
from analysis.engine.lmm_fit import FLAT_DEVIANCE, SINGULAR_SCALE, Minimum, P, minimise
from analysis.errors import listed

POINTS = 50  # of the quadrature that Laplace's approximation is held against
FEW_ROWS = 6  # a level, or trials: its SD is 5 % too small there, a quarter with 2 (simulated)
OFF_SD = 0.05  # share of a standard deviation that tells
OFF_SE = 0.1  # of a coefficient, in standard errors, that tells
FEW_LEVELS = 5  # a variance over fewer levels is hardly estimated
INFLATED = 1e3  # variance inflation factor from which columns are called nearly collinear
LOCKSTEP = 1e-6  # of a correlation from one, below which it is one
TAKES_PART = 1e-3  # of a direction whose largest entry is at most one


def left_out(found: DesignMatrices, problem: Problem | GlmmProblem) -> tuple[str, ...]:
    """Return the columns that cannot be estimated: others determine them, or a cell is empty.

    Another column that is zero throughout says nothing.
    """
    gone = np.setdiff1d(np.arange(len(found.names)), problem.fixed.kept)
    empty = _of_empty_cells(found)
    return tuple(found.names[i] for i in gone if found.X_NB[:, i].any() or found.names[i] in empty)


def _of_empty_cells(found: DesignMatrices) -> list[str]:
    """Return the columns of interactions with empty cells that are zero in every row."""
    slices = {str(term): own for term, own in found.spec.term_slices.items()}
    places = [i for term in found.empty for i in range(len(found.names))[slices[term]]]
    return [found.names[i] for i in places if not found.X_NB[:, i].any()]


def diagnosis(
    found: DesignMatrices, problem: Problem | GlmmProblem, minimum: Minimum[P]
) -> list[str]:
    """Return what a reader should know about this fit, a sentence each."""
    words = []
    if found.dropped:
        words.append(f"{found.dropped} rows with a missing value were left out.")
    words += _without_columns(found, problem)
    words += _collinear(found, problem)
    templates = problem.unpack(minimum.theta)
    for factor, template in zip(problem.factors, templates, strict=True):
        if factor.group in minimum.singular:
            words += _singular(factor, template)
    for group in minimum.false_boundary:
        words.append(
            f"Not converged: the variance over {group} was left at zero although raising it fits "
            f"better. Do not use this fit; rescale the columns or simplify the term."
        )
    if not minimum.converged and not minimum.false_boundary:
        words.append(
            f"Not converged: {minimum.decrement:.2g} of deviance may be left to gain. Do not use "
            f"the standard errors; simplify the random part."
        )
    few = [f.group for f in problem.factors if len(f.levels) < FEW_LEVELS]
    for group in few:
        words.append(
            f"The variance over {group} is estimated from fewer than {FEW_LEVELS} levels and is "
            f"imprecise; {group} may do better as a fixed effect."
        )
    return words


def _without_columns(found: DesignMatrices, problem: Problem | GlmmProblem) -> list[str]:
    """Return sentences on the columns that were left out, and the empty cells behind them."""
    gone, empty = left_out(found, problem), _of_empty_cells(found)
    words = []
    if gone and found.empty:
        cells = listed([cell for cells in found.empty.values() for cell in cells], 6)
        so = f"; left out for that, without an estimate: {listed(empty, 6)}" if empty else ""
        words.append(
            f"Empty cells: in the interaction {listed(found.empty, 6)} no row has these levels "
            f"together: {cells or 'more than can be listed'}{so}."
        )
    if rest := [name for name in gone if name not in empty]:
        words.append(
            f"{len(rest)} columns are determined by the others in this table and were left out "
            f"of the model, so their effects cannot be separated: {listed(rest, 6)}."
        )
    return words


def _collinear(found: DesignMatrices, problem: Problem | GlmmProblem) -> list[str]:
    """Return a sentence on columns that others determine but for next to nothing.

    The variance inflation factor of a column is 1 / (1 - R^2) of its regression on the others.
    """
    columns_NB = found.X_NB[:, problem.fixed.kept]
    kept = independent_columns(np.column_stack([np.ones(len(columns_NB)), columns_NB]))[1:] - 1
    if len(kept) < 2:
        return []
    centred_NB = columns_NB[:, kept] - columns_NB[:, kept].mean(axis=0)
    r_BB = qr(centred_NB / np.linalg.norm(centred_NB, axis=0), mode="r", check_finite=False)[0]
    factor_B = np.sum(np.linalg.inv(r_BB[: len(kept)]) ** 2, axis=1)
    if factor_B.max() < INFLATED:
        return []
    names = [found.names[i] for i in problem.fixed.kept[kept[factor_B >= INFLATED]]]
    return [
        f"Nearly collinear: other columns all but determine {listed(names, 6)} (variance inflation "
        f"factor up to {factor_B.max():.1e}, standard errors up to {factor_B.max() ** 0.5:.1e} "
        f"times as large). Fitted values hold, these coefficients mean little: leave a column out, "
        f"or centre it before its square or product is taken."
    ]


def _singular(factor: Factor, template: Array) -> list[str]:
    """Return sentences on what a covariance without full rank has lost.

    Args:
        factor: the group.
        template: its Lambda_f; the rows' lengths are standard deviations of the columns' effects.
    """
    over, sd_P = f"over {factor.group} is estimated as", np.linalg.norm(template, axis=1)
    there = [p for p, sd in enumerate(sd_P) if sd >= SINGULAR_SCALE]
    none = [name for p, name in enumerate(factor.names) if p not in there]
    lost = []
    if none:
        of = f" of {listed(none, 6)}" if there else ""
        lost.append(f"the variation{of} {over} none (a variance of zero)")
    for a, b in combinations(there, 2):
        corr = float(template[a] @ template[b] / (sd_P[a] * sd_P[b]))
        if abs(corr) > 1 - LOCKSTEP:
            pair = f"{factor.names[a]} and {factor.names[b]}"
            lost.append(f"the correlation of {pair} {over} exactly {np.sign(corr):+.0f}")
    lost = lost or [f"a combination of {listed(factor.names, 6)} {over} varying not at all"]
    return [
        f"Singular: {what}. The data do not call for this term as written; the other estimates "
        f"stand, this one has no useful interval."
        for what in lost
    ]


def separation(names: Sequence[str], direction_B: Array) -> str:
    """Return the sentence on a direction of the fixed effects that has no best value."""
    part = [n for n, d in zip(names, direction_B, strict=True) if abs(d) > TAKES_PART]
    return (
        f"Separation: some value of {listed(part, 6)} goes with scores that are all 1 or all 0, so "
        f"the coefficients grow without end and their estimates and errors mean nothing. Do not "
        f"use this fit; leave the column out, join its levels, or compare those rows by counting."
    )


def integrable(factors: Sequence[Factor]) -> bool:
    """Return whether all that varies is one number a level."""
    return len(factors) == 1 and len(factors[0].names) == 1


def doubts(problem: GlmmProblem, minimum: Minimum[GlmmEvaluation]) -> list[str]:
    """Return a sentence where Laplace's approximation is off, or may be for lack of rows."""
    if problem.points > 1 or not problem.factors or not minimum.converged:
        return []
    if integrable(problem.factors):
        return [] if minimum.singular else _off(problem, minimum)
    sizes = {f.group: _rows(problem, f) for f in problem.factors}
    few = [f"{group} ({size:.3g})" for group, size in sizes.items() if size < FEW_ROWS]
    return [
        f"Laplace's approximation: few rows or trials a level of {listed(few, 6)}. Standard "
        f"deviations come out too small there (by a quarter with 2 right or wrong answers a level, "
        f"5 % with {FEW_ROWS}), and effects with them."
    ] * bool(few)


def _rows(problem: GlmmProblem, factor: Factor) -> float:
    """Return the median number of rows of a level, or of trials."""
    size_N = np.ones(problem.n) * problem.family.size_N
    return float(np.median(np.bincount(factor.index_N, size_N)))


def _off(problem: GlmmProblem, minimum: Minimum[GlmmEvaluation]) -> list[str]:
    """Return a sentence where the exact integral leads elsewhere."""
    exact = copy(problem)
    exact.points, exact.first, exact.bend = POINTS, minimum.x, minimum.hessian
    try:
        gradient = exact.evaluate(minimum.x).gradient
        if float(gradient @ np.linalg.solve(minimum.hessian, gradient)) / 2 < FLAT_DEVIANCE:
            return []
        found = minimise(exact)
    except np.linalg.LinAlgError:
        return []
    own, other = (float(x[0] / problem.scales[0][0]) for x in (minimum.x, found.x))
    own_B = slice(problem.size, problem.size + problem.p)
    se_B = np.sqrt(2 * np.diagonal(np.linalg.inv(minimum.hessian))[own_B])
    shift = float((np.abs(found.x - minimum.x)[own_B] / se_B).max(initial=0.0))
    if abs(other / own - 1) < OFF_SD and shift < OFF_SE:
        return []
    (factor,) = problem.factors
    return [
        f"Laplace's approximation is off here, with {_rows(problem, factor):.3g} rows or trials a "
        f"level of {factor.group}: by adaptive quadrature of {POINTS} points its standard "
        f"deviation is {other:.3g}, not {own:.3g}, and coefficients differ by up to {shift:.2g} "
        f"standard errors. Use fit_mixed(..., quadrature={POINTS})."
    ]
