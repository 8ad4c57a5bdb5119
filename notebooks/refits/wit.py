"""Prompt and response weight together: 525 published averages of Chatterjee et al. (2507.07817).

The loss is a weighted sum over all tokens, divided by the number of tokens of non-zero weight;
nothing is clipped and AdamW hardly sees a loss's scale. So runs of one panel (a base model on a
data set) whose weights have the same ratio are near-replicates, and what they differ by is noise:

    lambda_p = 0       five runs a panel
    lambda_r = 0       five runs a panel
    both above 0       (0.2, 0.2), (0.4, 0.4), ... and every other ratio met more than once

What can matter is the prompt's share s = lambda_p / (lambda_p + lambda_r). The decoupled weight
decay is the same whatever the scale; Adam's epsilon is the one place where scale enters.

Letters in names: B fixed effects.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from analysis.engine.linalg import Array
from analysis.engine.ties import first_largest
from analysis.inference.estimates import Estimate, LikelihoodRatio, contrast, likelihood_ratio
from analysis.inference.multiplicity import adjusted
from analysis.inference.winners import winner
from analysis.mixed import MixedFit, fit_mixed
from analysis.inference.optimum import Optimum, Quadratic, optimum
from analysis.papers.wit.pairs import cells, chosen_elsewhere, noise, on_responses, paired, size_effect

SURFACE = "lambda_p + I(lambda_p^2) + lambda_r + I(lambda_r^2) + lambda_p:lambda_r"
CURVE = "share + I(share^2)"
MOST = 5 / 6  # the largest share with a weight on the response: (1.0, 0.2)
CONVENTIONAL = (0.0, 1.0)
FULL = (1.0, 1.0)


def noises(table: pd.DataFrame, by: str) -> pd.DataFrame:
    """Return the noise by a column, "rows" or "model" say: sd, df."""
    found = {name: noise(part) for name, part in table.groupby(by, sort=False)}
    rows = [{by: name, "sd": n.sd, "df": n.df} for name, n in found.items()]
    return pd.DataFrame(rows)


@dataclass(frozen=True, slots=True)
class LackOfFit:
    """An F test of what a model leaves, against the spread of replicates."""

    statistic: float
    df: int
    df_noise: int
    p: float


def lack_of_fit(table: pd.DataFrame, fixed: str) -> LackOfFit:
    """Return whether `fixed` (with the panels' levels) leaves more than near-replicates do."""
    fit, pure = fit_mixed(table, f"score ~ {fixed}"), noise(table)
    left, df = float((fit.residuals**2).sum()), len(table) - len(fit.fixef) - pure.df
    ratio = (left - pure.sum_of_squares) / df / pure.sd**2
    return LackOfFit(ratio, df, pure.df, float(stats.f.sf(ratio, df, pure.df)))


def surface(table: pd.DataFrame, *, slopes: bool = True) -> MixedFit:
    """Return the quadratic surface over both weights; panels vary in level, and in slope."""
    random = "1 + lambda_p + lambda_r" if slopes else "1"
    return fit_mixed(table, f"score ~ {SURFACE} + ({random} | panel)")


def curve(table: pd.DataFrame, by: str = "", *, weights: str | None = None) -> MixedFit:
    """Return score against the prompt's share; every panel has its own quadratic at random.

    Args:
        table: as `cells` gives it.
        by: a column whose levels have curves of their own, "dataset" or "model".
        weights: as in `fit_mixed`.
    """
    fixed = f"{by} + {by}:share + {by}:I(share^2)" if by else CURVE
    return fit_mixed(table, f"score ~ {fixed} + (1 + {CURVE} | panel)", weights=weights)


def at_full_response(fit: MixedFit) -> Quadratic:
    """Return the surface's slice over lambda_p at lambda_r = 1."""
    return _quadratic(fit, {"lambda_p": 1.0, "lambda_p:lambda_r": 1.0}, {"I(lambda_p ** 2)": 1.0})


def _quadratic(fit: MixedFit, b1: Mapping[str, float], b2: Mapping[str, float]) -> Quadratic:
    l_2B = np.array([[part.get(str(n), 0.0) for n in fit.fixef.index] for part in (b1, b2)])
    slope, bend = (contrast(fit, l_B) for l_B in l_2B)
    cov_22 = l_2B @ fit.cov.to_numpy() @ l_2B.T
    return Quadratic(slope.estimate, bend.estimate, cov_22, min(slope.df, bend.df))


def share_curves(table: pd.DataFrame, by: str = "") -> dict[str, Quadratic]:
    """Return the curve over the prompt's share, all panels together or by a column's levels."""
    fit = curve(table, by)
    if not by:
        return {"all": _quadratic(fit, {"share": 1.0}, {"I(share ** 2)": 1.0})}
    return {
        str(level): _quadratic(
            fit, {f"{by}[{level}]:share": 1.0}, {f"{by}[{level}]:I(share ** 2)": 1.0}
        )
        for level in table[by].unique()
    }


def optima(table: pd.DataFrame) -> pd.DataFrame:
    """Return where score is best over the share: all, by data set and by model, with verdicts."""
    curves = {"all": share_curves(table)["all"]}
    for by in ("dataset", "model"):
        curves |= share_curves(table, by)
    return pd.DataFrame([_row(name, optimum(c, high=MOST)) for name, c in curves.items()])


def _row(name: str, found: Optimum) -> dict[str, object]:
    return {
        "where": name,
        "verdict": found.verdict,
        "share": found.at,
        "low": found.fieller[0],
        "high": found.fieller[1],
        "gain": found.gain,
        "gain_se": found.gain_se,
        "words": found.words,
    }


def by_panel(table: pd.DataFrame) -> pd.DataFrame:
    """Return each panel's own optimum, and whether its curve is flat (p-values by Holm).

    A panel's noise is that of its own 30 cells around its own quadratic.
    """
    rows = []
    for (model, dataset), part in _panels(table):
        fit = fit_mixed(part, f"score ~ {CURVE}")
        own = _quadratic(fit, {"share": 1.0}, {"I(share ** 2)": 1.0})
        at_half = own.gain(0.5)[0]
        row = {"model": model, "dataset": dataset, "at_half": at_half, "p": own.p}
        rows.append(row | _row("", optimum(own, high=MOST)))
    found = pd.DataFrame(rows).drop(columns="where")
    return found.assign(p_holm=adjusted(found["p"].to_numpy(), "holm"))


def jumps(table: pd.DataFrame) -> pd.DataFrame:
    """Return of every panel what any weight on the prompt does beyond its quadratic, in points.

    The normaliser counts tokens of non-zero weight, so it jumps where lambda_p leaves zero; a
    quadratic that rests on share 0 mistakes such a jump for curvature.
    """
    found = []
    for (model, dataset), part in _panels(table):
        own = part.assign(some=(part["share"] > 0).astype(float))
        fit = fit_mixed(own, f"score ~ {CURVE} + some")
        at = np.array([float(name == "some") for name in fit.fixef.index])
        found.append({"model": model, "dataset": dataset, **contrast(fit, at).row()})
    rows = pd.DataFrame(found).drop(columns="name")
    return rows.assign(p_holm=adjusted(rows["p"].to_numpy(), "holm"))


def panels_differ(table: pd.DataFrame) -> LikelihoodRatio:
    """Return whether the curve over the share differs between panels at all."""
    return likelihood_ratio(fit_mixed(table, f"score ~ {CURVE} + (1 | panel)"), curve(table))


def best_cells(table: pd.DataFrame) -> pd.DataFrame:
    """Return of every panel the best cell, its gain over lambda = (0, 1), and its selection bias.

    `bias` is the mean of the largest of as many draws as there are cells, of the noise of all
    panels of this model, when no cell differs from another: one cell is the reference, and its
    noise cancels on average. `corrected` is the winner's conditional estimate less the mean of the
    five lambda_p = 0 cells.
    """
    sd = noises(table, "model").set_index("model")["sd"]
    return pd.DataFrame([_best(part, float(sd[model])) for (model, _), part in _panels(table)])


def _panels(table: pd.DataFrame) -> list[tuple[tuple[str, str], pd.DataFrame]]:
    return [((str(a), str(b)), part) for (a, b), part in table.groupby(["model", "dataset"])]


def _best(part: pd.DataFrame, sd: float) -> dict[str, object]:
    best = part.to_dict("records")[first_largest(part["score"])]
    reference = float(_at(part, CONVENTIONAL)["score"].iloc[0])
    plain = float(part.loc[part["share"] == 0, "score"].mean())
    hybrid = winner(part["score"].to_numpy(), sd**2 * np.eye(len(part))).hybrid
    return {
        "panel": best["panel"],
        "lambda_p": best["lambda_p"],
        "lambda_r": best["lambda_r"],
        "gain": best["score"] - reference,
        "relative": 100 * (best["score"] / reference - 1),
        "bias": sd * largest_of(len(part)),
        "corrected": hybrid.estimate - plain,
    }


def _at(table: pd.DataFrame, weights: tuple[float, float]) -> pd.DataFrame:
    return table[(table["lambda_p"] == weights[0]) & (table["lambda_r"] == weights[1])]


def largest_of(draws: int) -> float:
    """Return the mean of the largest of so many standard normal draws."""
    z = np.linspace(-9, 9, 20001)
    density = draws * stats.norm.pdf(z) * stats.norm.cdf(z) ** (draws - 1)
    return float(np.trapezoid(z * density, z))


def settings_against_plain(table: pd.DataFrame) -> pd.DataFrame:
    """Return every ratio's mean gain over lambda_p = 0, paired by panel, and p-values by Holm.

    The plain mean is over five runs a panel, as they are near-replicates.
    """
    wide = table.groupby(["panel", "ratio"])["score"].mean().unstack()
    gains = wide.drop(columns="0.0000").sub(wide["0.0000"], axis=0)
    rows = [paired(str(name), gains[name].to_numpy()) for name in gains]
    found = pd.DataFrame([e.row() for e in rows]).rename(columns={"name": "share"})
    return found.assign(p_holm=adjusted(found["p"].to_numpy(), "holm"))
