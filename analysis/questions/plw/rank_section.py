"""The surface over weight and rank: the best weight of every adapter at every rank."""

import pandas as pd

from analysis.inference.optimum import INTERIOR
from analysis.questions.plw.shape_section import told
from analysis.questions.plw.surfaces import (
    AdapterSurface,
    curves_differ,
    rank_table,
    surface_table,
    surfaces,
)
from analysis.regression.study import Study
from analysis.report import plots, words
from analysis.report.page import Block, Plate, Section, Sheet, Text
from analysis.report.tables import P_VALUE, Table

PANEL = ("mode", "task_group", "dataset_type")


def section(study: Study) -> Section | None:
    """Return the section, or None without an adapter that ran at several weights."""
    found = surfaces(study.frame) if len(study.dose) else []
    if not any(one.ranks for one in found):
        return None
    ranks = rank_table(found)
    blocks: list[Block] = [Text(_lead(ranks))]
    inside = ranks[ranks["optimum"] == INTERIOR]
    if len(inside):
        caption = (
            "Best prompt loss weight by adapter and rank, where it lies inside beyond doubt, with "
            "95 % Fieller intervals."
        )
        drawn = plots.forest(_forest(inside), unit="best PLW", zero=False)
        blocks.append(Plate("best_plw_by_rank", drawn, caption))
    blocks += [Sheet(_rank_sheet(ranks)), Sheet(_differ_sheet(found)), Sheet(_surface_sheet(found))]
    return Section("surface", "Best weight by adapter and rank", tuple(blocks))


def _lead(ranks: pd.DataFrame) -> str:
    inside = int((ranks["optimum"] == INTERIOR).sum())
    moved = ranks.drop_duplicates([*PANEL, "adapter"])["p_moves"].dropna()
    clear = int((moved < 0.05).sum())
    return (
        f"Every adapter has a quadratic surface of its own over the weight and log2 of its rank; "
        f"full tuning, which has no rank, a curve. At {inside} of {len(ranks)} combinations of "
        f"adapter, rank, tasks and data the best weight lies inside beyond doubt. For {clear} of "
        f"{len(moved)} adapters and panels the effect of the weight changes with the rank (5 % "
        "level, not adjusted)."
    )


def _forest(inside: pd.DataFrame) -> pd.DataFrame:
    rows = told(inside)
    rank = rows["rank"].map(lambda r: "" if pd.isna(r) else f" r{r:g}")
    label = rows["adapter"] + rank + ", " + rows["task_group"]
    columns = {"estimate": rows["best_plw"], "low": rows["plw_low"], "high": rows["plw_high"]}
    return pd.DataFrame({"group": rows["dataset_type"], "label": label} | columns)


def _rank_sheet(ranks: pd.DataFrame) -> Table:
    names = [
        *PANEL, "adapter", "rank", "optimum", "best_plw", "plw_low", "plw_high", "gain", "gain_se",
        "p_moves",
    ]  # fmt: skip
    frame = told(ranks[[n for n in names if n in ranks]])
    note = (
        "Best weight on [0, 1] at every rank that was run, with its 95 % Fieller interval where "
        "the fitted curve has its maximum inside. Moves with the rank: the test of the product of "
        "weight and log2 rank."
    )
    heads = words.HEADS | {
        "best_plw": "best PLW", "plw_low": "95 % low", "plw_high": "95 % high",
        "gain_se": "s.e.", "p_moves": "moves with the rank, p",
    }  # fmt: skip
    formats = dict.fromkeys(("best_plw", "plw_low", "plw_high"), ".2g") | {"p_moves": P_VALUE}
    formats |= dict.fromkeys(("gain", "gain_se"), ".2f")
    return Table("best_plw_by_rank", "Best weight by adapter and rank", frame, note, heads, formats)


def _differ_sheet(found: list[AdapterSurface]) -> Table:
    groups: dict[tuple[str, ...], list[AdapterSurface]] = {}
    for one in found:
        groups.setdefault(tuple(one.labels[n] for n in PANEL), []).append(one)
    rows = [
        dict(zip(PANEL, key, strict=True)) | {"adapters": len(own), "p": curves_differ(own)}
        for key, own in groups.items()
    ]
    note = "F test of one curve over the weight for all adapters, at the middle rank."
    title = "Do adapters answer to the weight alike?"
    formats = {"p": P_VALUE}
    return Table("curves_by_adapter", title, told(pd.DataFrame(rows)), note, words.HEADS, formats)


def _surface_sheet(found: list[AdapterSurface]) -> Table:
    frame = told(surface_table(found))
    note = (
        "Canonical analysis of each surface: the stationary point with the extent of its 95 % "
        "region (Box and Hunter 1954), the delta method's standard error, bootstrap percentiles, "
        "and the eigenvalues, both negative at a maximum. It needs three ranks."
    )
    heads = words.HEADS | {"log2_rank": "log2 rank / r0"}
    return Table("surface", "Stationary points", frame, note, heads)
