"""The log of a cell: our lines and the warnings of libraries, in one file beside the record."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

LOGGER = logging.getLogger("ablate")


def say(line: str) -> None:
    """Write a line to the log of the cell that is running; outside of one it is lost."""
    LOGGER.info(line)


@contextlib.contextmanager
def logged(path: Path) -> Iterator[None]:
    """Write lines of `say` and all warnings inside the block to the file `path`."""
    handler = logging.FileHandler(path, delay=False)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    warned = logging.getLogger("py.warnings")
    level = LOGGER.level
    LOGGER.setLevel(logging.INFO)
    LOGGER.disabled = False  # Hydra's set-up of logging disables all earlier loggers
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
