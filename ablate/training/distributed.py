"""This process's place among the processes that carry out one run, one for each device."""

from typing import Any

import torch
from torch import Tensor, distributed


def processes() -> int:
    """Return the number of processes; 1 outside a distributed run."""
    return distributed.get_world_size() if _running() else 1


def process() -> int:
    """Return this process's index; 0 outside a distributed run."""
    return distributed.get_rank() if _running() else 0


def is_first() -> bool:
    """Return whether this is the process that writes what comes of the run."""
    return process() == 0


def summed(tensor: Tensor) -> Tensor:
    """Return the sum of `tensor` over all processes, in its place."""
    if processes() > 1:
        distributed.all_reduce(tensor)
    return tensor


def gathered(value: Any) -> list[Any]:
    """Return the `value` of every process, by index; it must be picklable."""
    if processes() == 1:
        return [value]
    found: list[Any] = [None] * processes()
    distributed.all_gather_object(found, value)
    return found


def any_of(flag: bool) -> bool:
    """Return whether `flag` is set in any process."""
    return flag if processes() == 1 else bool(summed(torch.tensor(float(flag))) > 0)


def wait_for_all() -> None:
    """Return once every process has come here."""
    gathered(None)


def _running() -> bool:
    return distributed.is_available() and distributed.is_initialized()
