"""The schema of a record and of the results table; no torch, so that reports read it quickly.

`record.json` holds one run. `results.parquet` is the long table that the analysis reads: one row
per name of a cell x task x metric. An alias is a further name of a run: its rows carry the run's
scores with `alias` true, and the analysis counts the run once.
"""

import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

SCHEMA = 1
RECORD = "record.json"
# The scale w_p = PLW^WP_EXPONENT of arXiv 2401.13586, section 4.3, on which PLW 0.1 is 0.5. The
# paper prints log10 2 as 0.30103; tables are made with log10 2, which differs by under 1e-7 in w_p.
WP_EXPONENT = math.log10(2)

LEVELS = (
    "study", "masking", "plw", "completion_weight", "normaliser", "scope", "adapter", "rank",
    "init", "optimizer", "placement", "regulariser", "base_precision", "embeddings",
    "dataset", "model", "train", "lr", "seed", "sham", "shuffle_prompts",
)  # fmt: skip
FACTS = (
    "effective_plw", "wp", "rg", "dataset_type", "trainable_parameters", "total_parameters",
    "budget_asked", "budget", "train_rows", "train_key", "alias", "status",
)  # fmt: skip
SCORES = (
    "score_key", "task", "task_type", "side", "skill", "metric", "value", "n", "se",
    "higher_is_better", "chance",
)  # fmt: skip
COSTS = (
    "train_seconds", "eval_seconds", "tokens_seen", "tokens_per_second", "peak_mb",
    "grad_norm_mean", "clipped_share", "completion_grad_share", "supervised_share",
    "final_train_loss", "train_loss_rsd",
)  # fmt: skip
GROUPS = ("evaluate",)
RESULT_COLUMNS: tuple[str, ...] = LEVELS + FACTS + SCORES + COSTS


def levels_of(config: Mapping[str, Any], study: str) -> dict[str, Any]:
    """Return the factor levels that a cell's plain `config` stands for, as the table names them."""
    return {
        "study": study,
        "masking": config["masking"]["name"],
        "plw": config["plw"],
        "completion_weight": config["completion_weight"],
        "normaliser": config["loss"]["normaliser"],
        "scope": config["loss"]["scope"],
        "adapter": config["adapter"]["name"],
        "rank": config["rank"],
        "init": config["init"]["name"],
        "optimizer": config["optimizer"]["name"],
        "placement": config["placement"]["name"],
        "regulariser": config["regulariser"]["name"],
        "base_precision": config["base_precision"],
        "embeddings": config["embeddings"],
        "dataset": config["dataset"]["name"],
        "model": config["model"]["name"],
        "train": config["train"]["name"],
        "lr": config["train"]["lr"],
        "seed": config["seed"],
        "sham": config["sham"],
        "shuffle_prompts": config["dataset"]["shuffle_prompts"],
    }


def other_levels(varied: Mapping[str, Any]) -> dict[str, Any]:
    """Return the factors that varied in a grid and have no column of their own, by full name.

    A group's own choice (train=micro) and the settings that `levels_of` shows are left out.
    """
    shown = {"train.lr", "loss.normaliser", "loss.scope", "dataset.shuffle_prompts", *GROUPS}
    return {k: v for k, v in varied.items() if k not in shown and k not in LEVELS}


def facts_of(name: Mapping[str, Any], record: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what is known of a named cell beside its levels; missing numbers are missing."""
    effective = name["effective_plw"]
    counts = record["parameters"] if record else {}
    return {
        "effective_plw": effective,
        "wp": effective**WP_EXPONENT if effective is not None else None,
        "rg": name["rg"],
        "dataset_type": dataset_type(name["rg"]),
        "trainable_parameters": counts.get("trainable"),
        "total_parameters": counts.get("total"),
        "budget_asked": counts.get("budget_asked"),
        "budget": counts.get("budget"),  # how the counts compare, in a word
        "train_rows": name["train_rows"],
        "train_key": name["train_key"],
        "alias": name["alias"],
        "status": name["status"],
    }


def dataset_type(rg: float | None) -> str:
    """Return short (Rg < 1), long (Rg >= 1) or text (no prompt): arXiv 2401.13586, section 2."""
    if rg is None or not math.isfinite(rg):
        return "text"
    return "short" if rg < 1 else "long"


def rows_of(name: Mapping[str, Any], record: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Return the table's rows for one named cell; a cell without a record is one row, no score."""
    head = name["levels"] | facts_of(name, record)
    if record is None:
        return [head]
    head |= {key: record["costs"].get(key) for key in COSTS}
    wanted = set(name["score_keys"])
    scores = (s for s in record["scores"] if s["score_key"] in wanted)
    return [head | {key: score.get(key) for key in SCORES} for score in scores]


def write_table(rows: Iterable[Mapping[str, Any]], path: Path) -> int:
    """Write the long table whole or not at all; return its number of rows."""
    made = list(rows)
    known = set(RESULT_COLUMNS)
    others = dict.fromkeys(name for row in made for name in row if name not in known)
    frame = pd.DataFrame(made, columns=[*RESULT_COLUMNS, *others])
    numbers = ("plw", "completion_weight", "rank", "lr", "seed", "train", "sham", "shuffle_prompts")
    text = [level for level in LEVELS if level not in numbers]
    frame[text] = frame[text].astype("string")
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    frame.to_parquet(draft, index=False)
    os.replace(draft, path)
    return len(frame)
