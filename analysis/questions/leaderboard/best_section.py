"""The best settings on the first screen: the best cell of every stratum and kind of task."""

import pandas as pd

from analysis.errors import AnalysisError
from analysis.questions.leaderboard.estimate import Leaderboard, leaderboards
from analysis.regression.study import Study
from analysis.report import words
from analysis.report.tables import Table

KINDS = {"target": "target tasks", "source": "source tasks"}


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
        if (row := _row(board, KINDS.get(side or "", "all tasks"))) is not None
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


def _row(board: Leaderboard, kind: str) -> dict[str, object] | None:
    if board.winner is None:
        return None
    won = board.winner
    return {
        "stratum": board.stratum, "tasks": kind, "best cell": str(board.cells["cell"].iloc[0]),
        "mean": won.naive, "corrected": won.hybrid.estimate, "low": won.hybrid.low,
        "high": won.hybrid.high, "possible": f"{board.possible} of {len(board.cells)} cells",
    }  # fmt: skip
