"""Order and rounding that do not hang on a number's last digit.

Numbers that are equal in exact arithmetic (means of right and wrong answers, leverages in a
balanced grid) differ in their last digits, in other ways on each processor; and NumPy's default
sort leaves equal numbers in an order that hangs on the processor too. Here what differs by less
than `TIE` is equal, equals keep the order in which they stand, and a number is freed of its last
digits before it is rounded to be shown.
"""

import numpy as np
import numpy.typing as npt

from analysis.engine.linalg import Array, Index

TIE = 1e-9  # of the largest absolute value
DIGITS = 12  # that a shown number is first rounded to; float64 has nearly 16


def tied_ranks(values: npt.ArrayLike) -> Index:
    """Return the place of every value from 0, the least; equal ones share it, NaN come last."""
    values_N = np.asarray(values, dtype=np.float64)
    order = np.argsort(values_N, kind="stable")
    with np.errstate(invalid="ignore"):  # infinity less itself
        apart = ~(np.diff(values_N[order]) <= _near(values_N))
    found = np.zeros(len(values_N), dtype=np.intp)
    found[order[1:]] = np.cumsum(apart)
    return found


def _near(values_N: Array) -> float:
    return TIE * float(np.abs(values_N[np.isfinite(values_N)]).max(initial=0.0))


def rising(values: npt.ArrayLike) -> Index:
    """Return the order from the least value to the largest; equal ones stay as they stand."""
    return np.argsort(tied_ranks(values), kind="stable")


def falling(values: npt.ArrayLike) -> Index:
    """Return the order from the largest value to the least; equal ones stay as they stand."""
    return rising(-np.asarray(values, dtype=np.float64))


def first_largest(values: npt.ArrayLike) -> int:
    """Return the index of the largest value, of equal ones the first; NaN are passed over."""
    values_N = np.asarray(values, dtype=np.float64)
    return int(np.flatnonzero(values_N >= np.nanmax(values_N) - _near(values_N))[0])


def settled(value: float) -> float:
    """Return `value` without the digits that rounding errors are in, to be rounded and shown."""
    return float(f"{value:.{DIGITS}g}")
