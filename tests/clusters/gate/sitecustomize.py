"""Holds training at a step for as long as a test wants: Python imports this file where it starts.

It acts where its folder is on PYTHONPATH and ABLATE_TEST_GATE names another folder. There a test
makes a file `KEY`, or `all`, for a cell to go on; `KEY.shut` holds a cell that `all` would let go.
So what a test sees does not depend on how quick the machine is. A worker that waits still hears
that it is to stop, and that its cell was taken over.
"""

import os
import time
from pathlib import Path

from ablate.results import heart

FROM = 3  # the first step at which it waits
told = heart.at


def at(place: str, facts=None, *, key=None) -> None:
    """Say how far the work is, and wait there where it is a step and the gate is shut."""
    told(place, facts, key=key)
    word, _, rest = place.partition(" ")
    if word != "step" or int(rest.split()[0]) < FROM:
        return
    from ablate.training.stop import stop_requested

    while is_shut(heart._current[1]) and not stop_requested():
        time.sleep(0.1)
        told(place, facts, key=key)


def is_shut(key: str) -> bool:
    """Return whether a cell is to wait."""
    gate = Path(os.environ["ABLATE_TEST_GATE"])
    opened = (gate / key).exists() or (gate / "all").exists()
    return not opened or (gate / f"{key}.shut").exists()


if "ABLATE_TEST_GATE" in os.environ:
    heart.at = at
