"""What judges said of generated answers, as `ablate judge` wrote it beside the results."""

from pathlib import Path

import pandas as pd

from analysis.report.page import Section, Sheet
from analysis.report.tables import Table
from analysis.table.columns import read_text

KEY = "judged"
FOLDER = "judgments"
KINDS = {
    "win_rates": "Win rates: both orders asked, a tie where they disagree, which counts a half. "
    "lc: at equal length of the answers (Dubois et al. 2024). 95 % intervals for other prompts and "
    "these runs; low and high of seeds: for other runs too.",
    "grades": "Mean grades from 1 to 10, and the difference from the baseline's by prompt. 95 % "
    "intervals for other prompts and these runs.",
}


def section(folder: Path | None) -> Section | None:
    """Return the section on judged answers; None where nothing was judged."""
    blocks = []
    for kind, note in KINDS.items():
        files = sorted((folder / FOLDER).glob(f"*/{kind}.csv")) if folder else []
        tables = [read_text(file, ",") for file in files]
        if tables:
            table = pd.concat(tables, ignore_index=True)
            title = "Judged answers" if kind == "win_rates" else "Graded answers"
            blocks.append(Sheet(Table(f"judged_{kind}", title, table, note)))
    return Section(KEY, "Judged answers", tuple(blocks)) if blocks else None
