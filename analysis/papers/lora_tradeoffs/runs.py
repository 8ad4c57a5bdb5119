"""The runs of LoRA against full tuning over budgets, and every arm at a learning rate of its own.

A run has two numbers, both better higher:

    learnt  nats a token by which the loss on held-out test rows of what is trained on fell below
            the untouched base's; points of the target tasks where no such loss was measured
    kept    mean score on the source tasks, points: what is lost of it is forgetting

A setting is code or mathematics, as text (CPT) or as instructions (IFT); an arm is full tuning or
LoRA of a rank, with what else was changed about it ("LoRA r4, on attention"); a budget is a number
of steps or of epochs. The rate of an arm at a budget is chosen on the validation rows, the mean
over seeds, and both numbers are read at it (`own_rate.curves`), each seed's part apart.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import numpy as np
import pandas as pd

from analysis.engine.linalg import Array
from analysis.questions.own_rate.curves import (
    FEWEST,
    Chosen,
    RateCurve,
    at_optimum,
    best_tried,
    rate_curves,
)
from analysis.table.cells import run_means, without_gaps
from analysis.table.factors import FULL
from analysis.table.frame import SCORED
from analysis.table.validation_losses import LOSSES

DOMAINS = {
    "micro_code": "code", "micro_code_instructions": "code", "starcoder_python": "code",
    "magicoder": "code", "micro_math": "math", "micro_math_instructions": "math",
    "open_web_math": "math", "metamath": "math",
}  # fmt: skip
TEXT, INSTRUCTIONS = "CPT", "IFT"
SETTINGS = ("code CPT", "code IFT", "math CPT", "math IFT")
STEPS, EPOCHS, ALPHA = "train.max_steps", "train.epochs", "adapter.options.alpha"
PLAIN = {"placement": "all", "regulariser": "none"}
ALPHA_OVER_RANK = 2.0  # the paper's, at every rank
NATS, POINTS = "nats a token", "points"
HALF = 0.5  # a seed that lacks more of the rates is left out

Parts = pd.Series  # by seed: each seed's part in a number, whose mean is the number


@cache
def _index(seeds: tuple[str, ...]) -> "pd.Index[str]":
    return pd.Index(seeds)


def by_seed(parts_S: Array, seeds: tuple[str, ...]) -> Parts:
    """Return parts with the names of their seeds; one index for the same seeds, which is fast."""
    return pd.Series(parts_S, index=_index(seeds))


@dataclass(frozen=True)
class Own:
    """An arm at one budget, at its own rate."""

    setting: str
    arm: str
    budget: float
    learnt: Chosen
    kept: Chosen

    @property
    def rate(self) -> float:
        """The rate that was chosen."""
        return self.learnt.rate

    @property
    def end(self) -> str:
        """Which end of the rates tried it is, "" for none and where one rate was tried."""
        return self.learnt.end if len(self.learnt.curve.rate_K) > 1 else ""

    @property
    def tried(self) -> float:
        """The rate tried that is the nearest to it."""
        curve = self.learnt.curve
        return float(curve.rate_K[np.abs(curve.x_K - self.learnt.x).argmin()])

    @cached_property
    def _parts(self) -> dict[str, Parts]:
        both = {"learnt": self.learnt, "kept": self.kept}
        return {n: by_seed(c.theta_S, c.curve.seeds) for n, c in both.items()}

    def parts(self, outcome: str) -> Parts:
        """Return each seed's part in what was learnt, or kept."""
        return self._parts[outcome]


@dataclass(frozen=True)
class Tradeoff:
    """The runs of a study, a row each, and the arms at their own rates."""

    runs: pd.DataFrame
    curves: tuple[tuple[str, RateCurve, RateCurve], ...]  # setting; learnt and kept over rates
    unit: str  # of what was learnt: NATS or POINTS
    base: float | None  # the untouched base's score on the source tasks
    optimizer: str  # the usual one
    choose: Callable[[RateCurve], Chosen] = best_tried

    @cached_property
    def points(self) -> tuple[Own, ...]:
        """Every arm at every budget of every setting."""
        return tuple(
            Own(setting, learnt.arm, float(learnt.place), self.choose(learnt), self.choose(kept))
            for setting, learnt, kept in self.curves
        )

    @property
    def settings(self) -> list[str]:
        """The settings that there are runs of."""
        return [s for s in SETTINGS if (self.runs["setting"] == s).any()]

    def ranks(self, setting: str) -> list[float]:
        """Return the ranks of plain LoRA in a setting."""
        own = self.runs[(self.runs["setting"] == setting) & (self.runs["variant"] == "")]
        return sorted(float(r) for r in own["rank"].unique() if r > 0)

    def arms(self, setting: str) -> list[str]:
        """Return the plain arms of a setting: full tuning, then LoRA by rank."""
        names = [FULL, *(lora(r) for r in self.ranks(setting))]
        return [n for n in names if self.curve(setting, n)]

    def variants(self, setting: str, arm: str) -> list[str]:
        """Return the arms that are this one with something changed."""
        names = dict.fromkeys(p.arm for p in self.points if p.setting == setting)
        return [n for n in names if n.startswith(f"{arm}, ")]

    def curve(self, setting: str, arm: str) -> dict[float, Own]:
        """Return an arm over its budgets, in their order."""
        own = [p for p in self.points if (p.setting, p.arm) == (setting, arm)]
        return {p.budget: p for p in sorted(own, key=lambda p: p.budget)}

    def chosen_by(self, choose: Callable[[RateCurve], Chosen]) -> "Tradeoff":
        """Return the same runs with rates chosen in another way."""
        return replace(self, choose=choose)


def lora(rank: float) -> str:
    """Return the name of plain LoRA of a rank."""
    return f"LoRA r{rank:g}"


def near_best(curve: RateCurve) -> Chosen:
    """Return the optimum of the parabola through the best rate tried and its two neighbours.

    The best rate tried itself where fewer than three were.
    """
    count = len(curve.rate_K)
    if count < FEWEST:
        return best_tried(curve)
    k = int(np.clip(curve.loss_SK.mean(axis=0).argmin(), 1, count - 2))
    return at_optimum(curve.thinned([abs(i - k) < 2 for i in range(count)]))


def tradeoff_of(frame: pd.DataFrame) -> Tradeoff | None:
    """Return the runs of a prepared frame; None without full tuning or LoRA on one of the settings.

    Args:
        frame: of `analysis.table.frame.from_results`.
    """
    trained = frame[~frame["is_base"] & (frame["control"] == "")]
    trained = trained[trained["method"].astype(str).isin([FULL, "lora"])]
    names = trained["dataset"].astype(str).str.partition(" ")[0]
    trained = trained[names.isin(DOMAINS)]
    if not len(trained) or "optimizer" not in trained or not {STEPS, EPOCHS} & set(trained):
        return None
    optimizer = str(trained.drop_duplicates("run")["optimizer"].astype(str).mode().iloc[0])
    runs = _labelled(trained.drop_duplicates("run"), optimizer).set_index("run")
    losses = {part: _losses(frame, part) for part in ("validation", "test")}
    kept, base = _source(frame)
    unit = NATS if losses["test"].index.isin(runs.index).any() else POINTS
    learnt = _gain(frame, losses["test"]) if unit == NATS else _target(trained)
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
        text = held.replace("_", " ")
        said.append(f"{text} {strength:g}" if np.isfinite(strength) else text)
    if str(row["optimizer"]) != optimizer:
        said.append(str(row["optimizer"]))
    alpha = _number(row, ALPHA)
    if rank and np.isfinite(alpha) and alpha != ALPHA_OVER_RANK * rank:
        said.append(f"alpha {alpha:g}")
    return ", ".join(said)


def _number(row: Mapping[Any, Any], name: str) -> float:
    value = row.get(name)
    return float("nan") if value is None or value is pd.NA else float(value)


def _losses(frame: pd.DataFrame, part: str) -> "pd.Series[float]":
    """Return the loss on held-out rows of one part, by run; the base's by "base" and data set."""
    held = frame["task"].astype(str).str.contains(part) & frame["task_type"].eq("heldout")
    rows = frame[held & frame["metric"].astype(str).isin(LOSSES)]
    return rows.groupby(_name(rows))["value"].mean().astype(float)


def _name(rows: pd.DataFrame) -> "pd.Series[str]":
    base = "base " + rows["model"].astype(str) + " " + rows["dataset"].astype(str)
    return rows["run"].astype(str).where(~rows["is_base"], base)


def _gain(frame: pd.DataFrame, loss: "pd.Series[float]") -> "pd.Series[float]":
    """Return how far the loss of every run lies below its base's, 0 where that was not scored."""
    runs = frame[~frame["is_base"]].drop_duplicates("run")
    base = "base " + runs["model"].astype(str) + " " + runs["dataset"].astype(str)
    start = pd.Series(base.map(loss).to_numpy(float), index=runs["run"].astype(str))
    return start.fillna(0.0) - loss.reindex(start.index)


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
