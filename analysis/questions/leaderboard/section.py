"""The leaderboard that says which of its differences are noise, and a study's best settings."""

import pandas as pd

from analysis.errors import AnalysisError
from analysis.questions.leaderboard.estimate import BOTH, ITEMS, Leaderboard, leaderboards
from analysis.regression.study import Study
from analysis.report import plots, words
from analysis.report.page import Block, Plate, Section, Sheet, Text
from analysis.report.tables import Table

KEY = "best"
KINDS = {"target": "target tasks", "source": "source tasks"}
SHOWN = 12  # cells of one stratum in the figure
BEYOND = 2  # cells shown beyond those that may be the best
POPULATION = {
    ITEMS: "these trained runs on other items like these",
    BOTH: "other runs on other items like these",
}
HEADS = {
    "mean": "mean", "se": "s.e.", "against_low": "less the best other, low",
    "against_high": "less the best other, high", "possible": "may be the best",
    "letters": "not distinguishable",
}  # fmt: skip


def section(study: Study) -> Section | None:
    """Return the section on the best cells; None where no stratum has two of them."""
    side = "target" if (study.rows["side"] == "target").any() else None
    boards = boards_of(study, side)
    if not boards:
        return None
    lines = [Text(_told(board, side)) for board in boards]
    known = [board for board in boards if board.winner is not None]
    blocks: list[Block] = [*lines]
    if known:
        blocks += [Plate("leaderboard", plots.forest(shown_rows(known)), _caption(known[0]))]
    blocks += [Sheet(_table(board, i)) for i, board in enumerate(boards)]
    return Section(KEY, "Best cells, and how sure that is", tuple(blocks))


def _caption(board: Leaderboard) -> str:
    population = POPULATION.get(board.noise, "other runs on these items")
    return (
        "Every cell's mean less the best of the others, with simultaneous 95 % intervals "
        f"(Hsu's multiple comparisons with the best), for {population}. Filled: may be the best. "
        "Hollow: worse than another cell at the 5 % level. Not all of the hollow ones are shown."
    )


def shown_rows(boards: list[Leaderboard]) -> pd.DataFrame:
    """Return group, label, estimate, low, high and verdict of the cells near the top."""
    parts = []
    for board in boards:
        cells = board.cells
        second = cells["mean"].iloc[1]
        top = cells.head(min(SHOWN, board.possible + BEYOND))
        best_other = pd.Series(cells["mean"].iloc[0], top.index)
        best_other.iloc[0] = second
        verdict = top["possible"].map({True: "distinguishable", False: "hollow"})
        part = {"group": board.stratum, "label": top["cell"], "estimate": top["mean"] - best_other}
        part |= {"low": top["against_low"], "high": top["against_high"], "verdict": verdict}
        parts.append(pd.DataFrame(part))
    return pd.concat(parts, ignore_index=True)


def _told(board: Leaderboard, side: str | None) -> str:
    tasks = f"{side} tasks" if side else "all tasks"
    first = board.cells.iloc[0]
    head = f"{board.stratum}: highest mean over {tasks} {first['mean']:.1f} ({first['cell']})."
    won = board.winner
    if won is None:
        return f"{head} {board.note}"
    count = len(board.cells)
    equal = "no other" if board.possible == 1 else f"{board.possible - 1} of {count - 1} other"
    cells = "cell" if board.possible == 2 and count == 2 else "cells"
    return (
        f"{head} At the 5 % level {equal} {cells} may be the best as well. A cell "
        f"that was picked for its score looks better than it is: corrected for that, its mean is "
        f"{words.plain(won.hybrid.estimate)} "
        f"({words.interval(won.hybrid.low, won.hybrid.high)})."
    )


def _table(board: Leaderboard, number: int) -> Table:
    frame = board.cells.drop(columns="cell")
    if {"rank", "adapter"} <= set(frame.columns):
        frame["rank"] = frame["rank"].mask(frame["adapter"].astype(str) == "full")
    population = POPULATION.get(board.noise, "other runs on these items")
    note = board.note or (
        f"Intervals and standard errors are for {population}, the seed effect being common to all "
        "cells. Cells with a letter in common are not distinguishable (all pairs at once)."
    )
    formats = dict.fromkeys(("mean", "se", "against_low", "against_high"), ".2f")
    title = f"Cells of {board.stratum}, best first"
    return Table(f"best_cells_{number + 1}", title, frame, note, HEADS, formats)


def boards_of(study: Study, side: str | None) -> list[Leaderboard]:
    """Return the leaderboards over the tasks of one side, computed once; none where there are no
    two cells to compare.
    """

    def make() -> list[Leaderboard]:
        try:
            return leaderboards(study.frame, side=side, items=study.items, df=study.df)
        except AnalysisError:
            return []

    return study.once(f"leaderboards {side}", make)


def best_settings(study: Study) -> Table | None:
    """Return the best cell per stratum and kind of task, its mean corrected for being picked."""
    there = [s for s in KINDS if (study.rows["side"].astype(str) == s).any()]
    sides: list[str | None] = [*there] if there else [None]
    rows = [
        row for side in sides for board in boards_of(study, side)
        if (row := _best(board, KINDS.get(side or "", "all tasks"))) is not None
    ]  # fmt: skip
    if not rows:
        return None
    note = (
        "Points. Corrected: median unbiased though the cell was picked for its score (Andrews, "
        "Kitagawa and McCloskey 2024), with its 95 % interval. May be the best: cells that Hsu's "
        "comparisons with the best do not rule out. See the leaderboard for all of them."
    )
    heads = words.HEADS | {"possible": "may be the best"}
    formats = dict.fromkeys(("mean", "corrected", "low", "high"), ".1f")
    return Table("best_settings", "The best cell", pd.DataFrame(rows), note, heads, formats)


def _best(board: Leaderboard, kind: str) -> dict[str, object] | None:
    if board.winner is None:
        return None
    won = board.winner
    return {
        "stratum": board.stratum, "tasks": kind, "best cell": str(board.cells["cell"].iloc[0]),
        "mean": won.naive, "corrected": won.hybrid.estimate, "low": won.hybrid.low,
        "high": won.hybrid.high, "possible": f"{board.possible} of {len(board.cells)} cells",
    }  # fmt: skip
