"""What is written of a run: its record, the course of its training, its scores and their items."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from torch import nn

from ablate.adapters import registry
from ablate.config.build import plain
from ablate.config.schema import Cell
from ablate.evaluate import lanes
from ablate.evaluate.answers import Answer
from ablate.evaluate.measures import relative_deviation
from ablate.evaluate.scores import TaskScore
from ablate.evaluate.scoring import Scored
from ablate.evaluate.shapes import inner
from ablate.experiment.identity import Identity
from ablate.objective import Counted, Objective, objective_of, supervised
from ablate.results import files, provenance
from ablate.results.items import with_score_keys
from ablate.results.record import COSTS, RECORD, SCHEMA, draft_text
from ablate.training.history import Entry, Result

# libyaml writes the same and takes a fifth of the time, where it was built with PyYAML.
YAML: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
HISTORY, ITEMS = "history.parquet", "items.parquet"
ITEM_COLUMNS = {
    "task": "str", "metric": "str", "doc_id": "int32", "score": "float32", "score_key": "str",
    "prompt_hash": "string", "gold": "string", "output": "string", "loglikelihoods": "object",
}  # fmt: skip


def unscored(cell: Cell, identity: Identity, model: nn.Module, course: Result) -> dict[str, Any]:
    """Return the record of a run that is trained and not scored yet."""
    sizes = identity.files
    objective = objective_of(cell)
    budget = registry.budget(cell, sizes.linear_shapes, norms=sizes.norm_parameters)
    return {
        "schema": SCHEMA,
        "train_key": identity.train_key,
        "identity": identity.description,
        "config": plain(cell),
        "parameters": {
            "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "total": sum(p.numel() for p in model.parameters()),
            "base": sizes.parameters,
            "budget_asked": budget.asked if budget else None,
            "budget_got": budget.got if budget else None,
            "budget": budget.status if budget else None,
        },
        "training": {
            "steps": len(course.history),
            "tokens_seen": course.tokens_seen,
            "examples_seen": course.examples_seen,
            "micro_batch_tokens": course.micro_batch_tokens,
            "out_of_memory": course.out_of_memory,
            "supervised_weight_seen": course.supervised_weight_seen,
            "supervised_share": _supervised_share(objective, identity.data),
            "effective_plw": identity.effective_plw,
        },
        "data": plain(identity.data),
        "model": {"content_hash": sizes.content_hash, "architecture": sizes.architecture},
        "costs": _costs(course),
        "provenance": {
            "code": provenance.code(),
            "packages": provenance.packages(),
            "hardware": _hardware(model),
            "lanes": course.lanes,
            "resumed": course.resumed,  # after which steps training went on from a checkpoint
        },
        "scores": [],
        "score_keys": [],
        "unscored": [],
    }


def _hardware(model: nn.Module) -> dict[str, Any]:
    attention = getattr(inner(model).config, "_attn_implementation", None)
    return provenance.hardware(str(next(model.parameters()).device), attention)


def _supervised_share(objective: Objective, data: Counted) -> float | None:
    """Return the share of the training targets that carry weight."""
    total = sum(data.counts.values())
    return supervised(objective, data) / total if total else None


def _costs(course: Result) -> dict[str, float | None]:
    """Return the columns of the results table on cost and course of training."""
    costs: dict[str, float | None] = dict.fromkeys(COSTS)
    if not course.history:
        return costs
    steps = pd.DataFrame(course.history)
    losses = steps["loss"]
    return costs | {
        "train_seconds": course.train_seconds,
        "tokens_seen": course.tokens_seen,
        "tokens_per_second": course.tokens_seen / course.train_seconds,
        "peak_mb": course.peak_mb,
        "grad_norm_mean": float(steps["grad_norm"].mean()),
        "clipped_share": float(steps["clipped"].mean()),
        "completion_grad_share": _mean(steps["completion_grad_share"]),
        "final_train_loss": float(losses.tail(max(1, len(losses) // 10)).mean()),
        "train_loss_rsd": relative_deviation(losses[len(losses) // 2 :].tolist()),
    }


def _mean(column: "pd.Series[Any]") -> float | None:
    known = pd.to_numeric(column).dropna()
    return float(known.mean()) if len(known) else None


def entries(scores: Sequence[TaskScore]) -> list[dict[str, Any]]:
    """Return the scores as the record has them, without their items."""
    bare = (plain(replace(s, items=(), answers={})) for s in scores)
    return [{k: v for k, v in s.items() if k not in ("items", "answers")} for s in bare]


def items(scores: Sequence[TaskScore]) -> pd.DataFrame:
    """Return one row per item and metric: its score and, of a benchmark, what was answered.

    A metric without scores of single items, such as a perplexity, has rows without a score.
    """
    rows = [
        (s.task, s.metric, doc, value, s.score_key, *_said(s.answers.get(doc)))
        for s in scores
        for doc, value in s.items or dict.fromkeys(s.answers).items()
    ]
    frame = pd.DataFrame(rows, columns=[*ITEM_COLUMNS])
    return frame.astype(ITEM_COLUMNS)


def _said(answer: Answer | None) -> tuple[Any, ...]:
    if answer is None:
        return (None,) * 4
    values = answer.loglikelihoods
    numbers = None if values is None else np.array(values, dtype=np.float32)
    return answer.prompt_hash, answer.gold, answer.output, numbers


def with_scores(
    record: dict[str, Any], scored: Scored, model: nn.Module, *, keys: Iterable[str], seconds: float
) -> dict[str, Any]:
    """Return `record` with scores beside those that it has.

    Args:
        record: of the run.
        scored: what was found.
        model: what was scored.
        keys: of the units that were tried, scored or not.
        seconds: what it took; scores that are added later do not count as costs.
    """
    costs, made, tried = record["costs"], record["provenance"], sorted(keys)
    earlier = [one for one in record["scores"] if one["score_key"] not in tried]
    lost = [one for one in record.get("unscored", ()) if one["score_key"] not in tried]
    if costs["eval_seconds"] is None:
        costs = costs | {"eval_seconds": seconds}
    about = {
        "finished": time.time(),
        "hardware": _hardware(model),
        "packages": provenance.packages(),
        "halvings": scored.halvings,  # of the batch, where memory ran out
        "lanes": lanes.count(model),  # models that were scored side by side
        "score_keys": tried,
    }
    past = made.get("scored", ())
    return record | {
        "scores": [*earlier, *entries(scored.scores)],
        "score_keys": sorted({*record["score_keys"], *tried}),
        "unscored": [*lost, *plain(scored.lost)],
        "costs": costs,
        "provenance": {"finished": about["finished"]} | made | {"scored": [*past, about]},
    }


def write_trained(record: dict[str, Any], course: Result, folder: Path) -> None:
    """Write the record of a trained run, its configuration and the course of its training."""
    (folder / "config.yaml").write_text(
        yaml.dump(record["config"], Dumper=YAML, sort_keys=False)  # the words of safe_dump
    )
    steps = pd.DataFrame(course.history)
    unknown = steps.columns[steps.dtypes == "object"]  # of a role that never occurs: no values
    steps.astype(dict.fromkeys(unknown, float)).to_parquet(folder / HISTORY, index=False)
    (folder / RECORD).write_bytes(draft_text(record))


def read_history(folder: Path) -> list[Entry]:
    """Return the steps of training that `write_trained` wrote."""
    steps = pd.read_parquet(folder / HISTORY)
    return [{str(k): v for k, v in entry.items()} for entry in steps.to_dict("records")]


def write(record: dict[str, Any], scores: Sequence[TaskScore], folder: Path) -> None:
    """Write a scored record and the table of its items, in place of what `folder` has."""
    items(scores).to_parquet(folder / ITEMS, index=False, compression="zstd")
    # The old file may be shared: Store.keep_trained.
    files.write(folder / RECORD, draft_text(record), durable=False)


def amend(record: dict[str, Any], scores: Sequence[TaskScore], folder: Path) -> None:
    """Write a record with further `scores` and their items, beside those that `folder` has.

    Items of scores that are here already are replaced, so doing it again changes nothing.
    """
    known = with_score_keys(pd.read_parquet(folder / ITEMS), record["scores"])
    new = items(scores)
    kept = known[~known["score_key"].isin(new["score_key"].unique())]
    table = pd.concat([kept, new]).to_parquet(index=False, compression="zstd")
    files.write(folder / ITEMS, table, durable=False)
    files.write(folder / RECORD, draft_text(record), durable=False)
