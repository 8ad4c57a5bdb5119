"""A fraction of a grid for a budget of runs: D-optimal for the default model.

Every run of the grid is a row of the default model's fixed-effects matrix X, one score a run, with
coefficients of their own for every data set and base model, as their panels have them. A part S of
it is judged by D-efficiency against the whole,

    (|X_S' X_S / n_S| / |X' X / n|)^(1 / p),

and sought by Fedorov's exchange (1972, Theory of Optimal Experiments): the pair of a run inside and
a run outside whose exchange raises the determinant most is exchanged, until none does. It starts
from the runs that a pivoted factor takes first, and of equal exchanges the first is made, so that
equal grids give equal parts. What a quadratic does not need is not chosen: levels of the weight
between its ends and its middle may go.

Letters in names: N runs of the grid, S runs of the part, B columns.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.linalg import qr

from analysis.engine.canonical import pivoted
from analysis.engine.formula import DesignMatrices, design, parse
from analysis.engine.linalg import Array, Index, independent_columns
from analysis.engine.ties import first_largest
from analysis.errors import AnalysisError
from analysis.regression.default_model import default_formula
from analysis.table.factors import factors_of, stratum_names
from analysis.table.frame import from_results, study_rows
from analysis.table.run_panels import task_panels

ROUNDS = 500
GAIN = 1e-9  # of a determinant's ratio that is none
RIDGE = 1e-9  # of X'X, so that a start of low rank has a determinant


@dataclass(frozen=True, slots=True)
class Fraction:
    """Some runs of a grid."""

    runs: tuple[str, ...]  # train keys, in the grid's order
    whole: int  # runs of the grid
    coefficients: int
    efficiency: float  # a run's worth, in runs of the whole grid
    spread: float  # the largest ratio of a standard error to that of the whole grid
    aliased: tuple[str, ...]  # columns that the whole grid itself cannot tell apart
    formula: str
    balance: pd.DataFrame  # factor, level, whole, part


def fraction(planned: pd.DataFrame, runs: int) -> Fraction:
    """Return the best part of `runs` runs of a grid.

    Args:
        planned: the grid as a results table without scores, one row per run and task.
        runs: how many to keep; controls and untouched bases are not among them.

    Raises:
        AnalysisError: fewer runs than coefficients, or more than there are.
    """
    one = planned.drop_duplicates("train_key")
    one = one.assign(task="all", task_type="mc", side="both", metric="acc")
    frame = from_results(one.assign(value=0.5 + 0.01 * (np.arange(len(one)) % 7)))
    rows = study_rows(frame)
    formula = default_formula(frame)[0]
    found = _by_stratum(formula, rows)
    kept = independent_columns(found.X_NB)
    q_NB = qr(found.X_NB[:, kept], mode="economic")[0] * np.sqrt(len(rows))
    n, p = q_NB.shape
    if not p <= runs <= n:
        raise AnalysisError(
            f"fraction={runs}: the model has {p} coefficients and the grid {n} runs; choose from "
            f"{p} to {n}"
        )
    inside = _exchanged(q_NB, _start(q_NB, runs))
    part_SB = q_NB[inside]
    gram_BB = part_SB.T @ part_SB / runs
    # In these columns the whole grid's own X'X / n is the identity.
    variances = np.linalg.inv(gram_BB * runs)
    r_BB = np.linalg.qr(found.X_NB[:, kept], mode="r") / np.sqrt(n)
    back = np.linalg.inv(r_BB)
    ratio = np.diagonal(back @ variances @ back.T) / np.diagonal(back @ back.T / n)
    gone = np.setdiff1d(np.arange(len(found.names)), kept)
    return Fraction(
        runs=tuple(rows["run"].iloc[sorted(inside)].astype(str)),
        whole=n,
        coefficients=p,
        efficiency=float(np.exp(np.linalg.slogdet(gram_BB)[1] / p)),
        spread=float(np.sqrt(ratio.max())),
        aliased=tuple(found.names[i] for i in gone if found.X_NB[:, i].any()),
        formula=formula,
        balance=_balance(rows, rows.iloc[sorted(inside)]),
    )


def _by_stratum(formula: str, rows: pd.DataFrame) -> DesignMatrices:
    """Return the fixed part of the default model, every term by data set and base model."""
    table = pd.concat([panel.runs for panel in task_panels(rows)], ignore_index=True)
    table = table.assign(stratum=stratum_names(table)).set_index("run").loc[rows["run"]]
    fixed = parse(formula, map(str, table.columns)).fixed.replace(" ** ", "^")
    several = table["stratum"].nunique() > 1
    terms = f"0 + stratum + stratum:({fixed})" if several else fixed
    table = table.reset_index()
    return design(parse(f"score ~ {terms}", map(str, table.columns)), table)


def _start(q_NB: Array, runs: int) -> Index:
    """Return runs to begin with: those that span the columns, then evenly over the grid."""
    first = pivoted((q_NB**2).sum(axis=1), lambda i: q_NB @ q_NB[i])[1][: q_NB.shape[1]]
    others = np.setdiff1d(np.arange(len(q_NB)), first)
    more = others[np.linspace(0, len(others) - 1, runs - len(first)).round().astype(np.intp)]
    return np.concatenate([first, np.unique(more)]).astype(np.intp)[:runs]


def _exchanged(q_NB: Array, start: Index) -> Index:
    """Return the runs after all exchanges that raise |X_S' X_S|."""
    inside = list(start)
    for _ in range(ROUNDS):
        part_SB = q_NB[inside]
        gram_BB = part_SB.T @ part_SB + RIDGE * len(inside) * np.eye(q_NB.shape[1])
        inverse_BB = np.linalg.inv(gram_BB)
        outside = np.setdiff1d(np.arange(len(q_NB)), inside)
        if not len(outside):
            break
        turned_NB = q_NB @ inverse_BB
        d_N = np.einsum("nb,nb->n", turned_NB, q_NB)
        across_SO = turned_NB[inside] @ q_NB[outside].T
        # |X'X| after the exchange over |X'X| before: Fedorov's delta.
        ratio_SO = (1 + d_N[outside]) * (1 - d_N[inside])[:, None] + across_SO**2
        i, j = np.unravel_index(first_largest(ratio_SO.ravel()), ratio_SO.shape)
        if ratio_SO[i, j] <= 1 + GAIN:
            break
        inside[i] = outside[j]
    return np.array(inside, dtype=np.intp)


def _balance(rows: pd.DataFrame, part: pd.DataFrame) -> pd.DataFrame:
    """Return how many runs every level of every factor has, in the grid and in the part."""
    lines = []
    for name in factors_of(rows).columns():
        for level in sorted(rows[name].unique(), key=str):
            whole, own = int((rows[name] == level).sum()), int((part[name] == level).sum())
            lines.append({"factor": name, "level": str(level), "whole": whole, "part": own})
    return pd.DataFrame(lines, columns=["factor", "level", "whole", "part"])
