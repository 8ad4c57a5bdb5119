"""Adapter and rank: scores, differences from full fine-tuning, learning against forgetting."""

import pandas as pd

from analysis.errors import AnalysisError
from analysis.inference.estimates import holm
from analysis.regression.study import Study
from analysis.report import plots, words
from analysis.report.page import Block, Plate, Section, Sheet
from analysis.report.tables import P_VALUE, Table
from analysis.table.cells import learning_forgetting, run_means
from analysis.table.level_means import Levels, level_means, panels

SIDES = {"target": "target tasks", "source": "source tasks", "both": "tasks"}
ARM = ["adapter", "rank"]
MANY = 8  # arms from which a line each (`many_arms`) says more than a colour each
POINT_FORMATS = dict.fromkeys(("estimate", "low", "high", "mde"), ".2f")


def many(study: Study) -> bool:
    """Return whether there are so many arms that each is a line."""
    if "adapter" not in study.main:
        return False
    return len(without_rank(study.main)[ARM].drop_duplicates()) > MANY


def adapters(study: Study) -> Section | None:
    """Return the section on adapters and ranks, or None where there is one arm alone."""
    found = list(sides(study.main))
    if not found or len(found[0][1].table) < 2:
        return None
    points = arm_points(study)
    caption = (
        "Score against capacity; means of the runs adjusted for masking, PLW and seed, with 95 % "
        "intervals. Dashed, with its band: full fine-tuning, which has no rank."
    )
    blocks: list[Block] = []
    if not many(study) and points.loc[points["adapter"] != "full", "rank"].nunique() > 1:
        plate = Plate("score_against_rank", plots.capacity(points), "Rank. " + caption)
        blocks.append(plate)
        if points["trainable_parameters"].notna().all():
            figure = plots.capacity(points, x="trainable_parameters")
            told = "The same scores against trainable parameters. " + caption
            blocks.append(Plate("score_against_parameters", figure, told))
    frame = points.drop(columns="panel")
    note = "Adjusted means, in points, with 95 % intervals."
    means = Table("arms", "Score by adapter and rank", frame, note, words.HEADS, POINT_FORMATS)
    return Section("adapters", "Adapter and rank", (*blocks, Sheet(means), *_differences(study)))


def sides(rows: pd.DataFrame) -> list[tuple[dict[str, str], Levels]]:
    """Return, for every data set and side, the adjusted means of the arms."""
    if "adapter" not in rows:
        return []
    found = []
    for side in [s for s in SIDES if (rows["side"] == s).any()]:
        runs = without_rank(run_means(rows, side=side)).sort_values("dataset", kind="stable")
        for labels, means in panels(runs, ["dataset"], lambda own: level_means(own, ARM)):
            found.append(({"side": side, **labels}, means))
    return found


def without_rank(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the runs with no rank where there is none: full fine-tuning is one arm."""
    if "rank" not in runs:
        return runs.assign(rank=0)
    return runs.assign(rank=runs["rank"].mask(runs["adapter"].astype(str) == "full", 0))


def arm_points(study: Study) -> pd.DataFrame:
    """Return panel, dataset, side, adapter, rank, trainable_parameters, n, estimate, low, high."""
    parts = []
    for labels, means in sides(study.main):
        panel = f"{labels['dataset']}: {SIDES[labels['side']]}"
        parts.append(means.table.assign(panel=panel, **labels))
    points = pd.concat(parts, ignore_index=True)
    points["adapter"] = points["adapter"].astype(str)
    points = points.merge(_parameters(study.rows), on=ARM, how="left")
    head = ["panel", "dataset", "side", *ARM, "trainable_parameters"]
    return points[[*head, "n", "estimate", "low", "high"]]


def _parameters(rows: pd.DataFrame) -> pd.DataFrame:
    runs = without_rank(rows.drop_duplicates("run"))
    if "trainable_parameters" not in runs:
        runs = runs.assign(trainable_parameters=float("nan"))
    counts = runs.groupby(ARM, observed=True)["trainable_parameters"].median().reset_index()
    return counts.assign(adapter=counts["adapter"].astype(str))


def arm_differences(study: Study) -> pd.DataFrame:
    """Return every arm less full fine-tuning, or less the first arm where nothing is full.

    Columns: side, dataset, arm, against, estimate, low, high, p, p_holm, mde, verdict.
    """
    rows = []
    for labels, means in sides(study.main):
        names = [arm_text(a, r) for a, r in means.table[ARM].itertuples(index=False)]
        reference = names.index("full") if "full" in names else 0
        for i, name in enumerate(names):
            index = pd.Series(range(len(names)))
            found = None
            if i != reference:
                found = means.compare(index == i, index == reference)
            if found is not None:
                row = labels | {"arm": name, "against": names[reference]} | found.row()
                rows.append({k: v for k, v in row.items() if k not in ("name", "se", "df", "t")})
    frame = pd.DataFrame(rows)
    if not len(frame):
        return frame
    frame["p_holm"] = holm(frame["p"].tolist())
    clear = frame["p_holm"] < 0.05
    frame["verdict"] = clear.map({True: "distinguishable", False: "not distinguishable"})
    return frame


def arm_text(adapter: str, rank: float) -> str:
    """Return an arm's name: "full", or the adapter with its rank."""
    return str(adapter) if str(adapter) == "full" else f"{adapter} r{rank:g}"


def _differences(study: Study) -> list[Block]:
    frame = arm_differences(study)
    if not len(frame):
        return []
    against = frame["against"].iloc[0]
    group = frame["dataset"] + ": " + frame["side"].map(SIDES)
    rows = frame.assign(group=group, label=frame["arm"] + " − " + frame["against"])
    caption = (
        f"Every adapter and rank less {against}: points, 95 % intervals. Filled: distinguishable "
        "from zero at the 5 % level after Holm's adjustment over all lines. Hollow: not."
    )
    note = (
        "Differences in points. MDE: minimum detectable effect, the true difference found with "
        "80 % power. p is adjusted by Holm over the table."
    )
    formats = POINT_FORMATS | {"p": P_VALUE, "p_holm": P_VALUE}
    table = Table("arm_differences", f"Arms against {against}", frame, note, words.HEADS, formats)
    return [Plate("arm_differences", plots.forest(rows), caption), Sheet(table)]


def trade_off(study: Study) -> Section | None:
    """Return the section on learning against forgetting; None without base or without a side."""
    changes = changes_table(study)
    if not len(changes) or many(study):
        return None
    points = changes.rename(columns=_FIGURE_NAMES)
    points = points.assign(label=[_short(a, r) for a, r in changes[ARM].itertuples(index=False)])
    if changes["model"].nunique() > 1:
        points["dataset"] = points["dataset"] + ", " + points["model"]
    caption = (
        "Learning against forgetting: points gained on target tasks over the untouched base, "
        "against points lost on source tasks. Up and to the left is better. Means over masking "
        "modes and PLW with 95 % intervals; lines join the ranks of an adapter, numbers are ranks."
    )
    note = (
        "Points against the untouched base, with 95 % intervals. The base is one model: its own "
        "score carries item noise that these intervals do not hold."
    )
    changes = changes.assign(rank=changes["rank"].mask(changes["adapter"] == "full"))
    names = ("gain_mean", "gain_low", "gain_high", "loss_mean", "loss_low", "loss_high")
    heads = {
        "gain_mean": "target gain", "gain_low": "95 % low", "gain_high": "95 % high",
        "loss_mean": "source loss", "loss_low": "95 % low", "loss_high": "95 % high",
    }  # fmt: skip
    frame = changes[["dataset", "model", *ARM, *names]]
    formats = dict.fromkeys(names, ".2f")
    table = Table("learning_forgetting", "Learning and forgetting", frame, note, heads, formats)
    plate = Plate("learning_forgetting", plots.trade_off(points), caption)
    return Section("trade-off", "Learning against forgetting", (plate, Sheet(table, open=True)))


_FIGURE_NAMES = {
    "gain_mean": "learning", "gain_low": "learning_low", "gain_high": "learning_high",
    "loss_mean": "forgetting", "loss_low": "forgetting_low", "loss_high": "forgetting_high",
}  # fmt: skip


def changes_table(study: Study) -> pd.DataFrame:
    """Return `learning_forgetting` with levels as text; empty where it cannot be had."""
    try:
        table = learning_forgetting(study.frame)
    except AnalysisError:
        return pd.DataFrame()
    if not len(table):
        return table
    if "model" not in table:
        table["model"] = "base"
    text = {n: table[n].astype(str) for n in ("dataset", "model", "adapter") if n in table}
    return table.assign(**text)


def _short(adapter: str, rank: float) -> str:
    return "" if adapter == "full" else f"{rank:g}"
