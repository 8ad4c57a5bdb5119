"""How far arms lie apart, how much of it is the rate, and what the rates themselves look like.

The range of several scores is above zero by their noise alone: beside it stands the range that
arms without any difference would have, drawn from the same variances. Arms at one rate for all,
that at which LoRA's loss is lowest, are those that tried it.

Letters in names: A arms, D draws, S seeds, K rates.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.questions.own_rate.curves import (
    ROUNDING,
    RateCurve,
    lack_of_fit,
    pooled_covariance,
    rate_interval,
)
from analysis.questions.own_rate.estimate import ANALYSES, Compared, difference_table
from analysis.questions.own_rate.noise import run_noise
from analysis.report.headline import ALPHA, CLEAR

DRAWS = 20_000
NAN = float("nan")
WRONG = (0.5, 1.0)  # log2: rates a factor of root two and of two beside the best


@dataclass(frozen=True, slots=True)
class Ranges:
    """The range of the arms' scores over places, in points."""

    arms: int
    own: float  # each at its own rate
    noise: float  # of arms that do not differ: the mean
    noise_high: float  # and the 95th percentile
    common_arms: int  # that tried LoRA's best rate at every place
    common: float  # the range of these at that rate
    common_own: float  # and at their own


def ranges(found: Compared, *, draws: int = DRAWS, seed: int = 0) -> Ranges:
    """Return the ranges at own rates, at one rate, and of noise alone."""
    over, _ = run_noise(found.main)
    scores = _means(found, lambda arm, place: found.main[arm, place].estimate)
    sd_A = np.sqrt([over[arm].variance for arm in scores.index])
    rng = np.random.default_rng(seed)
    noise_D = np.ptp(rng.standard_normal((draws, len(sd_A))) * sd_A, axis=1)
    common = _means(found, lambda arm, place: _at_common(found, arm, place)).dropna()
    return Ranges(
        len(scores), float(np.ptp(scores)), float(noise_D.mean()),
        float(np.quantile(noise_D, 1 - ALPHA)), len(common), _range(common),
        _range(scores[common.index]),
    )  # fmt: skip


def _means(found: Compared, score: Callable[[str, str], float]) -> "pd.Series[float]":
    """Return the mean over places of every arm that ran at all of them."""
    whole = [a for a in dict.fromkeys(c.arm for c in found.curves)
             if all((a, p) in found.main for p in found.places)]  # fmt: skip
    values = [np.mean([score(a, p) for p in found.places]) for a in whole]
    return pd.Series(values, whole, dtype=float)


def _range(values: "pd.Series[float]") -> float:
    return float(np.ptp(values)) if len(values) > 1 else NAN


def _at_common(found: Compared, arm: str, place: str) -> float:
    """Return an arm's score at the rate that the reference chose; NaN where it did not try it."""
    curve = found.main[arm, place].curve
    reference = found.main[found.against, place]
    x = reference.x + reference.curve.middle - curve.middle
    return curve.score(x) if _tried(curve, x) else NAN


def _tried(curve: RateCurve, x: float) -> bool:
    """Return whether x lies within the rates tried, but for rounding."""
    return bool(curve.x_K[0] - ROUNDING <= x <= curve.x_K[-1] + ROUNDING)


def wrong_rate(found: Compared) -> pd.DataFrame:
    """Return what rates beside the best one cost: factor, side, points (median), curves.

    Of curves whose best rate lies inside and which tried the other rate.
    """
    rows = []
    for shift in (*(-w for w in reversed(WRONG)), *WRONG):
        lost = [
            one.curve.score(one.x) - one.curve.score(one.x + shift)
            for one in found.main.values()
            if not one.end and _tried(one.curve, one.x + shift)
        ]
        middle = float(np.median(lost)) if lost else NAN
        rows.append({"factor": 2.0**shift, "lost": middle, "curves": len(lost)})
    return pd.DataFrame(rows)


def rate_table(found: Compared) -> pd.DataFrame:
    """Return the chosen rate of every arm at every place with its interval and the score there.

    Columns: arm, place, rate, low, high (Fieller's, cut to the rates tried), end, tried (best of
    those tried), score, seeds, loss_fit and score_fit (p of the quadratic within any curve).
    """
    cov_22, df = pooled_covariance(found.curves)
    tried = found.chosen(ANALYSES[1])
    rows = []
    for (arm, place), one in found.main.items():
        low, high = (NAN, NAN) if one.end else rate_interval(one.curve, cov_22, df)
        rows.append({
            "arm": arm, "place": place, "rate": one.rate, "low": low, "high": high, "end": one.end,
            "tried": tried[arm, place].rate, "score": one.estimate, "seeds": len(one.theta_S),
            "loss_fit": _fit(one.curve, "loss"), "score_fit": _fit(one.curve, "score"),
        })  # fmt: skip
    return pd.DataFrame(rows)


def _fit(curve: RateCurve, name: str) -> float:
    value_SK = curve.loss_SK if name == "loss" else curve.score_SK
    return lack_of_fit(curve, value_SK).p if min(value_SK.shape) > 1 else NAN


def robustness(found: Compared) -> pd.DataFrame:
    """Return every arm's difference and verdict by every analysis, a row each.

    Columns: analysis, arm, estimate, low, high, p_holm, verdict, within, ends.
    """
    tables = [difference_table(found, one).assign(analysis=one.name) for one in ANALYSES]
    columns = ["analysis", "arm", "estimate", "low", "high", "p_holm", "verdict", "within", "ends"]
    return pd.concat([t[columns] for t in tables if len(t)], ignore_index=True)


def agreement(table: pd.DataFrame) -> pd.DataFrame:
    """Return, by analysis, how many arms are above and below, and how many verdicts are others'.

    Args:
        table: of `robustness`; the first analysis is the one that others are held against.
    """
    said = table.assign(said=[_said(r) for r in table.to_dict("records")])
    main = said[said["analysis"] == ANALYSES[0].name].set_index("arm")
    rows = []
    for name, own in said.groupby("analysis", sort=False):
        by_arm = own.set_index("arm")
        shared = _shared(by_arm.index, main.index)
        moved = (by_arm.loc[shared, "estimate"] - main.loc[shared, "estimate"]).abs()
        rows.append({
            "analysis": name, "arms": len(own), "above": int((own["said"] == "above").sum()),
            "below": int((own["said"] == "below").sum()),
            "within": int((own["within"] != "").sum()),
            "other": int((by_arm.loc[shared, "said"] != main.loc[shared, "said"]).sum()),
            "moved": float(moved.median()), "most": float(moved.max()),
        })  # fmt: skip
    return pd.DataFrame(rows)


def _said(row: Mapping[Any, Any]) -> str:
    """Return on which side of zero an arm's difference is distinguishable, "" on neither."""
    if row["verdict"] != CLEAR:
        return ""
    return "above" if float(row["estimate"]) > 0 else "below"


def _shared(first: Iterable[str], second: Iterable[str]) -> list[str]:
    theirs = set(second)
    return [name for name in first if name in theirs]
