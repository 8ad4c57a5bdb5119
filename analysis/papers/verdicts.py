"""Verdicts on what others claim, the same for every paper.

supported            the interval excludes the other answer
contradicted         the interval excludes the claim
no effect beyond the margin    neither, and the test of equivalence holds
not distinguishable  the data do not decide; the MDE (minimum detectable effect) is given
not testable here    what the claim is about was not run or not measured
"""

from collections.abc import Mapping

import pandas as pd

from analysis.inference.estimates import Estimate, equivalence
from analysis.report.headline import CONTRADICTED, SUPPORTED, UNCLEAR, WITHIN

UNTESTABLE, UNDECIDED = "not testable here", UNCLEAR
ALPHA = 0.05


def verdict(effect: Estimate | None, sign: int, margin: float | None = None) -> str:
    """Return the verdict on "the effect has this sign".

    Args:
        effect: None where it was not run or not measured.
        sign: 1 or -1.
        margin: of equivalence, in the effect's unit; None for no such test.
    """
    if effect is None:
        return UNTESTABLE
    low, high = sorted((sign * effect.low, sign * effect.high))
    if low > 0 or high < 0:
        return SUPPORTED if low > 0 else CONTRADICTED
    if margin is not None and effect.se > 0 and equivalence(effect, margin).p < ALPHA:
        return WITHIN
    return UNDECIDED


def same(effect: Estimate | None, margin: float) -> str:
    """Return the verdict on "there is no difference beyond the margin".

    Args:
        effect: None where it was not run or not measured.
        margin: of equivalence, in the effect's unit.
    """
    if effect is None or not effect.se > 0:
        return UNTESTABLE
    if equivalence(effect, margin).p < ALPHA:
        return SUPPORTED
    far = abs(effect.estimate) - effect.half_width > margin
    return CONTRADICTED if far else UNDECIDED


def row(head: Mapping[str, object], effect: Estimate | None, said: str) -> dict[str, object]:
    """Return a claim as one row of a table: its labels, its numbers and the verdict on it."""
    numbers = {
        name: getattr(effect, name) if effect is not None else float("nan")
        for name in ("estimate", "low", "high", "mde")
    }
    return {**head, **numbers, "verdict": said}


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row per claim: the verdict that its panels agree on, and how they are split."""
    rows = []
    for claim, own in table.groupby("claim", sort=False):
        counts = own["verdict"].value_counts()
        split = ", ".join(f"{v} {n} of {len(own)}" for v, n in counts.items())
        said = str(counts.index[0]) if len(counts) == 1 else _mixed(counts)
        rows.append({"claim": claim, "verdict": said, "panels": split})
    return pd.DataFrame(rows)


def _mixed(counts: "pd.Series[int]") -> str:
    for said, other in ((SUPPORTED, CONTRADICTED), (CONTRADICTED, SUPPORTED)):
        if said in counts and other not in counts:
            return f"{said} in part"
    return "mixed"
