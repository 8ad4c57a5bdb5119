"""The difference of two cells, item by item: what is left of the noise when both answer the same.

Cells are compared on the same items and, where they have them, the same seeds, by
`analysis.inference.crossed`. Tasks count equally and are fixed; items are drawn within their task.

Letters in names: S seeds, I items.
"""

import numpy as np
import pandas as pd

from analysis.engine.linalg import Array
from analysis.errors import AnalysisError
from analysis.inference.crossed import Paired, paired_difference
from analysis.table.items import RIGHT, Items, item_weights


def paired(items: Items, first: "pd.Series[bool]", second: "pd.Series[bool]") -> Paired:
    """Return the cell of the runs `first` less the cell of the runs `second`.

    Args:
        items: of one task, or of several, which then count equally.
        first: which of `items.runs` belong to the first cell, one run a seed.
        second: the same for the second cell.

    Raises:
        AnalysisError: a cell without runs, or no item that all these runs were scored on.
    """
    a_SI, b_SI, seeds = _matched(items, first, second)
    known = ~(np.isnan(a_SI).any(axis=0) | np.isnan(b_SI).any(axis=0))
    table = items.items[pd.Series(known)].reset_index(drop=True)
    if len(table) < 2:
        raise AnalysisError("paired: the two cells share fewer than two items")
    weight_I = item_weights(Items(items.scores_RI[:, known], items.runs, table))
    return paired_difference(
        a_SI[:, known], b_SI[:, known], weight_I, table["task"].to_numpy(str),
        partners=len(seeds), most=RIGHT,
    )  # fmt: skip


def _matched(
    items: Items, first: "pd.Series[bool]", second: "pd.Series[bool]"
) -> tuple[Array, Array, list[str]]:
    """Return the scores of both cells, rows matched by seed where they share at least two."""
    rows = [np.flatnonzero(which.to_numpy(dtype=bool)) for which in (first, second)]
    if not all(map(len, rows)):
        raise AnalysisError("paired: a cell has no run here")
    seed = items.runs["seed"].astype(str).to_numpy() if "seed" in items.runs else None
    score_RI = items.scores_RI
    if seed is not None:
        maps = [{seed[r]: r for r in own} for own in rows]
        shared = [s for s in maps[0] if s in maps[1]]
        one_each = all(len(m) == len(own) for m, own in zip(maps, rows, strict=True))
        if one_each and len(shared) > 1:
            rows = [np.array([m[s] for s in shared]) for m in maps]
            a, b = (score_RI[own].astype(np.float64) for own in rows)
            return a, b, shared
    a, b = (score_RI[own].astype(np.float64) for own in rows)
    return a, b, []
