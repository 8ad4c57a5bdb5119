"""Pilots on Slurm through submitit: one array job whose tasks each work through many cells.

A task that reaches its time limit stops its cell and is queued again by submitit; one that is
preempted or whose node fails is queued again by Slurm. Which jobs are still there is asked of
`squeue`, for `sacct` needs Slurm's accounting, and without it a killed job looks as if it ran.
"""

import contextlib
import getpass
import io
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ablate.errors import UserError
from ablate.pilots.pilot import Pilot, imported

POLL_SECONDS = 5.0
ARRAY_TASKS = 1000  # where Slurm does not say how many an array may have


def run(order: Path, count: int, settings: dict[str, Any]) -> None:
    """Submit `count` pilots and return when none is left in the queue, or nothing for them.

    Args:
        order: the list of bundles.
        count: of pilots.
        settings: arguments of submitit's `SlurmExecutor.update_parameters`, and
            `max_num_timeout`, `poll_seconds`.

    Raises:
        UserError: submitit or Slurm is not here, or Slurm refuses the jobs.
    """
    given = {key: value for key, value in settings.items() if value is not None}
    poll = float(given.pop("poll_seconds", POLL_SECONDS))
    numbers = submit(order, count, given)
    try:
        _wait(numbers, poll, [Path(line) for line in order.read_text().splitlines()])
        _slurm("scancel", "--quiet", *sorted(numbers))  # tasks that are suspended have nothing left
    except BaseException:
        _slurm("scancel", *sorted(numbers))
        raise


def engine() -> Any:
    """Return the module submitit.

    Raises:
        UserError: it or Slurm is not installed, or no controller of Slurm answers.
    """
    submitit = imported("submitit", extra="slurm")
    if shutil.which("sbatch") is None:
        raise UserError("hydra/launcher=slurm: there is no sbatch here; start it on a login node")
    done = _slurm("scontrol", "ping")
    if done.returncode and " UP" not in done.stdout:  # of several one may be down
        lines = (done.stderr or done.stdout).strip().splitlines() or ["scontrol ping failed"]
        raise UserError(f"hydra/launcher=slurm: no controller of Slurm answers: {lines[0]}")
    return submitit


def submit(order: Path, count: int, settings: dict[str, Any]) -> set[str]:
    """Return the numbers of the array jobs that were submitted, one unless there are very many."""
    submitit = engine()
    folder = order.parent.parent / "slurm"
    limits = {"max_num_timeout": settings.pop("max_num_timeout", 10)}
    try:
        executor = submitit.SlurmExecutor(folder=folder / "%A", python=sys.executable, **limits)
        executor.update_parameters(job_name="ablate", array_parallelism=count, **settings)
        numbers = set()
        most = array_tasks()
        for start in range(0, count, most):
            # What sbatch says of a fault is in the error, and submitit prints it as well.
            with contextlib.redirect_stderr(io.StringIO()), executor.batch():
                jobs = [
                    executor.submit(Pilot(), str(order), number, count)
                    for number in range(start, min(start + most, count))
                ]
            numbers |= {job.job_id.split("_")[0] for job in jobs}
    except (FileNotFoundError, RuntimeError, submitit.core.utils.FailedJobError) as error:
        text = " ".join(str(error).removeprefix("sbatch: error: ").split())
        raise UserError(f"hydra/launcher=slurm: sbatch: {text}") from None
    return numbers


def array_tasks() -> int:
    """Return how many tasks one array job may have here."""
    done = _slurm("scontrol", "show", "config")
    found = re.search(r"MaxArraySize\s*=\s*(\d+)", done.stdout)
    return max(1, int(found[1]) - 1) if found else ARRAY_TASKS


def _wait(numbers: Iterable[str], poll_seconds: float, bundles: Sequence[Path]) -> None:
    """Return when none of the jobs is in the queue, or all bundles are done."""
    left, told = set(numbers), False
    while left and any(bundle.exists() for bundle in bundles):
        time.sleep(poll_seconds)
        done = _slurm("squeue", "--noheader", f"--user={getpass.getuser()}", "--format=%F")
        if done.returncode:  # the controller does not answer: the jobs may well be there
            if not told:
                print(f"squeue: {done.stderr.strip()}; asking again", file=sys.stderr, flush=True)
            told = True
            continue
        told = False
        left &= set(done.stdout.split())


def _slurm(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)
