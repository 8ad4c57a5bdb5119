"""Combinations of arms at their own rates, with the noise that their seeds show.

The seed is the unit: the runs of one seed at several budgets, rates and arms share the order of the
rows, and in CPT all steps but the last. Every number here is the mean over seeds of the seeds' own
parts in it, and its variance is theirs over their number. Few seeds say little about it, so the
variances of one kind of number (one claim in all settings and ranks) are moderated together
(`inference.moderated`), on somewhat fewer degrees of freedom (`estimates`).

At matched learning: an arm's budgets are points (learnt, kept), joined by straight lines as far as
learning rises. Two arms are compared where both have learnt as much, kept being averaged over that
range. With w_b what budget b counts in the interpolated number at learning g, and s the line's
slope there, a seed's part is, to first order,

    mean over g of sum_b w_b(g) (kept_b,seed - s(g) (learnt_b,seed - learnt_b))

so that its variance holds what the seeds differ in along both axes, and what these share.

Letters in names: B budgets, G amounts learnt.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from analysis.engine.linalg import Array
from analysis.errors import AnalysisError
from analysis.inference.estimates import Estimate
from analysis.inference.moderated import moderated
from analysis.papers.lora_tradeoffs.runs import Own, Parts, by_seed, near_best
from analysis.questions.own_rate.curves import FEWEST, Chosen

LEARNT, KEPT = "learnt", "kept"
AMOUNTS = 101  # at which two arms are compared
ALIKE = 0.25  # correlation of the variances of two differences from one arm: that of these, squared
# Variances moderated on two degrees of freedom each make 95 % intervals that hold 93 to 94 %; with
# this share of the degrees of freedom they hold 94 to 97 %, for 4 to 12 of them (simulated).
TRUSTED = 0.6
Curve = Mapping[float, Own]  # an arm by budget


def total(terms: Sequence[tuple[float, Parts]]) -> Parts | None:
    """Return a weighed sum over the seeds that all terms have; None where none are shared."""
    if not terms:
        return None
    seeds = terms[0][1].index
    for _, parts in terms[1:]:
        if not parts.index.equals(seeds):
            seeds = seeds.intersection(parts.index)
    if not len(seeds):
        return None
    own_S = np.zeros(len(seeds))
    for weight, parts in terms:
        same = parts if parts.index.equals(seeds) else parts[seeds]
        own_S += weight * same.to_numpy(float)
    return pd.Series(own_S, index=seeds)


def mean(many: Sequence[Parts | None]) -> Parts | None:
    """Return the mean of several numbers over the seeds that all have.

    None where one of the numbers is not there, or they share no seed.
    """
    known = [parts for parts in many if parts is not None]
    return total([(1 / len(many), p) for p in known]) if len(known) == len(many) else None


def less(one: Parts | None, other: Parts | None) -> Parts | None:
    """Return a difference; None where one of the two is not there."""
    return None if one is None or other is None else total([(1.0, one), (-1.0, other)])


def shared(*curves: Curve) -> list[float]:
    """Return the budgets that all have."""
    return sorted(set.intersection(*(set(c) for c in curves))) if curves else []


def over_budgets(curve: Curve, outcome: str, budgets: Sequence[float]) -> Parts | None:
    """Return the mean of an outcome over some budgets."""
    return mean([curve[b].parts(outcome) for b in budgets])


def gap(one: Curve, other: Curve, outcome: str) -> Parts | None:
    """Return one arm less another, mean over the budgets that both have."""
    budgets = shared(one, other)
    return less(over_budgets(one, outcome, budgets), over_budgets(other, outcome, budgets))


def growth(one: Curve, other: Curve, outcome: str) -> Parts | None:
    """Return what a doubling of the budget adds to one arm less another (least squares)."""
    budgets = shared(one, other)
    pieces = [less(one[b].parts(outcome), other[b].parts(outcome)) for b in budgets]
    return slope(np.log2(budgets), pieces)


def slope(x: Array, pieces: Sequence[Parts | None]) -> Parts | None:
    """Return the slope of numbers over x; None with one x, or where a number is not there."""
    known = [p for p in pieces if p is not None]
    if len(known) < 2 or len(known) < len(pieces):
        return None
    away = np.asarray(x, float) - np.mean(x)
    return total([(float(a / (away @ away)), p) for a, p in zip(away, known, strict=True)])


@dataclass(frozen=True)
class Matched:
    """What one arm kept above another where both learnt as much."""

    parts: Parts
    low: float  # the range of learning
    high: float


def matched(one: Curve, other: Curve) -> Matched | None:
    """Return the comparison; None where the two never learnt as much, or share no seed."""
    lines = [_line(one), _line(other)]
    if any(line is None for line in lines):
        return None
    paths = [line for line in lines if line is not None]
    low = max(path.learnt_B[0] for path in paths)
    high = min(path.learnt_B[-1] for path in paths)
    if not low < high:
        return None
    amount_G = np.linspace(low, high, AMOUNTS)
    # The trapezoid rule: its ends count half.
    share_G = np.ones(AMOUNTS)
    share_G[[0, -1]] = 0.5
    parts = less(*(path.kept_at(amount_G, share_G / share_G.sum()) for path in paths))
    return None if parts is None else Matched(parts, float(low), float(high))


@dataclass(frozen=True)
class _Line:
    """An arm's budgets as points, as far as learning rises."""

    learnt_B: Array
    kept_B: Array
    seed_learnt: tuple[Parts, ...]
    seed_kept: tuple[Parts, ...]

    def kept_at(self, amount_G: Array, share_G: Array) -> Parts | None:
        """Return what was kept, weighed over amounts learnt within the line."""
        left_G = np.clip(np.searchsorted(self.learnt_B, amount_G) - 1, 0, len(self.learnt_B) - 2)
        width_G = self.learnt_B[left_G + 1] - self.learnt_B[left_G]
        right_G = (amount_G - self.learnt_B[left_G]) / width_G
        slope_G = (self.kept_B[left_G + 1] - self.kept_B[left_G]) / width_G
        weight_B, tilt_B = np.zeros(len(self.learnt_B)), np.zeros(len(self.learnt_B))
        for at_G, weight_G in ((left_G, 1 - right_G), (left_G + 1, right_G)):
            np.add.at(weight_B, at_G, share_G * weight_G)
            np.add.at(tilt_B, at_G, share_G * weight_G * slope_G)
        terms = list(zip(weight_B, self.seed_kept, strict=True))
        terms += [
            (-tilt, learnt - learnt.mean())
            for tilt, learnt in zip(tilt_B, self.seed_learnt, strict=True)
        ]
        return total(terms)


def _line(curve: Curve) -> _Line | None:
    """Return the budgets that each taught more than all shorter ones; None with fewer than two."""
    kept, most = [], -np.inf
    for own in curve.values():
        if own.learnt.estimate > most:
            most = own.learnt.estimate
            kept.append(own)
    if len(kept) < 2:
        return None
    return _Line(
        np.array([own.learnt.estimate for own in kept]),
        np.array([own.kept.estimate for own in kept]),
        tuple(own.parts(LEARNT) for own in kept),
        tuple(own.parts(KEPT) for own in kept),
    )


def log_rate(own: Own) -> Parts | None:
    """Return log2 of the best rate; None where that is an end of those tried.

    The lowest point of the parabola through the best rate tried and its neighbours, each seed's
    part in it to first order.
    """
    found = _inside(own)
    if found is None:
        return None
    middle = found.x + found.curve.middle
    return by_seed(middle + found.shift_S, found.curve.seeds)


def log_width(own: Own) -> Parts | None:
    """Return log2 of how wide the rates are that lose no more than some amount, less a constant.

    On that parabola, b0 + b2 (x - x0)^2, a loss of d more is at x0 +- sqrt(d / b2).
    """
    found = _inside(own)
    if found is None:
        return None
    b2_S = (found.curve.loss_SK @ found.curve.solve_3K.T)[:, 2]
    b2 = float(b2_S.mean())
    parts_S = -0.5 * np.log2(b2) - 0.5 * (b2_S - b2) / (b2 * np.log(2))
    return by_seed(parts_S, found.curve.seeds)


def _inside(own: Own) -> Chosen | None:
    if len(own.learnt.curve.rate_K) < FEWEST:
        return None
    found = near_best(own.learnt.curve)
    return None if found.end else found


def over_own(
    one: Curve, other: Curve, number: Callable[[Own], Parts | None]
) -> tuple[Parts | None, int, int]:
    """Return one arm less another in a number of the rates, mean over budgets at which both have
    it; the number of these, and of all budgets.
    """
    budgets = shared(one, other)
    pairs = [less(number(one[b]), number(other[b])) for b in budgets]
    known = [p for p in pairs if p is not None]
    return (mean(known) if known else None), len(known), len(budgets)


def estimates(many: Sequence[Parts], places: Sequence[str]) -> list[Estimate]:
    """Return numbers of one kind with their noise, moderated over them.

    Numbers of one place share runs, such as those of full tuning: k variances with correlations of
    a quarter count as k / (1 + (k - 1) / 4). The degrees of freedom are at most `TRUSTED` of all
    that then count. Without two seeds a number has no error of its own, and takes none from others.

    Args:
        many: each seed's part in every number.
        places: of every number, such as its setting.
    """
    found = [Estimate("", float(p.mean()), float("nan"), float("nan")) for p in many]
    known = [i for i, parts in enumerate(many) if len(parts) > 1]
    own_G = np.array([len(many[i]) - 1 for i in known], dtype=np.float64)
    variance_G = np.array([float(many[i].to_numpy(float).var(ddof=1)) for i in known])
    try:
        drawn = moderated(variance_G, own_G)
    except AnalysisError:
        return found
    lines = Counter(places[i] for i in known)
    worth_G = np.array([1 / (1 + (lines[places[i]] - 1) * ALIKE) for i in known])
    most = TRUSTED * float(worth_G @ own_G)
    df_G = np.clip(drawn.df_G, own_G, np.maximum(own_G, most))
    for i, v, df in zip(known, drawn.variance_G, df_G, strict=True):
        se = float(np.sqrt(v / len(many[i])))
        found[i] = replace(found[i], se=se, df=float(df))
    return found


def levels(points: Sequence[Own]) -> pd.DataFrame:
    """Return setting, arm, budget, rate, end, seeds, then learnt and kept with _low and _high.

    Args:
        points: arms at budgets; the noise of each outcome is moderated over them.
    """
    table = pd.DataFrame(
        [(p.setting, p.arm, p.budget, p.rate, p.end, len(p.learnt.curve.seeds)) for p in points],
        columns=["setting", "arm", "budget", "rate", "end", "seeds"],
    )
    for outcome in (LEARNT, KEPT):
        own = estimates([p.parts(outcome) for p in points], [p.setting for p in points])
        table[outcome] = [e.estimate for e in own]
        table[f"{outcome}_low"] = [e.low for e in own]
        table[f"{outcome}_high"] = [e.high for e in own]
    return table
