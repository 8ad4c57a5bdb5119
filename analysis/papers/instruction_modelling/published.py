"""The published numbers of instruction modelling: seven data sets, one run each of IT and of IM.

IT has the loss on outputs, IM on everything. The data set is the unit: score ~ method +
(1 | dataset), which is the paired t test with six degrees of freedom.
"""

import numpy as np
import pandas as pd

from analysis.errors import AnalysisError, listed, nearest
from analysis.inference.estimates import Estimate, contrast
from analysis.inference.multiplicity import adjusted
from analysis.mixed import MixedFit, fit_mixed
from analysis.table.published import read

HEADLINES = ("nlp_mean", "mt_bench", "alpacaeval1", "alpacaeval2")
CATEGORIES = (
    "understanding_knowledge", "multilinguality", "commonsense", "math_code", "bbh",
    "safety_helpfulness",
)  # fmt: skip
INVERTED = "multilinguality"  # holds TER, an error rate, added as if higher were better
LONG = 3.0  # instruction to output: the gap in the published points lies here


def table1() -> pd.DataFrame:
    """Return the seven pairs in long form: dataset, method (IT, IM), measure, value.

    Two measures are added: `nlp_mean_5`, the mean without the partly inverted category, and
    `alpacaeval1_relative`, in percent of IT as in the paper's figure 2.
    """
    scores = read("im_scores")
    scores = scores[(scores["place"] == "table 1") & scores["method"].isin(["IT", "IM"])]
    wide = scores.pivot(index=["dataset", "method"], columns="measure", values="value")
    kept = [c for c in CATEGORIES if c != INVERTED]
    wide["nlp_mean_5"] = wide[kept].mean(axis=1)
    base = wide["alpacaeval1"].xs("IT", level="method")
    own = wide.index.get_level_values("dataset")
    wide["alpacaeval1_relative"] = 100 * (wide["alpacaeval1"].to_numpy() / base[own].to_numpy() - 1)
    return wide.reset_index().melt(["dataset", "method"], var_name="measure")


def gain(pairs: pd.DataFrame, measure: str) -> Estimate:
    """Return IM less IT of one measure, over data sets.

    Raises:
        AnalysisError: there is no such measure.
    """
    own = pairs[pairs["measure"] == measure]
    known = list(pairs["measure"].unique())
    if not len(own):
        near = nearest(measure, known)
        raise AnalysisError(f"measure={measure}: not one of {listed(known)}.{near}")
    own = own.assign(im=(own["method"] == "IM").astype(float))
    fit = fit_mixed(own, "value ~ im + (1 | dataset)")
    return contrast(fit, np.array([0.0, 1.0]), name=measure)


def gains(pairs: pd.DataFrame, measures: tuple[str, ...] = HEADLINES) -> pd.DataFrame:
    """Return a row per measure: IM less IT, its interval, p, p by Holm, and data sets gaining."""
    rows = [gain(pairs, m).row() | {"wins": wins(pairs, m)} for m in measures]
    found = pd.DataFrame(rows).rename(columns={"name": "measure"})
    return found.assign(p_holm=adjusted(found["p"].to_numpy(), "holm"))


def wins(pairs: pd.DataFrame, measure: str) -> int:
    """Return on how many data sets IM is ahead."""
    return int((differences(pairs)[measure] > 0).sum())


def differences(pairs: pd.DataFrame) -> pd.DataFrame:
    """Return IM less IT, a row per data set and a column per measure, with log_ratio.

    log_ratio is the natural logarithm of the instruction's over the output's mean length.
    """
    wide = pairs.pivot(index=["dataset", "measure"], columns="method", values="value")
    found = (wide["IM"] - wide["IT"]).unstack()
    sets = read("im_datasets").set_index("dataset").loc[found.index]
    found["alpacaeval1_relative"] = pairs[
        (pairs["measure"] == "alpacaeval1_relative") & (pairs["method"] == "IM")
    ].set_index("dataset")["value"]
    return found.assign(log_ratio=np.log(sets["ratio"]), log_n=np.log(sets["n_examples"]))


def over_ratio(frame: pd.DataFrame, score: str, x: str = "log_ratio") -> Estimate:
    """Return the slope of a score over the logarithm of the ratio, or of another column."""
    return slope(fit_mixed(frame, f"{score} ~ {x}"), x)


def slope(fit: MixedFit, x: str) -> Estimate:
    """Return one coefficient with its uncertainty."""
    return contrast(fit, np.array([float(n == x) for n in fit.fixef.index]), name=x)


def figure2(panel: str, *, corrected: bool = False) -> pd.DataFrame:
    """Return the points of one panel of figure 2, "ratio" or "examples", with log_x and long.

    Args:
        panel: which one.
        corrected: take ratios from table 5 and gains from table 1 where the figure differs: it
            draws WizardLM at output over instruction, and has two gains that table 1 has not.
    """
    points = read("im_gains")
    points = points[points["panel"] == panel].reset_index(drop=True)
    if corrected:
        ratio = points["dataset"].map(read("im_datasets").set_index("dataset")["ratio"])
        points["x"] = ratio.where(points["panel"] == "ratio").fillna(points["x"])
        points["gain"] = points["gain_from_table1"].fillna(points["gain"])
    return points.assign(log_x=np.log(points["x"]), long=points["x"] > LONG)
