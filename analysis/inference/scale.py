"""Back-transformation from a model's linear scale to the scale of its score.

The link of a generalised model, or the function of the score that a linear one was fitted to
(`logit(score) ~ wp`), is undone; standard errors follow by the delta method, the ends of an
interval are carried over as they are. A difference of two logits is the logarithm of an odds ratio.
As in emmeans, what is carried back is the mean on the linear scale, random effects at zero: the
score of a typical run and task, not the mean over all of them.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from analysis.engine.linalg import Array
from analysis.errors import AnalysisError, nearest
from analysis.mixed import MixedFit

TYPES = ("link", "response")


@dataclass(frozen=True, slots=True)
class Scale:
    """How to undo a link; `slope` is the derivative of `inverse`."""

    name: str
    inverse: Callable[[Array], Array]
    slope: Callable[[Array], Array]
    base: float = float("nan")  # of a logarithm: a difference is that of a ratio
    ratio: str = ""  # what the ratio is called; nothing where a difference is none

    def ratios(self, difference: Array) -> Array:
        """Return what differences are as ratios; infinite where no number is large enough."""
        with np.errstate(over="ignore"):
            return np.asarray(self.base**difference, dtype=np.float64)


def _expit_slope(eta: Array) -> Array:
    return np.asarray(expit(eta) * expit(-eta), dtype=np.float64)


def _logarithm(name: str, base: float) -> Scale:
    def inverse(eta: Array) -> Array:
        with np.errstate(over="ignore"):
            return np.asarray(base**eta, dtype=np.float64)

    return Scale(name, inverse, lambda eta: np.log(base) * inverse(eta), base, "ratio")


IDENTITY = Scale("identity", np.asarray, np.ones_like)
SCALES = {
    scale.name: scale
    for scale in (
        Scale("logit", expit, _expit_slope, float(np.e), "odds ratio"),
        _logarithm("log", float(np.e)),
        _logarithm("log2", 2.0),
        _logarithm("log10", 10.0),
        Scale("sqrt", np.square, lambda eta: 2 * np.asarray(eta)),
    )
}


def scale_of(fit: MixedFit) -> Scale:
    """Return how to undo the link of a fit, or the function of its score.

    A function of more than a column, such as `log(I(score + 1))`, is not undone.
    """
    if fit.link != "identity":
        return SCALES[fit.link]
    # Of one column alone: what undoes log(I(y + 9)) is not the score.
    function = re.fullmatch(r"([a-z0-9]+)\(\s*(`[^`]*`|\w+)\s*\)", fit.design.parsed.response)
    return SCALES.get(function[1], IDENTITY) if function else IDENTITY


def checked(type: str) -> bool:
    """Return whether the response's scale is asked for.

    Raises:
        AnalysisError: neither it nor the link's.
    """
    if type not in TYPES:
        raise AnalysisError(f"type={type}: not one of {', '.join(TYPES)}.{nearest(type, TYPES)}")
    return type == "response"
