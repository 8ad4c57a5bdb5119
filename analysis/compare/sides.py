"""What the two words of a comparison stand for: paths, or sides of one folder or table."""

import glob
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal, InvalidOperation
from pathlib import Path

from analysis.compare.matched import Matched, matched
from analysis.errors import AnalysisError, listed, nearest
from analysis.facade import LoadedStudy
from analysis.logs import own, read, trackers
from analysis.logs.log import Log
from analysis.logs.places import is_cell, is_folder
from analysis.table.frame import read as read_table

Side = str | dict[str, str]
PART = re.compile(
    r"""(?:\[[^\]]*\]|\([^)]*\)|\{[^}]*\}|"[^"]*"|'[^']*'|[^,])+"""
)  # of "a=[1, 2],b=3"
# What tells runs of one condition apart: no condition of its own.
REPEATS = re.compile(
    r"(.*[._/])?(seed|random_state|fold|repeat|replicate|trial|run|index)s?$", re.I
)
# What a tracker says of where and by whom a run was carried out, in small letters.
CIRCUMSTANCES = (
    "user", "user_id", "notes", "tags", "created", "updated", "start time", "end time", "runtime",
    "duration", "hostname", "host", "node", "device", "gpu", "gpu type", "gpu count", "os",
    "python version", "cli version", "agent", "command", "process id", "commit",
)  # fmt: skip


def paths(first: str, second: str, *, cluster: str, metrics: Sequence[str]) -> Matched:
    """Return the runs that two paths, or patterns of paths, name.

    Raises:
        AnalysisError: a side is not there, cannot be read, or has no partner on the other.
    """
    sides = [read.read_side(s, cluster=cluster, metrics=metrics) for s in (first, second)]
    if all(len({log.source for log in s}) == 1 and trackers.is_source(s[0].source) for s in sides):
        return matched(*_with_conditions(*sides))
    return matched(*(_of_models(side) for side in sides))


def _of_models(side: Sequence[Log]) -> list[Log]:
    """Return logs of which the model is a condition, where one path holds several models."""
    models = {log.model for log in side}
    if (
        any(log.levels for log in side)
        or len(models) == 1
        or len({log.source for log in side}) == 1
    ):
        return list(side)
    if len({log.name for log in side} - models):  # several paths: each is a run of the side
        return list(side)
    return [replace(log, levels={"model": log.model}) for log in side]


def inside(place: Path, first: str, second: str, *, metrics: Sequence[str]) -> Matched:
    """Return the runs of two sides of one folder of results, or of one table of runs.

    Args:
        place: the folder or table.
        first: an arm ("lora r8"), levels ("adapter=lora,rank=8"), or a key or a run's name.
        second: the same for the other side.
        metrics: the columns of scores in a table of runs.

    Raises:
        AnalysisError: there is no such side, or the two did not run under equal conditions.
    """
    if not place.exists():
        raise AnalysisError(f"--in={place}: no such file or folder")
    if is_folder(place):
        return _of_results(place, first, second)
    every = read.read_logs(place, metrics=metrics)
    return matched(*_with_conditions(*(_chosen(every, side, place) for side in (first, second))))


def _with_conditions(first: Sequence[Log], second: Sequence[Log]) -> list[list[Log]]:
    """Return the runs of two sides of tables with what varies within both sides as their condition.

    A setting is one where both sides ran the same values of it, several. A table tells settings
    from results by nothing else: runs do not share their results. Where every run of a side has a
    seed of its own, the seeds are the pairs, whatever else varies.
    """
    seeds = [[log.seed for log in side] for side in (first, second)]
    if all("" not in own and len(set(own)) == len(own) for own in seeds):
        return [list(first), list(second)]
    every = [*first, *second]
    names = [
        n
        for n in dict.fromkeys(n for log in every for n in log.config)
        if not REPEATS.match(n)
        and n not in trackers.NAMES
        and n.lower() not in CIRCUMSTANCES
        and _is_condition(n, first, second)
    ]
    return [
        [replace(log, levels={n: f"{n}={log.config.get(n, '')}" for n in names}) for log in side]
        for side in (first, second)
    ]


def _is_condition(name: str, first: Sequence[Log], second: Sequence[Log]) -> bool:
    values = [{log.config.get(name) for log in side} for side in (first, second)]
    if values[0] != values[1] or len(values[0]) < 2:
        return False
    of_seed: dict[str, set[str | None]] = {}
    for log in (*first, *second):
        of_seed.setdefault(log.seed, set()).add(log.config.get(name))
    return "" in of_seed or any(len(own) > 1 for own in of_seed.values())


def levels_of(words: str) -> Side:
    """Return a side as an arm's name, or as levels by factor where it has the form KEY=VALUE."""
    parts = [part.partition("=") for part in PART.findall(words)]
    if all(middle and name.strip() for name, middle, _ in parts):
        return {name.strip(): value.strip() for name, _, value in parts}
    return words


def _of_results(folder: Path, first: str, second: str) -> Matched:
    cells = [_cell(folder, side) for side in (first, second)]
    if all(cell is not None for cell in cells):
        return matched(*([own.read_cell(cell)] for cell in cells if cell is not None))
    study = LoadedStudy(folder, read_table(folder), AnalysisError("not fitted"), {})
    try:
        found = study.pairs(levels_of(first), levels_of(second))
    except AnalysisError as error:
        text = str(error)
        for words in (first, second):
            text = text.replace(str(levels_of(words)), words)
        raise AnalysisError(text) from None
    sides: list[list[Log]] = []
    for which in (True, False):
        rows = found[found["first"] == which].to_dict("records")
        sides.append([
            own.read_cell(folder / "cells" / str(row["trained"]), {"condition": row["condition"]})
            for row in rows
        ])  # fmt: skip
    return matched(*sides)


def _cell(folder: Path, side: str) -> Path | None:
    """Return the recorded cell whose key begins so; None where there is not one."""
    exact = folder / "cells" / side
    if not side or exact.name != side:  # a name, no path
        return None
    begun = [exact] if is_cell(exact) else sorted((folder / "cells").glob(f"{glob.escape(side)}*"))
    return begun[0] if len(begun) == 1 and is_cell(begun[0]) else None


def _chosen(every: Sequence[Log], side: str, place: Path) -> list[Log]:
    """Return the runs of a table that a name or levels tell.

    Raises:
        AnalysisError: there is none, or no such column.
    """
    asked = levels_of(side)
    if isinstance(asked, str):
        found = [log for log in every if asked in (log.name, log.model)]
        if not found:
            names = list(dict.fromkeys(log.name for log in every))
            raise AnalysisError(
                f"{side}: no run of {place} has this name; they are {listed(names, limit=6)}, and "
                f"levels are named as COLUMN=VALUE.{nearest(side, names)}"
            )
        return found
    columns = {name for log in every for name in log.config}
    for name in asked:
        if name not in columns:
            raise AnalysisError(f"{name}: no such column of {place}.{nearest(name, columns)}")
    found = [log for log in every if all(_is(log.config, n, v) for n, v in asked.items())]
    if not found:
        for name, value in asked.items():
            known = sorted({log.config.get(name, "") or "(empty)" for log in every})
            if not any(_is(log.config, name, value) for log in every):
                raise AnalysisError(
                    f"{name}={value}: not one of {listed(known)}.{nearest(value, known)}"
                )
        raise AnalysisError(f"{side}: no run of {place} has all of these levels")
    return found


def _is(config: Mapping[str, str], name: str, value: str) -> bool:
    return _same(config.get(name, ""), value)


def _same(one: str, other: str) -> bool:
    """Return whether two texts are one value: equal numbers, true and True, [1,2] and [1, 2]."""
    if one == other:
        return True
    try:
        return Decimal(one) == Decimal(other)  # exact, unlike floats: ids of 17 digits and more
    except InvalidOperation:
        pass
    if one[:1] in ("[", "(", "{"):
        return re.sub(r"[\s'\"]", "", one) == re.sub(r"[\s'\"]", "", other)
    return one.lower() == other.lower() and one.lower() in ("true", "false")
