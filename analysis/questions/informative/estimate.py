"""How many seeds the same certainty takes: by accuracy or by margins, on all items or on some.

The mean score of cell c under seed s on some items is y_cs = m_c + g_s + b_cs, g common to all
cells of a seed. What is to be seen is how cells differ; what hides it is b. Per run they stand as

    q = (F - 1) / S,    F = the mean square between cells over that of b,

an estimate of var(m) / var(b). With two responses, or two sets of items, the same certainty takes
q_one / q_other times as many seeds of the other: units cancel.

Telling items are chosen on a pilot, the first half of the seeds, and from one half of the items:
those whose score goes most with the mean of the others over the pilot's cells. What they are worth
is told by the other seeds. Whether they show the same differences is told by the other items, which
took no part: with z the cells' mean on those, cov(telling, z) / cov(all of their half, z) is 1
where a difference on telling items is as large as one on all.

Letters in names: C cells, S seeds, I items, B draws.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis.engine.linalg import Array
from analysis.inference.estimates import LEVEL
from analysis.questions.noise.estimate import by_task, cells_of
from analysis.table.items import Items

Places = npt.NDArray[np.intp]
FEWEST_CELLS = 6  # from which a spread between cells is told
SHARES = (0.5, 0.25)  # of the items of a half that are kept
DRAWS = 400


@dataclass(frozen=True)
class Grid:
    """Scores of cells crossed with seeds on items of one task."""

    scores_CSI: Array

    @property
    def cells(self) -> int:
        """How many cells."""
        return self.scores_CSI.shape[0]

    @property
    def seeds(self) -> int:
        """How many seeds."""
        return self.scores_CSI.shape[1]

    def means(self, items: Places | None = None) -> Array:
        """Return the mean of every cell and seed over some items, (C, S)."""
        own = self.scores_CSI if items is None else self.scores_CSI[:, :, items]
        return np.asarray(own.mean(axis=2))


def grid(items: Items) -> Grid | None:
    """Return the cells that ran under the seeds that most cells ran under; None of too few."""
    if "seed" not in items.runs:
        return None
    table = pd.DataFrame(
        {"cell": cells_of(items).to_numpy(), "seed": items.runs["seed"].astype(str)}
    )
    known = ~np.isnan(items.scores_RI).any(axis=0)
    place = table.assign(run=range(len(table))).drop_duplicates(["cell", "seed"])
    wide = place.pivot(index="cell", columns="seed", values="run")
    wide = wide.loc[:, wide.notna().mean() > 0.5].dropna()
    if len(wide) < FEWEST_CELLS or wide.shape[1] < 2 or known.sum() < 4:
        return None
    runs_CS = wide.to_numpy(dtype=int)
    return Grid(items.scores_RI[:, known].astype(np.float64)[runs_CS])


def per_run(mean_CS: Array) -> Array:
    """Return q, the variance between cells over that of a run; NaN where runs do not vary.

    Args:
        mean_CS: means of cells and seeds, (..., C, S).

    Returns:
        One number for every table, (...).
    """
    cells, seeds = mean_CS.shape[-2:]
    whole_CS = mean_CS - mean_CS.mean(axis=-2, keepdims=True)
    cell_C = whole_CS.mean(axis=-1)
    rest_CS = whole_CS - cell_C[..., None]
    noise = (rest_CS**2).sum(axis=(-2, -1)) / ((cells - 1) * (seeds - 1))
    between = seeds * (cell_C**2).sum(axis=-1) / (cells - 1)
    known = noise > 0
    ratio = between / np.where(known, noise, 1.0)
    return np.where(known, (ratio - 1) / seeds, np.nan)


@dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio with its percentile interval over resampled cells."""

    value: float
    low: float
    high: float


def _ratio(of: Callable[[Places], tuple[Array, Array]], cells: int, seed: int = 0) -> Ratio:
    """Return first / second with its interval; NaN where one of them is not above zero.

    Args:
        of: both, (B,), from the numbers of the cells that count in every draw, (B, C).
        cells: how many there are.
        seed: of the draws.
    """
    drawn_BC = np.random.default_rng(seed).integers(0, cells, (DRAWS, cells))
    value, *drawn_B = _over(*of(np.vstack([np.arange(cells), drawn_BC]))).tolist()
    known = np.array([one for one in drawn_B if np.isfinite(one)])
    if not np.isfinite(value) or len(known) < DRAWS // 2:
        return Ratio(value, float("nan"), float("nan"))
    tail = (1 - LEVEL) / 2
    return Ratio(value, *(float(v) for v in np.quantile(known, [tail, 1 - tail])))


def _over(first_B: Array, second_B: Array) -> Array:
    above = (first_B > 0) & (second_B > 0)
    return np.where(above, first_B / np.where(above, second_B, 1.0), np.nan)


def response_table(items: Items, margins: Items) -> pd.DataFrame:
    """Return accuracy beside the margin, a row per stratum and task of enough cells.

    Columns: stratum, task, cells, seeds, items, agree (correlation of the two over cells), factor,
    low, high (seeds that the margin takes for each one of accuracy).
    """
    rows = []
    for stratum, task, own in by_task(margins):
        one, other = grid(_scores(items, own, task)), grid(own)
        if one is None or other is None:
            continue
        acc_CS, margin_CS = one.means(), other.means()
        ratio = _ratio(_both(acc_CS, margin_CS), one.cells)
        agree = _agree(acc_CS.mean(axis=1), margin_CS.mean(axis=1))
        rows.append({
            "stratum": stratum, "task": task, "cells": one.cells, "seeds": one.seeds,
            "items": one.scores_CSI.shape[2], "agree": agree, "factor": ratio.value,
            "low": ratio.low, "high": ratio.high,
        })  # fmt: skip
    return pd.DataFrame(rows)


def _both(one_CS: Array, other_CS: Array) -> Callable[[Places], tuple[Array, Array]]:
    return lambda cells: (per_run(one_CS[cells]), per_run(other_CS[cells]))


def _covariance(one_BC: Array, other_BC: Array) -> Array:
    """Return the covariance over cells in every draw, (B,)."""
    own_BC, with_BC = (x - x.mean(axis=1, keepdims=True) for x in (one_BC, other_BC))
    return np.asarray((own_BC * with_BC).sum(axis=1) / (one_BC.shape[1] - 1))


def _agree(one_C: Array, other_C: Array) -> float:
    """Return the correlation over cells; NaN where one of the two is the same for all."""
    if not (np.ptp(one_C) > 0 and np.ptp(other_C) > 0):
        return float("nan")
    return float(np.corrcoef(one_C, other_C)[0, 1])


def _scores(items: Items, margins: Items, task: str) -> Items:
    """Return the scores of the runs and items of one task that there are margins of."""
    found = items.of(runs=items.runs["run"].isin(margins.runs["run"]), tasks=[task])
    same = found.items["doc_id"].isin(margins.items["doc_id"])
    columns = np.flatnonzero(same.to_numpy())
    table = found.items.iloc[columns].reset_index(drop=True)
    return replace(found, scores_RI=found.scores_RI[:, columns], items=table)


def telling(scores_CI: Array, share: float) -> Places:
    """Return the items whose score goes most with the mean of the others over cells, in order.

    Args:
        scores_CI: of the pilot, at least two cells.
        share: of the items that are returned.
    """
    count = scores_CI.shape[1]
    mean_C = scores_CI.mean(axis=1)
    rest_CI = (mean_C[:, None] * count - scores_CI) / (count - 1)
    own_CI, rest_CI = scores_CI - scores_CI.mean(axis=0), rest_CI - rest_CI.mean(axis=0)
    with_rest_I = (own_CI * rest_CI).sum(axis=0)
    kept = max(2, round(share * count))
    return np.sort(np.argsort(-with_rest_I, kind="stable")[:kept])


def items_table(items: Items, seed: int = 0) -> pd.DataFrame:
    """Return what telling items are worth beside all, a row per stratum, task and share.

    Columns: stratum, task, cells, seeds (that they were tried on), items, kept, factor, low, high
    (seeds that they take for each one of all items of their half), scale, scale_low, scale_high
    (a difference on them over that on all, told by items that took no part), agree, agree_all
    (correlation over cells with those items, of the telling ones and of all of their half: where
    the first is lower, the telling items see something else).
    """
    rows = []
    for stratum, task, own in by_task(items):
        found = grid(own)
        if found is None or found.seeds < 3:
            continue
        order = np.random.default_rng(seed).permutation(found.scores_CSI.shape[2])
        half, others = np.sort(order[: len(order) // 2]), np.sort(order[len(order) // 2 :])
        pilot = max(1, (found.seeds - 1) // 2)
        first = found.scores_CSI[:, :pilot].mean(axis=1)[:, half]
        tried = Grid(found.scores_CSI[:, pilot:])
        for share in SHARES:
            kept = half[telling(first, share)]
            rows.append(_row(stratum, task, tried, kept, half, others))
    return pd.DataFrame(rows)


def telling_items(items: Items) -> pd.DataFrame:
    """Return the telling items over all cells and seeds: stratum, task, doc_id.

    Those of the smallest of `SHARES`; for another study than the one they were chosen on.
    """
    parts = []
    for stratum, task, own in by_task(items):
        found = grid(own)
        if found is not None:
            known = np.flatnonzero(~np.isnan(own.scores_RI).any(axis=0))
            kept = known[telling(found.scores_CSI.mean(axis=1), SHARES[-1])]
            ids = own.items["doc_id"].to_numpy()[kept]
            parts.append(pd.DataFrame({"stratum": stratum, "task": task, "doc_id": ids}))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _row(
    stratum: str, task: str, tried: Grid, kept: Places, half: Places, others: Places
) -> dict[str, object]:
    kept_CS, half_CS, other_CS = (tried.means(part) for part in (kept, half, others))
    factor = _ratio(_both(half_CS, kept_CS), tried.cells)

    z_C, kept_C, half_C = (own.mean(axis=1) for own in (other_CS, kept_CS, half_CS))
    scale = _ratio(
        lambda c: (_covariance(kept_C[c], z_C[c]), _covariance(half_C[c], z_C[c])), tried.cells
    )
    agree, agree_all = (_agree(own_C, z_C) for own_C in (kept_C, half_C))
    return {
        "stratum": stratum, "task": task, "cells": tried.cells, "seeds": tried.seeds,
        "items": len(half), "kept": len(kept), "factor": factor.value, "low": factor.low,
        "high": factor.high, "scale": scale.value, "scale_low": scale.low,
        "scale_high": scale.high, "agree": agree, "agree_all": agree_all,
    }  # fmt: skip
