"""The options of a method, an init or an optimizer: a default and the values that are allowed.

No torch.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ablate.errors import UserError, nearest

Options = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Option:
    """One option: its default, a test of a value, and the allowed values in words."""

    default: Any
    accepts: Callable[[Any], bool]
    allowed: str


def filled(
    given: Options, known: Mapping[str, Option], *, factor: str, kind: str
) -> dict[str, Any]:
    """Return every option in `known`: the value in `given`, else the default.

    Values of options whose default is a float are returned as floats, so that 16 and 16.0 are one
    value in a run's identity.

    Args:
        given: options by name, as the configuration has them.
        known: the options that exist.
        factor: the setting they belong to, for the message: adapter, init or optimizer.
        kind: the kind within the factor, for the message.

    Raises:
        UserError: an option that does not exist, or a value that is not allowed.
    """
    for name in given:
        if name not in known:
            raise UserError(
                f"{factor}.options.{name}: {kind} has no such option, only "
                f"{', '.join(sorted(known)) or 'none'}.{nearest(name, known)}"
            )
    found = {}
    for name, option in known.items():
        value = given.get(name, option.default)
        if not option.accepts(value):
            raise UserError(f"{factor}.options.{name}={value}: must be {option.allowed}")
        found[name] = float(value) if isinstance(option.default, float) else value
    return found


def is_number(value: Any) -> bool:
    """Return whether `value` is a number; booleans are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_positive(value: Any) -> bool:
    """Return whether `value` is a finite number above zero."""
    return is_number(value) and 0 < value < math.inf


def flag(default: bool = False) -> Option:
    """Return an option that is true or false."""
    return Option(default, lambda v: isinstance(v, bool), "true or false")


def positive(default: float) -> Option:
    """Return an option that is a number above zero."""
    return Option(default, is_positive, "positive")


def share(default: float = 0.0) -> Option:
    """Return an option that is a fraction in [0, 1), such as a dropout probability."""
    return Option(default, lambda v: is_number(v) and 0 <= v < 1, "a number in [0, 1)")


def whole(default: int, *, least: int = 1) -> Option:
    """Return an option that is an integer of at least `least`."""
    return Option(
        default,
        lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= least,
        f"a whole number of at least {least}",
    )


def one_of(default: str, *others: str) -> Option:
    """Return an option that is one of a few words."""
    words = (default, *others)
    return Option(default, lambda v: v in words, f"one of {', '.join(words)}")
