"""Of how high a rank a change of the weights is, for every arm at its own rate: figure 6."""

import numpy as np
import pandas as pd

from analysis.papers.lora_tradeoffs.runs import Tradeoff

TASK, METRIC = "weight_spectrum", "rank90_"
MATRIX, LAYER = "_proj", "layer_"
# An i.i.d. Gaussian matrix has these shares: a square one, and one four times as wide as high.
NOISE = (0.51, 0.76)


def spectrum(found: Tradeoff, frame: pd.DataFrame) -> pd.DataFrame:
    """Return setting, arm, budget, seed, kind and share of the plain arms, each at its own rate.

    share: of the components of a matrix's change that hold 90 % of its energy (the sum of squared
    singular values), mean over the matrices of one kind. kind: of the matrix (q_proj), or its layer
    (layer_0).
    """
    rows = frame[frame["task"].astype(str).eq(TASK)]
    rows = rows[rows["metric"].astype(str).str.startswith(METRIC)]
    table = pd.DataFrame({
        "run": rows["run"].astype(str),
        "kind": rows["metric"].astype(str).str.removeprefix(METRIC),
        "share": rows["value"].astype(float),
    })  # fmt: skip
    plain = found.runs[found.runs["variant"] == ""]
    own = {(p.setting, p.arm, p.budget): p.tried for p in found.points}
    keys = zip(plain["setting"], plain["arm"], plain["budget"], strict=True)
    chosen = plain[np.isclose(plain["rate"], [own.get(k, np.nan) for k in keys])]
    joined = table.merge(chosen, on="run")
    return joined[["setting", "arm", "budget", "seed", "kind", "share"]]
