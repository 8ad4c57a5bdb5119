"""LoRA against full tuning (Biderman et al., arXiv 2405.09673): one run a cell, fitted again.

Four settings (code and math, continued pretraining and instruction tuning), four arms (full and
LoRA of rank 16, 64, 256) and 5 or 8 budgets. Every budget is shared by the four arms, so it is a
random effect. No arm was run twice: between runs nothing is known, and what the residual measures
is how far the arms' own curves bend. In continued pretraining a budget is a branch of the one run,
so that its 8 points are not 8 runs.

A second noise is known without any repeat: that of a benchmark's own items, sqrt(p (1 - p) / n) of
n problems. For HumanEval, where every problem is tried 50 times, it is an upper bound (problems
that are always or never solved), and on shared problems differences vary less than two such terms.
"""

import numpy as np
import pandas as pd

from analysis.inference.selection import against_best, letters
from analysis.inference.comparisons import Comparisons, against
from analysis.inference.estimates import Joint, joint
from analysis.inference.means import Means, means, slopes
from analysis.mixed import MixedFit, fit_mixed
from analysis.table.published import read

ITEMS = {"code": 164, "math": 1319}  # HumanEval; the test part of GSM8K
ARMS = ("full", "lora 256", "lora 64", "lora 16")
SETTINGS = ("code CPT", "code IFT", "math CPT", "math IFT")
LEARNING = "target ~ arm + log2_x + I(log2_x^2) + (1 | budget)"
GROWING = "target ~ arm * log2_x + I(log2_x^2) + (1 | budget)"
TRADED = "source ~ target + I(target^2) + arm"


def points() -> pd.DataFrame:
    """Return 104 rows: setting, arm, budget, log2_x, target and source in points."""
    table = read("lora_tradeoffs")
    table = table[(table["source"] == "table") & table["domain"].isin(list(ITEMS))]
    rank = table["rank"].fillna("")
    table = table.assign(
        setting=table["domain"] + " " + table["regime"],
        arm=np.where(table["method"] == "full", "full", "lora " + rank),
        budget=table["x"].astype(str),
        log2_x=np.log2(table["x"]),
        side=np.where(table["measure"] == "source_mean", "source", "target"),
        points=100 * table["value"],
    )
    keys = ["domain", "setting", "arm", "budget", "log2_x"]
    return table.pivot(index=keys, columns="side", values="points").reset_index()


def of(table: pd.DataFrame, setting: str) -> pd.DataFrame:
    """Return one setting's rows, the arms as ordered categories."""
    own = table[table["setting"] == setting].reset_index(drop=True)
    return own.assign(arm=pd.Categorical(own["arm"], ARMS))


def behind_full(own: pd.DataFrame, score: str = "target") -> Comparisons:
    """Return every rank less full tuning, at equal budgets (Dunnett's comparisons)."""
    fit = fit_mixed(own, LEARNING.replace("target", score, 1))
    return against(means(fit, own, of="arm"), "full")


def at_matched_learning(own: pd.DataFrame, *, budgets: bool = False) -> Comparisons:
    """Return the source score of every rank less full tuning's, at equal target scores.

    Args:
        own: one setting's rows.
        budgets: whether the budget is held as well, which is another question: matched learning
            after the same number of tokens rather than whenever it is reached.
    """
    fit = fit_mixed(own, TRADED + (" + (1 | budget)" if budgets else ""))
    return against(means(fit, own, of="arm"), "full")


def gains_per_doubling(own: pd.DataFrame) -> tuple[Means, Joint]:
    """Return what a doubling of the budget gives each arm, and the F test that all are equal."""
    fit = fit_mixed(own, GROWING)
    return slopes(fit, own, "log2_x", of="arm"), _interaction(fit)


def _interaction(fit: MixedFit) -> Joint:
    extra = [i for i, name in enumerate(fit.fixef.index) if "arm" in name and "log2_x" in name]
    return joint(fit, np.eye(len(fit.fixef))[extra])


def peaks(own: pd.DataFrame, *, last: bool = False) -> pd.DataFrame:
    """Return each arm's best (or last) target score, its items' noise, and who may be the best.

    `possible` is Hsu's 95 % confidence set for the best, `letters` all pairs at once, both with
    the items as the only noise and as if drawn anew for each arm.
    """
    rows = own["log2_x"] == own["log2_x"].max() if last else own["log2_x"] > -np.inf
    score = own[rows].groupby("arm", observed=True)["target"].max()
    share = score.to_numpy(dtype=np.float64) / 100
    cov = np.diag(1e4 * share * (1 - share) / ITEMS[str(own["domain"].iloc[0])])
    found = pd.DataFrame({"arm": score.index.astype(str), "score": score.to_numpy()})
    return found.assign(
        se=np.sqrt(np.diagonal(cov)),
        possible=against_best(score.to_numpy(), cov).possible_K,
        letters=letters(score.to_numpy(), cov),
    )


def leaders(table: pd.DataFrame, *, last: bool = False) -> pd.DataFrame:
    """Return `peaks` of all four settings."""
    return pd.concat(
        [peaks(of(table, s), last=last).assign(setting=s) for s in SETTINGS], ignore_index=True
    )
