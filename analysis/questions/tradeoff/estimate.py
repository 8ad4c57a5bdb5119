"""Learning against forgetting: means of both with their joint covariance, and the Pareto front.

A run has two numbers: learning, the points gained on target tasks over the untouched base, and
forgetting, the points lost on source tasks. Both are compared between cells, or between arms
(adapter and rank) over their cells. Means are adjusted for the seed and for whatever else the
levels were crossed with, both outcomes together (`analysis.table.adjusted_means`), so that the
base's own noise and the seed effect cancel between levels. They do not cancel in what a level
learnt over the base, which has no seed: its interval holds the variance of the seed effect as well
(balanced: (MS_seed + (A - 1) MS_rest) / (A S) for A levels and S seeds, Satterthwaite 1946).

A level is Pareto optimal if no other learns at least as much and forgets less. The chance of that
is the share of draws from the means' joint t distribution (a parametric bootstrap). It is not a
p-value: draws scatter about estimates that scatter already, so that a level far behind may keep a
few percent, and several levels that are truly alike share the Pareto front between them.

Letters in names: N runs, C levels, D draws, 2 outcomes (learning, forgetting).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.engine.canonical import root
from analysis.engine.linalg import Array, Index, Mask
from analysis.engine.ties import tied_ranks
from analysis.errors import AnalysisError
from analysis.inference.estimates import Estimate
from analysis.regression.study import STRATUM, Study
from analysis.table.adjusted_means import Adjusted, adjusted_means, dummies, independent, without
from analysis.table.cells import ARM, without_rank
from analysis.table.factors import factors_of, run_columns
from analysis.table.frame import SCORED, study_rows
from analysis.table.run_panels import grouped, usual_rows

DRAWS = 2000
SURE = 0.95
OUTCOMES = ("learning", "forgetting")
ON, OFF, UNDECIDED = "Pareto optimal", "dominated", "undecided"
NAN = float("nan")


@dataclass(frozen=True, slots=True)
class SeedEffect:
    """What the seeds add to the variance of a mean over them.

    Attributes:
        between_2: variance, over seeds, of the seeds' mean residuals, by outcome.
        seeds: how many there are.
        runs: runs a seed, their mean.
    """

    between_2: Array
    seeds: int
    runs: float


@dataclass(frozen=True, slots=True)
class JointMeans:
    """Mean learning and forgetting of the levels in one stratum, with their joint distribution."""

    levels: pd.DataFrame  # the factors of each level, in the order of the means
    mean_C2: Array
    fit: Adjusted | None  # None where one run per level leaves no noise to judge by
    seed_effect: SeedEffect | None = None  # None with one seed, or where it was not asked for

    def draws(self, count: int = DRAWS, seed: int = 0) -> Array:
        """Return draws of all means from their joint t distribution (D, C, 2)."""
        if self.fit is None:
            return np.full((0, *self.mean_C2.shape), np.nan)
        rng = np.random.default_rng(seed)
        z_DC2 = rng.standard_normal((count, *self.mean_C2.shape))
        scale_D = np.sqrt(self.fit.df / rng.chisquare(self.fit.df, count))
        noise_DC2 = root(self.fit.shape_SS) @ z_DC2 @ root(self.fit.residual_YY)
        return np.asarray(self.mean_C2 + noise_DC2 * scale_D[:, None, None])


def run_changes(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one row per run: its factors, `learning` and `forgetting` against its base.

    At the usual level of every other setting; empty without a base, target and source tasks.
    """
    base = frame[frame["is_base"] & frame["task_type"].isin(SCORED)]
    keys = [n for n in ("model", "task") if n in frame]
    start = base.groupby(keys, observed=True)["score"].mean().rename("base").reset_index()
    rows = usual_rows(study_rows(frame)).merge(start, on=keys, how="inner")
    if not {"target", "source"} <= set(rows["side"].astype(str)):
        return pd.DataFrame()
    rows = rows.assign(change=rows["score"] - rows["base"])
    names = [n for n in run_columns(rows) if n != "run"]
    runs = rows.groupby("run", observed=True, sort=False).agg(**{n: (n, "first") for n in names})
    for name, side, sign in (("learning", "target", 1), ("forgetting", "source", -1)):
        own = rows[rows["side"] == side].groupby("run", observed=True)["change"].mean()
        runs[name] = sign * own
    return without_rank(runs).dropna(subset=list(OUTCOMES)).reset_index()


def joint_means(runs: pd.DataFrame, by: Sequence[str], blocks: Sequence[str]) -> JointMeans:
    """Return the means of the levels of `by`, adjusted for the blocks, with their covariance.

    Args:
        runs: one row per run of one stratum: the factors, learning, forgetting.
        by: the factors whose levels are compared.
        blocks: what the levels were crossed with, taken together; where the levels share too few
            of their blocks they are compared without them.
    """
    label = runs[list(by)].astype(str).agg("\t".join, axis=1)
    levels = runs[list(by)].assign(label=label).drop_duplicates("label").reset_index(drop=True)
    level_N = label.map({name: i for i, name in enumerate(levels["label"])}).to_numpy(dtype=np.intp)
    y_N2 = runs[list(OUTCOMES)].to_numpy(dtype=float)
    crossed = [runs[list(blocks)].astype(str).agg("\t".join, axis=1)] if len(blocks) else []
    levels = levels.drop(columns="label")
    for own in (crossed, []):
        try:
            fit = adjusted_means(level_N, own, y_N2, weights="proportional")
        except AnalysisError:
            continue
        return JointMeans(levels, fit.mean_SY, fit, _seed_effect(runs, level_N, blocks, y_N2))
    plain = pd.DataFrame(y_N2).groupby(level_N).mean().to_numpy()
    return JointMeans(levels, plain, None)


def _seed_effect(
    runs: pd.DataFrame, level_N: Index, blocks: Sequence[str], y_N2: Array
) -> SeedEffect | None:
    """Return the spread of the seeds' mean residuals; None where seeds are no block, or one."""
    if "seed" not in blocks or runs["seed"].nunique() < 2:
        return None
    others = [n for n in blocks if n != "seed"]
    columns = [dummies(pd.Series(level_N.astype(str)))]
    columns += [dummies(runs[n].astype(str)) for n in others]
    rest = pd.DataFrame(without(independent(np.hstack(columns)), y_N2))
    by_seed = rest.groupby(runs["seed"].to_numpy()).mean()
    return SeedEffect(by_seed.var(ddof=1).to_numpy(), len(by_seed), len(rest) / len(by_seed))


def on_front(points_DC2: Array) -> Mask:
    """Return which points are dominated by none, draw by draw (D, C).

    Learning is better higher, forgetting lower; a point is dominated by one that is at least as
    good in both and better in one.
    """
    learn_DC, forget_DC = points_DC2[..., 0], points_DC2[..., 1]
    as_good = (learn_DC[:, :, None] >= learn_DC[:, None, :]) & (
        forget_DC[:, :, None] <= forget_DC[:, None, :]
    )
    better = (learn_DC[:, :, None] > learn_DC[:, None, :]) | (
        forget_DC[:, :, None] < forget_DC[:, None, :]
    )
    return np.asarray(~(as_good & better).any(axis=1))


def front_table(means: JointMeans, *, draws: int = DRAWS) -> pd.DataFrame:
    """Return the levels with learning, forgetting, their errors and the chance of the front.

    Columns: the factors; learning and forgetting, each with _se, _low and _high (95 % intervals,
    points); undominated, whether the estimates are; chance, of being Pareto optimal; verdict,
    "Pareto optimal" from 95 %, "dominated" up to 5 %, else "undecided". Errors and chances are
    missing where there is one run per level.
    """
    numbers: dict[str, object] = {}
    for i, name in enumerate(OUTCOMES):
        for key, value_C in _intervals(means, i).items():
            numbers[name + key] = value_C
    drawn_DC2 = means.draws(draws)
    count = len(means.mean_C2)
    chance_C = on_front(drawn_DC2).mean(axis=0) if len(drawn_DC2) else np.full(count, NAN)
    rank_C2 = np.column_stack([tied_ranks(mean_C) for mean_C in means.mean_C2.T]).astype(float)
    numbers["undominated"] = on_front(rank_C2[None])[0]
    numbers["chance"] = chance_C
    numbers["verdict"] = [
        ON if p >= SURE else OFF if p <= 1 - SURE else UNDECIDED for p in chance_C
    ]
    table = pd.concat([means.levels, pd.DataFrame(numbers)], axis=1)
    order = np.lexsort([tied_ranks(-table[n].to_numpy()) for n in ("learning", "chance")])
    return table.iloc[order].reset_index(drop=True)


def _intervals(means: JointMeans, outcome: int) -> dict[str, list[float]]:
    """Return one outcome's means, standard errors and interval ends as columns."""
    if means.fit is None:
        none = [NAN] * len(means.mean_C2)
        return {"": means.mean_C2[:, outcome].tolist(), "_se": none, "_low": none, "_high": none}
    found = [_absolute(means.fit, weights, outcome, means.seed_effect)
             for weights in np.eye(len(means.mean_C2))]  # fmt: skip
    ends = {"": "estimate", "_se": "se", "_low": "low", "_high": "high"}
    return {key: [getattr(one, name) for one in found] for key, name in ends.items()}


def _absolute(fit: Adjusted, weights_C: Array, outcome: int, effect: SeedEffect | None) -> Estimate:
    """Return one mean with the error of another study of as many seeds."""
    found = fit.contrast(weights_C, outcome)
    if effect is None:
        return found
    noise = float(fit.residual_YY[outcome, outcome])
    between = float(effect.between_2[outcome]) / effect.seeds
    # The seeds' mean residuals hold their share of the runs' noise already.
    within = max(found.se**2 - noise / (effect.runs * effect.seeds), 0.0)
    total = max(between + within, found.se**2)
    parts = between**2 / (effect.seeds - 1) + within**2 / fit.df
    df = (between + within) ** 2 / parts if total > found.se**2 else found.df
    return Estimate(found.name, found.estimate, float(np.sqrt(total)), df)


def learning_forgetting(frame: pd.DataFrame, by: Sequence[str] | None = None) -> pd.DataFrame:
    """Return `front_table` of every data set and base model; empty without base or a side.

    Args:
        frame: a prepared results table of `analysis.table.frame`.
        by: the factors whose levels are compared: `ARM` for arms over all their cells; by default
            adapter, rank and whatever else varies, which makes every cell a level.
    """
    parts = []
    runs = run_changes(frame)
    strata = [n for n in STRATUM if n in runs]
    for labels, own in grouped(runs, strata, sort=True) if len(runs) else ():
        varied = factors_of(own).cell
        chosen = list(by or [*ARM, *(n for n in varied if n not in ARM)])
        blocks = [n for n in (*varied, "seed") if n not in chosen and own[n].nunique() > 1]
        table = front_table(joint_means(own, chosen, blocks))
        parts.append(table.assign(**labels)[[*labels, *table.columns]])
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def cells(study: Study) -> pd.DataFrame:
    """Return `learning_forgetting` of a study's cells."""
    return study.once("learning and forgetting, cells", lambda: learning_forgetting(study.frame))


def arms(study: Study) -> pd.DataFrame:
    """Return `learning_forgetting` of a study's arms, over all their cells."""
    found = study.once(
        "learning and forgetting, arms", lambda: learning_forgetting(study.frame, ARM)
    )
    if not len(found):
        return found
    model = found.get("model", "base")
    return found.assign(model=model, adapter=found["adapter"].astype(str))
