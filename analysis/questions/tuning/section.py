"""Learning rates that were tried, and the best loss by tuning budget: sections of the report."""

import pandas as pd

from analysis.questions.adapters.section import MANY
from analysis.questions.tuning import figure as figures
from analysis.questions.tuning.estimate import tuning_budget
from analysis.report import words
from analysis.report.page import Plate, Section, Sheet
from analysis.report.tables import Table
from analysis.table.carried import with_carried
from analysis.table.cells import arm_text
from analysis.table.validation_losses import validation_losses

CAPTION = "Validation loss against learning rate. Markers: the rate with the lowest loss."
CAPTION_OF_MANY = (
    "Learning rates tried, an arm a row: the darker, the nearer the validation loss to the arm's "
    "lowest. Dots: the rate with the lowest loss. Arms by their lowest loss, the best on top."
)
MANY_RATES = 3  # so many learning rates of one arm make a curve


def rates(raw: pd.DataFrame) -> Section | None:
    """Return validation loss against learning rate; None where a rate does not vary by itself."""
    by = ["dataset", "adapter", "rank"]
    rows = validation_losses(with_carried(raw)).dropna(subset=["loss"])
    if not len(rows) or rows.groupby(by)["lr"].nunique().max() < MANY_RATES:
        return None
    means = rows.groupby([*by, "lr"], observed=True)["loss"].mean().reset_index()
    best = means.groupby(by, observed=True)["loss"].transform("min")
    pairs = means[["adapter", "rank"]].itertuples(index=False)
    label = [arm_text(*pair) for pair in pairs]
    means = means.assign(chosen=means["loss"] == best)
    named = means.assign(label=label)
    if named["label"].nunique() > MANY:
        figure, caption = figures.rates_of_many(named), CAPTION_OF_MANY
    else:
        figure, caption = figures.rates(named), CAPTION
    plate = Plate("tuning_curves", figure, caption)
    note = "Means over base models."
    sheet = Sheet(Table("tuning_curves", "Loss by learning rate", means, note))
    return Section("tuning", "Learning rates tried", (plate, sheet))


def budget(raw: pd.DataFrame) -> Section | None:
    """Return the section on tuning budgets; None where no arm tried several settings."""
    table = tuning_budget(raw)
    if not len(table):
        return None
    caption = (
        "Validation loss to expect of the best of n settings, drawn at random from those that were "
        "tried, against n; bands are 95 % bootstrap intervals. Where lines cross, the better arm "
        "depends on what one can spend on tuning."
    )
    note = (
        "Unbiased for settings drawn at random (Tang et al. 2020). At the largest budget the "
        "interval knows nothing beyond the best setting tried."
    )
    formats = dict.fromkeys(("expected", "low", "high"), ".4f")
    heads = words.HEADS | {"label": "arm", "expected": "expected best loss"}
    sheet = Sheet(Table("budget", "Best loss by tuning budget", table, note, heads, formats))
    if table["label"].nunique() > MANY:  # their lines cover each other
        return Section("budget", "What a tuning budget buys", (sheet,))
    plate = Plate("budget", figures.budget(table), caption)
    return Section("budget", "What a tuning budget buys", (plate, sheet))
