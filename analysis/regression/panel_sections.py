"""The sections of a study's page that describe its models, a row or a line per panel."""

from collections.abc import Callable

import pandas as pd

from analysis.inference.estimates import coefficients
from analysis.inference.fit_quality import explained
from analysis.regression import contrasts, effect_groups, equation, methods, residual_checks
from analysis.regression.model import SHORT
from analysis.regression.panels import PanelModel
from analysis.regression.sections import described
from analysis.regression.study import Study
from analysis.report import words
from analysis.report.page import Block, Formula, Item, Listing, Section, Sheet, Text
from analysis.report.tables import SIGNIFICANT, Table
from analysis.table.run_panels import PANEL


def models(study: Study, about: methods.About) -> list[Section]:
    """Return the sections on the models of a study: those of its panels, or of the one of all
    scores.

    Args:
        study: with either.
        about: what the methods say beside what a fit says of itself.
    """
    if study.joint is not None:
        return described(study.joint, reasons=study.reasons, about=about)
    return [_model(study), _coefficients(study), _diagnostics(study), _methods(study, about)]


def _widest(study: Study) -> PanelModel:
    """Return the model with most coefficients, which stands for the others in the equation."""
    return max(study.panels, key=lambda m: (len(m.fit.random), len(m.fit.fixef)))


def _by_panel(study: Study, make: Callable[[PanelModel], pd.DataFrame]) -> pd.DataFrame:
    """Return the tables of all panels as one, with the panel's levels in front."""
    parts = []
    for model in study.panels:
        found = make(model)
        for name in reversed(PANEL):
            found.insert(0, name, model.labels[name])
        parts.append(found)
    return study.shown(words.panel_words(pd.concat(parts, ignore_index=True)))


def _model(study: Study) -> Section:
    found = equation.equation(_widest(study))
    blocks: list[Block] = [
        Text(f"In every panel, on means of runs: {study.formula}, Gaussian, fitted by REML."),
        Formula(equation.mathml(found) + equation.legend_html(found)),
        Text("Why it is this one:"),
        Listing(tuple(Item(text=reason) for reason in study.reasons)),
        Sheet(_panel_table(study), open=True),
    ]
    count = sum(model.fit.n for model in study.panels)
    panels = words.count(len(study.panels), "panel")
    summary = f"A model in each of {panels}, of {count:,} means of runs in all: {study.status}."
    return Section("model", "The model", tuple(blocks), summary)


def _panel_table(study: Study) -> Table:
    def row(model: PanelModel) -> pd.DataFrame:
        cell = model.fit.random.get("cell")
        return pd.DataFrame([{
            "runs": model.fit.n, "cells": model.used["cell"].nunique(),
            "coefficients": len(model.fit.fixef),
            "sd_cell": float("nan") if cell is None else float(cell.sd.iloc[0]),
            "sd_run": model.fit.sigma, "r2": explained(model.fit).marginal,
            "replicated": "yes" if model.replicated else "no", "fit_status": model.status,
        }])  # fmt: skip

    note = (
        "Standard deviations in points: between cells, beyond the model's terms, and between runs "
        "of a cell. None between cells: without replicates they cannot be told from runs; with "
        "them the terms tell all cells apart, and intervals hold for these very cells. Replicates: "
        "whether cells have several runs, without which nothing is called distinguishable. R²: the "
        "share of variance of the fixed effects."
    )
    heads = words.HEADS | {
        "sd_cell": "s.d. of cells", "sd_run": "s.d. of runs", "r2": "R²",
        "replicated": "replicates", "fit_status": "fit",
    }  # fmt: skip
    formats = {"sd_cell": SIGNIFICANT, "sd_run": SIGNIFICANT, "r2": ".2f"}
    return Table("panels", "The panels", _by_panel(study, row), note, heads, formats)


def _coefficients(study: Study) -> Section:
    def own(model: PanelModel) -> pd.DataFrame:
        found = coefficients(model.fit, df=model.df).rename(columns={"name": "term"})
        meaning = [effect_groups.coefficient_text(model, str(n)) for n in found["term"]]
        return found.assign(term=meaning, fit_status=model.status)

    note = (
        f"{SHORT[study.df]}; p not adjusted. A factor's levels are compared with its first one. "
        "The coefficients of a weight and its square describe one curve together."
    )
    frame = _by_panel(study, own)
    table = Table("coefficients", "Fixed effects", frame, note, contrasts.HEADS, contrasts.FORMATS)
    joint = _by_panel(
        study, lambda m: effect_groups.joint_tests(m).drop(columns="note", errors="ignore")
    )
    tests = effect_groups.joint_table(_widest(study), joint, over="the effects of a panel")
    summary = f"{words.count(len(table.frame), 'coefficient')}; joint tests of the effects."
    blocks = (Sheet(tests, open=True), Sheet(table))
    return Section("coefficients", "Coefficients", blocks, summary)


def _diagnostics(study: Study) -> Section:
    found = {study.panel(m.labels): (m, residual_checks.residuals(m)) for m in study.panels}
    checks = {name: residual_checks.check_rows(*one) for name, one in found.items()}
    lines = list(dict.fromkeys(map(str, study.frame.attrs.get("notes", ()))))
    for name, (model, _) in found.items():
        odd = checks[name]
        said = [*residual_checks.health(model.fit)[1:], *odd.loc[odd["words"] != "", "words"]]
        lines += [f"{name}: {text}" for text in said if text != residual_checks.NO_ZERO]
    every = pd.concat([r for _, r in found.values()], ignore_index=True)
    fitted = pd.concat([m.fit.fitted.loc[r.index] for m, r in found.values()], ignore_index=True)
    some = every.sample(min(len(every), residual_checks.DRAWN), random_state=0)
    rows = pd.concat([rows.assign(panel=name) for name, rows in checks.items()], ignore_index=True)
    table = residual_checks.check_table(rows[["panel", "check", "value", "p", "words"]])
    count = int((rows["words"] != "").sum())
    status = words.counted([m.status for m in study.panels])
    summary = f"The fits: {status}. Residuals: " + (
        f"{count} of {len(rows)} checks call for attention." if count else "nothing unusual."
    )
    blocks: list[Block] = [Listing(tuple(Item(text=line) for line in lines))] if lines else []
    blocks.append(residual_checks.plate(fitted, some, "Standardised residuals of all panels"))
    return Section("diagnostics", "Diagnostics", (*blocks, Sheet(table)), summary)


def _methods(study: Study, about: methods.About) -> Section:
    widest = _widest(study)
    if len(study.panels) > 1:
        sentence = (
            f"Each of {len(study.panels)} panels (data set × base model × group of tasks) has a "
            f"model of its own on means of runs; the model described is that of "
            f"{study.panel(widest.labels)}, the others differ in their rows alone."
        )
        about = methods.About((*about.design, sentence), about.practice, about.facts)
    return methods.section(widest, about)
