"""Simplifies a singular random structure step by step, and records each step.

A singular fit (a variance of zero, effects perfectly correlated) has more parameters than the table
can estimate. One step at a time, only over the groups that are singular, until the fit is not:

    1. correlations:  (1 + x | g)  becomes  (1 + x || g)
    2. slopes:        the slope with least variance over the rows is dropped
    3. intercepts:    the group whose intercept has least variance is dropped

After Bates, Kliegl, Vasishth and Baayen 2015 (arXiv 1506.04967): from the maximal structure
downwards, by what is estimated and never by p-values of the effects of interest. A dropped term
is a variance estimated as zero or nearly so, and the words that come back belong in the report.
"""

import re
from dataclasses import dataclass, replace
from typing import Any

import formulaic
import numpy as np
import pandas as pd

from analysis.engine.formula import Bar, Parsed
from analysis.errors import AnalysisError
from analysis.mixed import MixedFit, fit_mixed

MOST_STEPS = 50  # more steps than any formula has terms
_LEVEL = re.compile(r"\[[^\[\]]*\]")  # what formulaic adds to a term's name, column by column
_PLAIN = re.compile(r"[A-Za-z_]\w*\Z")


@dataclass(frozen=True, slots=True)
class Simplified:
    """A fit and the way to it."""

    fit: MixedFit
    asked: str  # the formula as it was given
    steps: tuple[str, ...]  # in plain words, first to last; empty when nothing was dropped


@dataclass(frozen=True, slots=True)
class _Piece:
    """One random term of one group: its text, and how much the rows vary by it."""

    bar: int
    text: str
    sd: float


def simplified(frame: pd.DataFrame, formula: str, **options: Any) -> Simplified:
    """Return the fit of `formula`, or of the first simpler one that is not singular.

    The arguments are those of `fit_mixed`.
    """
    fit, steps = fit_mixed(frame, formula, **options), []
    for _ in range(MOST_STEPS):
        if not _troubled(fit):
            break
        parsed, words = _one_step(fit)
        steps.append(words)
        fit = fit_mixed(frame, written(parsed), **options)
    else:
        raise AnalysisError(f"formula={formula}: no simpler random part could be fitted")
    return Simplified(fit, formula, tuple(steps))


def written(parsed: Parsed) -> str:
    """Return a parsed formula as text again."""
    bars = [
        f"({b.expression} {'|' if b.correlated else '||'} {':'.join(map(_name, b.group))})"
        for b in parsed.bars
    ]
    offsets = [f"offset({expression})" for expression in parsed.offsets]
    text = f"{parsed.response} ~ {' + '.join([parsed.fixed, *offsets, *bars])}"
    return text.replace(" ** ", "^")


def _name(column: str) -> str:
    return column if _PLAIN.match(column) else f"`{column}`"


def _troubled(fit: MixedFit) -> tuple[str, ...]:
    """Return the groups that a simpler structure is wanted for."""
    if fit.minimum.singular:
        return fit.minimum.singular
    if fit.minimum.false_boundary:
        return fit.minimum.false_boundary
    # Separation is of the fixed part; no simpler random part would cure it.
    return () if fit.minimum.converged else tuple(f.group for f in fit.problem.factors)


def _one_step(fit: MixedFit) -> tuple[Parsed, str]:
    """Return the formula one step simpler, and what was done."""
    parsed, groups = fit.design.parsed, _troubled(fit)
    mine = [i for i, bar in enumerate(parsed.bars) if ":".join(bar.group) in groups]
    rich = [i for i in mine if parsed.bars[i].correlated and len(_parts(fit, i)) > 1]
    if rich:
        bars = [replace(b, correlated=False) if i in rich else b for i, b in enumerate(parsed.bars)]
        where = " and ".join(dict.fromkeys(":".join(parsed.bars[i].group) for i in rich))
        return replace(parsed, bars=tuple(bars)), (
            f"The correlations of what varies over {where} were dropped: with them the fit "
            f"{_why(fit)}."
        )
    pieces = [piece for i in mine for piece in _parts(fit, i)]
    slopes = [piece for piece in pieces if piece.text != "1"]
    least = min(slopes or pieces, key=lambda piece: piece.sd)
    return _dropped(fit, least)


def _why(fit: MixedFit) -> str:
    return "was singular" if fit.singular else "did not converge"


def _dropped(fit: MixedFit, piece: _Piece) -> tuple[Parsed, str]:
    """Return the formula without one random term, and what was done."""
    parsed, bar = fit.design.parsed, fit.design.parsed.bars[piece.bar]
    left = [other.text for other in _parts(fit, piece.bar) if other.text != piece.text]
    bars = list(parsed.bars)
    cells = not left and len(_columns(fit, piece)) > 1  # a level each: more than a slope
    if cells:
        bars[piece.bar] = Bar("1", bar.group, correlated=True)
    elif left:
        text = " + ".join(left if "1" in left else ["0", *left])
        bars[piece.bar] = Bar(text, bar.group, correlated=bar.correlated or len(left) == 1)
    else:
        del bars[piece.bar]
    what = "intercept" if piece.text == "1" else f"slope of {piece.text}"
    done = "replaced by a random intercept" if cells else "dropped"
    beside = f" beside a residual of {fit.sigma:.2g}" if np.isfinite(fit.sigma) else ""
    size = f"its standard deviation was {piece.sd:.2g}{beside}"
    return replace(parsed, bars=tuple(bars)), (
        f"The random {what} over {':'.join(bar.group)} was {done}: the fit {_why(fit)}, and {size}."
    )


def _columns(fit: MixedFit, piece: _Piece) -> list[str]:
    """Return the random columns of one term."""
    bar = fit.design.parsed.bars[piece.bar]
    factor = next(f for f in fit.problem.factors if f.group == ":".join(bar.group))
    return dict(_terms(bar, factor.names))[piece.text]


def _terms(bar: Bar, names: tuple[str, ...]) -> list[tuple[str, list[str]]]:
    """Return the terms of a bar, each with the columns it makes; the intercept is "1"."""
    texts = [str(term) for term in formulaic.Formula(bar.expression)]
    own = {name: "1" if name == "Intercept" else _LEVEL.sub("", name) for name in names}
    return [(text, [name for name in names if own[name] == text]) for text in texts]


def _parts(fit: MixedFit, place: int) -> list[_Piece]:
    """Return the terms of one bar, each with the root mean square that it varies by."""
    bar = fit.design.parsed.bars[place]
    factor = next(f for f in fit.problem.factors if f.group == ":".join(bar.group))
    cov_PP = fit.random[factor.group].cov.to_numpy()
    found = []
    for text, names in _terms(bar, factor.names):
        own = [factor.names.index(name) for name in names]
        z_NP = factor.columns_NP[:, own]
        spread = (z_NP @ cov_PP[np.ix_(own, own)] * z_NP).sum(axis=1).mean()
        found.append(_Piece(place, text, float(np.sqrt(max(spread, 0.0)))))
    return found
