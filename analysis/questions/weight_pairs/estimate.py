"""Whether a pair of weights, p of the prompt's tokens and a of the answer's, is more than p / a.

Two published losses weigh both ("Weighted Instruction Tuning", Chatterjee et al., arXiv
2507.07817, grids p and a; "Does Prompt Loss Matter?", arXiv 2401.13586, has p alone, at a = 1).
Under `loss.normaliser=weight` a pair is its ratio: the loss is divided by the sum of the weights,
and the framework trains pairs of one ratio once. Under `nonzero`, which is theirs, the loss is
divided by the number of tokens with any weight, so that both weights times c multiply the gradient
by c. Adam hardly minds; clipping, weight decay and epsilon do.

Within a panel (data set, base model, group of tasks), where the mean of run i is score_i,

    score_i = ratio + block + b s_i + cell + noise          s = log2 of the larger weight

b is the change per doubling of both weights. Ratios have a level each, so that only pairs of one
ratio are compared; a cell is a pair and random where seeds repeat it, so that what b misses
widens its interval.

How well pairs are foreseen is told by the error for a pair that is left out of the fit, of three
surfaces over the means of pairs:

    ratio             1 + q + q^2                  q = p / (p + a), the prompt's share
    ratio and scale   1 + q + q^2 + s
    both weights      1 + p + a + p^2 + p a + a^2

beside the error of the mean of all pairs, and the noise of the mean of one pair. Pairs with a = 0
are left out there.

Letters in names: C cells (pairs), K terms.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import pandas as pd

from analysis.engine.linalg import Array, independent_columns
from analysis.errors import AnalysisError
from analysis.inference.estimates import Estimate, contrast
from analysis.mixed import fit_mixed
from analysis.regression.study import PAIRED, Study
from analysis.table.cell_effect import cell_formula
from analysis.table.cells import run_means
from analysis.table.run_panels import grouped, usual_rows

DF = "kenward-roger"
WEIGHTS = ("plw", "completion_weight")
PANEL = ("dataset", "model", "mode", "task_group")
FEWEST = 8  # pairs, from which surfaces of six coefficients are held against each other
SURFACES = ("mean", "ratio", "ratio and scale", "both weights")
PROMPT_ALONE = "prompt alone"


@dataclass(frozen=True)
class Pairs:
    """The pairs of one panel.

    Attributes:
        labels: of the panel.
        cells: prompt, answer, ratio, share, scale, runs, score: a row per pair.
        per_doubling: the change of the score with both weights doubled, in points.
        doublings: from the smallest scale of a ratio to its largest, the most of all ratios.
        noise: standard deviation of one run's score about its pair, from seeds; else from pairs of
            one ratio, which holds the effect of the scale as well.
        replicated: whether seeds repeat the pairs.
    """

    labels: dict[str, str]
    cells: pd.DataFrame
    per_doubling: Estimate
    doublings: float
    noise: float
    replicated: bool

    @property
    def change(self) -> Estimate:
        """The change from the smallest scale that was tried to the largest, in points."""
        one, times = self.per_doubling, self.doublings
        return replace(one, estimate=one.estimate * times, se=one.se * times)

    @property
    def errors(self) -> pd.DataFrame:
        """The root mean square error for a pair left out: a row per surface, beside the noise."""
        cells = self.cells[self.cells["answer"] > 0]  # all of the prompt alone are far below
        y_C, runs = cells["score"].to_numpy(dtype=float), float(cells["runs"].mean())
        rows = [(name, left_out_error(terms(cells, name), y_C)) for name in SURFACES]
        table = pd.DataFrame(rows, columns=["surface", "rmse"])
        return table.assign(noise=self.noise / np.sqrt(runs), pairs=len(y_C))


def pairs_of(study: Study) -> list[Pairs]:
    """Return the pairs of every panel; none where no ratio ran at several scales."""
    if not study.paired:
        return []
    rows = study.rows[study.rows["normaliser"].astype(str) == PAIRED]
    rows = rows.loc[usual_rows(rows.drop(columns=[*WEIGHTS, "wp", "effective_plw"])).index]
    every = rows["mode"].astype(str) if "mode" in rows else pd.Series("", rows.index)
    trained = sorted(every[rows["plw"].astype(float) > 0].unique())
    found = []
    for mode in trained:
        own = rows[(every == mode) | (rows["plw"].astype(float) == 0)].assign(mode=mode)
        for labels, panel in grouped(own, PANEL):
            runs = run_means(panel)
            if one := pairs(_with_blocks(runs), labels):
                found.append(one)
    return found


def _with_blocks(runs: pd.DataFrame) -> pd.DataFrame:
    numbers = {"prompt": runs["plw"].astype(float), "answer": runs["completion_weight"]}
    block = runs["block"] if "block" in runs else runs["seed"]
    return runs.assign(**numbers, block=block.astype(str))


def pairs(runs: pd.DataFrame, labels: Mapping[str, str]) -> Pairs | None:
    """Return the pairs of one panel; None without a ratio at two scales, or without any noise.

    Args:
        runs: prompt, answer, score, block: a row per run.
        labels: of the panel.
    """
    frame = with_ratio(runs)
    spread = frame.groupby("ratio")["scale"].agg(lambda s: s.max() - s.min())
    if not (spread > 0).any() or frame["cell"].nunique() < FEWEST:
        return None
    block = " + block" if frame["block"].nunique() > 1 else ""
    formula, replicated = cell_formula(f"score ~ ratio + s{block} + (1 | cell)", frame)
    try:
        fit = fit_mixed(frame, formula)
        slope = contrast(fit, (fit.fixef.index == "s").astype(float), df=DF)
    except AnalysisError:
        return None
    cells = frame.groupby("cell", sort=False).agg(
        prompt=("prompt", "first"), answer=("answer", "first"), ratio=("ratio", "first"),
        share=("share", "first"), scale=("scale", "first"), runs=("score", "size"),
        score=("score", "mean"),
    )  # fmt: skip
    group = ["cell"] if replicated else ["ratio"]
    return Pairs(
        dict(labels), cells.reset_index(drop=True), slope, float(spread.max()),
        _within(frame, group), replicated,
    )  # fmt: skip


def with_ratio(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the runs with ratio, share q, scale, s about its ratio's mean, and cell.

    Raises:
        AnalysisError: a pair of two weights 0.
    """
    prompt, answer = runs["prompt"].astype(float), runs["answer"].astype(float)
    if ((prompt <= 0) & (answer <= 0)).any():
        raise AnalysisError("a pair of weights must have one above 0")
    ratio = [_ratio(p, a) for p, a in zip(prompt, answer, strict=True)]
    frame = pd.DataFrame({"score": runs["score"].astype(float), "block": runs["block"]})
    frame = frame.assign(
        prompt=prompt, answer=answer, ratio=ratio, share=prompt / (prompt + answer),
        scale=np.log2(np.maximum(prompt, answer)),
        cell=[f"{p:g} {a:g}" for p, a in zip(prompt, answer, strict=True)],
    )  # fmt: skip
    return frame.assign(s=frame["scale"] - frame.groupby("ratio")["scale"].transform("mean"))


def _ratio(prompt: float, answer: float) -> str:
    """Return the name of a ratio: weights are decimals, which floats hold only nearly."""
    if answer == 0:
        return PROMPT_ALONE
    return str((Fraction(prompt) / Fraction(answer)).limit_denominator(1000))


def _within(frame: pd.DataFrame, names: list[str]) -> float:
    """Return the pooled standard deviation of scores, less their block's, within groups."""
    score = frame["score"] - frame.groupby("block")["score"].transform("mean")
    groups = score.groupby([frame[n] for n in names])
    freedom = len(score) - groups.ngroups - (frame["block"].nunique() - 1)
    squares = float(((score - groups.transform("mean")) ** 2).sum())
    return float(np.sqrt(squares / freedom)) if freedom > 0 else float("nan")


def terms(cells: pd.DataFrame, surface: str) -> Array:
    """Return the terms of one of `SURFACES` at every pair, (C, K)."""
    p_C, a_C, q_C, s_C = (
        cells[n].to_numpy(dtype=float) for n in ("prompt", "answer", "share", "scale")
    )
    one_C = np.ones_like(p_C)
    columns = {
        "mean": [one_C],
        "ratio": [one_C, q_C, q_C**2],
        "ratio and scale": [one_C, q_C, q_C**2, s_C],
        "both weights": [one_C, p_C, a_C, p_C**2, p_C * a_C, a_C**2],
    }
    return np.column_stack(columns[surface])


def left_out_error(x_CK: Array, y_C: Array) -> float:
    """Return the root mean square error of each row's prediction from all other rows.

    By the identity e_i / (1 - h_ii) of least squares (Allen 1974, PRESS); NaN where a row alone
    determines a coefficient.
    """
    x_CK = x_CK[:, independent_columns(x_CK)]
    q_CK = np.linalg.qr(x_CK)[0]
    h_C = (q_CK**2).sum(axis=1)
    if (h_C > 1 - 1e-9).any():
        return float("nan")
    e_C = (y_C - q_CK @ (q_CK.T @ y_C)) / (1 - h_C)
    return float(np.sqrt((e_C**2).mean()))
