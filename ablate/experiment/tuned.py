"""Tuned learning rates: where `train.lr=tuned` finds its number, and how the table is made.

One learning rate for every adapter would be a confound, so each adapter and rank has its own on
each data set: the one with the lowest loss on the completions of the validation split, averaged
over base models, on a seed that no report uses (conf/study/tuning.yaml). Tables are
conf/tuned/*.csv with the columns model, dataset, adapter, rank, lr and, where they are not the
default, init and optimizer; `model` is a family, the name without its number (micro_0, micro_1 and
micro_2 are micro).

A cell that has no row of its own takes, in this order, the data set's shorter name
(micro_designed -> micro), the adapter's kind where it is named after it (mora_rotation -> mora),
and of the ranks tuned the nearest one on the scale of log2. What has no rank (full fine-tuning) is
one run under every rank, so it takes the rate that did best under any. What is not found is an
error, never a guess.
"""

import csv
import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ablate.adapters.registry import method
from ablate.config.schema import Cell
from ablate.errors import UserError
from ablate.paths import conf_dir

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

COLUMNS = ("model", "dataset", "adapter", "rank", "lr")
AROUND = {"init": "default", "optimizer": "adamw"}  # further columns, and what stands for none
_BY = ["model", "dataset", "adapter", *AROUND, "rank"]
STEP = 4.0  # factor by which a range whose best rate is its last one is widened
ROUNDS = 3  # how often it is


@dataclass(frozen=True, slots=True)
class Tuned:
    """One row of a table: the learning rate of an adapter at a rank on a data set."""

    model: str
    dataset: str
    adapter: str
    rank: int
    lr: float
    loss: float | None = None  # on the validation split, at this rate
    tried: int | None = None  # how many rates were
    init: str = AROUND["init"]
    optimizer: str = AROUND["optimizer"]


def tuned_lr(cell: Cell, folder: Path | None = None) -> float:
    """Return the learning rate tuned for `cell`; arguments and errors as of `tuned_row`."""
    return tuned_row(cell, folder).lr


def tuned_row(cell: Cell, folder: Path | None = None) -> Tuned:
    """Return the row of the tables that gives `cell` its learning rate.

    Args:
        cell: the cell; its `train.lr` is not looked at.
        folder: where the tables are, instead of conf/tuned.

    Raises:
        UserError: nothing was tuned for this model family, data set and adapter.
    """
    rows = [row for path in _tables(folder) for row in _read(path)]
    rows = [row for row in rows if row.model in (cell.model.name, family(cell.model.name))]
    around = cell.init.name, cell.optimizer.name
    rows = [row for row in rows if (row.init, row.optimizer) == around]
    for dataset in _shorter(cell.dataset.name):
        for adapter in _names(cell):
            fitting = [r for r in rows if (r.dataset, r.adapter) == (dataset, adapter)]
            if fitting:
                return min(fitting, key=lambda row: _order(row, cell))
    raise UserError(
        f"train.lr=tuned: no learning rate is tuned for model={cell.model.name} "
        f"dataset={cell.dataset.name} adapter={cell.adapter.name}{_told(cell)}; give "
        f"train.lr=NUMBER or run ablate tune model={cell.model.name} dataset={cell.dataset.name} "
        f"adapter={cell.adapter.name}{_told(cell)}"
    )


def _told(cell: Cell) -> str:
    """Return init and optimizer as overrides, where they are not the usual ones."""
    levels = {"init": cell.init.name, "optimizer": cell.optimizer.name}
    return "".join(f" {key}={level}" for key, level in levels.items() if level != AROUND[key])


def _names(cell: Cell) -> Iterator[str]:
    """Yield the names under which a cell's adapter may have been tuned."""
    yield cell.adapter.name
    if cell.adapter.name.startswith(f"{cell.adapter.kind}_"):
        yield cell.adapter.kind


def write_used(cells: Iterable[Cell], path: Path) -> None:
    """Write the rows of the tables that gave `cells` their learning rates; nothing if none did."""
    used: dict[Tuned, None] = {}
    for cell in cells:
        try:
            row = tuned_row(cell)
        except UserError:
            continue
        if row.lr == cell.train.lr:
            used[row] = None
    if not used:
        return
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow((*COLUMNS, "loss", "tried", *AROUND))
        table.writerows(dataclasses.astuple(row) for row in sorted(used, key=repr))


def family(model: str) -> str:
    """Return a model's name without its number."""
    return re.sub(r"_\d+$", "", model)


def _shorter(name: str) -> Iterator[str]:
    """Yield `name`, then the same without its last words."""
    yield name
    while "_" in name:
        name = name.rpartition("_")[0]
        yield name


def _order(row: Tuned, cell: Cell) -> tuple[float, bool]:
    """Return what is least for the row to take: distance in rank, or the loss where it has none."""
    kind = method(cell.adapter)
    if kind.adapts and (kind.size or kind.arguments):
        return abs(math.log2(row.rank / cell.rank)), row.model != cell.model.name
    return math.inf if row.loss is None else row.loss, row.model != cell.model.name


def _tables(folder: Path | None) -> list[Path]:
    return sorted((folder or conf_dir() / "tuned").glob("*.csv"))


_read_before: dict[tuple[Path, int], list[Tuned]] = {}


def _read(path: Path) -> list[Tuned]:
    """Return the rows of a table; a plan asks thousands of times, so they are remembered."""
    mark = (path, path.stat().st_mtime_ns)
    if mark not in _read_before:
        with path.open(newline="", encoding="utf-8") as file:
            lines = list(csv.DictReader(file))
        try:
            _read_before[mark] = [
                Tuned(
                    **{name: r[name] for name in ("model", "dataset", "adapter")},
                    rank=int(r["rank"]),
                    lr=float(r["lr"]),
                    loss=float(r["loss"]) if r.get("loss") else None,
                    tried=int(r["tried"]) if r.get("tried") else None,
                    **{name: r.get(name) or usual for name, usual in AROUND.items()},
                )
                for r in lines
            ]
        except (KeyError, ValueError, TypeError) as error:
            raise UserError(f"{path}: needs the columns {', '.join(COLUMNS)}") from error
    return _read_before[mark]


# -- making the table -------------------------------------------------------------------------


def choose(results: "pd.DataFrame") -> "pd.DataFrame":
    """Return the best learning rate of each model family, data set, adapter and rank.

    Columns model, dataset, adapter, rank, lr, the mean validation `loss` at it, how many rates were
    `tried`, and `edge`: "low" or "high" where the best rate is the last one tried on that side, so
    that the true optimum may lie beyond, or "failed". A rate at which any base model failed is
    never chosen.

    Args:
        results: the results table of a study that varies `lr`, scored on the validation split.

    Raises:
        UserError: the table has no validation loss on completions.
    """
    import pandas as pd

    losses = _validation_losses(results)
    chosen = [
        {**dict(zip(_BY, key, strict=True)), **_best(group)}
        for key, group in losses.groupby(_BY, sort=True)
    ]
    return pd.DataFrame(chosen, columns=[*COLUMNS, "loss", "tried", *AROUND, "edge"])


def _validation_losses(results: "pd.DataFrame") -> "pd.DataFrame":
    """Return one row per run and rate; a failed run keeps its row, with no loss."""
    runs = results[results["adapter"] != "none"].copy()
    for name, usual in AROUND.items():
        runs[name] = runs.get(name, usual)
    held = runs["task_type"].eq("heldout") & runs["task"].str.contains("validation")
    learnt = runs["metric"].str.contains("completion|text")
    scored = runs[(held & learnt).fillna(False)]
    if scored.empty:
        raise UserError("no validation loss in these results; score them with evaluate=validation")
    runs["model"] = runs["model"].map(family)
    runs["loss"] = scored["value"]
    return runs.groupby([*_BY, "lr", "train_key"])[["loss"]].mean().reset_index()


def _best(group: "pd.DataFrame") -> dict[str, object]:
    # A mean over models that leaves the failed ones out would reward failing.
    means = group.groupby("lr")["loss"].agg(lambda losses: losses.mean(skipna=False))
    rates = [float(lr) for lr in means.index]
    by_rate = sorted(zip(rates, map(float, means), strict=True))
    known = [(loss, lr) for lr, loss in by_rate if not math.isnan(loss)]
    if not known:
        return {"lr": math.nan, "loss": math.nan, "tried": len(by_rate), "edge": "failed"}
    loss, lr = min(known)
    edge = {by_rate[0][0]: "low", by_rate[-1][0]: "high"}.get(lr, "")
    return {"lr": lr, "loss": loss, "tried": len(by_rate), "edge": edge}


def tune(words: list[str], *, sweep: Callable[[list[str]], int], console: "Console") -> int:
    """Run the tuning study, print the table it gives and return the exit status.

    An optimum at the edge of the rates tried widens the range there, up to `ROUNDS` times. The
    table is OUT/tuned.csv. `--save` also puts its rows into conf/tuned/micro.csv, those apart whose
    optimum still lies at an edge.
    """
    import pandas as pd

    overrides = [word for word in words if word != "--save"]
    given = [word.partition("=")[2] for word in overrides if word.startswith("out=")]
    out = Path(given[-1] if given else "results/tuning")
    study = [] if any(word.startswith("study=") for word in overrides) else ["study=tuning"]
    asked = [*study, f"out={out}", *(w for w in overrides if w[:4] != "out=")]
    status = sweep(asked)
    for _ in range(ROUNDS):
        if status == 2:
            return status
        table = choose(pd.read_parquet(out / "results.parquet"))
        edges = table[table["edge"].isin(["low", "high"])]
        if edges.empty:
            break
        for wider in _wider(edges, asked):
            status = sweep(wider)
    table = choose(pd.read_parquet(out / "results.parquet"))
    table.to_csv(out / "tuned.csv", index=False)
    console.print(table.to_string(index=False), highlight=False)
    found = table[table["edge"] == ""]
    if "--save" in words and len(found):
        _save(found, conf_dir() / "tuned" / "micro.csv")
    for row in table[table["edge"] != ""].itertuples():
        fault = f"best at lr={row.lr}, the end of what was tried; try rates beyond it: train.lr=..."
        if row.edge == "failed":
            fault = "failed at every rate tried"
        console.print(
            f"[red]not tuned[/red]: {row.adapter} rank {row.rank} on {row.dataset}: {fault}",
            highlight=False,
        )
    return status if len(found) == len(table) else 1


def _wider(edges: "pd.DataFrame", asked: list[str]) -> Iterator[list[str]]:
    """Yield a request for each rate beyond the edges: its levels in place of the study's own."""
    replaced = ("adapter", "rank", "dataset", "train.lr", *AROUND)
    rest = [word for word in asked if word.split("=")[0] not in replaced]
    by = ["dataset", "rank", "lr", "edge", *AROUND]
    for (dataset, rank, lr, edge, init, optimizer), own in edges.groupby(by, sort=False):
        beyond = float(str(lr)) * STEP if edge == "high" else float(str(lr)) / STEP
        yield [
            *rest,
            f"dataset={dataset}",
            f"adapter={','.join(sorted(set(own['adapter'])))}",
            f"rank={rank}",
            f"train.lr={beyond:.3g}",
            f"init={init}",
            f"optimizer={optimizer}",
        ]


def _save(table: "pd.DataFrame", path: Path) -> None:
    """Put the rows of `table` into the table at `path`, in place of older ones."""
    import pandas as pd

    old = pd.read_csv(path) if path.is_file() else table.iloc[:0]
    for name, usual in AROUND.items():
        old[name] = old[name].fillna(usual) if name in old else usual
    both = pd.concat([old, table]) if len(old) else table
    rows = both.drop_duplicates(_BY, keep="last").sort_values(_BY)
    path.parent.mkdir(parents=True, exist_ok=True)
    rows.drop(columns="edge", errors="ignore").to_csv(path, index=False)
