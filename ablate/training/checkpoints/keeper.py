"""When a run writes its checkpoints, and where it goes on from one."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ablate.config.schema import Execution
from ablate.results.log import say
from ablate.training import stop
from ablate.training.checkpoints import files
from ablate.training.checkpoints.snapshot import Progress, Underway, Unfit
from ablate.training.distributed import any_of, is_first
from ablate.training.ledger import Ledger

LEAST_SHARE = 20  # training lasts at least this many times what the last checkpoint took


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """The checkpoints of one run: where they are, minutes between two, and how many are kept."""

    folder: Path
    minutes: float
    keep: int = 2


def checkpoints(execution: Execution, folder: Path) -> Checkpoints | None:
    """Return the checkpoints that a run writes into `folder` by its settings, if it does."""
    minutes, kept = execution.checkpoint_minutes, execution.checkpoints_kept
    return None if minutes is None else Checkpoints(folder, minutes, kept)


class Intervals:
    """When it is time for a checkpoint: after some minutes, and later where the last took long."""

    def __init__(self, minutes: float | None) -> None:
        """Begin with the first interval; where `minutes` is None it never ends."""
        self._minutes, self._began, self._took = minutes, time.monotonic(), 0.0

    def after_step(self, write: Callable[[], str]) -> float:
        """Have checkpoints written if it is time for one; return how many seconds that took.

        Args:
            write: writes what is asked for, and returns the line of a run that stops there.

        Raises:
            TrainingStopped: the process was asked to stop.
        """
        if not any_of(self._over() or stop.stop_requested()):
            return 0.0
        began = time.monotonic()
        line = write()
        if any_of(stop.stop_requested()) and not stop.stop_requested():
            stop.request_stop()  # of several processes all stop here
        stop.check(line)
        self._began = time.monotonic()
        self._took = self._began - began
        return self._took

    def _over(self) -> bool:
        """Return whether training has lasted long enough since the last checkpoint."""
        if self._minutes is None:
            return False
        least = max(60 * self._minutes, LEAST_SHARE * self._took)
        return time.monotonic() - self._began >= least


class Keeper:
    """Writes the checkpoints of a run under way, and finds the one to go on from."""

    def __init__(
        self, asked: Checkpoints | None, underway: Underway, ledger: Ledger, device: torch.device
    ) -> None:
        """Begin with the first interval; where none are `asked` for, none are read or written."""
        self.asked, self._underway = asked, underway
        self._ledger, self._device = ledger, device
        self._intervals = Intervals(asked.minutes if asked else None)

    def newest(self) -> Any | None:
        """Return the newest snapshot that is sound and of this run; None where there is none."""
        if self.asked is None:
            return None
        files.clear(self.asked.folder, keep=self.asked.keep)
        for folder in files.found(self.asked.folder):
            try:
                tree = files.checked(folder).read(self._device)
                self._underway.check(tree, self._device)
            except (files.Damaged, Unfit, KeyError) as error:
                say(f"checkpoint {folder.name} {error}; it is not used")
            else:
                say(f"training goes on after step {tree['place']['taken']}, from a checkpoint")
                return tree
        return None

    def after_step(self, place: Progress, optimizer: Any, schedule: Any, seconds: float) -> float:
        """Write a checkpoint if it is time for one; return how many seconds that took.

        Args:
            place: after which step.
            optimizer: of the training pass, not accelerate's.
            schedule: of the training pass.
            seconds: that the run has trained.

        Raises:
            TrainingStopped: the run was asked to stop.
        """

        def write() -> str:
            kept = self.write(place, optimizer, schedule, seconds)
            kept_to = ", from which the same command goes on" if kept else ""
            return f"stopped after step {place.taken}{kept_to}"

        return self._intervals.after_step(write)

    def write(self, place: Progress, optimizer: Any, schedule: Any, seconds: float) -> bool:
        """Write a checkpoint if any are asked for; return whether that could be done.

        A full disk costs the checkpoint, not the run. The arguments are those of `after_step`.
        """
        if self.asked is None:
            return False
        self._ledger.write()
        self._underway.result.train_seconds = seconds
        began = time.monotonic()
        try:
            tree = self._underway.snapshot(optimizer, schedule, place, self._device)
            if not is_first():  # of several processes, which all give their random states
                return False
            size = files.write(tree, self.asked.folder, step=place.taken)
        except (OSError, TypeError) as error:
            say(f"NO CHECKPOINT after step {place.taken}: {error}")
            return False
        files.clear(self.asked.folder, keep=self.asked.keep)
        spent = time.monotonic() - began
        say(f"checkpoint after step {place.taken}: {size / 2**20:,.1f} MB in {spent:.1f} s")
        return True
