"""What is scored, split over the processes of a cell: each computes a share, all get the whole.

Every process asks the same questions in the same order. A share that fails in one process fails in
all, so that none waits for another.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from ablate.training.distributed import gathered, process, processes

T = TypeVar("T")
Job = Callable[[list[int]], Sequence[T]]  # from the numbers of items to what is found for each


class ShareFailed(Exception):
    """The share of another process failed."""


def over_processes(groups: Sequence[Sequence[int]], job: Job[T]) -> list[T]:
    """Return what `job` finds for every item, in the order of their numbers.

    Args:
        groups: the numbers of items that one process should compute together, large groups first;
            every number from 0 is in one of them.
        job: finds it for some items.

    Raises:
        ShareFailed: it failed in another process.
        torch.OutOfMemoryError: the memory of a GPU ran out, in any process.
    """
    mine = sorted(number for group in groups[process() :: processes()] for number in group)
    if processes() == 1:
        return list(job(mine))
    problem: Exception | None = None
    found: list[T] = []
    try:
        found = list(job(mine)) if mine else []
    except Exception as error:  # told to all, and raised again below
        problem = error
    shares = gathered((mine, found, _told(problem)))
    problems = [told for _, _, told in shares if told is not None]
    full = [text for out_of_memory, text in problems if out_of_memory]
    if full and not isinstance(problem, torch.OutOfMemoryError):
        raise torch.OutOfMemoryError(full[0])
    if problem is not None:
        raise problem
    if problems:
        raise ShareFailed(problems[0][1])
    whole = {n: one for numbers, made, _ in shares for n, one in zip(numbers, made, strict=True)}
    return [whole[number] for number in range(len(whole))]


def _told(problem: Exception | None) -> tuple[bool, str] | None:
    if problem is None:
        return None
    return isinstance(problem, torch.OutOfMemoryError), f"{type(problem).__name__}: {problem}"
