"""What a run is: the canonical description whose hash is its key.

`train_key` hashes what determines the trained weights, and nothing else: the content of the data
and of the base model, the loss in canonical form, the adapter's true capacity, the optimiser, the
schedule and the seed. Names of levels are not in it, so two names of one run find each other.
`score_key` adds one thing that is scored: a benchmark, a held-out loss or a measure.
"""

import hashlib
import json
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from ablate import weights
from ablate.adapters import table
from ablate.config import Cell
from ablate.data.tokenise import Summary, summary
from ablate.model_files import ModelFiles, resolve

# Raise when a change of ours alters trained weights on purpose: old records then no longer match.
NUMERICS_VERSION = 1
KEY_LENGTH = 16


@dataclass(frozen=True, slots=True)
class Unit:
    """One thing to score on a trained model, with its key."""

    kind: str  # task, heldout or measure
    name: str
    key: str


@dataclass(frozen=True, slots=True)
class Identity:
    """A cell's keys and the facts about its data that they rest on."""

    train_key: str
    description: dict[str, Any]
    units: tuple[Unit, ...]
    files: ModelFiles
    data: Summary
    effective_plw: float


def digest(value: object) -> str:
    """Return the key of a JSON-ready value; key order and number spelling do not matter."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]


def identify(cell: Cell) -> Identity:
    """Return the identity of `cell`; tokenises its data unless a cached summary says enough.

    Raises:
        UserError: the model or the data cannot be used, or the combination is not legal.
    """
    files = resolve(cell.model)
    data = part_summary(cell, files, "train")
    goal = weights.objective(cell.masking, cell.plw, cell.completion_weight, cell.loss)
    table.check(cell.adapter, cell.rank, files.linear_shapes)
    description = _describe(cell, files, data)
    key = digest(description)
    is_base = cell.adapter.kind == "none"
    return Identity(
        train_key=key,
        description=description,
        units=_units(cell, files, key),
        files=files,
        data=data,
        effective_plw=0.0 if is_base else weights.effective_plw(goal, dict(data.counts)),
    )


def part_summary(cell: Cell, files: ModelFiles, part: str) -> Summary:
    """Return the summary of one part of the cell's data as its model's tokenizer sees it."""
    return summary(
        cell.dataset,
        part,
        model_folder=files.folder,
        chat_template=cell.model.chat_template,
        max_length=cell.train.max_length,
        boundary=cell.train.boundary,
    )


def _describe(cell: Cell, files: ModelFiles, data: Summary) -> dict[str, Any]:
    base = {"numerics": NUMERICS_VERSION, "model": files.content_hash}
    if cell.adapter.kind == "none":
        return base
    goal = weights.objective(cell.masking, cell.plw, cell.completion_weight, cell.loss)
    train = cell.train
    schedule = {
        "lr": train.lr,
        "optimizer": [train.optimizer, *train.betas, train.eps, train.weight_decay],
        "schedule": [train.schedule, train.warmup_ratio],
        "length": [train.epochs, train.max_steps, train.batch_size, train.batch_unit],
        "clip": train.clip,
        "precision": train.precision,
    }
    if cell.loss.scope == "microbatch":  # here alone the split of a step changes the objective
        schedule["micro_batch_size"] = cell.execution.micro_batch_size
    return base | {
        "data": data.content_hash,
        "loss": weights.canonical(goal, dict(data.counts)),
        "adapter": table.capacity(cell.adapter, cell.rank, files.linear_shapes),
        "embeddings": cell.embeddings,
        "train": schedule,
        "seed": [cell.seed, cell.sham],
    }


def _units(cell: Cell, files: ModelFiles, train_key: str) -> tuple[Unit, ...]:
    wanted = cell.evaluate
    found = []
    for task in wanted.tasks:
        settings = [task_version(task), wanted.limit, wanted.num_fewshot, wanted.max_new_tokens]
        found.append(("task", task, settings))
    for part in wanted.heldout:
        held = part_summary(cell, files, part)
        found.append(("heldout", part, [held.content_hash, wanted.heldout_rows]))
    if cell.adapter.kind != "none":  # a measure compares the trained model with its base
        for measure in wanted.measures:
            train = part_summary(cell, files, "train").content_hash
            found.append(("measure", measure, [train, wanted.measure_rows]))
    return tuple(Unit(k, name, digest([train_key, k, name, rest])) for k, name, rest in found)


def task_version(task: str) -> str:
    """Return what stands for the version of a benchmark in its score key."""
    from ablate.micro.tasks import TASKS  # function-local: the world is only needed for its names

    if task in TASKS:
        return f"micro-{TASKS[task].version}"
    return f"lm_eval-{metadata.version('lm_eval')}"
