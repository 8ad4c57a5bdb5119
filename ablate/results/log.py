"""The log of a cell: our lines and the warnings of libraries, in one file beside the record."""

import contextlib
import logging
from collections import deque
from collections.abc import Iterator
from pathlib import Path

LOGGER = logging.getLogger("ablate")
LOG = "log.txt"
LAST = 20  # lines that a failure keeps


def say(line: str) -> None:
    """Write a line to the log of the cell that is running; outside of one it is lost."""
    LOGGER.info(line)


def last_lines(folder: Path) -> list[str]:
    """Return the last lines of the log of a cell in `folder`; none where it has none."""
    try:
        with (folder / LOG).open(errors="replace") as lines:
            return [line.rstrip("\n") for line in deque(lines, LAST)]
    except OSError:
        return []


def recent() -> list[str]:
    """Return the last lines of the cell that was logged last in this process."""
    return list(_recent)


_recent: deque[str] = deque(maxlen=LAST)


class _File(logging.FileHandler):
    """Writes to a file; a full disk costs the line, and no traceback on the terminal."""

    def emit(self, record: logging.LogRecord) -> None:
        _recent.extend(self.format(record).splitlines())
        super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        pass


@contextlib.contextmanager
def logged(path: Path) -> Iterator[None]:
    """Write lines of `say` and all warnings inside the block to the file `path`."""
    _recent.clear()
    handler = _File(path, delay=False)
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
