"""Pairs of weights on prompt and answer: section and headlines of the report."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd

from analysis.inference.estimates import Estimate
from analysis.papers.wit import pairs as published
from analysis.questions.weight_pairs import figure as figures
from analysis.questions.weight_pairs.estimate import (
    SURFACES,
    Pairs,
    left_out_error,
    pairs_of,
    terms,
)
from analysis.regression.study import Study
from analysis.report import words
from analysis.report.headline import CLEAR, WITHIN, Headline, judged, of_row
from analysis.report.page import Block, Plate, Section, Sheet, Text
from analysis.report.tables import P_VALUE, Table

KEY = "weight-pairs"
TITLE = "Two weights, or their ratio"
PUBLISHED = "published, 15 panels"
GROUP = "both weights raised alike"
HEADS = words.HEADS | {
    "rmse": "error for a pair left out", "noise": "noise of a pair's mean",
    "doublings": "doublings tried",
}  # fmt: skip
POINTS = dict.fromkeys(("estimate", "low", "high", "mde", "rmse", "noise", "doublings"), ".2f") | {
    "p": P_VALUE,
    "p_holm": P_VALUE,
}
NOTE = (
    "Change of a score, in points, with the weights of prompt and answer both raised from the "
    "smallest scale tried to the largest (so many doublings), linear in their logarithm, at "
    "loss.normaliser=nonzero (the loss divided by the number of tokens with any weight). Only "
    "pairs of one ratio are compared; a pair is a random effect where seeds repeat it. Degrees of "
    "freedom by Kenward and Roger. At loss.normaliser=weight pairs of one ratio are one run."
)
ERRORS = (
    "Root mean square error of a pair's mean score, predicted from all other pairs with a weight "
    "on the answer: by their mean, by a quadratic in the prompt's share p / (p + a), by that and "
    "the larger weight, by a quadratic in both weights. Beside it the standard error of a pair's "
    "mean by its seeds (published: the standard deviation of pairs of one ratio, one run each)."
)


def section(study: Study) -> Section | None:
    """Return the section; None where no ratio of weights ran at several scales."""
    found = _found(study)
    if not found:
        return None
    table = _table(study)
    lines = [(_label(one), one.change) for one in found]
    raised = Table("weight_pairs", "Both weights raised alike", table, NOTE, HEADS, POINTS)
    blocks: list[Block] = [
        Text(_lead(table)),
        Sheet(raised, open=True),
        Plate(
            "weight_pairs_changes",
            figures.changes(lines, (PUBLISHED, _published_change()), study.margin),
            "Change with both weights raised from the smallest scale tried to the largest, with "
            "95 % intervals; the band is the margin of equivalence. Square: arXiv 2507.07817, "
            "525 runs of its 15 panels (from 0.2 to 1).",
        ),
        Plate(
            "weight_pairs_shares",
            figures.shares(found),
            "Mean score of every pair over the prompt's share of its weights. Were a pair more "
            "than its ratio, colours would lie apart. Line: quadratic in the share.",
        ),
        Sheet(Table("weight_pairs_errors", "How well a pair is foreseen", _errors(found),
                    ERRORS, HEADS, POINTS)),
    ]  # fmt: skip
    return Section(KEY, TITLE, tuple(blocks), _lead(table))


def headlines(study: Study) -> list[Headline]:
    """Return the change with both weights raised alike, for every group of tasks."""
    if not _found(study):
        return []
    return [
        of_row(row, label=str(row["where"]), group=GROUP, question=KEY)
        for row in _table(study).to_dict("records")
    ]


def _found(study: Study) -> list[Pairs]:
    return study.once("pairs of weights", lambda: pairs_of(study))


def _label(one: Pairs) -> str:
    return f"{one.labels['dataset']}, {words.group_text(one.labels['task_group'])}"


def _table(study: Study) -> pd.DataFrame:
    named: list[tuple[dict[str, object], Estimate]] = [
        (
            {
                "where": _label(one), "mode": one.labels["mode"], "pairs": len(one.cells),
                "runs": int(one.cells["runs"].sum()), "doublings": one.doublings,
                "replicated": one.replicated,
            },
            one.change,
        )
        for one in _found(study)
    ]  # fmt: skip
    return judged(named, study.margin, questions=study.questions)


def _lead(table: pd.DataFrame) -> str:
    counts = table["verdict"].value_counts()
    clear, within = int(counts.get(CLEAR, 0)), int(counts.get(WITHIN, 0))
    widest = max(table.to_dict("records"), key=lambda row: abs(float(row["estimate"])))
    return (
        f"Raising the weights of prompt and answer alike changes the score in {clear} of "
        f"{len(table)} panels beyond doubt, and in {within} by no more than the margin; the "
        f"largest change is {widest['estimate']:+.2f} points ({widest['low']:.2f} to "
        f"{widest['high']:.2f}; {widest['where']})."
    ).replace("-", "−")


def _errors(found: list[Pairs]) -> pd.DataFrame:
    parts = [one.errors.assign(where=_label(one)) for one in found]
    table = pd.concat([*parts, _published_errors()], ignore_index=True)
    return table[["where", "surface", "rmse", "noise", "pairs"]]


def _published_errors() -> pd.DataFrame:
    """Return the error of every surface in the published panels, root mean square over them."""
    cells = published.cells()
    answered = published.on_responses(cells).rename(
        columns={"lambda_p": "prompt", "lambda_r": "answer", "size": "scale"}
    )
    panels = [own for _, own in answered.groupby("panel")]
    rows = []
    for surface in SURFACES:
        every = [left_out_error(terms(own, surface), own["score"].to_numpy()) for own in panels]
        rows.append({"surface": surface, "rmse": float(np.sqrt(np.mean(np.square(every))))})
    noise, pairs = published.noise(cells).sd, len(answered) // len(panels)
    return pd.DataFrame(rows).assign(where=PUBLISHED, noise=noise, pairs=pairs)


def _published_change() -> Estimate:
    """Return what raising both weights from 0.2 to 1 does in the published runs."""
    one, times = published.size_effect(published.cells()), math.log2(5)
    return replace(one, estimate=one.estimate * times, se=one.se * times)
