"""Win rates of judged answers, with and without the length of the answers, and mean grades.

Every row of judgments is one answer of an arm beside one of its baseline to the same prompt, asked
in both orders. y is 1 where the arm's is preferred, 0 where the baseline's is, and a half for a tie
or where the two orders disagree.

    win rate            mean of y. Interval: Clopper and Pearson's at the number of independent
                        pairs that the variance between prompts leaves (Korn and Graubard 1998).
                        It is for other prompts like these and the trained runs as they are
    length-controlled   Dubois et al. 2024, arXiv 2404.04475: logit P(y) = theta + phi tanh(d / s),
                        d the characters of the arm's answer less those of the baseline's, s the
                        standard deviation of d, and the win rate predicted at d = 0, which is
                        logistic(theta). A logistic regression on y as a share (Papke and Wooldridge
                        1996) by statsmodels, errors clustered by prompt, the interval made on the
                        logit scale with a t of G - 1 degrees of freedom. The paper's term for the
                        difficulty of a prompt needs the judgments of many systems and is left out
    first shown         share of the answers shown first among those preferred: a half without a
                        bias of position

A prompt that several seeds answered is one cluster. Letters in names: N judged pairs, G prompts.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit

from analysis.engine.linalg import Array
from analysis.errors import AnalysisError
from analysis.inference.estimates import LEVEL, Estimate
from analysis.inference.shares import clustered_share
from analysis.questions.noise.paired import paired
from analysis.table.items import Items

SIDES = ["judge", "mode", "task", "arm", "baseline"]  # what a row of a table is of
FEWEST = 10  # prompts for a regression on length


def win_rates(judgments: pd.DataFrame) -> pd.DataFrame:
    """Return one row per judge, task, arm and baseline.

    Columns beside these: prompts, pairs, wins, ties, losses, identical (texts, ties that nobody was
    asked about), unparsable (pairs without a verdict, in no rate), inconsistent (share of the asked
    pairs), first_shown with first_low and first_high, win_rate with low and high, seeds with
    low_seeds and high_seeds (for other seeds too, where there are two), lc_win_rate with lc_low and
    lc_high, length and length_baseline (mean characters).

    Args:
        judgments: one row per pair with SIDES, item, seed, preference (missing: unparsable),
            identical, consistent, first_shown (of a pair the number of the verdicts for the answer
            shown first), decided (the number of verdicts that are no tie), length and
            length_baseline.
    """
    return pd.DataFrame(list(_rows(judgments, _win_row)))


def grades(judgments: pd.DataFrame) -> pd.DataFrame:
    """Return one row per judge, task, arm and baseline of graded answers.

    Columns beside these: prompts, answers, unparsable, grade with low and high, baseline_grade, and
    difference with difference_low and difference_high, paired by prompt; intervals clustered by
    prompt.

    Args:
        judgments: one row per pair with SIDES, item, grade and grade_baseline; missing where the
            judge gave none.
    """
    return pd.DataFrame(list(_rows(judgments, _grade_row)))


def _rows(judgments: pd.DataFrame, of: Any) -> Iterator[dict[str, Any]]:
    for labels, own in judgments.groupby(SIDES, sort=False):
        yield dict(zip(SIDES, labels, strict=True)) | of(own)


def _win_row(own: pd.DataFrame) -> dict[str, Any]:
    known = own[own["preference"].notna()]
    y_N = known["preference"].astype(float)
    asked = known[~known["identical"].astype(bool)]
    row: dict[str, Any] = {
        "prompts": own["item"].nunique(), "pairs": len(own),
        "wins": int((y_N == 1).sum()), "ties": int((y_N == 0.5).sum()),
        "losses": int((y_N == 0).sum()), "identical": int(own["identical"].sum()),
        "unparsable": len(own) - len(known),
        "inconsistent": float((~asked["consistent"].astype(bool)).mean()),
        "win_rate": float(y_N.mean()), "seeds": own["seed"].nunique(),
    }  # fmt: skip
    row["low"], row["high"] = _share(y_N, known["item"])
    decided = asked[asked["decided"] > 0]
    row["first_shown"] = float(decided["first_shown"].sum() / max(decided["decided"].sum(), 1))
    shares = decided["first_shown"] / decided["decided"]
    row["first_low"], row["first_high"] = _share(shares, decided["item"])
    row["first_shown"] = row["first_shown"] if len(decided) else float("nan")
    row |= _over_seeds(known) | length_controlled(
        np.asarray(y_N, np.float64), _difference(known), known["item"].to_numpy(str)
    )
    return row | {n: float(own[n].mean()) for n in ("length", "length_baseline")}


def _difference(rows: pd.DataFrame) -> Array:
    return np.asarray(rows["length"] - rows["length_baseline"], np.float64)


def _share(values: "pd.Series[float]", item: "pd.Series[Any]") -> tuple[float, float]:
    return clustered_share(values, item) if len(values) else (float("nan"), float("nan"))


def length_controlled(y_N: Array, difference_N: Array, item_N: Any) -> dict[str, float]:
    """Return lc_win_rate with lc_low and lc_high; nan where no regression is identified.

    It is not below `FEWEST` prompts, where one side wins every pair, and where length and
    preference are separated.

    Args:
        y_N: preferences, 0 to 1.
        difference_N: characters of the arm's answer less those of the baseline's.
        item_N: the prompt of every pair.
    """
    nothing = dict.fromkeys(("lc_win_rate", "lc_low", "lc_high"), float("nan"))
    groups_N = pd.factorize(item_N)[0]
    count = len(np.unique(groups_N))
    if count < FEWEST or np.ptp(y_N) == 0:
        return nothing
    spread = float(difference_N.std())
    columns = [np.ones(len(y_N))]
    if spread > 0:
        columns.append(np.tanh(difference_N / spread))
    found = _logistic(y_N, np.column_stack(columns), groups_N)
    if found is None:
        return nothing
    theta = Estimate("theta", *found, df=count - 1.0)
    ends = (theta.estimate, theta.low, theta.high)
    return dict(zip(nothing, (float(expit(x)) for x in ends), strict=True))


def _logistic(y_N: Array, X_NB: Array, groups_N: Any) -> tuple[float, float] | None:
    """Return the intercept of a logistic regression with its clustered error; None: no maximum."""
    import warnings

    from statsmodels.genmod.families import Binomial  # slow to import
    from statsmodels.genmod.generalized_linear_model import GLM
    from statsmodels.tools.sm_exceptions import PerfectSeparationWarning

    with warnings.catch_warnings(), np.errstate(all="ignore"):  # no maximum is told by nan
        warnings.simplefilter("ignore", PerfectSeparationWarning)
        warnings.simplefilter("ignore", RuntimeWarning)
        fit = GLM(y_N, X_NB, family=Binomial()).fit(
            cov_type="cluster", cov_kwds={"groups": groups_N}
        )
    separated = float(np.abs(y_N - expit(X_NB @ fit.params)).max()) < 1e-3
    if not fit.converged or separated or not np.isfinite(fit.bse[0]):
        return None
    return float(fit.params[0]), float(fit.bse[0])


def _over_seeds(known: pd.DataFrame) -> dict[str, float]:
    """Return the interval of the win rate for other seeds and other prompts; nan without seeds."""
    nothing = dict.fromkeys(("low_seeds", "high_seeds"), float("nan"))
    seeds = known["seed"].unique()
    if len(seeds) < 2 or known.duplicated(["seed", "item"]).any():
        return nothing
    table = known.pivot(index="seed", columns="item", values="preference").astype(float)
    wins_SI = table.to_numpy()
    runs = pd.DataFrame({"seed": [*table.index] * 2, "first": np.repeat([True, False], len(table))})
    columns = pd.DataFrame({"task": "judged", "doc_id": np.arange(wins_SI.shape[1])})
    items = Items(np.vstack([wins_SI, 1 - wins_SI]).astype(np.float32), runs, columns)
    try:
        both = paired(items, runs["first"], ~runs["first"]).both  # wins less losses
    except AnalysisError:
        return nothing
    if both is None:
        return nothing
    ends = (max(0.0, (1 + both.low) / 2), min(1.0, (1 + both.high) / 2))
    return dict(zip(nothing, ends, strict=True))


def _grade_row(own: pd.DataFrame) -> dict[str, Any]:
    first, second = (own[n].astype(float) for n in ("grade", "grade_baseline"))
    mean = clustered_mean(first, own["item"])
    gap = clustered_mean(first - second, own["item"])
    return {
        "prompts": own["item"].nunique(), "answers": len(own),
        "unparsable": int(first.isna().sum()),
        "grade": mean.estimate, "low": mean.low, "high": mean.high,
        "baseline_grade": float(second.mean()), "difference": gap.estimate,
        "difference_low": gap.low, "difference_high": gap.high,
    }  # fmt: skip


def clustered_mean(values: "pd.Series[float]", cluster: "pd.Series[Any]") -> Estimate:
    """Return a mean whose observations come in clusters; missing ones are left out.

    Its error is that of Liang and Zeger (1986) with the factor G / (G - 1), and a t of G - 1
    degrees of freedom; nan with fewer than two clusters.

    Args:
        values: the observations.
        cluster: of every one.
    """
    known = values.notna()
    y_N, own = values[known].to_numpy(float), cluster[known]
    if not len(y_N):
        return Estimate("mean", float("nan"), float("nan"), float("nan"), LEVEL)
    mean = float(y_N.mean())
    total_G = pd.Series(y_N - mean).groupby(own.to_numpy()).sum().to_numpy()
    count = len(total_G)
    if count < 2:
        return Estimate("mean", mean, float("nan"), float("nan"), LEVEL)
    se = float(np.sqrt(count / (count - 1) * (total_G @ total_G))) / len(y_N)
    return Estimate("mean", mean, se, count - 1.0, LEVEL)
