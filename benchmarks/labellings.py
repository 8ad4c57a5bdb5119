"""Type I error of the default model on real results: labels drawn at random by cell.

    python benchmarks/labellings.py RESULTS [--labellings 2000] [--out FILE]

Writes the rate at which a label that is drawn anew by cell, and so says nothing, is called an
effect at the 5 % level, over all panels and in each (docs/statistics.md quotes
benchmarks/labellings.csv, of the quick study's results). The report of every study does the same
with fewer labellings.
"""

import argparse
from pathlib import Path

import pandas as pd

from analysis.inference.shares import clopper_pearson, clustered_share
from analysis.questions.controls.false_positives import ALPHA, relabelled
from analysis.regression.study import fitted
from analysis.table.frame import from_results, read
from analysis.table.run_panels import PANEL, grouped

HERE = Path(__file__).parent


def main() -> None:
    """Draw the labels and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--labellings", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=HERE / "labellings.csv")
    given = parser.parse_args()
    raw = read(given.results)
    drawn = relabelled(fitted(raw, from_results(raw)), labellings=given.labellings)
    hit = drawn["p"] < ALPHA
    lines = [({"dataset": "all", "model": "all", "task_group": "all"}, hit,
              clustered_share(hit, drawn["labelling"]))]  # fmt: skip
    for labels, own in grouped(drawn, PANEL):
        hits = own["p"] < ALPHA
        lines.append((labels, hits, clopper_pearson(float(hits.sum()), len(hits))))
    table = pd.DataFrame(
        [labels | {"tests": len(hits), "rate": hits.mean(), "low": low, "high": high}
         for labels, hits, (low, high) in lines]
    )  # fmt: skip
    table.to_csv(given.out, index=False, float_format="%.4f")
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
