"""The scores of one run, whoever wrote them down.

Items are the rows of `Log.items`:

    task      the benchmark as the log names it, a subtask of a group by itself
    group     the group that the task is a part of, else the task
    metric    what was measured
    doc       the item's number or name in its log
    item      what the item is: a hash of the document where the log has it, else `doc`
    cluster   the value of the column that was asked for, else ""
    score     in the metric's own unit; NaN where the item has none

and the scores as the log states them, with their errors, those of `Log.scores`: task, group,
metric, value, se, n.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.logs import clean

ITEMS = ["task", "group", "metric", "doc", "item", "cluster", "score"]
SCORES = ["task", "group", "metric", "value", "se", "n"]
NAMES = ("task", "group", "metric")


@dataclass(frozen=True)
class Log:
    """One run: a model, or a trained cell, with what it scored.

    Attributes:
        name: what the run is called.
        model: what answered.
        source: the file or folder that it was read from.
        seed: of the run, as text; "" where nothing tells it.
        levels: what makes two runs comparable beside the seed, such as the levels of factors.
        config: settings, flat, as text.
        items: a row an item, see the module.
        scores: a row a score, see the module.
        lower: the metrics of which a low value is good, as (task, metric).
        notes: what a reader should know, a sentence each.
    """

    name: str
    model: str
    source: Path
    seed: str = ""
    levels: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, str] = field(default_factory=dict)
    items: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=ITEMS))
    scores: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=SCORES))
    lower: frozenset[tuple[str, str]] = frozenset()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Replace what no terminal and no statistic can take, whoever wrote the log."""
        items, lost = clean.numbers(clean.columns(self.items, (*NAMES, "doc")), "score")
        scores, _ = clean.numbers(clean.columns(self.scores, NAMES), "value")
        lost += int(scores["value"].isna().sum())
        scores, _ = clean.numbers(scores[scores["value"].notna()], "se")
        notes = [clean.text(note) for note in self.notes]
        if lost:
            notes.append(
                f"{clean.text(self.model)}: {lost} scores are no numbers, infinite or beyond "
                f"{clean.LARGEST:g} and count as missing."
            )
        fields = {
            "name": clean.text(self.name), "model": clean.text(self.model),
            "seed": clean.text(self.seed), "levels": clean.texts(self.levels),
            "config": clean.texts(self.config), "items": items, "scores": scores,
            "lower": frozenset((clean.text(t), clean.text(m)) for t, m in self.lower),
            "notes": tuple(notes),
        }  # fmt: skip
        for name, value in fields.items():
            object.__setattr__(self, name, value)


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested settings as one level of text; what is empty or unset is left out."""
    found: dict[str, str] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found |= flat(value, f"{name}.")
        elif value not in (None, "", [], {}):
            found[name] = " ".join(str(value).split())
    return found


def seed_in(*words: object) -> str:
    """Return the seed that a name states ("model_seed3", "seed=3", ".../seed-3/"); "" if none."""
    for word in words:
        if found := re.search(r"(?<![A-Za-z])seed[-_=]?(\d+)", str(word), re.IGNORECASE):
            return found[1]
    return ""


def with_places(items: pd.DataFrame) -> pd.DataFrame:
    """Return items of which equal ones (a document asked twice) are told apart by their order."""
    place = items.groupby(["task", "metric", "item"], sort=False).cumcount()
    marked = items["item"] + "#" + place.astype(str)
    return items.assign(item=items["item"].where(place == 0, marked))


def combined(logs: Iterable[Log]) -> list[Log]:
    """Return the logs with those of one model and seed made one; of a task the last one is kept.

    Args:
        logs: the oldest first.
    """
    found: dict[tuple[str, str], Log] = {}
    for log in logs:
        key = (log.model, log.seed)
        found[key] = _joined(found[key], log) if key in found else log
    return list(found.values())


def _joined(old: Log, new: Log) -> Log:
    """Return two logs as one; what both have is the new one's."""
    tasks = set(new.items["task"]) | set(new.scores["task"])
    repeated = sorted(map(str, tasks & (set(old.items["task"]) | set(old.scores["task"]))))
    parts = {
        name: pd.concat([own[~own["task"].isin(tasks)], getattr(new, name)], ignore_index=True)
        for name in ("items", "scores")
        if (own := getattr(old, name)) is not None
    }
    said = [
        f"{new.model}: {', '.join(repeated[:3])}{' ...' if len(repeated) > 3 else ''} was logged "
        f"more than once; the last log counts, name files to take others."
    ] if repeated else []  # fmt: skip
    return replace(
        new,
        source=new.source.parent,
        config={**old.config, **new.config},
        lower=old.lower | new.lower,
        notes=tuple(dict.fromkeys([*old.notes, *new.notes, *said])),
        **parts,
    )
