"""What was published on pairs of weights: 525 averages of five benchmarks, a run each.

"Weighted Instruction Tuning" (Chatterjee et al., arXiv 2507.07817): five base models x three data
sets x 35 pairs, one seed. The same estimator reads a panel of it as one of ours. What 15 panels say
together is the mean over panels, with an interval from how they scatter.
"""

import numpy as np
import pandas as pd

from analysis.inference.estimates import Estimate
from analysis.questions.weight_pairs.estimate import SURFACES, Pairs, pairs
from analysis.table import published

TABLE = "wit_heatmap"


def panels() -> list[Pairs]:
    """Return the published pairs of every base model and data set."""
    table = published.read(TABLE).rename(
        columns={"lambda_p": "prompt", "lambda_r": "answer", "mean_5_benchmarks": "score"}
    )
    table = table[(table["prompt"] > 0) | (table["answer"] > 0)].assign(block="1")
    found = []
    for (data, model), own in table.groupby(["train_dataset", "base_model"]):
        one = pairs(own, {"dataset": str(data), "model": str(model)})
        assert one is not None
        found.append(one)
    return found


def over_panels(values: "pd.Series[float]", name: str) -> Estimate:
    """Return the mean of one value per panel, with an interval for other panels like these."""
    count = len(values)
    return Estimate(
        name, float(values.mean()), float(values.std(ddof=1) / np.sqrt(count)), count - 1
    )


def change(found: list[Pairs]) -> Estimate:
    """Return the mean change from the smallest scale to the largest, five times it, in points."""
    return over_panels(pd.Series([one.change.estimate for one in found]), "change")


def gains(found: list[Pairs]) -> pd.DataFrame:
    """Return the gain over the answer alone of the pair that is best in a panel, and honestly.

    Columns: dataset, model, best (the gain of the panel's own best pair, which picking flatters),
    chosen (that of the pair that is best on average over all other panels), in percent of the score
    of the answer alone.
    """
    scores = pd.DataFrame(
        [one.cells.set_index(_names(one.cells))["score"] for one in found]
    ).reset_index(drop=True)
    relative = 100 * (scores.div(scores["0 1"], axis=0) - 1)
    rows = []
    for number, one in enumerate(found):
        others = relative.drop(index=number).mean()
        own = pd.Series(relative.to_numpy()[number], relative.columns)
        rows.append({**one.labels, "best": own.max(), "chosen": own[str(others.idxmax())]})
    return pd.DataFrame(rows)


def _names(cells: pd.DataFrame) -> "pd.Index[str]":
    return pd.Index([f"{p:g} {a:g}" for p, a in cells[["prompt", "answer"]].to_numpy()])


def noise(found: list[Pairs]) -> float:
    """Return the pooled standard deviation of pairs of one ratio, points."""
    return float(np.sqrt(np.mean([one.noise**2 for one in found])))


def errors(found: list[Pairs]) -> pd.DataFrame:
    """Return the error of every surface for a pair left out, root mean square over panels."""
    every = pd.concat([one.errors for one in found])
    squares = every.assign(rmse=every["rmse"] ** 2).groupby("surface")["rmse"].mean()
    rmse = np.sqrt(squares.loc[list(SURFACES)].to_numpy())
    return pd.DataFrame({"surface": SURFACES, "rmse": rmse})
