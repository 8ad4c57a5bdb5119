"""Worker processes on this machine, the launcher `local`: one dies without the others.

A worker imports torch once and goes through bundles until none is left. What a dead one held is
freed at once, and its bundle handed out again after the others. A worker that is not heard of for
as long as a lease lasts is ended, for it was stopped or hangs. However the sweep ends, so do they.
"""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ablate import interrupts, machine
from ablate.child import Child
from ablate.errors import Halted
from ablate.machine import MachineFault
from ablate.results.leases import stale_seconds
from ablate.results.process import here
from ablate.results.store import Store

LOOK_SECONDS = 0.5
LEAVE_SECONDS = 7.0  # from SIGTERM until SIGKILL
MOST_DEATHS = 20  # of workers in a row, without a new record, until the sweep stops
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Worker(Child):
    """A worker process and the pipes to it."""

    def __init__(self, share: int) -> None:
        """Start one of so many that the machine is to be shared among."""
        threads = str(max(1, (os.cpu_count() or 1) // share))
        super().__init__("ablate.worker", env=dict.fromkeys(THREADS, threads))
        self.bundle: Path | None = None
        self.silent, self.looked = 0.0, time.monotonic()

    def give(self, bundle: Path) -> None:
        """Hand a bundle to it."""
        self.bundle = bundle
        self.tell(str(bundle))

    def read(self) -> list[dict[str, Any]]:
        """Return what it has said since."""
        self.silent = 0.0
        return super().read()

    def hangs(self) -> bool:
        """Return whether it was silent for as long as this process watched."""
        now = time.monotonic()
        self.silent += min(now - self.looked, 2 * LOOK_SECONDS)
        self.looked = now
        return self.silent > stale_seconds()


class Pool:
    """Workers that go through bundles."""

    def __init__(self, bundles: Sequence[Path], count: int) -> None:
        self.left = deque(bundles)
        self.count = max(1, min(count, len(bundles)))
        self.workers: list[Worker] = []
        self.deaths, self.recorded = 0, -1

    def run(self) -> None:
        """Return when all bundles are done, or are gone because the sweep is to stop.

        Raises:
            Halted: the machine cannot go on, or workers die again and again.
        """
        with selectors.DefaultSelector() as self.said:
            try:
                while self._go_on():
                    interrupts.check()
                    for key, _ in self.said.select(LOOK_SECONDS):
                        self._hear(key.data)
                    for worker in list(self.workers):
                        self._look_at(worker)
            finally:
                self._end()

    def _go_on(self) -> bool:
        """Hand out bundles, starting workers for them; return whether any are under way."""
        under_way = [w.bundle for w in self.workers if w.bundle]
        if any(not bundle.exists() for bundle in under_way):
            return False
        self.left = deque(bundle for bundle in self.left if bundle.exists())
        idle = [worker for worker in self.workers if worker.bundle is None]
        while self.left and (idle or len(self.workers) < self.count):
            worker = idle.pop() if idle else self._start()
            worker.give(self.left.popleft())
        return any(worker.bundle for worker in self.workers)

    def _start(self) -> Worker:
        self.oom_kills = machine.killed_for_memory()
        worker = Worker(self.count)
        self.workers.append(worker)
        self.said.register(worker.answers, selectors.EVENT_READ, worker)
        return worker

    def _hear(self, worker: Worker) -> None:
        for what in worker.read():
            if "stop" in what:
                raise Halted(str(what["stop"]))
            if "done" in what:
                worker.bundle = None

    def _look_at(self, worker: Worker) -> None:
        hangs = worker.hangs()
        if hangs:
            worker.process.kill()
            worker.process.wait()
        if worker.process.poll() is None:
            return
        self._hear(worker)  # its last words
        self.workers.remove(worker)
        self.said.unregister(worker.answers)
        worker.close()
        if worker.bundle is not None:
            self._died(worker.bundle, worker.process.returncode, hangs=hangs)

    def _died(self, bundle: Path, status: int, *, hangs: bool) -> None:
        """Free what a dead worker held, and hand its bundle out again."""
        try:
            out = json.loads(bundle.read_text())["out"]
        except FileNotFoundError:  # the sweep is to stop
            return
        store, how = Store(Path(out)), _how(status)
        if status == -signal.SIGKILL and machine.killed_for_memory() > self.oom_kills:
            store.reap_all()
            raise MachineFault(f"{machine.MEMORY}: the system killed a worker")
        # A signal to stop that came to a worker alone says nothing about its cell.
        asked = hangs or status in {s for n in interrupts.SIGNALS for s in (-n, 128 + n)}
        store.reap_all(sweep="" if asked else here().mark, how=how)
        store.clear_drafts()
        recorded = len(store.recorded())
        self.deaths = self.deaths + 1 if recorded == self.recorded else 1
        self.recorded = recorded
        if self.deaths >= MOST_DEATHS:
            raise Halted(f"{self.deaths} workers died in a row and none left a record ({how})")
        self.left.append(bundle)

    def _end(self) -> None:
        """End all workers: those that wait by closing their pipe, the others by SIGTERM."""
        for worker in self.workers:
            worker.orders.close()
            if worker.bundle is not None:
                worker.process.terminate()
            worker.process.send_signal(signal.SIGCONT)
        until = time.monotonic() + LEAVE_SECONDS
        for worker in self.workers:
            try:
                worker.process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
            worker.close()


def _how(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    with contextlib.suppress(ValueError):
        return signal.Signals(-status).name
    return f"signal {-status}"


def launch(bundles: Sequence[Path], workers: int) -> None:
    """Run bundles in that many worker processes of this machine."""
    Pool(bundles, workers).run()
