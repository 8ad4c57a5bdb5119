"""Instruction modelling against instruction tuning (Shi et al., arXiv 2405.14394), paired again.

The pairs and their gains are those of `analysis.papers.instruction_modelling`; here stands what
tries them: each data set left out, and AlpacaEval's own noise, which is that of its 805
instructions.
"""

import numpy as np
import pandas as pd
from scipy import stats

from analysis.inference.multiplicity import adjusted
from analysis.papers.instruction_modelling.published import (
    CATEGORIES, HEADLINES, differences, figure2, gain, gains, over_ratio, table1,
)

SUSPECT = "Less BBH ICL"  # its IT row equals the base model's in five of six categories
ALPACAEVAL_ITEMS = 805


def leave_one_out(pairs: pd.DataFrame, measure: str) -> pd.DataFrame:
    """Return the gain without each data set: left_out, estimate, low, high, p."""
    rows = [
        gain(pairs[pairs["dataset"] != name], measure).row() | {"left_out": name}
        for name in pairs["dataset"].unique()
    ]
    return pd.DataFrame(rows)[["left_out", "estimate", "low", "high", "p"]]


def slopes_without(frame: pd.DataFrame, score: str) -> pd.DataFrame:
    """Return the slope over log_ratio without each row: left_out, estimate, low, high."""
    rows = [over_ratio(frame.drop(index=i), score).row() | {"left_out": i} for i in frame.index]
    return pd.DataFrame(rows)[["left_out", "estimate", "low", "high", "p"]]


def alpacaeval_items(pairs: pd.DataFrame) -> pd.DataFrame:
    """Return every data set's gain in AlpacaEval 1 with its items' noise: gain, se, z, p_holm.

    As if the 805 instructions were drawn anew for both runs; paired they vary less.
    """
    own = pairs[pairs["measure"] == "alpacaeval1"]
    share = own.pivot(index="dataset", columns="method", values="value") / 100
    se = 100 * np.sqrt((share * (1 - share) / ALPACAEVAL_ITEMS).sum(axis=1))
    found = pd.DataFrame({"gain": 100 * (share["IM"] - share["IT"]), "se": se})
    z = found["gain"] / found["se"]
    return found.assign(z=z, p_holm=adjusted(2 * stats.norm.sf(np.abs(z)), "holm"))
