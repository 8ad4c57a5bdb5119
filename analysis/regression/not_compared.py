"""What a proposed model takes at random and so does not compare, and the formula that would.

A column of many names stands for a population: its levels differ at random and have no effects to
tell. That is right for runs and items. Of methods it may not be what was asked, so the first screen
and the command say it, and how to ask.
"""

from dataclasses import replace

import pandas as pd

from analysis.engine.formula import parse
from analysis.inference.simplify import written
from analysis.regression.column_roles import GROUPS
from analysis.regression.contrasts import MOST_LEVELS
from analysis.regression.model import Regression
from analysis.regression.propose import quoted
from analysis.report import words
from analysis.report.tables import Table

NAME = "not_compared"  # of the table, beside the page


def not_compared(reg: Regression) -> list[str]:
    """Return the columns at random that no name says to be runs, tasks, items or other groups."""
    return [
        choice.column
        for choice in reg.proposal.choices
        if choice.used.startswith("random") and choice.column in reg.frame
        and choice.column.lower() not in GROUPS
    ]  # fmt: skip


def rows(reg: Regression) -> pd.DataFrame:
    """Return column, levels and words, a row for every column of `not_compared`."""
    return pd.DataFrame(
        [
            {"column": name, "levels": reg.used[name].nunique(), "words": _said(reg, name)}
            for name in not_compared(reg)
        ]
    )


def _said(reg: Regression, name: str) -> str:
    parsed = parse(reg.proposal.formula, map(str, reg.frame.columns))
    bars = tuple(bar for bar in parsed.bars if tuple(bar.group) != (name,))
    own = f"C({quoted(name)})" if pd.api.types.is_numeric_dtype(reg.frame[name]) else quoted(name)
    fixed = own if parsed.fixed.strip() == "1" else f"{own} + {parsed.fixed}"
    formula = written(replace(parsed, fixed=fixed, bars=bars))
    levels = words.count(reg.used[name].nunique(), "level")
    return (
        f"The levels of {name} are not compared: its {levels} are taken as drawn at random from a "
        f"population. To compare them (in pairs up to {MOST_LEVELS} levels, else all at once): "
        f'--formula "{formula}"'
    )


def table(found: pd.DataFrame) -> Table:
    """Return `rows` as a table of the report."""
    return Table(NAME, "Columns whose levels are not compared", found, "", words.HEADS)
