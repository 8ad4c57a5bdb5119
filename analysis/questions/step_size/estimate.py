"""Masking at one learning rate and at rates of its own: the share of its effect that is a step's.

A run whose prompt has a weight and one whose prompt has none average their gradients over other
tokens, and their best learning rates may differ. At one rate for both the difference of their
scores holds what the tokens teach and what the rate does:

    own     each at its own best rate: score_arm(x_arm) - score_ref(x_ref)
    common  both at one rate, that of the reference (x_ref) or that of the arm (x_arm)
    share   1 - own / common: what of the difference at one rate is gone at own rates

x is where the validation loss is lowest, and a score at x is read off a spline through the means
at the rates tried (`own_rate.curves`). Both differences come from the same runs, so their
covariance is estimated from each seed's parts in both, that of the items likewise, and the interval
of the share is Fieller's (1954): it has no ends where the difference at one rate may be zero.

Letters in names: S seeds, P places, I items.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import stats

from analysis.engine.linalg import Array
from analysis.inference.estimates import LEVEL, Estimate
from analysis.inference.optimum import Quadratic, fieller_set
from analysis.questions.own_rate.curves import Chosen, at_optimum, at_rate_of
from analysis.questions.own_rate.estimate import Compared
from analysis.questions.own_rate.noise import (
    NONE,
    ItemScores,
    Spread,
    covariance_over_places,
    together,
)

OWN, AT_REFERENCE, AT_ARM = "own", "reference", "arm"
GAPS = (OWN, AT_REFERENCE, AT_ARM)  # the columns of every array over gaps
COMMON = (AT_REFERENCE, AT_ARM)


@dataclass(frozen=True)
class Pair:
    """A dose and its reference at one place, each at its own rate and at the other's."""

    place: str
    arm: Chosen
    reference: Chosen
    arm_at_reference: Chosen
    reference_at_arm: Chosen

    @property
    def sides(self) -> tuple[tuple[Chosen, Chosen], ...]:
        """What is compared with what, in the order of `GAPS`."""
        return (
            (self.arm, self.reference),
            (self.arm_at_reference, self.reference),
            (self.arm, self.reference_at_arm),
        )

    @cached_property
    def gap_SG(self) -> Array:
        """Every seed's part in every gap, points."""
        return np.stack([one.theta_S - other.theta_S for one, other in self.sides], axis=1)

    @property
    def rest(self) -> dict[str, Array]:
        """The seeds' parts less their mean."""
        rest_SG = self.gap_SG - self.gap_SG.mean(axis=0)
        return dict(zip(self.arm.curve.seeds, rest_SG, strict=True))

    def items_GSI(self, items: ItemScores) -> list[Array]:
        """Return every gap of every item by seed."""
        return [items.at(one) - items.at(other) for one, other in self.sides]


@dataclass(frozen=True)
class Gaps:
    """A dose less its reference over all places at which both ran."""

    arm: str
    against: str
    pairs: tuple[Pair, ...]
    items: ItemScores | None
    left_out: tuple[str, ...]  # places without a pair, and why

    @property
    def mean_P(self) -> Array:
        """What every place counts in the mean over places."""
        return np.full(len(self.pairs), 1 / len(self.pairs))

    @property
    def seeds(self) -> int:
        """The seeds over all places."""
        return len({s for pair in self.pairs for s in pair.arm.curve.seeds})

    @property
    def replicated(self) -> bool:
        """Whether some place has two seeds."""
        return any(len(pair.arm.curve.seeds) > 1 for pair in self.pairs)

    def value(self, weight_P: Array, weight_G: Array) -> float:
        """Return a combination of places and gaps, points."""
        gap_PG = np.array([pair.gap_SG.mean(axis=0) for pair in self.pairs])
        return float(weight_P @ gap_PG @ weight_G)

    def covariance(self, weight_P: Array) -> tuple[Array, float]:
        """Return the covariance over runs of the gaps summed over places, and its df."""
        return covariance_over_places([pair.rest for pair in self.pairs], weight_P)

    def spread(self, weight_P: Array, weight_G: Array) -> Spread:
        """Return the variance of a combination over runs and items."""
        cov_GG, df = self.covariance(weight_P)
        if not df:
            return NONE
        runs = Spread(float(weight_G @ cov_GG @ weight_G), df)
        of_items = self._items_spread(weight_P, weight_G)
        return together([runs, of_items] if of_items.variance > 0 else [runs])

    def _items_spread(self, weight_P: Array, weight_G: Array) -> Spread:
        if self.items is None:
            return NONE
        gaps = [np.tensordot(weight_G, g_GSI, axes=1) for g_GSI in self._items_PGSI]
        return self.items.spread(gaps, weight_P)

    @cached_property
    def _items_PGSI(self) -> list[list[Array]]:
        assert self.items is not None
        return [pair.items_GSI(self.items) for pair in self.pairs]

    def estimate(self, gap: str, weight_P: Array | None = None) -> Estimate:
        """Return one of `GAPS` over places: their mean, or another weighing of them."""
        weight_P = self.mean_P if weight_P is None else weight_P
        weight_G = _unit(gap)
        spread = self.spread(weight_P, weight_G)
        value = self.value(weight_P, weight_G)
        return Estimate(gap, value, float(np.sqrt(spread.variance)), spread.df)

    def step(self, common: str) -> Estimate:
        """Return what of the gap at one rate is gone at own rates, in points."""
        weight_G = _unit(common) - _unit(OWN)
        spread = self.spread(self.mean_P, weight_G)
        value = self.value(self.mean_P, weight_G)
        return Estimate("step", value, float(np.sqrt(spread.variance)), spread.df)

    def share(self, common: str) -> "Share":
        """Return the share of the gap at one rate that own rates take away, with its interval."""
        pair_2G = np.stack([_unit(OWN), _unit(common)])
        own, at_one = (self.value(self.mean_P, weight_G) for weight_G in pair_2G)
        ratio = own / at_one if at_one else float("nan")
        df = self.spread(self.mean_P, np.array([1.0, -ratio]) @ pair_2G).df
        if not np.isfinite(df):
            return Share(1 - ratio, float("nan"), float("nan"))
        t = float(stats.t.ppf((1 + LEVEL) / 2, df))
        cov_22 = self._covariance_of(pair_2G)
        # own - ratio * common is a slope b1 + 2 b2 x at x = ratio with b2 = -common / 2.
        scale_22 = np.diag([1.0, -0.5])
        low, high = fieller_set(Quadratic(own, -at_one / 2, scale_22 @ cov_22 @ scale_22, df), t)
        return Share(1 - ratio, 1 - high, 1 - low)

    def _covariance_of(self, pair_2G: Array) -> Array:
        """Return the covariance of two combinations of gaps over runs and items.

        That of the items by polarisation, 4 cov(a, b) = var(a + b) - var(a - b).
        """
        cov_GG, _ = self.covariance(self.mean_P)
        cov_22 = pair_2G @ cov_GG @ pair_2G.T
        if self.items is None:
            return np.asarray(cov_22)
        (a_G, b_G) = pair_2G
        a, b, plus, minus = (
            self._items_spread(self.mean_P, w).variance for w in (a_G, b_G, a_G + b_G, a_G - b_G)
        )
        shared = (plus - minus) / 4
        return np.asarray(cov_22 + np.array([[a, shared], [shared, b]]))


@dataclass(frozen=True, slots=True)
class Share:
    """A share of the difference at one rate; the ends are infinite where it is not bounded."""

    estimate: float
    low: float
    high: float

    @property
    def bounded(self) -> bool:
        """Whether the share has an interval."""
        return bool(np.isfinite([self.low, self.high]).all())


def gaps(found: Compared) -> list[Gaps]:
    """Return every dose less the reference, over the places at which both tried both rates."""
    made = []
    for arm in dict.fromkeys(c.arm for c in found.curves if c.arm != found.against):
        pairs, left_out = [], []
        for place in found.places:
            pair = _pair(found, arm, place)
            if isinstance(pair, Pair):
                pairs.append(pair)
            elif pair:
                left_out.append(pair)
        if pairs:
            made.append(Gaps(arm, found.against, tuple(pairs), found.items, tuple(left_out)))
    return made


def _pair(found: Compared, arm: str, place: str) -> Pair | str:
    """Return a dose and the reference at a place; else why not, "" where one did not run there."""
    curves = {c.arm: c for c in found.curves if c.place == place}
    if arm not in curves or found.against not in curves:
        return ""
    seeds = [s for s in curves[arm].seeds if s in curves[found.against].seeds]
    if not seeds:
        return f"{place}: no seed of both"
    one, other = (at_optimum(curves[name].of_seeds(seeds)) for name in (arm, found.against))
    at_other, other_at = at_rate_of(one.curve, other), at_rate_of(other.curve, one)
    if at_other is None or other_at is None:
        return f"{place}: one did not try the other's best rate"
    return Pair(place, one, other, at_other, other_at)


def matched(
    found: Gaps, levels: Mapping[str, Mapping[str, str]], factor: str, level: str, against: str
) -> Array | None:
    """Return what every place counts in one level of a setting less another.

    Over places that are equal in everything else; None where there are none.

    Args:
        found: the gaps.
        levels: of every factor at every place, by the place's name.
        factor: the setting.
        level: the level of it.
        against: the level that is taken off.
    """
    at = {tuple(levels[p.place].items()): i for i, p in enumerate(found.pairs)}
    weight_P = np.zeros(len(found.pairs))
    for i, pair in enumerate(found.pairs):
        own = dict(levels[pair.place])
        partner = at.get(tuple((own | {factor: against}).items()))
        if own[factor] == level and partner is not None:
            weight_P[i] += 1
            weight_P[partner] -= 1
    count = weight_P[weight_P > 0].sum()
    return np.asarray(weight_P / count) if count else None


def _unit(gap: str) -> Array:
    return np.eye(len(GAPS))[GAPS.index(gap)]
