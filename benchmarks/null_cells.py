"""The overhead of a sweep: cells whose training and scoring cost nothing, through a launcher.

    python -m benchmarks.null_cells --launcher local --cells 10000 --workers 2 [SETTING ...]

Each process trains and scores its first cell in earnest. Every later one gets that cell's model,
course and scores at once; all else is done as ever: its claim, its lease, its record before and
after it is scored, its weights, seals and flushes. What is left is overhead, and it is told by part
in milliseconds of wall and of processor time per cell. Further SETTINGs are given to the sweep.

Every process of the sweep imports this module by a `sitecustomize.py`, and so measures itself.
"""

import argparse
import atexit
import collections
import contextlib
import functools
import importlib
import importlib.machinery
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

LOG = "ABLATE_NULL_CELLS"  # the file to which processes add what they measured
ROOT = Path(__file__).resolve().parents[1]
CUSTOM = "from benchmarks import null_cells\nnull_cells.measure()\n"
CELLS = [
    "dataset=micro", "masking=instruction", "plw=0.1", "adapter=lora", "rank=2", "train.lr=1e-3",
    "train.max_steps=3", "dataset.max_rows=64", "evaluate=none", "evaluate.heldout_rows=8",
    "report=false", "execution.lanes=1",
]  # fmt: skip
PARTS = {  # of a module, what is measured under which name; the outermost counts
    "ablate.work": {"build": "configuration", "work": ""},
    "ablate.run": {
        "identify": "identity", "_missing": "identity", "tokenised": "data", "ready": "data",
        "_write_weights": "weights", "_drop_large": "weights",
    },
    "ablate.recording": {
        "unscored": "record of what is trained", "write_trained": "record of what is trained",
        "with_scores": "record", "write": "record",
    },
    "ablate.results.leases": {
        "take": "claim", "holder": "claim", "Lease.release": "claim", "Lease.write": "lease",
    },
    "ablate.results.heart": {"check": "lease"},
    "ablate.results.log": {"logged": "log"},
    "ablate.results.store": {
        "Store.record": "look for a record", "Store.given_up": "look for failures",
        "Store.keep_trained": "keep what is trained", "Store._settle": "put in its place",
        "Store._forget": "put in its place",
    },
    "ablate.results.drafts": {"write_seal": "seal", "flush": "flush"},
    "ablate.app": {
        "plan_grid": "plan", "cost": "estimate", "check_disk": "estimate", "missing": "list",
        "conclude": "conclude",
    },
    "ablate.sweep": {
        "missing": "list", "unrecorded": "list", "save": "save the grid", "collect": "table",
        "write_bundles": "bundles", "_launch": "wait for workers", "_unscored": "list",
        "is_kept": "list", "Store.clear_drafts": "clear drafts", "Store.reap_all": "claim",
    },
    "ablate.watch": {"Watch._look": "progress"},
}  # fmt: skip

_spent: dict[str, list[float]] = collections.defaultdict(lambda: [0, 0.0, 0.0])
_here = threading.local()


def measure() -> None:
    """Measure this process, where the benchmark started it, as its modules are imported."""
    if LOG in os.environ:
        sys.meta_path.insert(0, _Finder())
        atexit.register(_tell, "parent")


class _Finder(importlib.machinery.PathFinder):
    """Finds modules as Python does, and changes those of `PARTS` once they are there."""

    @classmethod
    def find_spec(cls, fullname: str, path: Any = None, target: Any = None) -> Any:
        if fullname not in PARTS:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        assert spec is not None
        assert spec.loader is not None
        usual = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            usual(module)
            _change(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _change(module: Any) -> None:
    for name, part in PARTS[module.__name__].items():
        place, _, last = name.rpartition(".")
        owner = getattr(module, place) if place else module
        if not hasattr(getattr(owner, last), "measured"):
            setattr(owner, last, _measured(getattr(owner, last), part))
    if module.__name__ == "ablate.run":
        module._trained = _once(module._trained)
        module.score = _scored_once(module.score)


def _measured(call: Callable[..., Any], part: str) -> Callable[..., Any]:
    @functools.wraps(call)
    def wrapped(*given: Any, **named: Any) -> Any:
        if not part and "ablate.run" not in sys.modules:
            with _unmeasured("(start)"):
                importlib.import_module("ablate.beside")
                importlib.import_module("ablate.run")
        if getattr(_here, "inside", False) and part:
            return call(*given, **named)
        outer, _here.inside = getattr(_here, "inside", False), bool(part)
        began, used = time.perf_counter(), time.thread_time()
        try:
            return call(*given, **named)
        finally:
            _here.inside = outer
            one = _spent[part]
            one[0] += 1
            one[1] += time.perf_counter() - began
            one[2] += time.thread_time() - used
            if call.__name__ == "work":
                _tell("worker")

    wrapped.measured = True  # type: ignore[attr-defined]
    return wrapped


def _once(train: Callable[..., Any]) -> Callable[..., Any]:
    """Return `train`, which computes for the first cell of a process alone."""
    made: dict[bool, Any] = {}

    def trained(cell: Any, *given: Any, **named: Any) -> Any:
        if cell.is_base not in made:
            with _unmeasured():
                made[cell.is_base] = train(cell, *given, **named)
        return made[cell.is_base]

    return trained


def _scored_once(score: Callable[..., Any]) -> Callable[..., Any]:
    """Return `score`, which computes for the first cell of a process alone, then gives its keys."""
    from dataclasses import replace

    made: dict[int, Any] = {}

    def scored(model: Any, history: Any, wanted: Any) -> Any:
        kind = len(wanted)  # the untouched base lacks what compares with it
        if kind not in made:
            with _unmeasured():
                made[kind] = score(model, history, wanted), wanted
        found, first = made[kind]
        keys = {a.unit.key: b.unit.key for a, b in zip(first, wanted, strict=True)}
        return replace(
            found, scores=[replace(s, score_key=keys[s.score_key]) for s in found.scores]
        )

    return scored


@contextlib.contextmanager
def _unmeasured(name: str = "(first cell)") -> Iterator[None]:
    began, used = time.perf_counter(), time.thread_time()
    inside, _here.inside = getattr(_here, "inside", False), True
    try:
        yield
    finally:
        _here.inside = inside
        one = _spent[name]
        one[0] += 1
        one[1] += time.perf_counter() - began
        one[2] += time.thread_time() - used


def _tell(who: str) -> None:
    """Add what this process spent since it told last."""
    if not _spent or (who == "parent" and "plan" not in _spent):
        return
    all_of_it = time.process_time()
    line = {"who": who, "pid": os.getpid(), "processor": all_of_it, "parts": dict(_spent)}
    with open(os.environ[LOG], "a") as file:
        file.write(json.dumps(line) + "\n")
    _spent.clear()


def run(launcher: str, cells: int, workers: int, more: list[str], home: Path) -> dict[str, Any]:
    """Return the figures of one sweep."""
    (home / "sitecustomize.py").write_text(CUSTOM)
    log = home / "measured.jsonl"
    path = os.pathsep.join([str(home), str(ROOT), *os.environ.get("PYTHONPATH", "").split(":")])
    words = [*CELLS, f"seed=range(0,{cells})", f"hydra/launcher={launcher}", f"out={home / 'out'}"]
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "ablate", "-m", *words, f"hydra.launcher.n_jobs={workers}", *more],
        env=os.environ | {"PYTHONPATH": path, LOG: str(log), "OMP_NUM_THREADS": "1"},
        check=False,
    )
    wall = time.perf_counter() - began
    assert done.returncode == 0, done
    records = sum(1 for _ in (home / "out" / "cells").glob("[!.]*/record.json"))
    assert records == cells + 1, records  # and the untouched base
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    figures = {
        "launcher": launcher, "cells": cells, "workers": workers, "wall seconds": round(wall, 1),
        "wall ms a cell": round(1000 * wall / cells, 2),
        "processor ms a cell, descendants of the command": round(
            1000 * (used.ru_utime + used.ru_stime) / cells, 2
        ),
    }  # fmt: skip
    for who in ("worker", "parent"):
        figures[who] = _summed([line for line in lines if line["who"] == who], cells)
    return figures


def _summed(lines: list[dict[str, Any]], cells: int) -> dict[str, Any]:
    total: dict[str, list[float]] = collections.defaultdict(lambda: [0, 0.0, 0.0])
    for line in lines:
        for part, spent in line["parts"].items():
            total[part] = [a + b for a, b in zip(total[part], spent, strict=True)]
    whole, first, _ = (total.pop(n, [0, 0.0, 0.0]) for n in ("", "(first cell)", "(start)"))
    found = {
        part: {
            "calls a cell": round(n / cells, 2),
            "wall": _ms(wall, cells),
            "cpu": _ms(cpu, cells),
        }
        for part, (n, wall, cpu) in sorted(total.items(), key=lambda one: -one[1][2])
    }
    processes = {line["pid"]: line["processor"] for line in lines}
    about: dict[str, Any] = {
        "processes": len(processes),
        "processor ms a cell, all threads and imports": _ms(sum(processes.values()), cells),
    }
    if whole[0]:
        left = [whole[i] - first[i] for i in (1, 2)]
        rest = [left[i] - sum(spent[i + 1] for spent in total.values()) for i in (0, 1)]
        found["other"] = {"wall": _ms(rest[0], cells), "cpu": _ms(rest[1], cells)}
        about |= {"wall ms a cell": _ms(left[0], cells), "cpu ms a cell": _ms(left[1], cells)}
    return about | {"ms a cell by part": found}


def _ms(seconds: float, cells: int) -> float:
    return round(1000 * seconds / cells, 3)


def main() -> None:
    """Print the figures as JSON."""
    asked = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    asked.add_argument("--launcher", default="local")
    asked.add_argument("--cells", type=int, default=10_000)
    asked.add_argument("--workers", type=int, default=2)
    asked.add_argument("--folder", type=Path, help="where the results are written")
    asked.add_argument("settings", nargs="*", help="of the sweep")
    given = asked.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as home:
        figures = run(given.launcher, given.cells, given.workers, given.settings, Path(home))
    for who in ("worker", "parent"):
        about = figures.pop(who)
        parts = about.pop("ms a cell by part")
        print(json.dumps({who: about}))
        for part, one in parts.items():
            print(f"  {part:30} wall {one['wall']:9.3f}  cpu {one['cpu']:9.3f} ms a cell")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
