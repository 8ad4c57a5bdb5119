"""PEFT's own comparison of methods on MetaMathQA: 63 configurations, one seed each.

Accuracy is the share of the 1,319 test problems of GSM8K that are right, so that its noise is
binomial at least: sqrt(p (1 - p) / n), about 1.4 points near the top. What another seed would do
comes on top and is not in the table; that all configurations answer the same problems makes
differences less noisy than two such terms. Configurations of one method are not independent.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from analysis.engine.linalg import Array
from analysis.inference.selection import against_best
from analysis.inference.estimates import Estimate, contrast
from analysis.inference.winners import Winner, winner
from analysis.mixed import MixedFit, fit_mixed
from analysis.table.published import read

ITEMS = 1319
FULL = "full-finetuning"
ACCURACY = "points ~ log10_params + (1 | method)"
FORGETTING = "log10_forgetting ~ points + log10_params + (1 | method)"


def configurations() -> pd.DataFrame:
    """Return the 63 rows, with config, points, se (binomial), log10_params, log10_forgetting."""
    table = read("peft_comparison")
    right = (table["accuracy"] * ITEMS).round()
    padded = (right + 2) / (ITEMS + 4)  # Agresti and Coull: none right is not known to be none
    return table.assign(
        config=table["method"] + " " + table["variant"],
        right=right,
        points=100 * table["accuracy"],
        se=100 * np.sqrt(padded * (1 - padded) / (ITEMS + 4)),
        log10_params=np.log10(table["trainable_params"]),
        log10_forgetting=np.log10(table["forgetting"]),
    )


@dataclass(frozen=True, slots=True)
class Top:
    """Who may be the best, and what the best is worth."""

    table: pd.DataFrame  # the rows of the confidence set
    winner: Winner
    seed_sd: float


def top(table: pd.DataFrame, *, seed_sd: float = 0.0) -> Top:
    """Return the 95 % confidence set for the best configuration (Hsu 1981).

    Args:
        table: as `configurations` gives it.
        seed_sd: a spread between seeds, in points, to be added to the items' noise. The table has
            none; it is a "what if".
    """
    cov_KK: Array = np.diag(table["se"].to_numpy() ** 2 + seed_sd**2)
    score = table["points"].to_numpy()
    possible = against_best(score, cov_KK).possible_K
    return Top(table[possible], winner(score, cov_KK), seed_sd)


def difference(table: pd.DataFrame, a: str, b: str) -> Estimate:
    """Return configuration a less b, in points, with the items as the only noise."""
    rows = table.set_index("config").to_dict("index")
    gap = float(rows[a]["points"] - rows[b]["points"])
    se = float(np.hypot(rows[a]["se"], rows[b]["se"]))
    return Estimate(f"{a} - {b}", gap, se, float("inf"))


def size_fit(table: pd.DataFrame, *, least: float = 0.0) -> MixedFit:
    """Return accuracy over the logarithm of trainable parameters, methods at random.

    Full tuning is left out: 3.2 billion parameters, 16 times the next, would be the slope.
    """
    kept = (table["method"] != FULL) & (table["trainable_params"] >= least)
    return fit_mixed(table[kept], ACCURACY)


def per_tenfold(fit: MixedFit) -> Estimate:
    """Return the points that ten times the parameters go with."""
    return contrast(fit, np.array([float(n == "log10_params") for n in fit.fixef.index]))


def forgetting_fit(table: pd.DataFrame) -> MixedFit:
    """Return the logarithm of forgetting over accuracy and size."""
    return fit_mixed(table[table["method"] != FULL], FORGETTING)


def ranks(table: pd.DataFrame) -> pd.DataFrame:
    """Return Spearman's correlation of accuracy with what else was measured: name, rho, p."""
    names = ("trainable_params", "forgetting", "seconds", "max_memory_gib", "train_loss")
    found = [(n, *stats.spearmanr(table["points"], table[n])) for n in names]
    return pd.DataFrame(found, columns=["name", "rho", "p"])


def front(table: pd.DataFrame, *, z: float = 1.96) -> pd.DataFrame:
    """Return which configurations nothing surpasses in both accuracy and forgetting.

    `alone`: not surpassed as printed. `surpassed_for_sure`: another forgets no more and is more
    accurate by z standard errors of the difference; forgetting's own noise is not known.
    """
    y, se, f = (table[c].to_numpy() for c in ("points", "se", "forgetting"))
    gap_KK, se_KK = y - y[:, None], np.hypot(se, se[:, None])
    no_worse = f <= f[:, None]
    at_least = (no_worse & (gap_KK >= 0)) & ((gap_KK > 0) | (f < f[:, None]))
    return table.assign(
        alone=~at_least.any(axis=1),
        surpassed_for_sure=(no_worse & (gap_KK > z * se_KK)).any(axis=1),
    )
