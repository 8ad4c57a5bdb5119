"""The sections that describe a model, the same on both kinds of page."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis.inference.estimates import coefficients
from analysis.inference.scale import scale_of
from analysis.regression import (
    contrasts,
    effect_groups,
    equation,
    methods,
    random_part,
    residual_checks,
    sensitivity,
)
from analysis.regression.model import SHORT, Regression
from analysis.report import plots, words
from analysis.report.page import Block, Formula, Item, Listing, Plate, Section, Sheet, Text
from analysis.report.tables import Table

ALPHA = 0.05
SHOWN_TERMS = 40  # more lines than this no forest plot can carry


def described(
    reg: Regression,
    *,
    reasons: Sequence[str] = (),
    about: methods.About = methods.NOTHING,
) -> list[Section]:
    """Return the sections on model, coefficients, random part, sensitivity, residuals, methods.

    Args:
        reg: the regression of either kind of page.
        reasons: why the model is the one it is, in sentences.
        about: what the methods say beside what the fit says of itself.
    """
    return [
        model_section(reg, reasons),
        coefficient_section(reg, reg.once("joint tests", lambda: effect_groups.joint_tests(reg))),
        variances(reg),
        sensitivity.section(reg),
        residual_checks.section(reg),
        methods.section(reg, about),
    ]


def model_section(reg: Regression, reasons: Sequence[str] = ()) -> Section:
    """Return the model: formula, equation, why it is this one, and how it was simplified."""
    found = equation.equation(reg)
    blocks: list[Block] = [
        Text(f"{reg.fit.formula}, {methods.LAWS[reg.family]}, fitted by {reg.fit.method}."),
        Formula(equation.mathml(found) + equation.legend_html(found)),
    ]
    if reasons:
        blocks += [Text("Why it is this one:"), Listing(tuple(Item(text=r) for r in reasons))]
    if reg.steps:
        blocks += [Text("The random part was simplified:")]
        blocks += [Listing(tuple(Item(text=step) for step in reg.steps)), Sheet(_ladder(reg), True)]
    kind = "mixed model" if reg.fit.random else "linear model"
    summary = f"A {reg.fit.family} {kind} of {reg.fit.n:,} rows: {reg.status}."
    return Section("model", "The model", tuple(blocks), summary)


def _ladder(reg: Regression) -> Table:
    """Return both fits, as asked for and as used."""
    rows = [
        {"fit": name, "formula": fit.formula, "parameters": fit.parameters,
         "loglik": fit.loglik, "AIC": fit.aic, "converged": fit.converged,
         "singular": fit.singular}
        for name, fit in (("as asked for", reg.asked), ("as used", reg.fit))
    ]  # fmt: skip
    note = "After Bates et al. 2015: from the structure asked for downwards."
    formats = {"loglik": ".2f", "AIC": ".1f"}
    heads = {"loglik": "log-likelihood"}
    return Table("ladder", "Both fits", pd.DataFrame(rows), note, heads, formats)


def coefficient_section(reg: Regression, joint: pd.DataFrame) -> Section:
    """Return the joint tests, and the coefficients as a figure and as a table."""
    table = coefficients(reg.fit, df=reg.df)
    blocks: list[Block] = []
    if len(joint):
        blocks.append(Sheet(effect_groups.joint_table(reg, joint), open=True))
    rows = _forest_rows(reg, table[table["name"] != "Intercept"])
    if 0 < len(rows) <= SHOWN_TERMS:
        caption = (
            f"Fixed effects in {reg.unit} with 95 % intervals ({SHORT[reg.df]}); hollow where zero "
            "lies inside. A factor's levels are compared with its first one. The coefficients of a "
            "weight and its square describe one curve together."
        )
        blocks.append(Plate("coefficients", plots.forest(rows, unit=reg.unit), caption))
    blocks.append(Sheet(coefficient_table(reg, table)))
    summary = f"{words.count(len(table), 'coefficient')}; joint tests of the effects"
    if len(joint):
        clear = int((joint["p_holm"] < ALPHA).sum())
        summary += f", {clear} of {len(joint)} with p < 0.05 after Holm's adjustment"
    return Section("coefficients", "Coefficients", tuple(blocks), f"{summary}.")


def _forest_rows(reg: Regression, table: pd.DataFrame) -> pd.DataFrame:
    clear = table["p"] < ALPHA
    return table.assign(
        group="fixed effects",
        label=[effect_groups.coefficient_text(reg, str(n)) for n in table["name"]],
        verdict=np.where(clear, "distinguishable", "not distinguishable"),
    ).dropna(subset=["estimate"])


def coefficient_table(reg: Regression, table: pd.DataFrame) -> Table:
    """Return every fixed effect in words, with interval, p and the state of the fit."""
    meaning = [effect_groups.coefficient_text(reg, str(n)) for n in table["name"]]
    table = table.rename(columns={"name": "term"}).assign(fit_status=reg.status)
    table.insert(1, "meaning", meaning)
    if reg.general:
        back = scale_of(reg.fit).ratios
        ends = zip(contrasts.ODDS, ("estimate", "low", "high"), strict=True)
        table = table.assign(**{name: back(table[k].to_numpy()) for name, k in ends})
    note = f"{reg.fit.formula}; {reg.fit.method}; {reg.fit.n:,} rows; {SHORT[reg.df]}."
    return Table("coefficients", "Fixed effects", table, note, contrasts.HEADS, contrasts.FORMATS)


def variances(reg: Regression) -> Section:
    """Return what varies at random, its tests, and how well the model fits."""
    blocks: list[Block] = []
    summary = "The model has no random part."
    if reg.fit.random:
        rows = reg.once("variances", lambda: random_part.variance_rows(reg))
        blocks.append(Sheet(random_part.variance_table(reg, rows), open=True))
        names = ", ".join(group.replace(":", " × ") for group in reg.fit.random)
        summary = f"Random effects of {names}; R², AIC and intraclass correlation."
    tests = random_part.term_rows(reg)
    blocks += [Sheet(random_part.term_table(tests), open=True)] if len(tests) else []
    quality = random_part.quality_rows(reg)
    blocks.append(Sheet(random_part.quality_table(reg, quality), open=True))
    return Section("variances", "Random part and fit", tuple(blocks), summary)
