"""The items of a record: which score each of them belongs to."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

SCORE_KEY = "score_key"


def with_score_keys(items: pd.DataFrame, scores: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return a record's items with the key of the score that each belongs to.

    Items of records before schema 3 do not state it. Where a task was scored twice, at two limits,
    its items stand in the order of the scores, so many of each as it counts.

    Args:
        items: as `items.parquet` has them.
        scores: of the record.
    """
    if SCORE_KEY in items:
        return items
    own: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for score in scores:
        own.setdefault((score["task"], score["metric"]), []).append(score)
    found = np.full(len(items), "", dtype=object)
    pairs = items["task"].astype(str) + "\0" + items["metric"].astype(str)
    for pair, index in items.groupby(pairs, sort=False).indices.items():
        task, _, metric = str(pair).partition("\0")
        if known := own.get((task, metric)):
            ends = np.cumsum([score["n"] for score in known])
            place = np.searchsorted(ends, np.arange(len(index)), side="right")
            keys = np.array([score[SCORE_KEY] for score in known])
            found[index] = keys[np.minimum(place, len(known) - 1)]
    return items.assign(**{SCORE_KEY: pd.Series(found, items.index, dtype=str)})
