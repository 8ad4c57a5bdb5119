"""The side of a sweep that trains: a worker goes through a bundle of cells, each under its lease.

Errors of cells are recorded, not raised. What raises is no error of a cell: a request to stop, or
a fault of the machine. A worker whose GPU is lost writes the failure and ends itself, for nothing
more can be computed in its process. Only this side imports torch.
"""

import contextlib
import functools
import gc
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from enum import Enum, auto
from pathlib import Path
from typing import Any

from ablate import interrupts
from ablate.config.build import build
from ablate.errors import Halted, LeaseLost, UserError
from ablate.failures import described
from ablate.machine import MachineFault, fault
from ablate.models import gpu_slots
from ablate.models.gpu import lost_device
from ablate.results import heart, provenance
from ablate.results.process import Process, here
from ablate.results.store import Store


def work(bundle: Path) -> bool:
    """Run the cells of one bundle file; where that is gone the sweep has ended, and so does this.

    Paths count from the folder of the command: a worker of an earlier sweep may stand elsewhere.
    After the loss of its GPU the worker ends: the rest of its bundle begins in a fresh process.

    Returns:
        Whether all of them were this worker's to run or had been run; False where others work on
        some, or have taken some over from this one.

    Raises:
        Halted: the machine cannot go on, or has fewer GPUs than a cell is to have.
        Interrupted: this process was asked to stop, or its sweep is gone.
        SystemExit: the GPU is lost and this process is that of the sweep itself.
    """
    try:
        content: dict[str, Any] = json.loads(bundle.read_text())
    except FileNotFoundError:
        return True
    leader = Process(**content["sweep"])
    if content["gpu"]:
        try:
            gpu_slots.take(content["gpu"], content["devices"])  # before torch looks for a GPU
        except UserError as error:  # a machine of a cluster with fewer
            raise Halted(str(error)) from error
    from ablate import tracking  # only workers import torch
    from ablate.beside import scored_beside, train_beside
    from ablate.run import keep_beside, run_cells

    tracking.ask(content["trackers"])
    provenance.ready()
    _freeze()
    with interrupts.raised(), contextlib.chdir(content["here"]):
        store, runs = Store(Path(content["out"])), content["runs"]
        interrupts.follow(leader, store.claims)
        whole = True
        for keys in [list(runs)] if content["beside"] else [[key] for key in runs]:
            if not bundle.exists():
                return True
            with contextlib.ExitStack() as claims:
                mine = [key for key in keys if claims.enter_context(_claimed(store, key, leader))]
                beside = _beside(train_beside, keep_beside, store, {k: runs[k] for k in mine})
                if content["minutes"] is None:  # one cell's minutes would be spent for all
                    claims.enter_context(scored_beside(runs, beside))
                limited = _limited(run_cells, content["minutes"])
                ends = set[End]()
                for key in mine:
                    ends.add(_attempt(limited, store, key, runs[key], beside.pop(key, None)))
                    if End.GPU_LOST in ends:
                        break
            if End.GPU_LOST in ends:
                _leave(leader)
            whole = whole and len(mine) == len(keys) and End.GAVE_WAY not in ends
    return whole


@functools.cache
def _freeze() -> None:
    """Keep what was imported from the search for garbage, which takes 0.2 s a cell there."""
    gc.freeze()


@contextlib.contextmanager
def _claimed(store: Store, key: str, leader: Process) -> Iterator[bool]:
    """Claim a run; False too where another sweep has meanwhile failed with it."""
    try:
        with store.claim(key, sweep=leader.mark) as mine:
            yield mine and store.given_up(key) is None
    except OSError as error:
        raise MachineFault(fault(error) or str(error), store.out) from error


def _leave(leader: Process) -> None:
    print("the GPU is lost to this process, which ends; what was trained is kept", file=sys.stderr)
    sys.stderr.flush()
    if here() == leader:
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
    heart.work_on(store.claims, None)
    heart.at("training side by side")
    try:
        cells = {key: build(runs[key][0]) for key in fresh}
        trained = train(cells, folder=store.checkpoints)
        for key, made in trained.items():
            keep(cells[key], key, store, made)
        return trained
    except LeaseLost:  # of one of them; what is still held is tried alone
        return {}
    except Exception as error:  # each of them is tried alone, where its own error is recorded
        text = " ".join(str(error).split())
        print(f"{len(fresh)} cells train one after another: {text}", file=sys.stderr)
        return {}


class End(Enum):
    """What became of an attempt at a run."""

    RECORDED = auto()  # or its failure was
    GAVE_WAY = auto()  # to another worker, which has it now
    GPU_LOST = auto()


class TimeOut(BaseException):
    """A cell took longer than `cell_minutes`."""

    kind = "timeout"  # of failure


def _limited(run_cells: Callable[..., None], minutes: float | None) -> Callable[..., None]:
    """Return `run_cells`, which a TimeOut ends after so many minutes."""
    if minutes is None or threading.current_thread() is not threading.main_thread():
        return run_cells

    def over(number: int, frame: object) -> None:
        raise TimeOut(f"took longer than cell_minutes={minutes:g}")

    def run(*given: Any, **named: Any) -> None:
        before = signal.signal(signal.SIGALRM, over)
        signal.setitimer(signal.ITIMER_REAL, 60 * minutes)
        try:
            run_cells(*given, **named)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    return run


def _attempt(
    run_cells: Callable[..., None], store: Store, key: str, trees: list[Any], beside: Any = None
) -> End:
    """Carry out one run or record why it failed."""
    heart.work_on(store.claims, key)
    try:
        run_cells([build(tree) for tree in trees], key, store, beside=beside)
        return End.RECORDED
    except (KeyboardInterrupt, SystemExit):
        raise
    except LeaseLost:
        return _gave_way(key)
    except BaseException as error:
        if words := fault(error):
            raise MachineFault(words, store.out) from error
        try:
            return _fail(store, key, trees[0], error)
        except LeaseLost:  # what it met was that another process has taken its place
            return _gave_way(key)


def _gave_way(key: str) -> End:
    print(f"{key}: another worker has taken it over; this one gives way", file=sys.stderr)
    return End.GAVE_WAY


def _fail(store: Store, key: str, tree: Any, error: BaseException) -> End:
    """Record why a run failed."""
    of_member: dict[str, Any] | None = getattr(error, "told", None)
    store.fail(key, {**(of_member or described(error)), "config": tree})
    return End.GPU_LOST if of_member is None and lost_device(error) else End.RECORDED
