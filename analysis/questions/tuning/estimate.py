"""The best score to expect from a tuning budget: by the number of settings tried.

With B settings tried, sorted by their score, the i-th is the best of n drawn without replacement
with probability C(i - 1, n - 1) / C(B, n), so that

    sum over i of score_i C(i - 1, n - 1) / C(B, n)

is the expected score of the chosen setting (Tang et al. 2020, Showing your work doesn't always
work, ACL, equation 5): unbiased for settings drawn at random, and exact for those of a grid tried
in random order.

Letters in names: B settings, N budgets, D bootstrap draws.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from scipy.special import gammaln

from analysis.engine.linalg import Array
from analysis.errors import AnalysisError
from analysis.inference.estimates import LEVEL
from analysis.table.carried import with_carried
from analysis.table.factors import FULL, NO_RANK
from analysis.table.validation_losses import validation_losses

DRAWS = 2000
FEWEST = 3  # settings below which a budget says nothing
ARM = ("dataset", "adapter", "rank")  # the adapter with the settings that it carries


def expected_best(score_B: Sequence[float] | Array, *, lower_is_better: bool = False) -> Array:
    """Return the expected score of the best of n settings, n = 1 to B.

    Args:
        score_B: of every setting.
        lower_is_better: whether the best one has the lowest score.

    Raises:
        AnalysisError: no setting, or one without a number.
    """
    score = np.asarray(score_B, dtype=np.float64)
    if not len(score) or not np.isfinite(score).all():
        raise AnalysisError("budget: every setting needs a score, and there must be one")
    return np.asarray(_weights(len(score)) @ _ranked(score, lower_is_better))


def _ranked(score_B: Array, lower_is_better: bool) -> Array:
    """Return the scores, the best last."""
    return np.sort(score_B)[::-1] if lower_is_better else np.sort(score_B)


def _weights(count: int) -> Array:
    """Return C(i - 1, n - 1) / C(B, n), (N, B)."""
    i = np.arange(1.0, count + 1)
    n = i[:, None]
    over = np.maximum(i - n, 0.0)
    log = gammaln(i) - gammaln(n) - gammaln(over + 1)
    log += gammaln(n + 1) + gammaln(count - n + 1) - gammaln(count + 1.0)
    return np.where(i >= n, np.exp(log), 0.0)


def budget_interval(
    score_B: Array, *, lower_is_better: bool = False, draws: int = DRAWS, seed: int = 0
) -> tuple[Array, Array]:
    """Return the 95 % percentile interval of `expected_best`, settings resampled: low, high, (N,).

    Near n = B a bootstrap knows nothing beyond the best setting it has seen; its interval is then
    too short on that side, as that of any method without a model of the tail.
    """
    rng = np.random.default_rng(seed)
    count = len(score_B)
    picks_DB = np.sort(rng.integers(0, count, (draws, count)), axis=1)  # of the settings, in order
    found = _ranked(score_B, lower_is_better)[picks_DB] @ _weights(count).T
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return low, high


def tuning_budget(table: pd.DataFrame) -> pd.DataFrame:
    """Return the expected validation loss of every arm by budget; empty where nothing was tuned.

    Columns: dataset, label (adapter, rank and what is unusual), budget, settings, expected, low,
    high. A setting is a learning rate; its loss is the mean over base models and seeds.

    Args:
        table: the results table of a tuning study, as it stands.
    """
    parts = []
    for labels, losses in _tuned(table):
        choose = np.array(losses.tolist(), dtype=np.float64)
        low, high = budget_interval(choose, lower_is_better=True)
        expected = expected_best(choose, lower_is_better=True)
        part = {"budget": np.arange(1, len(choose) + 1), "settings": len(choose)}
        parts.append(pd.DataFrame(labels | part | {"expected": expected, "low": low, "high": high}))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _tuned(table: pd.DataFrame) -> Iterator[tuple[dict[str, str], "pd.Series[float]"]]:
    """Yield every arm with the mean validation loss of each of its learning rates."""
    counted = table[~table["alias"].astype(bool)] if "alias" in table else table
    rows = validation_losses(with_carried(counted)).dropna(subset=["loss", "lr"])
    rows["rank"] = rows["rank"].astype(str).mask(rows["adapter"] == FULL, NO_RANK)
    for key, own in rows.groupby(list(ARM), sort=True):
        labels = dict(zip(ARM, map(str, key), strict=True))
        losses = own.groupby("lr")["loss"].mean()
        if len(losses) >= FEWEST:
            yield {"dataset": labels["dataset"] or "data", "label": _label(labels)}, losses


def _label(labels: dict[str, str]) -> str:
    return labels["adapter"] + (f" r{labels['rank']}" if labels["rank"] != NO_RANK else "")
