"""In which settings two sides differ."""

from collections.abc import Sequence

from analysis.logs.log import Log

UNSET = "–"
MOST_VALUES = 4
LONGEST = 60  # characters of a value, as it is told


def differing(first: Sequence[Log], second: Sequence[Log]) -> list[tuple[str, str, str]]:
    """Return the settings that are not the same on both sides: name, of A, of B."""
    names = dict.fromkeys(n for log in (*first, *second) for n in log.config)
    found = []
    for name in names:
        values = [_values(side, name) for side in (first, second)]
        if set(values[0]) != set(values[1]):
            found.append((name, _told(values[0]), _told(values[1])))
    return found


def _values(side: Sequence[Log], name: str) -> list[str]:
    return list(dict.fromkeys(log.config.get(name, UNSET) for log in side))


def _told(values: Sequence[str]) -> str:
    more = f", ... ({len(values)})" if len(values) > MOST_VALUES else ""
    return ", ".join(_short(value) for value in values[:MOST_VALUES]) + more


def _short(text: str) -> str:
    """Return a long value by its two ends: such values often differ in the last part of a path."""
    half = (LONGEST - len(" ... ")) // 2
    return text if len(text) <= LONGEST else f"{text[:half]} ... {text[-half:]}"
