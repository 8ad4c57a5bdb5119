"""Intervals of a share: of independent observations, and of some that come in clusters."""

from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from analysis.errors import AnalysisError
from analysis.inference.estimates import LEVEL


def clustered_share(
    hit: "pd.Series[Any]", cluster: "pd.Series[Any]", *, most: float = np.inf
) -> tuple[float, float]:
    """Return the interval of a share whose observations come in independent clusters.

    Clopper and Pearson's for the number of independent observations with the variance that the
    share has between clusters (Korn and Graubard 1998); no more than there are, and one a cluster
    where the clusters do not differ.

    Args:
        hit: the observations: whether, or numbers between 0 and 1 such as a half for a tie.
        cluster: of every one.
        most: of the number of independent observations, where something else bounds it.
    """
    mean_L = hit.astype(float).groupby(cluster).mean().to_numpy()
    share, tests, clusters = float(hit.mean()), len(hit), len(mean_L)
    variance = float(mean_L.var(ddof=1)) / clusters if clusters > 1 else 0.0
    effective = float(clusters)
    if variance > 0:
        tail = (1 + LEVEL) / 2
        few = stats.t.ppf(tail, tests - 1) / stats.t.ppf(tail, clusters - 1)
        effective = min(share * (1 - share) / variance * float(few) ** 2, float(tests))
    effective = max(min(effective, most), 1.0)
    return clopper_pearson(share * effective, effective)


def clopper_pearson(hits: float, tests: float) -> tuple[float, float]:
    """Return the exact 95 % interval of a share, `hits` in `tests`; both may be expected numbers.

    Raises:
        AnalysisError: no test, or more hits than tests.
    """
    if tests < 1 or not 0 <= hits <= tests:
        raise AnalysisError(f"hits={hits} of {tests}: must lie between 0 and the number of tests")
    tail = (1 - LEVEL) / 2
    low = float(stats.beta.ppf(tail, hits, tests - hits + 1)) if hits > 0 else 0.0
    high = float(stats.beta.ppf(1 - tail, hits + 1, tests - hits)) if hits < tests else 1.0
    return low, high
