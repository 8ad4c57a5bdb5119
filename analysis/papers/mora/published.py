"""The published numbers of MoRA (arXiv 2405.12130) and what they say with the noise they show.

One run a cell, the best of a grid of rates, so that no number has an error of its own. Over the
nine tasks of continued pretraining (tables 6 and 7) the task can be the unit: MoRA less LoRA at one
rank is a paired difference on nine tasks.
"""

from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
import pandas as pd

from analysis.inference.estimates import Estimate, holm
from analysis.papers.mora.runs import (
    DECOUPLING,
    HIGH,
    LORA,
    LOW,
    ONLY,
    PRETRAINING,
    ROTATION,
    SHARING,
    TRUNCATION,
)
from analysis.report.words import signed
from analysis.table.published import read

RANKS = {LOW: ("8",), HIGH: ("256",), ONLY: ("8", "256")}  # by a group's budget
MAPS = {
    "rotation": ROTATION, "sharing": SHARING, "decoupling": DECOUPLING, "truncation": TRUNCATION,
}  # fmt: skip
PERCENT = 100.0
SUMMARIES = (1, 4)  # tables; 6 and 7 have the tasks behind the means of table 1
TASKS = (6, 7)
ROUNDING = 0.1  # points: a mean of numbers with one digit, itself with one


@cache
def scores(setting: str, budget: str) -> pd.DataFrame:
    """Return arm, measure, rank, value of one part of the paper: points; pretraining: perplexity.

    Args:
        setting: one of `runs.SETTINGS`.
        budget: which of the two ranks, or both; pretraining has one.
    """
    if setting == PRETRAINING:
        table = read("mora_pretraining").rename(columns={"method": "arm", "perplexity": "value"})
        table = table.assign(arm=table["arm"].replace({"MoRA": SHARING}))
        return table.rename(columns={"size": "measure"})[["arm", "measure", "rank", "value"]]
    table = read("mora_scores")
    own = table[(table["setting"] == setting) & table["table"].isin(SUMMARIES)]
    own = own[own["rank"].isna() | own["rank"].isin(RANKS[budget])]
    own = own.assign(arm=own["map"].map(MAPS).fillna(own["method"])).dropna(subset=["value"])
    return own.drop_duplicates(["arm", "rank", "measure"])[["arm", "measure", "rank", "value"]]


def differences(setting: str, arm: str, against: str, budget: str) -> pd.DataFrame:
    """Return measure, rank, gap: an arm less another; points, in pretraining % of perplexity."""
    table = scores(setting, budget)
    table = table.assign(rank=table["rank"].fillna(""))
    if setting == PRETRAINING:
        table = table.assign(value=PERCENT * np.log(table["value"]))
    sides = [table[table["arm"] == name] for name in (arm, against)]
    if (sides[0]["rank"] == "").all():  # full tuning, held against every rank
        sides[0] = sides[0].drop(columns="rank")
    on = [n for n in ("measure", "rank") if n in sides[0]]
    both = sides[0].merge(sides[1], on=on, suffixes=("", "_against"))
    gap = both["value"] - both["value_against"]
    return both.assign(gap=gap)[["measure", "rank", "gap"]].reset_index(drop=True)


def told(setting: str, arm: str, against: str, budget: str) -> str:
    """Return the published differences in a line; "" where there are none."""
    rows = differences(setting, arm, against, budget)
    several = rows["rank"].nunique() > 1
    parts = [
        f"{row['measure']}{' r ' + str(row['rank']) if several else ''} {signed(row['gap'])}"
        for row in rows.to_dict("records")
    ]
    return "; ".join(parts)


def levels_told(setting: str, arm: str, budget: str) -> str:
    """Return the published scores of an arm in a line; "" where there are none."""
    rows = scores(setting, budget)
    own = rows[rows["arm"] == arm]
    several = own["rank"].nunique() > 1
    return "; ".join(
        f"{row['measure']}{' r ' + str(row['rank']) if several else ''} {row['value']:g}"
        for row in own.to_dict("records")
    )


def gains() -> pd.DataFrame:
    """Return MoRA less LoRA of tables 6 and 7 with the task as the unit: a row per rank.

    Columns: rank, tasks, ahead (tasks on which MoRA is higher), estimate, low, high, p, p_holm
    (over the ranks).
    """
    table = read("mora_scores")
    table = table[table["table"].isin(TASKS) & (table["measure"] != "mean")]
    rows = []
    for rank in RANKS[ONLY]:
        wide = table[table["rank"] == rank].pivot(index="measure", columns="method", values="value")
        gap = (wide["MoRA"] - wide[LORA]).to_numpy(dtype=float)
        one = _mean(gap)
        rows.append({
            "rank": rank, "tasks": len(gap), "ahead": int((gap > 0).sum()),
            "estimate": one.estimate, "low": one.low, "high": one.high, "p": one.p,
        })  # fmt: skip
    found = pd.DataFrame(rows)
    return found.assign(p_holm=holm(found["p"].tolist()))


def _mean(values: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> Estimate:
    se = float(values.std(ddof=1)) / len(values) ** 0.5
    return Estimate("", float(values.mean()), se, len(values) - 1)


def perplexities(arms: Sequence[str]) -> Iterator[tuple[str, str, float]]:
    """Yield arm, size and log perplexity (nats a token) of table 3, for those of some arms."""
    for row in scores(PRETRAINING, ONLY).to_dict("records"):
        if row["arm"] in arms:
            yield str(row["arm"]), str(row["measure"]), float(np.log(row["value"]))


def disagreements() -> pd.DataFrame:
    """Return the means of table 1 that differ from those of tables 6 and 7 by more than rounding.

    Columns: domain, method, rank, table_1, stated (in table 6 or 7), computed (from its tasks).
    """
    table = read("mora_scores")
    first = table[(table["table"] == 1) & table["measure"].str.endswith(" mean")]
    rows = []
    for row in first.to_dict("records"):
        domain = str(row["measure"]).removesuffix(" mean")
        own = table[(table["domain"] == domain) & (table["method"] == row["method"])]
        own = own[own["rank"].fillna("") == ("" if pd.isna(row["rank"]) else row["rank"])]
        if not len(own):
            continue
        stated = float(own.loc[own["measure"] == "mean", "value"].iloc[0])
        computed = float(own.loc[own["measure"] != "mean", "value"].mean())
        if max(abs(float(row["value"]) - v) for v in (stated, computed)) > ROUNDING:
            labels = {n: row[n] for n in ("method", "rank")}
            numbers = {"table_1": row["value"], "stated": stated, "computed": computed}
            rows.append({"domain": domain} | labels | numbers)
    return pd.DataFrame(rows)
