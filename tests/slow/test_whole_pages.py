"""Whole pages of studies in which nothing is there: how often one headline says otherwise."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import ablate
from ablate.paths import conf_dir

QUICK = conf_dir().parent / "notebooks" / "data" / "quick_results.csv"
STUDIES = 20
# Of 20 studies at 5 %, more than 4 have a false headline with a probability of 0.3 %; at the 40 %
# of one model for all panels, 4 or fewer have one with a probability of 5 %.
ALLOWED = 4
CELL, RUN, SEED = 2.0, 3.0, 0.5  # SDs, in points


def null(table: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Return the study with scores of its tasks, cells, seeds and runs alone."""
    cells = table.groupby(
        ["dataset", "masking", "plw", "adapter", "rank", "task", "sham", "dataset_type"],
        dropna=False,
    ).ngroup()
    runs = table.groupby(["train_key", "task"]).ngroup()
    seeds = table.groupby(["seed", "dataset", "task"], dropna=False).ngroup()
    tasks = table.groupby(["dataset", "task"]).ngroup()
    drawn = (
        50
        + 10 * rng.standard_normal(tasks.max() + 1)[tasks]
        + CELL * rng.standard_normal(cells.max() + 1)[cells]
        + SEED * rng.standard_normal(seeds.max() + 1)[seeds]
        + RUN * rng.standard_normal(runs.max() + 1)[runs]
    )
    benchmark = table["task_type"].isin(["mc", "short", "long"])
    return table.assign(value=np.where(benchmark, drawn / 100, table["value"]))


@pytest.mark.slow
def test_a_page_calls_something_distinguishable_in_few_null_studies(tmp_path: Path) -> None:
    table = pd.read_csv(QUICK)
    rng = np.random.default_rng(20261126)
    false = 0
    for number in range(STUDIES):
        place = tmp_path / f"study_{number}.csv"
        null(table, rng).to_csv(place, index=False)
        verdicts = ablate.load(place).effects()["verdict"]
        assert len(verdicts) > 20
        false += bool((verdicts == "distinguishable").any())
    assert false <= ALLOWED
