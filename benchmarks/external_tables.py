"""Type I error of the model that `ablate report TABLE` proposes, over simulated tables.

    python benchmarks/external_tables.py [--tables 400] [--jobs 1] [--shapes sleepstudy cake ...]

Writes benchmarks/external_tables.csv, which docs/statistics.md quotes. Every table has the shape of
one that people have: of a design of lme4's manual, of an export, of a published comparison. Nothing
is true of the predictor of interest; what else the table has in it (subjects that answer in their
own way, runs, whole plots, herds with counts more alike than a binomial's) is. Judged is the share
of tables whose joint test of that predictor has p < 0.05, of the model as it was proposed,
simplified and fitted by the report. A predictor that is not in the model is counted apart.
"""

import argparse
import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import expit

from analysis.inference.estimates import joint
from analysis.regression.effect_groups import effects
from analysis.regression.model import Regression, Request, analysed

HERE = Path(__file__).parent
ROOT, ALPHA, LIMIT = 20261126, 0.05, 0.07
Rng = np.random.Generator


@dataclass(frozen=True, slots=True)
class Shape:
    """How a table is made, what its score is called, and the predictor that nothing depends on."""

    make: Callable[[Rng], pd.DataFrame]
    score: str | None
    interest: str


def grid(**levels: object) -> pd.DataFrame:
    """Return all combinations of levels, the last column fastest."""
    index = pd.MultiIndex.from_product([list(v) for v in levels.values()], names=list(levels))
    return index.to_frame(index=False)


def drawn(rng: Rng, table: pd.DataFrame, columns: list[str], sd: float) -> np.ndarray:
    """Return for every row a normal number that rows of the same levels share."""
    place = table.groupby(columns, observed=True).ngroup().to_numpy()
    return sd * rng.standard_normal(place.max() + 1)[place]


def sleepstudy(rng: Rng) -> pd.DataFrame:
    """18 subjects on 10 days: slopes differ by subject (SD 6 ms a day)."""
    table = grid(Subject=range(308, 326), Days=range(10))
    own = drawn(rng, table, ["Subject"], 25) + drawn(rng, table, ["Subject"], 6) * table["Days"]
    return table.assign(Reaction=251 + own + 25.6 * rng.standard_normal(len(table)))


def cake(rng: Rng) -> pd.DataFrame:
    """45 mixes (3 recipes, 15 replicates), each baked at 6 temperatures: a split plot."""
    table = grid(replicate=range(1, 16), recipe="ABC", temperature=range(175, 235, 10))
    own = drawn(rng, table, ["replicate", "recipe"], 6.4) + 0.158 * table["temperature"]
    return table.assign(angle=1.5 + own + 4.5 * rng.standard_normal(len(table)))


def machines(rng: Rng) -> pd.DataFrame:
    """6 workers on 3 machines, 3 times each: workers answer to machines in their own way."""
    table = grid(Worker=range(1, 7), Machine="ABC", time=range(3)).drop(columns="time")
    own = drawn(rng, table, ["Worker"], 4.8) + drawn(rng, table, ["Worker", "Machine"], 3.7)
    return table.assign(score=55 + own + rng.standard_normal(len(table)))


def oats(rng: Rng) -> pd.DataFrame:
    """6 blocks of 3 varieties of 4 amounts of nitrogen: whole plots in few blocks."""
    table = grid(block=["I", "II", "III", "IV", "V", "VI"], variety="GMV", nitro=(0, 0.2, 0.4, 0.6))
    own = drawn(rng, table, ["block"], 14) + drawn(rng, table, ["block", "variety"], 10)
    return table.assign(y=100 + own + 74 * table["nitro"] + 13 * rng.standard_normal(len(table)))


def cbpp(rng: Rng) -> pd.DataFrame:
    """15 herds in 4 periods, counts of sick among 2 to 34, more alike than a binomial's."""
    table = grid(herd=range(1, 16), period=range(1, 5))
    size = rng.integers(2, 35, len(table))
    eta = -1.5 + drawn(rng, table, ["herd"], 0.6) + 0.5 * rng.standard_normal(len(table))
    sick = rng.binomial(size, expit(eta))
    return table.assign(incidence=sick, size=size, rate=sick / size)


def verbagg(rng: Rng) -> pd.DataFrame:
    """100 persons answer 24 items with yes or no (316 in the original)."""
    table = grid(id=range(1, 101), situ=range(4), btype=["curse", "scold", "shout"],
                 mode=["want", "do"])  # fmt: skip
    table["item"] = "S" + table["situ"].astype(str) + table["mode"] + table["btype"].str.title()
    table = table.assign(
        Anger=rng.integers(11, 39, 100)[table["id"] - 1],
        Gender=np.array(["F", "M"])[(rng.random(100) < 0.4).astype(int)][table["id"] - 1],
        situ=np.where(table["situ"] < 2, "other", "self"),
    )
    eta = 0.05 * (table["Anger"] - 20) + 1.0 * (table["mode"] == "want") - 0.5
    eta = eta + drawn(rng, table, ["id"], 1.3) + drawn(rng, table, ["item"], 0.5)
    yes = rng.random(len(table)) < expit(eta)
    sure = rng.random(len(table)) < 0.5
    resp = np.where(yes, np.where(sure, "yes", "perhaps"), "no")
    return table.assign(resp=resp, r2=np.where(yes, "Y", "N"))


def lm_eval(rng: Rng, models: int = 3) -> pd.DataFrame:
    """Models x 3 seeds x 10 tasks in two metrics: rows of one model and seed share a run."""
    table = grid(model=[f"m{i}" for i in range(models)], seed=range(3),
                 task=[f"t{i}" for i in range(10)])  # fmt: skip
    points = 50 + drawn(rng, table, ["task"], 12) + drawn(rng, table, ["model", "seed"], 1.5)
    points += drawn(rng, table, ["model", "task"], 1.0) + 1.5 * rng.standard_normal(len(table))
    parts = [("acc", points), ("acc_norm", points + 3 + rng.standard_normal(len(table)))]
    long = [table.assign(metric=name, value=(own / 100).round(4)) for name, own in parts]
    found = pd.concat(long, ignore_index=True)
    error = np.sqrt(found["value"] * (1 - found["value"]) / 1000)
    return found.assign(stderr=error.round(4), n=1000, date="2026-07-15")


def wandb(rng: Rng) -> pd.DataFrame:
    """48 runs of a random search, with what Weights & Biases exports beside their settings."""
    n = 48
    rate = 10 ** rng.uniform(-5, -0.5, n)
    noise = rng.standard_normal(n)
    return pd.DataFrame({
        "Name": [f"sunny-{i}" for i in range(n)], "State": rng.choice(["finished", "crashed"], n),
        "Created": pd.Timestamp("2026-07-15") + pd.to_timedelta(rng.integers(0, 9**6, n), "s"),
        "_timestamp": 1.79e9 + np.arange(n) * 1000.0, "_runtime": 900 + 30 * noise,
        "_step": rng.integers(900, 1000, n), "lr": rate,
        "optimizer": rng.choice(["adam", "sgd"], n),
        "batch_size": rng.choice([8, 16, 32, 64, 128, 256], n), "seed": rng.integers(0, 3, n),
        "train_loss": 2 - 0.1 * noise + 0.05 * rng.standard_normal(n),
        "gpu_memory_gb": 20 + noise, "score": 60 + 2 * noise + rng.standard_normal(n),
    })  # fmt: skip


def sweep(rng: Rng) -> pd.DataFrame:
    """4 learning rates x 2 ranks x 4 seeds on 6 tasks, full fine-tuning without a rank."""
    table = grid(lr=(1e-5, 1e-4, 1e-3, 1e-2), method=("full", "lora", "dora"), seed=range(4),
                 task=[f"t{i}" for i in range(6)])  # fmt: skip
    table["rank"] = table["method"].map({"lora": 8.0, "dora": 16.0})
    points = 50 + drawn(rng, table, ["task"], 10) + drawn(rng, table, ["lr", "method", "seed"], 2)
    return table.assign(score=points + 2 * rng.standard_normal(len(table)))


def peft(rng: Rng) -> pd.DataFrame:
    """63 methods, one run each, with a rate and a number of parameters over several decades."""
    n = 63
    noise = rng.standard_normal(n)
    return pd.DataFrame({
        "config": [f"method{i} rank{i}" for i in range(n)],
        "trainable_params": np.exp(rng.uniform(8, 21, n)).round().astype(int),
        "test_accuracy": expit(-0.5 + 0.6 * noise).round(4),
        "forgetting_wiki_loss_increase": np.exp(rng.normal(-2, 1, n)).round(4),
        "final_train_loss": (0.65 - 0.05 * noise).round(4),
        "max_memory_GiB": rng.normal(21, 2, n).round(2), "train_time_s": rng.integers(878, 2700, n),
        "lr": rng.choice([1e-5, 5e-5, 1e-4, 1e-4, 1e-4, 5e-4, 1e-3, 5e-3, 0.2, 0.3], n),
        "run_date": rng.choice(["2026-07-14", "2026-07-15", "2026-07-16"], n),
    })  # fmt: skip


SHAPES = {
    "sleepstudy": Shape(sleepstudy, "Reaction", "Days"),
    "cake": Shape(cake, "angle", "recipe"),
    "machines": Shape(machines, "score", "Machine"),
    "oats": Shape(oats, "y", "variety"),
    "cbpp": Shape(cbpp, "rate", "period"),
    "verbagg": Shape(verbagg, "r2", "Gender"),
    "lm-eval": Shape(lm_eval, "value", "model"),
    "lm-eval, 2 models": Shape(lambda rng: lm_eval(rng, 2), "value", "model"),
    "W&B export": Shape(wandb, "score", "lr"),
    "sweep": Shape(sweep, "score", "method"),
    "PEFT": Shape(peft, "test_accuracy", "lr"),
}


def tested(reg: Regression, name: str) -> float:
    """Return the p-value of a predictor's joint test; NaN where the model lacks it."""
    for effect in effects(reg.fit):
        if effect.variables == (name,):
            return joint(reg.fit, np.eye(len(reg.fit.fixef))[list(effect.places)], df=reg.df).p
    return float("nan")


def one(task: tuple[str, int]) -> dict[str, object]:
    """Simulate one table, let the report's model be proposed, and return what it tests."""
    name, number = task
    shape = SHAPES[name]
    rng = np.random.default_rng([ROOT, list(SHAPES).index(name), number])
    reg = analysed(shape.make(rng), Request(score=shape.score))
    return {"shape": name, "interest": shape.interest, "p": tested(reg, shape.interest),
            "proposed": reg.asked.formula, "family": reg.family, "df": reg.df,
            "simplified": bool(reg.steps)}  # fmt: skip


def rates(rows: list[dict[str, object]]) -> pd.DataFrame:
    """Return the share of rejections per shape, its Monte-Carlo error, and the usual proposal."""
    found = []
    for name, own in pd.DataFrame(rows).groupby("shape", sort=False):
        known = own["p"].dropna()
        rate = float((known < ALPHA).mean()) if len(known) else float("nan")
        usual = own["proposed"].mode()[0]
        found.append({
            "shape": name, "interest": own["interest"].iloc[0], "tables": len(own),
            "tested": len(known), "rate": round(rate, 4),
            "error": round(float(np.sqrt(rate * (1 - rate) / max(len(known), 1))), 4),
            "simplified": round(float(own["simplified"].mean()), 3),
            "family": own["family"].mode()[0], "df": own["df"].mode()[0], "proposed": usual,
        })  # fmt: skip
    return pd.DataFrame(found)


def main() -> None:
    """Simulate, count and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--tables", type=int, default=400)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES))
    parser.add_argument("--out", type=Path, default=HERE / "external_tables.csv")
    asked = parser.parse_args()
    tasks = [(name, number) for name in asked.shapes for number in range(asked.tables)]
    begun = time.perf_counter()
    fork = multiprocessing.get_context("fork")
    with fork.Pool(asked.jobs, initializer=os.nice, initargs=(10,)) as pool:
        table = rates(pool.map(one, tasks, chunksize=20))
    table.to_csv(asked.out, index=False)
    print(table.to_string(index=False))
    print(f"{time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
