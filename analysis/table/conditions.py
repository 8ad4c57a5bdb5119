"""Two sets of runs under equal conditions, and their difference for `ablate.load(...).compare`.

`differences` takes the conditions for a sample where cells scatter by more than seeds, and items as
they are. `ablate compare` has its runs from `under_equal_conditions` and does the opposite: other
items, these conditions (`analysis.inference.crossed`).

A run of several names (an alias) may stand under any of them. It counts once, and is never held
against itself.
"""

from collections.abc import Iterator, Sequence

import pandas as pd

from analysis.inference.estimates import DF_RULES, Estimate
from analysis.table.cells import run_means
from analysis.table.factors import carrier, factors_of, joined
from analysis.table.level_means import level_means

ARM = "arm"  # what a side fixes that is the name of an arm
STRATA = ("dataset", "model")
OWN = {"own adapter": "adapter", "own dataset": "dataset", "own model": "model"}  # levels alone
TWINS = {  # columns that hold one factor: naming one fixes the other
    "lr": "rate", "rate": "lr", "method": "adapter", "mode": "masking", "wp": "plw",
    "effective_plw": "plw", "log2_rank": "rank",
}  # fmt: skip


def differences(
    rows: pd.DataFrame, sides: Sequence[set[str]], named: set[str], *, df: str = DF_RULES[0]
) -> Iterator[tuple[dict[str, object], Estimate]]:
    """Yield the difference of two sets of runs in every stratum and kind of task.

    Args:
        rows: prepared, a run for every name: `run` is the name's own, `trained` what was trained;
            with the columns of `OWN`, levels without the settings that they carry.
        sides: the names of the first and of the second side.
        named: the factors that the sides fix.
        df: the rule for degrees of freedom, one of `estimates.DF_RULES`.
    """
    first = sides[0]
    chosen = rows[rows["run"].isin(first | sides[1])]
    facts = chosen.drop_duplicates("run").set_index("run")[["trained", *OWN]]
    named, carried = _fixed(named)
    strata = [n for n in STRATA if n in chosen and n not in named | carried]
    for side in [s for s in ("target", "source", "both") if (chosen["side"] == s).any()]:
        runs = run_means(chosen, side=side)
        runs = runs.assign(first=runs["run"].isin(first)).join(facts, on="run")
        groups = runs.groupby(strata, observed=True) if strata else [((), runs)]
        for key, own in groups:
            shared = _shared(own, named, carried)
            if not len(shared):
                continue
            means = level_means(shared, ["first"], block=["condition", "seed"], df=df)
            side_one = means.table["first"].astype(bool)
            if (effect := means.compare(side_one, ~side_one)) is not None:
                head: dict[str, object] = dict(zip(strata, map(str, key), strict=True))
                counts = shared["first"].value_counts()
                head |= {"tasks": side, "runs_first": int(counts[True])}
                head |= {"runs_second": int(counts[False]), "replicated": means.replicated}
                yield head, effect


def under_equal_conditions(
    rows: pd.DataFrame, sides: Sequence[set[str]], named: set[str]
) -> pd.DataFrame:
    """Return the runs of two sides under conditions that both ran, whatever their benchmarks.

    Data set and base model are conditions like any other here.

    Args:
        rows: as of `differences`.
        sides: as of `differences`.
        named: as of `differences`.

    Returns:
        One row a run: trained, seed, condition, first.
    """
    runs = rows[rows["run"].isin(sides[0] | sides[1])].drop_duplicates("run")
    runs = runs.assign(first=runs["run"].isin(sides[0])).reset_index(drop=True)
    return _shared(runs, *_fixed(named))[["trained", "seed", "condition", "first"]]


def _fixed(named: set[str]) -> tuple[set[str], set[str]]:
    """Return all factors that the sides fix, and the columns that carry a setting of these."""
    named = named | {TWINS[n] for n in named if n in TWINS}
    return named, {carrier(n) for n in named} - {"", *named}


def _shared(runs: pd.DataFrame, named: set[str], carried: set[str]) -> pd.DataFrame:
    """Return the runs under conditions that both sides ran, every trained run once.

    Args:
        runs: a row per name: first (whether of the first side), trained, seed, score.
        named: the factors that the sides fix.
        carried: columns that carry a setting of these; what else they carry is a condition.
    """
    factors = factors_of(runs)
    arm = factors.columns("arm") if ARM in named else []
    others = [n for n in factors.cell if n not in {*named, *carried, *arm}]
    parted = carried | ({"adapter"} if "method" in named else set())
    others += [f.column for f in factors if f.inside in parted and f.column not in named]
    others += [own for own, column in OWN.items() if column in carried]
    runs = runs.assign(condition=joined(runs, others))
    both = runs.groupby(["condition", "trained"])["first"].transform("nunique") > 1
    runs = _of_both(runs[~both])  # what is one run on both sides says nothing of their difference
    # A run stands under that of its conditions which the grid names first, whatever its side.
    name = runs["run"].astype(int)
    order = pd.DataFrame({"first": name.groupby(runs["condition"]).transform("min"), "name": name})
    runs = runs.loc[order.sort_values(["first", "name"], kind="stable").index]
    return _of_both(runs.drop_duplicates("trained"))


def _of_both(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the runs of conditions that have runs of both sides."""
    return runs[runs.groupby("condition")["first"].transform("nunique") > 1]
