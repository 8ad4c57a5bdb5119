"""Which runs are judged beside which: the arms of a results table and their baseline; no torch.

An arm is a combination of levels, without the seed, named by those that tell it from the others as
a command line has them: "adapter=lora rank=8". A run of an arm is judged beside the run of the
baseline that has its data set, base model and seed and most of its other levels, or beside the
reference answer of every prompt.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ablate.errors import UserError, nearest
from ablate.results.record import LEVEL_PATHS, RESULT_COLUMNS

REFERENCE = "reference"
FIXED = ("dataset", "model")  # in which both sides are alike, unless they are named
BASE = "none"  # the adapter of an untouched base model
UNTOLD = ("seed",)
NOTHING = "–"  # of a level that a run does not have


@dataclass(frozen=True, slots=True)
class Pair:
    """Two runs that are judged beside each other; no baseline's key: the reference answers."""

    arm: str
    baseline: str
    seed: str
    key: str
    baseline_key: str | None


def pairs(folder: Path, chosen: Mapping[str, str], baseline: Mapping[str, str]) -> list[Pair]:
    """Return the pairs of runs to judge.

    Args:
        folder: of results.
        chosen: levels that an arm must have, several parted by commas: {"adapter": "lora,mora"}.
        baseline: the baseline's levels; empty for the reference answers.

    Raises:
        UserError: no such table, column, level, or no baseline for a run.
    """
    runs, columns = _runs(folder)
    arms = _with(runs, chosen, "")
    names = {i: _name(row, columns) for i, row in runs.iterrows()}
    if not baseline:
        found = [Pair(names[i], REFERENCE, r["seed"], r["train_key"], None)
                 for i, r in arms.iterrows()]  # fmt: skip
        return _distinct(found)
    others = _with(runs, baseline, "--baseline ")
    found = []
    for i, row in arms.iterrows():
        place = _counterpart(row, others, [c for c in columns if c not in baseline])
        if place is not None and others.loc[place, "train_key"] != row["train_key"]:
            key = str(others.loc[place, "train_key"])
            found.append(Pair(names[i], names[place], row["seed"], row["train_key"], key))
    if not found:
        raise UserError(
            f"--baseline {' '.join(f'{k}={v}' for k, v in baseline.items())}: no other run has the "
            "data set, the base model and the seed of a run with these levels"
        )
    return _distinct(found)


def levels_of(words: Sequence[str], what: str) -> dict[str, str]:
    """Return levels by factor of words such as adapter=lora,mora.

    Raises:
        UserError: a word is none, or names a factor twice.
    """
    found: dict[str, str] = {}
    for word in words:
        name, sign, level = word.partition("=")
        if not sign or not name or not level:
            raise UserError(f"{what}{word}: write FACTOR=LEVEL, such as adapter=lora")
        if name in found:
            raise UserError(f"{what}{name}: is given twice")
        found[name] = level
    return found


def _runs(folder: Path) -> tuple[pd.DataFrame, list[str]]:
    """Return the recorded runs under every name as text, and the columns that tell them apart."""
    file = folder / "results.parquet"
    if not file.is_file():
        raise UserError(f"{folder}: no folder of results: it has no results.parquet")
    try:
        table = pd.read_parquet(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read ({str(error).splitlines()[0]})") from None
    if not {"train_key", "status", "alias", "seed", *FIXED} <= set(table.columns):
        raise UserError(f"{file}: is no table of results")
    known = [c for c in LEVEL_PATHS if c in table.columns]  # older tables have fewer
    levels = [*known, *(c for c in table.columns if c not in RESULT_COLUMNS)]
    done = table[table["status"] == "done"].sort_values("alias", kind="stable")  # own names first
    rows = done[[*levels, "train_key"]].map(_text).drop_duplicates()
    rows = rows.reset_index(drop=True)
    columns = [c for c in levels if c not in UNTOLD and rows[c].nunique() > 1]
    for column in ("lr", "train", *reversed(columns)):  # what the others determine tells nothing
        others = [c for c in columns if c != column]
        if column in columns and others and _determined(rows, column, others):
            columns = others
    return rows, columns


def _determined(rows: pd.DataFrame, column: str, others: list[str]) -> bool:
    return bool((rows.groupby(others)[column].nunique() == 1).all())


def _text(value: Any) -> str:
    if value is None or value is pd.NA or (isinstance(value, float) and value != value):
        return NOTHING
    return f"{value:g}" if isinstance(value, float) else str(value)


def _name(row: "pd.Series[Any]", columns: Sequence[str]) -> str:
    if row["adapter"] == BASE:  # nothing of the training is its own
        columns = [c for c in columns if c == "model"]
        return " ".join(["adapter=none", *(f"{c}={row[c]}" for c in columns)])
    told = [f"{c}={row[c]}" for c in columns if row[c] != NOTHING]
    return " ".join(told) or f"adapter={row['adapter']}"


def _with(runs: pd.DataFrame, levels: Mapping[str, str], what: str) -> pd.DataFrame:
    """Return the runs that have the levels.

    Raises:
        UserError: there is no such factor, or no run has them.
    """
    for name, wanted in levels.items():
        if name not in runs.columns or name == "train_key":
            raise UserError(f"{what}{name}: no such factor.{nearest(name, runs.columns)}")
        some = {_as_number(level) for level in wanted.split(",")}
        kept = runs[runs[name].map(_as_number).isin(some)]
        if not len(kept):
            known = sorted(runs[name].unique())
            raise UserError(f"{what}{name}={wanted}: no run has it; {', '.join(known[:20])}")
        runs = kept
    return runs


def _as_number(text: str) -> str:
    try:
        return f"{float(text):g}"
    except ValueError:
        return text


def _counterpart(row: "pd.Series[Any]", others: pd.DataFrame, columns: Sequence[str]) -> Any | None:
    """Return the place of the baseline's run for a run: that with most of its levels.

    Raises:
        UserError: several have as many.
    """
    for name in (*FIXED, "seed"):
        if name in columns or name == "seed":
            base = (others["adapter"] == BASE) & (name != "model")  # one, for all that is trained
            others = others[(others[name] == row[name]) | base]
    if not len(others):
        return None
    alike = (others[list(columns)] == row[list(columns)]).sum(axis=1)
    best = others[alike == alike.max()]
    if best["train_key"].nunique() > 1:
        told = "; ".join(_name(one, columns) for _, one in best.iloc[:3].iterrows())
        raise UserError(
            f"--baseline: several runs are as near to {_name(row, columns)}: {told}; name more of "
            "its levels"
        )
    return best.index[0]


def _distinct(found: Sequence[Pair]) -> list[Pair]:
    """Return the pairs without those of another name for the same two runs."""
    return list({(p.key, p.baseline_key): p for p in reversed(found)}.values())[::-1]
