"""Writes a study's table for the notebooks: python notebooks/data/refresh.py FOLDER [NAME]

The notebook 01_a_study_in_five_minutes reads results/demo where it is there, and quick_results.csv,
a copy of the quick study's table, where it is not. NAME writes NAME.parquet: the table of a study's
micro scale, which the notebook on that study reads, and `ablate report` too.
"""

import argparse
from pathlib import Path

import pandas as pd

COSTS = ("total_parameters", "tokens_per_second", "peak_mb", "train_seconds", "eval_seconds")
# Of the quick study's copy, what no notebook looks at.
LEFT_OUT = (
    "score_key", "total_parameters", "train_rows", "tokens_seen", "tokens_per_second", "peak_mb",
    "supervised_share", "train", "skill",
)  # fmt: skip


def main() -> None:
    """Write the table: of the quick study as text, floats to six digits; of another, whole."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, help="a folder with results.parquet")
    parser.add_argument("name", nargs="?", help="of the table; without it the quick study's copy")
    given = parser.parse_args()
    table = pd.read_parquet(given.results / "results.parquet")
    beside = Path(__file__)
    if given.name is None:
        path = beside.with_name("quick_results.csv")
        kept = table.drop(columns=[name for name in LEFT_OUT if name in table])
        kept.to_csv(path, index=False, float_format="%.6g")
    else:
        path = beside.with_name(f"{given.name}.parquet")
        kept = table.drop(columns=[*COSTS, "score_key"])
        kept.to_parquet(path, compression="zstd", compression_level=19, index=False)
    print(f"{len(kept):,} rows, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
