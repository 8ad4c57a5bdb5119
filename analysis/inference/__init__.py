"""What a fit supports: estimates, tests, intervals, means and their comparison, fit quality."""

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
    variances,
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
    "variances",
]
