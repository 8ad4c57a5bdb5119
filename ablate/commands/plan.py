"""What a request would do and what it would cost, without doing it.

Times come from the records of this folder where there are any, else from the pace that earlier
runs on this machine left in the cache, else from the size of the model; the plan says which.
"""

import json
import shutil
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from rich.console import Console
from rich.table import Table

from ablate.adapters import registry
from ablate.config import grid
from ablate.config.compose import Grid, expand
from ablate.config.composer import config_loader
from ablate.errors import UserError
from ablate.experiment.design import Design, Named, design, head_of
from ablate.micro import tasks as micro_tasks
from ablate.progress import duration
from ablate.results.store import Store
from ablate.sweep import missing

if TYPE_CHECKING:
    import pandas as pd

FLOPS_PER_SECOND = 25e9  # one core at small sizes, measured; only used where nothing was recorded
ITEM_BYTES = 24  # an item in items.parquet, compressed
RECORD_BYTES = 40_000  # record, configuration, history and log together
ROW_BYTES = 2_000  # Adam state, gradient and weight in bytes a parameter are counted apart


@dataclass(frozen=True, slots=True)
class Request:
    """A command line understood: its grid, its design and the settings of the command."""

    grid: Grid
    design: Design
    out: Path
    settings: dict[str, Any]


def plan_grid(overrides: list[str], *, loader: Any = None) -> Request:
    """Return what the command-line `overrides` ask for; the whole grid is checked.

    `loader` is Hydra's, where it runs; `--config-dir DIR` among the overrides makes one.

    Raises:
        UserError: the request is wrong.
    """
    folders = [w.split("=", 1)[1] for w in overrides if w.startswith("--config-dir=")]
    lines = [w for w in overrides if not w.startswith("--config-dir=")]
    found = expand(lines, loader=loader or config_loader(folders))
    settings = found.settings
    checked = design(
        grid.cells(found),
        study=str(found.study.get("name") or "none"),
        skip_illegal=bool(settings["skip_illegal"]),
    )
    return Request(found, checked, Path(settings["out"]), settings)


@dataclass(frozen=True, slots=True)
class Price:
    """An estimate for a set of runs; `basis` says what it rests on."""

    seconds: float  # of one core
    disk_bytes: float
    memory_bytes: float  # of the largest run
    basis: str


def price(names: Iterable[Named], store: Store) -> Price:
    """Return the estimated cost of training and scoring each of `names` once."""
    pace, basis = _pace(store)
    seconds = disk = memory = 0.0
    for named in names:
        sizes = _Sizes(named)
        seconds += sizes.flops / pace if pace else sizes.flops / FLOPS_PER_SECOND
        disk += sizes.disk
        memory = max(memory, sizes.memory)
    return Price(seconds, disk, memory, basis)


class _Sizes:
    """The work and the room that one run needs, from sizes alone."""

    def __init__(self, named: Named) -> None:
        cell, files, data = named.cell, named.identity.files, named.identity.data
        trained = registry.trainable_parameters(cell, files)
        rows = data.rows * cell.train.epochs
        if cell.train.max_steps is not None and cell.train.batch_unit == "examples":
            rows = min(rows, cell.train.max_steps * cell.train.batch_size)
        tokens = rows * data.mean_length if not cell.is_base else 0
        items = (cell.evaluate.limit or 1000) * len(cell.evaluate.tasks)
        # 6 N a trained token (forward 2, backward 4), 2 N a scored one; a scored item is about as
        # long as four rows: its options, or its prompt and what is generated.
        scored = items * data.mean_length * 2
        self.flops = files.parameters * (6 * tokens + 2 * scored)
        kept = 4 * trained if 4 * trained <= cell.execution.keep_weights_mb * 2**20 else 0
        self.disk = RECORD_BYTES + ITEM_BYTES * items + kept
        width = cell.execution.micro_batch_size or cell.train.batch_size
        activations = width * min(data.max_length, cell.train.max_length) * files.vocab_size * 12
        self.memory = 8 * files.parameters + 12 * trained + activations + 600e6


def _pace(store: Store) -> tuple[float | None, str]:
    """Return model flops per core-second from recorded runs, and what that rests on."""
    paces = []
    for key in store.recorded()[:200]:
        record = store.record(key)
        costs = record["costs"] if record else {}
        if record and costs.get("train_seconds"):
            paces.append(6 * record["parameters"]["base"] * costs["tokens_per_second"])
    if paces:
        return statistics.median(paces), f"the pace of {len(paces)} runs recorded here"
    return None, "the model's size; nothing is recorded here yet"


def check_resources(plan: Design, store: Store) -> None:
    """Refuse a sweep whose records will not fit on the disk.

    Raises:
        UserError: the free space is less than the estimate.
    """
    todo = [names[0] for names in missing(plan, store).values()]
    needed = price(todo, store).disk_bytes
    free = shutil.disk_usage(store.out).free
    if needed > free:
        raise UserError(
            f"out={store.out}: about {needed / 1e6:,.0f} MB are needed and {free / 1e6:,.0f} MB "
            "are free; lower execution.keep_weights_mb or choose another folder"
        )


def summarise(request: Request) -> dict[str, Any]:
    """Return the plan as JSON-ready values."""
    plan, store = request.design, Store(request.out)
    todo = missing(plan, store)
    failed = {k for k in store.attempted() & plan.runs.keys() if store.given_up(k)} - todo.keys()
    cost = price((names[0] for names in todo.values()), store)
    return {
        "study": plan.study,
        "out": str(request.out),
        "factors": _factors(request.grid),
        "cells": len(plan.cells),
        "runs": len(plan.runs),
        "aliases": [_alias(plan, named) for named in plan.cells if named.alias],
        "illegal": [{"levels": levels, "reason": why} for levels, why in plan.illegal],
        "done": len(plan.runs) - len(todo) - len(failed),
        "failed": len(failed),
        "to_do": len(todo),
        "adapters": _adapters(plan),
        "core_seconds": round(cost.seconds, 1),
        "disk_mb": round(cost.disk_bytes / 1e6, 1),
        "memory_mb": round(cost.memory_bytes / 1e6),
        "basis": cost.basis,
    }


def prospective(request: Request) -> "pd.DataFrame":
    """Return the results table that the grid would have: one row per run and task, no scores.

    Raises:
        UserError: nothing is scored on a benchmark.
    """
    import pandas as pd

    plan, rows = request.design, []
    for names in plan.runs.values():
        named, tasks = names[0], names[0].cell.evaluate.tasks
        head = head_of(named, plan.study)
        rows += [head | _task(name) | {"value": 0.5} for name in tasks]
    if not rows:
        raise UserError("evaluate.tasks=[]: there is no benchmark whose power could be told")
    return pd.DataFrame(rows)


def fraction_study(request: Request, runs: Iterable[str], scored: Iterable[str]) -> Path:
    """Write a study of these runs, and of those that are not of `scored`, and return its file.

    It lies in OUT/fraction/study, to be run with `--config-dir=OUT/fraction`.
    """
    study = dict(request.grid.study)
    kept, able = set(runs), set(scored)
    grids = [
        {key: [level] for key, level in names[0].levels.items()}
        for run, names in request.design.runs.items()
        if not names[0].cell.is_base and (run in kept or run not in able)
    ]
    scale = str(request.settings["scale"])
    own = (study.get("scales") or {}).get(scale) or {}
    name = f"{request.design.study}_fraction"
    made = {**study, "name": name, "scales": {scale: {**own, "grids": grids}}}
    file = request.out / "fraction" / "study" / f"{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(made, sort_keys=False), encoding="utf-8")
    return file


def _task(name: str) -> dict[str, Any]:
    """Return what is known of a benchmark before it is run; of a stranger's little is."""
    known = micro_tasks.TASKS.get(name)
    found = {"task": name, "task_type": "mc", "side": "both", "metric": "acc"}
    if known is not None:
        found |= {"task_type": known.task_type, "side": known.side, "metric": known.metric}
    return found


def _factors(found: Grid) -> dict[str, list[Any]]:
    levels: dict[str, list[Any]] = {key: [] for key in found.factors}
    for point in found.points:
        for key in found.factors:
            if point.levels[key] not in levels[key]:
                levels[key].append(point.levels[key])
    return levels


def _alias(plan: Design, named: Named) -> dict[str, str]:
    first = plan.runs[named.key][0]
    return {"cell": _words(named), "is": _words(first), "train_key": named.key}


def _words(named: Named) -> str:
    return " ".join(f"{key}={level}" for key, level in named.levels.items())


def _adapters(plan: Design) -> list[dict[str, Any]]:
    """Return trained parameters by model, adapter and rank: asked (LoRA's), got, ratio."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for named in plan.cells:
        cell, files = named.cell, named.identity.files
        around = (cell.placement.name, cell.optimizer.name, cell.embeddings)
        key = (cell.model.name, cell.adapter.name, cell.rank, *around)
        if key in found:
            continue
        budget = registry.budget(cell, files.linear_shapes, norms=files.norm_parameters)
        count = registry.trainable_parameters(cell, files)
        found[key] = {
            "model": cell.model.name,
            "adapter": cell.adapter.name,
            "placement": cell.placement.name,
            "optimizer": cell.optimizer.name,
            "rank": cell.rank if budget else None,
            "trainable": count,
            "share": round(count / files.parameters, 5),
            "budget_asked": budget.asked if budget else None,
            "budget_got": budget.got if budget else None,
            "ratio": round(budget.ratio, 4) if budget else None,
            "budget": budget.status if budget else None,
        }
    unique = {json.dumps(row, sort_keys=True): row for row in found.values()}
    return list(unique.values())


def render(summary: dict[str, Any], console: Console) -> None:
    """Print the plan."""
    for key, levels in summary["factors"].items():
        console.print(f"  {key}: {', '.join(str(level) for level in levels)}", highlight=False)
    aliases = summary["aliases"]
    console.print(
        f"{summary['cells']} cells are {summary['runs']} runs ({len(aliases)} aliases, "
        f"{len(summary['illegal'])} illegal): {summary['done']} done, {summary['failed']} failed, "
        f"{summary['to_do']} to do",
        highlight=False,
    )
    for alias in aliases[:8]:
        console.print(f"  [dim]{alias['cell']} is {alias['is']}[/dim]", highlight=False)
    if len(aliases) > 8:
        console.print(f"  [dim]and {len(aliases) - 8} more aliases[/dim]", highlight=False)
    for illegal in summary["illegal"][:8]:
        console.print(f"  illegal: {illegal['reason']}", highlight=False)
    _render_adapters(summary["adapters"], console)
    console.print(
        f"about {duration(summary['core_seconds'])} of one core, "
        f"{summary['disk_mb']:,.0f} MB of disk, {summary['memory_mb']:,} MB of memory a run "
        f"(from {summary['basis']})",
        highlight=False,
    )


def render_power(lines: list[dict[str, Any]], console: Console, *, effect: float) -> None:
    """Print, for every test, the power by number of seeds."""
    seeds = sorted({line["seeds"] for line in lines})
    shown = Table("masking", "tasks", "data", f"{effect:g} points as", box=None)
    for n in seeds:
        shown.add_column(f"{n} seed{'s' if n > 1 else ''}", justify="right")
    keys = ("mode", "task_group", "dataset_type", "shape")
    tests = dict.fromkeys(tuple(line[k] for k in keys) for line in lines)
    by = {(*(line[k] for k in keys), line["seeds"]): line["power"] for line in lines}
    for test in tests:
        shares = [by.get((*test, n)) for n in seeds]
        shown.add_row(*map(str, test), *("-" if s is None else f"{s:.0%}" for s in shares))
    console.print(shown)


def _render_adapters(rows: list[dict[str, Any]], console: Console) -> None:
    shown = Table("model", "adapter", box=None)
    for name in ("rank", "trained", "of model", "LoRA's budget", "ratio"):
        shown.add_column(name, justify="right")
    for row in rows:
        shown.add_row(
            row["model"],
            row["adapter"],
            str(row["rank"] or "-"),
            f"{row['trainable']:,}",
            f"{row['share']:.1%}",
            f"{row['budget_asked']:,}" if row["budget_asked"] else "-",
            f"{row['ratio']:.3f}" if row["ratio"] else "-",
        )
    console.print(shown)
