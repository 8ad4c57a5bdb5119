"""Tells how far the training of a cell is: in its lease, and to whoever else is to hear of it."""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Sequence

from ablate.errors import LeaseLost
from ablate.results import heart
from ablate.training.history import Entry

WINDOW = 20  # steps over which the speed is taken
BESIDE_SECONDS = 1.0  # between two words of one of several cells that train side by side

Hear = Callable[[Sequence[Entry], float | None], None]  # the steps so far, and tokens per second


class Telling:
    """Hears of every step of a cell's training, and tells of it."""

    def __init__(self, *, beside: str = "", hear: Hear | None = None) -> None:
        """Begin with the training.

        Args:
            beside: the key of the cell, where others train side by side with it.
            hear: is called after each step that is written.
        """
        self._beside, self._hear = beside, hear
        self._tokens, self._loss = 0, float("nan")
        self._first: tuple[float, int] | None = None  # when a step ended, and which
        self._window: deque[tuple[float, int]] = deque(maxlen=WINDOW + 1)  # and the tokens so far
        self._said = float("-inf")

    def tell(self, history: Sequence[Entry]) -> None:
        """Hear of the step that was written last into `history`."""
        entry = history[-1]
        self._tokens += int(entry["tokens"] or 0)
        self._loss = float(entry["loss"] or 0.0)
        self._window.append((time.perf_counter(), self._tokens))
        if self._hear is not None:
            self._hear(history, self.tokens_per_second)

    def tick(self, step: int, of: int) -> None:
        """Say that so many steps of the stage are done."""
        now = time.perf_counter()
        if self._first is None or step <= self._first[1]:  # the first also builds what others use
            self._first = now, step
        if self._beside and now - self._said < BESIDE_SECONDS and step < of:
            return
        self._said = now
        since, first = self._first
        facts = {
            "step": float(step),
            "of": float(of),
            "loss": self._loss if self._window else None,
            "tokens_per_second": self.tokens_per_second,
            "step_seconds": (now - since) / (step - first) if step > first else None,
        }
        # A lease that was lost ends a cell that trains alone; of several it is seen at the end.
        with contextlib.suppress(*[LeaseLost] * bool(self._beside)):
            heart.at(f"step {step} of {of}", facts, key=self._beside or None)

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens a second over the last steps; None before there are two."""
        if len(self._window) < 2:
            return None
        (since, before), (now, tokens) = self._window[0], self._window[-1]
        return (tokens - before) / (now - since) if now > since else None
