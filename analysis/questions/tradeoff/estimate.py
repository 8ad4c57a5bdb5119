"""Learning against forgetting with what both are uncertain by: the front, and matched learning.

A run has two numbers: learning, the points gained on target tasks over the untouched base, and
forgetting, the points lost on source tasks. Both are compared between cells, so that the base's
own noise and a seed's luck cancel. Cell means are adjusted for the seed, both outcomes together,
and have the joint covariance A x S of such a fit: A from the design, S the residual covariance of
learning and forgetting within runs.

A cell is on the front if no other learns at least as much and forgets less. The chance of that is
the share of draws from the means' joint t distribution (a parametric bootstrap). It is not a
p-value: draws scatter about estimates that scatter already, so that a cell far behind may keep a
few percent, and several cells that are truly alike share the front between them.

Matched learning asks what an arm forgets at the learning of another: every arm is a curve through
its cells (over the weight, say), forgetting between neighbours in learning is interpolated, and the
two curves are compared at one level of learning that both reach. Draws that do not reach it have
no answer, and where more than 5 % have none neither has the table.

Letters in names: C cells, D draws, N runs.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.engine.canonical import root
from analysis.engine.linalg import Array
from analysis.engine.ties import tied_ranks
from analysis.errors import AnalysisError
from analysis.table.cells import CELL, PLACE
from analysis.table.frame import SCORED, study_rows
from analysis.table.run_panels import dummies, independent, usual_rows

DRAWS = 2000
SURE = 0.95
ON, OFF, UNDECIDED = "on the front", "off the front", "undecided"
ARM = ("adapter", "rank")
NAN = float("nan")
NO_OVERLAP = "not identified: the arms share no level of learning beyond doubt"


@dataclass(frozen=True, slots=True)
class JointMeans:
    """Mean learning and forgetting of cells in one place, with their joint distribution."""

    cells: pd.DataFrame  # the factors of each cell, in the order of the means
    mean_C2: Array  # learning, forgetting
    shape_CC: Array
    residual_22: Array
    df: float

    def draws(self, count: int = DRAWS, seed: int = 0) -> Array:
        """Return draws of all means from their joint t distribution (D, C, 2)."""
        rng = np.random.default_rng(seed)
        z_DC2 = rng.standard_normal((count, *self.mean_C2.shape))
        scale_D = np.sqrt(self.df / rng.chisquare(self.df, count))
        noise_DC2 = root(self.shape_CC) @ z_DC2 @ root(self.residual_22)
        return np.asarray(self.mean_C2 + noise_DC2 * scale_D[:, None, None])

    def among(self, kept_C: "np.ndarray[tuple[int], np.dtype[np.intp]]") -> "JointMeans":
        """Return the means of some cells."""
        shape_CC = self.shape_CC[np.ix_(kept_C, kept_C)]
        cells = self.cells.iloc[kept_C].reset_index(drop=True)
        return JointMeans(cells, self.mean_C2[kept_C], shape_CC, self.residual_22, self.df)


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
    names = [n for n in ("wp", "mode", "seed", *CELL, *PLACE) if n in rows]
    runs = rows.groupby("run", observed=True, sort=False).agg(**{n: (n, "first") for n in names})
    for name, side, sign in (("learning", "target", 1), ("forgetting", "source", -1)):
        own = rows[rows["side"] == side].groupby("run", observed=True)["change"].mean()
        runs[name] = sign * own
    if "rank" in runs:
        runs["rank"] = runs["rank"].mask(runs["adapter"].astype(str) == "full", 0)
    return runs.dropna(subset=["learning", "forgetting"]).reset_index()


def joint_means(runs: pd.DataFrame, by: list[str]) -> JointMeans:
    """Return the means of the cells of `by`, adjusted for the seed, with their joint covariance.

    Raises:
        AnalysisError: one run per cell and nothing to estimate noise from.
    """
    label = runs[by].astype(str).agg("\t".join, axis=1)
    cells = runs[by].assign(label=label).drop_duplicates("label").reset_index(drop=True)
    which_N = label.map({name: i for i, name in enumerate(cells["label"])}).to_numpy(dtype=int)
    luck_NK = dummies(runs["seed"].astype(str))
    x_NK = independent(np.hstack([np.eye(len(cells))[which_N], luck_NK - luck_NK.mean(axis=0)]))
    df = len(runs) - x_NK.shape[1]
    if df < 1:
        raise AnalysisError("trade-off: one run per cell, so there is no noise to hold cells to")
    y_N2 = runs[["learning", "forgetting"]].to_numpy(dtype=float)
    inverse_KK = np.asarray(np.linalg.inv(x_NK.T @ x_NK), dtype=np.float64)
    beta_K2 = inverse_KK @ x_NK.T @ y_N2
    rest_N2 = y_N2 - x_NK @ beta_K2
    count = len(cells)
    residual_22 = np.asarray(rest_N2.T @ rest_N2 / df)
    shape_CC = inverse_KK[:count, :count]
    cells = cells.drop(columns="label")
    return JointMeans(cells, beta_K2[:count], shape_CC, residual_22, float(df))


def on_front(points_DC2: Array) -> "np.ndarray[tuple[int, ...], np.dtype[np.bool_]]":
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


def front_table(means: JointMeans, *, draws: int = DRAWS, seed: int = 0) -> pd.DataFrame:
    """Return the cells with learning, forgetting, their errors and the chance to be on the front.

    `front_now` is whether the estimates themselves are undominated; the verdict is "on the front"
    from 95 %, "off the front" up to 5 %, else "undecided".
    """
    chance_C = on_front(means.draws(draws, seed)).mean(axis=0)
    sd_2 = np.sqrt(np.diagonal(means.residual_22))
    se_C2 = np.sqrt(np.diagonal(means.shape_CC))[:, None] * sd_2
    rank_C2 = np.column_stack([tied_ranks(mean_C) for mean_C in means.mean_C2.T]).astype(float)
    verdicts = [ON if p >= SURE else OFF if p <= 1 - SURE else UNDECIDED for p in chance_C]
    numbers = pd.DataFrame(
        {
            "learning": means.mean_C2[:, 0], "learning_se": se_C2[:, 0],
            "forgetting": means.mean_C2[:, 1], "forgetting_se": se_C2[:, 1],
            "front_now": on_front(rank_C2[None])[0], "chance": chance_C, "verdict": verdicts,
        }
    )  # fmt: skip
    table = pd.concat([means.cells, numbers], axis=1)
    order = np.lexsort([tied_ranks(-table[n].to_numpy()) for n in ("learning", "chance")])
    return table.iloc[order].reset_index(drop=True)


def places(frame: pd.DataFrame) -> Iterator[tuple[dict[str, str], pd.DataFrame]]:
    """Yield the runs of every data set and base model with the levels that they share."""
    runs = run_changes(frame)
    if not len(runs):
        return
    names = [n for n in PLACE if n in runs]
    for key, own in runs.groupby(names, observed=True):
        yield dict(zip(names, map(str, key), strict=True)), own


def fronts(frame: pd.DataFrame, *, draws: int = DRAWS) -> pd.DataFrame:
    """Return `front_table` of every data set and base model, a row per cell that was run."""
    parts = []
    for labels, own in places(frame):
        by = [n for n in CELL if n in own and (own[n].nunique() > 1 or n in ARM)]
        try:
            table = front_table(joint_means(own, by), draws=draws)
        except AnalysisError:
            continue
        parts.append(table.assign(**labels)[[*labels, *table.columns]])
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


@dataclass(frozen=True, slots=True)
class Matched:
    """What an arm forgets more than another at one level of learning."""

    arm: str
    against: str
    learning: float  # where they are compared; NaN where they share none
    estimate: float
    low: float
    high: float
    p: float
    reached: float  # share of draws in which both arms reach that learning
    verdict: str


def at_learning(points_DC2: Array, learning: float) -> Array:
    """Return forgetting at one level of learning, along the cells in their order of learning (D,).

    NaN where the cells do not span it.
    """
    found_D = np.full(len(points_DC2), np.nan)
    for i, point_C2 in enumerate(points_DC2):
        ordered_C2 = point_C2[np.argsort(point_C2[:, 0], kind="stable")]
        if ordered_C2[0, 0] <= learning <= ordered_C2[-1, 0]:
            found_D[i] = np.interp(learning, ordered_C2[:, 0], ordered_C2[:, 1])
    return found_D


def matched(
    means: JointMeans, arms: tuple[str, str], *, at: float | None = None,
    draws: int = DRAWS, seed: int = 0,
) -> Matched:  # fmt: skip
    """Return forgetting of `arms[0]` less that of `arms[1]` at equal learning.

    Args:
        means: cells with a column `arm`; two cells an arm at least.
        arms: the two names.
        at: the level of learning; by default the middle of what both arms reach.
        draws: of the joint distribution, for the percentile interval.
        seed: of the draws.

    Raises:
        AnalysisError: an arm has fewer than two cells.
    """
    names = means.cells["arm"].astype(str).to_numpy()
    parts = [means.among(np.flatnonzero(names == arm)) for arm in arms]
    short = [arm for arm, part in zip(arms, parts, strict=True) if len(part.cells) < 2]
    if short:
        raise AnalysisError(f"arm={short[0]}: fewer than two cells are no curve to read off")
    low = max(float(part.mean_C2[:, 0].min()) for part in parts)
    high = min(float(part.mean_C2[:, 0].max()) for part in parts)
    level = (low + high) / 2 if at is None else at
    if not low <= level <= high:
        return Matched(arms[0], arms[1], NAN, NAN, NAN, NAN, NAN, 0.0, NO_OVERLAP)
    drawn_DC2 = means.draws(draws, seed)
    now, gap_D = (
        at_learning(points[:, names == arms[0]], level)
        - at_learning(points[:, names == arms[1]], level)
        for points in (means.mean_C2[None], drawn_DC2)
    )
    return _judged(arms, level, float(now[0]), gap_D)


def _judged(arms: tuple[str, str], level: float, now: float, gap_D: Array) -> Matched:
    known_D = gap_D[np.isfinite(gap_D)]
    reached = len(known_D) / len(gap_D)
    if reached < SURE:
        return Matched(arms[0], arms[1], level, now, NAN, NAN, NAN, reached, NO_OVERLAP)
    low, high = (float(q) for q in np.quantile(known_D, [0.025, 0.975]))
    tail = min(float((known_D <= 0).mean()), float((known_D >= 0).mean()))
    p = min(1.0, 2 * max(tail, 1 / len(known_D)))
    verdict = "not distinguishable"
    if not low <= 0 <= high:
        verdict = "forgets more" if now > 0 else "forgets less"
    return Matched(arms[0], arms[1], level, now, low, high, p, reached, verdict)


def matched_table(frame: pd.DataFrame, *, draws: int = DRAWS) -> pd.DataFrame:
    """Return every arm against full tuning (or the first arm) at matched learning.

    Arms are adapter and rank, their curves run over the weight of one masking mode. Columns:
    dataset, model, arm, against, learning, estimate, low, high, p, reached, verdict.
    """
    rows = []
    for labels, own in places(frame):
        curved = own[own["wp"] > 0]
        if not len(curved):
            continue
        mode = curved["mode"].value_counts().index[0]
        path = own[(own["wp"] == 0) | (own["mode"] == mode)]
        path = path.assign(arm=[_arm(a, r) for a, r in path[list(ARM)].itertuples(index=False)])
        rows += [labels | _matched_row(one) for one in _against_reference(path, draws)]
    return pd.DataFrame(rows)


def _against_reference(path: pd.DataFrame, draws: int) -> Iterator[Matched]:
    counts = path.groupby("arm")["wp"].nunique()
    arms = sorted(counts.index[counts > 1])
    reference = "full" if "full" in arms else arms[0] if arms else ""
    try:
        means = joint_means(path.assign(wp=path["wp"].round(9)), ["arm", "wp"])
    except AnalysisError:
        return
    for arm in arms:
        if arm != reference:
            yield matched(means, (arm, reference), draws=draws)


def _arm(adapter: object, rank: object) -> str:
    return "full" if str(adapter) == "full" else f"{adapter} r{float(str(rank)):g}"


def _matched_row(one: Matched) -> dict[str, object]:
    names = ("arm", "against", "learning", "estimate", "low", "high", "p", "reached", "verdict")
    return {name: getattr(one, name) for name in names}
