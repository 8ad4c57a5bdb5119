"""Carries out a grid: missing runs go to a Hydra launcher in bundles until none is left.

The parent decides what to launch and watches; workers train (`ablate.work`). If a worker is killed
the launcher may die with it; its claims are then recorded as killed attempts and the missing runs
are launched again.
"""

import contextlib
import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ablate import interrupts
from ablate.config.build import plain
from ablate.errors import Halted, UserError
from ablate.experiment import lanes
from ablate.experiment.design import Design, Named, collect, save
from ablate.experiment.status import is_kept, missing, unrecorded, unscored_text
from ablate.experiment.trackers import Trackers
from ablate.machine import processor_seconds
from ablate.results import leases
from ablate.results.files import draft_of
from ablate.results.process import here
from ablate.results.store import Store
from ablate.watch import POLL_SECONDS, Watch

MAX_IDLE = 3  # launches in a row after which nothing is recorded, failed or killed


@dataclass(frozen=True, slots=True)
class Workers:
    """How many workers a sweep has, and how many of them share a GPU."""

    count: int = 1
    per_gpu: int = 0  # 0: they use none
    devices: int = 1  # that a worker has
    cell_minutes: float | None = None  # after which a cell is a failure
    trackers: Trackers = field(default_factory=Trackers)


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
    scored: int  # were trained before, and lacked a score
    failed: dict[str, str]  # train_key -> the error's last line
    seconds: float
    processor_seconds: float  # on this machine
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
    watch: Watch | None = None,
) -> Outcome:
    """Return the outcome of training and scoring what `plan` lacks under `out`.

    Two sweeps may work on one folder: this one waits for the cells that the other is training.

    Raises:
        Halted: the machine cannot go on, or all that was tried first failed alike.
        Interrupted: this process was asked to stop; its workers have ended.
    """
    started, used = time.time(), processor_seconds()
    store = Store(out)
    store.prepare()
    save(plan, out)
    before = set(missing(plan, store))
    kept = {key for key in before if is_kept(key, store) or store.record(key)}
    watch = watch or Watch()
    with interrupts.raised(), _leading(store), watch.over(store, plan):
        _rounds(plan, store, launch, workers, watch)
    failed = {key: _why(store, key) for key in unrecorded(plan, store)}
    collect(out)
    return Outcome(
        out=out,
        total=len(plan.runs),
        found=len(plan.runs) - len(before),
        trained=len(before - kept - set(failed)),
        scored=len(kept - set(failed)),
        failed=failed,
        seconds=time.time() - started,
        processor_seconds=processor_seconds() - used,
        unscored=_unscored(plan, store),
    )


@contextlib.contextmanager
def _leading(store: Store) -> Iterator[None]:
    """Run a block as the process that workers work for: it is seen to be alive until the end."""
    store.reap_all()  # of sweeps that ended as a whole, which says nothing about their cells
    try:
        with store.claim(leases.leader_key(here())):
            yield
    finally:
        store.reap_all()
        store.clear_drafts()


def _rounds(plan: Design, store: Store, launch: Launch, workers: Workers, watch: Watch) -> None:
    """Launch what is missing until nothing is, or nothing comes of it any more."""
    sweep, idle, last = here().mark, 0, (-1, -1)
    while idle < MAX_IDLE:
        interrupts.check()
        store.reap_all(sweep=sweep)
        todo = missing(plan, store)
        if not todo:
            return
        free = {key: names for key, names in todo.items() if not store.claimed(key)}
        if not free:  # another sweep has claimed them
            _wait(store, list(todo))
            continue
        now = len(todo), sum(len(store.failures(key)) for key in todo)
        idle, last = (idle + 1 if now == last else 0), now
        watch.bundles = bundles = write_bundles(free, store.out, workers=workers)
        _launch(launch, list(bundles), workers.count)
        if watch.stopped:
            raise Halted(watch.stopped)


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
    except (KeyboardInterrupt, SystemExit, Halted, UserError):
        raise
    except BaseException as error:  # any kind: joblib raises its own when a worker is killed
        what = f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
        print(f"the launcher stopped ({what}); the missing runs are launched again")
    finally:
        for bundle in bundles:
            bundle.unlink(missing_ok=True)


def _wait(store: Store, keys: list[str]) -> None:
    """Wait until one of the keys that others have claimed is free."""
    while all(store.claimed(key) for key in keys):
        interrupts.check()
        time.sleep(POLL_SECONDS)


def write_bundles(
    runs: dict[str, list[Named]], out: Path, *, workers: Workers
) -> dict[Path, list[str]]:
    """Return the runs of each bundle, whose file is newly written, in order."""
    folder = (out / "bundles").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    sweep, paths = here(), dict[Path, list[str]]()
    for number, (keys, beside) in enumerate(_bundles(runs, max(1, workers.count))):
        path = draft_of(folder / f"{time.monotonic_ns()}-{number:05d}.json")
        about = {"here": os.getcwd(), "out": str(out), "gpu": workers.per_gpu, "beside": beside}
        about["devices"] = workers.devices
        about |= {"minutes": workers.cell_minutes, "trackers": workers.trackers.plain()}
        chosen = {key: [plain(named.cell) for named in runs[key]] for key in keys}
        path.write_text(json.dumps(about | {"sweep": sweep.plain(), "runs": chosen}))
        paths[path] = keys
    return paths


def _side_by_side(runs: Mapping[str, Sequence[Named]], workers: int) -> list[list[str]]:
    """Return the keys of the runs that are to be trained side by side, a list for each group."""
    first = {key: named.cell for key, names in runs.items() for named in names[:1]}
    share = math.ceil(len(runs) / workers)
    groups = [group for group in lanes.groups(first) if len(group) > 1]
    return [group[i : i + share] for group in groups for i in range(0, len(group), share)]


def _bundles(runs: dict[str, list[Named]], workers: int) -> list[tuple[list[str], bool]]:
    """Return the runs of each bundle, and whether they are to be trained side by side."""
    beside = _side_by_side(runs, workers)
    grouped = {key for group in beside for key in group}
    alone = [key for key in runs if key not in grouped]
    # Four bundles a worker keep the end of a sweep balanced; up to 16 runs share what a process
    # does once (imports, benchmark requests).
    size = max(1, min(16, math.ceil(len(alone) / (4 * workers))))
    rest = [alone[i : i + size] for i in range(0, len(alone), size)]
    return [(keys, True) for keys in beside] + [(keys, False) for keys in rest]
