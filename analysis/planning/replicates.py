"""The noise between near-replicates in a published table, for a study that has no pilot yet."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.table.published import read


@dataclass(frozen=True, slots=True)
class Spread:
    """How far near-replicates lie from the mean of their group."""

    sum_of_squares: float
    df: int

    @property
    def sd(self) -> float:
        """The pooled standard deviation."""
        return float(np.sqrt(self.sum_of_squares / self.df))


def spread(table: pd.DataFrame, by: Sequence[str], score: str = "score") -> Spread:
    """Return the pooled spread of rows that agree in the columns `by`."""
    groups = table.groupby(list(by))[score]
    squares = float(((table[score] - groups.transform("mean")) ** 2).sum())
    return Spread(squares, len(table) - groups.ngroups)


def wit_spread() -> Spread:
    """Return the spread of a mean of five benchmarks, from the table of arXiv 2507.07817.

    Cells of one base model and data set whose weights of prompt and response have one ratio differ
    in the scale of the loss alone, which AdamW hardly sees: they count as replicates.
    """
    table = read("wit_heatmap")
    table = table[(table["lambda_p"] > 0) | (table["lambda_r"] > 0)]
    ratio = (table["lambda_p"] / (table["lambda_p"] + table["lambda_r"])).map("{:.4f}".format)
    by = ["base_model", "train_dataset", "ratio"]
    return spread(table.assign(ratio=ratio), by, "mean_5_benchmarks")
