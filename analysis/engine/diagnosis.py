"""Warnings about a fit, in plain words."""

from collections.abc import Sequence

import numpy as np

from analysis.engine.formula import DesignMatrices
from analysis.engine.glmm import GlmmProblem
from analysis.engine.linalg import Array
from analysis.engine.lmm import Problem
from analysis.engine.lmm_fit import Minimum, P
from analysis.errors import listed

FEW_LEVELS = 5  # a variance over fewer levels is hardly estimated
TAKES_PART = 1e-3  # of a direction whose largest entry is at most one


def left_out(found: DesignMatrices, problem: Problem | GlmmProblem) -> tuple[str, ...]:
    """Return the columns that others determine; one that is zero throughout says nothing."""
    gone = np.setdiff1d(np.arange(len(found.names)), problem.fixed.kept)
    return tuple(found.names[i] for i in gone if found.X_NB[:, i].any())


def diagnosis(
    found: DesignMatrices, problem: Problem | GlmmProblem, minimum: Minimum[P]
) -> list[str]:
    """Return what a reader should know about this fit, a sentence each."""
    words = []
    if found.dropped:
        words.append(f"{found.dropped} rows with a missing value were left out.")
    if gone := left_out(found, problem):
        words.append(
            f"{len(gone)} columns are determined by the others in this table and were left out "
            f"of the model, so their effects cannot be separated: {listed(gone, 6)}."
        )
    for group in minimum.singular:
        words.append(
            f"Singular: the variation over {group} is estimated as none (a variance of zero, or "
            f"effects that move in lockstep). The data do not call for this term as written; the "
            f"other estimates stand, its standard deviation has no useful interval."
        )
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


def separation(names: Sequence[str], direction_B: Array) -> str:
    """Return the sentence on a direction of the fixed effects that has no best value."""
    part = [n for n, d in zip(names, direction_B, strict=True) if abs(d) > TAKES_PART]
    return (
        f"Separation: some value of {listed(part, 6)} goes with scores that are all 1 or all 0, so "
        f"the coefficients grow without end and their estimates and errors mean nothing. Do not "
        f"use this fit; leave the column out, join its levels, or compare those rows by counting."
    )
