"""Instruction modelling's figures and claims, measured here beside what was published."""

from collections.abc import Iterator

import pandas as pd

from analysis.papers.instruction_modelling import figure as figures
from analysis.papers.instruction_modelling import published
from analysis.papers.instruction_modelling.arms import RATIO, ROWS, Runs, runs_of
from analysis.papers.instruction_modelling.claims import compared, im_claims
from analysis.papers.instruction_modelling.losses import row_losses
from analysis.papers.verdicts import summary
from analysis.regression.study import Study
from analysis.report import words
from analysis.report.page import Block, Plate, Section, Sheet, Text
from analysis.report.tables import P_VALUE, Table

KEY = "instruction-modelling"
TITLE = "Instruction modelling, here and published"
CANNOT = (
    "What cannot be compared: the paper's models have 7 and 13 billion parameters, its benchmarks, "
    "data sets and judges are other ones, and it has one run a cell, so that levels say nothing "
    "about each other; directions can be compared. Figures without a counterpart here: 5 (bars of "
    "other bases, published without numbers: the claims have ours), 7 (lengths of seven data "
    "sets, which are no result), 10 and 11 (AlpacaEval and output length over epochs: no judge; "
    "generation_length is a measure, evaluate.measures=[generation_length], and the published "
    "lengths have no numbers), and the losses of training rows in figures 3, 8 and 9, which are "
    "not scored."
)
FORMATS = dict.fromkeys(("estimate", "low", "high", "mde"), ".3g")
HEADS = words.HEADS | {"data_sets": "data sets", "gain": "gain of", "larger": "is larger"}


def section(study: Study) -> Section | None:
    """Return the section; None without runs of IT and IM over several ratios and sizes."""
    found = runs_of(study)
    if not found or not study.sized:
        return None
    claims = im_claims(study)
    lead = _lead(claims)
    blocks = [Text(lead), Text(CANNOT), *_claims(study, claims), *_figures(study, found)]
    return Section(KEY, TITLE, tuple(blocks), lead)


def _lead(claims: pd.DataFrame) -> str:
    said = [f"“{row['claim']}”: {row['verdict']}" for row in summary(claims).to_dict("records")]
    return f"The paper's claims here. {'; '.join(said)}."


def _claims(study: Study, claims: pd.DataFrame) -> Iterator[Block]:
    note = (
        "Shi et al., arXiv 2405.14394. IM is the loss on everything, IT on outputs alone. Each "
        "claim in each group of tasks; intervals are 95 % each, not adjusted for their number; the "
        f"margin of equivalence is ±{study.margin:g} points."
    )
    yield Sheet(Table("im_claims_summary", "The paper's claims: verdicts", summary(claims), note),
                open=True)  # fmt: skip
    title = "The paper's claims, one by one"
    yield Sheet(Table("im_claims", title, claims, note, words.HEADS, FORMATS))
    note = (
        "Differences of runs with the same data, base model, seed and other settings, in points; "
        "the data set on its base model is a random effect. The released KL of strength s is "
        "(1 − s) of the loss and a constant: at strength 1 it has no gradient: the untouched base."
    )
    title = "Every arm against its counterpart"
    yield Sheet(Table("im_arms", title, compared(study), note, HEADS, FORMATS))
    yield Sheet(_published())


def _published() -> Table:
    """Return table 1 as published: IM less IT over seven data sets."""
    table = published.gains(published.table1())
    names = ["measure", "estimate", "low", "high", "p_holm", "wins"]
    note = "Seven data sets, one run each; paired t tests with the data set as the unit."
    return Table("im_published", "Published: IM − IT", table[names], note, words.HEADS,
                 FORMATS | {"p_holm": P_VALUE})  # fmt: skip


def _figures(study: Study, found: list[Runs]) -> Iterator[Block]:
    caption = (
        "Figures 1 and 6: mean scores of IT and IM over the ratio of output to instruction, and "
        "over training rows, the other averaged out; 95 % intervals over runs, the seeds and the "
        "other number as blocks."
    )
    yield Plate("im_scores", figures.scores(found), caption)
    yield Plate("im_scores_published", figures.published_scores(),
                "Figure 1 as published: seven data sets, Llama 2 7B, one run each.")  # fmt: skip
    caption = (
        "Figure 2: the gain of IM in percent of IT's score. Above: here, by group of tasks, mean "
        "over seeds and the other number, where IT scores at least 2 points. Below: published, "
        "AlpacaEval 1; WizardLM is drawn at output over instruction there (docs/published.md)."
    )
    if {RATIO, ROWS} <= set(found[0].table):
        yield Plate("im_gains", figures.gains(found), caption)
    loss = row_losses(found[0], study.folder)
    if loss["arm"].nunique() > 1:
        caption = (
            "Figures 3, 8 and 9: the loss of single held-out rows on their outputs, here of the "
            "data that was trained on, there a tenth of Tulu V2; dashed: means."
        )
        yield Plate("im_losses", figures.losses(loss), caption)
    if found[0].table["epochs"].nunique() > 1:
        caption = (
            "Figure 4: mean scores over the number of epochs, each a training of its own, on the "
            "data sets that ran at several; 95 % intervals, data sets and seeds as blocks. The "
            "published figure has no numbers."
        )
        yield Plate("im_epochs", figures.over_epochs(found), caption)
