"""One run, from its configuration to its record: the file to read first.

    data -> model -> adapter -> train -> evaluate -> record

Several cells may be names of one run (aliases, or the same run asked for other scores): it is
trained once and scored for all of them.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from torch import nn

from ablate.adapters import build, hooks, optimizers, registry, weights
from ablate.adapters.stored import weights_bytes
from ablate.config.build import plain
from ablate.config.schema import Cell
from ablate.data.tokenise import Tokenised
from ablate.evaluate.answers import Answer
from ablate.evaluate.measures import relative_deviation
from ablate.evaluate.scores import TaskScore
from ablate.evaluate.scoring import Wanted, ready, score
from ablate.experiment.cell_data import tokenised
from ablate.experiment.identity import Identity, identify
from ablate.experiment.labels import label
from ablate.experiment.notes import rows_lost
from ablate.models.load import device_of, load
from ablate.objective import Counted, Objective, objective_of, supervised
from ablate.results import provenance
from ablate.results.log import logged, say
from ablate.results.record import COSTS, RECORD, SCHEMA
from ablate.results.store import Store
from ablate.streams import Streams
from ablate.training.history import Result
from ablate.training.hooks import combine
from ablate.training.loop import train
from ablate.training.regularisation.hooks import regularised

ITEM_COLUMNS = {
    "task": "str", "metric": "str", "doc_id": "int32", "score": "float32",
    "prompt_hash": "string", "gold": "string", "output": "string", "loglikelihoods": "object",
}  # fmt: skip
WEIGHTS = "weights"  # folder of the trained weights, where they are small enough to be kept


def run_cells(cells: Sequence[Cell], key: str, store: Store) -> None:
    """Train the run that `cells` name, unless it is recorded, and score what is missing.

    Raises:
        Diverged: the loss or its gradient is no longer finite.
    """
    torch.set_num_threads(cells[0].execution.threads)
    recorded = store.record(key)
    missing = _missing(cells, recorded)
    if recorded is not None:
        model, history = restored(cells[0], store.folder(key))
        scores, lost = score(model, history, missing)
        recorded["score_keys"] = sorted({*recorded["score_keys"], *_tried(missing)})
        recorded["unscored"] = [*recorded.get("unscored", ()), *plain(lost)]
        _amend(store, key, recorded, scores)
        return
    with store.writing(key) as draft, logged(draft / "log.txt"):
        cell, identity = cells[0], identify(cells[0])
        data = tokenised(cell, "train")
        ready(missing)  # raises before training where a benchmark cannot be loaded
        model, course = _trained(cell, identity, data)
        started = time.perf_counter()
        scores, lost = score(model, course.history, missing)
        spent = time.perf_counter() - started
        record = _record(cell, identity, model, course) | {"scores": _entries(scores)}
        record["costs"]["eval_seconds"] = spent
        record["score_keys"] = sorted(_tried(missing))
        record["unscored"] = plain(lost)
        _write(draft, record, course.history, scores)
        _keep(model, draft / WEIGHTS, cell, identity)


def _missing(cells: Sequence[Cell], recorded: dict[str, Any] | None) -> list[Wanted]:
    """Return the units that are not scored yet, each once, with a cell that asks for it."""
    known = set(recorded["score_keys"]) if recorded else set()
    found: dict[str, Wanted] = {}
    for cell in cells:
        identity = identify(cell)
        for unit in identity.units:
            if unit.key not in known:
                found.setdefault(unit.key, Wanted(cell, unit, identity.files))
    return list(found.values())


def _tried(wanted: Sequence[Wanted]) -> set[str]:
    """Return the keys of the units, scored or not.

    A measure that does not apply gives no score; what failed is in the record's `unscored`.
    """
    return {one.unit.key for one in wanted}


def _trained(cell: Cell, identity: Identity, data: Tokenised) -> tuple[nn.Module, Result]:
    """Return the cell's trained model and the course of training; the base is not trained."""
    streams = Streams(cell.seed, cell.sham)
    base = load(identity.files, cell.base_precision, device=device_of(cell.execution.device))
    model = build.apply(base, cell, streams=streams, data=data)
    if cell.is_base:
        return model, Result()
    say(f"training on {len(data)} rows, {len(data.ids)} tokens")
    if lost := rows_lost(cell, data.summary, positions=identity.files.max_positions):
        say(f"dataset={label(cell.dataset)}: {lost}")
    with regularised(model, cell, streams=streams) as held:
        course = train(
            model,
            data,
            cell.train,
            objective=objective_of(cell),
            streams=streams,
            execution=cell.execution,
            hooks=combine(hooks.hooks(cell, streams=streams), held),
            make_optimizer=optimizers.maker(cell.optimizer),
        )
    say(f"trained {len(course.history)} steps in {course.train_seconds:.1f} s")
    return model, course


def restored(cell: Cell, folder: Path) -> tuple[nn.Module, list[dict[str, Any]]]:
    """Return a recorded run's model and history; it is trained again where no weights were kept."""
    identity = identify(cell)
    if not weights.kept(folder / WEIGHTS):
        model, course = _trained(cell, identity, tokenised(cell, "train"))
        return model, course.history
    base = load(identity.files, cell.base_precision, device=device_of(cell.execution.device))
    streams = Streams(cell.seed, cell.sham)
    model = weights.load(base, folder / WEIGHTS, cell, streams=streams)
    steps = pd.read_parquet(folder / "history.parquet")
    history = [{str(k): v for k, v in entry.items()} for entry in steps.to_dict("records")]
    return model, history


def _record(cell: Cell, identity: Identity, model: nn.Module, course: Result) -> dict[str, Any]:
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
            "hardware": provenance.hardware(str(next(model.parameters()).device)),
            "finished": time.time(),
        },
    }


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


def _entries(scores: list[TaskScore]) -> list[dict[str, Any]]:
    bare = (plain(replace(s, items=(), answers={})) for s in scores)
    return [{k: v for k, v in s.items() if k not in ("items", "answers")} for s in bare]


def _items(scores: list[TaskScore]) -> pd.DataFrame:
    """Return one row per item and metric: its score and, of a benchmark, what was answered.

    A metric without scores of single items, such as a perplexity, has rows without a score.
    """
    rows = [
        (s.task, s.metric, doc, value, *_said(s.answers.get(doc)))
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


def _write(
    draft: Path, record: dict[str, Any], history: list[dict[str, Any]], scores: list[TaskScore]
) -> None:
    (draft / RECORD).write_text(json.dumps(record, indent=1, allow_nan=False))
    (draft / "config.yaml").write_text(yaml.safe_dump(record["config"], sort_keys=False))
    steps = pd.DataFrame(history)  # a role that never occurs gives a column without values: float
    unknown = steps.columns[steps.dtypes == "object"]
    steps.astype(dict.fromkeys(unknown, float)).to_parquet(draft / "history.parquet", index=False)
    _items(scores).to_parquet(draft / "items.parquet", index=False, compression="zstd")


def _keep(model: nn.Module, folder: Path, cell: Cell, identity: Identity) -> None:
    """Save the trained weights unless they are larger than the cell's limit."""
    size = weights_bytes(cell, identity.files)
    if 0 < size <= cell.execution.keep_weights_mb * 2**20:
        weights.save(model, folder, base=base_name(cell, identity))


def base_name(cell: Cell, identity: Identity) -> str:
    """Return where PEFT finds the cell's base model: its hub id or its folder."""
    return cell.model.path if cell.model.source == "hub" else str(identity.files.folder)


def _amend(store: Store, key: str, recorded: dict[str, Any], scores: list[TaskScore]) -> None:
    """Add scores to a record without changing the scores that it has."""
    recorded["scores"] += _entries(scores)
    items = pd.concat([pd.read_parquet(store.folder(key) / "items.parquet"), _items(scores)])
    buffer = BytesIO()
    items.to_parquet(buffer, index=False, compression="zstd")
    content = json.dumps(recorded, indent=1, allow_nan=False).encode()
    store.amend(key, {"items.parquet": buffer.getvalue(), RECORD: content})
