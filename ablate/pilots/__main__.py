"""`python -m ablate.pilots ORDER NUMBER COUNT`: the process of a pilot."""

import os
import signal
import sys
import time
from pathlib import Path

# Slurm announces the time limit to all processes of a task: the one that started this answers it.
signal.signal(signal.SIGUSR2, signal.SIG_IGN)


def main(order: Path, number: int, count: int) -> int:
    """Work through the bundles that `order` lists, beginning at this pilot's part of them.

    A bundle that is done is taken off the disk. Behind its own part a pilot helps the others. Of
    cells that are left it watches the workers for as long as a lease lasts, and takes over what a
    dead or stopped one held: nobody else may be there to see it.

    Returns:
        The exit status: 0 when no bundle is left that nobody works on, 3 for a fault of the
        machine, which is written beside `order`.
    """
    from ablate import interrupts
    from ablate.errors import Halted
    from ablate.pilots.pilot import halted_file
    from ablate.results.leases import BEATS, beat_seconds

    bundles = [Path(line) for line in order.read_text().splitlines()]
    first = number * len(bundles) // count
    try:
        with interrupts.raised():
            left = _worked(bundles[first:] + bundles[:first])
            looks = 0
            while left and looks <= BEATS:
                time.sleep(beat_seconds())
                before, left = left, _worked(left)
                looks = looks + 1 if left == before else 0
    except Halted as fault:
        halted_file(order).write_text(str(fault))
        return 3
    except KeyboardInterrupt as stop:
        return 128 + int(getattr(stop, "number", signal.SIGINT))
    return 0


def _worked(bundles: list[Path]) -> list[Path]:
    """Work through bundles; return those of which others work on some cells."""
    from ablate.work import work

    left = []
    for bundle in bundles:
        if work(bundle):
            bundle.unlink(missing_ok=True)
        else:
            left.append(bundle)
    return left


if __name__ == "__main__":
    status = main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # at once: what torch takes apart at its end takes seconds
