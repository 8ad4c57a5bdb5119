"""Statistical inference from a fit: estimates, tests, intervals, means, comparisons, R2."""

from analysis.inference.estimates import (
    Equivalence,
    Estimate,
    Joint,
    LikelihoodRatio,
    coefficients,
    contrast,
    equivalence,
    joint,
    likelihood_ratio,
)

__all__ = [
    "Equivalence",
    "Estimate",
    "Joint",
    "LikelihoodRatio",
    "coefficients",
    "contrast",
    "equivalence",
    "joint",
    "likelihood_ratio",
]
