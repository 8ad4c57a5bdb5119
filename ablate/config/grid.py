"""The cells of a grid as typed configurations, or the reason why one cannot be built."""

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from ablate.config.build import build
from ablate.config.compose import Grid, Point
from ablate.config.composer import CELL_KEYS
from ablate.config.schema import Cell
from ablate.errors import UserError


@dataclass(frozen=True, slots=True)
class GridCell:
    """One point of a grid: its configuration, or the reason why it has none."""

    levels: dict[str, Any]
    overrides: tuple[str, ...]
    cell: Cell | None
    error: str | None


def cells(grid: Grid) -> Iterator[GridCell]:
    """Yield every point of `grid` as a cell, in order.

    Points share the parts of their trees, so each part is converted once.
    """
    converted: dict[Hashable, Any] = {}
    for point in grid.points:
        yield _cell(point, converted)


def _cell(point: Point, converted: dict[Hashable, Any]) -> GridCell:
    try:
        cell = _assemble(point.tree, converted)
    except UserError as error:
        return GridCell(point.levels, point.overrides, None, str(error))
    return GridCell(point.levels, point.overrides, cell, None)


def _assemble(tree: dict[str, Any], converted: dict[Hashable, Any]) -> Cell:
    marks = {name: _mark(name, part) for name, part in tree.items()}
    if len(tree) == len(CELL_KEYS) and all(mark in converted for mark in marks.values()):
        return Cell(**{name: converted[mark] for name, mark in marks.items()})
    cell = build(tree)
    # Parts converted before stay: equal parts are one object, by which much is looked up later.
    return replace(
        cell, **{n: converted.setdefault(mark, getattr(cell, n)) for n, mark in marks.items()}
    )


def _mark(name: str, part: Any) -> Hashable:
    """Return a key for a part of a tree: the id of a table, which the grid keeps alive."""
    if isinstance(part, dict | list):
        return name, id(part)
    return name, type(part), part
