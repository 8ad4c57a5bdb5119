"""A pilot: the child process that works through bundles, how it is started and stopped."""

import importlib
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ablate.errors import Halted, UserError
from ablate.results.files import draft_of

POLL_SECONDS = 0.2
GRACE_SECONDS = 60.0  # in which a stopped child may finish a checkpoint


def launch(engine: str, bundles: Sequence[Path], count: int, settings: dict[str, Any]) -> None:
    """Run bundle files by `count` pilots of an engine and return when these have ended.

    Raises:
        Halted: a pilot met a fault of its machine.
        UserError: the engine is not installed, not there, or refuses its settings.
    """
    order = draft_of(bundles[0].with_name("pilots.list"))
    order.write_text("\n".join(map(str, bundles)))
    try:
        importlib.import_module(f"ablate.pilots.{engine}").run(order, count, settings)
        if halted_file(order).exists():
            raise Halted(halted_file(order).read_text())
    finally:
        order.unlink(missing_ok=True)
        halted_file(order).unlink(missing_ok=True)


def imported(module: str, *, extra: str) -> Any:
    """Return a module that a launcher needs; `extra` is the launcher's name and what installs it.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(f"hydra/launcher={extra}: pip install 'ablate[{extra}]'") from None


def halted_file(order: Path) -> Path:
    """Return the file in which a pilot says what fault of its machine it met."""
    return order.with_suffix(".halted")


class Pilot:
    """What an engine runs, once for each pilot; it can be pickled.

    The work is done in a process of its own. So an engine's signal handlers never interrupt a
    training step, and nothing of a cell is left in an engine's process.
    """

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None

    def __call__(self, order: str, number: int, count: int) -> int:
        """Work through the bundles of `order` as one of `count`; return the child's exit status."""
        words = [sys.executable, "-m", "ablate.pilots", order, str(number), str(count)]
        try:
            self._child = subprocess.Popen(words)
            while not self._ended(POLL_SECONDS):
                pass
            return self._child.wait()
        finally:  # an engine interrupts its task by an exception
            self.stop()

    def stop(self) -> None:
        """Ask the child to stop at a checkpoint; kill it where it does not."""
        if self._child is None or self._ended(0.0):
            return
        self._child.terminate()
        if not self._ended(GRACE_SECONDS):
            self._child.kill()
            self._ended(GRACE_SECONDS)

    def _ended(self, seconds: float) -> bool:
        """Return whether the child ends within so many seconds.

        Without a lock: `stop` runs in signal handlers too, while `__call__` waits, and Popen's own
        `wait` would then wait for itself.
        """
        assert self._child is not None
        until = time.monotonic() + seconds
        asked = os.WEXITED | os.WNOWAIT | os.WNOHANG
        while self._child.returncode is None:
            try:
                if os.waitid(os.P_PID, self._child.pid, asked) is not None:
                    return True
            except ChildProcessError:  # its status has been read
                return True
            if time.monotonic() >= until:
                return False
            time.sleep(POLL_SECONDS)
        return True

    def checkpoint(self, *given: Any) -> object:
        """Return what is queued again in this job's place, as submitit asks before a time limit."""
        from submitit.helpers import DelayedSubmission

        self.stop()
        return DelayedSubmission(Pilot(), *given)

    def __getstate__(self) -> dict[str, None]:
        return {"_child": None}
