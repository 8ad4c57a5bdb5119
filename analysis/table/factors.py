"""The factors of a study: the one list of what varies over its runs.

A factor is a column of the results table: a level (`adapter`, `rank`, `plw`, ...) or a setting by
its dotted path (`train.epochs`). Each belongs to a part of the design:

    stratum     data set and base model: cells are compared within one
    dose        masking and prompt loss weight
    arm         adapter, rank, init, optimizer, placement, precision of the base, embeddings
    setting     everything else that was varied
    replicate   the seed
    control     sham labels and shuffled prompts

In a prepared frame (`analysis.table.frame`) some columns carry others: `adapter` holds the level of
init, optimizer and of every adapter setting that varies ("lora dropout 0.1"), `dataset` and `model`
those of their settings. Such a factor has the carrying column in `inside`.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd

from analysis.engine.linalg import Index

Part = Literal["stratum", "dose", "arm", "setting", "replicate", "control"]
Kind = Literal["categories", "number", "log number"]

# Every level of the results table, in the order in which names and formulas have them.
PARTS: Mapping[str, Part] = {
    "dataset": "stratum", "model": "stratum", "masking": "dose", "plw": "dose", "adapter": "arm",
    "rank": "arm", "init": "arm", "optimizer": "arm", "normaliser": "setting", "scope": "setting",
    "token_rule": "setting",
    "embeddings": "arm", "placement": "arm", "regulariser": "setting", "base_precision": "arm",
    "completion_weight": "setting", "train": "setting", "lr": "setting", "rate": "setting",
    "seed": "replicate", "sham": "control", "shuffle_prompts": "control", "control": "control",
}  # fmt: skip
# Every group of settings: the part its dotted paths belong to.
GROUPS: Mapping[str, Part] = {
    "dataset": "stratum", "model": "stratum", "masking": "dose", "adapter": "arm", "init": "arm",
    "optimizer": "arm", "placement": "arm", "loss": "setting", "regulariser": "setting",
    "train": "setting", "evaluate": "setting", "execution": "setting",
}  # fmt: skip
CARRIED = {  # group or level: the column of a prepared frame that carries it
    "adapter": "adapter", "init": "adapter", "optimizer": "adapter", "dataset": "dataset",
    "model": "model",
}  # fmt: skip
DEFAULTS = {  # the level that a name need not mention, and that a tie between levels goes to
    "init": "default", "optimizer": "adamw", "normaliser": "weight", "scope": "batch",
    "token_rule": "none", "embeddings": "frozen", "placement": "all", "regulariser": "none",
    "base_precision": "fp32",
    "completion_weight": "1", "sham": "a", "shuffle_prompts": "False",
}  # fmt: skip
NAMES = {"plw": "prompt loss weight", "dataset": "data set", "model": "base model",
         "rate": "learning rate", "lr": "learning rate", "train": "training settings"}  # fmt: skip
FULL, BASE = "full", "none"  # methods without a rank: full fine-tuning, and the untouched base
NO_RANK = ""  # of full fine-tuning
DECADE = 10.0  # a number that spans more than this is shown and modelled on a log scale
FREE = (
    "rate",
)  # varied, but every learning rate is an arm's own: figures are not restricted to one


@dataclass(frozen=True, slots=True)
class Factor:
    """One factor and its levels, as text in their order."""

    column: str
    name: str  # readable: "dropout", "learning rate"
    part: Part
    kind: Kind
    levels: tuple[str, ...]
    reference: str  # the usual level: that of most runs
    inside: str = ""  # the column of a prepared frame that carries its levels
    determined_by: tuple[str, ...] = ()  # factors each level of which has one level of this one
    aliases: tuple[str, ...] = ()  # those of them that this one determines in turn
    only: tuple[str, ...] = ()  # the methods that have it, where others have not

    def text(self, level: Any) -> str:
        """Return a level as the name of a run has it; "" where the run has none."""
        if level is None or level is pd.NA or (isinstance(level, float) and np.isnan(level)):
            return ""
        plain = level_text(level)
        return f"{self.name} {plain}" if "." in self.column or self.column == "rate" else plain


@dataclass(frozen=True)
class Factors:
    """The factors of some rows, in the order of `PARTS`, settings by path behind their group."""

    all: tuple[Factor, ...]

    def __iter__(self) -> Iterator[Factor]:
        return iter(self.all)

    def __contains__(self, column: str) -> bool:
        return any(f.column == column for f in self.all)

    def __getitem__(self, column: str) -> Factor:
        return next(f for f in self.all if f.column == column)

    def columns(self, *parts: Part) -> list[str]:
        """Return the columns of some parts, of all by default; what another carries is left out."""
        return [f.column for f in self.all if not f.inside and (not parts or f.part in parts)]

    @property
    def cell(self) -> list[str]:
        """The columns that name a cell within its stratum."""
        return self.columns("dose", "arm", "setting")

    @cached_property
    def settings(self) -> list[Factor]:
        """What varies beside masking, PLW, adapter, rank and stratum."""
        of_interest = ("masking", "plw", "adapter", "rank")
        return [
            f for f in self.all
            if f.part in ("dose", "arm", "setting") and not f.inside
            and f.column not in of_interest
        ]  # fmt: skip

    @cached_property
    def usual(self) -> dict[str, str]:
        """The usual level of every setting, as text: that of most runs."""
        return {f.column: f.reference for f in self.settings}

    def main(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Return the rows at the usual level of every setting but the learning rate.

        An arm that never ran at the usual level of a setting is shown at its own most frequent
        one: it would be missing from every comparison of arms otherwise.
        """
        kept = pd.Series(True, rows.index)
        for name, level in self.usual.items():
            if name in rows and name not in FREE:
                kept &= rows[name].map(level_text).astype(str) == self._shown(rows, name, level)
        return rows[kept]

    def _shown(self, rows: pd.DataFrame, name: str, usual: str) -> "pd.Series[str]":
        """Return the level of a setting at which every row's arm is shown."""
        levels = rows[name].map(level_text).astype(str)
        arm = joined(_with_rank(rows), [n for n in ("adapter", "rank") if n in rows and n != name])
        own = {
            key: usual if (part == usual).any() else most_common(part, part)[0]
            for key, part in levels.groupby(arm)
        }
        return arm.map(own)

    def elsewhere(self, rows: pd.DataFrame) -> Iterator[tuple[str, str, list[str]]]:
        """Yield every factor whose usual level some arms never ran at, their levels, the arms."""
        names = [n for n in ("adapter", "rank") if n in rows]
        arm = _rank_marked(_with_rank(rows)[names].astype(str))
        for factor in self.all:
            name = factor.column
            if factor.part in ("dose", "setting") or name in self.usual:
                by_arm = rows[name].map(level_text).astype(str).groupby(arm).agg(set)
                away = by_arm[[factor.reference not in own for own in by_arm]]
                for own, arms in away.groupby(away.map(lambda own: ", ".join(sorted(own)))):
                    yield name, str(own), sorted(arms.index)

    def arm_names(self, rows: pd.DataFrame) -> "pd.Series[str]":
        """Return every row's arm: "full", "lora r8", "lora dropout 0.1 r8 attention"."""
        names = self._texts(_with_rank(rows), ("arm",), always=("adapter",), unsaid=True)
        return _rank_marked(names)

    def cell_names(self, rows: pd.DataFrame) -> "pd.Series[str]":
        """Return every row's cell within its stratum: what varies, rank not for full."""
        names = self._texts(_with_rank(rows), ("dose", "arm", "setting"))
        return _line(names) if len(names.columns) else pd.Series("all", rows.index)

    def _texts(
        self,
        rows: pd.DataFrame,
        parts: Sequence[Part],
        *,
        always: Sequence[str] = (),
        unsaid: bool = False,
    ) -> pd.DataFrame:
        """Return the text of every level, a column per factor; `unsaid` leaves defaults out."""
        found = {n: rows[n].astype(str) for n in always if n in rows and n not in self}
        for factor in self.all:
            name = factor.column
            if factor.part in parts and not factor.inside and name in rows:
                texts = rows[name].map(factor.text, na_action=None).astype(str)
                if unsaid and name in DEFAULTS:
                    texts = texts.mask(rows[name].astype(str) == DEFAULTS[name], "")
                found[name] = texts
        return pd.DataFrame(found, index=rows.index)


def _with_rank(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with ranks as text, none for full fine-tuning."""
    if "rank" not in rows or "adapter" not in rows:
        return rows
    method = rows["method"] if "method" in rows else rows["adapter"]
    return rows.assign(rank=rows["rank"].map(level_text).mask(method.astype(str) == FULL, NO_RANK))


def _rank_marked(names: pd.DataFrame) -> "pd.Series[str]":
    if "rank" in names:
        names = names.assign(rank=("r" + names["rank"]).where(names["rank"] != "", ""))
    return _line(names)


def _line(names: pd.DataFrame) -> "pd.Series[str]":
    columns = (names[n].astype(str).tolist() for n in names)
    # Empty levels leave no double space behind.
    texts = [" ".join(" ".join(levels).split()) for levels in zip(*columns, strict=True)]
    return pd.Series(texts, index=names.index, dtype=str)


def joined(rows: pd.DataFrame, names: Sequence[str]) -> "pd.Series[str]":
    """Return the levels of some columns in one text, "all" where there are no columns."""
    if not names:
        return pd.Series("all", rows.index)
    return _line(rows[list(names)].astype("string").fillna(""))


def stratum_names(rows: pd.DataFrame) -> "pd.Series[str]":
    """Return every row's data set and base model."""
    return joined(rows, [n for n in ("dataset", "model") if n in rows])


def study_cells(rows: pd.DataFrame) -> "pd.Series[str]":
    """Return every row's cell with its stratum: a name that no other cell of the study has."""
    return stratum_names(rows) + " " + cell_names(rows)


def cell_names(rows: pd.DataFrame) -> "pd.Series[str]":
    """Return every row's cell within its stratum, by what varies over these rows."""
    return factors_of(rows).cell_names(rows)


def level_text(level: Any) -> str:
    """Return a level as text: a number as short as it is, without a trailing .0."""
    if isinstance(level, float | np.floating):
        if not isinstance(level, float):  # of fewer digits: 0.1, not 0.10000000149
            level = float(str(level))
        return "" if np.isnan(level) else f"{level:.12g}"
    return str(level)


# --- which columns are factors -------------------------------------------------------------------


def is_setting(column: str) -> bool:
    """Return whether a column is a setting by its dotted path."""
    return "." in column and column.partition(".")[0] in GROUPS


def is_number(column: "pd.Series[Any]") -> bool:
    """Return whether a column holds numbers; truth values are none."""
    return bool(pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column))


def part_of(column: str) -> Part:
    """Return the part of the design that a level or a setting belongs to."""
    return GROUPS[column.partition(".")[0]] if is_setting(column) else PARTS[column]


def level_columns(rows: pd.DataFrame) -> list[str]:
    """Return the columns that hold levels or settings, varying or not, in the order of `PARTS`."""
    settings = [str(n) for n in rows.columns if is_setting(str(n))]
    return sorted([n for n in PARTS if n in rows] + settings, key=_place)


BEHIND = {"loss": "scope", "evaluate": "rate", "execution": "rate"}  # groups without a level


def _place(column: str) -> float:
    """Return where a column stands: a setting by its path is behind the level of its group."""
    order = list(PARTS)
    if not is_setting(column):
        return order.index(column)
    group = column.partition(".")[0]
    return order.index(BEHIND.get(group, group)) + 0.5


def run_columns(rows: pd.DataFrame) -> list[str]:
    """Return `run` and the columns that tell the runs of a prepared frame apart."""
    return own_columns(rows, ("run", *level_columns(rows)))


def own_columns(rows: pd.DataFrame, names: Iterable[str]) -> list[str]:
    """Return those of some columns that the table has and that no other column carries."""
    return [n for n in names if n in rows and not carrier(n)]


def varying(rows: pd.DataFrame) -> list[str]:
    """Return the columns of levels and settings that take several values over the rows."""
    return [n for n in level_columns(rows) if rows[n].nunique() > 1]


def factors_of(rows: pd.DataFrame) -> Factors:
    """Return the factors of the rows of a results table or of a prepared frame.

    Args:
        rows: of trained runs; the untouched base has no levels and is passed over.
    """
    runs = rows.drop_duplicates("run") if "run" in rows else rows
    if "adapter" in runs:
        runs = runs[_methods(runs) != BASE]
    prepared = "method" in runs
    columns = varying(runs)
    if "rate" in runs:  # a rate that each arm has of its own, tuned, is no factor
        columns = [n for n in columns if n != "lr"]
    names = readable(columns)
    made = tuple(_factor(runs, n, names[n], prepared=prepared) for n in columns)
    codes = {n: pd.factorize(runs[n].astype(str))[0] for n in columns}
    return Factors(tuple(_related(f, made, codes) for f in made))


def _methods(rows: pd.DataFrame) -> "pd.Series[str]":
    return (rows["method"] if "method" in rows else rows["adapter"]).astype(str)


def _factor(runs: pd.DataFrame, column: str, name: str, *, prepared: bool) -> Factor:
    known = runs[column].dropna()
    numbers = is_number(known)
    levels = sorted(known.unique(), key=in_order)
    most = most_common(known, levels)
    default = DEFAULTS.get(column, most[0])
    spread = numbers and min(levels) > 0 and max(levels) / min(levels) >= DECADE
    kind: Kind = "log number" if spread or column in ("lr", "rate") else "number"
    return Factor(
        column=column,
        name=name,
        part=part_of(column),
        kind=kind if numbers else "categories",
        levels=tuple(map(level_text, levels)),
        reference=default if default in most else most[0],
        inside=carrier(column) if prepared else "",
        only=_methods_with(runs, column) if is_setting(column) else (),
    )


def most_common(known: "pd.Series[Any]", levels: Iterable[Any]) -> list[str]:
    """Return the levels that most rows have, as text: several where they have equally many."""
    codes, there = pd.factorize(known, use_na_sentinel=False)
    counts: Counter[str] = Counter()
    for level, count in zip(there, np.bincount(codes), strict=True):
        counts[level_text(level)] += int(count)
    texts, most = dict.fromkeys(map(level_text, levels)), max(counts.values(), default=-1)
    return [text for text in texts if counts[text] == most]


def carrier(column: str) -> str:
    """Return the column of a prepared frame that carries another, "" where none does."""
    carried = CARRIED.get(column.partition(".")[0], "")
    return "" if carried == column else carried


def _methods_with(runs: pd.DataFrame, column: str) -> tuple[str, ...]:
    """Return the methods whose runs have a setting, where runs of another have not."""
    if "adapter" not in runs or not runs[column].isna().any():
        return ()
    methods = _methods(runs)
    return tuple(sorted(set(methods[runs[column].notna()])))


def _related(factor: Factor, others: Iterable[Factor], codes: Mapping[str, Index]) -> Factor:
    """Return the factor with the factors that it cannot be told apart from.

    Args:
        factor: one of a table.
        others: all of them.
        codes: of every run the level of each, as a number; below zero where it has none.
    """
    if factor.column in ("dataset", "model", "masking", "plw", "adapter", "rank", "seed"):
        return factor
    own, determined, aliases = codes[factor.column], [], []
    for other in others:
        if other.column in (factor.column, factor.inside, "plw", "masking"):
            continue
        theirs = codes[other.column]
        if _determines(theirs, own):
            determined.append(other.column)
            if _determines(own, theirs):
                aliases.append(other.column)
    return replace(factor, determined_by=tuple(determined), aliases=tuple(aliases))


def _determines(one: Index, other: Index) -> bool:
    """Return whether every level of one factor is found with one level of the other alone."""
    known = (one >= 0) & (other >= 0)
    pairs = one[known] * (int(other.max(initial=0)) + 1) + other[known]
    return 0 < len(np.unique(pairs)) == len(np.unique(one[known]))


def in_order(level: Any) -> tuple[bool, Any]:
    """Return what sorts levels: numbers by size, then names."""
    number = isinstance(level, int | float | np.number) and not isinstance(level, bool)
    return (not number, level if number else str(level))


# --- readable names ------------------------------------------------------------------------------


def readable(columns: Iterable[str]) -> dict[str, str]:
    """Return a short name of every column: of a path its shortest ending that no other has."""
    names = {n: _words(n) for n in columns}
    return {n: _ending(n, names) for n in names}


def _words(column: str) -> list[str]:
    if not is_setting(column):
        return [NAMES.get(column, column.replace("_", " "))]
    return [w.replace("_", " ") for w in column.split(".") if w != "options"]


def _ending(column: str, names: Mapping[str, list[str]]) -> str:
    own = names[column]
    for size in range(1, len(own) + 1):
        text = " ".join(own[-size:])
        if not any(" ".join(w[-size:]) == text for n, w in names.items() if n != column):
            return text
    return " ".join(own)
