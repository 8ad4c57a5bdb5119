"""Arms at their own best learning rates: each less LoRA, with every noise that it has.

The rate of an arm at a place (a level of every other setting, such as the batch size) is the
optimum of its validation loss; the score of the test items is read at that rate (`curves`), so
that nothing is chosen on what is reported. An arm's difference is the mean over places of its
score less that of the arm it is compared with, on the same seeds. Its standard error holds the
runs, the chosen rates and the items (`noise`).

The same differences by `ANALYSES`: with the best rate tried in place of the curve's optimum, with
scores on one parabola, and with every second rate left out, as a grid twice as coarse would have
had it.

Letters in names: S seeds, K rates, A arms.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from scipy import stats

from analysis.errors import AnalysisError
from analysis.inference.estimates import LEVEL, Estimate, equivalence, holm
from analysis.questions.own_rate.curves import (
    FEWEST,
    Chosen,
    RateCurve,
    at_optimum,
    best_tried,
    on_parabola,
    own_rate,
    rate_curves,
)
from analysis.questions.own_rate.noise import (
    NONE,
    ItemScores,
    Key,
    Spread,
    run_noise,
    together,
)
from analysis.regression.study import STRATUM, Study
from analysis.report import words
from analysis.report.headline import ALPHA, judged
from analysis.table.cells import run_means, without_rank
from analysis.table.factors import Factors
from analysis.table.run_panels import grouped
from analysis.table.validation_losses import validation_losses

AGAINST = "lora"
MARGINS = (1.0, 2.0)  # points, of equivalence
WIDTH = 1.5  # points: half of an interval that would do
MOST_SEEDS = 10_000


@dataclass(frozen=True, slots=True)
class Analysis:
    """A way to choose rates: how, and of which of the rates that were tried."""

    name: str
    choose: Callable[[RateCurve], Chosen]
    fewest: int = FEWEST  # rates without which there is no choice
    step: int = 1  # every rate, or every second one
    other: bool = False  # the second ones, without the middle

    def curve(self, curve: RateCurve) -> RateCurve | None:
        """Return the curve with the rates of this analysis; None where too few are left."""
        count = len(curve.rate_K)
        keep = [(k - count // 2) % self.step == int(self.other) for k in range(count)]
        return curve.thinned(keep) if sum(keep) >= self.fewest else None


ANALYSES = (
    Analysis("the curve's optimum, all rates", at_optimum),
    Analysis("best rate tried, all rates", best_tried, 2),
    Analysis("the curve's optimum, scores on one parabola", on_parabola),
    Analysis("the curve's optimum, every second rate", at_optimum, step=2),
    Analysis("best rate tried, every second rate", best_tried, 2, step=2),
    Analysis("best rate tried, the other rates", best_tried, 2, step=2, other=True),
)
# Of arms some of which ran at one rate alone, tuned elsewhere, or at two.
OWN_OR_GIVEN = Analysis("the curve's optimum, else the best rate tried", own_rate, 1)


@dataclass(frozen=True, slots=True)
class Difference:
    """An arm less the one it is compared with."""

    arm: str
    against: str
    estimate: Estimate  # over places
    by_place: dict[str, Estimate]
    runs: Spread
    items: Spread
    seeds: int  # of the arm over all places
    ends: int  # places where a rate of the two lies at an end of those tried

    @property
    def seeds_needed(self) -> float:
        """The seeds over all places from which half of the interval is at most `WIDTH`.

        Infinite where the items alone are too few; missing without replicates.
        """
        if not self.runs.variance > 0:
            return float("nan")
        low, high = 2 * len(self.by_place) - 1, MOST_SEEDS
        if self._half_width(high) > WIDTH:
            return float("inf")
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._half_width(middle) <= WIDTH else (middle, high)
        return float(high)

    def _half_width(self, seeds: int) -> float:
        """Return half of the interval's length with so many seeds over all places."""
        scale = self.seeds / seeds
        runs = Spread(self.runs.variance * scale, self.runs.df / scale)
        both = together([runs, self.items] if self.items.variance > 0 else [runs])
        return float(stats.t.ppf((1 + LEVEL) / 2, both.df) * np.sqrt(both.variance))


@dataclass(frozen=True)
class Compared:
    """All arms of one data set and base model on one side of the tasks."""

    labels: dict[str, str]  # dataset, model, side
    curves: tuple[RateCurve, ...]
    items: ItemScores | None
    reference: str = AGAINST
    analysis: Analysis = ANALYSES[0]  # the main one

    @cached_property
    def against(self) -> str:
        """The arm that all are compared with: the reference where it is there, else the first."""
        arms = [c.arm for c in self.curves]
        return self.reference if self.reference in arms else arms[0]

    @cached_property
    def places(self) -> list[str]:
        """The places, in the order of the runs."""
        return list(dict.fromkeys(c.place for c in self.curves))

    @cached_property
    def main(self) -> dict[Key, Chosen]:
        """The chosen rates of the main analysis."""
        return self.chosen(self.analysis)

    @cached_property
    def main_differences(self) -> list[Difference]:
        """Every arm less `against` by the main analysis."""
        return self.differences(self.main)

    def chosen(self, analysis: Analysis) -> dict[Key, Chosen]:
        """Return the chosen rate of every arm at every place."""
        thinned = {(c.arm, c.place): analysis.curve(c) for c in self.curves}
        return {key: analysis.choose(c) for key, c in thinned.items() if c is not None}

    def differences(self, chosen: Mapping[Key, Chosen]) -> list[Difference]:
        """Return every arm less `against`, over the places at which both ran."""
        over, at = run_noise(chosen)
        found = []
        for arm in dict.fromkeys(a for a, _ in chosen if a != self.against):
            places = [p for a, p in chosen if a == arm and (self.against, p) in chosen]
            if places:
                found.append(self._difference(arm, places, chosen, (over, at)))
        return found

    def _difference(
        self,
        arm: str,
        places: Sequence[str],
        chosen: Mapping[Key, Chosen],
        noise: tuple[Mapping[str, Spread], Mapping[Key, Spread]],
    ) -> Difference:
        pairs = [(chosen[arm, p], chosen[self.against, p]) for p in places]
        gap = [_gap(one, other) for one, other in pairs]
        names, (over, at) = (arm, self.against), noise
        runs = together([over[a] for a in names])
        items = self.items.variance(pairs) if self.items else NONE
        by_place = {
            p: _estimate(f"{arm}, {p}", g, together([at[a, p] for a in names]),
                         self.items.variance([pair]) if self.items else NONE)
            for p, g, pair in zip(places, gap, pairs, strict=True)
        }  # fmt: skip
        ends = sum(bool(one.end or other.end) for one, other in pairs)
        seeds = len({(p, s) for p, (one, _) in zip(places, pairs, strict=True)
                     for s in one.curve.seeds})  # fmt: skip
        estimate = _estimate(arm, float(np.mean(gap)), runs, items)
        return Difference(arm, self.against, estimate, by_place, runs, items, seeds, ends)


def _gap(one: Chosen, other: Chosen) -> float:
    """Return the difference of two arms at a place, over the seeds that both ran."""
    theirs = dict(zip(other.curve.seeds, other.theta_S, strict=True))
    own = zip(one.curve.seeds, one.theta_S, strict=True)
    shared = [theta - theirs[seed] for seed, theta in own if seed in theirs]
    return float(np.mean(shared)) if shared else one.estimate - other.estimate


def _estimate(name: str, value: float, runs: Spread, items: Spread) -> Estimate:
    both = together([runs, items]) if items.variance > 0 and runs.variance > 0 else runs
    return Estimate(name, value, float(np.sqrt(both.variance)), both.df)


def compared(study: Study) -> list[Compared]:
    """Return the comparison in every data set and base model, target tasks first.

    Empty where fewer than two arms ran at three rates with a validation loss.
    """
    return study.once("arms at their own rates", lambda: list(_compared(study)))


def _compared(study: Study) -> list[Compared]:
    if not study.rated:
        return []
    found = []
    for side in [s for s in words.SIDES if (study.rows["side"] == s).any()]:
        rows = study.rows[study.rows["side"] == side]
        for labels, own in grouped(arm_runs(rows, study.raw, study.factors), STRATUM):
            curves = tuple(rate_curves(own))
            if len({c.arm for c in curves}) > 1:
                items = items_of(study, rows, {r for c in curves for s in c.run_SK for r in s})
                found.append(Compared({**labels, "side": side}, curves, items))
    return found


def items_of(study: Study, rows: pd.DataFrame, runs: set[str]) -> ItemScores | None:
    """Return the items of these rows' tasks; None where some run has none beside the table."""
    if study.items is None:
        return None
    tasks = [t for t in study.items.tasks if t in set(rows["task"].astype(str))]
    if set(tasks) != set(rows["task"].astype(str)):
        return None  # a task whose score is no mean of items: a part of the noise would be missing
    own = study.items.runs["run"].astype(str).isin(runs)
    try:
        found = ItemScores.of(study.items.of(runs=own, tasks=tasks))
    except AnalysisError:
        return None
    return found if runs <= set(found.row) and found.scores_RI.size else None


def arm_runs(rows: pd.DataFrame, raw: pd.DataFrame, factors: Factors) -> pd.DataFrame:
    """Return one row per run: arm, place, seed, rate, loss, score, run, dataset and model.

    Args:
        rows: study rows of one side of the tasks.
        raw: the results table as it stands, for the loss on the validation rows.
        factors: of the study.
    """
    losses = validation_losses(raw).dropna(subset=["loss"])
    loss = losses.groupby(losses["train_key"].astype(str))["loss"].mean()
    runs = without_rank(run_means(rows))
    other = [
        f for f in factors
        if f.part in ("dose", "setting") and not f.inside and f.column not in ("rate", "lr")
    ]  # fmt: skip
    texts = pd.DataFrame({f.column: runs[f.column].map(f.text) for f in other}, index=runs.index)
    place = texts.agg(", ".join, axis=1) if other else pd.Series("all runs", runs.index)
    found = runs[["run", "seed", "rate", "score", *STRATUM]].assign(
        arm=factors.arm_names(runs), place=place, loss=runs["run"].astype(str).map(loss)
    )
    return found.astype({"seed": str, "run": str}).dropna(subset=["loss", "score"])


def difference_table(found: Compared, analysis: Analysis | None = None) -> pd.DataFrame:
    """Return every arm less the reference: numbers, p by Holm, verdict, equivalence, seeds.

    By the main analysis unless another is given.

    Columns: arm, against, estimate, low, high, mde, p, p_holm, verdict, p_within_1 and _2 (two
    one-sided tests, by Holm over the arms), within ("±1", "±2" or ""), half_width, seeds,
    seeds_needed, ends.
    """
    analysis = analysis or found.analysis
    main = analysis is found.analysis
    own = found.main_differences if main else found.differences(found.chosen(analysis))
    named = [({"arm": d.arm, "against": d.against, "replicated": d.runs.variance > 0}, d.estimate)
             for d in own]  # fmt: skip
    table = judged(named, None)
    if not len(table):
        return table
    for margin in MARGINS:
        p = [equivalence(d.estimate, margin).p for d in own]
        table[f"p_within_{margin:g}"] = holm(p)
    inside = [f"p_within_{m:g}" for m in MARGINS]
    table["within"] = [
        next((f"±{m:g}" for m, n in zip(MARGINS, inside, strict=True) if row[n] < ALPHA), "")
        for row in table[inside].to_dict("records")
    ]
    return table.assign(
        half_width=[d.estimate.half_width for d in own],
        seeds=[d.seeds for d in own],
        seeds_needed=[d.seeds_needed for d in own],
        ends=[d.ends for d in own],
    )
