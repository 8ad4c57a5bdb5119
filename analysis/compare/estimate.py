"""The difference of two sides, B less A: benchmark by benchmark, and the mean over benchmarks.

Whose uncertainty it has follows from what was sampled. With one run a side these are the items
alone: the statement is of these very runs on other items like these. With several runs a side it is
of other runs on other items, under the conditions that were run (`inference.crossed`); how arms
differ over conditions like these, `ablate.load(...).compare` says. Where no items were logged it is
of other runs, paired by seed, or, from the errors that a log states, of separate items for either
side, which is what lm-eval's own comparison assumes and is too wide for answers to the same items.

Benchmarks weigh equally in the mean, items equally within a benchmark.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from analysis.compare.benchmarks import TASK, Asked, Benchmark, benchmarks
from analysis.compare.left_out import LeftOut, left_out, sentences, tasks, with_metrics
from analysis.compare.matched import Matched
from analysis.compare.paired_items import benchmark_row, mean_row
from analysis.compare.rows import Row
from analysis.compare.stated import mean_of_rows, stated_rows
from analysis.errors import AnalysisError, listed, nearest
from analysis.inference.estimates import holm
from analysis.logs.copies import fingerprint


@dataclass(frozen=True)
class Compared:
    """All rows of a comparison, the one that the verdict is of, and what was not compared."""

    rows: tuple[Row, ...]
    overall: Row
    benchmarks: tuple[Benchmark, ...]
    notes: tuple[str, ...]
    left_out: tuple[LeftOut, ...] = ()


def compared(runs: Matched, asked: Asked) -> Compared:
    """Return B less A: by benchmark, and over all that are in points.

    Raises:
        AnalysisError: the sides share no benchmark, or nothing tells the error of the difference.
    """
    _check_names(runs, asked)
    found = list(benchmarks(runs, asked))
    known = {str(task) for one in found for task in one.task_I}
    if asked.cluster == TASK:
        known |= {str(t) for one in found if one.cluster_I is not None for t in one.cluster_I}
    rows = [benchmark_row(one, runs) for one in found]
    stated = list(stated_rows(runs, asked, known))
    rows = [_computable(row) for row in (*rows, *stated)]
    _check_direction(rows, asked)
    if not rows:
        raise AnalysisError(_nothing(runs))
    p = holm([row.effect.p if row.effect else math.nan for row in rows])
    rows = [replace(row, p_adjusted=value) for row, value in zip(rows, p, strict=True)]
    overall = rows[0] if len(rows) == 1 else _computable(_mean(found, rows, runs))
    if overall.effect is None:
        raise AnalysisError(_without_errors([overall], runs))
    known |= {row.name for row in rows}
    lost = [*left_out(runs, known, asked.metric, asked.only), *_without_error(rows)]
    notes = [*runs.notes, *_of_logs(runs), *(note for one in found for note in one.notes)]
    notes += [*_of_one_side(stated, runs), *sentences(lost), *_beside_the_mean(rows, overall)]
    said = "" if asked.higher_is_better is None else ", as --higher-is-better says"
    notes += [
        f"{r.name}: a low {r.metric} is good{said}; signs are turned." for r in rows if r.turned
    ]
    return Compared(tuple(rows), overall, tuple(found), tuple(notes), tuple(lost))


def _computable(row: Row) -> Row:
    """Return a row without an effect where no test can be made of it."""
    effect = row.effect
    if effect is None or (0 < effect.se < math.inf and math.isfinite(effect.estimate)):
        return row
    return replace(row, effect=None)


def _of_one_side(stated: list[Row], runs: Matched) -> Iterator[str]:
    """Yield on which benchmarks some runs logged items, in vain as others did not."""
    for row in stated:
        without = [
            (letter, log)
            for letter, side in zip("AB", (runs.first, runs.second), strict=True)
            for log in side
            if not ((log.items["task"] == row.name) & log.items["score"].notna()).any()
        ]
        if len(without) < len(runs.first) + len(runs.second):
            letter, log = without[0]
            place = f"{log.source} ({letter})"
            more = f" and {len(without) - 1} runs more" if len(without) > 1 else ""
            yield f"{row.name}: not paired by item, for there are none in {place}{more}."


def _check_names(runs: Matched, asked: Asked) -> None:
    """Refuse benchmarks that were asked for and that neither side has.

    Raises:
        AnalysisError: there is one.
    """
    known = {
        name
        for log in (*runs.first, *runs.second)
        for task, (group, _) in tasks(log).items()
        for name in (task, group)
    }
    for name in asked.only:
        if name not in known:
            raise AnalysisError(
                f"--benchmarks={name}: not one of {listed(sorted(known))}.{nearest(name, known)}"
            )


def _check_direction(rows: list[Row], asked: Asked) -> None:
    """Refuse one direction for several metrics.

    Raises:
        AnalysisError: benchmarks are judged by several.
    """
    metrics = list(dict.fromkeys(row.metric for row in rows))
    if asked.higher_is_better is not None and len(metrics) > 1:
        raise AnalysisError(
            f"--higher-is-better: is of one metric, and benchmarks are judged by "
            f"{listed(metrics)}; name one with --metric"
        )


def _without_error(rows: list[Row]) -> Iterator[LeftOut]:
    for row in rows:
        if row.effect is None:
            yield LeftOut(row.name, "nothing tells the error of its difference")


def _of_logs(runs: Matched) -> Iterator[str]:
    """Yield what the logs of either side say of themselves."""
    for letter, side in zip("AB", (runs.first, runs.second), strict=True):
        for note in dict.fromkeys(note for log in side for note in log.notes):
            yield f"{letter}: {note}"
    marks = [{fingerprint(log) for log in side} for side in (runs.first, runs.second)]
    if marks[0] == marks[1] and None not in marks[0]:
        yield "A and B have the same scores on all items; are they copies of one run?"


def _beside_the_mean(rows: list[Row], overall: Row) -> Iterator[str]:
    """Yield which benchmarks have another unit than their mean."""
    own = [row.name for row in rows if row.effect is not None and row.unit != overall.unit]
    if own and len(rows) > 1:
        yield f"Not in the mean, as they have units of their own: {listed(own)}."


def _mean(found: list[Benchmark], rows: list[Row], runs: Matched) -> Row:
    """Return the mean over the benchmarks in points.

    Raises:
        AnalysisError: none is.
    """
    used = [row for row in rows if row.unit == "points" and row.effect is not None]
    if not used and any(row.effect is not None for row in rows):
        raise AnalysisError(
            f"compare: {listed(r.name for r in rows)} have units of their own, which no mean is "
            f"taken over; name one with --benchmarks"
        )
    if not used:
        raise AnalysisError(_without_errors(rows, runs))
    names = {row.name for row in used if row.items}
    own = [one for one in found if one.name in names]
    if len(own) < len(used):
        return mean_of_rows(used, runs)
    return mean_row(own, used, runs)


def _without_errors(rows: list[Row], runs: Matched) -> str:
    """Return what is missing where nothing tells the error of a difference, and what would do."""
    names = [row.name for row in rows]
    number = "one run a side"
    if runs.conditions > 1 and not runs.replicated:
        conditions = listed(runs.first[0].levels, limit=3)
        number = f"one run a side under each of the {runs.conditions} conditions ({conditions})"
    if runs.replicated:
        number = "runs that agree to the digit"
    logs = [*runs.first, *runs.second]
    own = [
        log.items[log.items["task"].isin(names) | log.items["group"].isin(names)] for log in logs
    ]
    missing = "fewer than two items that both sides have"
    if not any(len(items) for items in own):
        missing = "no items, and not the standard error of every score"
    elif not all(len(items) for items in own):
        missing = "items on one side alone"
    return (
        f"compare: nothing tells the error of {listed(names)}: the logs have "
        f"{missing}, of {number}; what would do: the items of both sides (lm-eval: --log_samples; "
        f"Every Eval Ever: *_samples.jsonl beside each file), a standard error with every score, "
        f"or several seeds a side"
    )


def _nothing(runs: Matched) -> str:
    sides = []
    for side in (runs.first, runs.second):
        names = dict.fromkeys(name for log in side for name in with_metrics(log))
        sides.append(listed(names, limit=5) or "none")
    return (
        f"compare: A and B share no benchmark with a metric in common; A has {sides[0]}, "
        f"B has {sides[1]}"
    )
