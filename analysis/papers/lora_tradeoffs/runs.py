"""The runs of LoRA against full tuning over budgets, and every arm at a learning rate of its own.

A run has two numbers, both better higher:

    learnt  nats a token by which the loss on held-out test rows of what is trained on fell below
            the untouched base's; points of the target tasks where no such loss was measured
    kept    mean score on the source tasks, points: what is lost of it is forgetting

A setting is code or mathematics, as text (CPT) or as instructions (IFT); an arm is full tuning or
LoRA of a rank, with what else was changed about it ("LoRA r4, on attention"); a budget is a number
of steps or of epochs. The rate of an arm at a budget is chosen on the validation rows, the mean
over seeds, and both numbers are read at it (`own_rate.curves`), each seed's part apart.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property

import numpy as np
import pandas as pd

from analysis.engine.linalg import Array
from analysis.questions.own_rate.curves import (
    FEWEST,
    Chosen,
    RateCurve,
    at_optimum,
    best_tried,
    tried,
)
from analysis.table.factors import FULL

TEXT, INSTRUCTIONS = "CPT", "IFT"
SETTINGS = ("code CPT", "code IFT", "math CPT", "math IFT")
NATS, POINTS = "nats a token", "points"

AS_GOOD = 0.02  # nats a token: 2 % of the perplexity
# From both outcomes of an arm at a budget over its rates, whose losses are the same, both at one.
Choose = Callable[[RateCurve, RateCurve], tuple[Chosen, Chosen]]
Parts = pd.Series  # by seed: each seed's part in a number, whose mean is the number


@cache
def _index(seeds: tuple[str, ...]) -> "pd.Index[str]":
    return pd.Index(seeds)


def by_seed(parts_S: Array, seeds: tuple[str, ...]) -> Parts:
    """Return parts with the names of their seeds; one index for the same seeds, which is fast."""
    return pd.Series(parts_S, index=_index(seeds))


@dataclass(frozen=True)
class Own:
    """An arm at one budget, at its own rate."""

    setting: str
    arm: str
    budget: float
    learnt: Chosen
    kept: Chosen

    @property
    def rate(self) -> float:
        """The rate that was chosen."""
        return self.learnt.rate

    @property
    def end(self) -> str:
        """Which end of the rates tried it is, "" for none and where one rate was tried."""
        return self.learnt.end if len(self.learnt.curve.rate_K) > 1 else ""

    @property
    def tried(self) -> float:
        """The rate tried that is the nearest to it."""
        curve = self.learnt.curve
        return float(curve.rate_K[np.abs(curve.x_K - self.learnt.x).argmin()])

    @cached_property
    def _parts(self) -> dict[str, Parts]:
        both = {"learnt": self.learnt, "kept": self.kept}
        return {n: by_seed(c.theta_S, c.curve.seeds) for n, c in both.items()}

    def parts(self, outcome: str) -> Parts:
        """Return each seed's part in what was learnt, or kept."""
        return self._parts[outcome]


@dataclass(frozen=True)
class Tradeoff:
    """The runs of a study, a row each, and the arms at their own rates."""

    runs: pd.DataFrame
    curves: tuple[tuple[str, RateCurve, RateCurve], ...]  # setting; learnt and kept over rates
    unit: str  # of what was learnt: NATS or POINTS
    base: float | None  # the untouched base's score on the source tasks
    optimizer: str  # the usual one
    choose: Choose = lambda learnt, kept: (best_tried(learnt), best_tried(kept))

    @cached_property
    def points(self) -> tuple[Own, ...]:
        """Every arm at every budget of every setting."""
        return tuple(
            Own(setting, learnt.arm, float(learnt.place), *self.choose(learnt, kept))
            for setting, learnt, kept in self.curves
        )

    @property
    def settings(self) -> list[str]:
        """The settings that there are runs of."""
        return [s for s in SETTINGS if (self.runs["setting"] == s).any()]

    def ranks(self, setting: str) -> list[float]:
        """Return the ranks of plain LoRA in a setting."""
        own = self.runs[(self.runs["setting"] == setting) & (self.runs["variant"] == "")]
        return sorted(float(r) for r in own["rank"].unique() if r > 0)

    def arms(self, setting: str) -> list[str]:
        """Return the plain arms of a setting: full tuning, then LoRA by rank."""
        names = [FULL, *(lora(r) for r in self.ranks(setting))]
        return [n for n in names if self.curve(setting, n)]

    def variants(self, setting: str, arm: str) -> list[str]:
        """Return the arms that are this one with something changed."""
        names = dict.fromkeys(p.arm for p in self.points if p.setting == setting)
        return [n for n in names if n.startswith(f"{arm}, ")]

    def curve(self, setting: str, arm: str) -> dict[float, Own]:
        """Return an arm over its budgets, in their order."""
        own = [p for p in self.points if (p.setting, p.arm) == (setting, arm)]
        return {p.budget: p for p in sorted(own, key=lambda p: p.budget)}

    def chosen_by(self, choose: Choose) -> "Tradeoff":
        """Return the same runs with rates chosen in another way."""
        return replace(self, choose=choose)


def lora(rank: float) -> str:
    """Return the name of plain LoRA of a rank."""
    return f"LoRA r{rank:g}"


def by_parabola(learnt: RateCurve, kept: RateCurve) -> tuple[Chosen, Chosen]:
    """Return both outcomes at the rate of `near_best`."""
    return near_best(learnt), near_best(kept)


def kindest(learnt: RateCurve, kept: RateCurve) -> tuple[Chosen, Chosen]:
    """Return both outcomes at the rate that keeps most, of those that learn as well as the best.

    A rate learns as well whose mean validation loss lies within `AS_GOOD` of the lowest.
    """
    loss_K = learnt.loss_SK.mean(axis=0)
    kept_K = np.where(loss_K <= loss_K.min() + AS_GOOD, kept.score_SK.mean(axis=0), -np.inf)
    k = int(kept_K.argmax())
    return tried(learnt, k), tried(kept, k)


def near_best(curve: RateCurve) -> Chosen:
    """Return the optimum of the parabola through the best rate tried and its two neighbours.

    The best rate tried itself where fewer than three were.
    """
    count = len(curve.rate_K)
    if count < FEWEST:
        return best_tried(curve)
    k = int(np.clip(curve.loss_SK.mean(axis=0).argmin(), 1, count - 2))
    return at_optimum(curve.thinned([abs(i - k) < 2 for i in range(count)]))
