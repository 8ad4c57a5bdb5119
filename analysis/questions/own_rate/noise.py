"""The noise of scores at chosen rates: of the runs, moderated over arms, and of the items.

Runs of one seed share the order of the rows, so seeds are blocks: what a seed does to all arms at a
place cancels between arms and is taken out. What is left of an arm's theta_s (`curves`) varies
from seed to seed by the arm's own variance. Few seeds say little about it, and arms are not
equally steady, so the variances are moderated over the arms (`inference.moderated`).

Seeds that ran at the same places form a stratum; the variance of an arm's mean over places is the
sum over strata of n / (n - 1) sum_s psi_s^2, psi_s the seed's part in the mean. Seeds of their own
at every place and seeds that ran at all places are both special cases.

Letters in names: A arms, S seeds, I items, R runs, K rates.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis.engine.linalg import Array
from analysis.errors import AnalysisError
from analysis.inference.crossed import items_variance, rest_variance
from analysis.inference.moderated import moderated
from analysis.questions.own_rate.curves import Chosen
from analysis.table.items import Items, item_weights

Key = tuple[str, str]  # arm, place
Rest = dict[str, float]  # by seed
K = TypeVar("K", str, Key)


@dataclass(frozen=True, slots=True)
class Spread:
    """A variance, its degrees of freedom and the most that a sum with others like it can have."""

    variance: float
    df: float
    most: float = float("inf")


NONE = Spread(float("nan"), float("nan"))


def run_noise(chosen: Mapping[Key, Chosen]) -> tuple[dict[str, Spread], dict[Key, Spread]]:
    """Return the variance of every arm's mean over places, and of its mean at every place.

    `NONE` where no place has two seeds of the arm, or fewer than two arms share a place.
    """
    rest = _residuals(chosen)
    arms = list(dict.fromkeys(arm for arm, _ in chosen))
    over = {arm: _over_places([r for (a, _), r in rest.items() if a == arm]) for arm in arms}
    at = {key: _over_places([own]) for key, own in rest.items()}
    sizes = {p: len({a for a, q in rest if q == p}) for _, p in rest}
    return (
        _moderated({a: (*v, min(sizes[p] for b, p in rest if b == a)) for a, v in over.items()}),
        _moderated({key: (*v, sizes[key[1]]) for key, v in at.items()}),
    )


def _residuals(chosen: Mapping[Key, Chosen]) -> dict[Key, Rest]:
    """Return every theta_s less its arm's mean and less what its seed does to all arms."""
    found: dict[Key, Rest] = {}
    for place in dict.fromkeys(place for _, place in chosen):
        own = {a: c for (a, p), c in chosen.items() if p == place}
        parts = {a: dict(zip(c.curve.seeds, c.theta_S - c.estimate, strict=True))
                 for a, c in own.items()}  # fmt: skip
        seeds = dict.fromkeys(s for rest in parts.values() for s in rest)
        block = {s: np.mean([rest[s] for rest in parts.values() if s in rest]) for s in seeds}
        for arm, rest in parts.items():
            found[arm, place] = {s: float(r - block[s]) for s, r in rest.items()}
    return found


def _over_places(rest: Sequence[Rest]) -> tuple[float, float]:
    """Return the variance of one arm's mean over places, and its df; 0, 0 without replicates."""
    parts = [{seed: np.array([r]) for seed, r in own.items()} for own in rest]
    cov_11, df = covariance_over_places(parts, np.full(len(rest), 1 / max(len(rest), 1)))
    return float(cov_11[0, 0]), df


def covariance_over_places(
    rest: Sequence[Mapping[str, Array]], weight_P: Array
) -> tuple[Array, float]:
    """Return the covariance of numbers summed over places, and its df; zeros without replicates.

    Args:
        rest: at every place each seed's parts in the numbers, less their mean over its seeds.
        weight_P: what every place counts.
    """
    strata: dict[tuple[bool, ...], list[Array]] = {}
    for seed in dict.fromkeys(s for own in rest for s in own):
        psi = [w * own[seed] / len(own) for w, own in zip(weight_P, rest, strict=True)
               if seed in own]  # fmt: skip
        strata.setdefault(tuple(seed in own for own in rest), []).append(np.sum(psi, axis=0))
    size = len(next(iter(rest[0].values()))) if rest and rest[0] else 1
    cov, df = np.zeros((size, size)), 0
    for psi_SN in (np.array(own) for own in strata.values()):
        if len(psi_SN) > 1:
            cov += len(psi_SN) / (len(psi_SN) - 1) * psi_SN.T @ psi_SN
            df += len(psi_SN) - 1
    return cov, float(df)


def _moderated(found: Mapping[K, tuple[float, float, int]]) -> dict[K, Spread]:
    """Return moderated variances: the seeds' common part took 1 / A of each and of its df."""
    known = {k: (v, df, n) for k, (v, df, n) in found.items() if df > 0 and n > 1}
    made = dict.fromkeys(found, NONE)
    if not known:
        return made
    share_A = np.array([(n - 1) / n for _, _, n in known.values()])
    variance_A = np.array([v for v, _, _ in known.values()]) / share_A
    try:
        drawn = moderated(variance_A, np.array([df for _, df, _ in known.values()]) * share_A)
    except AnalysisError:
        return made
    pairs = zip(drawn.variance_G.tolist(), drawn.df_G.tolist(), strict=True)
    spreads = [Spread(v, df, max(drawn.most, df)) for v, df in pairs]
    return made | dict(zip(known, spreads, strict=True))


def together(parts: Sequence[Spread]) -> Spread:
    """Return the sum of variances with Satterthwaite's degrees of freedom."""
    total = sum(one.variance for one in parts)
    if not total > 0:
        return NONE
    df = total**2 / sum(one.variance**2 / one.df for one in parts if one.variance > 0)
    most = max(one.most for one in parts)
    return Spread(total, min(df, most), most)


@dataclass(frozen=True)
class ItemScores:
    """The items' scores by run, for the items' share in the noise of a difference."""

    scores_RI: Array
    row: Mapping[str, int]
    weight_I: Array
    task_I: npt.NDArray[np.str_]

    @classmethod
    def of(cls, items: Items) -> "ItemScores":
        """Return the items that every run was scored on."""
        known = ~np.isnan(items.scores_RI).any(axis=0)
        table = items.items[pd.Series(known)].reset_index(drop=True)
        kept = Items(items.scores_RI[:, known], items.runs, table)
        rows = {str(run): i for i, run in enumerate(items.runs["run"])}
        scores_RI = kept.scores_RI.astype(np.float64)
        return cls(scores_RI, rows, item_weights(kept), table["task"].to_numpy(str))

    def at(self, one: Chosen) -> Array:
        """Return the items' scores at the chosen rate by seed, (S, I)."""
        rows_SK = np.array([[self.row[run] for run in own] for own in one.curve.run_SK])
        return np.asarray(np.einsum("k,ski->si", one.weights_K, self.scores_RI[rows_SK]))

    def variance(self, pairs: Sequence[tuple[Chosen, Chosen]]) -> Spread:
        """Return what other items would add to the variance of a mean difference over places.

        The variance over items less what the runs' own noise on single items adds to it.

        Args:
            pairs: an arm and the one it is compared with, at every place, of the same seeds.
        """
        gaps = [self.at(one) - self.at(other) for one, other in pairs]
        return self.spread(gaps, np.full(len(gaps), 1 / len(gaps)))

    def spread(self, gaps: Sequence[Array], weight_P: Array) -> Spread:
        """Return what other items would add to the variance of a sum over places.

        Args:
            gaps: at every place what every item gives by seed, (S, I).
            weight_P: what every place counts.
        """
        weighed = list(zip(weight_P, gaps, strict=True))
        mean_I = np.sum([w * gap_SI.mean(axis=0) for w, gap_SI in weighed], axis=0)
        variance = items_variance(mean_I, self.weight_I, self.task_I)
        noise = sum(
            w**2 * rest_variance(gap_SI, self.weight_I) for w, gap_SI in weighed if len(gap_SI) > 1
        )
        df = float(len(mean_I) - len(np.unique(self.task_I)))
        return Spread(max(variance - noise, 0.0), df)
