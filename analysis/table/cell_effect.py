"""The random effect of the cell: whether runs can tell it from their noise and from fixed terms.

A cell is what runs that differ in the seed alone have in common. Cells scatter by more than seeds
do, so that what is compared between cells has to be held against both. The effect can be estimated
where some cell has replicates and the fixed terms leave something of the cells unexplained. Where
they tell every cell apart, the noise is that of other seeds of these very cells.
"""

from dataclasses import replace

import numpy as np
import pandas as pd

from analysis.engine.formula import Parsed, design, parse
from analysis.engine.linalg import independent_columns
from analysis.inference.simplify import written
from analysis.table.adjusted_means import dummies

CELL = ("cell",)


def cell_formula(formula: str, runs: pd.DataFrame) -> tuple[str, bool]:
    """Return the formula without (1 | cell) where there is none to estimate, and whether cells are
    replicated.

    Args:
        formula: of the mean of runs, with the random effect of the cell.
        runs: one row per run, with a column `cell`.
    """
    parsed = parse(formula, map(str, runs.columns))
    bare = replace(parsed, bars=tuple(b for b in parsed.bars if b.group != CELL))
    explained, cells, rows = _ranks(parsed, runs)
    replicated = cells < rows
    if len(bare.bars) < len(parsed.bars) and replicated and cells > explained:
        return formula, replicated
    return written(bare), replicated


def cells_left(formula: str, runs: pd.DataFrame) -> int:
    """Return the degrees of freedom between cells that a formula's fixed part leaves over.

    Args:
        formula: of the mean of runs.
        runs: with a column `cell`.
    """
    explained, cells, _ = _ranks(parse(formula, map(str, runs.columns)), runs)
    return cells - explained


def _ranks(parsed: Parsed, runs: pd.DataFrame) -> tuple[int, int, int]:
    """Return the rank of the fixed part, that of it with a column for every cell, and the rows."""
    used = runs.dropna(subset=[n for n in parsed.columns if n in runs])
    x_NB = design(replace(parsed, bars=()), used).X_NB
    both_NB = np.hstack([x_NB, dummies(used["cell"])])
    explained, cells = (len(independent_columns(columns)) for columns in (x_NB, both_NB))
    return explained, cells, len(used)
