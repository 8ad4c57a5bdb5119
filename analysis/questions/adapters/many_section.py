"""Many adapters side by side: what each learnt and forgot, at how many parameters and what cost."""

import pandas as pd

from analysis.engine.ties import falling
from analysis.questions.adapters import figure as figures
from analysis.questions.adapters.section import costs, many
from analysis.questions.tradeoff.estimate import arms
from analysis.regression.study import Study
from analysis.report import words
from analysis.report.page import Block, Plate, Section, Sheet, Text
from analysis.report.tables import Table
from analysis.table.cells import ARM, arm_text

KEY = "arms"
AGAINST = "lora"  # whose time and memory are the unit
CHANGES = (
    "learning", "learning_low", "learning_high", "forgetting", "forgetting_low", "forgetting_high",
)  # fmt: skip
FORMATS = dict.fromkeys(CHANGES, ".1f") | {
    "seconds": ".2f", "peak_mb": ".2f", "trainable_parameters": ",.0f",
}  # fmt: skip
HEADS = {
    "label": "arm", "learning": "learnt", "learning_low": "95 % low", "learning_high": "95 % high",
    "forgetting": "forgotten", "forgetting_low": "95 % low", "forgetting_high": "95 % high",
    "trainable_parameters": "parameters", "seconds": "time", "peak_mb": "memory",
}  # fmt: skip


def section(study: Study) -> Section | None:
    """Return the section on many arms; None where there are few, or no base to compare with."""
    if not many(study) or study.rated:
        return None
    blocks: list[Block] = []
    for (dataset, model), table in arm_tables(study):
        stratum = f"{dataset}, {model}"
        key = "" if not blocks else f"_{dataset}_{model}"
        unit = f"those of {AGAINST}" if (table["label"] == AGAINST).any() else "the median arm's"
        caption = (
            f"{stratum}: arms, the one that learnt most first. Learnt: points gained on target "
            "tasks over the untouched base; forgotten: points lost on source tasks; 95 % intervals "
            "for these seeds. Time of training and peak memory (on a CPU the whole process's) are "
            f"in units of {unit}.{words.full_trains(study.rows)}"
        )
        costs_told = (
            f"{stratum}: learning against trainable parameters, 95 % intervals. Named: arms that "
            "no other beats in both, full fine-tuning and LoRA. Hollow: the budget of parameters "
            "was not reached."
        )
        sheet = Table(f"arm_lines{key}", f"Arms, {stratum}", table, caption, HEADS, FORMATS)
        blocks += [
            Plate(f"arm_costs{key}", figures.arm_costs(table), costs_told),
            Plate(f"arm_lines{key}", figures.arm_lines(table), caption),
            Text(_spread(table)),
            Sheet(sheet),
        ]
    return Section(KEY, "Every arm", tuple(blocks)) if blocks else None


def arm_tables(study: Study) -> list[tuple[tuple[str, str], pd.DataFrame]]:
    """Return for every data set and model its arms, the one that learnt most first."""
    changes = arms(study)
    if not len(changes):
        return []
    found = []
    for stratum, own in changes.groupby(["dataset", "model"], observed=True, sort=False):
        rows = study.main[study.main["dataset"].astype(str) == str(stratum[0])]
        found.append(((str(stratum[0]), str(stratum[1])), _table(own, costs(rows))))
    return found


def _table(changes: pd.DataFrame, spent: pd.DataFrame) -> pd.DataFrame:
    table = changes[[*ARM, *CHANGES]].merge(spent, on=list(ARM), how="left", validate="one_to_one")
    ranks = table.loc[table["adapter"] != "full", "rank"].nunique()
    pairs = table[list(ARM)].itertuples(index=False)
    labels = [str(a) if ranks < 2 else arm_text(a, r) for a, r in pairs]
    table = table.assign(label=labels)
    for name, made in (("train_seconds", "seconds"), ("peak_mb", "peak_mb")):
        unit = table.loc[table["label"] == AGAINST, name]
        table[made] = table[name] / (float(unit.iloc[0]) if len(unit) else table[name].median())
    columns = ["label", "rank", "budget", "trainable_parameters", *CHANGES, "seconds", "peak_mb"]
    return table.iloc[falling(table["learning"])].reset_index(drop=True)[columns]


def _spread(table: pd.DataFrame) -> str:
    """Say how far apart the arms lie, and how many overlap the first."""
    first, last = table.iloc[0], table.iloc[-1]
    close = int((table["learning_high"] >= first["learning"]).sum()) - 1
    return (
        f"{first['label']} learnt most ({words.plain(first['learning'])} points), {last['label']} "
        f"least ({words.plain(last['learning'])}); the intervals of {close} other arms reach the "
        f"first one's mean. Which differences are significant: the table of differences below."
    )
