"""The runs of LoRA against full tuning, read from a results table: a row per run."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from analysis.papers.lora_tradeoffs.runs import INSTRUCTIONS, NATS, POINTS, TEXT, Tradeoff, lora
from analysis.questions.own_rate.curves import RateCurve, rate_curves
from analysis.table.cells import run_means, without_gaps
from analysis.table.factors import BASE, FULL
from analysis.table.frame import SCORED
from analysis.table.validation_losses import LOSSES

DOMAINS = {
    "micro_code": "code", "micro_code_instructions": "code", "starcoder_python": "code",
    "magicoder": "code", "micro_math": "math", "micro_math_instructions": "math",
    "open_web_math": "math", "metamath": "math",
}  # fmt: skip
STEPS, EPOCHS, ALPHA = "train.max_steps", "train.epochs", "adapter.options.alpha"
PLAIN = {"placement": "all", "regulariser": "none"}
ALPHA_OVER_RANK = 2.0  # the paper's, at every rank
HALF = 0.5  # a seed that lacks more of the rates is left out


def tradeoff_of(frame: pd.DataFrame, raw: pd.DataFrame) -> Tradeoff | None:
    """Return the runs of a prepared frame; None without full tuning or LoRA on one of the settings.

    Args:
        frame: of `analysis.table.frame.from_results`.
        raw: the results table as it stands, for the untouched base's losses: a frame has each run
            once, and the base under one data set alone.
    """
    trained = frame[~frame["is_base"] & (frame["control"] == "")]
    trained = trained[trained["method"].astype(str).isin([FULL, "lora"])]
    names = trained["dataset"].astype(str).str.partition(" ")[0]
    trained = trained[names.isin(DOMAINS)]
    if not len(trained) or "optimizer" not in trained or not {STEPS, EPOCHS} & set(trained):
        return None
    once = trained.drop_duplicates("run")
    optimizer = str(once["optimizer"].astype(str).mode().iloc[0])
    runs = _labelled(once, optimizer).set_index("run")
    losses = {part: _by_run(_losses(trained, part)) for part in ("validation", "test")}
    kept, base = _source(frame)
    unit = NATS if losses["test"].index.isin(runs.index).any() else POINTS
    learnt = _gain(once, losses["test"], raw) if unit == NATS else _target(trained)
    found = runs.assign(
        loss=losses["validation"].reindex(runs.index), learnt=learnt.reindex(runs.index),
        kept=kept.reindex(runs.index),
    ).dropna(subset=["learnt", "kept"]).reset_index()  # fmt: skip
    found = _with_a_choice(found)
    return Tradeoff(found, _curves(found), unit, base, optimizer) if len(found) else None


def _labelled(runs: pd.DataFrame, optimizer: str) -> pd.DataFrame:
    """Return run, setting, arm, variant, rank, budget, seed and rate, a row per run."""
    rows = []
    for row in runs.to_dict("records"):
        rank = 0.0 if str(row["method"]) == FULL else float(row["rank"])
        head, variant = lora(rank) if rank else FULL, _variant(row, rank, optimizer)
        regime = TEXT if str(row["dataset_type"]) == "text" else INSTRUCTIONS
        steps = _number(row, STEPS)
        rows.append({
            "run": str(row["run"]),
            "setting": f"{DOMAINS[str(row['dataset']).partition(' ')[0]]} {regime}",
            "arm": f"{head}, {variant}" if variant else head, "variant": variant, "rank": rank,
            "budget": steps if np.isfinite(steps) else _number(row, EPOCHS),
            "seed": str(row["seed"]), "rate": float(row["lr"]),
        })  # fmt: skip
    return pd.DataFrame(rows).dropna(subset=["budget"])


def _variant(row: Mapping[Any, Any], rank: float, optimizer: str) -> str:
    """Return what is changed about the plain arm, in words; "" for the plain one.

    The paper trains the embeddings in full tuning and not in LoRA, and has an alpha of twice the
    rank.
    """
    said = []
    trained = str(row.get("embeddings", "trained" if not rank else "frozen")) == "trained"
    if trained != (rank == 0):
        said.append(f"{'trained' if trained else 'frozen'} embeddings")
    if str(row.get("placement", PLAIN["placement"])) != PLAIN["placement"]:
        said.append(f"on {row['placement']}")
    held = str(row.get("regulariser", PLAIN["regulariser"]))
    if held != PLAIN["regulariser"]:
        strength = _number(row, f"regulariser.{held}")
        if not np.isfinite(strength):  # weight decay is carried out, and recorded, as training's
            strength = _number(row, f"train.{held}")
        text = held.replace("_", " ")
        said.append(f"{text} {strength:g}" if np.isfinite(strength) else text)
    if str(row["optimizer"]) != optimizer:
        said.append(str(row["optimizer"]))
    alpha = _number(row, ALPHA)
    if rank and np.isfinite(alpha) and alpha != ALPHA_OVER_RANK * rank:
        said.append(f"alpha {alpha:g}")
    return ", ".join(said)


def _number(row: Mapping[Any, Any], name: str) -> float:
    """Return a setting as a number; NaN where a run has none, or none was given ("null")."""
    value = row.get(name)
    if value is None or value is pd.NA or str(value) == "null":
        return float("nan")
    return float(str(value))


def _losses(rows: pd.DataFrame, part: str) -> pd.DataFrame:
    """Return the rows with a loss on one part of the held-out rows of what is trained on."""
    held = rows["task"].astype(str).str.contains(part) & rows["task_type"].eq("heldout")
    return rows[held & rows["metric"].astype(str).isin(LOSSES)]


def _by_run(rows: pd.DataFrame) -> "pd.Series[float]":
    return rows.groupby(rows["run"].astype(str))["value"].mean().astype(float)


def _gain(runs: pd.DataFrame, loss: "pd.Series[float]", raw: pd.DataFrame) -> "pd.Series[float]":
    """Return how far every run's loss lies below its base's, or below 0 where that is not known."""
    base = _losses(raw[raw["adapter"].astype(str) == BASE], "test")
    start = base.groupby(_places(base))["value"].mean()
    own = start.reindex(pd.MultiIndex.from_arrays(_places(runs))).fillna(0.0).to_numpy(float)
    index = runs["run"].astype(str).to_numpy()
    return pd.Series(own, index=index) - loss.reindex(index)


def _places(rows: pd.DataFrame) -> list["pd.Series[str]"]:
    """Return base model and data set, without settings that their names carry in a frame."""
    return [rows[name].astype(str).str.partition(" ")[0] for name in ("model", "dataset")]


def _source(frame: pd.DataFrame) -> tuple["pd.Series[float]", float | None]:
    rows = frame[frame["task_type"].isin(SCORED) & frame["side"].astype(str).eq("source")]
    base = rows[rows["is_base"]]
    start = float(base.groupby("task", observed=True)["score"].mean().mean()) if len(base) else None
    return _mean_scores(rows[~rows["is_base"]]), start


def _target(trained: pd.DataFrame) -> "pd.Series[float]":
    rows = trained[trained["task_type"].isin(SCORED)]
    return _mean_scores(rows[rows["side"].astype(str) == "target"])


def _mean_scores(rows: pd.DataFrame) -> "pd.Series[float]":
    if not len(rows):
        return pd.Series(dtype=float)
    means = run_means(without_gaps(rows))
    return pd.Series(means["score"].to_numpy(float), index=means["run"].astype(str))


def _with_a_choice(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the runs from which rates can be chosen.

    Without a validation loss nothing is chosen: an arm's runs count at the rate that it has at most
    of its budgets, as a table of single runs was made.
    """
    if runs["loss"].notna().any():
        return runs.dropna(subset=["loss"])
    budgets = runs.groupby(["setting", "arm", "rate"])["budget"].nunique().reset_index()
    most = budgets.sort_values("budget", kind="stable").groupby(["setting", "arm"]).tail(1)
    kept = runs.merge(most[["setting", "arm", "rate"]], on=["setting", "arm", "rate"])
    return kept.assign(loss=0.0)


def _curves(runs: pd.DataFrame) -> tuple[tuple[str, RateCurve, RateCurve], ...]:
    """Return both outcomes over the rates, by setting, arm and budget."""
    groups = [_whole(own) for _, own in runs.groupby(["setting", "arm", "budget"], sort=False)]
    table = pd.concat(groups).rename(columns={"budget": "place"})
    found = []
    for setting, own in table.groupby("setting", sort=False):
        both = [rate_curves(own.assign(score=own[n]), fewest=1) for n in ("learnt", "kept")]
        found += [(str(setting), one, other) for one, other in zip(*both, strict=True)]
    return tuple(found)


def _whole(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the runs of seeds with most of the rates, at the rates that all of these have.

    A rate at which a seed did not come through is none to choose.
    """
    rates = runs.groupby("seed")["rate"].nunique()
    seeds = rates.index[rates > HALF * runs["rate"].nunique()]
    own = runs[runs["seed"].isin(seeds)]
    count = own.groupby("rate")["seed"].nunique()
    return own[own["rate"].isin(count.index[count == len(seeds)])]
