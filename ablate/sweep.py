"""Carries out a grid: missing runs go to a Hydra launcher in bundles until none is left.

The parent decides what to launch and watches; the workers train. A worker never raises: it writes
a record or a failure. If a worker is killed the launcher may die with it; its claims are then
recorded as killed attempts and the missing runs are launched again. A worker whose GPU is lost
writes the failure and ends itself, for nothing more can be computed in its process; the rest is as
after a kill. Only the workers import torch.
"""

import contextlib
import gc
import json
import math
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ablate.config.build import build, plain
from ablate.errors import UserError
from ablate.experiment import lanes
from ablate.experiment.design import Design, Named, collect, save
from ablate.experiment.status import missing, unrecorded, unscored_text
from ablate.models import gpu_slots
from ablate.models.gpu import lost_device
from ablate.results.store import Store

POLL_SECONDS = 0.5
MAX_ROUNDS = 20  # launches; each further one needs a new kill, so this is never reached in practice


@dataclass(frozen=True, slots=True)
class Workers:
    """How many workers a sweep has, and how many of them share a GPU."""

    count: int = 1
    per_gpu: int = 0  # 0: they use none


class Launch(Protocol):
    """Runs a list of bundle files somewhere and returns when all of them have ended."""

    def __call__(self, bundles: Sequence[Path], workers: int) -> None:
        """Run the bundles, that many at once."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The summary of a sweep, counted in runs, not in names."""

    out: Path
    total: int
    found: int  # were recorded before
    trained: int
    failed: dict[str, str]  # train_key -> the error's last line
    seconds: float
    unscored: dict[str, str]  # train_key -> which of its scores failed, and why

    @property
    def status(self) -> int:
        """The exit status: 0 success, 1 some cells or scores failed."""
        return 1 if self.failed or self.unscored else 0


def carry_out(
    plan: Design,
    out: Path,
    launch: Launch,
    *,
    workers: Workers,
    watch: "Watch | None" = None,
) -> Outcome:
    """Return the outcome of training and scoring what `plan` lacks under `out`.

    Two sweeps may work on one folder: this one waits for the cells that the other is training.
    """
    started = time.time()
    store = Store(out)
    store.prepare()
    save(plan, out)
    before = set(missing(plan, store))
    watch = watch or Watch()
    with watch.over(store, plan):
        for _ in range(MAX_ROUNDS):
            for key in plan.runs:
                store.reap(key)
            todo = missing(plan, store)
            free = {key: names for key, names in todo.items() if not store.claimed(key)}
            if not todo:
                break
            if not free:  # another sweep has claimed them
                _wait(store, list(todo))
                continue
            _launch(launch, write_bundles(free, out, workers=workers), workers.count)
    store.clear_drafts()
    failed = {key: _why(store, key) for key in unrecorded(plan, store)}
    collect(out)
    return Outcome(
        out=out,
        total=len(plan.runs),
        found=len(plan.runs) - len(before),
        trained=len(before - set(failed)),
        failed=failed,
        seconds=time.time() - started,
        unscored=_unscored(plan, store),
    )


def _unscored(plan: Design, store: Store) -> dict[str, str]:
    records = ((key, store.record(key)) for key in plan.runs)
    found = {key: unscored_text(record) for key, record in records if record}
    return {key: text for key, text in found.items() if text}


def _why(store: Store, key: str) -> str:
    attempts = store.failures(key)
    return str(attempts[-1]["error"]) if attempts else "was not finished"


def _launch(launch: Launch, bundles: list[Path], workers: int) -> None:
    try:
        launch(bundles, workers)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # any kind: joblib raises its own when a worker is killed
        print(f"the launcher stopped ({type(error).__name__}); the missing runs are launched again")
    finally:
        for bundle in bundles:
            bundle.unlink(missing_ok=True)


def _wait(store: Store, keys: list[str]) -> None:
    while any(store.claimed(key) for key in keys):
        time.sleep(POLL_SECONDS)


def write_bundles(runs: dict[str, list[Named]], out: Path, *, workers: Workers) -> list[Path]:
    """Return the bundle files, newly written, that give the runs to the workers, in order."""
    folder = (out / "bundles").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, (keys, beside) in enumerate(_bundles(runs, max(1, workers.count))):
        path = folder / f"{time.time_ns()}-{number:05d}.json"
        about = {"here": os.getcwd(), "sweep": os.getpid(), "out": str(out), "gpu": workers.per_gpu}
        chosen = {key: [plain(named.cell) for named in runs[key]] for key in keys}
        path.write_text(json.dumps(about | {"beside": beside, "runs": chosen}))
        paths.append(path)
    return paths


def _bundles(runs: dict[str, list[Named]], workers: int) -> list[tuple[list[str], bool]]:
    """Return the runs of each bundle, and whether they are to be trained side by side."""
    first = {key: named.cell for key, names in runs.items() for named in names[:1]}
    share = math.ceil(len(runs) / workers)
    groups = [group for group in lanes.groups(first) if len(group) > 1]
    beside = [group[i : i + share] for group in groups for i in range(0, len(group), share)]
    grouped = {key for group in groups for key in group}
    alone = [key for key in runs if key not in grouped]
    # Four bundles a worker keep the end of a sweep balanced; up to 16 runs share what a process
    # does once (imports, benchmark requests).
    size = max(1, min(16, math.ceil(len(alone) / (4 * workers))))
    rest = [alone[i : i + size] for i in range(0, len(alone), size)]
    return [(keys, True) for keys in beside] + [(keys, False) for keys in rest]


def work(bundle: Path) -> None:
    """Run the cells of one bundle file, in a worker; errors of cells are recorded, not raised.

    Paths count from the folder of the command: a worker of an earlier sweep may stand elsewhere.
    After the loss of its GPU the worker ends: the rest of its bundle begins in a fresh process.

    Raises:
        SystemExit: the GPU is lost and this process is that of the sweep itself.
    """
    content: dict[str, Any] = json.loads(bundle.read_text())
    if content["gpu"]:
        gpu_slots.take(content["gpu"])  # before torch looks for a GPU
    from ablate.beside import train_beside  # only workers import torch
    from ablate.run import keep_beside, run_cells

    if not gc.get_freeze_count():
        gc.freeze()  # what was imported stays: looking for garbage in it takes 0.2 s a cell

    with contextlib.chdir(content["here"]):
        store, runs = Store(Path(content["out"])), content["runs"]
        for keys in [list(runs)] if content["beside"] else [[key] for key in runs]:
            with contextlib.ExitStack() as claims:
                mine = [key for key in keys if claims.enter_context(store.claim(key))]
                beside = _beside(train_beside, keep_beside, store, {k: runs[k] for k in mine})
                lost = any(
                    _attempt(run_cells, store, key, runs[key], beside.pop(key, None))
                    for key in mine
                )
            if lost:
                _leave(content["sweep"])


def _leave(sweep: int) -> None:
    print("the GPU is lost to this process, which ends; what was trained is kept", file=sys.stderr)
    sys.stderr.flush()
    if os.getpid() == sweep:
        raise SystemExit(1)
    os._exit(1)


def _beside(
    train: Callable[..., dict[str, Any]],
    keep: Callable[..., None],
    store: Store,
    runs: dict[str, list[Any]],
) -> dict[str, Any]:
    """Return what was trained of several runs side by side; nothing where that failed.

    All of it is kept in the store before any of it is scored. What is only to be scored, or was
    tried before, is left out.
    """
    fresh = [
        key
        for key in runs
        if store.record(key) is None and not store.failures(key) and not store.is_trained(key)
    ]
    if len(fresh) < 2:
        return {}
    try:
        cells = {key: build(runs[key][0]) for key in fresh}
        trained = train(cells)
        for key, made in trained.items():
            keep(cells[key], key, store, made)
        return trained
    except Exception as error:  # each of them is tried alone, where its own error is recorded
        text = " ".join(str(error).split())
        print(f"{len(fresh)} cells train one after another: {text}", file=sys.stderr)
        return {}


def _attempt(
    run_cells: Callable[..., None], store: Store, key: str, trees: list[Any], beside: Any = None
) -> bool:
    """Carry out one run or record why it failed; return whether the GPU was lost on the way."""
    try:
        run_cells([build(tree) for tree in trees], key, store, beside=beside)
        return False
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        lost, text = lost_device(error), str(error)
        if not isinstance(error, UserError):  # such an error says by itself what is wrong
            text = traceback.format_exception_only(error)[-1]
        store.fail(
            key,
            {
                "kind": "device" if lost else getattr(error, "kind", "error"),
                "error": text.strip().splitlines()[-1],
                "traceback": traceback.format_exc(),
                "config": trees[0],
            },
        )
        return lost


class Watch:
    """Observes a sweep and shows nothing; `ablate.progress.Shown` draws."""

    def over(self, store: Store, plan: Design) -> "Watch":
        """Return the context in which the sweep is observed."""
        self.store, self.plan = store, plan
        return self

    def __enter__(self) -> "Watch":
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.close()

    def _poll(self) -> None:
        keys = list(self.plan.runs)
        while True:
            done = [key for key in keys if (self.store.folder(key) / "record.json").exists()]
            tried = self.store.attempted()
            failed = [key for key in keys if key in tried and self.store.given_up(key)]
            self.show(done, failed, len(keys))
            if self._stop.wait(POLL_SECONDS):
                return

    def show(self, done: Sequence[str], failed: Sequence[str], total: int) -> None:
        """Show how far the sweep is: the keys of runs that ended, and how many there are."""

    def close(self) -> None:
        """Show nothing more."""
