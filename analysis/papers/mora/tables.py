"""The paper's tables 1, 3, 4, 6 and 7 as measured here, with the published numbers beside ours."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis.papers.mora import published
from analysis.papers.mora.measures import (
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
    own = levels(one.found)
    ends = own[["estimate", "low", "high"]].to_numpy(dtype=float)
    if one.measure == PERPLEXITY:
        ends = np.exp(ends / PERCENT)
    names = dict(zip(("level", "level_low", "level_high"), ends.T, strict=True))
    table = own[["arm", "rate", "end", "n"]].assign(**names)
    gaps = difference_table(one.found)
    kept = gaps[["arm", *GAPS]] if len(gaps) and one.found.against == LORA else None
    if kept is not None:
        table = table.merge(kept, on="arm", how="left")
        table[["verdict", "within"]] = table[["verdict", "within"]].fillna("")
    group = one.group
    beside = {
        "published": [
            published.levels_told(group.setting, arm, group.budget) for arm in table["arm"]
        ],
        "published_gap": [
            published.told(group.setting, arm, LORA, group.budget) if arm != LORA else ""
            for arm in table["arm"]
        ],
    }
    head = pd.DataFrame({"where": group.where, "measure": one.measure}, index=table.index)
    return pd.concat([head, table.assign(**beside)], axis=1)


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

    Columns: where, measure, difference, estimate, low, high, mde,
    n, larger (the verdict on "more"), published.
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
                    "difference": f"{first} − {second}", "estimate": gap.estimate.estimate,
                    **numbers, "n": gap.seeds, "larger": verdict(known, 1, margin),
                    "published": published.told(group.setting, first, second, group.budget),
                })  # fmt: skip
    return pd.DataFrame(rows)


def counts_table(found: Sequence[Measured]) -> pd.DataFrame:
    """Return the numbers of singular values of every arm, mean over matrices, less LoRA's.

    Columns: where, measure, arm, rate, n, level, level_low, level_high, estimate, low, high, mde,
    verdict.
    """
    parts = [arms_table(one) for one in found if one.measure in COUNTS]
    if not parts:
        return pd.DataFrame()
    table = pd.concat(parts, ignore_index=True)
    return table.drop(columns=["end", "p_holm", "within", "published", "published_gap"],
                      errors="ignore")  # fmt: skip
