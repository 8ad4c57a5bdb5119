"""The tables that an external table's first screen and sections are both written from."""

from dataclasses import dataclass

import pandas as pd

from analysis.inference.estimates import coefficients
from analysis.regression import contrasts, effect_groups, random_part
from analysis.regression.best_weight import best_weight
from analysis.regression.model import Regression
from analysis.report.tables import alike

ALPHA = 0.05


@dataclass(frozen=True, slots=True)
class Numbers:
    """The tables of one regression."""

    joint: pd.DataFrame
    means: pd.DataFrame
    pairs: pd.DataFrame
    slopes: pd.DataFrame
    variances: pd.DataFrame
    optimum: pd.DataFrame  # empty where there is no curve over PLW

    @classmethod
    def of(cls, reg: Regression) -> "Numbers":
        """Return the tables of one regression."""
        return cls(
            reg.once("joint tests", lambda: effect_groups.joint_tests(reg)),
            contrasts.mean_rows(reg),
            contrasts.pair_rows(reg),
            contrasts.slope_rows(reg),
            reg.once("variances", lambda: random_part.variance_rows(reg))
            if reg.fit.random
            else pd.DataFrame(),
            best_weight(reg),
        )


def mean(reg: Regression) -> str:
    """Return the intercept in words: all that a model without an effect says."""
    row = coefficients(reg.fit, df=reg.df).iloc[0]
    size, low, high = alike([float(row[k]) for k in ("estimate", "low", "high")])
    return f"Mean of {reg.unit}: {size} (95 % interval {low} to {high})."
