"""The runs of study=mora: the part of the paper that they are of, and their arms.

A group is what the paper compares within: the runs of one data set on one base model at one rank.
Full tuning has no rank and is in the groups of all. An arm is an adapter with its optimizer and
with every setting of the two that several runs of the group do not share.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pandas as pd

from analysis.table.carried import carried_names
from analysis.table.factors import FULL
from analysis.table.run_panels import usual_rows
from analysis.table.validation_losses import heldout_losses, validation_losses

INSTRUCTION, MATHS, CONTINUED, PRETRAINING = (
    "instruction tuning", "mathematics", "continued pretraining", "pretraining",
)  # fmt: skip
SETTINGS: Mapping[str, str] = {  # data set -> part of the paper
    "micro": INSTRUCTION, "tulu_v2": INSTRUCTION, "micro_math": MATHS, "metamath": MATHS,
    "micro_code": CONTINUED, "micro_pretraining": PRETRAINING, "c4": PRETRAINING,
}  # fmt: skip
LOW, HIGH, ONLY = "low", "high", "only"  # a group's rank among those of its data set
LORA, RELORA, REMORA, PERMUTED = "LoRA", "ReLoRA", "ReMoRA", "ReMoRA, permuted"
SHARING, ROTATION, DECOUPLING, TRUNCATION = (
    "MoRA, sharing", "MoRA, rotation", "MoRA, decoupling", "MoRA, truncation",
)  # fmt: skip
NAMES: Mapping[str, str] = {  # level of the table -> name in the paper, in the order of figures
    FULL: FULL, "lora": LORA, "lora+lora_plus": "LoRA+", "dora": "DoRA", "mora": SHARING,
    "mora_rotation": ROTATION, "mora_decouple": DECOUPLING, "mora_truncate": TRUNCATION,
    "relora": RELORA, "remora": REMORA, "remora_permute": PERMUTED,
}  # fmt: skip
MAPS = (ROTATION, DECOUPLING, SHARING, TRUNCATION)  # in the order of table 4
# The map that the paper has at each rank; where one rank was run alone, either may be meant.
PUBLISHED_MAP = {LOW: (ROTATION,), HIGH: (SHARING,), ONLY: (ROTATION, SHARING)}


@dataclass(frozen=True)
class Group:
    """The runs of one data set, base model and rank.

    Attributes:
        setting: which part of the paper it belongs to.
        where: its data set and rank, and its base model where there are several.
        dataset: level of the table.
        model: level of the table.
        rank: LoRA's.
        budget: `LOW`, `HIGH` or `ONLY`.
        runs: a row each: run, arm, seed, rate, loss (validation, nats a token), test (the same of
            the test rows).
    """

    setting: str
    where: str
    dataset: str
    model: str
    rank: float
    budget: str
    runs: pd.DataFrame

    @property
    def arms(self) -> list[str]:
        """The arms, in the order of figures."""
        return in_order(dict.fromkeys(self.runs["arm"]))

    @property
    def mora(self) -> list[str]:
        """The arms that the paper calls MoRA at this rank; sharing in pretraining."""
        maps = (SHARING,) if self.setting == PRETRAINING else PUBLISHED_MAP[self.budget]
        return [arm for arm in maps if arm in self.arms]


def in_order(arms: Mapping[str, object]) -> list[str]:
    """Return arms as figures have them; those with further settings behind their own."""
    known = list(NAMES.values())
    return sorted(arms, key=lambda a: (known.index(h) if (h := head(a)) in known else 99, a))


def head(arm: str) -> str:
    """Return the name that an arm begins with, without its further settings."""
    return max((n for n in NAMES.values() if f"{arm} ".startswith(f"{n} ")), key=len, default=arm)


def groups_of(frame: pd.DataFrame, raw: pd.DataFrame) -> list[Group]:
    """Return the groups of a results table in the order of the paper.

    Args:
        frame: prepared.
        raw: as it stands.
    """
    kept = frame[~frame["is_base"] & (frame["control"] == "")]
    first = kept["dataset"].astype(str).str.partition(" ")[0]
    kept = kept.assign(setting=first.map(SETTINGS)).dropna(subset=["setting"])
    if not len(kept) or "lr" not in kept:
        return []
    runs = _with_losses(kept.drop_duplicates("run"), raw)
    order = list(dict.fromkeys(SETTINGS.values()))
    return sorted(_groups(runs), key=lambda g: (order.index(g.setting), g.dataset, g.model, g.rank))


def _with_losses(runs: pd.DataFrame, raw: pd.DataFrame) -> pd.DataFrame:
    run = runs["run"].astype(str)
    found = {}
    for name, table in (("loss", validation_losses(raw)), ("test", heldout_losses(raw, "test"))):
        by_run = table.groupby(table["train_key"].astype(str))["loss"].mean()
        found[name] = run.map(by_run).astype(float)
    return runs.assign(**found)


def _groups(runs: pd.DataFrame) -> Iterator[Group]:
    full = runs["method"].astype(str) == FULL
    for (dataset, model), own in runs.groupby(["dataset", "model"], observed=True, sort=False):
        setting = str(own["setting"].iloc[0])
        ranks = sorted(map(float, own.loc[~full, "rank"].unique()))
        several = runs.loc[runs["setting"] == setting, "model"].nunique() > 1
        for rank in ranks:
            part = usual_rows(own[full.loc[own.index] | (own["rank"].astype(float) == rank)])
            budget = ONLY if len(ranks) == 1 else LOW if rank == ranks[0] else HIGH
            where = f"{dataset}, {model}" if several else str(dataset)
            yield Group(setting, f"{where}, r = {rank:g}", str(dataset), str(model), rank, budget,
                        _runs(part))  # fmt: skip


def _runs(part: pd.DataFrame) -> pd.DataFrame:
    names = carried_names(part.assign(adapter=part["method"].astype(str)), "adapter")
    heads = names.str.partition(" ")
    arm = (heads[0].map(NAMES).fillna(heads[0]) + heads[1] + heads[2]).astype(str)
    table = pd.DataFrame({
        "run": part["run"].astype(str), "arm": arm, "seed": part["seed"].astype(str),
        "rate": part["lr"].astype(float), "loss": part["loss"], "test": part["test"],
    }).reset_index(drop=True)  # fmt: skip
    alone = table.groupby("arm")["rate"].transform("nunique") == 1
    return table.assign(loss=table["loss"].mask(alone & table["loss"].isna(), 0.0))  # no choice
