"""The best prompt loss weight of every adapter at every rank: section of the report."""

import pandas as pd

from analysis.curve.best import BEST_FORMATS, BEST_HEADS
from analysis.inference.optimum import INTERIOR
from analysis.questions.plw.by_rank import adapter_curves, difference_table, rank_table
from analysis.questions.plw.estimate import study_shapes
from analysis.regression.study import Study
from analysis.report import plots, words
from analysis.report.page import Block, Plate, Section, Sheet, Text
from analysis.report.tables import P_VALUE, Table
from analysis.table.run_panels import CURVE

KEY = "by-rank"


def section(study: Study) -> Section | None:
    """Return the section, or None without an adapter that ran at several weights."""
    asked = study.dosed and not study.many
    found = adapter_curves(study.frame, df=study.df) if asked else []
    if not any(rank for one in found for rank in one.by_rank):
        return None
    ranks = rank_table(found, study_shapes(study))
    blocks: list[Block] = [Text(_lead(ranks))]
    inside = ranks[ranks["optimum"] == INTERIOR]
    if len(inside):
        caption = (
            "Best effective prompt loss weight by adapter and rank, where it lies inside (0, 1) at "
            "the 5 % level, with 95 % Fieller intervals."
        )
        drawn = plots.forest(_forest(study, inside), unit="best PLW", zero=False)
        blocks.append(Plate("best_plw_by_rank", drawn, caption))
    blocks += [
        Sheet(_rank_sheet(study, ranks)),
        Sheet(_differ_sheet(study, difference_table(found))),
    ]
    return Section(KEY, "Best weight by adapter and rank", tuple(blocks))


def _lead(ranks: pd.DataFrame) -> str:
    inside = int((ranks["optimum"] == INTERIOR).sum())
    tested = ranks.drop_duplicates([*CURVE, "adapter"])["p_changes"].dropna()
    clear = int((tested < 0.05).sum())
    return (
        "Every adapter has a quadratic over the weight at each of its ranks; full tuning, which "
        f"has no rank, has one. At {inside} of {len(ranks)} combinations of adapter, rank, tasks "
        "and data the best weight lies inside (0, 1) at the 5 % level, and the tests of the "
        f"curve's shape agree. For {clear} of {len(tested)} adapters and panels the effect of the "
        "weight changes with the rank (5 % level, not adjusted)."
    )


def _forest(study: Study, inside: pd.DataFrame) -> pd.DataFrame:
    rows = words.panel_words(inside)
    rank = rows["rank"].map(lambda r: "" if pd.isna(r) else f" r{r:g}")
    label = rows["adapter"] + rank + ", " + rows["task_group"]
    columns = {"estimate": rows["best_plw"], "low": rows["plw_low"], "high": rows["plw_high"]}
    group = rows.apply(study.stratum, axis=1)
    return pd.DataFrame({"group": group, "label": label} | columns)


def _rank_sheet(study: Study, ranks: pd.DataFrame) -> Table:
    names = [
        *CURVE, "adapter", "rank", "optimum", "best_plw", "plw_low", "plw_high", "gain", "gain_se",
        "p_changes",
    ]  # fmt: skip
    note = (
        "Best weight on [0, 1] at every rank that was run, with its 95 % Fieller interval where "
        "it lies inside and the tests of the panel's curve bear it. The last column tests the "
        "product of weight and log2 rank."
    )
    heads = words.HEADS | BEST_HEADS | {"p_changes": "changes with the rank, p"}
    formats = BEST_FORMATS | {"p_changes": P_VALUE}
    frame = study.shown(words.panel_words(ranks[names]))
    return Table("best_plw_by_rank", "Best weight by adapter and rank", frame, note, heads, formats)


def _differ_sheet(study: Study, table: pd.DataFrame) -> Table:
    note = "F test of one curve over the weight for all adapters, at the middle rank."
    title = "Does the effect of the weight differ between adapters?"
    frame = study.shown(words.panel_words(table))
    return Table("curves_by_adapter", title, frame, note, words.HEADS, {"p": P_VALUE})
