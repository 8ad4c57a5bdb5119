"""The grid as lists of override lines: what a study asks for, then what the command line changes.

A study's scale is `set`, values for every cell, and `grids`, a list of products {key: [levels]}
whose union is the grid. A key given on the command line replaces that key in `set` and in every
product; a new one is added to all of them.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ablate.config.overrides import key_of, spell
from ablate.errors import UserError, unknown

# A factor's key, and one override line per level. The order is that of application and, as in
# Hydra, of the loops: the last factor varies fastest.
Factors = dict[str, list[str]]

_SCALE_KEYS = ("set", "grids")


def products(study: Mapping[str, Any], scale: str, asked: Factors) -> list[Factors]:
    """Return the factors of every product whose union is the grid.

    Args:
        study: the composed `study` part of the tree.
        scale: which of its scales.
        asked: the command line's factors, in the order they were given.

    Raises:
        UserError: the study has no such scale, or is not written as above.
    """
    name, scales = study.get("name"), _table(study, "scales")
    if scale not in scales:
        raise unknown("scale", scale, scales)
    wanted = _table(scales, scale)
    for key in wanted:
        if key not in _SCALE_KEYS:
            raise unknown(f"study {name}: scales.{scale}", key, _SCALE_KEYS)
    fixed = _written(_table(wanted, "set"), study, one_level=True)
    listed = wanted.get("grids") or [{}]
    if not isinstance(listed, list):
        raise UserError(f"study {name}: grids={listed}: must be a list of products")
    grids = [_written(_table({"grids": grid}, "grids"), study) for grid in listed]
    return [_replaced({**fixed, **grid}, asked) for grid in grids]


def _table(parent: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return the table under `key`; one that is left empty in the file is an empty one."""
    found = parent.get(key) or {}
    if not isinstance(found, Mapping):
        raise UserError(f"study: {key}={found}: must be a table of settings")
    return found


def assignments(factors: Factors) -> Iterator[tuple[str, ...]]:
    """Yield the override lines of each combination of levels."""
    yield from itertools.product(*factors.values())


def _replaced(factors: Factors, asked: Factors) -> Factors:
    """Return `factors` with those asked for on the command line in their place, applied last."""
    return {k: v for k, v in factors.items() if k not in asked} | asked


def _written(
    table: Mapping[str, Any], study: Mapping[str, Any], *, one_level: bool = False
) -> Factors:
    """Return a YAML table {key: levels} as factors."""
    factors: Factors = {}
    for key, value in table.items():
        levels: Sequence[Any] = value if isinstance(value, list) and not one_level else [value]
        if not levels:
            raise UserError(f"study {study.get('name')}: {key} has no level")
        lines = [f"{key}={spell(level)}" for level in levels]
        factors[key_of(lines[0])] = lines
    return factors
