"""Scores between 0 and 1: which values a family allows, and how exact 0 and 1 are handled.

A beta distribution has no density at 0 and 1, so a table that holds either must say what is meant:

    beta            an error, which names the choices
    beta_squeezed   y is moved inwards, (y (n - 1) + 1/2) / n (Smithson and Verkuilen 2006,
                    Psychol. Methods 11(1)); estimates depend on n, hence a sensitivity analysis
    beta_inflated   0 and 1 have probabilities of their own, the same in every row, and the model
                    is of the scores between (Ospina and Ferrari 2010, Stat. Papers 51(1))
    gaussian        on the score, or on `logit(score)`
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from analysis.engine.families import Beta, Binomial, Family
from analysis.engine.formula import DesignMatrices, of_rows
from analysis.engine.linalg import Array, Mask
from analysis.engine.summary import brief
from analysis.errors import AnalysisError

SQUEEZED, INFLATED = "beta_squeezed", "beta_inflated"
FAMILIES = ("gaussian", "binomial", "beta", SQUEEZED, INFLATED)
WHOLE = 0.01  # how far a number of successes may be from a whole one: proportions are rounded


@brief
@dataclass(frozen=True, slots=True)
class BoundedScores:
    """A family with its data."""

    family: Family
    design: DesignMatrices  # the rows it speaks of
    loglik: float  # of what was modelled apart
    inflation: Mapping[float, float]  # the shares of exact 0 and 1, where modelled apart
    words: tuple[str, ...]


def bounded_scores(found: DesignMatrices, family: str) -> BoundedScores:
    """Return the family of these scores, checked.

    Raises:
        AnalysisError: scores that the family cannot have.
    """
    name, y_N = f"score={found.parsed.response}", found.y_N
    outside = int(((y_N < 0) | (y_N > 1)).sum())
    if outside:
        raise AnalysisError(
            f"{name}: family={family} takes scores from 0 to 1, {outside} rows are not (from "
            f"{y_N.min():.4g} to {y_N.max():.4g}); percentages are to be divided by 100"
        )
    if (y_N == y_N[0]).all():
        raise AnalysisError(f"{name}: the same in every row")
    if family == "binomial":
        return _binomial(found, name)
    ends_N = (y_N == 0) | (y_N == 1)
    if family == INFLATED:
        return _inflated(found, name, ends_N)
    if family == SQUEEZED:
        n = len(y_N)
        squeezed = replace(found, y_N=(y_N * (n - 1) + 0.5) / n)
        words = (f"Scores were squeezed to (y (n - 1) + 1/2) / n, n = {n}: {_told(y_N)}.",)
        return BoundedScores(Beta(squeezed.y_N, found.weights_N), squeezed, 0.0, {}, words)
    if ends_N.any():
        raise AnalysisError(
            f"{name}: {_told(y_N)}, where a beta distribution has no density; choose "
            f"family={SQUEEZED} (moves them inwards), {INFLATED} (models 0 and 1 apart), gaussian "
            f"(of the score or of logit(score)), or binomial with weights= the number of items"
        )
    return BoundedScores(Beta(y_N, found.weights_N), found, 0.0, {}, ())


def _told(y_N: Array) -> str:
    return f"{int((y_N == 0).sum())} scores are exactly 0 and {int((y_N == 1).sum())} exactly 1"


def _binomial(found: DesignMatrices, name: str) -> BoundedScores:
    """Return successes of trials; without weights every row is one trial."""
    y_N, trials_N = found.y_N, found.weights_N
    if trials_N is None:
        if not ((y_N == 0) | (y_N == 1)).all():
            raise AnalysisError(
                f"{name}: family=binomial takes 0 or 1 in every row, or proportions with weights= "
                f"the column that holds the number of trials"
            )
        return BoundedScores(Binomial(y_N), found, 0.0, {}, ())
    hits_N = np.rint(y_N * trials_N)
    off_N = np.abs(y_N * trials_N - hits_N) > WHOLE
    if off_N.any() or (trials_N != np.rint(trials_N)).any():
        raise AnalysisError(
            f"{name}: family=binomial with weights takes whole numbers of trials and of successes "
            f"(score times trials); {max(int(off_N.sum()), 1)} rows are not"
        )
    exact = replace(found, y_N=hits_N / trials_N)
    return BoundedScores(Binomial(exact.y_N, trials_N), exact, 0.0, {}, ())


def _inflated(found: DesignMatrices, name: str, ends_N: Mask) -> BoundedScores:
    """Return the scores between 0 and 1, and the likelihood of which ones those are."""
    if not (~ends_N).any():
        raise AnalysisError(f"{name}: only 0 and 1; choose family=binomial")
    weight_N = np.ones(len(ends_N)) if found.weights_N is None else found.weights_N
    total, between = float(weight_N.sum()), float(weight_N[~ends_N].sum())
    mass = {end: float(weight_N[found.y_N == end].sum()) for end in (0.0, 1.0)}
    parts = [m for m in (*mass.values(), between) if m > 0]
    loglik = sum(m * float(np.log(m / total)) for m in parts)
    used = of_rows(found, ~ends_N) if ends_N.any() else found
    words = (
        f"{_told(found.y_N)}; they are modelled apart, as likely in every row as in any other, and "
        f"the effects speak of the scores between. Whether 0 and 1 depend on the same columns, "
        f"family=binomial on a column that says so would tell.",
    )
    shares = {end: m / total for end, m in mass.items() if m > 0}
    return BoundedScores(
        Beta(used.y_N, used.weights_N), used, loglik, shares, words if shares else ()
    )
