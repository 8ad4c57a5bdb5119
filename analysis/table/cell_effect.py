"""The random effect of the cell: whether runs can tell it from their noise and from fixed terms.

A cell is what runs that differ in the seed alone have in common. Cells scatter by more than seeds
do, so that what is compared between cells has to be held against both. The effect can be estimated
where some cell has replicates and the fixed terms leave something of the cells unexplained. Where
they tell every cell apart, the noise is that of other seeds of these very cells.
"""

from dataclasses import replace

import numpy as np
import pandas as pd

from analysis.engine.formula import design, parse
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
    used = runs.dropna(subset=[n for n in parsed.columns if n in runs])
    x_NB = design(replace(bare, bars=()), used).X_NB
    both_NB = np.hstack([x_NB, dummies(used["cell"])])
    explained, cells = (len(independent_columns(columns)) for columns in (x_NB, both_NB))
    replicated = cells < len(used)
    if len(bare.bars) < len(parsed.bars) and replicated and cells > explained:
        return formula, replicated
    return written(bare), replicated
