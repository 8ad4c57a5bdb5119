"""The model that is fitted when none is given, built from the factors that vary in a table.

    score ~ task * (dataset + adapter)            one intercept per task; the masking modes share it
          + dataset:seed                          the block: same seed, same example order
          + (wp + wp^2) : mode : task_group : dataset_type
          + adapter : log2_rank : task            zero for full tuning, which has no rank
          + (1 | run)                             the scores of one run are not independent

There is no main effect of the mode: at PLW 0 all modes are the same run. Adapters differ in level
as well as in their slope over rank; a model with slopes alone would force LoRA and MoRA to agree
at r0. Tasks are fixed unless there are at least 8 of them to speak for a population; then they
are random with their own slopes. Every choice comes back as a sentence.
"""

from dataclasses import dataclass, field

import pandas as pd

from analysis.errors import AnalysisError
from analysis.mixed import MixedFit, fit_mixed
from analysis.table.frame import is_results, study_rows

MANY = 8  # levels from which a factor can stand for a population
PLAIN = (
    "normaliser",
    "scope",
    "embeddings",
    "placement",
    "regulariser",
    "base_precision",
    "completion_weight",
    "train",
    "rate",
)  # other factors, as they are


@dataclass(slots=True)
class _Draft:
    terms: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    def add(self, term: str, reason: str = "") -> None:
        self.terms += [term] if term else []
        self.reasons += [reason] if reason else []


def default_formula(
    frame: pd.DataFrame, *, dose: str = "wp", degree: int = 2
) -> tuple[str, list[str]]:
    """Return the default model's formula for a frame of `analysis.table.frame`, and why it is that.

    Args:
        frame: a prepared frame. For a table that is not ours the formula has every usable column.
        dose: the prompt loss weight's scale, "wp" or "effective_plw".
        degree: 2 for the quadratic, 1 for the line, 0 for no effect of the weight at all.
    """
    draft = _Draft()
    if is_results(frame):
        _ours(study_rows(frame), draft, dose, degree)
    else:
        _strangers(frame, draft, degree)
    return "score ~ " + (" + ".join(draft.terms) or "1"), draft.reasons


def fit_default(
    frame: pd.DataFrame, *, dose: str = "wp", method: str = "REML"
) -> tuple[MixedFit, list[str]]:
    """Return the fit of the default model on the study's rows, and the reasons for its formula."""
    formula, reasons = default_formula(frame, dose=dose)
    rows = study_rows(frame) if is_results(frame) else frame
    return fit_mixed(rows, formula, method=method), reasons


def _varies(rows: pd.DataFrame, name: str) -> bool:
    return name in rows and rows[name].nunique() > 1


def _ours(rows: pd.DataFrame, draft: _Draft, dose: str, degree: int) -> None:
    many = rows["task"].nunique() >= MANY
    unit = "task_group" if many else "task"
    unit = unit if _varies(rows, unit) else ""
    others = [n for n in ("dataset", "model", "adapter", *PLAIN) if _varies(rows, n)]
    together = " + ".join("log10(rate)" if n == "rate" else n for n in others)
    if unit and others:
        together = f"{unit} * ({together})" if len(others) > 1 else f"{unit} * {together}"
    draft.add(together or unit)
    _tasks(rows, draft, dose, many)
    _block(rows, draft)
    _dose(rows, draft, dose, degree)
    _rank(rows, draft, unit)
    draft.reasons += [f"{n} varies: an effect of its own." for n in PLAIN if n in others]
    _run(rows, draft)


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


def _rank(rows: pd.DataFrame, draft: _Draft, unit: str) -> None:
    if not _varies(rows, "log2_rank"):
        return
    split = [n for n in ("adapter", unit) if n and _varies(rows, n)]
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


def _strangers(frame: pd.DataFrame, draft: _Draft, degree: int) -> None:
    """Build a main-effects model from whatever columns there are."""
    score = frame.attrs.get("score", "score")
    for name in frame.columns.drop(["score", score], errors="ignore"):
        quoted = name if name.isidentifier() else f"`{name}`"
        column = frame[name]
        levels = column.nunique()
        if levels < 2:
            draft.add("", f"{name} does not vary: left out.")
        elif name in ("plw", "effective_plw") and "wp" in frame:
            draft.add("", f"{name} stands in the model as wp = PLW^0.30103.")
        elif name == "seed" and levels < MANY:
            draft.add("C(seed)", f"seed: a fixed block of {levels}, its number means nothing.")
        elif pd.api.types.is_numeric_dtype(column) and column.dtype != bool:
            curved = name == "wp" and levels > 2 and degree == 2
            draft.add(f"{quoted} + I({quoted}^2)" if curved else quoted, f"{name}: a number.")
        elif levels >= len(frame) / 2:
            draft.add("", f"{name} has almost as many levels as there are rows: left out.")
        elif levels >= MANY:
            draft.add(f"(1 | {quoted})", f"{name} has {levels} levels: random.")
        else:
            draft.add(quoted, f"{name} has {levels} levels: fixed.")
    if not draft.terms:
        raise AnalysisError(f"table: no column beside {score} varies in a usable way")
