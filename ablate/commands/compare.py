"""`ablate compare`: is B worse than A? Two runs, arms, folders or logs, item by item.

The comparison for a decision: of other seeds and items under the conditions that were run. What a
study says of its arms by data set, over conditions like these, is `ablate.load(DIR).compare`.
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablate.commands import compare_flips
from ablate.commands.verb import BOOLEAN, Flag, Verb, above_0, truth
from ablate.errors import UserError
from ablate.paths import check_there
from ablate.terminal import CONSOLE, paragraph

if TYPE_CHECKING:
    from rich.table import Table

    from analysis.compare.estimate import Compared
    from analysis.compare.matched import Matched
    from analysis.compare.rows import Row
    from analysis.compare.verdict import Verdict

FORMATS = ("text", "json")
MOST_SETTINGS, MOST_ROWS = 20, 60


def _run(given: argparse.Namespace, rest: list[str]) -> int:
    if len(rest) != 2:
        raise UserError(
            "compare: takes two sides, A (the baseline) and B: cells, folders or logs; arms "
            "of one folder with --in DIR"
        )
    if given.flips:
        compare_flips.check(Path(given.flips))
    _check_there(given, rest)
    from analysis.compare.estimate import compared
    from analysis.compare.verdict import verdict
    from analysis.errors import AnalysisError

    try:
        runs = _sides(given, *rest)
        found = compared(runs, _asked(given))
        said = verdict(found, runs, given.margin)
    except AnalysisError as error:
        raise UserError(str(error)) from None
    if given.flips:
        compare_flips.write(Path(given.flips), found)
    if given.format == "json":
        print(json.dumps(_as_json(rest, runs, found, said), indent=1))
    else:
        _show(rest, runs, found, said)
    return said.status


def _check_there(given: argparse.Namespace, sides: list[str]) -> None:
    """Refuse what is not there before all that compares is imported, which takes seconds."""
    from analysis.errors import AnalysisError
    from analysis.logs.places import places

    if (inside := getattr(given, "in")) is not None:
        check_there("--in", inside)
        return
    try:
        for side in sides:
            places(side)
    except AnalysisError as error:
        raise UserError(str(error)) from None


def _asked(given: argparse.Namespace) -> Any:
    from analysis.compare.benchmarks import Asked

    name = (given.metric or "").removeprefix("metrics.")  # of a table of MLflow
    only = tuple(filter(None, map(str.strip, (given.benchmarks or "").split(","))))
    return Asked(name, given.cluster or "", given.by_id, only, given.higher_is_better)


def _sides(given: argparse.Namespace, first: str, second: str) -> "Matched":
    from analysis.compare.sides import inside, paths

    metrics = (given.metric,) if given.metric else ()
    if getattr(given, "in") is not None:
        return inside(Path(getattr(given, "in")), first, second, metrics=metrics)
    return paths(first, second, cluster=given.cluster or "", metrics=metrics)


def _show(names: list[str], runs: "Matched", found: "Compared", said: "Verdict") -> None:
    from analysis.compare.settings import differing

    for letter, name, side in zip("AB", names, (runs.first, runs.second), strict=True):
        seeds = [log.seed for log in side if log.seed]
        told = f", seeds {', '.join(dict.fromkeys(seeds))}" if len(side) > 1 and seeds else ""
        count = "1 run" if len(side) == 1 else f"{len(side)} runs"
        paragraph(CONSOLE, f"{name} ({count}{told})", lead=f"{letter}:")
    settings = differing(runs.first, runs.second)
    if settings:
        CONSOLE.print(_settings(settings))
        if len(settings) > MOST_SETTINGS:
            CONSOLE.print(f"and {len(settings) - MOST_SETTINGS} settings more (--format json)")
    else:
        CONSOLE.print("no setting that was logged differs")
    CONSOLE.print()
    rows = [*found.rows, *([found.overall] if len(found.rows) > 1 else [])]
    shown = rows if len(rows) <= MOST_ROWS else [*rows[: MOST_ROWS - 1], rows[-1]]
    cells = [_cells(row) for row in shown]
    p = "p (Holm)" if len(found.rows) > 1 else "p"
    CONSOLE.print(_table(["benchmark", "items", "A", "B", "B − A", "95 %", p], cells))
    CONSOLE.print()
    beside = [[row[0], *row[7:]] for row in cells]
    CONSOLE.print(_table(["", "down", "up", "McNemar p", "unpaired 95 %", "p"], beside))
    for line in (*_missing(rows), *found.notes, *_beside(found)):
        paragraph(CONSOLE, line)
    CONSOLE.print()
    paragraph(CONSOLE, said.text, lead="verdict:")


def _settings(settings: list[tuple[str, str, str]]) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table("setting", "A", "B", box=None, pad_edge=False)
    for row in settings[:MOST_SETTINGS]:
        table.add_row(*map(Text, row))
    return table


def _table(heads: list[str], rows: list[list[str]]) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for number, head in enumerate(heads):
        first = number == 0
        table.add_column(
            head, justify="left" if first else "right", no_wrap=not first, overflow="fold"
        )
    for row in rows:
        table.add_row(*map(Text, row[: len(heads)]))
    return table


def _cells(row: "Row") -> list[str]:
    from analysis.report.tables import MISSING, P_VALUE, shown

    effect, digits = row.effect, ".2f" if row.unit == "points" else ".4g"
    gap, ends, p = MISSING, MISSING, MISSING
    if effect is not None:
        gap = f"{effect.estimate:+{digits}}"
        ends = f"{effect.low:+{digits}} to {effect.high:+{digits}}"
        p = shown(row.p_adjusted if row.metric else effect.p, P_VALUE)
    half = 1.96 * row.apart
    apart = f"{row.b - row.a - half:+{digits}} to {row.b - row.a + half:+{digits}}"
    name = f"{row.name} [{row.metric.removesuffix(',none')}]" if row.metric else row.name
    flips = [str(row.down), str(row.up)] if row.items else [MISSING, MISSING]
    return [
        name, f"{row.items:,}" if row.items else MISSING, shown(row.a, digits),
        shown(row.b, digits), gap, ends, p, *flips, shown(row.mcnemar, P_VALUE),
        apart if row.apart > 0 else MISSING, shown(row.p_apart, P_VALUE),
    ]  # fmt: skip


def _missing(rows: "list[Row]") -> list[str]:
    """Return a line on every benchmark of which items are missing."""
    found = []
    for row in rows:
        lost = row.missing
        if lost is None or not lost.count or not row.metric:
            continue
        parts = [
            f"{count:,} {whose}"
            for count, whose in (
                (lost.first, "of A"), (lost.second, "of B"), (lost.either, "of both"),
            ) if count
        ]  # fmt: skip
        found.append(
            f"{row.name}: items are missing ({', '.join(parts)}) and do not count; whatever their "
            f"scores, B − A of these runs lies between {lost.low:+.3g} and {lost.high:+.3g}."
        )
    return found


def _beside(found: "Compared") -> list[str]:
    """Return what the columns mean that need words."""
    said = []
    if any(row.items for row in found.rows):
        said.append(
            "down, up: items on which B scores lower, higher. unpaired: lm-eval's own comparison, "
            "as if the two sides had answered separate items."
        )
    return said


def _as_json(
    names: list[str], runs: "Matched", found: "Compared", said: "Verdict"
) -> dict[str, Any]:
    from analysis.compare.settings import differing

    return {
        "a": {"name": names[0], "runs": [str(log.source) for log in runs.first]},
        "b": {"name": names[1], "runs": [str(log.source) for log in runs.second]},
        "verdict": said.word,
        "text": said.text,
        "status": said.status,
        "worse": list(said.worse),
        "overall": _row_json(found.overall),
        "benchmarks": [_row_json(row) for row in found.rows],
        "settings": [dict(zip(("setting", "a", "b"), row, strict=True)) for row in
                     differing(runs.first, runs.second)],
        "not_compared": [{"name": one.name, "reason": one.reason} for one in found.left_out],
        "notes": list(found.notes),
    }  # fmt: skip


def _row_json(row: "Row") -> dict[str, Any]:
    known = {
        "name": row.name, "metric": row.metric, "unit": row.unit, "sampled": row.scope,
        "items": row.items, "clusters": row.clusters, "a": row.a, "b": row.b,
        "down": row.down, "up": row.up, "mcnemar_p": row.mcnemar, "p_adjusted": row.p_adjusted,
        "unpaired_se": row.apart, "unpaired_p": row.p_apart,
    }  # fmt: skip
    for name, effect in (("", row.effect), ("items_", row.over_items), ("runs_", row.over_runs)):
        if effect is not None:
            parts = ("estimate", "low", "high", "se", "df", "p")
            known |= {f"{name}{part}": getattr(effect, part) for part in parts}
    if row.missing is not None:
        bounds = ("first", "second", "either", "low", "high")
        keys = ("missing_a", "missing_b", "missing_both", "bound_low", "bound_high")
        known |= {k: getattr(row.missing, part) for k, part in zip(keys, bounds, strict=True)}
    return {k: _finite(v) for k, v in known.items()}


def _finite(value: Any) -> Any:
    """Return a number as JSON can hold it: null for what is not finite."""
    if isinstance(value, float) and (value != value or abs(value) == float("inf")):
        return None
    return value


VERB = Verb(
    name="compare",
    summary="is B worse than A? two runs, arms, folders or logs, item by item",
    about=(
        "Pairs the items that A (the baseline) and B were scored on and says how B differs: B less "
        "A with its interval by benchmark and over all, answers that changed either way, bounds "
        "for missing items, the settings that differ, and one verdict. Intervals are for other "
        "items and other seeds, under the conditions that were run; what a study says of its arms, "
        "by data set and over such conditions, is study.compare of ablate.load(DIR). Reads cells "
        "and folders of results, lm-eval (--log_samples), Inspect, Every Eval Ever, W&B and "
        "MLflow. Exit status 0 where B is not distinguishably worse (with --margin: is shown to be "
        "no worse than that), 1 where it is, 2 for a wrong request."
    ),
    words="A B",
    options=(
        Flag("--in", "A and B are arms ('lora r8'), levels (adapter=lora,rank=8) or names of "
             "runs in this folder of results or table of runs", "DIR_OR_TABLE"),
        Flag("--metric", "the metric to compare by (default: each benchmark's first of acc_norm, "
             "acc, exact_match, ...); of a table of runs the column", "NAME"),
        Flag("--higher-is-better", "which way the metric is better, true or false (default: as the "
             "logs say, or its name: less of a loss or an error)", "BOOL", truth, BOOLEAN),
        Flag("--benchmarks", "compare these alone (default: all; where one cannot be compared the "
             "exit status is 1)", "NAME,..."),
        Flag("--cluster", "items with the same value of this field of their document belong "
             "together (a passage, say); `task`: subtasks are a sample", "FIELD"),
        Flag("--margin", "B passes where it is shown to be no more than this worse", "POINTS",
             above_0),
        Flag("--by-id", "pair items by number though their documents differ"),
        Flag("--flips", "write the items that changed to a CSV file", "FILE"),
        Flag("--format", "text or json (default: text)", "FORMAT", str, FORMATS, "text"),
    ),
    examples=(
        "ablate compare results/mine/cells/3f2a results/mine/cells/77c0",
        "ablate compare full 'lora r8' --in results/mine --margin 1",
        "ablate compare logs/base logs/tuned --metric acc_norm --format json",
    ),
    run=_run,
)  # fmt: skip
