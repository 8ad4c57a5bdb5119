"""Seeds and items: where the noise is, what more of either would buy, and cells item by item."""

import pandas as pd

from analysis.engine.ties import falling
from analysis.errors import AnalysisError
from analysis.questions.noise import figure as figures
from analysis.questions.noise.estimate import (
    by_task,
    cells_of,
    noise,
    noise_table,
    plan_table,
)
from analysis.questions.noise.item_model import item_model
from analysis.questions.noise.paired import paired
from analysis.regression.study import Study
from analysis.report import words
from analysis.report.page import Block, Plate, Section, Sheet, Text
from analysis.report.tables import Table
from analysis.table.factors import cell_names, stratum_names
from analysis.table.items import Items

KEY = "items"
MOST_MODELS = 4  # binomial fits of
MOST_ROWS = 12_000  # rows, so that each takes a second or so
MOST_CELLS = 24  # a fixed effect each
MOST_PAIRS = 6  # of one stratum
PARTS = {
    "seed": "seed (shared)", "run": "run", "item": "item", "cell_item": "cell × item",
    "rest": "run × item", "se": "s.e. of a difference", "se_fixed": "s.e., these items",
    "se_unpaired": "s.e., unpaired",
}  # fmt: skip


def section(study: Study) -> Section | None:
    """Return the section; None without the items' scores or without two runs of a cell."""
    items = study.items
    if items is None:
        return None
    table = noise_table(items)
    if not len(table):
        return None
    blocks: list[Block] = [Text(_told(table)), Sheet(_noise(table), open=True), _plan(items, table)]
    for made in (_pairs(items, study), _models(items, table)):
        if len(made.frame):
            blocks.append(Sheet(made))
    blocks += [Text(line) for line in items.notes]
    return Section(KEY, "Seeds and items: where the noise is", tuple(blocks))


def _told(table: pd.DataFrame) -> str:
    """Say whether seeds or items are the larger part of the noise, over the strata and tasks."""
    by_runs = table["se_fixed"] ** 2 / table["se"] ** 2
    runs = int((by_runs > 0.5).sum())
    gain = (table["se_unpaired"] / table["se"]).median()
    return (
        "The difference of two cells is uncertain because other seeds would have given other runs, "
        "and because other items would have given other scores. In "
        f"{runs} of {len(table)} combinations of data set, base model and task the seeds are the "
        "larger part: more items would not help there, more seeds would. Answering the same items "
        f"with the same seeds makes a difference's standard error {gain:.1f} times smaller than "
        "that of separate ones (median)."
    )


def _noise(table: pd.DataFrame) -> Table:
    note = (
        "Standard deviations in points, from mean squares. Seed: the effect common to all cells of "
        "a seed. Run: what is left of a run beyond it. Item: how hard items are. Cell × item: what "
        "a cell changes on single items. The standard error is that of a paired difference of two "
        "cells at the seeds and items that were run, for other items like these; then with these "
        "items as all there is; then had the cells had seeds and items of their own."
    )
    formats = dict.fromkeys(PARTS, ".2f")
    return Table("noise", "Where the noise of a score lies", table, note, PARTS, formats)


def _plan(items: Items, table: pd.DataFrame) -> Plate:
    """Return what more seeds or items would buy, in the stratum with most runs."""
    stratum = str(table.groupby("stratum", sort=False)["runs"].max().idxmax())
    parts = []
    for name, task, own in by_task(items):
        if name != stratum or task not in set(table.loc[table["stratum"] == stratum, "task"]):
            continue
        found = noise(own)
        seeds = found.runs / found.cells
        here = {"seeds": seeds, "items": found.items, "se": found.se(seeds, found.items)}
        plan = plan_table(found).assign(task=task, here=False)
        parts.append(pd.concat([plan, pd.DataFrame([here | {"task": task, "here": True}])]))
    plan = pd.concat(parts, ignore_index=True)
    plan["seeds"] = plan["seeds"].map("{:g}".format)
    caption = (
        f"{stratum}: standard error of the difference of two cells on the same items and seeds, "
        "against the number of items; a line for a number of seeds. Cross: what was run. A line "
        "that is flat has no more to gain from items."
    )
    return Plate("noise_plan", figures.plan(plan), caption)


def _pairs(items: Items, study: Study) -> Table:
    """Compare the best cell of every stratum with the next ones, item by item."""
    target = study.rows.loc[study.rows["side"] == "target", "task"].astype(str).unique()
    tasks = [t for t in items.tasks if t in set(target)] or items.tasks
    chosen = items.of(tasks=tasks)
    where = stratum_names(chosen.runs)
    rows = []
    for stratum in dict.fromkeys(where):
        own = chosen.of(runs=where == stratum)
        cell = cell_names(own.runs)
        means = pd.Series(own.scores_RI.mean(axis=1)).groupby(cell).mean()
        order = list(means.index[falling(means)])
        for other in order[1 : MOST_PAIRS + 1]:
            rows.append(
                {"stratum": stratum, "against": other} | _pair(own, cell, order[0], str(other))
            )
    note = (
        "The best cell less the next ones, in points, tasks weighing equally. Items: these runs on "
        "other items, paired by item (Miller 2024). Runs: other runs on these items, paired by "
        "seed. Both: other runs on other items; the interval is of this one. Unpaired: the items' "
        "standard error had the two cells not answered the same ones. The best cell was picked, so "
        "its lead is somewhat too large."
    )
    heads = words.HEADS | {
        "against": "best cell less", "se_items": "s.e. items", "se_runs": "s.e. runs",
        "se_both": "s.e. both", "se_unpaired": "s.e. unpaired",
    }  # fmt: skip
    formats = dict.fromkeys(_PAIR, ".2f")
    return Table("paired", "Item by item", pd.DataFrame(rows), note, heads, formats)


_PAIR = ("estimate", "low", "high", "se_items", "se_unpaired", "se_runs", "se_both", "correlation")


def _pair(items: Items, cell: "pd.Series[str]", first: str, second: str) -> dict[str, object]:
    try:
        found = paired(items, cell == first, cell == second)
    except AnalysisError:
        return {}
    best = found.best
    return {
        "estimate": found.estimate, "low": best.low, "high": best.high,
        "se_items": found.items.se, "se_unpaired": found.unpaired,
        "se_runs": found.runs.se if found.runs else float("nan"),
        "se_both": found.both.se if found.both else float("nan"),
        "correlation": found.correlation, "items": found.n_items, "seeds": found.seeds,
    }  # fmt: skip


def _models(items: Items, table: pd.DataFrame) -> Table:
    """Fit the binomial model to the tasks of right or wrong, those with most runs first."""
    binary = set(items.items.loc[items.items["binary"], "task"].astype(str))
    chosen = table[table["task"].isin(binary)].nlargest(MOST_MODELS, "runs")
    wanted = set(zip(chosen["stratum"], chosen["task"], strict=True))
    rows = []
    for stratum, task, own in by_task(items):
        if (stratum, task) not in wanted or cells_of(own).nunique() > MOST_CELLS:
            continue
        try:
            model = item_model(own, most_rows=MOST_ROWS)
        except AnalysisError:
            continue
        rows.append(
            {"stratum": stratum, "task": task, "items": model.items, "of": model.of}
            | {"runs": len(own.runs), "sd_run": model.sd("run"), "sd_item": model.sd("item")}
            | {"sd_cell_item": model.sd("cell:item")}
            | {"share": model.share_of_items, "converged": model.fit.converged}
        )
    note = (
        "right ~ cell + seed + (1 | run) + (1 | item) + (1 | cell:item), binomial, by Laplace's "
        "approximation; standard deviations in log odds. Where there are many rows every k-th "
        "item is used."
    )
    heads = {
        "of": "of items", "sd_run": "run, s.d.", "sd_item": "item, s.d.",
        "sd_cell_item": "cell × item, s.d.",
        "share": "variance between items",
    }  # fmt: skip
    formats = {"sd_run": ".2f", "sd_item": ".2f", "sd_cell_item": ".2f", "share": ".0%"}
    title = "Right or wrong: runs and items in log odds"
    return Table("item_models", title, pd.DataFrame(rows), note, heads, formats)
