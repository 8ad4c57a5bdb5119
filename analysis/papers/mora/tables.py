"""The paper's tables 1, 3, 4, 6 and 7 as measured here, with the published numbers beside ours."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis.papers.mora import published
from analysis.papers.mora.measures import (
    BETTER,
    COUNTS,
    PERPLEXITY,
    UNITS,
    Measured,
    effect,
    levels,
)
from analysis.papers.mora.runs import LORA, MAPS
from analysis.papers.verdicts import verdict
from analysis.questions.own_rate.estimate import difference_table

GAPS = ("estimate", "low", "high", "mde", "p_holm", "verdict", "within")
PERCENT = 100.0


def arms_table(one: Measured) -> pd.DataFrame:
    """Return every arm of a group by one measure, and its difference to LoRA.

    Columns: where, measure, arm, rate, end, n (seeds), level, level_low, level_high (points, or
    perplexity), estimate, low, high, mde, p_holm, verdict, within (of the difference), published,
    published_gap (in words).
    """
    table, group = _levels(one), one.group
    if one.found.against == LORA:
        gaps = difference_table(one.found)[["arm", *GAPS]]
        table = table.merge(gaps, on="arm", how="left")
        table[["verdict", "within"]] = table[["verdict", "within"]].fillna("")
    arms = table["arm"].astype(str)
    return table.assign(
        published=[published.levels_told(group.setting, a, group.budget) for a in arms],
        published_gap=[
            published.told(group.setting, a, LORA, group.budget) if a != LORA else "" for a in arms
        ],
    )


def _levels(one: Measured) -> pd.DataFrame:
    """Return where, measure, arm, rate, end, n, level, level_low, level_high of a group's arms."""
    own = levels(one.found)
    ends = own[["estimate", "low", "high"]].to_numpy(dtype=float)
    if one.measure == PERPLEXITY:
        ends = np.exp(ends / PERCENT)
    names = dict(zip(("level", "level_low", "level_high"), ends.T, strict=True))
    head = pd.DataFrame({"where": one.group.where, "measure": one.measure}, index=own.index)
    return pd.concat([head, own[["arm", "rate", "end", "n"]].assign(**names)], axis=1)


def setting_table(found: Sequence[Measured], setting: str) -> pd.DataFrame:
    """Return `arms_table` of every group of a part of the paper, in scores and perplexity."""
    parts = [
        arms_table(one)
        for one in found
        if one.group.setting == setting and one.measure not in COUNTS
    ]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def maps_table(found: Sequence[Measured], margin: float) -> pd.DataFrame:
    """Return every map of MoRA less every one behind it in the paper's order.

    Columns: where, measure, pair, estimate, low, high, mde, n, better (the verdict on "the first is
    better"), published.
    """
    rows = []
    for one in (m for m in found if m.measure not in COUNTS):
        for place, first in enumerate(MAPS):
            for second in MAPS[place + 1 :]:
                gap = one.difference(first, second)
                if gap is None:
                    continue
                known = effect(gap)
                numbers = {
                    n: getattr(known, n) if known else float("nan") for n in ("low", "high", "mde")
                }
                group = one.group
                rows.append({
                    "where": group.where, "measure": UNITS[one.measure],
                    "pair": f"{first} − {second}", "estimate": gap.estimate.estimate,
                    **numbers, "n": gap.seeds,
                    "better": verdict(known, BETTER[one.measure], margin),
                    "published": published.told(group.setting, first, second, group.budget),
                })  # fmt: skip
    return pd.DataFrame(rows)


def counts_table(found: Sequence[Measured]) -> pd.DataFrame:
    """Return the numbers of singular values of every arm, mean over matrices, less LoRA's.

    Columns: where, measure, arm, rate, n, level, level_low, level_high, estimate, low, high, mde.
    """
    parts = [_count_rows(one) for one in found if one.measure in COUNTS]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _count_rows(one: Measured) -> pd.DataFrame:
    gaps = {d.arm: d for d in one.found.main_differences if d.against == LORA}
    table = _levels(one).drop(columns="end")
    known = [effect(gaps.get(arm)) for arm in table["arm"]]
    numbers = {
        n: [getattr(e, n) if e else float("nan") for e in known]
        for n in ("estimate", "low", "high", "mde")
    }
    return table.assign(**numbers)
