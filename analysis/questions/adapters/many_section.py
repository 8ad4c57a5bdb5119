"""Many adapters side by side: what each learnt and forgot, at how many parameters and what cost."""

import numpy as np
import pandas as pd

from analysis.engine.ties import falling
from analysis.questions.adapters import figure as figures
from analysis.questions.adapters.section import ARM, arm_text, changes_table, many, without_rank
from analysis.regression.study import Study
from analysis.report import words
from analysis.report.page import Block, Plate, Section, Sheet, Text
from analysis.report.tables import Table

AGAINST = "lora"  # whose time and memory are the unit
CHANGES = ("gain_mean", "gain_low", "gain_high", "loss_mean", "loss_low", "loss_high")
COSTS = ("trainable_parameters", "train_seconds", "peak_mb")
FORMATS = dict.fromkeys(CHANGES, ".1f") | {
    "seconds": ".2f", "peak_mb": ".2f", "trainable_parameters": ",.0f",
}  # fmt: skip
HEADS = {
    "label": "arm", "gain_mean": "learnt", "gain_low": "95 % low", "gain_high": "95 % high",
    "loss_mean": "forgotten", "loss_low": "95 % low", "loss_high": "95 % high",
    "trainable_parameters": "parameters", "seconds": "time", "peak_mb": "memory",
}  # fmt: skip


def section(study: Study) -> Section | None:
    """Return the section on many arms; None where there are few, or no base to compare with."""
    if not many(study):
        return None
    blocks: list[Block] = []
    for (dataset, model), table in arm_tables(study):
        place = f"{dataset}, {model}"
        key = "" if not blocks else f"_{dataset}_{model}"
        unit = f"those of {AGAINST}" if (table["label"] == AGAINST).any() else "the median arm's"
        caption = (
            f"{place}: every arm, the one that learnt most first. Learnt: points gained on target "
            "tasks over the untouched base; forgotten: points lost on source tasks; 95 % intervals "
            f"over seeds. Time of training and peak memory (on a CPU the whole process's) are in "
            f"units of {unit}."
        )
        planes = (
            f"{place}: learning against trainable parameters and against forgetting, 95 % "
            "intervals. Named: arms that no other beats in both, full fine-tuning and LoRA. "
            "Hollow: the budget of parameters was not reached."
        )
        sheet = Table(f"arm_lines{key}", f"Arms, {place}", table, caption, HEADS, FORMATS)
        blocks += [
            Plate(f"arm_planes{key}", figures.arm_planes(table), planes),
            Plate(f"arm_lines{key}", figures.arm_lines(table), caption),
            Text(_spread(table)),
            Sheet(sheet),
        ]
    return Section("arms", "Every arm", tuple(blocks)) if blocks else None


def arm_tables(study: Study) -> list[tuple[tuple[str, str], pd.DataFrame]]:
    """Return for every data set and model its arms, the one that learnt most first."""
    changes = changes_table(study)
    if not len(changes):
        return []
    found = []
    for place, own in changes.groupby(["dataset", "model"], observed=True, sort=False):
        rows = study.main[study.main["dataset"].astype(str) == str(place[0])]
        found.append(((str(place[0]), str(place[1])), _table(own, costs(rows))))
    return found


def _table(changes: pd.DataFrame, spent: pd.DataFrame) -> pd.DataFrame:
    changes = changes.assign(rank=changes["rank"].mask(changes["adapter"] == "full", 0))
    table = changes[[*ARM, *CHANGES]].merge(spent, on=ARM, how="left", validate="one_to_one")
    ranks = table.loc[table["adapter"] != "full", "rank"].nunique()
    pairs = table[ARM].itertuples(index=False)
    labels = [str(a) if ranks < 2 else arm_text(a, r) for a, r in pairs]
    table = table.assign(label=labels)
    for name, made in (("train_seconds", "seconds"), ("peak_mb", "peak_mb")):
        unit = table.loc[table["label"] == AGAINST, name]
        table[made] = table[name] / (float(unit.iloc[0]) if len(unit) else table[name].median())
    columns = ["label", "rank", "budget", "trainable_parameters", *CHANGES, "seconds", "peak_mb"]
    return table.iloc[falling(table["gain_mean"])].reset_index(drop=True)[columns]


def costs(rows: pd.DataFrame) -> pd.DataFrame:
    """Return parameters, seconds and peak memory of every arm, the median over its runs."""
    runs = without_rank(rows.drop_duplicates("run"))
    missing = {n: np.nan for n in COSTS if n not in runs}
    runs = runs.assign(**missing, budget=runs.get("budget", pd.Series("", runs.index)))
    groups = runs.groupby(ARM, observed=True)
    found = groups[list(COSTS)].median()
    found["budget"] = groups["budget"].first().fillna("")
    found = found.reset_index()
    return found.assign(adapter=found["adapter"].astype(str))


def _spread(table: pd.DataFrame) -> str:
    """Say how far apart the arms lie, and how many overlap the first."""
    first, last = table.iloc[0], table.iloc[-1]
    close = int((table["gain_high"] >= first["gain_mean"]).sum()) - 1
    return (
        f"{first['label']} learnt most ({words.plain(first['gain_mean'])} points), {last['label']} "
        f"least ({words.plain(last['gain_mean'])}); the intervals of {close} other arms reach the "
        f"first one's mean. Which differences are beyond doubt: the table of differences below."
    )
