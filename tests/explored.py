"""A folder of results with everything that the explorer of a report shows, made in a moment.

Scores come from one seeded generator; what lies in the cells is what a run leaves there: history,
items with answers, the end of a log, a record.
"""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.explorer.means import PanelNames, table_names
from analysis.explorer.names import names_of_table, with_places
from analysis.regression.model import Regression

TASKS = (
    ("recall", "mc", "source"), ("pronouns", "mc", "source"), ("sums", "mc", "target"),
    ("spelling", "mc", "target"), ("translate", "short", "target"), ("letters", "long", "target"),
)  # fmt: skip
ARMS = [("full", 8), *itertools.product(("lora", "mora", "dora"), (2, 8, 32))]
PLWS = (0.0, 0.1, 0.5, 1.0)
WP = 0.30102999566398120
ITEMS = 300
STEPS = 180
WORDS = ("beans", "fish", "soup", "bread", "<b>salt</b>", "rice & peas")


SMALL = (
    (("short",), ("small",)), [("full", 8), ("lora", 2), ("lora", 8), ("mora", 8)],
    [("instruction", 0.0), ("none", 0.0), ("none", 0.1), ("none", 1.0), ("special", 1.0)],
)  # fmt: skip


def explored(
    folder: Path, *, seeds: int = 5, items: int = ITEMS, drop: float = 0.0, small: bool = False
) -> Path:
    """Write results of a crossed study, and return `folder`.

    2 data sets x 2 base models x 10 arms x 10 doses, one of them under two names: 400 runs a seed.

    Args:
        folder: where to.
        seeds: of every cell; five give 2,000 runs.
        items: of every task; none leaves the cells' folders out.
        small: 1 x 1 x 4 x 4, of one dose two names.
        drop: the share of the runs that are left out at random, so that the table is unbalanced.
    """
    rng = np.random.default_rng(0)
    doses = [("none", p) for p in PLWS] + [("boilerplate", p) for p in (0.1, 1.0)]
    doses += [("special", p) for p in (0.1, 0.3, 0.6, 1.0)] + [("instruction", 0.0)]
    strata, arms, doses = SMALL if small else ((("short", "long"), ("small", "large")), ARMS, doses)
    grid = itertools.product(*strata, arms, doses, range(seeds))
    first: dict[str, str] = {}
    rows: list[dict[str, Any]] = []
    for number, (dataset, model, (adapter, rank), (masking, plw), seed) in enumerate(grid):
        dose = "0" if plw == 0 else f"{masking} {plw}"
        same = f"{dataset} {model} {adapter} {rank} {dose} {seed}"
        alias = same in first
        key = first.setdefault(same, f"{number:016x}")
        if not alias and rng.random() < drop:
            continue
        rows += _rows((dataset, model, adapter, rank, masking, plw, seed), key, alias, rng)
    table = pd.DataFrame(rows)
    known = set(table.loc[~table["alias"], "train_key"])
    table = table[table["train_key"].isin(known)].reset_index(drop=True)
    once = table[~table["alias"]].set_index(["train_key", "task"])["value"]
    pairs = pd.MultiIndex.from_frame(table[["train_key", "task"]])
    table["value"] = once.reindex(pairs).to_numpy()
    if items:
        table = _with_items(folder, table, items, rng)
    folder.mkdir(parents=True, exist_ok=True)
    table.to_parquet(folder / "results.parquet")
    return folder


def explored_table(seeds: int = 4) -> pd.DataFrame:
    """Return a table from elsewhere: 3 methods x 3 sizes x 4 weights x seeds."""
    rng = np.random.default_rng(3)
    grid = itertools.product(("dpo", "orpo", "sft"), (1, 7, 13), PLWS, range(seeds))
    rows = []
    for place, (method, size, plw, seed) in enumerate(grid):
        tokens = int(rng.integers(1000, 9000))
        score = 0.5 + 0.03 * (method == "dpo") + 0.01 * size + 0.1 * plw - 0.1 * plw**2
        score += tokens * 1e-5 + rng.normal(0, 0.02)
        rows.append({
            "method": method, "size": size, "plw": plw, "seed": seed, "tokens": tokens,
            "item": f"i{place % 12}", "accuracy": score, "right": int(rng.random() < score),
        })  # fmt: skip
    return pd.DataFrame(rows)


def names_of_rows(reg: Regression) -> PanelNames:
    """Return the names of a regression's rows with its model, as a page of it has them."""
    own, key = with_places(reg)
    return table_names(names_of_table(own, key), own)


def _rows(
    cell: tuple[Any, ...], key: str, alias: bool, rng: np.random.Generator
) -> list[dict[str, Any]]:
    dataset, model, adapter, rank, masking, plw, seed = cell
    arm = {"full": 4.0, "lora": 0.0, "mora": 1.5, "dora": 0.7}[adapter]
    slope = 0.0 if adapter == "full" else np.log2(rank / 8) * 0.8
    wp = plw**WP if plw else 0.0
    run = rng.normal(0, 1)
    head = {
        "study": "explored", "masking": masking, "plw": plw, "completion_weight": 1.0,
        "adapter": adapter, "rank": rank, "dataset": dataset, "model": model, "seed": seed,
        "lr": 1e-3, "effective_plw": plw, "wp": wp, "rg": 0.1 if dataset == "short" else 3.0,
        "dataset_type": dataset, "train_key": key, "alias": alias, "status": "done",
    }  # fmt: skip
    level = 45 + arm + slope + (8 * wp - 7 * wp**2) * (dataset == "short") + 6 * (model == "large")
    return [
        head
        | {
            "score_key": f"{key}-{task}", "task": task, "task_type": kind, "side": side,
            "skill": task, "metric": "acc", "unit": "fraction", "n": ITEMS, "chance": 0.25,
            "value": float(np.clip(level + place * 3 + run + rng.normal(0, 1.5), 1, 99) / 100),
            "higher_is_better": True,
        }
        for place, (task, kind, side) in enumerate(TASKS)
    ]  # fmt: skip


def _with_items(
    folder: Path, table: pd.DataFrame, items: int, rng: np.random.Generator
) -> pd.DataFrame:
    """Write the cells of all runs, and return the table with the means of their items as scores."""
    value = table["value"].to_numpy(dtype=float).copy()
    hard = rng.normal(0, 1, (len(TASKS), items))
    golds = rng.integers(0, len(WORDS), (len(TASKS), items))
    for key, own in table.groupby("train_key", sort=False):
        score = own.drop_duplicates("task").set_index("task")["value"]
        right, parts = {}, []
        for t, (task, _, _) in enumerate(TASKS):
            order = np.argsort(hard[t] + rng.normal(0, 0.7, items))
            hit = np.zeros(items)
            hit[order[: round(score[task] * items)]] = 1.0
            right[task] = hit.mean()
            wrong = (golds[t] + 1 + rng.integers(0, len(WORDS) - 1, items)) % len(WORDS)
            answer = np.where(hit > 0, golds[t], wrong)
            parts.append(
                pd.DataFrame({
                    "task": task, "metric": "acc", "doc_id": np.arange(items), "score": hit,
                    "score_key": f"{key}-{task}", "prompt_hash": "0",
                    "gold": np.array(WORDS)[golds[t]], "output": np.array(WORDS)[answer],
                })
            )  # fmt: skip
        value[own.index] = own["task"].map(right).to_numpy()
        _write_cell(folder / "cells" / str(key), own.iloc[0], pd.concat(parts), rng)
    return table.assign(value=value)


def _write_cell(
    folder: Path, row: "pd.Series[Any]", items: pd.DataFrame, rng: np.random.Generator
) -> None:
    folder.mkdir(parents=True)
    items.to_parquet(folder / "items.parquet", index=False)
    step = np.arange(1, STEPS + 1)
    loss = 4 * np.exp(-step / 40) + 0.8 + rng.normal(0, 0.05, STEPS)
    completion = np.where(step % 2 == 0, loss * 0.9, np.nan)
    history = pd.DataFrame({"step": step, "loss": loss, "loss_completion": completion})
    history.to_parquet(folder / "history.parquet", index=False)
    lines = [f"INFO ablate: step {s}, loss {loss[s - 1]:.6f}" for s in range(1, STEPS, 6)]
    (folder / "log.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    config = {
        "masking": {"name": row["masking"], "permute": False}, "plw": float(row["plw"]),
        "adapter": {"name": row["adapter"], "options": {"alpha": 16}}, "rank": int(row["rank"]),
        "dataset": {"name": row["dataset"]}, "seed": int(row["seed"]),
        "train": {"lr": 1e-3, "epochs": 3, "schedule": "cosine"},
    }  # fmt: skip
    record = {
        "schema": 2, "train_key": folder.name, "config": config, "parameters": {}, "training": {},
        "data": {}, "costs": {}, "provenance": {}, "scores": [], "score_keys": [],
    }  # fmt: skip
    (folder / "record.json").write_text(json.dumps(record), encoding="utf-8")
