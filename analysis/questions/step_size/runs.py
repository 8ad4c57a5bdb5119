"""Runs of every masking mode and weight over learning rates, under every name that they have.

A normaliser does nothing where the prompt has no weight, so such a run stands once in the results
with several names. Each name is a place (one level of every other setting), and the run is the
partner of the weighted runs at all of its places.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from analysis.questions.own_rate.curves import rate_curves
from analysis.questions.own_rate.estimate import Compared, items_of
from analysis.regression.study import DOSE, STRATUM, Study
from analysis.report import words
from analysis.table.cells import run_means
from analysis.table.factors import Factor, joined, level_text
from analysis.table.run_panels import grouped
from analysis.table.validation_losses import validation_losses

ALONE = "all runs"  # the place where nothing but dose and rate varies


def compared_doses(study: Study) -> list[Compared]:
    """Return the doses of every data set, base model and side of the tasks, target tasks first.

    The one with the smallest weight on the prompt is what others are held against. Empty where
    fewer than two doses ran at three rates with a validation loss.
    """
    return study.once("doses at their own rates", lambda: list(_compared(study)))


def _compared(study: Study) -> Iterator[Compared]:
    if not study.stepped:
        return
    for side in [s for s in words.SIDES if (study.rows["side"] == s).any()]:
        rows = study.rows[study.rows["side"] == side]
        for labels, own in grouped(_named_runs(rows, study), STRATUM):
            curves = tuple(rate_curves(own))
            if len({c.arm for c in curves}) > 1:
                least = own.sort_values(["wp", "arm"], kind="stable")["arm"].iloc[0]
                items = items_of(study, rows, {r for c in curves for s in c.run_SK for r in s})
                yield Compared({**labels, "side": side}, curves, items, str(least))


def place_levels(study: Study) -> dict[str, dict[str, str]]:
    """Return the level of every other factor at every place, by the place's name."""
    factors = other_factors(study)
    own = [f.column for f in factors]
    named = _named_runs(study.rows, study).drop_duplicates("place")
    records = named[own].to_dict("records")
    return {
        str(place): {str(n): str(level) for n, level in one.items()}
        for place, one in zip(named["place"], records, strict=True)
    }


def other_factors(study: Study) -> list[Factor]:
    """Return what varies beside the dose, its rate, the seed and the stratum."""
    return [
        f for f in study.factors
        if f.part in ("arm", "setting") and not f.inside and f.column not in ("rate", "lr")
    ]  # fmt: skip


def place_of(levels: Mapping[Any, Any], factors: list[Factor]) -> str:
    """Return the name of a place: its level of every other factor."""
    return ", ".join(_text(f, levels[f.column]) for f in factors) or ALONE


def _text(factor: Factor, level: str) -> str:
    """Return a level with its factor's name: "normaliser weight"."""
    return level if factor.part == "arm" else f"{factor.name} {level}"


def _named_runs(rows: pd.DataFrame, study: Study) -> pd.DataFrame:
    """Return a row per run and name: arm, place, seed, rate, loss, score, run, wp and stratum.

    Under no place does a run stand for two doses: it is the one that the grid names first.
    """
    losses = validation_losses(study.raw).dropna(subset=["loss"])
    loss = losses.groupby(losses["train_key"].astype(str))["loss"].mean()
    runs = run_means(rows)
    runs["run"] = runs["run"].astype(str)
    factors = other_factors(study)
    columns = [*DOSE, *(f.column for f in factors)]
    own = [n for n in columns if n in runs]
    levels = runs[own].map(_level).assign(run=runs["run"])
    named = pd.concat([levels, _aliases(study.raw, levels, own)], ignore_index=True)
    named = named.drop_duplicates(["run", *own])
    named["arm"] = _dose_names(named)
    named["place"] = [place_of(one, factors) for one in named[own].to_dict("records")]
    named = named.drop_duplicates(["run", "place"])
    kept = runs[["run", "seed", "rate", "score", "wp", *STRATUM]]
    levels_too = [f.column for f in factors if f.column in own]
    found = named[["run", "arm", "place", *levels_too]].merge(kept, on="run")
    found["loss"] = found["run"].map(loss)
    return found.astype({"seed": str}).dropna(subset=["loss", "score"])


def _aliases(raw: pd.DataFrame, levels: pd.DataFrame, own: list[str]) -> pd.DataFrame:
    """Return the further names of the runs, with what the results do not say as the runs have it.

    A column that another carries in a prepared frame is taken from the run as well.
    """
    if "alias" not in raw or not raw["alias"].astype(bool).any():
        return levels.iloc[:0]
    plain = [n for n in own if n in raw and n != "adapter"]
    table = raw[raw["alias"].astype(bool)].assign(run=raw["train_key"].astype(str))
    table = table[["run", *plain]].drop_duplicates()
    names = table[plain].map(_level).assign(run=table["run"])
    rest = [n for n in own if n not in plain]
    return names.merge(levels[["run", *rest]].drop_duplicates("run"), on="run")


def _level(level: object) -> str:
    return level_text(level)


def _dose_names(named: pd.DataFrame) -> "pd.Series[str]":
    """Return every row's dose: its mode, with the weight where one mode has several or is alone."""
    several = named.groupby("masking")["plw"].nunique().max() > 1
    if named["masking"].nunique() > 1 and not several:
        return named["masking"]
    weight = "PLW " + named["plw"].map(lambda plw: words.plw_text(float(plw)))
    if named["masking"].nunique() == 1:
        return weight
    return joined(named.assign(weight=weight), ["masking", "weight"])
