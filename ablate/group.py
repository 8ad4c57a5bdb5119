"""The processes that carry out one cell on several devices, started and watched by a worker.

    worker   holds the lease and the draft of the record; computes nothing, so nothing keeps it
             from hearing a signal or from seeing that one of the processes has ended
    members  one process for each device; all of them run `run.carry_out`, the first writes

The members stay for the next cell. They end with the worker, however that ends, and all of them
where one fails: its error is that of the cell.
"""

import contextlib
import json
import os
import selectors
import signal
import sys
import time
from collections.abc import Mapping
from typing import Any

from ablate import interrupts, machine
from ablate.child import Child
from ablate.config.schema import Execution
from ablate.machine import MachineFault
from ablate.models.gpu_slots import gpus
from ablate.results import heart
from ablate.training import stop

HOST = "127.0.0.1"
LOOK_SECONDS = 0.5
LAST_WORDS_SECONDS = 2.0  # after the first error, in which others may tell an earlier one
LOOPBACK = "lo"  # the interface of this machine to itself, in Linux


class MemberFailed(Exception):
    """An error of a member: `told` is what a failure records of it (`failures.described`)."""

    def __init__(self, told: Mapping[str, Any]) -> None:
        super().__init__(str(told["error"]))
        self.told = dict(told)


class Group:
    """The members of one number of devices, and what they said."""

    def __init__(self, execution: Execution) -> None:
        """Start them; they meet at a port that the system has chosen."""
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        self.execution, count = execution, execution.devices
        self._meeting = TCPStore(HOST, 0, is_master=True, wait_for_workers=False)
        env = {"OMP_NUM_THREADS": str(execution.threads)}
        if sys.platform == "linux":
            env["GLOO_SOCKET_IFNAME"] = LOOPBACK  # the host's name may lead nowhere
        on_gpu = int(uses_gpus(execution))
        numbers = [
            (index, count, self._meeting.port, on_gpu, os.getpid()) for index in range(count)
        ]
        self.members = [Child("ablate.member", *each, env=env, apart=True) for each in numbers]

    def serves(self, execution: Execution) -> bool:
        """Return whether it can carry out a cell of this execution."""
        alive = all(member.process.poll() is None for member in self.members)
        same = (execution.devices, uses_gpus(execution)) == (
            self.execution.devices,
            uses_gpus(self.execution),
        )
        return alive and same and execution.threads == self.execution.threads

    def carry_out(self, order: Mapping[str, Any]) -> None:
        """Have all members carry out an order, and return when all have.

        Raises:
            MemberFailed: one of them failed, or ended.
            TrainingStopped: this process was asked to stop, and they did between two steps.
        """
        line = json.dumps(order)
        for member in self.members:
            member.tell(line)
        self._done: set[int] = set()
        self._place, self._oom_kills = "", machine.killed_for_memory()
        self._asked, self._stopped = False, "stopped before its end"
        with selectors.DefaultSelector() as said, stop.stopping_on_signals():
            for index, member in enumerate(self.members):
                said.register(member.answers, selectors.EVENT_READ, index)
            while len(self._done) < len(self.members):
                interrupts.check()
                self._pass_on_stop()
                for key, _ in said.select(LOOK_SECONDS):
                    if self.members[key.data].silenced:
                        said.unregister(key.fileobj)
                    for what in self.members[key.data].read():
                        self._hear(key.data, what)
                self._look()

    def _pass_on_stop(self) -> None:
        """Ask the members to stop where this process was asked."""
        if not self._asked and stop.stop_requested():
            self._asked = True
            for member in self.members:
                with contextlib.suppress(ProcessLookupError):
                    member.process.send_signal(signal.SIGTERM)

    def _hear(self, index: int, what: dict[str, Any]) -> None:
        if "done" in what:
            self._done.add(index)
        elif "at" in what:
            self._place = what["at"]
            heart.at(self._place, what["facts"])
        elif "stopped" in what and index == 0:  # it alone knows whether a checkpoint was written
            self._stopped = what["stopped"]
        elif "failed" in what and not self._asked:
            raise self._failure([what])

    def _look(self) -> None:
        """Raise where a member has ended."""
        gone = [member.process.poll() is not None for member in self.members]
        if gone[0] and self._asked:
            for what in _left(self.members[0]):
                self._hear(0, what)
            stop.check(self._stopped)
        if any(gone) and not self._asked:
            raise self._failure([])

    def _failure(self, failed: list[dict[str, Any]]) -> Exception:
        """Return the error that came first: the others follow from it."""
        until = time.monotonic() + LAST_WORDS_SECONDS
        while time.monotonic() < until and any(m.process.poll() is None for m in self.members):
            time.sleep(0.05)
        killed = [m.process.returncode for m in self.members if (m.process.poll() or 0) < 0]
        failed += [what for m in self.members for what in _left(m) if "failed" in what]
        first = min(failed, key=lambda what: float(what["when"]), default=None)
        if killed and (first is None or first["lost"]):
            if machine.killed_for_memory() > self._oom_kills:
                return MachineFault(f"{machine.MEMORY}: the system killed a process of a cell")
            return MemberFailed(_killed(signal.Signals(-killed[0]).name, self._place))
        if first is None:
            return MemberFailed(_killed("without a word", self._place))
        return MachineFault(first["fault"]) if first["fault"] else MemberFailed(first["failed"])

    def end(self) -> None:
        """End all members at once: what they hold is of no use to anyone else."""
        for member in self.members:
            member.orders.close()
            member.process.kill()
        for member in self.members:
            member.process.wait()
            member.close()


def _left(member: Child) -> list[dict[str, Any]]:
    """Return what a member said that was not read yet, without waiting for more."""
    os.set_blocking(member.answers.fileno(), False)
    try:
        return list(member.last_words())
    finally:
        os.set_blocking(member.answers.fileno(), True)


def _killed(how: str, place: str) -> dict[str, Any]:
    at = f" at {place}" if place else ""
    error = f"one of the processes of this cell was killed{at} ({how})"
    return {"kind": "killed", "error": error, "place": place, "traceback": "", "log": []}


_group: Group | None = None  # of this process


def carry_out(execution: Execution, order: Mapping[str, Any]) -> None:
    """Have the processes of this execution carry out an order; see `Group.carry_out`."""
    global _group
    if _group is not None and not _group.serves(execution):
        close()
    if _group is None:
        _group = Group(execution)
    try:
        _group.carry_out(order)
    except BaseException:
        close()
        raise


def close() -> None:
    """End the processes that wait for a further cell, if there are any."""
    global _group
    if _group is not None:
        _group.end()
        _group = None


def uses_gpus(execution: Execution) -> bool:
    """Return whether a cell is computed on GPUs here."""
    return execution.device != "cpu" and bool(gpus())
