"""This process's place among the processes of one training run."""

from torch import distributed


def processes() -> int:
    """Return the number of processes; 1 outside a distributed run."""
    return distributed.get_world_size() if _running() else 1


def process() -> int:
    """Return this process's index; 0 outside a distributed run."""
    return distributed.get_rank() if _running() else 0


def _running() -> bool:
    return distributed.is_available() and distributed.is_initialized()
