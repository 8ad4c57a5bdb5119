"""Which columns were measured along with the score: its parts, other scores, costs, time, paths.

None of them is a setting. As a predictor each would explain the score by itself, by its errors, or
by when and how long a run was. They are told by their names, and by their values: the numerator of
a share, the score in another unit, the score in words, seconds since 1970.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from analysis.engine.linalg import Array
from analysis.table.metrics import OUTCOMES, words_of
from analysis.table.outcome import as_outcome

NAMED = {
    "by its name a part or an error of the score": (
        "stderr", "sem", "pvalue", "correct", "incorrect", "hits", "failures", "successes",
        "passed", "failed",
    ),
    "by its name what a run needed": (
        "runtime", "elapsed", "latency", "throughput", "memory", "mem", "vram", "gib", "mib", "gb",
        "mb", "energy", "watts",
    ),
    "by its name another outcome of the same run": OUTCOMES,
    "by its name a date": (
        "timestamp", "datetime", "date", "created", "updated", "modified", "started", "finished",
    ),
}  # fmt: skip
LAST = (
    "se", "sd", "std", "ci", "low", "high", "lower", "upper", "p", "note", "notes", "comment",
    "path", "file", "filename", "url", "uri", "hash", "sha", "key", "uuid", "state", "status",
    "hostname",
)  # fmt: skip
CLOCKS = ("time", "seconds", "sec", "secs", "minutes", "hours", "duration", "step", "iteration",
          "iter", "epoch")  # fmt: skip
NUMBERS = ("n", "trials", "items")
WITHIN = ("task", "benchmark", "item", "question", "example", "doc", "prompt", "metric", "filter")
SETTING = ("weight", "type", "function", "fn", "name", "scale", "coef", "coefficient", "alpha")
DATE = r"\d{4}-\d\d?-\d\d?(?:[T ].*)?"
SINCE_1970 = (1.2e9, 2.2e9)  # seconds; 2008 to 2039
CROSSED = 0.6  # of the pairs of two columns that occur, from which the two are crossed
ROUNDED = 1e-3  # how far a share may be from the score that was rounded from it
FEW = 20  # levels of a design's number, or of words for a score


def measured(frame: pd.DataFrame, trials: str | None = None) -> dict[str, str]:
    """Return why a column is no setting, for every column that was measured with the score.

    Args:
        frame: its score column is named by `frame.attrs["score"]`.
        trials: the column of weights or trials, which is none of them.
    """
    names = [n for n in map(str, frame.columns) if n not in (*frame.attrs["names"], trials)]
    y_N = frame[frame.attrs["score"]].to_numpy(dtype=np.float64)
    found = dict(_shares(frame, [*names, *([trials] if trials else [])], y_N))
    for name in names:
        if why := _by_name(name, frame) or _by_values(frame[name], y_N):
            found.setdefault(name, why)
    return {name: why for name, why in found.items() if name in names}


def _by_name(name: str, frame: pd.DataFrame) -> str:
    words = words_of(name)
    number = pd.api.types.is_numeric_dtype(frame[name])
    if any(w in SETTING for w in words[1:]):
        return ""
    for why, known in NAMED.items():
        if set(words) & set(known) and (number or "date" in why):
            return why
    if words and (words[-1] in LAST or (number and set(words) & set(NUMBERS) == set(words[-1:]))):
        return "by its name a measurement or a note, no setting"
    if number and set(words) & set(CLOCKS) and not _designed(name, frame):
        return "by its name a time or a counter of steps that belongs to a run, no setting"
    return ""


def _designed(name: str, frame: pd.DataFrame) -> bool:
    """Return whether a number's few levels are crossed with runs, subjects or arms."""
    levels = frame[name].nunique()
    if levels > FEW or name.startswith("_") or "global" in words_of(name):
        return False
    others = [c for c in frame.columns if c != name and 1 < frame[c].nunique() <= len(frame) / 2]
    others = [c for c in others if not set(words_of(str(c))) & set(WITHIN)]
    others = [c for c in others if c not in frame.attrs["names"]]
    pairs = ((len(frame[[name, c]].drop_duplicates()), frame[c].nunique()) for c in others)
    return any(both > CROSSED * levels * own for both, own in pairs)


def _by_values(column: "pd.Series", y_N: Array) -> str:
    values = column.dropna()
    if pd.api.types.is_datetime64_any_dtype(column) or pd.api.types.is_timedelta64_dtype(column):
        return "a date or a time"
    if not len(values) or values.nunique() < 2:
        return ""
    if not pd.api.types.is_numeric_dtype(column):
        text = values.astype(str)
        if text.str.fullmatch(DATE).all():
            return "a date or a time"
        levels, here = values.nunique(), y_N[column.notna().to_numpy()]
        wordy = levels <= min(FEW, len(values) / 3) and len(values) == len(column)
        wordy = wordy and len(np.unique(y_N)) == 2 and (levels > 2 or bool(as_outcome(column)[1]))
        if wordy and pd.Series(here).groupby(text.to_numpy()).nunique().max() == 1:
            return "every level has one value of the score: it is the score in words"
        return ""
    x_N = column.to_numpy(dtype=np.float64)
    whole = np.isfinite(x_N)
    seconds = np.abs(x_N[whole])
    for unit in (1.0, 1e3, 1e6, 1e9):
        low, high = (unit * end for end in SINCE_1970)
        near = len(seconds) and seconds.min() > low and seconds.max() < high
        if near and np.ptp(seconds) < 0.1 * seconds.max() and values.nunique() > FEW:
            return "its values are seconds since 1970: a time stamp"
    if whole.all() and _line(x_N, y_N):
        return "the score in another unit"
    return ""


def _line(x_N: Array, y_N: Array) -> bool:
    """Return whether one column is a straight line of another with several values."""
    if len(np.unique(x_N)) < 4 or len(np.unique(y_N)) < 4 or np.abs(x_N).max() > 1e100:
        return False
    x_N, y_N = x_N - x_N.mean(), y_N - y_N.mean()
    return bool(abs(x_N @ y_N) > (1 - 1e-10) * np.sqrt(x_N @ x_N) * np.sqrt(y_N @ y_N))


def _shares(frame: pd.DataFrame, names: list[str], y_N: Array) -> Iterator[tuple[str, str]]:
    """Yield the two counts whose ratio is the score, and what the one leaves of the other."""
    scale = 1.0 if y_N.max() <= 1 else 100.0
    if y_N.min() < 0 or y_N.max() > scale or len(np.unique(y_N)) < 4:
        return
    counts = {n: frame[n].to_numpy(dtype=np.float64) for n in names if _counts(frame[n])}
    for total, n_N in counts.items():
        if n_N.min() < 1:
            continue
        parts = [a for a, a_N in counts.items() if a != total and _ratio(a_N, n_N, y_N / scale)]
        for part in parts:
            yield part, f"a part of the score: it is told by {part} / {total}"
            yield total, f"a part of the score: it is told by {part} / {total}"


def _counts(column: "pd.Series") -> bool:
    if not pd.api.types.is_numeric_dtype(column) or column.isna().any():
        return False
    values = column.to_numpy(dtype=np.float64)
    return bool((values >= 0).all() and (values == np.rint(values)).all())


def _ratio(a_N: Array, n_N: Array, y_N: Array) -> bool:
    share_N = a_N / n_N
    return any(np.abs(found - y_N).max() < ROUNDED for found in (share_N, 1 - share_N))
