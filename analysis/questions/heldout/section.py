"""Held-out loss per role of the token: the same yardstick for every masking mode."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd

from analysis.inference.estimates import DF_RULES
from analysis.questions.heldout import figure as figures
from analysis.report import words
from analysis.report.headline import Headline, judged, of_row
from analysis.report.page import Block, Plate, Section, Sheet
from analysis.report.tables import P_VALUE, Table
from analysis.table.level_means import Levels, level_means, panels

# The order of the roles; one that is not named here comes last.
ROLES = ("completion", "text", "instruction", "input", "boilerplate", "system", "special")
LEARNT = ("completion", "text")  # the roles that a user of the model sees
LEVEL = ["masking", "plw", "wp"]
FORMATS = dict.fromkeys(("estimate", "low", "high", "mde"), ".4f")


def section(frame: pd.DataFrame, *, df: str = DF_RULES[0]) -> Section | None:
    """Return the section on held-out loss, or None where it was not measured."""
    rows = loss_rows(frame)
    if not len(rows):
        return None
    found = list(panels(rows, ["dataset", "role"], _means(df)))
    points = pd.concat([means.table.assign(**labels) for labels, means in found])
    points = points[["dataset", "role", *LEVEL, "n", "estimate", "low", "high"]]
    caption = (
        "Held-out loss per role of the token, in nats a token. Means adjusted for adapter, rank, "
        "base model and seed, 95 % intervals. The loss on completions is what a user of the model "
        "sees."
    )
    note = "Adjusted means of the runs with 95 % intervals, in nats a token."
    formats = FORMATS | {"plw": ".4g", "wp": ".4f"}
    table = Table("heldout", "Held-out loss per role", points, note, words.HEADS, formats)
    plate = Plate("heldout_loss", figures.heldout_loss(points), caption)
    blocks: list[Block] = [plate] if points["wp"].nunique() > 1 else []
    blocks.append(Sheet(table))
    gaps = differences(frame, df=df)
    if len(gaps):
        blocks.append(Sheet(_gap_table(gaps)))
    return Section("heldout", "Held-out loss per role", tuple(blocks))


def _means(df: str) -> Callable[[pd.DataFrame], Levels]:
    return partial(level_means, by=LEVEL, value="value", df=df)


def loss_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the held-out losses of trained runs with their `role`, of the test split if any."""
    kept = (frame["task_type"] == "heldout") & ~frame["is_base"] & (frame["control"] == "")
    rows = frame[kept & frame["metric"].astype(str).str.startswith("loss_")]
    if "wp" not in rows or not len(rows):
        return rows.iloc[:0]
    tests = rows["task"].astype(str).str.contains("test")
    rows = rows[tests] if tests.any() else rows
    roles = rows["metric"].astype(str).str.removeprefix("loss_")
    found = sorted(roles.unique())
    present = [r for r in ROLES if r in found] + [r for r in found if r not in ROLES]
    rows = rows.assign(role=pd.Categorical(roles, present))
    return rows.sort_values(["dataset", "role"], kind="stable")


def differences(frame: pd.DataFrame, *, df: str = DF_RULES[0]) -> pd.DataFrame:
    """Return the loss on completions of every masking and PLW less that at PLW 0.

    Columns: dataset, role, masking, plw, estimate, low, high, p, p_holm, mde, verdict.
    """
    rows = loss_rows(frame)
    if not len(rows):
        return pd.DataFrame()
    learnt = rows[rows["role"].isin(LEARNT)]
    found = []
    for labels, means in panels(learnt, ["dataset", "role"], _means(df)):
        zero = means.table["wp"] == 0
        for i in np.flatnonzero(~zero):
            gap = means.compare(pd.Series(np.arange(len(zero)) == i), zero)
            if gap is not None:
                level = {"masking": str(means.table["masking"].iloc[i])}
                level["plw"] = means.table["plw"].iloc[i]
                found.append((labels | level, gap))
    return judged(found, None)


def headlines(frame: pd.DataFrame) -> list[Headline]:
    """Return the differences from PLW 0 as effects, for a page without a model of scores."""
    table = differences(frame)
    return [
        of_row(
            row,
            label=f"{row['masking']}, PLW {words.plw_text(float(row['plw']))}",
            group=f"{row['dataset']}: loss on {row['role']} tokens less that at PLW 0",
            question="heldout",
            unit="nats a token",
        )
        for row in (table.to_dict("records") if len(table) else [])
    ]


def _gap_table(gaps: pd.DataFrame) -> Table:
    note = "Nats a token, less the runs at PLW 0. Lower is better. p is adjusted by Holm."
    title = "Loss on completions against PLW 0"
    formats = FORMATS | {"p": P_VALUE, "p_holm": P_VALUE, "plw": ".4g"}
    return Table("heldout_differences", title, gaps, note, words.HEADS, formats)
