"""Adapter and rank: scores, and differences from full fine-tuning, else from the first arm."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from analysis.inference.estimates import Estimate
from analysis.questions.adapters import figure as figures
from analysis.regression import second
from analysis.regression.study import STRATUM, Study
from analysis.report import plots, words
from analysis.report.headline import Headline, judged, of_row
from analysis.report.page import Block, Plate, Section, Sheet
from analysis.report.tables import P_VALUE, Table
from analysis.table.cells import ARM, arm_text, run_means, without_rank
from analysis.table.factors import FREE, joined, level_text
from analysis.table.level_means import Levels, level_means
from analysis.table.run_panels import grouped

KEY = "adapters"
COSTS = ("trainable_parameters", "train_seconds", "peak_mb")
MANY = 8  # arms from which a line each (`many_arms`) says more than a colour each
POINT_FORMATS = dict.fromkeys(("estimate", "low", "high", "mde"), ".2f")


def many(study: Study) -> bool:
    """Return whether there are so many arms that each is a line."""
    return _arms(study) > MANY


def _arms(study: Study) -> int:
    """Return how many arms there are."""
    return len(without_rank(study.main)[list(ARM)].drop_duplicates())


def adapters(study: Study) -> Section | None:
    """Return the section on adapters and ranks; None where there is one arm alone, or where arms
    are compared at their own rates (`questions.own_rate`).
    """
    if study.rated:
        return None
    found = sides(study)
    if not found or len(found[0][1].table) < 2:
        return None
    points = arm_points(study)
    blocks: list[Block] = []
    if not many(study) and points.loc[points["adapter"] != "full", "rank"].nunique() > 1:
        caption = (
            "Score against trainable parameters, numbers are ranks; means of the runs adjusted for "
            "masking, PLW and seed, with 95 % intervals. Dashed, with its band: full fine-tuning, "
            "which has no rank."
        )
        blocks.append(Plate("score_against_parameters", figures.capacity(points), caption))
    frame = study.shown(points.drop(columns="panel"))
    note = "Adjusted means, in points, with 95 % intervals." + words.full_trains(study.rows)
    means = Table("arms", "Score by adapter and rank", frame, note, words.HEADS, POINT_FORMATS)
    return Section(KEY, "Adapter and rank", (*blocks, Sheet(means), *_differences(study)))


def sides(study: Study) -> list[tuple[dict[str, str], Levels]]:
    """Return, for every data set, base model and side, the adjusted means of the arms; nothing
    where there is one arm alone.
    """
    return study.once("arms by side", lambda: _sides(study) if _arms(study) > 1 else [])


def _sides(study: Study) -> list[tuple[dict[str, str], Levels]]:
    rows, found = study.main, []
    for side in [s for s in words.SIDES if (rows["side"] == s).any()]:
        runs = without_rank(run_means(rows, side=side))
        for labels, own in grouped(runs, STRATUM):
            found.append(({"side": side, **labels}, level_means(own, ARM, df=study.df)))
    return found


def arm_points(study: Study) -> pd.DataFrame:
    """Return panel, dataset, model, side, adapter, rank, trainable_parameters, n, estimate, low,
    high.
    """
    parts = []
    for labels, means in sides(study):
        panel = study.place(labels)
        parts.append(means.table.assign(panel=panel, **labels))
    points = pd.concat(parts, ignore_index=True)
    points["adapter"] = points["adapter"].astype(str)
    points = points.merge(costs(study.rows), on=list(ARM), how="left")
    head = ["panel", *STRATUM, "side", *ARM, "trainable_parameters"]
    return points[[*head, "n", "estimate", "low", "high"]]


def costs(rows: pd.DataFrame) -> pd.DataFrame:
    """Return parameters, seconds and peak memory of every arm, the median over its runs."""
    runs = without_rank(rows.drop_duplicates("run"))
    missing = {n: np.nan for n in COSTS if n not in runs}
    runs = runs.assign(**missing, budget=runs.get("budget", pd.Series("", runs.index)))
    groups = runs.groupby(list(ARM), observed=True)
    found = groups[list(COSTS)].median()
    found["budget"] = groups["budget"].first().fillna("")
    found = found.reset_index()
    return found.assign(adapter=found["adapter"].astype(str))


def arm_differences(study: Study) -> pd.DataFrame:
    """Return every arm less full fine-tuning, or less the first arm where nothing is full.

    Columns: side, dataset, model, arm, against, estimate, low, high, p, p_holm, mde, verdict.
    """
    rows = []
    for labels, means in sides(study):
        for arms, gap in against_reference(means):
            rows.append((labels | arms | {"replicated": means.replicated}, gap))
    return judged(rows, study.margin, questions=study.questions)


def against_reference(means: Levels) -> Iterator[tuple[dict[str, str], Estimate]]:
    """Yield every arm less full fine-tuning, or less the first arm where nothing is full."""
    names = [arm_text(a, r) for a, r in means.table[list(ARM)].itertuples(index=False)]
    reference = names.index("full") if "full" in names else 0
    index = pd.Series(range(len(names)))
    for i, name in enumerate(names):
        gap = means.compare(index == i, index == reference) if i != reference else None
        if gap is not None:
            yield {"arm": name, "against": names[reference]}, gap


def not_compared(study: Study) -> list[str]:
    """Return a sentence where runs differ in the arm alone and are in no comparison of arms."""
    runs = without_rank(study.rows.drop_duplicates("run"))
    rest = runs[~runs["run"].isin(study.main["run"])]
    if not len(rest):
        return []
    others = [n for n in study.factors.columns() if n not in ARM]
    arms = joined(rest, ARM).groupby(joined(rest, others)).transform("nunique")
    matched = rest[arms > 1]
    if not len(matched):
        return []
    usual = {n: v for n, v in study.usual.items() if n not in FREE}
    where = {n: [t for t in map(level_text, matched[n].unique()) if t != usual[n]] for n in usual}
    levels = "; ".join(f"{n} {', '.join(sorted(v))}" for n, v in where.items() if v)
    return [
        f"Arms are compared at the usual level of every setting: "
        f"{words.count(len(matched), 'run')} at {levels} that differ in the arm alone are in no "
        f"comparison of arms."
    ]


def _differences(study: Study) -> list[Block]:
    frame = arm_differences(study)
    if not len(frame):
        return []
    against = frame["against"].iloc[0]
    group = [study.place(labels) for labels in frame.to_dict("records")]
    rows = frame.assign(group=group, label=frame["arm"] + " − " + frame["against"])
    caption = (
        f"Every adapter and rank less {against}: points, 95 % intervals. Filled: distinguishable "
        f"from zero at the 5 % level after adjustment {study.adjusted}. Hollow: not."
    )
    note = (
        "Differences in points. MDE: minimum detectable effect, the true difference found with "
        f"80 % power. p is adjusted {study.adjusted}."
    )
    formats = POINT_FORMATS | {"p": P_VALUE, "p_holm": P_VALUE}
    table = Table(
        "arm_differences", f"Arms against {against}", study.shown(frame), note, words.HEADS, formats
    )
    return [Plate("arm_differences", plots.forest(rows), caption), Sheet(table)]


def headlines(study: Study) -> list[Headline]:
    """Return every arm less its reference, by data set, base model and side of the tasks."""
    if study.rated:
        return []
    found = []
    for row in arm_differences(study).to_dict("records"):
        arms = (str(row["arm"]), str(row["against"]))
        label, group = " − ".join(arms), study.place(row)
        other = second.of_study(study, study.at(study.main, row), "arm", arms)
        found.append(of_row(row, label=label, group=group, question="adapters", second=other))
    return found
