"""Writes quick_results.csv from a folder of results: python notebooks/data/refresh.py results/demo

The notebook 01_a_study_in_five_minutes reads results/demo where it is there, and this copy of the
quick study's table where it is not.
"""

import argparse
from pathlib import Path

import pandas as pd

# What no notebook looks at: keys of scores, and costs beyond the time.
LEFT_OUT = (
    "score_key", "total_parameters", "train_rows", "tokens_seen", "tokens_per_second", "peak_mb",
    "supervised_share", "train", "skill",
)  # fmt: skip


def main() -> None:
    """Write the table, floats to six digits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, help="a folder with results.parquet")
    table = pd.read_parquet(parser.parse_args().results / "results.parquet")
    kept = table.drop(columns=[name for name in LEFT_OUT if name in table])
    path = Path(__file__).with_name("quick_results.csv")
    kept.to_csv(path, index=False, float_format="%.6g")
    print(f"{len(kept)} rows, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
