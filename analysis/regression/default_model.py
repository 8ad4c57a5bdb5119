"""The model that is fitted when none is given, built from the factors that vary in a table.

In every panel (data set x base model x task group), on means of runs:

    score ~ adapter + log2_rank:adapter     zero for full tuning, which has no rank
          + seed                            the block: same seed, same example order
          + wp:mode + I(wp^2):curved:mode   zero for modes of one level
          + (1 | cell)                      cells differ by more than these terms and chance say

There is no main effect of the mode: at PLW 0 all modes are the same run. Adapters differ in level
as well as in their slope over rank. Every other factor that varies (`analysis.table.factors`) has
an effect of its own, or is left out with a sentence why. The cell's effect is what makes an
interval hold for other cells of the kind, and not for these very cells alone: effects are compared
between cells, whose scores scatter by more than their seeds do. One formula serves all panels; a
panel does without the columns that its runs do not determine (`analysis.regression.panels`). Every
choice comes back as a sentence.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pandas as pd

from analysis.table.factors import DECADE, FULL, Factor, Factors, factors_of, is_number, is_setting
from analysis.table.frame import study_rows
from analysis.table.run_panels import PANEL

MANY = 8  # levels from which a factor can stand for a population
FEW = 4  # values up to which a number is modelled as categories
RANK_LEFT_OUT = (
    "rank varies but is not in the model: every adapter ran at one rank, so that no effect of the "
    "rank can be told apart from the adapter's."
)
MODELLED = ("masking", "plw", "rank", "seed")  # by w_p, mode, log2 rank and the block
PANELS = (
    "Every data set, base model and group of tasks has a model of its own, on means of runs: the "
    "noise of scores differs between them many times over."
)
CELL = (
    "Cells are a random effect: they scatter by more than their seeds, and an effect that is to "
    "hold for other cells must be held against that."
)
ONE_SEED = (
    "One seed a cell: what differs between cells cannot be told from what differs between seeds, "
    "so that nothing is called distinguishable."
)


STANDS_FOR = {  # derived columns by which a formula has a factor
    "masking": ("mode", "wp", "effective_plw"), "plw": ("wp", "effective_plw"),
    "rank": ("log2_rank",), "adapter": ("method",), "dataset": ("dataset_type", "rg"),
    "rate": ("lr",),
}  # fmt: skip


class DefaultModel(NamedTuple):
    """A formula, the reasons for it, and what it leaves out."""

    formula: str
    reasons: list[str]
    left_out: list[str]  # a sentence for every factor that varies and is not in the formula
    in_doubt: list[str]  # and for every one that is in it and cannot be told apart from the seed


@dataclass(slots=True)
class _Draft:
    terms: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    in_doubt: list[str] = field(default_factory=list)

    def add(self, term: str, reason: str = "") -> None:
        self.terms += [term] if term else []
        self.reasons += [reason] if reason else []


def default_formula(frame: pd.DataFrame) -> DefaultModel:
    """Return the formula of every panel's model for a results table, and why it is that.

    Args:
        frame: a prepared frame of `analysis.table.frame`, of a results table.
    """
    draft = _Draft()
    # The study rows have the usual level where a method has no such setting; the frame has none.
    only = {f.column: f.only for f in factors_of(frame)}
    rows = study_rows(frame)
    if len(rows[list(PANEL)].drop_duplicates()) > 1:
        draft.add("", PANELS)
    _terms(rows, only, draft)
    return DefaultModel(
        "score ~ " + (" + ".join(draft.terms) or "1"), draft.reasons, draft.left_out,
        draft.in_doubt,
    )  # fmt: skip


def pooled(columns: Collection[str], factors: Factors) -> list[str]:
    """Return a sentence for every factor that varies and that a given formula does not use.

    Args:
        columns: those of the formula.
        factors: of the rows that it was fitted to.
    """
    used = set(columns)
    return [
        f"{f.column} varies ({', '.join(f.levels)}) but is not in the formula: runs that differ in "
        f"it are pooled."
        for f in factors
        if f.part not in ("replicate", "control")
        and not used & {f.column, f.inside, *STANDS_FOR.get(f.column, ())}
    ]


def _varies(rows: pd.DataFrame, name: str) -> bool:
    return name in rows and rows[name].nunique() > 1


def _terms(rows: pd.DataFrame, only: Mapping[str, Sequence[str]], draft: _Draft) -> None:
    factors = factors_of(rows)
    chosen = _chosen(rows, factors, draft)
    for factor in chosen:
        draft.add(_term(rows, factor))
    _rank(rows, draft, "method" if _split(factors) else "adapter")
    _block(rows, draft)
    _dose(rows, draft)
    _say(rows, chosen, factors, only, draft)
    _cell(rows, draft)


def _split(factors: Factors) -> bool:
    """Return whether settings of the adapter vary, which then have effects beside its own."""
    return any(is_setting(f.column) for f in factors if f.inside == "adapter")


def _chosen(rows: pd.DataFrame, factors: Factors, draft: _Draft) -> list[Factor]:
    """Return the factors with an effect of their own; what cannot have one is left out and said.

    A factor cannot have one where those before it determine it, or where it would use up the runs.
    Data set and base model come first: what they determine does not vary within a panel.
    """
    runs = rows.drop_duplicates("run")
    x_RK, kept = np.ones((len(runs), 1)), []
    for factor in _candidates(rows, factors):
        levels_RL = pd.get_dummies(runs[factor.column].astype(str)).to_numpy(float)
        own_RK = np.hstack([x_RK, levels_RL])
        before, after = (np.linalg.matrix_rank(x) for x in (x_RK, own_RK))
        if factor.part == "stratum":
            x_RK = own_RK
        elif after == before:
            draft.left_out.append(_determined(factor, factors))
        elif is_setting(factor.column) and after >= len(runs):
            draft.left_out.append(
                f"{factor.column} varies but is not in the model: {len(runs)} runs are too few for "
                f"it beside the other factors. Runs that differ in it are pooled."
            )
        else:
            kept.append(factor)
            x_RK = own_RK
            if "seed" in factor.determined_by:
                draft.in_doubt.append(
                    f"{factor.column} is in the model, but every seed ran one level of it: its "
                    f"effect cannot be told apart from the seed's."
                )
    return kept


def _candidates(rows: pd.DataFrame, factors: Factors) -> list[Factor]:
    """Return the factors that may have an effect of their own, in the order of the formula."""
    split = _split(factors)
    found = []
    for factor in factors:
        if factor.column == "adapter" and split:
            if _varies(rows, "method"):
                found.append(Factor("method", "adapter", "arm", "categories", (), ""))
        elif factor.part in ("replicate", "control") or factor.column in MODELLED:
            continue
        elif not factor.inside or (split and factor.inside == "adapter"):
            found.append(factor)
    return found


def _determined(factor: Factor, factors: Factors) -> str:
    """Return the sentence on a factor that the factors before it determine."""
    by = [n for n in factor.determined_by if n in factors and factors[n].part != "control"]
    what = " and ".join(by[:1]) or "the other factors together"
    how = f"each level of {what} has one level of it" if by else f"{what} determine it"
    if by and by[0] in factor.aliases:
        how = f"it changes together with {what}, level by level"
    return (
        f"{factor.column} varies but is not in the model: {how}, so that no effect of its own can "
        f"be told apart, and differences between levels of {what} may be due to it."
    )


def _term(rows: pd.DataFrame, factor: Factor) -> str:
    """Return a factor as the formula has it: few values as categories, wide numbers by log10."""
    name = factor.column if factor.column.isidentifier() else f"`{factor.column}`"
    if factor.column == "rate":
        return "log10(rate)"
    if not is_setting(factor.column) or not is_number(rows[factor.column]):
        return name
    values = rows[factor.column].dropna()
    positive = values[values > 0]
    wide = len(positive) > 1 and positive.max() / positive.min() >= DECADE
    if values.nunique() <= (MANY if wide and values.min() == 0 else FEW):
        return f"C({name})"  # a number over decades with 0 among them is no line on any scale
    return f"log10({name})" if values.min() > 0 and values.max() / values.min() >= DECADE else name


def _scale(rows: pd.DataFrame, factor: Factor) -> str:
    """Return on which scale a number stands in the model as a line; "" for categories."""
    term = _term(rows, factor)
    if term.startswith("C(") or not is_number(rows[factor.column]):
        return ""
    return ", a line over its logarithm" if term.startswith("log10(") else ", a straight line"


def _say(
    rows: pd.DataFrame,
    chosen: list[Factor],
    factors: Factors,
    only: Mapping[str, Sequence[str]],
    draft: _Draft,
) -> None:
    """Say how every factor beside stratum, adapter and weight stands in the model."""
    for factor in chosen:
        if factor.column not in ("adapter", "method"):
            methods = " and ".join(only.get(factor.column, ()))
            where = f", among runs of {methods}, which alone have it" if methods else ""
            scale = _scale(rows, factor)
            draft.reasons.append(f"{factor.column} varies: an effect of its own{scale}{where}.")
    for factor in factors:
        if factor.inside in ("dataset", "model"):
            draft.reasons.append(
                f"{factor.column} varies: in the model as a part of {factor.inside}."
            )


def _block(rows: pd.DataFrame, draft: _Draft) -> None:
    """Add the seed: replicates of one seed share their example order."""
    seeds = rows["seed"].nunique()
    if 1 < seeds < MANY:
        draft.add("seed", f"{seeds} seeds are few: a fixed block, of which effects are free.")
    elif seeds >= MANY:
        draft.add("(1 | seed)", f"{seeds} seeds: a random block.")


def _dose(rows: pd.DataFrame, draft: _Draft) -> None:
    levels = rows["wp"].nunique() if "wp" in rows else 0
    if levels < 2:
        draft.add("", "The prompt loss weight does not vary.")
        return
    split = ["mode"] if _varies(rows, "mode") else []
    curved = levels > 2
    draft.add(":".join(["wp", *split]))
    lines = sorted(set(rows["mode"][rows["curved"] == 0].astype(str)))
    if curved and rows["curved"].any():
        # `curved` is zero for modes of one level, whose square would only repeat the line.
        draft.add(":".join(["I(wp^2)", *(["curved"] if lines else []), *split]))
    by = " by mode" if split else ""
    shape = "A quadratic" if curved else "A line"
    draft.reasons.append(
        f"{shape} in the effective prompt loss weight{by}; all modes share the intercept, because "
        f"at weight 0 they are the same run."
    )
    if curved and lines:
        draft.reasons.append(f"One level above 0, so a line without curvature: {', '.join(lines)}.")


def _rank(rows: pd.DataFrame, draft: _Draft, arm: str) -> None:
    if not _varies(rows, "log2_rank"):
        if rows.loc[rows["method"] != FULL, "rank"].nunique() > 1:
            draft.left_out.append(RANK_LEFT_OUT)
        return
    draft.add(
        ":".join(["log2_rank", *([arm] if _varies(rows, arm) else [])]),
        "log2 rank by adapter, centred on the middle rank; zero for full tuning, which has none.",
    )


def _cell(rows: pd.DataFrame, draft: _Draft) -> None:
    if rows["seed"].nunique() > 1:
        draft.add("(1 | cell)", CELL)
    else:
        draft.add("", ONE_SEED)
