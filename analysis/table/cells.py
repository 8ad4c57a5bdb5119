"""Cells side by side: their adjusted means, and what was learnt and forgotten.

A run counts once, as the mean of its scores over tasks. Cells of one data set and base model are
compared by least squares, score ~ cell + seed, with one residual variance for all of them: the
seed is a block, so that its luck cancels between cells, and a cell's own interval is for these
seeds. Items are fixed: intervals are about other runs scored on the same items, not other items.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import t as t_distribution

from analysis.engine.linalg import Array
from analysis.inference.estimates import contrast
from analysis.mixed import MixedFit, fit_mixed
from analysis.table.factors import run_columns
from analysis.table.frame import SCORED, study_rows

CELL = (
    "masking", "plw", "completion_weight", "normaliser", "scope", "adapter", "rank", "embeddings",
    "placement", "regulariser", "base_precision", "train", "rate",
)  # fmt: skip
PLACE = ("dataset", "model")  # cells are compared within one of these


@dataclass(frozen=True, slots=True)
class Adjusted:
    """A least-squares fit over runs and the contrasts that are its cells' means."""

    fit: MixedFit
    labels: list[str]
    l_CB: Array

    def table(self, level: float) -> pd.DataFrame:
        """Return mean, se and interval of every cell."""
        means = [contrast(self.fit, l_B, level=level) for l_B in self.l_CB]
        rows = [{"mean": m.estimate, "se": m.se, "low": m.low, "high": m.high} for m in means]
        return pd.DataFrame(rows, index=pd.Index(self.labels, name="cell"))


def run_means(rows: pd.DataFrame, *, side: str | None = None) -> pd.DataFrame:
    """Return one row per run with its factors and its mean score over tasks (of one side)."""
    chosen = rows if side is None else rows[rows["side"] == side]
    grouped = chosen.groupby(run_columns(rows), observed=True, dropna=False)
    return grouped["score"].agg(score="mean", tasks="size").reset_index()


def labelled(runs: pd.DataFrame, label: str, names: list[str]) -> pd.DataFrame:
    """Return the runs with the levels of `names` joined into one column."""
    text = runs[names].astype("string").fillna("")  # an older table lacks later factors
    joined = text.agg(" ".join, axis=1) if names else "all"
    return runs.assign(**{label: joined})


def adjusted(runs: pd.DataFrame, block: str) -> Adjusted:
    """Return score ~ cell + block by least squares, and every cell's mean over the blocks."""
    runs = runs.assign(**{block: runs[block].astype(str)})
    terms = [n for n in ("cell", block) if runs[n].nunique() > 1]
    fit = fit_mixed(runs, "score ~ " + (" + ".join(terms) or "1"))
    labels, blocks = sorted(runs["cell"].unique()), sorted(runs[block].unique())
    grid = {"cell": np.repeat(labels, len(blocks)), block: blocks * len(labels)}
    l_CB = fit.matrix(pd.DataFrame(grid)).reshape(len(labels), len(blocks), -1).mean(axis=1)
    return Adjusted(fit, labels, l_CB)


def learning_forgetting(frame: pd.DataFrame, *, level: float = 0.95) -> pd.DataFrame:
    """Return target gain and source loss against the untouched base, per adapter and rank.

    One row per data set, model, adapter and rank, with `gain_mean`, `gain_se`, `gain_low`,
    `gain_high` (target tasks: score less base score) and the same four of `loss_` (source tasks:
    base score less score). Means are over the masking cells that every arm has; the interval is
    over seeds, because the base has none and a seed's luck does not cancel against it; with one
    seed it is missing. Empty unless the table has a base, target tasks
    and source tasks.
    """
    base = frame[frame["is_base"] & frame["task_type"].isin(SCORED)]
    keys = [n for n in ("model", "task") if n in frame]
    start = base.groupby(keys, observed=True)["score"].mean().rename("base").reset_index()
    rows = study_rows(frame).merge(start, on=keys, how="inner")
    if not {"target", "source"} <= set(rows["side"]):
        return pd.DataFrame()
    change = rows["score"] - rows["base"]
    parts = [
        _against_base(rows.assign(score=sign * change), side, level).add_prefix(f"{name}_")
        for name, side, sign in (("gain", "target", 1), ("loss", "source", -1))
    ]
    return pd.concat(parts, axis=1).reset_index()


def _against_base(rows: pd.DataFrame, side: str, level: float) -> pd.DataFrame:
    """Return mean, se and interval over seeds, by data set, model, adapter and rank."""
    runs = run_means(rows, side=side)
    places, arms = ([n for n in names if n in runs] for names in (PLACE, ("adapter", "rank")))
    others = [n for n in CELL if n in runs and n not in arms]
    runs = labelled(runs, "condition", others)
    reached = runs.groupby("condition")[places + arms].apply(lambda own: len(own.drop_duplicates()))
    shared = runs[runs["condition"].isin(reached.index[reached == reached.max()])]
    parts = []
    for _, own in shared.groupby(places, observed=True):
        means = own.groupby([*places, *arms, "seed"], observed=True)["score"].mean()
        parts.append(_over_seeds(means.unstack("seed"), level))
    return pd.concat(parts)


def _over_seeds(means: pd.DataFrame, level: float) -> pd.DataFrame:
    """Return every arm's mean and interval from a table of arms by seeds.

    The variance of an arm's mean is (seeds' mean square + (arms - 1) residual mean square) /
    (arms seeds): seeds share their luck over arms, and all arms lend their residual. Its degrees
    of freedom are Satterthwaite's (1946).
    """
    complete = means.dropna(axis=1)
    arms, seeds = complete.shape
    if seeds < 2:
        return means.mean(axis=1).to_frame("mean").assign(se=np.nan, low=np.nan, high=np.nan)
    values = complete.to_numpy()
    found = pd.DataFrame({"mean": values.mean(axis=1)}, index=means.index)
    by_seed = values.mean(axis=0)
    rest = values - found[["mean"]].to_numpy() - by_seed + values.mean()
    shares = np.array([arms * by_seed.var(ddof=1), (rest**2).sum() / (seeds - 1)]) / (arms * seeds)
    dfs = np.array([seeds - 1, max((arms - 1) * (seeds - 1), 1)])
    df = shares.sum() ** 2 / (shares**2 / dfs).sum()
    se = float(np.sqrt(shares.sum()))
    half = se * float(t_distribution.ppf((1 + level) / 2, df))
    return found.assign(se=se, low=found["mean"] - half, high=found["mean"] + half)
