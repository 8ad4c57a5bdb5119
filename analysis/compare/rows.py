"""What is known of the difference of two sides on one benchmark, or over all."""

import math
from dataclasses import dataclass

from scipy import stats

from analysis.inference.estimates import Estimate

MEAN = "mean"  # the name of the row over all benchmarks
ITEMS, BOTH, RUNS, APART = "items", "items and runs", "runs", "separate items"


@dataclass(frozen=True)
class Missing:
    """Items that not every run was scored on, and what the difference could be with them.

    Attributes:
        first: items that only the second side has whole.
        second: items that only the first side has whole.
        either: items that neither has whole.
        low: B - A over all items, were every missing score the worst for B.
        high: the same, were it the best.
    """

    first: int
    second: int
    either: int
    low: float
    high: float

    @property
    def count(self) -> int:
        """How many items are missing somewhere."""
        return self.first + self.second + self.either


@dataclass(frozen=True)
class Row:
    """B less A on one benchmark, or over all.

    Attributes:
        name: of the benchmark.
        metric: what is scored.
        scope: what was sampled, one of the constants of this module.
        a: mean of the first side over the items that count.
        b: of the second side.
        effect: B - A with its interval; None where nothing tells its error.
        unit: "points", or "" for the metric's own.
        items: that count; 0 where none were logged.
        clusters: of them.
        apart: the standard error of B - A, had the sides answered separate items; NaN unknown.
        down: items on which B is lower, summed over pairs of runs.
        up: items on which B is higher.
        mcnemar: the exact p-value of the flips of one pair of runs; NaN for other scores.
        missing: None where no items were logged.
        over_items: the difference for other items, these runs as they are.
        over_runs: for other runs, these items as they are.
        p_adjusted: of `effect`, by Holm over the benchmarks.
        turned: whether low values are good, and signs were turned.
        by_run: the mean of every run of the first and of the second side.
    """

    name: str
    metric: str
    scope: str
    a: float
    b: float
    effect: Estimate | None
    unit: str = "points"
    items: int = 0
    clusters: int = 0
    apart: float = math.nan
    down: int = 0
    up: int = 0
    mcnemar: float = math.nan
    missing: Missing | None = None
    over_items: Estimate | None = None
    over_runs: Estimate | None = None
    p_adjusted: float = math.nan
    turned: bool = False
    by_run: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())

    @property
    def p_apart(self) -> float:
        """The p-value of lm-eval's own comparison: a z test of separate items."""
        if not self.apart > 0:
            return math.nan
        return float(2 * stats.norm.sf(abs(self.b - self.a) / self.apart))
