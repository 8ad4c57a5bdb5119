"""The published pairs of weights: 525 averages of five benchmarks, one run each.

Five base models x three data sets (15 panels) x 35 pairs. The loss is divided by the number of
tokens of non-zero weight, nothing is clipped and AdamW hardly sees a loss's scale, so runs of one
panel whose weights have one ratio are near-replicates, and what they differ by is noise.
"""

import numpy as np
import pandas as pd
from scipy import stats

from analysis.engine.linalg import Array
from analysis.inference.estimates import Estimate
from analysis.planning.replicates import Spread, spread
from analysis.table.published import read


def cells() -> pd.DataFrame:
    """Return the 525 trained cells: model, dataset, panel, weights, share, size, ratio, score."""
    table = read("wit_heatmap").rename(
        columns={
            "train_dataset": "dataset",
            "base_model": "model",
            "mean_5_benchmarks": "score",
        }
    )
    table = table[(table["lambda_p"] > 0) | (table["lambda_r"] > 0)].reset_index(drop=True)
    share = table["lambda_p"] / (table["lambda_p"] + table["lambda_r"])
    return table.assign(
        panel=table["model"] + " " + table["dataset"],
        share=share,
        size=np.log2(table[["lambda_p", "lambda_r"]].max(axis=1)),
        ratio=share.map("{:.4f}".format),
        rows=np.select([share == 0, share == 1], ["lambda_p = 0", "lambda_r = 0"], "both above 0"),
    )


def on_responses(table: pd.DataFrame) -> pd.DataFrame:
    """Return the 450 cells that put weight on the response; prompts alone are another question."""
    return table[table["lambda_r"] > 0]


def noise(table: pd.DataFrame) -> Spread:
    """Return the pooled spread of cells of one panel with one ratio of the weights."""
    return spread(table, ["panel", "ratio"])


def size_effect(table: pd.DataFrame) -> Estimate:
    """Return what doubling both weights does, in points, at one ratio of them."""
    groups = table.groupby(["panel", "ratio"])
    inside = table.assign(
        size=table["size"] - groups["size"].transform("mean"),
        score=table["score"] - groups["score"].transform("mean"),
    )
    x, y = inside["size"].to_numpy(), inside["score"].to_numpy()
    slope, df = float(x @ y / (x @ x)), noise(table).df - 1
    rest = float(((y - slope * x) ** 2).sum()) / df
    return Estimate("doubling of both weights", slope, float(np.sqrt(rest / (x @ x))), df)


def chosen_elsewhere(table: pd.DataFrame) -> Estimate:
    """Return the gain, over lambda_p = 0, of the ratio that was best on the other 14 panels."""
    wide = table.groupby(["panel", "ratio"])["score"].mean().unstack()
    relative = wide.sub(wide["0.0000"], axis=0)
    picked = [relative.drop(index=p).mean().idxmax() for p in relative.index]
    gain = np.array([relative.at[p, r] for p, r in zip(relative.index, picked, strict=True)])
    return paired("ratio chosen on the other panels", gain)


def paired(name: str, gain: Array) -> Estimate:
    """Return the mean of one gain per panel, with an interval for other panels like these."""
    return Estimate(name, float(gain.mean()), float(stats.sem(gain)), len(gain) - 1)
