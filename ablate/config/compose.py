"""The grid that a command line asks for: its distinct cells as composed trees."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.core.config_loader import ConfigLoader

from ablate.config.composer import Composer, config_loader
from ablate.config.factors import Factors, assignments, products
from ablate.config.overrides import check_names, key_of, levels, parse
from ablate.config.parts import Part, Tree
from ablate.errors import UserError

CELLS_A_MINUTE = 120_000  # that are planned, measured on one core


@dataclass(frozen=True, slots=True)
class Point:
    """One cell of a grid: what varies, the overrides that make it, and its composed tree."""

    levels: dict[str, Any]  # factor key -> level; a group's level is its name
    overrides: tuple[str, ...]
    tree: Tree  # shares its parts with other points: never change it


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
        UserError: the request is wrong, or asks for more than `most` cells.
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
) -> list[tuple[tuple[str, ...], dict[str, Part]]]:
    cells: dict[tuple[int, ...], tuple[tuple[str, ...], dict[str, Part]]] = {}
    for lines in wanted:
        parts = composer.cell(lines)
        # Parts are interned: equal trees have equal ids.
        cells.setdefault(tuple(map(id, parts.values())), (lines, parts))
    return list(cells.values())


def _grid(
    cells: list[tuple[tuple[str, ...], dict[str, Part]]],
    keys: tuple[str, ...],
    *,
    study: Tree,
    settings: Tree,
) -> Grid:
    trees = [{name: part.value for name, part in parts.items()} for _, parts in cells]
    columns = {key: [level_of(tree, key) for tree in trees] for key in keys}
    factors = tuple(key for key, column in columns.items() if len(set(map(repr, column))) > 1)
    points = tuple(
        Point({key: columns[key][i] for key in factors}, lines, tree)
        for i, ((lines, _), tree) in enumerate(zip(cells, trees, strict=True))
    )
    return Grid(points, factors, study, settings)


def level_of(tree: Tree, key: str) -> Any:
    """Return the level that a cell has of the factor `key`; a group's level is its name."""
    value: Any = tree
    for step in re.findall(r"[^.\[\]]+", key.partition("@")[0]):
        if isinstance(value, list) and step.isdigit() and int(step) < len(value):
            value = value[int(step)]
        else:
            value = value.get(step) if isinstance(value, dict) else None
    return value["name"] if isinstance(value, dict) and "name" in value else value
