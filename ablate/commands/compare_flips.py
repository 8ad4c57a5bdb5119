"""`--flips FILE` of `ablate compare`: the items that changed, as a CSV file."""

from pathlib import Path
from typing import TYPE_CHECKING

from ablate.errors import UserError
from ablate.paths import check_name

if TYPE_CHECKING:
    from analysis.compare.estimate import Compared

SETTING = "--flips"


def check(path: Path) -> None:
    """Refuse a file that cannot be written for want of its folder, or as it is one.

    Raises:
        UserError: it cannot.
    """
    check_name(SETTING, path)
    if path.is_dir():
        raise UserError(f"{SETTING}={path}: is a folder, not a file")
    if not path.parent.is_dir():
        raise UserError(f"{SETTING}={path}: there is no folder {path.parent}")


def write(path: Path, found: "Compared") -> None:
    """Write the items on which the sides differ, with the scores of both."""
    import numpy as np
    import pandas as pd

    from ablate.results.spreadsheet import write_csv

    tables = []
    for one in found.benchmarks:
        known = one.known_I
        a_I, b_I = (x[:, known].mean(axis=0) for x in (one.a_SI, one.b_SI))
        table = pd.DataFrame(
            {
                "benchmark": one.name,
                "item": one.names_I[known],
                "a": a_I,
                "b": b_I,
                "change": b_I - a_I,
            }
        )
        tables.append(table[np.abs(table["change"]) > 0])
    every = pd.concat(tables) if tables else pd.DataFrame(columns=["benchmark", "item", "a", "b"])
    write_csv(every, path)
