"""Numbers of a step on their way from the device into the history, without a wait for them."""

from collections import deque
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ablate.training.history import Entry, Result

Tell = Callable[[Sequence[Entry]], None]  # with the history, whose last entry is new


class Fetched:
    """Values that a GPU will have computed at some time; on a CPU they are there at once."""

    def __init__(self, values: Tensor) -> None:
        """Start the copy of `values` to the host."""
        self._values, self._ready = values, None
        if values.is_cuda:
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._ready = torch.cuda.Event()
            self._ready.record()

    def read(self) -> list[float]:
        """Return the values, after a wait for what came before the copy and for nothing else."""
        if self._ready is not None:
            self._ready.synchronize()
        found: list[float] = self._values.tolist()
        return found


class Ledger:
    """Writes the entries of steps into a result; those of a GPU one step late.

    The host then prepares a step while the device computes the one before it. A step that diverged
    is told at the end of the next one, under its own number.
    """

    def __init__(
        self,
        result: Result,
        device: torch.device,
        memory_mb: Callable[[], float],
        tell: Tell | None = None,
    ) -> None:
        """Write into `result`; `memory_mb` tells the memory in use, `tell` hears of each entry."""
        self._result, self._memory_mb, self._tell = result, memory_mb, tell
        self._late = 1 if device.type == "cuda" else 0
        self._pending: deque[tuple[Fetched, Callable[[list[float]], Entry]]] = deque()

    def add(self, values: Tensor, entry: Callable[[list[float]], Entry]) -> None:
        """Note a step: `entry` makes what is written of `values` on the host.

        Raises:
            Diverged: this step, or on a GPU the one before, has a number that is not finite.
        """
        self._pending.append((Fetched(values), entry))
        self.write(keep=self._late)

    def write(self, keep: int = 0) -> None:
        """Write all but the last `keep` of the steps noted.

        Raises:
            Diverged: one of them has a number that is not finite.
        """
        while len(self._pending) > keep:
            fetched, entry = self._pending.popleft()
            self._result.add(entry(fetched.read()), self._memory_mb())
            if self._tell is not None:
                self._tell(self._result.history)
