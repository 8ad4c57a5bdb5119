"""The published numbers of figures 1 to 3: tables S1 to S8, one run an arm."""

import pandas as pd

from analysis.papers.lora_tradeoffs.contrasts import KEPT, LEARNT
from analysis.table.factors import FULL
from analysis.table.published import read

MEASURES = {"humaneval": LEARNT, "gsm8k": LEARNT, "source_mean": KEPT}
TASKS = {"code": "HumanEval", "math": "GSM8K"}


def points() -> pd.DataFrame:
    """Return setting, arm, rank, budget, learnt and kept, both in points."""
    table = read("lora_tradeoffs")
    table = table[table["source"].eq("table") & table["domain"].isin(list(TASKS))]
    rank = table["rank"].astype("string").fillna("0").astype(float)
    table = table.assign(
        setting=table["domain"] + " " + table["regime"],
        arm=[FULL if not r else f"LoRA r{r:g}" for r in rank],
        rank=rank, budget=table["x"].astype(float), outcome=table["measure"].map(MEASURES),
        points=100 * table["value"].astype(float),
    )  # fmt: skip
    keys = ["setting", "arm", "rank", "budget"]
    return table.pivot(index=keys, columns="outcome", values="points").reset_index()


def base(setting: str, outcome: str) -> float:
    """Return the untouched base's score: from the text, or read off the authors' figures."""
    table = read("lora_tradeoffs")
    rows = table[table["method"] == "base"]
    domain = setting.partition(" ")[0]
    own = rows[rows["measure"].map(MEASURES) == outcome]
    if outcome == LEARNT:
        own = own[own["domain"] == domain]
    return 100 * float(own["value"].iloc[0])
