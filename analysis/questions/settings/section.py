"""Other settings that a study varied (normaliser, scope, ...): each level less the usual one."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import pandas as pd

from analysis.inference.estimates import holm
from analysis.regression.study import Study
from analysis.report import plots, words
from analysis.report.page import Plate, Section, Sheet
from analysis.report.tables import P_VALUE, Table
from analysis.table.cells import run_means
from analysis.table.factors import factors_of, level_text
from analysis.table.level_means import level_means, panels


def section(study: Study) -> Section | None:
    """Return the section on settings that vary, or None where none does."""
    table = differences(study)
    if not len(table):
        return None
    group = table["dataset"] + ": " + table["side"].map(words.SIDES)
    label = table["setting"] + " " + table["level"] + " − " + table["against"]
    label += ", PLW " + table["plw"].map(words.plw_text)
    caption = (
        "Each level of a setting less the level that most runs have, among runs that are equal in "
        "everything else; points with 95 % intervals. Filled: distinguishable after Holm's "
        "adjustment over all lines."
    )
    plate = Plate("settings", plots.forest(table.assign(group=group, label=label)), caption)
    note = "Points; p is adjusted by Holm over the table."
    formats = dict.fromkeys(("estimate", "low", "high", "mde"), ".2f")
    formats |= {"p": P_VALUE, "p_holm": P_VALUE, "plw": ".4g"}
    sheet = Sheet(Table("settings", "Settings", table, note, words.HEADS, formats))
    return Section("settings", "Other settings", (plate, sheet))


def differences(study: Study) -> pd.DataFrame:
    """Return dataset, side, setting, level, against, plw and the difference with its interval."""
    found = [
        {"side": side, **row}
        for setting in study.varied
        for side in words.SIDES
        if (study.rows["side"] == side).any()
        for row in _gaps(_matched(run_means(study.rows, side=side), setting), setting, study)
    ]
    table = pd.DataFrame(found)
    if not len(table):
        return table
    table["p_holm"] = holm(table["p"].tolist())
    clear = table["p_holm"] < 0.05
    return table.assign(verdict=np.where(clear, "distinguishable", "not distinguishable"))


def _gaps(runs: pd.DataFrame, setting: str, study: Study) -> Iterator[dict[str, object]]:
    """Yield every level of one setting less the usual one, by data set and PLW."""
    against = study.usual[setting]
    by_setting = partial(level_means, by=[setting], df=study.df)
    for labels, means in panels(runs, ["dataset", "plw"], by_setting):
        levels = means.table[setting].map(level_text).astype(str)
        for level in levels[levels != against]:
            gap = means.compare(levels == level, levels == against)
            if gap is not None:
                row = {"setting": setting, "level": level, "against": against}
                numbers = {k: getattr(gap, k) for k in ("estimate", "low", "high", "p", "mde")}
                yield {"dataset": labels["dataset"], "plw": float(labels["plw"])} | row | numbers


def _matched(runs: pd.DataFrame, setting: str) -> pd.DataFrame:
    """Return the runs that have a partner which differs in this setting alone."""
    others = [n for n in factors_of(runs).columns() if n != setting] or ["run"]
    levels = runs.groupby(others, observed=True)[setting].transform("nunique")
    return runs[levels > 1]
