"""Runs that are copies of one another: they count once, as they are no sample of several."""

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from analysis.errors import listed
from analysis.logs.log import Log

TELLING = 20  # scores beside the commonest of their task: equal ones are no chance from here on
Fingerprint = tuple[int, int] | None


def fingerprint(log: Log) -> Fingerprint:
    """Return what runs with the same items and scores have in common; None without items."""
    if not len(log.items):
        return None
    rows = log.items[["task", "metric", "item", "score"]]
    return len(rows), int(pd.util.hash_pandas_object(rows, index=False).sum())


def counted_once(logs: Sequence[Log], *, of_model: bool) -> list[Log]:
    """Return runs without those that repeat an earlier one; the earlier one says so in a note.

    Equal scores on all items make a copy where the settings are equal too, or where the scores vary
    so much that two runs do not agree by chance.

    Args:
        logs: the runs.
        of_model: whether runs of different models are no copies, whatever they score.
    """
    first: dict[object, Log] = {}
    copies: dict[object, list[Log]] = {}
    kept: list[Log] = []
    for log in logs:
        scores = fingerprint(log)
        key = (scores, log.model if of_model else "", tuple(log.levels.items()))
        earlier = first.get(key)
        if scores is None or earlier is None or not _tells(earlier, log):
            first.setdefault(key, log)
            kept.append(log)
        else:
            copies.setdefault(key, []).append(log)
    names = [log.name for log in logs]
    for mark, own in copies.items():
        one = first[mark]
        told = [log.name if names.count(log.name) == 1 else log.source for log in (one, *own)]
        said = (
            f"{listed(told[1:], limit=4)}: the same items and scores as {told[0]}, so it is "
            f"counted once; copies are no further seeds."
        )
        place = next(i for i, log in enumerate(kept) if log is one)
        kept[place] = replace(one, notes=(*one.notes, said))
    return kept


def _tells(one: Log, other: Log) -> bool:
    """Return whether equal scores of two runs cannot be chance."""
    if dict(one.config) == dict(other.config):
        return True
    score = one.items.dropna(subset="score").groupby("task")["score"]
    return bool((score.size() - score.agg(lambda x: x.value_counts().iloc[0])).sum() >= TELLING)
