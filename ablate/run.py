"""One run, from its configuration to its record: the file to read first.

    data -> model -> adapter -> train -> evaluate -> record

Several cells may be names of one run (aliases, or the same run asked for other scores): it is
trained once and scored for all of them.
"""

import functools
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from safetensors import SafetensorError
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
from ablate.evaluate.shapes import inner
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
HISTORY, LOG = "history.parquet", "log.txt"


def run_cells(cells: Sequence[Cell], key: str, store: Store) -> None:
    """Train the run that `cells` name, unless it is recorded, and score what is missing.

    Raises:
        Diverged: the loss or its gradient is no longer finite.
    """
    torch.set_num_threads(cells[0].execution.threads)
    recorded = store.record(key)
    missing = _missing(cells, recorded)
    if recorded is not None:
        with logged(store.folder(key) / LOG):
            model, history = restored(cells[0], store.folder(key))
            _amend(store, key, *_scored(recorded, model, history, missing))
        return
    identity = identify(cells[0])
    with store.writing(key) as draft, logged(draft / LOG):
        ready(missing)  # raises before training where a benchmark cannot be loaded
        keep = functools.partial(store.keep_trained, key, draft)
        model, history = _safe(cells[0], identity, draft=draft, keep=keep)
        record = json.loads((draft / RECORD).read_text())
        record, scores = _scored(record, model, history, missing)
        _items(scores).to_parquet(draft / "items.parquet", index=False, compression="zstd")
        _replace(draft / RECORD, record)
        if _too_large(cells[0], identity):
            shutil.rmtree(draft / WEIGHTS, ignore_errors=True)


def _scored(
    record: dict[str, Any],
    model: nn.Module,
    history: list[dict[str, Any]],
    missing: Sequence[Wanted],
) -> tuple[dict[str, Any], list[TaskScore]]:
    """Return `record` with the units of `missing` scored, and the scores that are new."""
    started = time.perf_counter()
    scored, keys = score(model, history, missing), _tried(missing)
    costs, made = record["costs"], record["provenance"]
    if costs["eval_seconds"] is None:  # scores that are added later do not count
        costs = costs | {"eval_seconds": time.perf_counter() - started}
    about = {
        "finished": time.time(),
        "hardware": _hardware(model),
        "packages": provenance.packages(),
        "halvings": scored.halvings,  # of the batch, where memory ran out
        "score_keys": sorted(keys),
    }
    return record | {
        "scores": [*record["scores"], *_entries(scored.scores)],
        "score_keys": sorted({*record["score_keys"], *keys}),
        "unscored": [*record.get("unscored", ()), *plain(scored.lost)],
        "costs": costs,
        "provenance": {"finished": about["finished"]}
        | made
        | {"scored": [*made.get("scored", ()), about]},
    }, scored.scores


def _safe(
    cell: Cell, identity: Identity, *, draft: Path, keep: Callable[[], None]
) -> tuple[nn.Module, list[dict[str, Any]]]:
    """Return the trained model and its history, once `draft` has them and `keep` has kept it.

    Where `draft` has them from an earlier attempt nothing is trained again.
    """
    if (draft / RECORD).exists():
        say("trained by an earlier attempt, which ended while it was scored")
        return restored(cell, draft)
    model, course = _trained(cell, identity, tokenised(cell, "train"))
    record = _record(cell, identity, model, course)
    (draft / "config.yaml").write_text(yaml.safe_dump(record["config"], sort_keys=False))
    _write_history(draft, course.history)
    _replace(draft / RECORD, record)
    try:
        if not cell.is_base:
            weights.save(model, draft / WEIGHTS, base=base_name(cell, identity))
        keep()
    except (OSError, SafetensorError) as error:  # a full disk costs the safety, not the run
        say(f"NOT SAFE: what was trained could not be written before it is scored: {error}")
        shutil.rmtree(draft / WEIGHTS, ignore_errors=True)
    return model, course.history


def _replace(path: Path, record: dict[str, Any]) -> None:
    """Write a record as a new file: the old one may be shared (`Store.keep_trained`)."""
    path.unlink(missing_ok=True)
    path.write_text(json.dumps(record, indent=1, allow_nan=False))


def _write_history(draft: Path, history: list[dict[str, Any]]) -> None:
    steps = pd.DataFrame(history)  # a role that never occurs gives a column without values: float
    unknown = steps.columns[steps.dtypes == "object"]
    steps.astype(dict.fromkeys(unknown, float)).to_parquet(draft / HISTORY, index=False)


def _too_large(cell: Cell, identity: Identity) -> bool:
    """Return whether the trained weights are larger than the cell's limit for what is kept."""
    return weights_bytes(cell, identity.files) > cell.execution.keep_weights_mb * 2**20


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
            make_optimizer=optimizers.maker(
                cell.optimizer,
                seed=streams.seed("rounding"),
                offload=cell.execution.offload_optimizer,
            ),
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
    steps = pd.read_parquet(folder / HISTORY)
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
            "hardware": _hardware(model),
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


def base_name(cell: Cell, identity: Identity) -> str:
    """Return where PEFT finds the cell's base model: its hub id or its folder."""
    return cell.model.path if cell.model.source == "hub" else str(identity.files.folder)


def _amend(store: Store, key: str, record: dict[str, Any], scores: list[TaskScore]) -> None:
    """Replace a record by one that has `scores` beside those that it had."""
    items = pd.concat([pd.read_parquet(store.folder(key) / "items.parquet"), _items(scores)])
    buffer = BytesIO()
    items.to_parquet(buffer, index=False, compression="zstd")
    content = json.dumps(record, indent=1, allow_nan=False).encode()
    store.amend(key, {"items.parquet": buffer.getvalue(), RECORD: content})
