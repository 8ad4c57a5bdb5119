"""Text that anybody named stands in CSV files so that no spreadsheet runs it, and comes back."""

import csv
import io

import numpy as np
import pandas as pd
import pytest

from ablate.experiment import tuned_table
from ablate.results.spreadsheet import guarded, unguarded, write_csv
from analysis.table.columns import read_text

NASTY = [
    "=1+1", "=HYPERLINK(\"http://x\")", "+pissa", "-x", "@SUM(A1)", "\t=1", "\r=1", "＝1", "'=x",
    "''=x", "'", "'plain", "-1", "+1.5e-3", "-0.5", "lora r8", "", "-", "=", "\n=1",
    "--1", "-1+2", "a,=b",
]  # fmt: skip


def is_run(cell: str) -> bool:
    """Whether a spreadsheet takes a cell for a formula: by its first character, unless a number."""
    if cell[:1] not in tuple("=+-@\t\r\n＝＋－＠"):
        return False
    try:
        float(cell)
    except ValueError:
        return cell != ""
    return "_" in cell or cell != cell.strip() or not cell[-1].isdigit()


def names(count: int, seed: int) -> list[str]:
    draws = np.random.default_rng(seed)
    pool = [*"=+-@'\t\r\n＝ab1.e, \""]
    return ["".join(draws.choice(pool, draws.integers(0, 7))) for _ in range(count)]


def test_no_text_is_run_and_all_of_it_comes_back() -> None:
    for text in [*NASTY, *names(20_000, 3)]:
        written = guarded(text)
        assert not is_run(str(written)), text
        assert unguarded(written) == text
    assert guarded(-0.5) == -0.5
    assert guarded("-0.5") == "-0.5"
    assert is_run("=1")  # the rule itself
    assert not is_run("-1.5e3")


@pytest.mark.parametrize("seed", range(3))
def test_a_table_is_read_as_it_was_written(seed: int, tmp_path) -> None:
    levels = [name for name in [*NASTY, *names(300, seed)] if name.strip() and "\r" not in name]
    table = pd.DataFrame({"=level": levels, "score": np.linspace(-1, 1, len(levels))})
    write_csv(table, tmp_path / "t.csv")
    with (tmp_path / "t.csv").open(newline="", encoding="utf-8") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert not [cell for cell in cells if is_run(cell)]
    found = read_text(tmp_path / "t.csv", ",")
    assert list(found.columns) == ["=level", "score"]
    assert found["=level"].tolist() == levels
    np.testing.assert_array_equal(found["score"], table["score"])


def test_learning_rates_of_levels_with_such_names_are_found_again(tmp_path) -> None:
    row = tuned_table.Tuned(model="=m", dataset="+d", adapter="@a", rank=8, lr=1e-3)
    tuned_table.put([row], tmp_path / "tuned.csv")
    text = (tmp_path / "tuned.csv").read_text()
    assert not [c for line in csv.reader(io.StringIO(text)) for c in line if is_run(c)]
    tuned_table.put([], tmp_path / "tuned.csv")  # read, and written again
    assert (tmp_path / "tuned.csv").read_text() == text
    assert tuned_table._rows(tmp_path / "tuned.csv") == [row]
