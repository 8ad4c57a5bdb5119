"""The quick study beside TRL and lm-eval: seconds of processor and of wall time for its cells.

    python benchmarks/quick_study.py [--trl FOLDER] [--sides ours loop processes] [--folder FOLDER]

Twelve cells of `study=quick`: {micro, micro_short} x PLW {0, 1} x {full, lora, mora}, rank 8, with
its settings; 0 and 1 are the weights that TRL has. Two processes work at once on every side.

    ours       `ablate sweep` of them, from its start to its report; what a sweep costs once is
               measured by sweeps of 2 and 4 very small cells
    loop       two processes that work through six cells each: base and tasks are loaded once
    processes  a process per cell: TRL's SFTTrainer, then lm-eval's `simple_evaluate`; with
               `--apart N` only N of the cells, evenly chosen, stand for all

All train on the same rows in the same order, at the same rates, from the same starts of adapters,
and score the same 500 items of the same six tasks in batches of 64. Left out of the other sides are
reading and tokenising rows, held-out losses, records, weights on the disk, a report, and the
untouched base, which ours scores too. `--trl` is a folder with trl 1.16.0 that is not installed.

A side that was measured is not measured again: FOLDER keeps it, `--again` forgets it. `--out`
appends the figures as lines of JSON.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd

from ablate.adapters import build
from ablate.config.schema import Cell
from ablate.data import batches
from ablate.data.targets import row_weights
from ablate.experiment.cell_data import tokenised
from ablate.experiment.design import Named
from ablate.experiment.request import plan_grid
from ablate.micro.tasks import materialise
from ablate.models.files import resolve
from ablate.models.load import load
from ablate.objective import objective_of
from ablate.streams import Streams
from ablate.training.optim import warmup_steps

ROOT = Path(__file__).resolve().parents[1]
PEER = Path(__file__).with_name("quick_study_peer.py")
GRID = ["dataset=micro,micro_short", "masking=none", "plw=0,1", "adapter=full,lora,mora", "rank=8"]
SMALL = ["dataset=micro", "masking=none", "plw=0,1", "adapter=lora", "rank=2", "train.max_steps=2",
         "evaluate.heldout_rows=4", "evaluate.limit=4"]  # fmt: skip
WORKERS, TRAINED = 2, 136  # processes at once; trained runs of the whole study
ONCE = ("imports", "base", "tasks")  # parts of a process that loops over cells
SIDES = ("ours", "loop", "processes")


def main() -> None:
    """Measure what was not, compare the work and print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sides", nargs="+", default=SIDES, choices=SIDES)
    parser.add_argument("--trl", type=Path, help="folder with trl 1.16.0, if it is not installed")
    parser.add_argument("--folder", type=Path, default=Path("results/quick_study"))
    parser.add_argument("--apart", type=int, help="cells with a process of their own; all")
    parser.add_argument("--again", action="store_true", help="measure what was measured before")
    parser.add_argument("--small", action="store_true", help="two small cells, to try the code")
    parser.add_argument("--out", type=Path, help="append the figures to this file")
    given = parser.parse_args()
    folder = given.folder.resolve()
    if given.again:
        shutil.rmtree(folder, ignore_errors=True)
    words = SMALL if given.small else [*GRID, "evaluate.limit=500"]
    figures = measured(folder, words, given)
    bare = ({"side": side} | {k: v for k, v in one.items() if k != "found"}
            for side, one in figures.items())  # fmt: skip
    lines = [*bare, *times(figures), *compared(folder, figures)]
    for line in lines:
        print(json.dumps(line))
    if given.out:
        with given.out.open("a", encoding="utf-8") as stream:
            stream.writelines(json.dumps(line) + "\n" for line in lines)


def measured(folder: Path, words: Sequence[str], given: Any) -> dict[str, dict[str, Any]]:
    """Return the figures of every side asked for, from `folder` where it has them."""
    cells, found = prepared(folder / "cells", words), {}
    if "ours" in given.sides:
        found = {
            "ours": sweep(folder / "ours", [*words, "seed=0"]),
            "ours, 2 very small cells": sweep(folder / "two", [*SMALL, "seed=0"]),
            "ours, 4 very small cells": sweep(folder / "four", [*SMALL, "seed=0,1"]),
        }
    if "loop" in given.sides:
        found["loop"] = peers([cells[i::WORKERS] for i in range(WORKERS)], given.trl)
    if "processes" in given.sides:
        some = cells[:: len(cells) // (given.apart or len(cells))]
        found["processes"] = peers([[cell] for cell in some], given.trl)
    return found


def _children() -> float:
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def environment(further: Path | None = None) -> dict[str, str]:
    """Return the environment of every process: one thread, this checkout, nothing online."""
    paths = [str(ROOT), *([str(further)] if further else [])]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }  # fmt: skip


def sweep(out: Path, words: Sequence[str]) -> dict[str, Any]:
    """Return the seconds of `ablate sweep` with all its processes, and how many cells it trained.

    The load of the machine before is told, for wall times of a busy one tell little.
    """
    kept = out.with_suffix(".json")
    if not kept.exists():
        shutil.rmtree(out, ignore_errors=True)
        asked = [*words, f"out={out}", f"hydra.launcher.n_jobs={WORKERS}"]
        command = [sys.executable, "-m", "ablate.cli", "sweep", *asked]
        load, before, started = os.getloadavg()[0], _children(), time.perf_counter()
        subprocess.run(command, env=environment(), check=True, stdout=subprocess.DEVNULL)
        wall, processor = time.perf_counter() - started, _children() - before
        records = [json.loads(file.read_text()) for file in (out / "cells").glob("*/record.json")]
        cells = sum(record["training"]["steps"] > 0 for record in records)
        kept.write_text(
            json.dumps({"processor": processor, "wall": wall, "cells": cells, "load": load})
        )
    found: dict[str, Any] = json.loads(kept.read_text())
    return found


def peers(groups: Sequence[Sequence[Path]], trl: Path | None) -> dict[str, Any]:
    """Return what groups of cells, a process each, took and found; two processes work at once."""

    def lane(some: Sequence[Sequence[Path]]) -> list[Any]:
        return [peer(group, trl) for group in some]

    with ThreadPoolExecutor(WORKERS) as pool:
        lanes = list(pool.map(lane, [groups[i::WORKERS] for i in range(WORKERS)]))
    processes = [process for some in lanes for process in some]
    cells = [cell for process in processes for cell in process["cells"]]
    parts = [*(process["common"] for process in processes), *(cell["parts"] for cell in cells)]
    return {
        "processor": sum(process["processor"] for process in processes),
        "wall": max(sum(process["wall"] for process in some) for some in lanes),
        "cells": len(cells), "load": processes[0]["load"],
        "parts": {name: round(sum(part[name][0] for part in parts if name in part), 1)
                  for name in [*processes[0]["common"], *cells[0]["parts"]]},
        "found": {cell["cell"]: cell for cell in cells},
    }  # fmt: skip


def peer(group: Sequence[Path], trl: Path | None) -> Any:
    """Return what a process of TRL and lm-eval took and found; the last one's, if it ended."""
    out = group[0] / f"found_{len(group)}.json"
    if not out.exists():
        command = [sys.executable, str(PEER), str(out), *map(str, group)]
        done = subprocess.run(command, env=environment(trl), capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr[-2000:])
    return json.loads(out.read_text())


# --- the cells


def prepared(folder: Path, words: Sequence[str]) -> list[Path]:
    """Return a folder for each cell with its settings, rows in order and adapter, written once."""
    runs = plan_grid([*words, "seed=0"]).design.runs
    trained = [named[0] for named in runs.values() if not named[0].cell.is_base]
    for named in trained:
        if not (folder / name_of(named.cell) / "cell.json").exists():
            _write(folder / name_of(named.cell), named)
    return [folder / name_of(named.cell) for named in trained]


def name_of(cell: Cell) -> str:
    """Return what a cell is called here."""
    return f"{cell.dataset.name}_{cell.adapter.name}_{cell.plw:g}"


def _write(folder: Path, named: Named) -> None:
    from datasets import Dataset

    cell, files = named.cell, resolve(named.cell.model)
    data, streams = tokenised(cell, "train"), Streams(cell.seed, cell.sham)
    steps = batches.order(data, train=cell.train, generator=streams.numpy("order"))
    rows = [int(row) for step in steps for row in step]
    ids = {row: data.row(row)[0] for row in set(rows)}
    objective = objective_of(cell)
    weights = {row: row_weights(data.labels_of(row), objective, row=row, permute=None)[0]
               for row in ids}  # fmt: skip
    labels = {row: [int(i) if w else -100 for i, w in zip(ids[row], weights[row], strict=True)]
              for row in ids}  # fmt: skip
    Dataset.from_dict(
        {"input_ids": [ids[row] for row in rows], "labels": [labels[row] for row in rows]}
    ).save_to_disk(str(folder / "rows"))
    model = build.apply(load(files), cell, streams=streams, data=data)
    if cell.adapter.kind != "full":
        model.save_pretrained(str(folder / "adapter"))
    about = {
        "name": name_of(cell), "key": named.identity.train_key, "adapter": cell.adapter.name,
        "base": str(files.folder), "lr": cell.train.lr, "batch_size": cell.train.batch_size,
        "warmup_steps": warmup_steps(cell.train, len(steps)), "clip": cell.train.clip,
        "weight_decay": cell.train.weight_decay, "seed": cell.seed, "steps": len(steps),
        "tokens": int(sum(len(ids[row]) for row in rows)), "tasks": list(cell.evaluate.tasks),
        "task_folder": str(materialise()), "limit": cell.evaluate.limit,
        "eval_batch_size": cell.execution.eval_batch_size,
    }  # fmt: skip
    (folder / "cell.json").write_text(json.dumps(about))


# --- what was found


def times(figures: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what the other sides take as a multiple of ours: for the 12 cells, and for the study.

    The study's seconds of processor are what is done once, and its 136 trained runs at what one of
    the cells took beyond that; our untouched base counts as part of our cells.
    """
    if "ours" not in figures:
        return []
    ours = figures["ours"]
    two, four = (figures[f"ours, {count} very small cells"] for count in (2, 4))
    once = {"ours": max(0.0, 2 * two["processor"] - four["processor"])}
    if "loop" in figures:
        once["loop"] = sum(figures["loop"]["parts"][part] for part in ONCE)
    study = {side: scaled(figures[side], once.get(side, 0.0)) for side in SIDES if side in figures}
    return [
        {"side": side, "study_processor": study[side],
         "study_times_ours": round(study[side] / study["ours"], 2),
         **{f"{unit}_times_ours": round(
                figures[side][unit] / figures[side]["cells"] * ours["cells"] / ours[unit], 2)
            for unit in ("processor", "wall")}}
        for side in study
    ]  # fmt: skip


def scaled(found: dict[str, Any], once: float) -> int:
    """Return the seconds of processor of the whole study, of which `once` do not grow with it."""
    return round(once + TRAINED * (found["processor"] - once) / found["cells"])


def compared(folder: Path, figures: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return for each cell and side how far the other's losses and scores are from ours."""
    lines = []
    for side in ("processes", "loop"):
        for name, theirs in figures.get(side, {}).get("found", {}).items():
            about = json.loads((folder / "cells" / name / "cell.json").read_text())
            place = folder / "ours" / "cells" / about["key"]
            if place.exists():
                lines.append({"side": side, "cell": name, **_difference(place, about, theirs)})
    return lines


def _difference(place: Path, about: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    record = json.loads((place / "record.json").read_text())
    losses = pd.read_parquet(place / "history.parquet")["loss"]
    training = record["training"]
    assert (training["steps"], training["tokens_seen"]) == (theirs["steps"], about["tokens"])
    logged = {int(step): loss for step, loss in theirs["losses"].items()}
    ours = {s["task"]: s for s in record["scores"] if s["task"] in about["tasks"]}
    assert {t: s["n"] for t, s in ours.items()} == {
        t: s["items"] for t, s in theirs["scores"].items()
    }
    return {
        "steps": theirs["steps"], "tokens": about["tokens"],
        "first_loss": [round(float(losses[0]), 4), round(logged[1], 4)],
        "loss_2_to_10": [round(float(losses[1:10].mean()), 4), logged.get(10)],
        "scores": {task: [round(one["value"], 3),
                          round(theirs["scores"][task]["values"][one["metric"]], 3)]
                   for task, one in ours.items()},
    }  # fmt: skip


if __name__ == "__main__":
    main()
