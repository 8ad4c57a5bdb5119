"""The PLW paper's figures and claims, measured here beside what was published."""

from collections.abc import Iterator

import pandas as pd

from analysis.papers.plw import figure as figures
from analysis.papers.plw.claims import measure_means, plw_claims
from analysis.papers.verdicts import summary
from analysis.questions.plw.estimate import dose
from analysis.questions.plw.section import dose_curves, dose_points, optimum_rows
from analysis.regression.study import Study
from analysis.report import words
from analysis.report.page import Block, Plate, Section, Sheet, Text
from analysis.report.tables import Table

KEY = "paper"
CANNOT = (
    "What cannot be compared: the paper's models have 7 billion parameters and its data sets are "
    "other ones, so levels of score, BLEU, distance and length say nothing about each other; its "
    "scores per level were not published in a form found here, its curve is on a scale that is "
    "not stated, and it has one run per cell, so its differences carry no error of their own. "
    "Shapes and signs can be compared, and that is what the verdicts do."
)
MEASURES = {
    "train_loss_rsd": ("loss_deviation", "Relative standard deviation of the training loss over "
                       "the steps of a run."),
    "weight_distance": ("weight_distance", "Distance of the trained weights from the base "
                        "model's."),
    "prompt_bleu": ("prompt_bleu", "Memorisation: corpus BLEU of generations for training "
                    "prompts."),
    "generation_length": ("generation_length", "Length of generations."),
}  # fmt: skip


def section(study: Study) -> Section | None:
    """Return the paper's figures, claims and what cannot be compared; None without a weight."""
    if not study.dosed:
        return None
    table = plw_claims(study)
    blocks = [Text(CANNOT), *_claims(table), *_scores(study), *_measures(study)]
    return Section(KEY, "The PLW paper, here and published", tuple(blocks))


def _claims(table: pd.DataFrame) -> Iterator[Block]:
    note = (
        "Huerta-Enochian and Ko, arXiv 2401.13586. Each claim in each panel (data set, task) where "
        "it can be examined; intervals are 95 % each, not adjusted for their number."
    )
    title = "The paper's claims: verdicts"
    yield Sheet(Table("plw_claims_summary", title, summary(table), note), open=True)
    formats = dict.fromkeys(("estimate", "low", "high", "mde"), ".3g")
    title = "The paper's claims, panel by panel"
    yield Sheet(Table("plw_claims", title, table, note, words.HEADS, formats))


def _scores(study: Study) -> Iterator[Block]:
    """Yield score against w_p by data set and task group, and the optimum."""
    caption = (
        "Score against w_p per data set (and base model) and task group. Blue: here, means of the "
        "runs with 95 % intervals and the fitted quadratic with its band. Grey: published, "
        "one curve over all benchmarks for the short-completion data; none for the others."
    )
    yield Plate("plw_score", figures.score(dose_points(study), dose_curves(study)), caption)
    if len(dose(study)):
        caption = (
            "Optimum effective PLW per data set and task group with its 95 % Fieller interval, "
            "beside the published one (dashed), which pools all benchmarks."
        )
        yield Plate("plw_optimum", figures.optimum(optimum_rows(study)), caption)


def _measures(study: Study) -> Iterator[Block]:
    """Yield the paper's measurements of mechanism, as far as they were recorded."""
    several = "model" in study.frame and study.rows["model"].nunique() > 1
    for name, (stem, about) in MEASURES.items():
        parts = []
        for model, own in _by_model(study.frame, several):
            for dataset, means in measure_means(own, name):
                parts.append(means.table.assign(dataset=dataset, model=model))
        if not parts:
            continue
        points = pd.concat(parts, ignore_index=True)
        head = ["dataset", "model", "plw", "wp", "n", "estimate", "low", "high"]
        caption = f"{about} Means over seeds with 95 % intervals; what was published stands below."
        yield Plate(f"plw_{stem}", figures.measure(points, name), caption)
        yield Sheet(Table(f"plw_{stem}", about.rstrip("."), points[head], "", words.HEADS))


def _by_model(frame: pd.DataFrame, several: bool) -> Iterator[tuple[str, pd.DataFrame]]:
    if not several:
        yield "here", frame
        return
    for model, own in frame[~frame["is_base"]].groupby("model", observed=True, sort=False):
        yield str(model), own
