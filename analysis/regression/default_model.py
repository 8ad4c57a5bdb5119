"""The model that is fitted when none is given, built from the factors that vary in a table.

    score ~ task * (dataset + adapter)            one intercept per task; the masking modes share it
          + dataset:seed                          the block: same seed, same example order
          + (wp + wp^2) : mode : task_group : dataset_type
          + adapter : log2_rank : task            zero for full tuning, which has no rank
          + (1 | run)                             the scores of one run are not independent

Every other factor that varies (`analysis.table.factors`) has an effect of its own by task, or is
left out with a sentence why. There is no main effect of the mode: at PLW 0 all modes are the same
run. Adapters differ in level as well as in their slope over rank; a model with slopes alone would
force LoRA and MoRA to agree at r0. Tasks are fixed unless there are at least 8 of them to speak
for a population; then they are random with their own slopes. Every choice comes back as a sentence.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pandas as pd

from analysis.table.factors import DECADE, FULL, Factor, Factors, factors_of, is_number, is_setting
from analysis.table.frame import study_rows

MANY = 8  # levels from which a factor can stand for a population
FEW = 4  # values up to which a number is modelled as categories
RANK_LEFT_OUT = (
    "rank varies but is not in the model: every adapter ran at one rank, so that no effect of the "
    "rank can be told apart from the adapter's."
)
MODELLED = ("masking", "plw", "rank", "seed")  # by w_p, mode, log2 rank and the block


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


@dataclass(slots=True)
class _Draft:
    terms: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def add(self, term: str, reason: str = "") -> None:
        self.terms += [term] if term else []
        self.reasons += [reason] if reason else []


def default_formula(frame: pd.DataFrame, *, dose: str = "wp", degree: int = 2) -> DefaultModel:
    """Return the default model's formula for the frame of a results table, and why it is that.

    Args:
        frame: a prepared frame of `analysis.table.frame`, of a results table.
        dose: the prompt loss weight's scale, "wp" or "effective_plw".
        degree: 2 for the quadratic, 1 for the line, 0 for no effect of the weight at all.
    """
    draft = _Draft()
    # The study rows have the usual level where a method has no such setting; the frame has none.
    only = {f.column: f.only for f in factors_of(frame)}
    _terms(study_rows(frame), only, draft, (dose, degree))
    return DefaultModel(
        "score ~ " + (" + ".join(draft.terms) or "1"), draft.reasons, draft.left_out
    )


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


def _terms(
    rows: pd.DataFrame, only: Mapping[str, Sequence[str]], draft: _Draft, scale: tuple[str, int]
) -> None:
    dose, degree = scale
    many = rows["task"].nunique() >= MANY
    unit = "task_group" if many else "task"
    unit = unit if _varies(rows, unit) else ""
    factors = factors_of(rows)
    chosen = _chosen(rows, factors, draft)
    others = [_term(rows, factor) for factor in chosen]
    together = " + ".join(others)
    if unit and others:
        together = f"{unit} * ({together})" if len(others) > 1 else f"{unit} * {together}"
    draft.add(together or unit)
    _tasks(rows, draft, dose, many)
    _block(rows, draft)
    _dose(rows, draft, dose, degree)
    _rank(rows, draft, unit, "method" if _split(factors) else "adapter")
    _say(rows, chosen, factors, only, draft)
    _run(rows, draft)


def _split(factors: Factors) -> bool:
    """Return whether settings of the adapter vary, which then have effects beside its own."""
    return any(is_setting(f.column) for f in factors if f.inside == "adapter")


def _chosen(rows: pd.DataFrame, factors: Factors, draft: _Draft) -> list[Factor]:
    """Return the factors with an effect of their own; what cannot have one is left out and said.

    A factor cannot have one where those before it determine it, or where it would use up the runs.
    """
    runs = rows.drop_duplicates("run")
    x_RK, kept = np.ones((len(runs), 1)), []
    for factor in _candidates(rows, factors):
        levels_RL = pd.get_dummies(runs[factor.column].astype(str)).to_numpy(float)
        own_RK = np.hstack([x_RK, levels_RL])
        before, after = (np.linalg.matrix_rank(x) for x in (x_RK, own_RK))
        if after == before:
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
                draft.left_out.append(
                    f"{factor.column} is in the model, but every seed ran one level of it: its "
                    f"mean effect over tasks cannot be told apart from the seed's."
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
        if factor.column not in ("dataset", "model", "adapter", "method"):
            methods = " and ".join(only.get(factor.column, ()))
            where = f", among runs of {methods}, which alone have it" if methods else ""
            scale = _scale(rows, factor)
            draft.reasons.append(f"{factor.column} varies: an effect of its own{scale}{where}.")
    for factor in factors:
        if factor.inside in ("dataset", "model"):
            draft.reasons.append(
                f"{factor.column} varies: in the model as a part of {factor.inside}."
            )


def _tasks(rows: pd.DataFrame, draft: _Draft, dose: str, many: bool) -> None:
    count = rows["task"].nunique()
    if many:
        slope = f"1 + {dose}" if _varies(rows, dose) else "1"
        draft.add(
            f"({slope} | task)", f"{count} tasks can speak for a population of tasks: random."
        )
        if _varies(rows, "dataset"):
            draft.add("(1 | task:dataset)", "Tasks answer to the data set each in its own way.")
    else:
        draft.reasons.append(
            f"{count} tasks are too few for a population: fixed, each with its own level."
        )


def _block(rows: pd.DataFrame, draft: _Draft) -> None:
    """Add the seed within the data set: replicates share their example order."""
    seeds = rows["seed"].nunique()
    if seeds < 2:
        draft.add("", "One seed: what varies from seed to seed is in no interval.")
        return
    group = "dataset:seed" if _varies(rows, "dataset") else "seed"
    if seeds < MANY:
        draft.add(
            group,
            f"{seeds} seeds are few: a fixed block within the data set. What differs between data "
            f"sets as wholes then holds for these seeds; effects within one are free of them.",
        )
    else:
        draft.add(f"(1 | {group})", f"{seeds} seeds: a random block within the data set.")


def _dose(rows: pd.DataFrame, draft: _Draft, dose: str, degree: int) -> None:
    levels = rows[dose].nunique() if dose in rows else 0
    if levels < 2 or degree == 0:
        draft.add("", "" if levels > 1 else "The prompt loss weight does not vary.")
        return
    split = [n for n in ("mode", "task_group", "dataset_type") if _varies(rows, n)]
    curved = degree == 2 and levels > 2
    draft.add(":".join([dose, *split]))
    lines = sorted(set(rows["mode"][rows["curved"] == 0].astype(str)))
    if curved and rows["curved"].any():
        # `curved` is zero for modes of one level, whose square would only repeat the line.
        draft.add(":".join([f"I({dose}^2)", *(["curved"] if lines else []), *split]))
    by = ", ".join(n.replace("_", " ") for n in split)
    shape = "A quadratic" if curved else "A line"
    draft.reasons.append(
        f"{shape} in the effective prompt loss weight{' by ' + by if by else ''}; all modes share "
        f"the intercept, because at weight 0 they are the same run."
    )
    if curved and lines:
        draft.reasons.append(f"One level above 0, so a line without curvature: {', '.join(lines)}.")


def _rank(rows: pd.DataFrame, draft: _Draft, unit: str, arm: str) -> None:
    if not _varies(rows, "log2_rank"):
        if rows.loc[rows["method"] != FULL, "rank"].nunique() > 1:
            draft.left_out.append(RANK_LEFT_OUT)
        return
    split = [n for n in (arm, unit) if n and _varies(rows, n)]
    draft.add(
        ":".join(["log2_rank", *split]),
        "log2 rank by adapter, centred on the middle rank; zero for full tuning, which has none.",
    )


def _run(rows: pd.DataFrame, draft: _Draft) -> None:
    if rows["run"].nunique() < 2:
        draft.add("", "One run: there is nothing to hold it against.")
    elif rows.groupby("run", observed=True).size().max() > 1:
        draft.add("(1 | run)", "One run feeds every task: run is a random effect.")
    else:
        draft.add("", "One score per run: the run effect and the residual are one.")
