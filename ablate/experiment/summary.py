"""The summary of a request: its cells, aliases, adapters, what is done and what the rest costs."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ablate.adapters import registry
from ablate.config.compose import Grid
from ablate.evaluate import chosen
from ablate.evaluate.task_items import scored
from ablate.experiment.aliases import aliases_by_kind, cell_name, overrides
from ablate.experiment.amounts import amounts
from ablate.experiment.cost import Cost, cost, wall_seconds
from ablate.experiment.design import Design, Named
from ablate.experiment.gpu_fit import gpu_size
from ablate.experiment.gpu_pace import CARD
from ablate.experiment.labels import Names
from ablate.experiment.notes import evaluations, notes
from ablate.experiment.pace import items
from ablate.experiment.request import Request
from ablate.experiment.status import damaged, missing, unrecorded
from ablate.models import gpu_slots
from ablate.results.store import Store

GPUS = (1, 2, 4, 8)  # for which the hours are told


def summarise(request: Request) -> dict[str, Any]:
    """Return the summary of a request as JSON-ready values."""
    plan, store = request.design, Store(request.out)
    todo = (unrecorded if request.settings["retry_failed"] else missing)(plan, store)
    tried = store.attempted().keys() & plan.runs.keys()
    failed = {key for key in tried if store.given_up(key)} - todo.keys()
    size, told = gpu_size(request.settings["gpu_gb"])
    estimate = cost((named[0] for named in todo.values()), store, gpu_bytes=size)
    devices = max((named.cell.execution.devices for named in plan.cells), default=1)
    workers = _workers(devices, request.settings["workers_per_gpu"])
    aliases = [_alias(plan, named) for named in plan.cells if named.alias]
    return {
        "study": plan.study,
        "out": str(request.out),
        "factors": _factors(request.grid),
        "cells": len(plan.cells),
        "bases": len(plan.cells) - len(request.grid.points) + len(plan.illegal),
        "runs": len(plan.runs),
        "aliases": aliases,
        "aliases_by_kind": [asdict(kind) for kind in aliases_by_kind(plan)],
        "scored_again": len(plan.cells) - len(plan.runs) - len(aliases),
        "illegal": [{"levels": levels, "reason": why} for levels, why in plan.illegal],
        "done": len(plan.runs) - len(todo) - len(failed),
        "failed": len(failed),
        "to_do": len(todo),
        "to_train": estimate.trains,
        "damaged": damaged([*todo, *failed], store),
        "adapters": _adapters(plan),
        "models": _models(plan),
        "own_rates": list(request.own_rates),
        "assumed": list(request.assumed),
        "training": amounts(plan),
        "scored": _scored(plan),
        "core_seconds": round(estimate.seconds, 1),
        "core_seconds_parts": {k: round(v, 1) for k, v in asdict(estimate.parts).items()},
        "core_seconds_a_run": round(max(estimate.by_run, default=0.0), 1),
        "start_seconds": round(estimate.start_seconds, 1),
        "workers": workers,
        "wall_seconds": round(wall_seconds(estimate.by_run, workers, estimate.start_seconds), 1),
        "on_gpu": estimate.on_gpu,
        "devices": devices,
        **_gpu(estimate, devices),
        "gpu_limit_mb": round(size / 1e6),
        "gpu_limit_from": told,
        "download_mb": round(estimate.download_bytes / 1e6),
        "disk_mb": round(estimate.disk_bytes / 1e6, 1),
        "checkpoint_mb": round(estimate.checkpoint_bytes / 1e6, 1),
        "memory_mb": round(estimate.memory_bytes / 1e6),
        "basis": estimate.basis,
        "notes": notes(
            (named[0] for named in todo.values()),
            [name for named in todo.values() for name in named[1:]],
        ),
    }


def _workers(devices: int, per_gpu: int) -> int:
    """Return how many workers a sweep starts on this machine, where nobody says how many."""
    on_gpu = bool(gpu_slots.gpus())
    return max(1, gpu_slots.workers(None, per_gpu=per_gpu, on_gpu=on_gpu, devices=devices))


def _gpu(estimate: Cost, devices: int) -> dict[str, Any]:
    largest = estimate.largest
    return {
        "gpu": CARD,
        "gpu_hours": float(f"{estimate.gpu_hours:.3g}"),
        "gpu_training_hours": float(f"{estimate.gpu_training_hours:.3g}"),
        "gpu_measured": estimate.gpu_measured,
        "hours_on_gpus": {
            n: float(f"{estimate.hours_on(n, devices=devices):.3g}") for n in GPUS if n >= devices
        },
        "gpu_memory_mb": round(largest.total / 1e6),
        "gpu_memory_parts_mb": {k: round(v / 1e6) for k, v in largest.parts.items()},
        "gpu_scoring_parts_mb": {k: round(v / 1e6) for k, v in largest.scoring.items()},
        "micro_batch_rows": largest.rows,
        "scoring_rows": largest.scoring_rows,
        "too_large": [
            {
                "cell": cell_name(named),
                "untouched": named.cell.is_base,
                "memory_mb": round(wanted.total / 1e6),
                "fits_with": {text: round(size / 1e6) for text, size in wanted.cures},
            }
            for named, wanted in estimate.too_large
        ],
    }


def _factors(found: Grid) -> dict[str, list[Any]]:
    levels: dict[str, list[Any]] = {key: [] for key in found.factors}
    for point in found.points:
        for key in found.factors:
            if point.levels[key] not in levels[key]:
                levels[key].append(point.levels[key])
    return levels


def _alias(plan: Design, named: Named) -> dict[str, str]:
    first = plan.runs[named.key][0]
    return {
        "cell": overrides(named.levels),
        "is": overrides(first.levels),
        "train_key": named.key,
    }


def _scored(plan: Design) -> list[dict[str, Any]]:
    """Return every benchmark with the items of it that are scored, and of how many if known."""
    found = [
        {
            "task": task,
            "items": items(task, asked),
            "of": scored(task, None),
            "limit": asked.limit,
            "chosen": asked.items if chosen.of(asked, task) else None,
        }
        for asked in evaluations(plan.cells)
        for task in asked.tasks
    ]
    return list({json.dumps(one): one for one in found}.values())


def _models(plan: Design) -> list[dict[str, Any]]:
    """Return what a base model's matrices share: embedding with head, queries with keys."""
    names = Names(named.cell.model for named in plan.cells)
    files = {names[named.cell.model]: named.identity.files for named in plan.cells}
    return [
        {
            "model": name,
            "parameters": found.parameters,
            "tied": found.embedding_parameters == found.vocab_size * found.width,
            "fused": registry.fused(found.linear_shapes),
        }
        for name, found in files.items()
    ]


def _adapters(plan: Design) -> list[dict[str, Any]]:
    """Return the trained parameters of every model, adapter and rank beside LoRA's budget.

    An adapter or placement whose settings vary under one name says so where the counts differ.
    """
    models = Names(named.cell.model for named in plan.cells)
    parts = Names(p for named in plan.cells for p in (named.cell.adapter, named.cell.placement))
    found: dict[tuple[Any, ...], dict[tuple[str, str], dict[str, Any]]] = {}
    for named in plan.cells:
        cell = named.cell
        around = (cell.placement.name, cell.optimizer.name, cell.embeddings, cell.train.lr)
        arm = found.setdefault((models[cell.model], cell.adapter.name, cell.rank, *around), {})
        own = (parts[cell.adapter], parts[cell.placement])
        if own not in arm:
            arm[own] = {"model": models[cell.model]} | _adapter(named)
    rows = [row for arm in found.values() for row in _told_apart(arm)]
    return list({json.dumps(row, sort_keys=True): row for row in rows}.values())


def _told_apart(arm: Mapping[tuple[str, str], dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of one arm, under the labels of adapter and placement where they differ."""
    rows = list(arm.values())
    if all(row == rows[0] for row in rows):
        return rows[:1]
    return [row | {"adapter": a, "placement": p} for (a, p), row in arm.items()]


def _adapter(named: Named) -> dict[str, Any]:
    cell, files = named.cell, named.identity.files
    budget = registry.budget(cell, files.linear_shapes, norms=files.norm_parameters)
    count = registry.trainable_parameters(cell, files)
    return {
        "adapter": cell.adapter.name,
        "embeddings": cell.embeddings,
        "trains_base": registry.method(cell.adapter).trains_base,
        "placement": cell.placement.name,
        "optimizer": cell.optimizer.name,
        "rank": cell.rank if budget else None,
        "lr": cell.train.lr if not cell.is_base else None,
        "untuned": cell.train.untuned,
        "full_rate": cell.train.full_rate,
        "trainable": count,
        "share": round(count / files.parameters, 5),
        "budget_asked": budget.asked if budget else None,
        "budget_got": budget.got if budget else None,
        "ratio": round(budget.ratio, 4) if budget else None,
        "budget": budget.status if budget else None,
    }
