"""Training rows that no run saw whole: left out or cut, as the records beside a table state it."""

from pathlib import Path
from typing import Any

import pandas as pd

from analysis.report.tables import Table
from analysis.table.carried import BY_FILE, with_carried
from analysis.table.factors import level_columns
from analysis.table.records import read_record

MUCH = 0.05  # of the rows of a data set, from which on it stands in a page's first lines
GROUPS = ("dataset", "model", "train")  # what decides which rows are trained on
SHOWN = 5  # data sets that a warning names
HEADS = {"dataset": "data set", "lost": "left out", "lost_share": "left out, %",
         "cut_share": "cut, %", "why": "why left out"}  # fmt: skip


def lost_rows(raw: pd.DataFrame, folder: Path | None) -> pd.DataFrame:
    """Return a line for each data set under each model whose training rows are left out or cut.

    Args:
        raw: a results table as it stands.
        folder: where it lies, with the records; None: nothing is known.

    Returns:
        dataset, model, max_length, rows, lost, cut, lost_share and cut_share, and the reasons.
    """
    if folder is None or "adapter" not in raw:
        return pd.DataFrame()
    trained = with_carried(raw[raw["adapter"].astype(str) != "none"])
    names = [n for n in level_columns(raw) if n.partition(".")[0] in GROUPS]
    found = [
        _line(cell, record)
        for _, cell in trained.drop_duplicates(names).iterrows()
        if (record := read_record(folder, cell["train_key"]))
    ]
    return pd.DataFrame([line for line in found if line["lost"] or line["cut"]]).drop_duplicates()


def _line(cell: "pd.Series[Any]", record: dict[str, Any]) -> dict[str, Any]:
    data, config = record.get("data", {}), record.get("config", {})
    rows = data.get("rows_in", 0)
    dropped = data.get("dropped", {})
    lost, cut = sum(dropped.values()), data.get("truncated", 0)
    return {
        "dataset": _name(str(cell["dataset"]), config.get("dataset", {})),
        "model": _name(str(cell["model"]), config.get("model", {})),
        "max_length": config.get("train", {}).get("max_length"),
        "rows": rows,
        "lost": lost,
        "lost_share": 100 * lost / rows if rows else 0.0,
        "cut": cut,
        "cut_share": 100 * cut / rows if rows else 0.0,
        "why": "; ".join(f"{count:,} {why}" for why, count in dropped.items()),
    }


def _name(name: str, config: dict[str, Any]) -> str:
    """Return a level's name; of what is told by its path alone, the path's end."""
    return str(config.get("path", name)).rstrip("/").rpartition("/")[2] if name in BY_FILE else name


def table(raw: pd.DataFrame, folder: Path | None) -> Table:
    """Return the lines as a table of the section on what was run."""
    note = "Rows cut at max_length tokens are trained on without their end."
    formats = {"lost_share": ".1f", "cut_share": ".1f"}
    title = "Training rows left out or cut"
    return Table("lost_rows", title, lost_rows(raw, folder), note, HEADS, formats)


def warning(raw: pd.DataFrame, folder: Path | None) -> list[tuple[str, str]]:
    """Return what must be read first where more than `MUCH` of a data set is left out or cut."""
    found = lost_rows(raw, folder)
    if not len(found):
        return []
    many = found[found["lost_share"] + found["cut_share"] > 100 * MUCH]
    several = found["model"].nunique() > 1
    told = [_told(line, several) for _, line in many.iterrows()]
    if not told:
        return []
    more = f" And {len(told) - SHOWN} more." if len(told) > SHOWN else ""
    return [("Training rows lost.", " ".join(told[:SHOWN]) + more)]


def _told(line: "pd.Series[Any]", several: bool) -> str:
    under = f" under model {line['model']}" if several else ""
    parts = []
    if line["lost"]:
        parts.append(f"{line['lost']:,} left out ({line['why']})")
    if line["cut"]:
        parts.append(f"{line['cut']:,} cut at train.max_length={line['max_length']}")
    return f"Of {line['rows']:,} rows of {line['dataset']}{under}: {', '.join(parts)}."
