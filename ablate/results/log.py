"""The log of a cell: our own lines and what libraries warn of, in one file beside the record."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

LOGGER = logging.getLogger("ablate")


def say(line: str) -> None:
    """Write a line to the log of the cell at hand; nowhere outside of one."""
    LOGGER.info(line)


@contextlib.contextmanager
def logged(path: Path) -> Iterator[None]:
    """Send what is said inside the block, and every warning, to the file `path`."""
    handler = logging.FileHandler(path, delay=False)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    warned = logging.getLogger("py.warnings")
    level = LOGGER.level
    LOGGER.setLevel(logging.INFO)
    LOGGER.disabled = False  # Hydra's set-up of logging switches off whatever exists before it
    LOGGER.propagate = False
    logging.captureWarnings(True)
    for logger in (LOGGER, warned):
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in (LOGGER, warned):
            logger.removeHandler(handler)
        logging.captureWarnings(False)
        LOGGER.setLevel(level)
        handler.close()
