"""The default model, fitted panel by panel, and the curves over the weight that it gives.

A panel does without what its runs do not determine: the engine leaves out columns that others
determine, and the cell's effect stands where it can be estimated (`table.cell_effect`). Without
replicates a fit has an error, but that of cells and of seeds in one, and nothing of it is called
distinguishable.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd

from analysis.errors import AnalysisError
from analysis.inference.mean_response import Response, response
from analysis.mixed import fit_mixed
from analysis.regression.model import Regression, Request, df_rule
from analysis.regression.propose import Proposal
from analysis.report import words
from analysis.table.cell_effect import cell_formula
from analysis.table.run_panels import CURVE, PANEL, RunPanel, curves_of, grouped, task_panels

# Of every model of a study, in place of what the table says (`Regression`).
SCORE, POINTS = "score", "points"
ADJUSTMENT = "families of comparisons and joint tests are adjusted by Holm's method"
FEWEST = 3  # runs
RULE = "satterthwaite"
SAME_RULE = "the rule of every study's report, so that reports compare"


@dataclass(frozen=True)
class PanelModel(Regression):
    """The model of one panel: its rows are the means of runs."""

    labels: dict[str, str]  # of PANEL
    replicated: bool  # whether some cell ran under several seeds
    score = SCORE
    unit = POINTS
    adjustment = ADJUSTMENT


@dataclass(frozen=True, slots=True)
class Lost:
    """A panel that no model can be fitted to."""

    labels: dict[str, str]
    reason: str


@dataclass(frozen=True, slots=True)
class DoseCurve:
    """One masking mode in one panel: the rows of a fit that its curve is averaged over."""

    labels: dict[str, str]  # of CURVE
    reg: Regression
    rows: pd.DataFrame  # of the whole panel, the mode set, so that the weight is left to choose
    levels: int  # distinct weights above 0 that were run
    runs: int  # of the mode, and at weight 0
    replicated: bool

    def response(self, *, variable: str = "wp") -> Response:
        """Return the curve as contrasts of the fit."""
        return response(self.reg.fit, self.rows, variable, df=self.reg.df)


def panel_models(
    rows: pd.DataFrame, formula: str, request: Request
) -> tuple[list[PanelModel], list[Lost]]:
    """Return the model of every panel of study rows, and the panels that have none.

    Args:
        rows: of `table.frame.study_rows`.
        formula: of every panel, see `default_model`.
        request: its weights, rule for degrees of freedom and margin are used.

    Raises:
        AnalysisError: the rule for degrees of freedom cannot be had.
    """
    found: list[PanelModel] = []
    lost: list[Lost] = []
    for panel in task_panels(rows, weights=request.weights):
        try:
            found.append(panel_model(panel, formula, request))
        except AnalysisError as error:
            lost.append(Lost(panel.labels, str(error).removeprefix("score=score: ")))
    return found, lost


def panel_model(panel: RunPanel, formula: str, request: Request) -> PanelModel:
    """Return the model of one panel.

    Raises:
        AnalysisError: it cannot be fitted to these runs.
    """
    if len(panel.runs) < FEWEST:
        count = words.count(len(panel.runs), "run")
        raise AnalysisError(f"{count}, too few for a model")
    if panel.runs["score"].nunique() == 1:
        raise AnalysisError("every run has the same score")
    own, replicated = cell_formula(formula, panel.runs)
    fit = fit_mixed(panel.runs, own, weights=request.weights)
    rule, why = df_rule(fit, request.df or RULE)
    return PanelModel(
        frame=panel.runs,
        proposal=Proposal(own, "gaussian", request.weights, ()),
        asked=fit,
        fit=fit,
        steps=(),
        df=rule,
        df_reason=why if request.df else SAME_RULE,
        margin=request.margin,
        labels=panel.labels,
        replicated=replicated,
    )


def dose_curves(models: Sequence[PanelModel]) -> Iterator[DoseCurve]:
    """Yield every curve of the panels' models that ran a weight above 0."""
    for model in models:
        yield from _curves(model, model.frame, model.labels, replicated=model.replicated)


def joint_curves(reg: Regression, rows: pd.DataFrame) -> Iterator[DoseCurve]:
    """Yield every curve of one model of all scores, such as a formula of the user's own.

    Args:
        reg: the model.
        rows: of the study, one per run and task.
    """
    for (labels, own), panel in zip(grouped(rows, PANEL), task_panels(rows), strict=True):
        yield from _curves(reg, own, labels, replicated=bool(panel.runs["cell"].duplicated().any()))


def _curves(
    reg: Regression, rows: pd.DataFrame, labels: dict[str, str], *, replicated: bool
) -> Iterator[DoseCurve]:
    for mode, own in curves_of(rows):
        above = own[own["wp"] > 0]
        chosen = rows.assign(mode=mode, curved=float(above["curved"].iloc[0]))
        yield DoseCurve(
            labels={n: ({"mode": mode} | labels)[n] for n in CURVE},
            reg=reg,
            rows=chosen,
            levels=above["wp"].nunique(),
            runs=own["run"].nunique(),
            replicated=replicated,
        )
