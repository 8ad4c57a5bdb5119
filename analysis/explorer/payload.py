"""Everything that the explorer of a page works on, as one packed text."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis.errors import AnalysisError
from analysis.explorer.cautions import curves, warned
from analysis.explorer.items import items_data
from analysis.explorer.means import PanelNames, panel_names, table_names
from analysis.explorer.models import model_data
from analysis.explorer.names import Column, Names, names_of, names_of_table, numbers, with_places
from analysis.explorer.packing import Packer
from analysis.explorer.records import curves_data, logs_data, settings_data
from analysis.inference.scale import IDENTITY, scale_of
from analysis.regression.model import Regression
from analysis.regression.study import Study
from analysis.report import words
from analysis.table.items import RIGHT

VERSION = 1
STRATA = ("dataset", "model")


def payload(
    study: Study,
    prompts: pd.DataFrame | None = None,
    warnings: Sequence[tuple[str, str]] = (),
) -> str:
    """Return the data of a study's explorer, as `explorer.packing` writes it.

    Args:
        study: with its models.
        prompts: task, doc_id and prompt of its items, where they are known.
        warnings: of the page, (heading, text): they stand where a factor is shown that one names.
    """
    pack = Packer()
    names = names_of(study)
    keys = [str(key) for key in names.runs["run"]]
    content: dict[str, Any] = {
        "version": VERSION,
        "factors": [_factor(c, names, pack) for c in names.columns],
        "together": names.together(),
        "strata": [n for n in STRATA if any(c.column == n for c in names.columns)],
        "run": pack.codes(names.run),
        "keys": keys,
        "tasks": _tasks(study.rows),
        "scores": pack.array(_scores(study.rows, keys), "f64"),
        "models": [_model(study, panel_names(names, m), pack) for m in study.panels],
        "warnings": warned(warnings, names),
        "joint": study.joint.fit.formula if study.joint is not None else None,
    }
    if study.folder is not None and (study.folder / "cells").is_dir():
        content |= _beside(study, study.folder, (names, keys), pack, prompts)
    return pack.text(content)


def table_payload(reg: Regression, warnings: Sequence[tuple[str, str]] = ()) -> str:
    """Return the data of the explorer of a table from elsewhere; "" where it is too large.

    Every row that was fitted is a run of one task, the score; the one model is that of the page.

    Args:
        reg: the regression of the page.
        warnings: of the page, as in `payload`.
    """
    scale = scale_of(reg.fit)
    title = unit = reg.score
    if scale is IDENTITY and reg.response.strip("`") != reg.score:
        # A function of the score that is not undone: the rows are shown as they were fitted.
        reg = replace(reg, frame=reg.used.assign(**{reg.score: reg.fit.design.y_N}))
        title = unit = reg.unit
    elif reg.family == "beta_inflated":
        unit = f"{unit} where neither 0 nor 1"
    used = reg.used
    own, key = with_places(reg)
    pack = Packer()
    try:
        names = names_of_table(own, key)
    except AnalysisError:
        return ""
    if not names.columns:
        return ""
    panel = table_names(names, own)
    score = pd.to_numeric(used[reg.score]).to_numpy(dtype=np.float64)
    task = {"name": reg.score, "group": reg.score, "title": title, "metric": "", "range": None}
    content: dict[str, Any] = {
        "version": VERSION,
        "factors": [_factor(c, names, pack) for c in names.columns],
        "together": names.together(),
        "strata": [],
        "run": pack.codes(names.run),
        "keys": [f"row {label}" for label in used.index],
        "tasks": [task],
        "scores": pack.array(score, "f64"),
        "models": [model_data(panel, pack)],
        # The formula names every column; what is said of it is about none.
        "warnings": warned([w for w in warnings if reg.fit.formula not in w[1]], names),
        "joint": None,
        "table": {
            "unit": unit, "difference": reg.unit, "digits": _digits(score),
            "scale": scale.name, "base": scale.base if scale.ratio == "ratio" else None,
        },
    }  # fmt: skip
    return pack.text(content)


def _digits(score: npt.NDArray[np.float64]) -> int:
    """Return the decimals that tell apart a thousandth of what the scores span."""
    span = float(np.ptp(score))
    return int(max(np.ceil(-np.log10(span / 1000)), 0)) if span > 0 else 2


def _model(study: Study, panel: PanelNames, pack: Packer) -> dict[str, Any]:
    found = model_data(panel, pack)
    return found | {"cautions": found["cautions"] + curves(study, panel)}


def _beside(
    study: Study,
    folder: Path,
    runs: tuple[Names, list[str]],
    pack: Packer,
    prompts: pd.DataFrame | None,
) -> dict[str, Any]:
    names, keys = runs
    found: dict[str, Any] = {
        "settings": settings_data(folder, keys, pack),
        "curves": curves_data(folder, keys, pack),
        "logs": logs_data(folder, keys),
    }
    if study.items is not None:
        found["items"] = items_data(study.items, names, folder, pack, prompts)
    return found


def _factor(column: Column, names: Names, pack: Packer) -> dict[str, Any]:
    factor = column.factor
    return {
        "column": factor.column, "name": factor.name, "part": factor.part,
        "levels": list(column.levels), "numbers": numbers(column, names.runs),
        "reference": factor.reference, "codes": pack.codes(column.codes),
    }  # fmt: skip


def _tasks(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the tasks in their order, each with the group that a model is fitted to."""
    first = rows.drop_duplicates("task")
    columns = (first[n] for n in ("task", "task_group", "metric", "to_points"))
    return [
        {
            "name": str(t), "group": str(g), "title": words.group_text(str(g)), "metric": str(m),
            "range": _range(float(points)),
        }
        for t, g, m, points in zip(*columns, strict=True)
    ]  # fmt: skip


def _range(to_points: float) -> list[float] | None:
    """Return the lowest and the highest score there can be, in points; None where it is open."""
    return sorted([0.0, to_points]) if abs(to_points) == RIGHT else None


def _scores(rows: pd.DataFrame, keys: list[str]) -> Any:
    """Return the score of every run on every task in points; NaN where it has none."""
    wide = rows.assign(run=rows["run"].astype(str)).pivot_table(
        index="run", columns="task", values="score", observed=True, sort=False
    )
    tasks = [str(t) for t in rows["task"].drop_duplicates()]
    wide.columns = wide.columns.astype(str)
    return np.asarray(wide.reindex(index=keys, columns=tasks), dtype=np.float64)
