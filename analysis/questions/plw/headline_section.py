"""The headlines of the prompt loss weight: PLW 1 against PLW 0 in every panel."""

import math
from collections.abc import Hashable, Mapping
from typing import Any

import pandas as pd

from analysis.questions.plw.estimate import dose
from analysis.regression import second
from analysis.regression.study import Study
from analysis.report import words
from analysis.report.headline import ONE_SEED, Headline, verdict
from analysis.table.run_panels import PANEL

ALPHA = 0.05


def headlines(study: Study) -> list[Headline]:
    """Return PLW 1 less PLW 0 of every masking mode, data set and task group."""
    table = dose(study)
    if study.stepped or not len(table) or not study.converged:
        return []
    several = table["mode"].nunique() > 1
    return [_headline(study, row, several) for row in table.to_dict("records")]


def _headline(study: Study, row: Mapping[Hashable, Any], several: bool) -> Headline:
    known = math.isfinite(float(row["effect"]))
    mode = f"{row['mode']}, " if several else ""
    numbers = {n: float(row[n]) for n in ("low", "high", "mde")}
    return Headline(
        label=f"{mode}{words.group_text(str(row['task_group']))}",
        group=f"PLW 1 − PLW 0, {study.stratum(row)}",
        question="plw",
        estimate=float(row["effect"]),
        unit="points",
        because=str(row["because"]) if not known else "" if row["replicated"] else ONE_SEED,
        verdict=verdict(
            float(row["p_holm"]),
            str(row["verdict"]),
            replicated=bool(row["replicated"]) or not known,
        ),
        p=float(row["p_holm"]),
        second=second.of_study(study, _rows(study, row), "wp", (1.0, 0.0)) if known else None,
        **numbers,
    )


def _rows(study: Study, row: Mapping[Hashable, Any]) -> pd.DataFrame:
    rows = study.rows
    for name in PANEL:
        rows = rows[rows[name].astype(str) == str(row[name])]
    return rows[(rows["wp"] == 0) | (rows["mode"].astype(str) == str(row["mode"]))]


def remarks(study: Study) -> list[str]:
    """Return the best PLW of the panel whose curve is surest to have one inside."""
    table = dose(study)
    if not len(table) or "best_plw" not in table:
        return []
    inside = table[(table["optimum"] == "interior optimum") & (table["p_any_holm"] < ALPHA)]
    if not len(inside):
        return []
    row = inside.sort_values("p_any_holm", kind="stable").to_dict("records")[0]
    where = f"{words.group_text(str(row['task_group']))}, {study.stratum(row)}"
    best, low, high = (words.plw_text(float(row[n])) for n in ("best_plw", "plw_low", "plw_high"))
    more = f", the surest of {len(inside)} interior optima" if len(inside) > 1 else ""
    return [f"the best PLW for {where} is {best} (95 % interval {low} to {high}){more}"]
