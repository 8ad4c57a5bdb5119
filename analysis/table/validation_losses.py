"""Held-out losses of every run by learning rate; tuning, and reports of it, start from them."""

import pandas as pd

from analysis.table.factors import DEFAULTS

LOSSES = ("loss_completion", "loss_text")  # of what is trained on; a data set has one of them
USUAL = {n: DEFAULTS[n] for n in ("init", "optimizer")}  # where the table has no such column
ARM = ["model", "dataset", "adapter", *USUAL, "rank"]
NEEDED = ("lr", "task", "task_type", "metric", "value", "adapter")


def validation_losses(table: pd.DataFrame) -> pd.DataFrame:
    """Return `heldout_losses` of the validation rows."""
    return heldout_losses(table, "validation")


def heldout_losses(table: pd.DataFrame, part: str) -> pd.DataFrame:
    """Return one row per arm, learning rate and run: ARM, lr, train_key and loss.

    A run without a score keeps its row, with a missing loss, and the untouched base has none. The
    result is empty for a table that lacks one of NEEDED.

    Args:
        table: a results table, as it stands.
        part: validation or test.
    """
    if not set(NEEDED) <= set(table.columns):
        return pd.DataFrame(columns=[*ARM, "lr", "train_key", "loss"])
    runs = table[table["adapter"].astype("string") != "none"].copy()
    for name in (*ARM, "train_key"):
        if name not in runs:
            runs[name] = USUAL.get(name, "")
    held = runs["task"].astype("string").str.contains(part).fillna(False).astype(bool)
    kept = held & runs["task_type"].eq("heldout") & runs["metric"].isin(LOSSES)
    runs["loss"] = runs["value"].where(kept.fillna(False).astype(bool))
    return runs.groupby([*ARM, "lr", "train_key"], observed=True)[["loss"]].mean().reset_index()
