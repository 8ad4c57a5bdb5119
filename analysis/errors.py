"""The one kind of error that a table or a formula can cause, told in one line."""

import difflib
from collections.abc import Iterable


class AnalysisError(Exception):
    """A table, column, formula or model that cannot be analysed as asked."""


def nearest(name: object, choices: Iterable[object]) -> str:
    """Return " Did you mean X?" for the closest of `choices`, or an empty string."""
    close = difflib.get_close_matches(str(name), [str(c) for c in choices], n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def listed(names: Iterable[object], limit: int = 20) -> str:
    """Return `names` as one comma-separated list, cut after `limit`."""
    words = [str(name) for name in names]
    return ", ".join(words[:limit]) + (", ..." if len(words) > limit else "")
