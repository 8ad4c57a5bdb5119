"""Coverage of the winner's 95 % interval where the variance is estimated, over simulated means.

    python benchmarks/winner_coverage.py [--draws 2000]

Writes benchmarks/winner_coverage.csv, which docs/statistics.md quotes. Cells run under the same
seeds, score ~ cell + seed by least squares, in closed form: means over seeds, and the variance of
what cell and seed leave, (cells - 1)(seeds - 1) degrees of freedom. Where no seeds are given, means
and a variance with the degrees of freedom named are drawn instead. A mean has standard deviation 1;
the true means are

    equal     all zero
    spread    evenly from 0 to 2
    clear     zero but for one of 6

Columns: `known` and `new` are the share of hybrid intervals that hold the winner's true mean, with
the variance taken as known and with its degrees of freedom, `error` the Monte-Carlo error of `new`;
`above_known` and `above` the share of estimates above that mean, wanted 0.5; `length_known` and
`length` the intervals' median lengths.

Letters in names: K cells, S seeds.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.engine.linalg import Array
from analysis.inference.winners import winner

HERE = Path(__file__).parent
CELLS, SEEDS = (2, 5, 12, 30), (2, 3, 5)
DF = (3.0, 5.0, 10.0)
TRUTHS = ("equal", "spread", "clear")
ROOT = 20250310


def truth(name: str, cells: int) -> Array:
    """Return the true means, (K,)."""
    clear_K = np.where(np.arange(cells) == cells - 1, 6.0, 0.0)
    return {"equal": np.zeros(cells), "spread": np.linspace(0, 2, cells), "clear": clear_K}[name]


def drawn(mu_K: Array, seeds: int, df: float, rng: np.random.Generator) -> tuple[Array, float]:
    """Return estimated means, (K,), and the estimated standard deviation of one."""
    if not seeds:
        return mu_K + rng.standard_normal(len(mu_K)), float(np.sqrt(rng.chisquare(df) / df))
    y_KS = mu_K[:, None] + np.sqrt(seeds) * rng.standard_normal((len(mu_K), seeds))
    rest_KS = y_KS - y_KS.mean(axis=1, keepdims=True)
    rest_KS -= rest_KS.mean(axis=0)
    return y_KS.mean(axis=1), float(np.sqrt((rest_KS**2).sum() / df / seeds))


def row(cells: int, seeds: int, df: float, name: str, draws: int) -> dict[str, object]:
    """Return one line of the table."""
    where = [CELLS.index(cells), seeds, int(df), TRUTHS.index(name)]
    rng, mu_K, found = np.random.default_rng([ROOT, *where]), truth(name, cells), []
    for _ in range(draws):
        mean_K, sd = drawn(mu_K, seeds, df, rng)
        for used in (float("inf"), df):
            # In units of sd, so that the critical value of a covariance is computed once.
            won = winner(mean_K / sd, np.eye(cells), df=used)
            true, own = mu_K[won.index] / sd, won.hybrid
            length = sd * (own.high - own.low)
            found.append((own.low <= true <= own.high, own.estimate > true, length))
    held, above, length = np.array(found, dtype=np.float64).reshape(draws, 2, 3).T
    known, new = held.mean(axis=1)
    return {
        "cells": cells, "seeds": seeds or None, "truth": name, "df": df, "draws": draws,
        "known": known.round(4), "new": new.round(4),
        "error": np.sqrt(new * (1 - new) / draws).round(4),
        "above_known": above[0].mean().round(4), "above": above[1].mean().round(4),
        "length_known": np.median(length[0]).round(3), "length": np.median(length[1]).round(3),
    }  # fmt: skip


def main() -> None:
    """Simulate every design and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=HERE / "winner_coverage.csv")
    asked = parser.parse_args()
    designs = [(k, s, float((k - 1) * (s - 1))) for k in CELLS for s in SEEDS]
    designs += [(k, 0, df) for k in CELLS for df in DF]
    table = pd.DataFrame([row(*d, name, asked.draws) for d in designs for name in TRUTHS])
    table["seeds"] = table["seeds"].astype("Int64")
    table.to_csv(asked.out, index=False)
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
