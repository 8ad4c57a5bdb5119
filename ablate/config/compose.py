"""The grid that a command line asks for: its distinct cells as composed trees."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.core.config_loader import ConfigLoader

from ablate.config.composer import Composer, config_loader
from ablate.config.factors import Factors, assignments, products
from ablate.config.overrides import check_names, key_of, levels, parse, top_of
from ablate.config.parts import Part, Tree
from ablate.errors import UserError

CELLS_A_MINUTE = 120_000  # that are planned, measured on one core
MOST_CELLS = 10_000_000  # of one request: planning them takes more than an hour


@dataclass(frozen=True, slots=True)
class Point:
    """One cell of a grid: what varies, the overrides that make it, and its composed tree."""

    levels: dict[str, Any]  # factor key -> level; a group's level is its name
    overrides: tuple[str, ...]
    names: tuple[str, ...]  # of the parts of its tree, the same object for most points
    parts: tuple[Part, ...]

    @property
    def tree(self) -> Tree:
        """Its composed tree, which shares its parts with other points: never change it."""
        return {name: part.value for name, part in zip(self.names, self.parts, strict=True)}


@dataclass(frozen=True, slots=True)
class Grid:
    """Every distinct cell that was asked for, and the settings of the command."""

    points: tuple[Point, ...]
    factors: tuple[str, ...]  # keys that take more than one level over the grid
    study: Tree
    settings: Tree  # out, scale, retry_failed, ...


def expand(
    overrides: Iterable[str], *, loader: ConfigLoader | None = None, most: int | None = None
) -> Grid:
    """Return the grid that command-line `overrides` ask for.

    The study's values are applied first, then its grids, then the command line, which replaces
    every factor of the study with the same key. Equal cells are kept once, in order.

    Raises:
        UserError: the request is wrong, or asks for more than `most` or `MOST_CELLS` cells.
    """
    loader = loader or config_loader()
    composer, lines = _composer(overrides, loader)
    asked: Factors = {}
    for line in lines:
        if not composer.is_about_command(line):
            asked.pop(key_of(line), None)  # the last one counts, in the last place
            asked[key_of(line)] = levels(line, loader)
    study, settings = composer.study, composer.command
    found = products(study, str(settings["scale"]), asked)
    count = sum(math.prod(map(len, factors.values())) for factors in found)
    if count > MOST_CELLS:
        raise UserError(f"{count:,} cells: at most {MOST_CELLS:,} may be asked for at once")
    if most is not None and count > most:
        minutes = math.ceil(count / CELLS_A_MINUTE)
        raise UserError(
            f"{count:,} cells: planning them takes {minutes:,} minutes or so; --all does it, fewer "
            "levels take less"
        )
    wanted = [assignment for factors in found for assignment in assignments(factors)]
    keys = dict.fromkeys(_factor(line) for assignment in wanted for line in assignment)
    return _grid(_distinct(composer, wanted), tuple(keys), study=study, settings=settings)


def command(overrides: Iterable[str], *, loader: ConfigLoader | None = None) -> Tree:
    """Return the settings of the command itself: scale, out, ...; no cell is composed.

    Raises:
        UserError: one of them, or of Hydra's own, is wrong.
    """
    return _composer(overrides, loader or config_loader())[0].command


def _composer(overrides: Iterable[str], loader: ConfigLoader) -> tuple[Composer, list[str]]:
    """Return the composer of a command line and its lines less Hydra's own, which are checked."""
    given = list(overrides)
    lines = task_overrides(given)
    composer = Composer(loader, lines)
    composer.check_hydra([line for line in given if _is_hydra(line)])
    return composer, lines


def explained(error: Exception, arguments: Sequence[str]) -> Exception:
    """Return the error of `expand` for a request that Hydra refused with `error`, if there is one.

    Hydra composes a command's fixed overrides before a sweeper sees them, and its message names no
    nearest key or level.

    Args:
        error: what Hydra raised.
        arguments: the words of Hydra's command line, options included.
    """
    asked, _ = get_args_parser().parse_known_args(arguments)
    try:
        expand(
            asked.overrides, loader=config_loader([asked.config_dir] if asked.config_dir else [])
        )
    except UserError as ours:
        return ours
    return error


def task_overrides(overrides: Iterable[str]) -> list[str]:
    """Return the overrides without Hydra's own; `+study=x` is read as `study=x`.

    Raises:
        UserError: a line is no override.
    """
    kept = []
    for line in overrides:
        if parse(line).key_or_group in ("study", "scale"):
            line = line.lstrip("+")
        if not _is_hydra(line):
            check_names(line)
            kept.append(line)
    return kept


def _is_hydra(line: str) -> bool:
    """Return whether an override is Hydra's own business; where levels are searched is ours too."""
    override = parse(line)
    return override.is_hydra_override() and override.key_or_group != "hydra.searchpath"


@cache
def _factor(line: str) -> str:
    """Return the name of the factor that a line is a level of; a group's levels differ by name."""
    return key_of(line).removesuffix(".name")


def _distinct(
    composer: Composer, wanted: Iterable[tuple[str, ...]]
) -> dict[tuple[Part, ...], tuple[tuple[str, ...], tuple[str, ...]]]:
    """Return the lines that make each distinct cell, and the names of its parts."""
    cells: dict[tuple[Part, ...], tuple[tuple[str, ...], tuple[str, ...]]] = {}
    known: dict[tuple[str, ...], tuple[str, ...]] = {}
    for lines in wanted:
        parts = composer.cell(lines)
        names = tuple(parts)
        # Parts are interned, and compared by what object they are: equal trees have equal ones.
        cells.setdefault(tuple(parts.values()), (lines, known.setdefault(names, names)))
    return cells


def _grid(
    cells: Mapping[tuple[Part, ...], tuple[tuple[str, ...], tuple[str, ...]]],
    keys: tuple[str, ...],
    *,
    study: Tree,
    settings: Tree,
) -> Grid:
    columns = {key: list(_column(cells, key)) for key in keys}
    factors = tuple(key for key, column in columns.items() if len(set(map(repr, column))) > 1)
    points = tuple(
        Point({key: columns[key][i] for key in factors}, lines, names, parts)
        for i, (parts, (lines, names)) in enumerate(cells.items())
    )
    return Grid(points, factors, study, settings)


def _column(
    cells: Mapping[tuple[Part, ...], tuple[tuple[str, ...], tuple[str, ...]]], key: str
) -> Iterator[Any]:
    """Yield the level of every cell of one factor; of equal parts it is one object."""
    top, known = top_of(key), dict[Part, Any]()
    for parts, (_, names) in cells.items():
        if top not in names:
            yield None
            continue
        part = parts[names.index(top)]
        if part not in known:
            known[part] = level_of({top: part.value}, key)
        yield known[part]


def level_of(tree: Tree, key: str) -> Any:
    """Return the level that a cell has of the factor `key`; a group's level is its name."""
    value: Any = tree
    for step in re.findall(r"[^.\[\]]+", key.partition("@")[0]):
        if isinstance(value, list) and step.isdigit() and int(step) < len(value):
            value = value[int(step)]
        else:
            value = value.get(step) if isinstance(value, dict) else None
    return value["name"] if isinstance(value, dict) and "name" in value else value
