"""When a run writes its checkpoints, and where it goes on from one."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ablate.results.log import say
from ablate.training import stop
from ablate.training.checkpoints import files
from ablate.training.checkpoints.snapshot import Progress, Underway, Unfit
from ablate.training.ledger import Ledger

LEAST_SHARE = 20  # training lasts at least this many times what the last checkpoint took


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """The checkpoints of one run: where they are, minutes between two, and how many are kept."""

    folder: Path
    minutes: float
    keep: int = 2


class Keeper:
    """Writes the checkpoints of a run under way, finds the one to go on from, and stops the run."""

    def __init__(
        self, asked: Checkpoints | None, underway: Underway, ledger: Ledger, device: torch.device
    ) -> None:
        """Begin with the first interval; where none are `asked` for, none are read or written."""
        self._asked, self._underway = asked, underway
        self._ledger, self._device = ledger, device
        self._began, self._took = time.monotonic(), 0.0

    def newest(self) -> Any | None:
        """Return the newest snapshot that is sound and of this run; None where there is none."""
        if self._asked is None:
            return None
        files.clear(self._asked.folder, keep=self._asked.keep)
        for folder in files.found(self._asked.folder):
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
        due = self._asked is not None and self._due(self._asked.minutes)
        if not (due or stop.stop_requested()):
            return 0.0
        began = time.monotonic()
        kept = False
        if self._asked:
            self._ledger.write()
            self._underway.result.train_seconds = seconds
            tree = self._underway.snapshot(optimizer, schedule, place, self._device)
            kept = self._write(tree, place, self._asked)
        kept_to = ", from which the same command goes on" if kept else ""
        stop.check(f"stopped after step {place.taken}{kept_to}")
        self._began = time.monotonic()
        self._took = self._began - began
        return self._took

    def _due(self, minutes: float) -> bool:
        return time.monotonic() - self._began >= max(60 * minutes, LEAST_SHARE * self._took)

    def _write(self, tree: Any, place: Progress, asked: Checkpoints) -> bool:
        """Write a snapshot; return whether that could be done. A full disk costs no run."""
        began = time.monotonic()
        try:
            size = files.write(tree, asked.folder, step=place.taken)
        except (OSError, TypeError) as error:
            say(f"NO CHECKPOINT after step {place.taken}: {error}")
            return False
        files.clear(asked.folder, keep=asked.keep)
        spent = time.monotonic() - began
        say(f"checkpoint after step {place.taken}: {size / 2**20:,.1f} MB in {spent:.1f} s")
        return True
