"""Memorisation over training steps: the MoRA paper's figure, and a test of its ordering."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from analysis.inference.estimates import Estimate, holm
from analysis.papers.mora import memorisation_figure as figures
from analysis.report import words
from analysis.report.page import Block, Plate, Section, Sheet, Text
from analysis.report.tables import P_VALUE, Table

KEY = "memorised"
MEASURE, METRIC, STEPS = "memorised", "characters", "train.max_steps"
ALPHA = 0.05
# The paper's order at equal budget: full fine-tuning, MoRA, LoRA.
PAIRS = (("mora", "lora"), ("full", "mora"))


def section(frame: pd.DataFrame) -> Section | None:
    """Return the section, or None where nothing was measured over a number of steps."""
    rows = frame[(frame["task"].astype(str) == MEASURE) & (frame["metric"].astype(str) == METRIC)]
    rows = rows[~rows["is_base"]]
    if STEPS not in rows or rows[STEPS].nunique() < 2:
        return None
    runs = rows.assign(
        percent=100 * rows["value"].astype(float),
        steps=rows[STEPS].astype(float),
        rank=rows["rank"].astype(float).mask(rows["adapter"].astype(str) == "full"),
    )
    points, differences = means(runs), ordering(runs)
    verdict = _verdict(differences)
    caption = (
        "Share of the letters and digits of 100 random UUIDs that come back in their place, by "
        "greedy decoding, over training steps. Means over seeds with 95 % intervals; dotted: "
        "chance. Below: the MoRA paper's table 2, another model, other pairs, one run a point."
    )
    note = "Percent of characters; differences of runs of the same seed, with 95 % intervals."
    formats = dict.fromkeys(("estimate", "low", "high"), ".1f") | {"p_holm": P_VALUE}
    blocks: tuple[Block, ...] = (
        Text(verdict),
        Plate("memorisation", figures.memorisation(points), caption),
        Sheet(Table("memorised", "Characters right over steps", points, "", words.HEADS, formats)),
        Sheet(Table("ordering", "The order of the methods", differences, note, words.HEADS,
                    formats)),
    )  # fmt: skip
    return Section(KEY, "Memorisation", blocks, verdict)


def means(runs: pd.DataFrame) -> pd.DataFrame:
    """Return adapter, rank, steps, n, estimate, low, high: means over seeds, t intervals."""
    found = []
    for (adapter, rank, steps), own in runs.groupby(
        ["adapter", "rank", "steps"], observed=True, dropna=False, sort=False
    ):
        mean = _mean(own["percent"].to_numpy())
        found.append(
            {"adapter": str(adapter), "rank": rank, "steps": steps, "n": len(own)} | _ends(mean)
        )
    return pd.DataFrame(found).sort_values(
        ["adapter", "rank", "steps"], ignore_index=True, kind="stable"
    )


def ordering(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the paired difference of each pair of `PAIRS` at every budget and number of steps."""
    found = [row for pair in PAIRS for row in _differences(runs, *pair)]
    table = pd.DataFrame(found)
    return table.assign(p_holm=holm(table["p"].tolist())).drop(columns="p") if len(table) else table


def _differences(runs: pd.DataFrame, first: str, second: str) -> Iterator[dict[str, object]]:
    named = {name: runs[runs["adapter"].astype(str) == name] for name in (first, second)}
    ranks = sorted(named[second]["rank"].dropna().unique())
    for rank in ranks:
        for steps in sorted(runs["steps"].unique()):
            sides = [
                own[((own["rank"] == rank) | own["rank"].isna()) & (own["steps"] == steps)]
                .groupby("seed", observed=True)["percent"].mean()
                for own in named.values()
            ]  # fmt: skip
            gap = (sides[0] - sides[1]).dropna()
            if len(gap) > 1:
                mean = _mean(gap.to_numpy())
                labels = {"pair": f"{first} - {second}", "rank": rank, "steps": steps}
                yield {**labels, "n": len(gap), **_ends(mean), "p": mean.p}


def _mean(values: np.ndarray) -> Estimate:
    """Return the mean with its standard error; an exact tie of all runs has none."""
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
    return Estimate("", float(values.mean()), spread / len(values) ** 0.5, len(values) - 1)


def _ends(mean: Estimate) -> dict[str, float]:
    return {"estimate": mean.estimate, "low": mean.low, "high": mean.high}


def _verdict(table: pd.DataFrame) -> str:
    """Say at how many points the paper's order is seen, reversed or not distinguishable."""
    parts = []
    for pair, own in table.groupby("pair", sort=False) if len(table) else []:
        clear = own["p_holm"] < ALPHA
        above, below = (int((clear & (sign * own["estimate"] > 0)).sum()) for sign in (1, -1))
        first, _, second = str(pair).partition(" - ")
        parts.append(
            f"{first} above {second} at {above} of {len(own)} points (budget and steps), below it "
            f"at {below}, not distinguishable at {len(own) - above - below}"
        )
    said = "; ".join(parts) or "nothing can be compared"
    return f"The paper's order is full fine-tuning, MoRA, LoRA at equal budget. Here: {said}."
